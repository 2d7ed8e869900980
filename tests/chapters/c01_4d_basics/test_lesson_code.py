"""The mechanisms that stand in chapter 1 compute what the package computes, and send what it sends.

Cells are found by their ids and executed as they are saved; their functions then run on real ranks
beside the package's. Catches lesson code that has drifted from the package or was never right, and
an exercise check that says "right" to a wrong answer. The mutants are edits of the cells' own text.
"""

import io
import json
import re
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import picolab as pico
from picolab import comm
from picolab.chapters.c01_4d_basics import attention_work
from picolab.exercises.definition import source_of
from picolab.model import SwiGLU, initialise
from picolab.parallel import (
    ColumnParallelLinear,
    DataParallelOptimizer,
    RowParallelLinear,
    f,
    g,
    gathered_attention,
    naive_sync,
    ring_attention,
)
from picolab.parallel.ring import merge as packages_merge
from picolab.parallel.sequence_split import positions, split_sequence
from picolab.specs import ModelConfig

CHAPTER = Path(__file__).resolve().parents[3] / "notebooks" / "01_4d_basics.ipynb"
WORLD = 4
EXACT = 1e-13  # fp64, relative: the sums of both have the same order, or differ by a few eps


def source(cell_id: str) -> str:
    """A cell's text; of a markdown cell, the code block in it."""
    [cell] = [c for c in json.loads(CHAPTER.read_text("utf-8"))["cells"] if c["id"] == cell_id]
    text = "".join(cell["source"])
    if cell["cell_type"] == "code":
        return text
    [block] = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    return block


def lesson(*cell_ids: str, mutant: tuple[str, str] | None = None, **names) -> dict:
    """The names that these cells define, with one edit of their text if a mutant is asked for."""
    text = "\n\n".join(map(source, cell_ids))
    if mutant is not None:
        assert mutant[0] in text, f"the lesson no longer says {mutant[0]!r}: renew the mutant"
        text = text.replace(*mutant, 1)
    # As in the notebook, whatever is defined belongs to __main__ and travels to a rank by value.
    names = {"__name__": "__main__", "pico": pico, "torch": torch, "dist": dist, **names}
    exec(compile(text, "lesson", "exec"), names)
    return names


def booked(since: int = 0) -> list[tuple]:
    return [(e.op, e.axis, e.payload_bytes, e.reason) for e in comm.ledger().kept[since:]]


def apart(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True))


# --- the ring ---------------------------------------------------------------------------------

RING_MUTANTS = {
    "keeps instead of adding": ("theirs += arrived", "theirs.copy_(arrived)"),
    "starts one chunk early": (
        "chunks[(me - step) % n], chunks[(me - step - 1) % n]",
        "chunks[(me - step + 1) % n], chunks[(me - step) % n]",
    ),
    "passes unfinished chunks on": (
        "chunks[(me + 1 - step) % n], chunks[(me - step) % n]",
        "chunks[(me - step) % n], chunks[(me - step - 1) % n]",
    ),
    "one step short": ("for step in range(n - 1):  # all-gather", "for step in range(n - 2):  #"),
}


def rings(lesson_ring, sizes):
    """For each size: is the sum right, and are the sends those of the package?"""
    verdicts = []
    for size in sizes:
        x = torch.arange(1.0, size + 1) * (dist.get_rank() + 1)
        whole, packaged = x.clone(), x.clone()
        dist.all_reduce(whole)
        before = len(comm.ledger().kept)
        comm.ring_all_reduce(packaged)
        between = len(comm.ledger().kept)
        lesson_ring(x)
        same = booked(before)[: between - before] == booked(between)
        verdicts.append((torch.equal(x, whole) and torch.equal(x, packaged), same))
    return verdicts


RING = pico.exercise("4d.ring.all-reduce")


def worked(mutant: tuple[str, str] | None = None):
    """The exercise's worked solution, from the text that a reader is shown."""
    text = source_of(RING.solution_function)
    if mutant is not None:
        assert mutant[0] in text, f"the solution no longer says {mutant[0]!r}: renew the mutant"
        text = text.replace(*mutant, 1)
    names = {"__name__": "__main__"}
    exec(compile(text, "solution", "exec"), names)
    return names[RING.solution_function.__name__]


