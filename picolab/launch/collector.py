"""The kernel's side of a run: one thread starts the ranks, listens to all of them, and leaves
none behind.

It ends in one of four ways: every rank has its result; a rank failed (then it waits a moment, so
that the true cause can still arrive, and ranks causes before consequences); nothing moved for
`timeout` seconds; or the job was stopped. In each of them every process is killed and every
descriptor closed before the thread ends."""

import contextlib
import os
import pickle
import secrets
import selectors
import struct
import time
from collections.abc import Iterator
from multiprocessing import Pipe, reduction
from pathlib import Path

from picolab.launch import failures, flight, orphans, server, stacks
from picolab.launch.display import Display
from picolab.launch.failures import RankFailure, RankHang, RankReport
from picolab.launch.payload import unpack_result
from picolab.launch.rank import RankSpec, main
from picolab.launch.rendezvous import Rendezvous
from picolab.launch.server import RankProcess
from picolab.launch.surroundings import Surroundings
from picolab.monitoring import Event, blame
from picolab.monitoring.beacon import Reading
from picolab.monitoring.beacon import read as read_beacon
from picolab.monitoring.standstill import RankThen, Standstill

TICK_S = 0.1
GRACE_S = 0.4  # after the first failure: time for the true cause to arrive
LEFT_ALONE_S = 1.0  # a rank returned, and all others stand still in a collective with it
QUIET_S = (
    1.0  # a run that is stopped after so long without a sign of life may be asked where it was
)
PATIENCE_S = 0.3  # for stacks, where a run has failed and nobody is to wait for long
_GONE = ("exception", "exit", "signal")  # reports of ranks that are no more
GOODBYE_S = 2.0  # to end by themselves once all have their results
GONE_S = 60.0  # the rank server tells when they have; it may be importing, and be slow at it


class Rank:
    """One process and what is known of it."""

    def __init__(self, rank: int, process, connection, output: int):
        self.rank, self.process, self.connection, self.output = rank, process, connection, output
        self.result: bytes | None = None
        self.report: RankReport | None = None
        self.inbox = _Inbox()
        self.pid: int | None = None
        self.started = self.ended = False
        self.exitcode: int | None = None


class _Inbox:
    """What a multiprocessing connection sends, put together again from pieces: a length (four
    bytes, or -1 and then eight) and so many bytes."""

    def __init__(self):
        self._data = bytearray()

    def feed(self, data: bytes) -> None:
        self._data += data

    def __iter__(self) -> Iterator[bytes]:
        """The messages that are complete; they are taken out."""
        while len(self._data) >= 4:
            start, (length,) = 4, struct.unpack_from("!i", self._data)
            if length == -1:
                if len(self._data) < 12:
                    return
                start, (length,) = 12, struct.unpack_from("!Q", self._data, 4)
            if len(self._data) < start + length:
                return
            message = bytes(memoryview(self._data)[start : start + length])
            del self._data[: start + length]
            yield message


class _Clock:
    """Seconds in which this process ran: while it was stopped (^Z) nobody could see progress, and
    so they do not count as idle."""

    MOST_S = 0.5  # that a tick counts

    def __init__(self):
        self.now, self._last = 0.0, time.monotonic()

    def tick(self) -> None:
        now = time.monotonic()
        self.now += min(now - self._last, self.MOST_S)
        self._last = now


