"""The split of a step into compute, communication and waiting.

Wrong versions these tests catch (kept below as mutants where they are code): charging the whole
stand-still to communication, or that of messages; matching collectives over all axes by position
only; counting sends in the order of their waits; measuring waiting from the first arrival instead
of the own one; taking an asynchronous collective's start of wait for its arrival.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picolab.monitoring import step_split as module
from picolab.monitoring.ledger import Entry
from picolab.monitoring.step_split import StepSplit, mean_split, step_split


def entry(
    rank, start, seconds, *, op="all_reduce", axis="tp", ranks=(0, 1), exposed=None, peer=None
):
    exposed = seconds if exposed is None else exposed
    return Entry(
        rank=rank,
        step=0,
        op=op,
        axis=axis,
        ranks=ranks,
        dtype="fp32",
        payload_bytes=100,
        ring_bytes=100.0,
        reason="test",
        start=start,
        seconds=seconds,
        exposed_s=exposed,
        peer=peer,
    )


def close(split, compute, communication, waiting, bubble=0.0):
    assert split == pytest.approx(StepSplit(compute, communication, waiting, bubble), abs=1e-12)


def test_the_early_rank_waits_and_the_late_one_only_communicates():
    entries = [entry(0, 1.0, 0.5), entry(1, 1.3, 0.2)]
    split = step_split(entries, {0: 2.0, 1: 2.0})
    close(split[0], 1.5, 0.2, 0.3)
    close(split[1], 1.8, 0.2, 0.0)


def test_collectives_are_matched_within_their_own_group_and_axis():
    # Rank 0 does tp then dp, rank 1 only tp, rank 2 only dp: position alone would match tp with dp.
    entries = [
        entry(0, 1.0, 0.2, axis="tp", ranks=(0, 1)),
        entry(0, 5.0, 0.5, axis="dp", ranks=(0, 2)),
        entry(1, 1.1, 0.1, axis="tp", ranks=(0, 1)),
        entry(2, 5.4, 0.1, axis="dp", ranks=(0, 2)),
    ]
    split = step_split(entries, {0: 6.0, 1: 6.0, 2: 6.0})
    close(split[0], 5.3, 0.2, 0.5)  # waits 0.1 for rank 1 and 0.4 for rank 2
    close(split[1], 5.9, 0.1, 0.0)
    close(split[2], 5.9, 0.1, 0.0)


def test_the_second_of_a_kind_is_matched_with_the_second():
    entries = [entry(0, 1.0, 0.1), entry(0, 2.0, 0.6), entry(1, 1.0, 0.1), entry(1, 2.5, 0.1)]
    split = step_split(entries, {0: 3.0, 1: 3.0})
    close(split[0], 2.3, 0.2, 0.5)
    close(split[1], 2.8, 0.2, 0.0)


def test_an_asynchronous_one_arrives_when_it_is_issued():
    # Rank 1 issued at 1.0, computed, and came back to wait at 1.8; rank 0 blocked from 1.2:
    # nobody was late.
    entries = [
        entry(0, 1.2, 0.7, exposed=0.7),
        entry(1, 1.8, 0.9, exposed=0.1),
    ]
    split = step_split(entries, {0: 2.0, 1: 2.0})
    close(split[0], 1.3, 0.7, 0.0)
    close(split[1], 1.9, 0.1, 0.0)


def test_lonely_entries_and_messages_of_which_the_other_end_is_unknown_are_communication():
    entries = [
        entry(0, 1.0, 0.5, op="send"),
        entry(1, 1.4, 0.1, op="recv"),
        entry(0, 2.0, 0.3, axis="dp"),  # rank 1's entry is missing
        entry(1, 2.0, 0.2, op="recv", peer=0),  # rank 0's send is missing
    ]
    split = step_split(entries, {0: 3.0, 1: 3.0})
    close(split[0], 2.2, 0.8, 0.0)
    close(split[1], 2.7, 0.3, 0.0)


def test_before_its_sender_sends_a_stage_is_in_the_bubble():
    # Stage 1 receives from 0.0 on; stage 0 computes until 1.0, sends, and goes on computing. The
    # gradient comes back in the same way.
    entries = [
        entry(1, 0.0, 1.1, op="recv", axis="pp", peer=0),
        entry(0, 1.5, 0.5, op="send", axis="pp", peer=1, exposed=0.0),  # issued at 1.0
        entry(0, 1.6, 1.0, op="recv", axis="pp", peer=1),
        entry(1, 3.0, 0.6, op="send", axis="pp", peer=0, exposed=0.0),  # issued at 2.4
    ]
    split = step_split(entries, {0: 3.0, 1: 3.0})
    close(split[0], 2.0, 0.2, 0.0, 0.8)
    close(split[1], 1.9, 0.1, 0.0, 1.0)


def test_on_another_axis_the_same_is_waiting():
    entries = [
        entry(1, 0.0, 1.1, op="recv", axis="world", peer=0),
        entry(0, 1.0, 0.1, op="send", axis="world", peer=1),
    ]
    close(step_split(entries, {0: 2.0, 1: 2.0})[1], 0.9, 0.1, 1.0)


def test_a_sender_waits_for_its_receiver_too():
    entries = [
        entry(0, 1.0, 0.5, op="send", axis="pp", peer=1),
        entry(1, 1.4, 0.1, op="recv", axis="pp", peer=0),
    ]
    close(step_split(entries, {0: 2.0, 1: 2.0})[0], 1.5, 0.1, 0.0, 0.4)


def test_after_its_last_backward_a_stage_is_in_the_bubble():
    entries = [entry(0, 1.9, 0.1, axis="pp"), entry(1, 1.0, 1.0, axis="pp")]
    split = step_split(entries, {0: 2.0, 1: 2.0})
    close(split[0], 1.9, 0.1, 0.0)
    close(split[1], 1.0, 0.1, 0.0, 0.9)


def test_sends_are_counted_in_the_order_of_issue():
    # The second was done before the first, and so its entry was written first.
    entries = [
        entry(0, 3.0, 0.5, op="send", axis="pp", peer=1, exposed=0.0),  # issued at 2.5
        entry(0, 3.1, 2.1, op="send", axis="pp", peer=1, exposed=0.0),  # issued at 1.0
        entry(1, 0.8, 0.3, op="recv", axis="pp", peer=0),
        entry(1, 2.0, 0.7, op="recv", axis="pp", peer=0),
    ]
    close(step_split(entries, {0: 4.0, 1: 4.0})[1], 3.0, 0.3, 0.0, 0.7)


def hop(rank, arrived, waited, end, n=3):
    """A ring's hop as `comm.shift` books it: a send with the time of both, and a receive."""
    right, left = (rank + 1) % n, (rank - 1) % n
    about = dict(axis="cp", ranks=tuple(range(n)))
    sent = entry(rank, waited, end - arrived, op="send", peer=right, exposed=end - waited, **about)
    return [sent, entry(rank, end, 0.0, op="recv", peer=left, **about)]