@pytest.mark.parametrize("world", [2, 3, 4])
def test_the_ring_is_the_packages(world):
    for verdicts in pico.run(rings, worked(), [1, 5, 12, 1001], world_size=world):
        assert all(right and same for right, same in verdicts), verdicts


@pytest.mark.parametrize("mutant", RING_MUTANTS.values(), ids=RING_MUTANTS)
def test_a_wrong_ring_is_told_apart(mutant):
    verdicts = pico.run(rings, worked(mutant), [12], world_size=WORLD)
    assert not all(right and same for of_rank in verdicts for right, same in of_rank)


def checked(ring):
    """What the chapter's own check cell says to this answer."""
    cell = "verdict = " + source("ring-exercise-check")
    names = {"ring_exercise": RING, "my_ring_all_reduce": ring}
    exec(cell, names)
    return names["verdict"]


def test_the_exercise_says_right_only_to_what_is_right():
    stub = lesson("ring-exercise-stub")["my_ring_all_reduce"]
    assert checked(stub).status == "todo"
    assert checked(worked()).status == "pass"
    for mutant in RING_MUTANTS.values():
        said = checked(worked(mutant))
        assert said.status == "fail" and "x is wrong" in said.text, (mutant, said)
    # The sum by other means is found out by what it sends.
    shortcut = checked(lambda x: comm.all_reduce(x, "world", "not a ring"))
    assert "it uses all-reduces" in shortcut.text


# --- data parallel ----------------------------------------------------------------------------

HOOK_MUTANTS = {
    # The argument of the hook is the parameter: picotron's naive data parallelism, issue 39.
    "sums weights": ("all_reduce(p.grad,", "all_reduce(p.data,"),
    "sums in every micro-batch": ("if self.sync:", "if True:"),
    "sums a copy": ("all_reduce(p.grad,", "all_reduce(p.grad.clone(),"),
}


def model_and_batches():
    model = pico.model.Transformer(ModelConfig.preset("tiny"), dtype=torch.float64)
    initialise(model, seed=0)
    drawn = torch.Generator().manual_seed(comm.mesh().rank("dp"))
    return model, torch.randint(256, (2, 2, 16), generator=drawn)


def hook_steps(hooks_class, naive):
    """Gradients of two steps of two micro-batches, and what they sent: the package's naive way and
    its buckets, against the lesson's two.
    """
    comm.build_mesh(pico.Layout(dp=dist.get_world_size()))
    found = {}
    for whose in ("package", "lesson", "buckets", "hooks"):
        model, batches = model_and_batches()
        since, gradients = len(comm.ledger().kept), []
        package = DataParallelOptimizer(model) if whose == "buckets" else None
        hooks = hooks_class(model) if whose == "hooks" else None
        for _ in range(2):
            model.zero_grad()
            if package:
                with package.no_sync():
                    model.loss(batches[0], batches[0]).backward()
                model.loss(batches[1], batches[1]).backward()
                package.finish()
            else:
                for sync, batch in zip((False, True), batches):
                    if hooks:
                        hooks.sync = sync
                    model.loss(batch, batch).backward()
                if hooks:
                    hooks.finish()
                else:
                    (naive_sync if whose == "package" else naive)(model)
            gradients += [p.grad.clone() for p in model.parameters()]
        found[whose] = gradients, booked(since)
    gradients, entries = found["package"]
    return [
        (apart(found["lesson"][0], gradients), found["lesson"][1] == entries),
        # Hooks fire in the order of backward: the same entries, in another order.
        (apart(found["hooks"][0], gradients), sorted(found["hooks"][1]) == sorted(entries)),
        (apart(found["hooks"][0], found["buckets"][0]), True),
    ]


def run_hooks(world=WORLD, **how):
    names = lesson("dp-naive", "dp-buckets", **how)
    return pico.run(hook_steps, names["Hooks"], names["naive_sync"], world_size=world)


def test_hooks_and_naive_sync_are_the_packages():
    for comparisons in run_hooks():
        for difference, same_entries in comparisons:
            assert difference < EXACT and same_entries, comparisons


