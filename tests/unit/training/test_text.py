"""Which bytes a rank is given, and in which order.

The wrong versions this file catches: resume that repeats data (the position is not restored), every
replica reading the same slice, a shuffle that visits a window twice, windows that break at file
borders, labels that are not the next byte, a corpus that is read as a whole, and an order that
depends on the layout.
"""

import itertools
import random
import tracemalloc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from picolab.training import text as text_module
from picolab.training.text import NOT_SOURCE, Text, permutation

WHOLE = dict(dp_rank=0, dp_size=1)


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(random.Random(0).randbytes(1000))
    return path


def rows(text, *, dp_size, micro_batch, accumulate, replicas=None):
    """What the replicas read in one step, together, as a sorted list of sequences."""
    read = []
    position = text.position
    for dp_rank in range(dp_size) if replicas is None else replicas:
        text.position = position
        tokens, _ = text.batch(
            dp_rank=dp_rank, dp_size=dp_size, micro_batch=micro_batch, accumulate=accumulate
        )
        assert tokens.shape == (accumulate, micro_batch, text.seq)
        read += [bytes(row) for row in tokens.flatten(0, 1).tolist()]
    return sorted(read)


@given(n=st.integers(1, 2000), key=st.text(max_size=5))
def test_the_shuffle_is_a_permutation(n, key):
    assert sorted(permutation(i, n, key) for i in range(n)) == list(range(n))


def test_the_shuffle_shuffles():
    """A thousand places: as good as none stays, and neighbours are far apart."""
    places = [permutation(i, 1000, "0/0") for i in range(1000)]
    assert sum(i == place for i, place in enumerate(places)) < 10
    steps = [abs(a - b) for a, b in itertools.pairwise(places)]
    assert 250 < sum(steps) / len(steps) < 420  # a third of n if independent
    assert places != [permutation(i, 1000, "1/0") for i in range(1000)]


@settings(max_examples=50)
@given(
    sizes=st.lists(st.integers(0, 40), max_size=6), seq=st.integers(1, 30), seed=st.integers(0, 9)
)
def test_an_epoch_visits_every_window_once(sizes, seq, seed, tmp_path_factory):
    """Files of any size, empty ones too: windows are those of the files joined."""
    folder = tmp_path_factory.mktemp("files")
    stream = b""
    for number, size in enumerate(sizes):
        part = bytes((len(stream) + i) % 256 for i in range(size))
        (folder / f"{number}.txt").write_bytes(part)
        stream += part
    if len(stream) < seq + 1:
        with pytest.raises(ValueError, match=r"holds"):
            Text(folder, seq=seq)
        return
    windows = [stream[w : w + seq] for w in range(0, len(stream) - seq, seq)]
    text = Text(folder, seq=seq, seed=seed)
    for _ in range(2):  # the second epoch is another order of the same
        tokens, labels = text.batch(**WHOLE, micro_batch=len(windows), accumulate=1)
        assert sorted(bytes(row) for row in tokens[0].tolist()) == sorted(windows)
        assert labels.dtype == torch.int64
        # The stream counts upwards, so the next byte is one more.
        assert torch.equal(labels, (tokens + 1) % 256)


@settings(max_examples=40)
@given(
    dp=st.sampled_from([1, 2, 3, 4]),
    micro_batch=st.integers(1, 3),
    accumulate=st.integers(1, 3),
    data=st.sampled_from(["file", "random"]),
)
def test_replicas_together_read_what_one_process_reads(
    dp, micro_batch, accumulate, data, tmp_path_factory
):
    path = tmp_path_factory.getbasetemp() / "together.txt"
    path.write_bytes(random.Random(0).randbytes(1000))
    source = str(path) if data == "file" else "random"
    many, one = Text(source, seq=8), Text(source, seq=8)
    for _ in range(3):
        together = rows(many, dp_size=dp, micro_batch=micro_batch, accumulate=accumulate)
        alone = rows(one, dp_size=1, micro_batch=micro_batch, accumulate=accumulate * dp)
        assert together == alone
        assert many.position == one.position


def test_replicas_read_different_slices(corpus):
    text = Text(corpus, seq=8)
    step = dict(dp_size=2, micro_batch=3, accumulate=2)
    first, second = (rows(Text(corpus, seq=8), **step, replicas=[r]) for r in (0, 1))
    assert not set(first) & set(second)
    assert len(set(first)) == len(set(second)) == 6
    # Mutant: every replica reads the slice of replica 0.
    assert sorted(first * 2) != rows(text, dp_size=1, micro_batch=3, accumulate=4)


def resumes(text_class, path):
    """Four steps in one go, and two and two with a checkpoint between, on another layout."""
    step = dict(micro_batch=2, accumulate=1)
    going, before = text_class(path, seq=8, seed=3), text_class(path, seq=8, seed=3)
    expected = [rows(going, dp_size=2, **step) for _ in range(4)]
    read = [rows(before, dp_size=2, **step) for _ in range(2)]
    after = text_class(path, seq=8, seed=3)
    after.load_state_dict(before.state_dict())
    read += [rows(after, dp_size=1, micro_batch=4, accumulate=1) for _ in range(2)]
    return read == expected


class ForgetsItsPosition(Text):
    """The mutant: what a sampler without state does after a restart."""

    def load_state_dict(self, state):
        super().load_state_dict({**state, "position": 0})


