"""Which known mistake an answer has, where the judge can work out what each of them gives.

On the question that was answered wrongly several mistakes often give the same. So the learner's
function is asked the other questions, too, and of the mistakes that explain the first wrong answer
the one is told that explains most of the others: of those on which the answer or the mistake is
wrong. One that explains no more than half of them is another that happens to give the same once.
"""

from collections.abc import Callable, Iterable, Mapping

from picolab.exercises.attempt import Attempt


def judge_each(
    learner: Callable,
    attempt: Attempt,
    questions: Iterable[tuple[str, Mapping]],
    wrong: Callable[[object, Mapping], str | None],
    mistakes: Mapping[str, Callable[..., object]],
    same: Callable[[object, object], bool],
    right: Callable[..., object],
    others: int = 40,
) -> None:
    """Ask one question after another, (about, arguments by name), until an answer is wrong; none
    may communicate.

    wrong: what is wrong with an answer to a question, or None. others: of so many questions, the
    first, the answers tell mistakes apart. The rest is as in `the_mistake`.
    """
    questions = list(questions)
    for about, given in questions:
        attempt.only()
        attempt.budget(count=0)
        attempt.setting(about)
        got = attempt.call(learner, given)
        if says := wrong(got, given):
            some = [other for _, other in questions[:others]]
            why = the_mistake(attempt, learner, given, some, mistakes, same, right)
            attempt.wrong(f"{says}: {why}" if why else says)
            return
    attempt.only()
    attempt.budget(count=0)


def the_mistake(
    attempt: Attempt,
    learner: Callable,
    wrong: Mapping,
    others: Iterable[Mapping],
    mistakes: Mapping[str, Callable[..., object]],
    same: Callable[[object, object], bool],
    right: Callable[..., object],
) -> str | None:
    """The sentence, or None if no mistake explains this answer.

    wrong, others: arguments by name. mistakes: what to say -> what it gives, of the same arguments.
    same: whether two answers are the same; a mistake that fails on a question does not explain it.
    right: what is right, of the same arguments.
    """
    got = attempt.call(learner, wrong)
    left = [says for says, gives in mistakes.items() if _gives(gives, wrong, got, same)]
    explained, asked = dict.fromkeys(left, 1), dict.fromkeys(left, 1)
    for question in (one for one in others if left and one is not wrong):
        try:
            answer = attempt.call(learner, question)
        except Exception:  # what is told is the first mistake, and it has been found
            break
        truth = right(**question)
        fine = same(answer, truth)
        for says in left:
            if not (fine and _gives(mistakes[says], question, truth, same)):
                explained[says] += _gives(mistakes[says], question, answer, same)
                asked[says] += 1
    share = {says: (explained[says] / asked[says], explained[says]) for says in left}
    best = max(left, key=share.__getitem__, default=None)
    return best if best and share[best][0] > 0.5 else None


def _gives(gives: Callable, question: Mapping, answer: object, same: Callable) -> bool:
    try:
        return same(answer, gives(**question))
    except (ArithmeticError, ValueError, IndexError):
        return False
