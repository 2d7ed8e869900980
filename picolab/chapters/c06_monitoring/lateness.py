"""Exercise: who is late, what is waiting and what is transfer, on clocks that differ (chapter 6).

Arrivals are simulated: ranks work for a while, enter a call together, and leave it when the last
one has come and data have moved; then each rank's readings are put on a clock of its own. So the
truth is known: who was slow, which calls were over a slow link, what everybody waited.
"""

import functools
import random
from statistics import fmean, median

from picolab.chapters.c06_monitoring.known_mistakes import the_mistake
from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise


def my_arrivals(entered, left, least, usual):
    raise NotImplementedError("return waited, transfer, late, slow_link")


def solution(entered, left, least, usual):
    from statistics import median

    ranks = range(len(left[0]))
    ahead = [left[0][r] - left[0][0] for r in ranks]  # all left the barrier of call 0 together
    waited, transfer, behind = [], [], {r: [] for r in ranks}
    for into, out in zip(entered[1:], left[1:]):
        there = [r for r in ranks if into[r] is not None]
        came = {r: into[r] - ahead[r] for r in there}
        last = max(came.values())
        waited.append([last - came[r] if r in came else None for r in ranks])
        transfer.append(min(out[r] - ahead[r] for r in there) - last)
        for r in there:
            behind[r].append(came[r] - median(came[o] for o in there if o != r))
    late = [r for r in ranks if behind[r] and median(behind[r]) > least]
    return waited, transfer, late, median(transfer) > 3 * usual


def judge(learner, attempt: Attempt) -> None:
    questions = list(_questions())
    for about, given in questions:
        attempt.only()
        attempt.budget(count=0)
        attempt.setting(about)
        got = attempt.call(learner, given)
        if not attempt.returned(got, "waited", "transfer", "late", "slow_link"):
            return
        for part, name in enumerate(("waited", "transfer", "late", "slow_link")):
            if wrong := _wrong(name, got[part], _arrivals(**given)[part]):
                same = functools.partial(_alike, part=part, name=name)
                others = [other for _, other in questions[:30]]
                mistakes = _MISTAKES["clocks"] | _MISTAKES[name]
                why = the_mistake(attempt, learner, given, others, mistakes, same, _arrivals)
                attempt.wrong(f"{wrong}: {why}" if why else wrong)
                return
    attempt.only()
    attempt.budget(count=0)


def _questions():
    for about, ranks, calls, settings in (
        ("three ranks, one clock, nobody late", 3, 6, {"skew": 0.0}),
        ("three ranks, one clock, rank 1 late", 3, 6, {"skew": 0.0, "slow": {1: 0.02}}),
        ("clocks that differ by a second", 4, 8, {}),
        ("clocks that differ, rank 2 late", 4, 8, {"slow": {2: 0.02}}),
        ("a slow link", 4, 8, {"transfer": 0.03}),
        ("a slow link and a slow rank", 4, 9, {"transfer": 0.03, "slow": {0: 0.02}}),
        ("one long pause of rank 3, once", 4, 9, {"pause": {(3, 4): 2.0}}),
        ("two pauses of rank 3", 4, 9, {"pause": {(3, 2): 1.0, (3, 6): 1.0}}),
        ("one transfer that takes long", 4, 9, {"stall": {5: 1.0}}),
        ("one transfer that takes a little longer", 4, 9, {"stall": {3: 0.05}}),
        ("groups of two that take turns", 4, 10, {"groups": True, "slow": {1: 0.02}}),
        ("a rank that is in no call", 5, 8, {"groups": True}),
        ("two late ranks of six", 6, 9, {"slow": {1: 0.02, 4: 0.03}}),
        ("two ranks, one late", 2, 7, {"slow": {0: 0.02}}),
        ("one early rank", 4, 8, {"slow": {2: -0.02}}),
        ("one rank that is very early", 4, 8, {"slow": {2: -0.045}}),
        ("transfers a little over 3 times `usual`", 4, 8, {"transfer": 0.0122}),
        ("transfers a little under 3 times `usual`", 4, 8, {"transfer": 0.0114}),
        ("a rank that enters the barrier late, and is not late after it", 4, 8, {"first": 3}),
        ("an even number of calls", 4, 9, {"slow": {3: 0.02}, "transfer": 0.008}),
    ):
        yield about, _simulated(len(about), ranks, calls, **settings)
    draw = random.Random(0)
    for number in range(40):
        ranks = draw.randint(2, 9)
        slow = {r: draw.uniform(-0.02, 0.04) for r in range(ranks) if draw.random() < 0.3}
        settings = {
            "slow": slow, "transfer": draw.choice((0.002, 0.005, 0.02)),
            "groups": draw.random() < 0.4, "skew": draw.choice((0.0, 0.01, 5.0)),
        }  # fmt: skip
        yield f"random job {number + 1}", _simulated(number, ranks, draw.randint(3, 12), **settings)