@pytest.mark.parametrize("mutant", HOOK_MUTANTS.values(), ids=HOOK_MUTANTS)
def test_wrong_hooks_are_told_apart(mutant):
    try:
        of_ranks = run_hooks(world=2, mutant=mutant)
    except pico.RankFailure:
        return  # it does not even run
    assert not all(d < EXACT and same for of_rank in of_ranks for d, same in of_rank)


SUM_MUTANTS = {
    # SGD forgives no factor: then the loss must differ.
    "steps with SGD": (
        "torch.optim.AdamW(model.parameters(), lr=1e-3)",
        "torch.optim.SGD(model.parameters(), lr=1e-1)",
    ),
    "divides in any case": ("        if divide:", "        if True:"),
}


def norm_and_loss(**how) -> tuple[float, float]:
    """Summed against averaged, as the chapter says it: the norm's factor, and how far losses go."""
    trainer = lesson("dp-buckets", "dp-sum-trainer", **how)["lesson_trainer"]
    ways = [pico.run(trainer, divide, 4, world_size=WORLD)[0] for divide in (True, False)]
    (good, good_norms), (bad, bad_norms) = ways
    moved = max(abs(a - b) for a, b in zip(good, bad))
    return bad_norms[0] / good_norms[0], moved / good[0]


def test_under_adamw_the_norm_sees_the_factor_and_the_loss_does_not():
    """What is true has no formula in the chapter (its cell would give it away), so it is here."""
    factor, moved = norm_and_loss()
    assert factor == pytest.approx(WORLD, rel=1e-4) and moved < 0.01


@pytest.mark.parametrize("mutant", SUM_MUTANTS.values(), ids=SUM_MUTANTS)
def test_another_trainer_does_otherwise(mutant):
    factor, moved = norm_and_loss(mutant=mutant)
    assert not (factor == pytest.approx(WORLD, rel=1e-4) and moved < 0.01)


# --- tensor parallel --------------------------------------------------------------------------

MLP_CELLS = ("tp-split-by-hand", "tp-f-and-g")
MLP_MUTANTS = {
    "f is left out": ("        x = pico.parallel.f(x)\n", ""),
    "g reduces backward as well": (
        "return dy @ w,",
        'return pico.comm.all_reduce(dy @ w, "tp", "tp: again"),',
    ),
    "g does not reduce": (
        'pico.comm.all_reduce(x @ w.T, "tp", "tp: row-parallel output")',
        "x @ w.T",
    ),
    "down is cut along the wrong dim": ("down.chunk(tp, dim=1)[me]", "down.chunk(tp)[me].T"),
    "the weight's gradient has the inputs swapped": (
        "dy.flatten(0, -2).T @ x.flatten(0, -2)",
        "dy.flatten(0, -2).T @ x.flatten(0, -2).abs()",
    ),
}


def mlps(SplitMLP, mlp):
    """The lesson's split MLP against the whole one and the package's: its layers, its f and g."""
    size = dist.get_world_size()
    comm.build_mesh(pico.Layout(tp=size))
    me = comm.mesh().rank("tp")
    tiny = ModelConfig.preset("tiny")
    whole, layers = (SwiGLU(tiny, 0, torch.float64) for _ in range(2))
    initialise(whole, seed=3)
    layers.gate_up, layers.down = (
        ColumnParallelLinear(layers.gate_up),
        RowParallelLinear(layers.down),
    )
    initialise(layers, seed=3)
    gate, up = whole.gate_up.weight.detach().split(tiny.ffn)
    down = whole.down.weight.detach()

    def with_f_and_g(x):
        shards = gate.chunk(size)[me], up.chunk(size)[me], down.chunk(size, dim=1)[me]
        return g(mlp(f(x), *shards))

    split = SplitMLP(gate, up, down)
    ways = [whole, layers, with_f_and_g, split]
    drawn = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, 5, tiny.hidden, dtype=torch.float64, generator=drawn)
    found = []
    for way in ways:
        x, since = inputs.clone().requires_grad_(), len(comm.ledger().kept)
        y = way(x)
        y.square().sum().backward()
        found.append(([y.detach(), x.grad], booked(since)))
    lesson_tensors, lesson_entries = found.pop()
    of_down = whole.down.weight.grad.chunk(size, dim=1)[me]
    difference = apart([split.down.grad], [of_down])
    # On the whole layer nothing travels; with the others the lesson shares every entry.
    same = [entries == lesson_entries for _, entries in found[1:]]
    return [difference, *(apart(lesson_tensors, tensors) for tensors, _ in found)], same


