"""What the monitor counts in a step of one process, against a look at every tensor that is there
and against torch's own tracker.

It runs in a process in which no other test has left a tensor: those that others keep were there
before, come and go when they like, and are nobody's here.

Wrong versions kept below: memory whose end is not noticed, and views that count.
"""

import gc

import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker

import picolab as pico
from picolab import launch
from picolab.memory import Watch, watch
from picolab.model import Transformer

SHAPE = dict(hidden=48, ffn=80, layers=4, heads=6, kv_heads=3, vocab=97, seq=32)


def step_of(model, optimizer, tokens):
    model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    optimizer.step()


def one_step(make=Watch):
    """A watched step, what was alive at its end by a look at every tensor, and torch's tracker."""
    model = Transformer(pico.ModelConfig(**SHAPE), device="cpu")
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    tokens = torch.randint(97, (2, 33))
    step_of(model, optimizer, tokens)
    optimizer.zero_grad()
    gc.collect()
    tracker = MemTracker()
    tracker.track_external(model, optimizer)
    seen = make(model)
    with tracker, seen:
        seen.call(model.parameters(), "parameters")
        seen.follow_gradients(model.parameters())
        begin = len(seen.totals)
        step_of(model, optimizer, tokens)
        seen.call([t for of in optimizer.state.values() for t in of.values()], "optimizer")
        mine = {id(t.untyped_storage()): t.untyped_storage() for t in watch._all_tensors()}
        mine = sum(s.nbytes() for s in mine.values() if s.device.type == "cpu")
        alive = seen.live
    peak = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]
    return seen.peaks(begin), alive, mine, {str(k): v for k, v in peak.items()}


@pytest.fixture(scope="module")
def fresh():
    """A process in which nobody has left a tensor before."""
    with launch.World(1, quiet=True) as made:
        yield made


def check_tracker(fresh, make=Watch):
    [(most, alive, mine, peak)] = fresh.run(one_step, make)
    assert alive == mine
    by = {name.rpartition(".")[2]: nbytes for name, nbytes in peak.items()}
    assert most["parameters"] == by["PARAM"] and most["optimizer"] == by["OPT"]
    others = most["total"] - most["other"]
    assert others == pytest.approx(by["Total"], rel=0.02)
    return most, by


def test_what_torchs_tracker_sees(fresh):
    check_tracker(fresh)


class NoDeaths(Watch):
    def _dies(self, key, life):
        self._lives.pop(key, None)


class EveryView(Watch):
    def see(self, tensor, before=False):
        life = watch.Life(tensor.nbytes, "", before)
        self._change(life, life.nbytes)
        return life


@pytest.mark.parametrize("wrong", [NoDeaths, EveryView])
def test_a_wrong_watch_is_caught(wrong, fresh):
    with pytest.raises(AssertionError):
        check_tracker(fresh, wrong)