def _simulated(
    seed, ranks, calls, *, slow=None, skew=1.0, transfer=0.004, pause=None, stall=None,
    groups=False, first=None,
) -> dict:  # fmt: skip
    slow, pause, stall = slow or {}, pause or {}, stall or {}
    draw = random.Random(seed)
    clock = [0.0, *(draw.uniform(-skew, skew) for _ in range(ranks - 1))]
    free, entered, left = [100.0] * ranks, [], []
    for call in range(calls):
        there = list(range(ranks))
        if groups and call:
            pairs = [there[i : i + 2] for i in range(0, ranks - 1, 2)]
            there = pairs[call % len(pairs)]
        for r in there:
            work = 0.05 + draw.uniform(0, 0.002) + (slow.get(r, 0.0) if call else 0.0)
            free[r] += work + pause.get((r, call), 0.0) + (0.5 if call == 0 and r == first else 0)
        into = {r: free[r] for r in there}
        took = 0.001 if call == 0 else transfer + draw.uniform(0, 0.0002) + stall.get(call, 0.0)
        out = max(into.values()) + took
        for r in there:
            free[r] = out + (draw.uniform(0, 0.0005) if call else 0.0)
        entered.append([into[r] + clock[r] if r in into else None for r in range(ranks)])
        left.append([free[r] + clock[r] if r in into else None for r in range(ranks)])
    return {"entered": entered, "left": left, "least": 0.01, "usual": 0.004}


def _arrivals(
    entered, left, least, usual, *, aligned="left", middle=median, beside="others", barrier=False,
    to=max, until=min, since=max, wait="last", times=3.0, both=False, own_link=median,
) -> tuple:  # fmt: skip
    """What is right, or what it is with a mistake."""
    ranks = range(len(left[0]))
    rows = {"left": left[0], "entered": entered[0], "none": [0.0] * len(left[0])}
    line = rows[aligned.removeprefix("-")]
    sign = -1 if aligned.startswith("-") else 1
    ahead = [sign * (line[r] - line[0]) for r in ranks]
    waited, transfer, behind = [], [], {r: [] for r in ranks}
    skip = 0 if barrier else 1
    for into, out in zip(entered[skip:], left[skip:]):
        there = [r for r in ranks if into[r] is not None]
        came = {r: into[r] - ahead[r] for r in there}
        gone = {r: out[r] - ahead[r] for r in there}
        last = to(came.values())
        by = {
            "last": {r: last - came[r] for r in there},
            "first": {r: came[r] - min(came.values()) for r in there},
            "all": {r: gone[r] - came[r] for r in there},
        }[wait]
        waited.append([by.get(r) for r in ranks])
        transfer.append(until(gone.values()) - since(came.values()))
        for r in there:
            rest = {"others": [came[o] for o in there if o != r], "all": list(came.values()),
                    "first": [min(came.values())],
                    "mean": [fmean(came[o] for o in there if o != r)]}[beside]  # fmt: skip
            behind[r].append(came[r] - middle(rest))
    late = [
        r for r in ranks
        if behind[r] and (abs(middle(behind[r])) if both else middle(behind[r])) > least
    ]  # fmt: skip
    return waited, transfer, late, own_link(transfer) > times * usual


def _with(**change):
    return functools.partial(_arrivals, **change)


def _last_most_often(entered, left, least, usual) -> tuple:
    waited, transfer, _, slow = _arrivals(entered, left, least, usual)
    count = [sum(row[r] == 0 for row in waited) for r in range(len(left[0]))]
    return waited, transfer, [r for r, n in enumerate(count) if n == max(count)], slow


def _longest(entered, left, least, usual) -> tuple:
    all_of = _arrivals(entered, left, least, usual, wait="all")[0]
    columns = [[row[r] for row in all_of if row[r] is not None] for r in range(len(left[0]))]
    means = [median(column) if column else 0.0 for column in columns]
    waited, transfer, _, slow = _arrivals(entered, left, least, usual)
    return waited, transfer, [r for r, m in enumerate(means) if m == max(means)], slow


_MISTAKES = {
    "clocks": {
        "readings of different ranks are on different clocks; line them up by call 0": _with(
            aligned="none"
        ),
        "clocks were lined up by when ranks entered the barrier; they leave it together": _with(
            aligned="entered"
        ),
        "the clock's difference was added where it has to be taken off": _with(aligned="-left"),
        "call 0 lines the clocks up, and does not count": _with(barrier=True),
    },
    "waited": {
        "that is how long the call took; waiting ends when the last one enters": _with(wait="all"),
        "that is how late a rank is; it waits for those that come after it": _with(wait="first"),
    },
    "transfer": {
        "it ends when the first one leaves": _with(until=max),
        "it begins when the last one has entered": _with(since=min),
        "it begins when the last one has entered, and ends when the first one leaves": (
            _with(until=max, since=min)
        ),
    },
    "late": {
        "one long pause makes a mean; asked for is the median over calls": _with(middle=fmean),
        "a rank is compared with the others; it is among them itself": _with(beside="all"),
        "how late is asked beside the median of the others, not beside the first": _with(
            beside="first"
        ),
        "how late is asked beside the median of the others, not beside their mean": _with(
            beside="mean"
        ),
        "who comes early is not late": _with(both=True),
        "the rank whose calls last longest is the one that waits": _longest,
        "somebody is always the last; late is by more than `least`": _last_most_often,
    },
    "slow_link": {
        "one long transfer makes a mean; asked for is the median over calls": _with(own_link=fmean),
        "one long transfer is no slow link; asked for is their median": _with(own_link=max),
        "it is slow above 3 times `usual`, and not above `usual` itself": _with(times=1.0),
        "it is slow above 3 times `usual`, and not above twice": _with(times=2.0),
        "it is slow above 3 times `usual` already": _with(times=4.0),
        "it is asked of transfer, and not of how long calls take": _with(since=min),
    },
}  # fmt: skip


