"""`pico.train` as a reader meets it: it learns, reports, refuses, and can go on in the background.

The wrong versions this file catches: a run whose collectives differ from the formula's, in count or
in bytes; tp ranks that read different text, or dp ranks that read the same; parameters sent back by
every rank; speed that counts start-up; a run with a loss that is no number going on; bad input that
starts ranks first; a wrong step in an event; progress on stdout.
"""

import json
import time

import pytest
import torch

import picolab as pico
from picolab import costs
from picolab.launch import rundirs
from picolab.model import Transformer, global_tensors, initialise
from picolab.monitoring import history
from picolab.specs import Layout, ModelConfig
from picolab.training import TrainConfig, TrainResult, train_rank
from picolab.training.text import Text

SMALL = dict(hidden=32, ffn=48, layers=2, heads=4, kv_heads=2, seq=16)


@pytest.fixture(autouse=True)
def own_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A real run on the default text, short but long enough to learn something."""
    run_dir = tmp_path_factory.mktemp("run")
    return pico.train("tiny", "dp2tp2", steps=25, progress=False, run_dir=run_dir)


def byte_entropy(text: Text) -> float:
    """Of single bytes, in nats: the best loss without looking at what came before."""
    tokens, _ = text.batch(dp_rank=0, dp_size=1, micro_batch=2000, accumulate=1)
    share = torch.bincount(tokens.flatten(), minlength=256) / tokens.numel()
    return float(-(share * share.clamp(min=1e-12).log()).sum())


def test_it_learns(result):
    """More than how often each byte occurs, in 25 steps."""
    assert 5.5 < result.losses[0] < 6.5  # about ln 256 + 1/2, see model/transformer.py
    assert min(result.losses[-5:]) < byte_entropy(Text(seq=128)) - 0.2


def test_what_it_reports(result):
    config = result.config
    assert len(result.losses) == len(result.grad_norms) == len(result.step_s) == 25
    assert result.tokens == [config.tokens_per_step] * 25 == [2 * 4 * 128] * 25
    assert result.tokens_per_s == pytest.approx(1024 * 24 / sum(result.step_s[1:]))
    assert 0 < sum(result.step_s) < result.seconds and result.cpu_s > 0
    assert result.params == sum(t.numel() for t in result.state_dict().values()) == 803_968
    assert result.layout == Layout(dp=2, tp=2) and result.run_dir.is_dir()
    assert result.text_state["position"] == 25 * 8
    for text in (repr(result), result._repr_html_()):
        assert "tiny on dp2tp2, 25 steps of 1,024 tokens" in text
        assert f"{result.losses[0]:.3f}" in text and f"{result.losses[-1]:.3f}" in text
        assert "803,968" in text and "tokens/s" in text


def test_without_a_pipeline_there_are_no_stages(result):
    for ask in (result.timeline, result.bubble):
        with pytest.raises(ValueError, match="dp2tp2 has no pipeline, so no stage"):
            ask()


def test_memory_is_that_of_the_shards(result):
    """By the formula: what tp splits is halved, and AdamW keeps two numbers for each of it."""
    held = sum(p.numel for p in costs.local_parameters(result.config.model, result.layout))
    assert held < 0.51 * result.params
    for rank in range(4):
        memory = result.memory[rank]
        assert memory["parameters"] == memory["gradients"] == 4 * held
        # And one step counter (a number of 4 bytes) a parameter tensor.
        assert memory["optimizer"] == 8 * held + 4 * (6 * 4 + 3)
        assert memory["peak_rss"] > 4 * sum(memory[name] for name in ("parameters", "optimizer"))


def test_every_rank_tells_every_step(result):
    for rank in range(4):
        told = [e.data for e in result.events if e.kind == "step" and e.rank == rank]
        assert [data["step"] for data in told] == list(range(25))
        assert [data["loss"] for data in told] == result.losses
        assert [data["grad_norm"] for data in told] == result.grad_norms
        assert [data["lr"] for data in told] == result.learning_rates
        last = told[-1]
        assert last["steps"] == 25 and last["tokens"] == 1024 and last["layout"] == "dp2tp2"
        assert last["seconds"] > 0 and last["cpu_s"] >= 0


def formula(config):
    step = costs.step_ledger(
        config.model,
        config.layout,
        micro_batch=config.micro_batch,
        accumulate=config.accumulate,
        precision=config.precision,
        bucket_bytes=config.bucket_bytes,
    )
    return {key: tuple(expected) for key, expected in step.items()}


def measured(ledger):
    return {
        key: (t.count, t.payload_bytes, t.ring_bytes)
        for key, t in ledger.by("op", "axis", "reason").items()
    }


def test_each_step_sends_what_the_formula_says(result):
    for rank in range(4):
        for step in (0, 7, 24):
            assert measured(result.ledger.rank(rank).step(step)) == formula(result.config)


@pytest.mark.parametrize("layout", ["dp2", "dp4", "tp2", "tp4", "dp2tp2"])
def test_other_layouts_send_what_the_formula_says(layout):
    shape = {**SMALL, "kv_heads": 4}
    found = pico.train(
        layout=layout,
        steps=2,
        micro_batch=2,
        accumulate=3,
        bucket_bytes=9000,
        progress=False,
        **shape,
    )
    for rank in range(found.layout.world):
        for step in (0, 1):
            assert measured(found.ledger.rank(rank).step(step)) == formula(found.config)


def test_a_long_run_is_whole_though_the_kernel_keeps_its_end_only(monkeypatch):
    """And its picture: a step's spans, the losses, and every total."""
    monkeypatch.setattr(history, "KEPT", 300)
    found = pico.train(layout="pp2", steps=30, micro_batch=2, accumulate=3, progress=False, **SMALL)
    assert found.events.older > len(found.events) // 2
    for step in (0, 13, 29, -1):
        assert len(found.timeline(step).spans) == 2 * 2 * 3
        assert measured(found.ledger.rank(0).step(step % 30)) == formula(found.config)
    per_run = {key: tuple(30 * n for n in one) for key, one in formula(found.config).items()}
    assert measured(found.ledger.rank(0)) == per_run
    assert f"{sum(n for n, *_ in per_run.values())} collectives of rank 0" in repr(found)
    assert list(pico.dashboard(found).state.losses.values()) == found.losses