class Collector:
    def __init__(
        self,
        *,
        blob: bytes,
        surroundings: Surroundings,
        world_size: int,
        backend: str,
        timeout: float,
        run_dir: Path,
        answers=None,
        pretend: int | None = None,
    ):
        self._blob, self._surroundings = blob, surroundings
        self._world, self._backend = world_size, backend
        self._timeout, self._run_dir = timeout, run_dir
        self.backend = backend
        self.ranks: list[Rank] = []
        self._rendezvous: Rendezvous | None = None
        self._selector = selectors.DefaultSelector()
        self._wake_r, self._wake_w = os.pipe()
        self._stopping = False
        self._pretend = pretend
        self._answers, self._asked = answers, 0  # a World's calls: see `ask`
        self._failed_at: float | None = None
        self._clock = _Clock()
        self._progress_at = self._clock.now
        self._beacons: dict[int, Reading] = {}
        self._where: Standstill | None = None  # as a hang was found

    # -- what the job calls, from any thread --

    def stop(self) -> None:
        self._stopping = True
        try:
            os.write(self._wake_w, b"x")
        except OSError:
            return  # the thread has ended and closed it

    def pids(self) -> dict[int, int]:
        return {r.rank: r.process.pid for r in self.ranks if not r.ended and r.process.pid}

    def ask(self, blob: bytes) -> None:
        """A World's next call: the same payload for every rank. Waits until they have started."""
        while not all(rank.started for rank in self.ranks) or len(self.ranks) < self._world:
            if self._stopping or self._failed_at is not None:
                return
            time.sleep(0.005)
        self._asked = len(self.ranks)
        self._progress_at = self._clock.now
        for rank in self.ranks:
            try:
                rank.connection.send_bytes(blob)
            except OSError:
                return  # it has just failed; the thread will say so

    def kill(self) -> None:
        """Every rank, and what it has started, which may outlive it."""
        for rank in self.ranks:
            if rank.pid:
                orphans.end_group(rank.pid)
                if not rank.ended:
                    rank.process.kill()

    # -- the thread --

    def collect(self, display: Display, on_event, on_backend, on_slow_start) -> list | None:
        """Run to the end. Returns the results, or None if stopped; raises RankFailure or
        RankHang.
        """
        self._display, self._on_event, self._on_backend = display, on_event, on_backend
        try:
            self._start()
            begun = time.monotonic()
            while not self._finished():
                for key, _ in self._selector.select(TICK_S):
                    key.data()
                if on_slow_start and time.monotonic() - begun > 1.5:
                    if not any(rank.started for rank in self.ranks):
                        on_slow_start()
                    on_slow_start = None
                self._check_progress()
            if self._stopping:
                self._note_where(None)
                return None
            if all(rank.result is not None for rank in self.ranks):
                self._say_goodbye()
                return [unpack_result(rank.result) for rank in self.ranks]
            raise self._failure()
        except RankFailure as failure:
            self._note_where(failure)
            raise
        finally:
            self._leave_nothing()

    def _start(self) -> None:
        self._rendezvous = Rendezvous()
        run = secrets.token_hex(6)
        for number in range(self._world):
            spec = RankSpec(number, self._world, self._backend, self._run_dir, self._pretend, run)
            ours, theirs = Pipe()
            read_end, write_end = os.pipe()
            given = (self._blob, self._surroundings, self._rendezvous.store, theirs)
            process = RankProcess(
                target=main,
                args=(spec, *given, _Descriptor(write_end)),
                name=f"picolab-rank-{number}",
                daemon=True,
            )
            rank = Rank(number, process, ours, read_end)
            self.ranks.append(rank)
            if self._stopping:
                theirs.close()
                os.close(write_end)
                rank.ended = True
                continue
            try:
                process.start()
            finally:
                theirs.close()
                os.close(write_end)
            rank.pid = process.pid
            process._args = ()  # the payload's bytes are not needed twice
            self._listen(ours.fileno(), lambda rank=rank: self._message(rank))
            self._listen(read_end, lambda rank=rank: self._printed(rank))
            self._listen(process.sentinel, lambda rank=rank: self._exited(rank))
        self._listen(self._wake_r, lambda: os.read(self._wake_r, 64))
        self._clock.tick()
        self._progress_at = self._clock.now

    def _listen(self, descriptor: int, callback) -> None:
        self._selector.register(descriptor, selectors.EVENT_READ, callback)

    def _finished(self) -> bool:
        if self._stopping or all(rank.result is not None for rank in self.ranks):
            return True
        if all(rank.ended for rank in self.ranks):
            return True
        return self._failed_at is not None and time.monotonic() - self._failed_at > GRACE_S

    def _message(self, rank: Rank) -> None:
        """Read what there is, and act on the messages that are complete. (To wait for the rest of
        one would be to wait for a rank that may have been stopped in the middle of it.)"""
        try:
            data = os.read(rank.connection.fileno(), 1 << 20)
        except OSError:
            data = b""
        if not data:
            self._forget(rank.connection.fileno())
            return
        self._progress_at = self._clock.now
        rank.inbox.feed(data)
        for message in rank.inbox:
            if message.startswith(b"{"):  # a line as it is in the file; no pickle begins so
                self._on_event(Event.from_json(message))
            else:
                self._act(rank, *pickle.loads(message))

    def _act(self, rank: Rank, kind: str, t: float, *values) -> None:
        if kind == "event":
            self._on_event(values[0])
        elif kind == "started":
            rank.started = True
        elif kind == "result":
            rank.result = values[0]
        elif kind == "answer":
            self._asked -= 1
            self._answers(rank.rank, values[0])
        elif kind == "backend":
            self.backend = values[0]
            self._on_backend(*values)
        elif kind == "warning":
            self._display.say(f"[{rank.rank}] {values[0]}")
        elif kind == "error":
            what, headline, text, packed = values
            exception = unpack_result(packed) if packed is not None else None
            self._fail(rank, what, headline, t, text, exception)

    def _printed(self, rank: Rank) -> None:
        data = os.read(rank.output, 65_536)
        if not data:
            self._forget(rank.output)
            return
        self._progress_at = self._clock.now
        self._display.feed(rank.rank, data)

    def _exited(self, rank: Rank) -> None:
        """The process is gone. What it sent before is read first."""
        self._forget(rank.process.sentinel)
        while rank.connection.poll():
            self._message(rank)
            if not self._known(rank.connection.fileno()):
                break
        while _readable(rank.output) and self._known(rank.output):
            self._printed(rank)
        rank.ended = True
        rank.exitcode = code = rank.process._popen.poll()
        if rank.report is not None or rank.result is not None:
            return
        if code is not None and code < 0:
            text = stacks.crash(self._run_dir, rank.rank)
            self._fail(rank, "signal", failures.signal_in_words(-code), time.time(), text)
        elif code == 255 and server.killed():  # what multiprocessing says where it heard nothing
            self._fail(rank, "signal", failures.SERVER_KILLED, time.time())
            rank.report.rank = None
        else:
            what = f"exited with code {code} before its function returned"
            self._fail(rank, "exit", what, time.time())

    def _fail(self, rank: Rank, kind, what, t, text="", exception=None) -> None:
        rank.report = RankReport(rank.rank, kind, what, t, stacks.name_cells(text), exception)
        if self._failed_at is None:
            self._failed_at = time.monotonic()

    def _check_progress(self) -> None:
        self._clock.tick()
        now = self._clock.now
        for rank in self.ranks:
            reading = read_beacon(self._run_dir / f"beacon.{rank.rank}")
            if reading != self._beacons.get(rank.rank):
                self._beacons[rank.rank] = reading
                self._progress_at = now
        if self._failed_at is not None or self._finished():
            return
        if self._answers is not None and self._asked == 0:
            self._progress_at = now  # a World between two calls has nothing to do
        idle = now - self._progress_at
        if idle > LEFT_ALONE_S:
            self._look_for_early_return()
        if idle > self._timeout and self._failed_at is None:
            self._hang(idle)

    def where(
        self, quiet_s: float | None = None, patience: float = 1.5, ask: bool = True
    ) -> Standstill:
        """Where each rank is: what its beacon has, and its stack if it can still give one. ask
        False: no stacks. (To ask is a signal, which ends some waits: so beacons are read first.)"""
        found = {}
        for rank in self.ranks:
            then = RankThen.of_beacon(self._run_dir / f"beacon.{rank.rank}")
            if rank.result is not None:
                then.state = "returned"
            elif rank.ended or (rank.report and rank.report.kind in _GONE):
                then.state = "gone"
                then.stack = rank.report.traceback if rank.report else ""
            elif rank.process.pid and stacks.is_stopped(rank.process.pid):
                then.state = "stopped"
            found[rank.rank] = then
        there = {n: pid for n, pid in self.pids().items() if found[n].state != "returned"}
        there = {n: pid for n, pid in there.items() if found[n].state != "gone"}
        texts = stacks.ask(there, self._run_dir, patience) if ask else {}
        for n, text in texts.items():
            found[n].stack = stacks.name_cells(text)
            found[n].in_torch = stacks.ends_in_torch_distributed(text)
        if ask and self._rendezvous is not None:
            for n, told in flight.ask(self._rendezvous.folder, there, patience / 3).items():
                found[n].hear(told)
        return Standstill(found, quiet_s=quiet_s)

    def _note_where(self, failure: RankFailure | None) -> None:
        """Into the run directory, while there are ranks to ask: see monitoring/standstill.py. Of a
        run that was stopped only if it stood still."""
        idle = self._clock.now - self._progress_at
        if failure is None and (idle < QUIET_S or not self.ranks):
            return
        found = self._where or self.where(idle, PATIENCE_S)
        if failure is not None:
            found.failure, found.rank = failure.kind, failure.rank
            found.what = failure.headline().splitlines()[0]
        with contextlib.suppress(OSError):  # of a full disk others have spoken
            found.save(self._run_dir)

    def _look_for_early_return(self) -> None:
        returned = {rank.rank for rank in self.ranks if rank.result is not None}
        waiting = [rank for rank in self.ranks if rank.result is None]
        if not returned or not waiting:
            return
        for rank in waiting:
            reading = self._beacons[rank.rank]
            if not reading.inside or not blame.group(reading) & returned:
                return
            if rank.process.pid and stacks.is_stopped(rank.process.pid):
                return  # it may be that one they wait for: gloo lets some ranks through earlier
        counts = {self._beacons[rank.rank].entered for rank in self.ranks}
        if len(counts) == 1 and failures.disagreement(self._beacons):
            # gloo may let some ranks through with sizes that differ: they return, with garbage.
            odd = failures.odd_one_out(self._beacons)
            culprit = self.ranks[waiting[0].rank if odd is None else odd]
            self._fail(culprit, "mismatch", failures.mismatch(odd, self._world), time.time())
            if odd is None:
                culprit.report.rank = None
            self._add_stack(culprit)
            return
        texts = stacks.ask({rank.rank: rank.process.pid for rank in waiting}, self._run_dir)
        left = returned & set.union(*(blame.group(self._beacons[r.rank]) for r in waiting))
        fewest = min(self._beacons[number].entered for number in left)
        leavers = [number for number in left if self._beacons[number].entered == fewest]
        verb = "waits" if len(waiting) == 1 else "wait"
        them = "it" if len(leavers) == 1 else "them"
        where = self._beacons[waiting[0].rank].text
        what = f"returned, and {blame.ranks([r.rank for r in waiting])} still {verb} for {them}"
        text = "\n".join(f"rank {n}:\n{text}" for n, text in texts.items())
        leaver = self.ranks[leavers[0]]
        self._fail(leaver, "early return", f"{what} in {where}", time.time(), text)
        if len(leavers) > 1:
            leaver.report.rank = None
            leaver.report.what = f"{blame.ranks(leavers)} {leaver.report.what}"

    def _add_stack(self, rank: Rank) -> None:
        if not rank.ended:
            texts = stacks.ask({rank.rank: rank.process.pid}, self._run_dir)
            rank.report.traceback = stacks.name_cells(texts[rank.rank])

    def _hang(self, idle: float) -> None:
        found = self._where = self.where(idle)
        texts = {n: then.stack for n, then in found.ranks.items() if then.stack}
        blamed = found.blamed()
        lines = [f"no rank made progress for {idle:.0f} s: {blamed.why}. Where each rank is:"]
        for rank in self.ranks:
            reading = self._beacons[rank.rank]
            if rank.result is not None:
                where = "has returned"
            elif reading.inside:
                where = f"inside {reading.text}"
            elif reading.text:
                where = f"not in a collective; the last one was {reading.text}"
            else:
                where = "has entered no collective"
            lines.append(f"rank {rank.rank}: {where}")
            lines += [texts[rank.rank]] if rank.rank in texts else []
        free = [n for n in texts if not self._beacons[n].inside]
        free = [n for n in free if found.ranks[n].state == "running"]
        if free:
            lines.append(
                f"{blame.ranks(free).capitalize()} may still be computing, in silence: then wait "
                f"longer with timeout=..., which is {self._timeout:g} s now."
            )
        what = stacks.name_cells("\n".join(lines))
        entered = {n: reading for n, reading in self._beacons.items() if reading.inside}
        notes = failures.disagreement(entered)
        cause = RankReport(blamed.rank, "hang", what, time.time())
        raise RankHang(cause, [], notes, texts, blamed.suspects)

    def _failure(self) -> RankFailure:
        reports = [rank.report for rank in self.ranks if rank.report is not None]
        for rank in self.ranks:  # read once more: ranks may have moved since the last tick
            self._beacons[rank.rank] = read_beacon(self._run_dir / f"beacon.{rank.rank}")
        cause, consequences = failures.choose(reports)
        differ = failures.disagreement(self._beacons)
        notes = differ if cause.kind == "mismatch" else ""
        tail = self._display.tail(cause.rank) if cause.rank is not None else []
        said = [line for line in tail if "what()" in line or "terminate called" in line]
        by_size = cause.kind == "signal" and any("Enforce" in line for line in tail)
        if differ and (by_size or cause.is_consequence):
            odd = failures.odd_one_out(self._beacons)
            victim = cause
            if odd is not None and odd != cause.rank:
                mine = next((r for r in reports if r.rank == odd), None)
                cause = mine or RankReport(odd, "mismatch", "", victim.t)
                consequences = [r for r in reports if r.rank != odd]
            what = failures.mismatch(odd, self._world)
            if victim.rank != odd:
                what += f"; rank {victim.rank} {victim.what}"
            text = cause.traceback or stacks.crash(self._run_dir, cause.rank)
            cause = RankReport(odd, "mismatch", what, cause.t, text)
            notes = differ
        if said:
            notes += ("\n\n" if notes else "") + "It printed last:\n  " + "\n  ".join(said)
        return RankFailure(cause, consequences, stacks.name_cells(notes))

    def _say_goodbye(self) -> None:
        for rank in self.ranks:
            try:
                rank.connection.send_bytes(b"")
            except OSError:
                continue  # it has ended already
        deadline = time.monotonic() + GOODBYE_S
        while not all(rank.ended for rank in self.ranks) and time.monotonic() < deadline:
            for key, _ in self._selector.select(TICK_S):
                key.data()

    def _leave_nothing(self) -> None:
        self.kill()
        for rank in self.ranks:
            if rank.process.pid:
                rank.process.join(GONE_S)
            while self._known(rank.output) and _readable(rank.output):
                self._printed(rank)
        self._selector.close()
        self._blob = b""
        for rank in self.ranks:
            rank.ended, rank.result = True, None
            rank.connection.close()
            os.close(rank.output)
            if rank.process.pid:
                rank.process.close()
        os.close(self._wake_r)
        os.close(self._wake_w)
        if self._rendezvous is not None:
            self._rendezvous.close()

    def _known(self, descriptor: int) -> bool:
        try:
            self._selector.get_key(descriptor)
        except (KeyError, RuntimeError):
            return False
        return True

    def _forget(self, descriptor: int) -> None:
        if self._known(descriptor):
            self._selector.unregister(descriptor)


class _Descriptor:
    """A file descriptor on its way into a rank: pickling it hands it over, and `detach()` there
    gives it.
    """

    def __init__(self, number: int):
        self._number = number

    def __reduce__(self):
        return _identity, (reduction.DupFd(self._number),)


def _identity(arrived):
    return arrived


def _readable(descriptor: int) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        return bool(selector.select(0))