def run_mlps(world, **how):
    names = lesson(*MLP_CELLS, **how)
    return pico.run(mlps, names["SplitMLP"], names["mlp"], world_size=world)


@pytest.mark.parametrize("world", [2, 4])
def test_f_g_and_the_split_mlp_are_the_packages(world):
    for differences, same in run_mlps(world):
        assert max(differences) < EXACT and all(same), (differences, same)


@pytest.mark.parametrize("mutant", MLP_MUTANTS.values(), ids=MLP_MUTANTS)
def test_a_wrong_split_is_told_apart(mutant):
    try:
        of_ranks = run_mlps(2, mutant=mutant)
    except pico.RankFailure:
        return  # it does not even run
    assert not all(max(apart) < EXACT and all(same) for apart, same in of_ranks)


# --- pipeline ---------------------------------------------------------------------------------

EXECUTOR_MUTANTS = {
    "starts without the next stage's gradient": (
        "torch.autograd.backward(y, dy)",
        "y.sum().backward()",
    ),
    "what was received requires no gradient": (".requires_grad_() if stage", " if stage"),
    "sends the output's gradient back": ("pico.comm.send(x.grad,", "pico.comm.send(0 * x.grad,"),
}


def executor(**how):
    """The cell compares with one process, and says so by an assertion."""
    with redirect_stdout(io.StringIO()) as said:
        lesson("pp-order", "pp-executor-run", WORLD_SIZE=3, gloo={"world_size": 3}, **how)
    return said.getvalue()


def test_the_executor_computes_what_one_process_computes():
    assert "gradients of 3 stages" in executor()


@pytest.mark.parametrize("mutant", EXECUTOR_MUTANTS.values(), ids=EXECUTOR_MUTANTS)
def test_a_wrong_executor_is_told_apart(mutant):
    with pytest.raises((AssertionError, pico.RankFailure)):
        executor(mutant=mutant)


# --- context ----------------------------------------------------------------------------------

RING_CELLS = ("cp-merge", "cp-ring")
MERGE_MUTANTS = {
    "adds the outputs": ("(mine * out + theirs * other) / total", "out + other"),
    "weighs both alike": ("(mine * out + theirs * other) / total", "(out + other) / 2"),
    "weighs the wrong one": ("mine * out + theirs * other", "theirs * out + mine * other"),
    "keeps the first's log-sum-exp": ("total.squeeze(-1).log()", "lse"),
}
ATTENTION_MUTANTS = {
    **MERGE_MUTANTS,
    "passes nothing on": (
        'kv = pico.comm.shift(kv, "cp", "cp: keys and values")',
        'pico.comm.shift(kv, "cp", "cp: keys and values")',
    ),
    "takes the owner from the right": ("(me - hop) % cp", "(me + hop) % cp"),
    "one hop too many": ("if hop < cp - 1:", "if True:"),
    "attends without a mask": ("causal=owner == me", "causal=False"),
    "sees later keys": ("if owner <= me:", "if True:"),
}
BACKWARD_MUTANTS = {
    "leaves out what all blocks share": (" - (dout * out).sum(-1, keepdim=True)", ""),
    "takes the block's own log-sum-exp": (
        "(q @ k.mT * scale - lse.unsqueeze(-1)).exp()",
        "(q @ k.mT * scale).softmax(-1)",
    ),
    "forgets the scale": ("keepdim=True)) * scale", "keepdim=True))"),
}


def attentions(cell_ids, mutant):
    """The lesson's names, with one edit, and without the primer's own check if there is one."""
    text = "\n\n".join(map(source, cell_ids))
    if mutant is not None:
        assert mutant[0] in text, f"the lesson no longer says {mutant[0]!r}: renew the mutant"
        text = re.sub("assert apart < 1e-1[23]", "pass", text.replace(*mutant, 1))
    names = {"__name__": "__main__", "pico": pico, "torch": torch, "dist": dist}
    names |= {"WORLD_SIZE": 2, "gloo": {"world_size": 2}}
    exec(compile(text, "lesson", "exec"), names)
    return names


