"""Which known mistake an answer has, where the judge can work out what each of them gives.

On the question that was answered wrongly several mistakes often give the same. So the learner's
function is asked the other questions, too, and of the mistakes that explain the first wrong answer
the one is told that explains most of the others.
"""

from collections.abc import Callable, Iterable, Mapping

from picolab.exercises.attempt import Attempt


def the_mistake(
    attempt: Attempt,
    learner: Callable,
    wrong: Mapping,
    others: Iterable[Mapping],
    mistakes: Mapping[str, Callable[..., object]],
    same: Callable[[object, object], bool],
) -> str | None:
    """The sentence, or None if no mistake gives this answer.

    wrong, others: arguments by name. mistakes: what to say -> what it gives, of the same arguments.
    same: whether two answers are the same; a mistake that fails on a question does not explain it.
    """
    got = attempt.call(learner, wrong)
    left = [says for says, gives in mistakes.items() if _gives(gives, wrong, got, same)]
    if len(left) < 2:
        return left[0] if left else None
    explained = dict.fromkeys(left, 0)
    for question in others:
        try:
            answer = attempt.call(learner, question)
        except Exception:  # what is told is the first mistake, and it has been found
            break
        for says in left:
            explained[says] += _gives(mistakes[says], question, answer, same)
    return max(left, key=explained.__getitem__)


def _gives(gives: Callable, question: Mapping, answer: object, same: Callable) -> bool:
    try:
        return same(answer, gives(**question))
    except (ArithmeticError, ValueError, IndexError):
        return False