def test_a_hop_waits_for_both_neighbours_and_its_receive_has_no_time_of_its_own():
    # Rank 2 issues late: its right neighbour, 0, has nothing to read; its left one, 1, cannot send.
    entries = [*hop(0, 1.0, 1.2, 1.9), *hop(1, 1.0, 1.3, 1.9), *hop(2, 1.8, 1.8, 1.9)]
    split = step_split(entries, dict.fromkeys(range(3), 2.0))
    close(split[0], 1.3, 0.1, 0.6)
    close(split[1], 1.4, 0.1, 0.5)
    close(split[2], 1.9, 0.1, 0.0)
    close(
        step_split(hop(0, 1.0, 1.0, 1.5), {0: 2.0})[0], 1.5, 0.5, 0.0
    )  # of others nothing is told


def test_json_lists_of_ranks_are_fine():
    entries = [entry(0, 1.0, 0.5, ranks=[0, 1]), entry(1, 1.3, 0.2, ranks=[0, 1])]
    close(step_split(entries, {0: 2.0, 1: 2.0})[0], 1.5, 0.2, 0.3)


def test_a_rank_without_collectives_only_computes():
    close(step_split([], {0: 0.25})[0], 0.25, 0.0, 0.0)


def test_the_mean_is_taken_for_each_rank():
    mean = mean_split([{0: StepSplit(1.0, 0.0, 0.0, 0.0)}, {0: StepSplit(3.0, 1.0, 2.0, 4.0)}])
    close(mean[0], 2.0, 0.5, 1.0, 2.0)