def test_resume_goes_on_where_it_was(corpus):
    assert resumes(Text, corpus)
    assert not resumes(ForgetsItsPosition, corpus)


def test_a_position_in_other_data_is_refused(corpus, tmp_path):
    state = Text(corpus, seq=8).state_dict()
    longer = tmp_path / "longer.txt"
    longer.write_bytes(corpus.read_bytes() * 2)
    others = [Text(corpus, seq=9), Text(corpus, seq=8, seed=1), Text(longer, seq=8)]
    for other in [*others, Text("random", seq=8)]:
        with pytest.raises(ValueError, match="other data"):
            other.load_state_dict(state)


@settings(max_examples=50)
@given(size=st.integers(20, 300), block=st.integers(1, 50), data=st.data())
def test_another_text_of_the_same_size_is_refused(size, block, data, tmp_path_factory):
    """Whatever byte it differs in, however files and blocks are cut; split elsewhere, it is the
    same text."""
    folder = tmp_path_factory.mktemp("text")
    text = bytearray(random.Random(size).randbytes(size))

    def opened():
        cut = data.draw(st.integers(0, size))
        (folder / "a.txt").write_bytes(text[:cut])
        (folder / "b.txt").write_bytes(text[cut:])
        return Text(folder, seq=8)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_module, "HASH_BLOCK", block)
        state = opened().state_dict()
        opened().load_state_dict(state)
        text[data.draw(st.integers(0, size - 1))] ^= 1
        with pytest.raises(ValueError, match="as many bytes as it had there, but other ones"):
            opened().load_state_dict(state)
        # One from before there were hashes is believed.
        opened().load_state_dict({k: value for k, value in state.items() if k != "hash"})


def test_only_the_needed_bytes_are_read(tmp_path):
    """A file of 100 GB, all holes: nobody reads or indexes it as a whole."""
    path = tmp_path / "large.bin"
    with open(path, "wb") as file:
        file.truncate(100 * 10**9)
    tracemalloc.start()
    try:
        text = Text(path, seq=64)
        tokens, _ = text.batch(**WHOLE, micro_batch=4, accumulate=2)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert tokens.shape == (2, 4, 64) and not tokens.any()
    assert peak < 1_000_000
    hashed = text.state_dict()["hash"]  # of 4,096 blocks of it, 256 MiB
    with open(path, "r+b") as file:
        file.write(b"x" * 100_000_000)
    with pytest.raises(ValueError, match="other ones"):
        Text(path, seq=64).load_state_dict({**text.state_dict(), "hash": hashed})


def test_the_default_corpus_is_the_standard_library():
    one, two = Text(seq=128), Text(seq=128)
    paths = one._corpus._paths
    assert paths == two._corpus._paths and len(paths) > 300
    assert all(path.suffix == ".py" for path in paths)
    assert not any(NOT_SOURCE & set(path.parts) for path in paths)
    assert {"argparse.py", "random.py"} <= {path.name for path in paths}
    step = dict(dp_size=2, micro_batch=4, accumulate=1)
    assert rows(one, **step) == rows(two, **step) != rows(Text(seq=128, seed=1), **step)


def test_bytes_that_are_no_text_are_fine(tmp_path):
    (tmp_path / "any.bin").write_bytes(bytes(range(128, 256)))
    tokens, labels = Text(tmp_path, seq=127).batch(**WHOLE, micro_batch=1, accumulate=1)
    assert tokens[0, 0].tolist() == list(range(128, 255))
    assert labels[0, 0].tolist() == list(range(129, 256))


def test_hidden_files_are_left_out(tmp_path):
    (tmp_path / ".hidden").write_text("x" * 100)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "object").write_text("x" * 100)
    (tmp_path / "text.txt").write_text("y" * 100)
    tokens, _ = Text(tmp_path, seq=10).batch(**WHOLE, micro_batch=9, accumulate=1)
    assert set(tokens.flatten().tolist()) == {ord("y")}


def test_random_tokens_are_below_the_vocabulary():
    text = Text("random", seq=500, vocab=7, seed=1)
    tokens, labels = text.batch(**WHOLE, micro_batch=2, accumulate=1)
    assert set(tokens.flatten().tolist()) == set(range(7))
    assert torch.equal(tokens[..., 1:], labels[..., :-1])
    assert not torch.equal(tokens[0, 0], tokens[0, 1])


def test_a_file_that_shrinks_is_noticed(corpus):
    text = Text(corpus, seq=100)
    corpus.write_bytes(b"short")
    with pytest.raises(ValueError, match="shorter since"):
        for _ in range(9):
            text.batch(**WHOLE, micro_batch=1, accumulate=1)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda at: Text(at / "nowhere", seq=8), r"no file or folder .*nowhere"),
        (lambda at: Text(at / "empty", seq=8), r"empty holds no text"),
        (lambda at: Text(at / "short.txt", seq=8), r"holds 5 bytes, and one sequence needs 9"),
        (lambda at: Text(at / "short.txt", seq=4, vocab=128), r"vocabulary of 128.*vocab=256"),
    ],
)
def test_errors_are_a_sentence(make, says, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "short.txt").write_text("12345")
    with pytest.raises(ValueError, match=says) as error:
        make(tmp_path)
    assert "\n" not in str(error.value)
    assert Text(tmp_path / "short.txt", seq=4).position == 0  # exactly one sequence is enough