def merges(mutant=None) -> float:
    """The lesson's merge against the package's, on random blocks."""
    merge = attentions(["cp-merge"], mutant)["merge"]
    drawn = torch.Generator().manual_seed(1)
    out, other = (torch.randn(2, 3, 5, 8, dtype=torch.float64, generator=drawn) for _ in "ab")
    lse, other_lse = (5 * torch.randn(2, 3, 5, dtype=torch.float64, generator=drawn) for _ in "ab")
    expected = packages_merge(out.clone(), lse, other, other_lse)
    return apart(list(merge(out, lse, other, other_lse)), list(expected))


def test_the_merge_is_the_packages():
    assert merges() < EXACT


@pytest.mark.parametrize("mutant", MERGE_MUTANTS.values(), ids=MERGE_MUTANTS)
def test_a_wrong_merge_is_told_apart(mutant):
    assert not merges(mutant) < EXACT
    with pytest.raises(AssertionError):  # the primer notices by itself
        lesson("cp-merge", mutant=mutant)


def rings_of_attention(lesson_ring):
    """The lesson's ring, which cuts contiguously, against the package's, and what both sent."""
    size = dist.get_world_size()
    comm.build_mesh(pico.Layout(cp=size))
    me, found = comm.mesh().rank("cp"), []
    drawn = torch.Generator().manual_seed(2)
    whole = torch.randn(3, 2, 4, 8 * size, 8, dtype=torch.float64, generator=drawn)
    q, k, v = (split_sequence(x, me, size, 2, "contiguous") for x in whole)
    since = len(comm.ledger().kept)
    expected = ring_attention(q, k, v, split="contiguous")
    between = len(comm.ledger().kept)
    out, _ = lesson_ring(q, k, v)
    same = booked(since)[: between - since] == booked(between)
    found.append((apart([out], [expected]), same))
    return found


@pytest.mark.parametrize("world", [2, 4])
def test_ring_attention_is_the_packages(world):
    ring = attentions(RING_CELLS, None)["ring_attention"]
    for comparisons in pico.run(rings_of_attention, ring, world_size=world):
        for difference, same_entries in comparisons:
            assert difference < EXACT and same_entries, comparisons


@pytest.mark.parametrize("mutant", ATTENTION_MUTANTS.values(), ids=ATTENTION_MUTANTS)
def test_a_wrong_ring_attention_is_told_apart(mutant):
    try:
        ring = attentions(RING_CELLS, mutant)["ring_attention"]
        of_ranks = pico.run(rings_of_attention, ring, world_size=WORLD, timeout=30)
    except pico.RankFailure:
        return  # it does not even run
    assert not all(d < EXACT and same for of_rank in of_ranks for d, same in of_rank)


def test_a_blocks_backward_is_autograds():
    lesson("cp-merge", "cp-backward")  # the cell asserts it


@pytest.mark.parametrize("mutant", BACKWARD_MUTANTS.values(), ids=BACKWARD_MUTANTS)
def test_a_wrong_backward_of_a_block_is_told_apart(mutant):
    with pytest.raises(AssertionError):
        lesson("cp-merge", "cp-backward", mutant=mutant)


def test_the_experiments_counts_are_exact():
    """What the chapter counts on real ranks, against a mask over the whole sequence."""
    lesson("cp-experiment", WORLD_SIZE=1, gloo={"world_size": 1})
    seq, visible = 32, torch.ones(32, 32).tril()
    for split in ("contiguous", "zigzag"):
        ranks = pico.run(attention_work, split, seq, world_size=WORLD)
        for rank, (scores, difference) in enumerate(ranks):
            rows = positions(rank, WORLD, seq, split)
            assert scores == int(visible[rows].sum()) and difference < 1e-5


# --- packed documents -------------------------------------------------------------------------