times = st.floats(0, 10, allow_nan=False)


@given(
    arrivals=st.lists(st.lists(times, min_size=3, max_size=3), min_size=1, max_size=5),
    transfer=st.floats(0, 1),
)
def test_the_parts_add_up_and_the_last_arriver_never_waits(arrivals, transfer):
    entries, ranks = [], (0, 1, 2)
    for k, row in enumerate(arrivals):  # one round after another, far apart
        end = max(row) + transfer
        entries += [entry(r, 100 * k + a, end - a, ranks=ranks) for r, a in zip(ranks, row)]
    total = 100.0 * len(arrivals)
    split = step_split(entries, dict.fromkeys(ranks, total))
    for parts in split.values():
        assert min(parts) >= 0
        assert parts.seconds == pytest.approx(total)
    communication = [parts.communication_s for parts in split.values()]
    assert communication == pytest.approx([transfer * len(arrivals)] * 3, abs=1e-9)
    if len(arrivals) == 1:
        last = max(ranks, key=lambda r: arrivals[0][r])
        assert split[last].waiting_s == 0


def _all_communication(entries):
    return [(e, 0.0) for e in entries]


def _from_the_first_arrival(entries):
    entries = list(entries)
    first = min(e.start for e in entries)
    return [(e, min(max(0.0, e.start - first), e.exposed_s)) for e in entries]


def _by_position_only(entries):
    entries = list(entries)
    seen = {}
    position = [seen.setdefault(e.rank, []).append(e) or len(seen[e.rank]) for e in entries]
    last = {p: max(e.start for e, q in zip(entries, position) if q == p) for p in position}
    return [(e, min(max(0.0, last[p] - e.start), e.exposed_s)) for e, p in zip(entries, position)]


@pytest.mark.parametrize("mutant", [_all_communication, _from_the_first_arrival, _by_position_only])
def test_a_wrong_rule_for_waiting_is_noticed(monkeypatch, mutant):
    monkeypatch.setattr(module, "waiting_of", mutant)
    with pytest.raises(AssertionError):
        test_the_early_rank_waits_and_the_late_one_only_communicates()
        test_collectives_are_matched_within_their_own_group_and_axis()


@pytest.mark.parametrize(
    "check",
    [
        test_before_its_sender_sends_a_stage_is_in_the_bubble,
        test_a_hop_waits_for_both_neighbours_and_its_receive_has_no_time_of_its_own,
    ],
)
def test_receives_that_count_as_communication_are_noticed(monkeypatch, check):
    monkeypatch.setattr(module, "_kind", lambda e: (e.op, e.axis, tuple(e.ranks)))
    with pytest.raises(AssertionError):
        check()


def test_taking_the_start_of_wait_for_the_arrival_is_noticed(monkeypatch):
    monkeypatch.setattr(module, "arrival", lambda e: e.start)
    with pytest.raises(AssertionError):
        test_an_asynchronous_one_arrives_when_it_is_issued()
    with pytest.raises(AssertionError):  # sends would be counted in the order of their waits
        test_sends_are_counted_in_the_order_of_issue()