def test_json(result):
    data = json.loads(result.to_json())
    wanted = {"losses", "grad_norms", "tokens_per_s", "step_s", "cpu_s", "ledger", "params"}
    assert wanted | {"run_dir"} <= data.keys()
    assert data["losses"] == result.losses and data["run_dir"] == str(result.run_dir)
    rows = {(row["op"], row["axis"], row["reason"]): row for row in data["ledger"]}
    assert rows.keys() == formula(result.config).keys()
    for key, (count, payload, ring) in formula(result.config).items():
        assert rows[key]["count"] == 25 * count
        assert rows[key]["payload_bytes"] == 25 * payload
        assert rows[key]["ring_bytes"] == pytest.approx(25 * ring)


def test_the_trained_model_writes(result):
    threads = torch.get_num_threads()
    text = result.generate("def ", n=40, seed=1)
    assert text.startswith("def ") and len(text.encode()) >= 44
    assert text == result.generate("def ", n=40, seed=1) != result.generate("def ", n=40, seed=2)
    assert torch.get_num_threads() == threads


def test_the_gathered_model_is_the_trained_one(result):
    """What the ranks trained together computes, in one process, about the loss they logged."""
    text = Text(seq=128)
    text.load_state_dict(result.text_state)
    tokens, labels = text.batch(dp_rank=0, dp_size=1, micro_batch=16, accumulate=1)
    with torch.no_grad():
        loss = float(result.model.loss(tokens[0], labels[0])) / labels.numel()
    assert abs(loss - sum(result.losses[-5:]) / 5) < 0.3
    untrained = global_tensors(initialise(Transformer(result.config.model)))
    assert untrained.keys() == result.state_dict().keys()


def test_one_rank_sends_the_parameters():
    config = TrainConfig(model=ModelConfig(**SMALL, vocab=256), layout="tp2", steps=1)
    ranks = pico.run(train_rank, config, world_size=2)
    assert ranks[0].state.keys() and ranks[1].state is None
    assert ranks[0].losses == ranks[1].losses
    whole = TrainResult.of(config, ranks).state_dict()
    assert sum(t.numel() for t in whole.values()) == costs.parameters(config.model).total