DOCUMENT_CELLS = ("cp-merge", "cp-documents-ring")
DOCUMENT_MUTANTS = {
    "forgets documents": (" & (document[theirs] == document[mine])", ""),
    "takes ids in the order of the cut": (
        "document[theirs] ==",
        "document[theirs - theirs.min()] ==",
    ),
    "looks ahead in a document": ("(theirs <= mine) & ", ""),
    "does not see itself": ("theirs <= mine", "theirs < mine"),
    "divides nothing by nothing": ("-1e30", "-torch.inf"),
    "takes the owner from the right": ("(me - hop) % cp", "(me + hop) % cp"),
    "passes nothing on": ("kv = pico.comm.shift", "pico.comm.shift"),
    "keeps the last block only": ("merge(*so_far, *found)", "found"),
}
PACKINGS = ([32], [7, 9, 16], [3, 26, 3], [1] * 32)


def rings_over_documents(lesson_ring):
    """For each packing, against SDPA with the whole mask, and against the package's."""
    size = dist.get_world_size()
    comm.build_mesh(pico.Layout(cp=size))
    me, found = comm.mesh().rank("cp"), []
    drawn = torch.Generator().manual_seed(4)
    whole = [torch.randn(2, n, 32, 8, dtype=torch.float64, generator=drawn) for n in (4, 2, 2)]
    for lengths in PACKINGS:
        document = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
        mask = (document.unsqueeze(1) == document).tril()
        right = torch.nn.functional.scaled_dot_product_attention(
            *whole, attn_mask=mask, enable_gqa=True
        )
        *mine, expected = (split_sequence(x, me, size, 2) for x in (*whole, right))
        packaged = gathered_attention(*mine, documents_BS=document.expand(2, -1))
        out = lesson_ring(*mine, document)
        found.append(max(apart([out], [expected]), apart([out], [packaged])))
    return found


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_ring_over_documents_is_attention_with_a_block_diagonal_mask(world):
    ring = lesson(*DOCUMENT_CELLS)["ring_over_documents"]
    for differences in pico.run(rings_over_documents, ring, world_size=world):
        assert max(differences) < 1e-12, differences


@pytest.mark.parametrize("mutant", DOCUMENT_MUTANTS.values(), ids=DOCUMENT_MUTANTS)
def test_a_wrong_ring_over_documents_is_told_apart(mutant):
    ring = lesson(*DOCUMENT_CELLS, mutant=mutant)["ring_over_documents"]
    try:
        of_ranks = pico.run(rings_over_documents, ring, world_size=WORLD, timeout=30)
    except pico.RankFailure:
        return  # it does not even run
    assert not all(difference < 1e-12 for of_rank in of_ranks for difference in of_rank)


def test_nothing_is_predicted_across_documents():
    """Every label is the next token of its own document; the last of each document has none."""
    packed = lesson("cp-documents-pack")["packed"]
    tokens, labels, document, positions = packed([4, 1, 7], rows=3, seed=5)
    assert document.tolist() == [0] * 4 + [1] + [2] * 7
    assert positions.tolist() == [0, 1, 2, 3, 0, 0, 1, 2, 3, 4, 5, 6]
    last = [3, 4, 11]
    assert (labels[:, last] == -100).all() and (labels >= 0).sum() == 3 * (12 - len(last))
    inside = [i for i in range(12) if i not in last]
    assert torch.equal(labels[:, inside], tokens[:, [i + 1 for i in inside]])


def test_losses_on_ranks_see_the_forgotten_boundaries_and_only_those():
    """The experiment with an untrained model: equal with the mask, and with one document."""
    names = lesson("cp-merge", "cp-documents-ring", "cp-documents-pack")
    model = pico.model.Transformer(ModelConfig.preset("tiny"), device="cpu")
    text = source("cp-documents-run").partition("\n\n\nfound = ")[0]
    names["learnt"] = model
    exec(compile(text, "lesson", "exec"), names)
    for lengths, one_document in (([5, 20, 7], False), ([32], True)):
        batch = names["packed"](lengths, rows=2, seed=9)
        ranks = pico.run(names["losses_on_ranks"], model.state_dict(), *batch, world_size=WORLD)
        for right, ring, forgetful in ranks:
            assert ring == pytest.approx(right, rel=1e-12)
            assert (forgetful == pytest.approx(right, rel=1e-12)) == one_document