def _plain(got):
    """Arrays and tensors are lists, too."""
    return got.tolist() if hasattr(got, "tolist") else got


def _wrong(name: str, got, right) -> str | None:
    got = _plain(got)
    if _fits(name, got, right):
        return None
    match name:
        case "late":
            return f"late are {right}, and it names {got}"
        case "slow_link":
            return f"slow_link is {got}, and should be {right}"
    if not isinstance(got, list | tuple):
        return f"`{name}` is no list, but {type(got).__name__}"
    if len(got) != len(right):
        return f"`{name}` has not one entry for each call after call 0, {len(right)} here"
    at = next(i for i, (a, b) in enumerate(zip(got, right)) if not _fits(name, [a], [b]))
    if name == "waited":
        return f"in call {at + 1} the ranks wait {_ms(right[at])} ms, and it says {_ms(got[at])}"
    return f"the transfer of call {at + 1} takes {_ms([right[at]])} ms; it says {_ms([got[at]])}"


def _ms(row) -> str:
    if not isinstance(row, list | tuple):
        return str(row)
    shown = [f"{1e3 * x:.3f}" if isinstance(x, int | float) else str(x) for x in row]
    return ", ".join(shown)


def _fits(name: str, got, right) -> bool:
    got = _plain(got)
    if name == "slow_link":
        return bool(got) == right and not isinstance(got, list | tuple)
    if not isinstance(got, list | tuple) or len(got) != len(right):
        return False
    if name == "late":
        return list(got) == right
    flat = zip(got, right)
    if name == "waited":
        if not all(isinstance(a, list | tuple) and len(a) == len(b) for a, b in zip(got, right)):
            return False
        flat = ((a, b) for of, row in zip(got, right) for a, b in zip(of, row))
    return all(
        a is b if a is None or b is None else isinstance(a, int | float) and abs(a - b) < 1e-9
        for a, b in flat
    )


def _alike(got, known, part: int, name: str) -> bool:
    return isinstance(got, list | tuple) and len(got) == 4 and _fits(name, got[part], known[part])


EXERCISE = Exercise(
    id="monitoring.arrival.lateness",
    goal="From when each rank entered and left each collective, each by its own clock, say how "
    "long everybody waited, how long transfers took, which ranks come late, and whether it is the "
    "link that is slow.",
    interface="`my_arrivals(entered, left, least, usual)` returns `waited, transfer, late, "
    "slow_link`. `entered[call][rank]` and `left[call][rank]` are seconds on that rank's clock, or "
    "None for a rank that is not in the call. Call 0 is a barrier of all, which all leave at the "
    "same moment: it lines the clocks up and counts for nothing else. Of the calls after it: "
    "`waited[call - 1][rank]`, from when the rank enters until the last one has (None if it is not "
    "in the call); `transfer[call - 1]`, from when the last one has entered until the first one "
    "leaves; `late`, in order, the ranks of which the median over their calls, of how much later "
    "than the median of the others in the call they enter, is above `least`; `slow_link`, whether "
    "the median of the transfers is above 3 times `usual`.",
    budget="No communication: this is arithmetic on what ranks have written down.",
    hints=(
        "What do you know of two clocks, if both ranks left the barrier at the same moment?",
        "Put all readings on rank 0's clock first. Then, of each call: the last to enter, the "
        "first to leave. Whose own duration is all transfer?",
        "`ahead[r] = left[0][r] - left[0][0]`; `came = entered - ahead`; `waited = max(came) - "
        "came[r]`; `transfer = min(left - ahead) - max(came)`; a rank's lateness in a call is "
        "`came[r] - median(of the others)`.",
    ),
    stub_function=my_arrivals,
    solution_function=solution,
    why="All ranks leave a collective together, so the duration of a rank's call is waiting plus "
    "transfer, and the slow rank's is the shortest. The last to enter sees the transfer alone. A "
    "slow rank has lateness and the usual transfer; a slow link has nobody late and a long "
    "transfer. Medians over calls, so that one pause accuses nobody; beside the others' median, "
    "since a slow rank would lift a median that it is part of; and all of it on one clock, as "
    "clocks of two machines differ by more than any lateness.",
    judge=judge,
    cases=(Case("dp1"),),
)