def what_each_reads(config):
    from picolab import comm
    from picolab.training.text import open_text
    from picolab.training.trainer import next_batch

    comm.build_mesh(config.layout)
    tokens, _ = next_batch(open_text(config), config, torch.device("cpu"))
    return comm.mesh().coordinates, tokens


def test_replicas_read_their_own_slice_and_tp_ranks_the_same():
    config = TrainConfig(layout="dp2tp2", micro_batch=2, accumulate=3)
    ranks = pico.run(what_each_reads, config, world_size=4)
    of_replica = {0: [], 1: []}
    for coordinates, tokens in ranks:
        of_replica[coordinates["dp"]].append(tokens)
    for first, second in of_replica.values():
        assert torch.equal(first, second)
    rows = torch.cat([tokens[0].flatten(0, 1) for tokens in of_replica.values()])
    whole, _ = Text(seq=128).batch(dp_rank=0, dp_size=1, micro_batch=12, accumulate=1)
    assert sorted(rows.tolist()) == sorted(whole[0].tolist())
    assert len(rows.unique(dim=0)) == 12


def test_in_the_background(capsys):
    job = pico.train(layout="dp2", steps=3, wait=False, progress=False, **SMALL)
    assert job.world_size == 2 and job.name == "train"
    found = job.result()
    assert isinstance(found, TrainResult) and len(found.losses) == 3
    assert job.state == "done" and job.run_dir == found.run_dir


def test_it_can_be_stopped():
    job = pico.train(steps=100_000, wait=False, progress=False, **SMALL)
    deadline = time.monotonic() + 60
    while not any(event.kind == "step" for event in job.events):
        assert time.monotonic() < deadline and not job.done
        time.sleep(0.02)
    job.stop()
    assert job.state == "stopped"
    with pytest.raises(pico.launch.Stopped):
        job.result()


def test_progress_goes_to_stderr(capsys):
    pico.train(steps=3, **SMALL)
    shown = capsys.readouterr()
    assert "3/3" in shown.err and "loss" in shown.err
    assert "3/3" not in shown.out and "loss" not in shown.out


def test_in_a_notebook_progress_does_not_look_like_an_error(capsys, monkeypatch):
    monkeypatch.setattr("picolab.training.progress.shell", object)
    pico.train(steps=3, **SMALL)
    shown = capsys.readouterr()
    assert "3/3" in shown.out and "loss" in shown.out and not shown.err


def test_plain_bf16_runs():
    found = pico.train(layout="dp2", dtype="bf16", steps=2, progress=False, **SMALL)
    assert all(tensor.dtype == torch.bfloat16 for tensor in found.state_dict().values())
    assert found.losses[1] == pytest.approx(found.losses[0], rel=0.1)
    assert measured(found.ledger.rank(0).step(1)) == formula(found.config)


def test_random_tokens_and_another_vocabulary():
    found = pico.train(data="random", vocab=50, steps=2, clip=None, progress=False, **SMALL)
    assert found.losses[0] == pytest.approx(4.4, abs=0.3)  # ln 50 + 1/2


@pytest.mark.parametrize("layout", ["dp1", "dp2"])
def test_a_loss_that_is_no_number_stops_the_run(layout):
    with pytest.raises(pico.RankFailure) as failure:
        pico.train(layout=layout, steps=50, lr=1e30, warmup=0, progress=False, **SMALL)
    assert failure.value.kind == "exception"
    assert "NonFiniteLoss: the" in failure.value.what and "at step 1" in failure.value.what
    assert "\n" not in failure.value.headline()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (dict(layout="tp5"), "nearest layout"),
        (dict(data="/no/such/text"), "no file or folder"),
        (dict(vocab=100), "vocabulary of 100"),
        (dict(model="llama-3-70b", data="random"), "this machine has"),
        (dict(steps=0), "steps is 0"),
        (dict(backend="mpi"), "backend must be"),
        (dict(timeout=0), "timeout is seconds"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(settings, says):
    with pytest.raises(ValueError, match=says) as error:
        pico.train(**settings)
    assert "\n" not in str(error.value)
    assert rundirs.ls() == []
