"""Exercise: experts that move to other ranks, with their optimizer's state (chapter 2, section 3).

The judge trains a few steps with gradients of its own (each expert has the same ones wherever it
is), has the learner move the experts, and trains on. Expected is one process in which nothing ever
moves, read in the new order.
"""

import torch

from picolab import comm
from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise

_STEPS = 3  # before the move, and after it


def my_move(experts, router, optimizer, order, axis):
    import picolab as pico

    n, me = pico.comm.mesh().size(axis), pico.comm.mesh().rank(axis)
    each = len(order) // n
    raise NotImplementedError(f"here come the experts {order[me * each : (me + 1) * each]}")


def solution(experts, router, optimizer, order, axis):
    import torch

    import picolab as pico

    n, me = pico.comm.mesh().size(axis), pico.comm.mesh().rank(axis)
    each = len(order) // n
    by_rank = [order[r * each : (r + 1) * each] for r in range(n)]
    leaving = [[e for e in theirs if e // each == me] for theirs in by_rank]
    coming = [[e for e in by_rank[me] if e // each == r] for r in range(n)]
    rows = torch.tensor([e - me * each for of in leaving for e in of], dtype=torch.int64)
    arrived = [e for of in coming for e in of]
    places = torch.tensor([arrived.index(e) for e in by_rank[me]])
    sent, came = [len(of) for of in leaving], [len(of) for of in coming]

    def with_moments(parameter):
        state = optimizer.state.get(parameter, {}).values()
        alike = [t for t in state if torch.is_tensor(t) and t.shape == parameter.shape]
        return [parameter.data, *alike]

    with torch.no_grad():
        for parameter in experts:
            for tensor in with_moments(parameter):
                moved = pico.comm.all_to_all(tensor[rows], axis, "moe: move", came, sent)
                tensor.copy_(moved[places])
        for tensor in with_moments(router):
            tensor.copy_(tensor[torch.tensor(order)])


def judge(learner, attempt: Attempt) -> None:
    mesh, axis = comm.mesh(), attempt.case.values["axis"]
    n, me = mesh.size(axis), mesh.rank(axis)
    for about, order, kind, steps in attempt.case.values["settings"]:
        attempt.setting(about)
        _one(learner, attempt, axis, n, me, list(order), kind, steps)


class _Notes(torch.optim.SGD):
    """Keeps the numbers of its last steps: as many rows as a rank has experts, and none's."""

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                steps = self.state[parameter].get("steps", torch.zeros(3, 1))
                self.state[parameter]["steps"] = torch.cat([steps[1:], steps[-1:] + 1])


_KINDS = {
    "AdamW": lambda of: torch.optim.AdamW(of, lr=0.05, eps=1e-8, weight_decay=0.1),
    "AdamW with amsgrad": lambda of: torch.optim.AdamW(of, lr=0.05, amsgrad=True),
    "SGD with momentum": lambda of: torch.optim.SGD(of, lr=0.05, momentum=0.9),
    "an optimizer that notes its steps": lambda of: _Notes(of, lr=0.05, momentum=0.9),
    "plain SGD": lambda of: torch.optim.SGD(of, lr=0.05),
}


def _one(learner, attempt, axis: str, n: int, me: int, order, kind: str, steps: int) -> None:
    total = len(order)
    shapes = {"up": (total, 3, 2), "down": (total, 2, 3), "scale": (total,), "router": (total, 2)}
    start = {name: attempt.tensor(*shape) for name, shape in shapes.items()}
    gradients = [
        {name: (1 + 4 * (i % 2)) * attempt.tensor(*shape) for name, shape in shapes.items()}
        for i in range(2 * _STEPS)
    ]
    for of in gradients:
        of["up"][1::3] = 0  # an expert without tokens has gradients of zeros
    each = total // n
    here = torch.arange(me * each, (me + 1) * each)
    moved_here = torch.tensor(order)[here]
    whole = {name: of.clone().requires_grad_() for name, of in start.items()}
    whole_optimizer = _KINDS[kind](list(whole.values()))
    mine = {
        name: (of if name == "router" else of[here]).clone().requires_grad_()
        for name, of in start.items()
    }
    optimizer = _KINDS[kind](list(mine.values()))
    for i in range(steps):
        _step(whole, whole_optimizer, gradients[i])
        _step(mine, optimizer, _own(gradients[i], here))
    before = {name: of.detach().clone() for name, of in mine.items()}
    old_state = {name: _moments(optimizer, of, copies=True) for name, of in mine.items()}
    given = {
        "experts": [mine["up"], mine["down"], mine["scale"]], "router": mine["router"],
        "optimizer": optimizer, "order": order, "axis": axis,
    }  # fmt: skip
    attempt.call(learner, given, may_change=("experts", "router", "optimizer"))
    attempt.only("all_to_all")
    attempt.along(axis)
    if (
        _filled(attempt, given["experts"], mine)
        and _held(attempt, mine, whole, before, order, here, moved_here)
        and _state(
            attempt, optimizer, mine, whole_optimizer, whole, old_state, order, here, moved_here
        )
    ):
        _goes_on(attempt, mine, optimizer, whole, whole_optimizer, gradients, order, moved_here)
    _budgets(attempt, mine, old_state, order, n, me)


def _own(gradients: dict, places: torch.Tensor, order=None) -> dict:
    """Those of the experts that are in these places; the router's whole, in this order."""
    rows = slice(None) if order is None else order
    return {name: of[rows] if name == "router" else of[places] for name, of in gradients.items()}


def _step(parameters: dict, optimizer, gradients: dict) -> None:
    for name, of in parameters.items():
        of.grad = gradients[name].clone()
    optimizer.step()
    optimizer.zero_grad()


def _moments(optimizer, parameter, copies: bool = False) -> dict[str, torch.Tensor]:
    found = optimizer.state.get(parameter, {})  # (indexing would make an entry)
    tensors = {key: of for key, of in found.items() if isinstance(of, torch.Tensor)}
    return {key: of.clone() for key, of in tensors.items()} if copies else tensors


def _expected(name: str, of: torch.Tensor, moved_here, order) -> torch.Tensor:
    return of[torch.tensor(order) if name == "router" else moved_here]


def _inverse(order) -> list[int]:
    return [order.index(e) for e in range(len(order))]


def _filled(attempt: Attempt, experts, mine: dict) -> bool:
    for of, name in zip(experts, ("up", "down", "scale")):
        if of is not mine[name]:
            return attempt.require(
                False,
                f"experts' `{name}`: in its place in the list is another parameter, which the "
                "optimizer does not step: fill the one that is there, and make no new one",
            )
    return True


def _held(attempt, mine, whole, before, order, here, moved_here) -> bool:
    """The values, before the optimizer's state is looked at."""
    back = torch.tensor(_inverse(order))
    for name, of in mine.items():
        label = "the router" if name == "router" else f"experts' `{name}`"
        all_of_it = whole[name].detach()
        asked = _expected(name, all_of_it, moved_here, order)
        mistakes = {
            "nothing moved": before[name],
            "it is the inverse order: what is in place p is expert order[p], and this is where "
            "expert p went": all_of_it[back if name == "router" else back[here]],
        }
        if name != "router":
            mistakes |= {
                "the right experts came, in the order of the ranks they came from, and not in that "
                "of their places": all_of_it[moved_here.sort().values],
                "experts that stay are in the right place, and those of other ranks did not come": (
                    _stayed(all_of_it, before[name], moved_here, here),
                    before[name][moved_here % len(here)],
                ),
            }
        else:
            mistakes["its rows were moved twice"] = asked[torch.tensor(order)]
            mistakes["its rows were taken as if only this rank's experts had moved"] = _only_here(
                all_of_it, here, moved_here
            )
        if not attempt.equal(label, of, asked, mistakes=mistakes):
            return False
    return True


def _stayed(all_of_it, before, moved_here, here) -> torch.Tensor:
    found = before.clone()
    for place, expert in enumerate(moved_here.tolist()):
        if expert in here.tolist():
            found[place] = all_of_it[expert]
    return found


def _only_here(all_of_it, here, moved_here) -> torch.Tensor:
    found = all_of_it.clone()
    found[here] = all_of_it[moved_here]
    return found


def _state(attempt, optimizer, mine, whole_optimizer, whole, old, order, here, moved_here) -> bool:
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, of in mine.items():
        label = "the router" if name == "router" else f"experts' `{name}`"
        if not attempt.require(
            id(of) in known and of.requires_grad and of.is_leaf,
            f"{label}: the optimizer no longer steps it: fill the parameter that is there, and "
            "make no new one",
        ):
            return False
        got, right = _moments(optimizer, of), _moments(whole_optimizer, whole[name])
        for key, wanted in right.items():
            what = f"the optimizer's `{key}` of {label}"
            if not attempt.require(key in got, f"{what} is gone"):
                return False
            alike = wanted.shape == whole[name].shape
            asked = _expected(name, wanted, moved_here, order) if alike else wanted
            mistakes = {
                "it stayed where it was, and belongs to the expert that went away": old[name][key],
                "it begins at zero again": torch.zeros_like(asked),
            }
            if alike:
                back = torch.tensor(_inverse(order))
                mistakes["it is in the inverse order"] = wanted[
                    back if name == "router" else back[here]
                ]
            else:  # whatever it is now
                mistakes["it has not the parameter's shape, so it stays as it is"] = got[key]
            if not attempt.equal(what, got[key], asked, mistakes=mistakes):
                return False
        extra = sorted(set(got) - set(right))
        if extra:
            return attempt.require(
                False, f"the optimizer has `{extra[0]}` of {label}, and had none before the move"
            )
    return True


def _goes_on(attempt, mine, optimizer, whole, whole_optimizer, gradients, order, moved_here):
    for i in range(_STEPS, 2 * _STEPS):
        _step(whole, whole_optimizer, gradients[i])
        _step(mine, optimizer, _own(gradients[i], moved_here, torch.tensor(order)))
    for name, of in mine.items():
        label = "the router" if name == "router" else f"experts' `{name}`"
        asked = _expected(name, whole[name].detach(), moved_here, order)
        attempt.equal(f"{label}, {_STEPS} steps after the move,", of, asked)


def _budgets(attempt, mine, old_state, order, n: int, me: int) -> None:
    each = len(order) // n
    tensors = [
        of
        for name, parameter in mine.items()
        if name != "router"
        for of in (
            parameter,
            *(of for of in old_state[name].values() if of.shape == parameter.shape),
        )
    ]
    bytes_each = sum(of[0].numel() * of.element_size() for of in tensors)
    leave = sum(1 for place, e in enumerate(order) if e // each == me and place // each != me)
    attempt.budget(
        "all_to_all",
        count=len(tensors),
        payload_bytes=each * bytes_each,
        least_bytes=leave * bytes_each,
    )


_SIX = (
    ("experts 0 to 3 change places in a ring", (3, 0, 1, 2, 4, 5), "AdamW", _STEPS),
    ("experts 0 and 3 change places", (3, 1, 2, 0, 4, 5), "AdamW", _STEPS),
    ("each is another's, in no order", (4, 0, 5, 2, 1, 3), "AdamW", _STEPS),
    ("the order within each rank changes", (2, 0, 1, 5, 3, 4), "AdamW", _STEPS),
    ("nothing changes", (0, 1, 2, 3, 4, 5), "AdamW", _STEPS),
    ("all change ranks", (3, 5, 4, 1, 0, 2), "SGD with momentum", _STEPS),
    ("what belongs to no expert", (4, 3, 5, 0, 2, 1), "an optimizer that notes its steps", _STEPS),
    ("before the first step: there is no state yet", (5, 4, 3, 2, 1, 0), "AdamW", 0),
    ("a third moment", (1, 4, 0, 5, 3, 2), "AdamW with amsgrad", _STEPS),
    ("an optimizer without state", (2, 3, 4, 5, 0, 1), "plain SGD", _STEPS),
)

EXERCISE = Exercise(
    id="moe.placement.move",
    goal="Put a layer's experts into another order over the ranks, in training, so that nothing "
    "that is computed afterwards changes: their matrices move, what the optimizer keeps of each, "
    "and the rows of the router, which point at them by number.",
    interface="`my_move(experts, router, optimizer, order, axis)`, called on all ranks of the "
    "axis; changes what it is given, returns nothing. experts: parameters whose dim 0 is this "
    "rank's E/n experts, of any further dims, or none; rank r has the experts in places r*E/n and "
    "following. router: a parameter (E, D), the same on every rank. order: a list of all E "
    "numbers; in place p comes what was in place order[p]. optimizer: a torch.optim one that steps "
    "all of them; what it keeps of a parameter, `optimizer.state[parameter]`, is a dict: tensors "
    "of the parameter's shape move, all else stays. Before its first step, and for plain SGD, it "
    "keeps nothing, and so it shall after the move. Call it between steps: there are no gradients. "
    "You may use `pico.comm.all_to_all(t, axis, reason, output_splits, input_splits)`.",
    budget="One all-to-all for each tensor that moves, of this rank's part of it: no more than E/n "
    "experts are sent. The router moves by no message.",
    hints=(
        "Which of my experts goes to which rank, and which comes to me from where? Everybody has "
        "the whole order, so no counts have to be exchanged. What all else has the experts as its "
        "first dim?",
        "The rows that I send to rank r are those of order[r*E/n : (r+1)*E/n] that I have, in that "
        "order; what comes from rank r is in the order of *my* places. In my memory they are to "
        "stand by place, not by the rank they came from.",
        "One function for a tensor: `rows` to send, an all-to-all with both lists of sizes, "
        "`tensor.copy_(came[places])` under `no_grad`. Call it for the parameter and for each "
        "tensor of its shape in `optimizer.state.get(parameter, {})`. The router and its moments: "
        "`tensor.copy_(tensor[order])`.",
    ),
    stub_function=my_move,
    solution_function=solution,
    why="Loads shift slowly, and a hot expert's rank is what all others wait for in the exchange; "
    "packing experts anew costs one move now and then. An expert without its moments would go on "
    "from others': AdamW divides by the second moment, so the first steps would be of a wrong "
    "size and in a stranger's direction, and the loss would only look a little rough. Fill what is "
    "there (`copy_`): the optimizer knows its parameters by identity, as do buckets and hooks. "
    "Serving does the same without moments, and with copies of the hottest (EPLB). "
    "`pico.source('picolab.moe.placement.move')`.",
    judge=judge,
    cases=(
        Case(
            "dp2ep2",
            values={"axis": "ep", "settings": _SIX},
            if_apart="ranks disagree on sizes: rank i's part for j has to be what j expects",
        ),
        Case(
            "dp3ep3",
            values={
                "axis": "ep",
                "settings": (
                    (
                        "two from one rank to another, none back",
                        (0, 5, 2, 1, 4, 3),
                        "AdamW",
                        _STEPS,
                    ),
                    ("round the ring", (2, 3, 4, 5, 0, 1), "AdamW", _STEPS),
                    ("one expert a rank", (2, 0, 1), "AdamW", _STEPS),
                    ("rank 0 keeps its own", (0, 1, 4, 5, 2, 3), "AdamW", _STEPS),
                ),
            },
            if_apart="a rank whose own experts stay takes part in the exchange all the same",
        ),
        Case(
            "dp4ep2",
            values={
                "axis": "ep",
                "settings": (
                    ("over ep, which is half of the ranks", (3, 0, 1, 2), "AdamW", _STEPS),
                ),
            },
        ),
    ),
    blocked=("picolab.moe.placement._exchanged",),
    timeout=5.0,
)
