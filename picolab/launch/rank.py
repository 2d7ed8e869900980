"""What happens inside a rank, from its first instruction to its last.

    tie to the kernel -> redirect output -> the kernel's surroundings, fresh random numbers ->
    unpack the function -> process group -> call it -> send the result -> end

The rank talks to the kernel over one connection (messages) and one pipe (everything printed, also
by C code, which is why it is the file descriptors that are redirected). A rank that fails ends at
once (`os._exit`): its peers then get "connection closed" and end too, instead of waiting in a
collective for ever. What a rank shares with the kernel and what it has of its own is said in
surroundings.py, how ranks find each other in rendezvous.py."""

import builtins
import contextlib
import ctypes
import faulthandler
import importlib
import io
import os
import pickle
import signal
import socket
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from picolab.launch import flight
from picolab.launch import payload as payloads
from picolab.launch.orphans import die_with_parent, lead_a_group, watch_kernel
from picolab.launch.surroundings import Surroundings, draw_anew
from picolab.monitoring import events, ledger
from picolab.monitoring.beacon import Beacon
from picolab.monitoring.event_files import ends_whole, start_line
from picolab.show.files import private
from picolab.specs.needed import torch_needed

# Called, if there, before the rank's function: rooms that `launch` does not know may prepare the
# rank here.
AT_START = ("picolab.comm:watch",)

HELD = "held"  # a file in the run directory: ranks wait as long as it is there, and no longer than
HELD_S = 5.0


@dataclass
class RankSpec:
    """What the launcher tells a rank about itself."""

    rank: int
    world_size: int
    backend: str  # "auto", "gloo" or "nccl"
    run_dir: Path
    pretend: int | None = None  # be rank 0 of so many, of which the others do not exist
    run: str = ""  # the same in all ranks of a run, and another in every run


def main(
    spec: RankSpec, blob: bytes, surroundings: Surroundings, store: Path, connection, output
) -> None:
    """The rank's whole life. `store` is the file through which ranks find each other,
    `connection` carries messages, `output` is the pipe for prints."""
    lead_a_group()
    die_with_parent()
    watch_kernel()
    # Nobody interrupts a rank alone: what the stop button means is the kernel's to decide.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _redirect(output.detach())
    _report_stacks(spec)
    global _channel
    send = _channel = _Sender(connection)
    try:
        with recorded(spec, send):
            surroundings.take_over()
            draw_anew()
            _without_notebook()
            payload = payloads.unpack(blob)
            _join(spec, store, send)
            flight.answer_on_demand(store.parent, spec.rank)
            _wait_while_held(spec.run_dir)
            send("result", call(spec, payload, send))
            # Stay until every rank has its result: a peer may still want something.
            with contextlib.suppress(EOFError, OSError):
                connection.recv_bytes()
    except BaseException as error:
        send("error", *describe(error))
        _end(1 if not isinstance(error, SystemExit) else _exit_code(error))
    _end(0)


def _without_notebook() -> None:
    """A cell's habits: `display` shows text, and nobody answers `input`."""

    def display(*things, **_) -> None:
        print(*map(repr, things), sep="\n")

    def no_keyboard(prompt="", /):
        raise EOFError(
            "a rank has no keyboard: ask before the run, and give the answer as an argument"
        )

    builtins.display, builtins.input = display, no_keyboard


def _wait_while_held(run_dir: Path) -> None:
    """Somebody wants to see the beginning and is not ready yet (see `Job.hold`)."""
    until = time.monotonic() + HELD_S
    while (run_dir / HELD).exists() and time.monotonic() < until:
        time.sleep(0.01)


def call(spec: RankSpec, payload: payloads.Payload, send) -> bytes:
    """Call the function, with the process group made; returns its packed result."""
    for name in AT_START:
        module, function = name.split(":")
        getattr(importlib.import_module(module), function)()
    ledger.current.attach(spec.rank, Beacon(spec.run_dir / f"beacon.{spec.rank}"))
    send("started")
    result = payload.fn(*payload.args, **payload.kwargs)
    packed = payloads.pack_result(result)
    flush()
    return packed


def flush() -> None:
    """Send what is still here: the last ledger entries, and prints without an end of line."""
    ledger.current.flush()
    sys.stdout.flush()


def channel() -> "_Sender":
    """This rank's connection to the kernel."""
    assert _channel is not None, "not in a rank"
    return _channel


def _join(spec: RankSpec, store: Path, send) -> None:
    """Make the process group, on the loopback interface whatever this machine is called and
    whatever interface the environment names: nobody outside has business with these ranks."""
    try:
        import torch
        import torch.distributed as dist
    except ImportError as error:
        raise torch_needed("ranks need", error) from error
    world, rank = spec.world_size, spec.rank
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
        LOCAL_WORLD_SIZE=str(world),
        GLOO_SOCKET_IFNAME=loopback_interface(),
        NCCL_SOCKET_IFNAME=loopback_interface(),
    )
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for what the rank starts, as torchrun does
    torch.set_num_threads(1)
    dist.set_debug_level_from_env()  # TORCH_DISTRIBUTED_DEBUG of now: the server read it at import
    if spec.pretend is not None:
        from torch.testing._internal.distributed.fake_pg import FakeStore

        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=spec.pretend)
        return
    backend, why = choose_backend(spec.backend, world, torch)
    if rank == 0:
        send("backend", backend, why)
    meeting = dist.FileStore(str(store), world)
    meeting.set_timeout(timedelta(seconds=60))
    if backend == "nccl":
        torch.cuda.set_device(rank)
    dist.init_process_group(backend, store=meeting, rank=rank, world_size=world)


def choose_backend(wanted: str, world: int, torch) -> tuple[str, str]:
    """("nccl" or "gloo", the reason in words: "" where it was asked for). ValueError if NCCL is
    asked for and there are too few GPUs.
    """
    gpus = torch.cuda.device_count() if torch.distributed.is_nccl_available() else 0
    if wanted == "nccl" and gpus < world:
        raise ValueError(
            f"backend 'nccl' needs a GPU for each of the {world} ranks, and {gpus} are here; "
            "use backend='gloo' or 'auto'"
        )
    if wanted != "auto":
        return wanted, ""  # as asked: nothing to tell
    if gpus >= world:
        return "nccl", f"{gpus} GPU(s) for {world} rank(s)"
    if gpus:
        return "gloo", f"{world} ranks but only {gpus} GPU(s), so they compute on the CPU"
    return "gloo", "no GPU here, so ranks compute on the CPU"


def loopback_interface() -> str:
    """The loopback interface's name: "lo" on Linux, "lo0" on macOS."""
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in ("lo", "lo0") if name in names), names[0] if names else "lo")


_channel: "_Sender | None" = None


class _Sender:
    """Messages to the kernel, from any thread of the rank: (kind, time, *values), packed. Of the
    kind "line" only the line goes: each step has one, and to pack it costs more than to send it."""

    def __init__(self, connection):
        self.connection = connection
        self._descriptor = connection.fileno()
        self._lock = threading.Lock()

    def __call__(self, kind: str, *values) -> None:
        if kind == "line":
            send, (message,) = self._at_once, values
        else:
            send = self.connection.send_bytes
            message = pickle.dumps((kind, time.time(), *values), protocol=pickle.HIGHEST_PROTOCOL)
        with self._lock:
            try:
                send(message)
            except (BrokenPipeError, ConnectionResetError):
                os._exit(1)  # the kernel has closed its end: nobody is interested any more

    def _at_once(self, line: bytes) -> None:
        """As `send_bytes` does it (see the collector's `_Inbox`), in half of its time."""
        rest = len(line).to_bytes(4, "big") + line
        while rest := rest[os.write(self._descriptor, rest) :]:
            pass  # a signal lets a part of it through


@contextlib.contextmanager
def recorded(spec: RankSpec, send):
    """Events go to the kernel and to the run directory. If the disk is full, only to the kernel,
    and that is said.
    """
    path = spec.run_dir / f"events.{spec.rank}.jsonl"
    # Unbuffered: a line is there, whatever happens next, and costs one call of the system.
    file = open(path, "ab", buffering=0, opener=private)  # noqa: SIM115 - closed below, or by the end of the process

    def put(line: bytes) -> None:
        nonlocal file
        if file is not None:
            try:
                while line := line[file.write(line) :]:
                    pass  # a disk that fills takes a part of it, and then refuses
            except OSError as error:
                file = None
                send("warning", f"events are no longer written to {path}: {error.strerror}")

    def sink(event: events.Event) -> None:
        if event.kind == "step":  # numbers and one word: as JSON they stay what they are
            line = f"{event.to_json()}\n".encode()
            send("line", line)  # written out once, for kernel and file
            put(line)
            return
        send("event", event)
        if file is not None:
            put(f"{event.to_json()}\n".encode())

    if not ends_whole(path):  # whoever wrote here before died in a line: it costs that line only
        put(b"\n")
    put(start_line(spec.run, spec.rank, spec.world_size, time.time()).encode())
    events.start_recording(spec.rank, sink)
    try:
        yield
    except BaseException:
        ledger.current.flush()
        raise
    finally:
        events.stop_recording()
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()


def _redirect(output: int) -> None:
    """File descriptors 1 and 2, and Python's and C's buffers over them, to the pipe, line by
    line. Descriptor 0 is empty: what the rank starts must not read the kernel's input.
    """
    with open(os.devnull) as empty:
        os.dup2(empty.fileno(), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        raw = os.fdopen(descriptor, "wb", closefd=False, buffering=0)
        stream = io.TextIOWrapper(
            io.BufferedWriter(raw), encoding="utf-8", errors="replace", line_buffering=True
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    libc = ctypes.CDLL(None)
    for symbol in ("stdout", "__stdoutp"):  # glibc, macOS
        with contextlib.suppress(ValueError):
            libc.setvbuf(ctypes.c_void_p.in_dll(libc, symbol), None, _IOLBF, 0)


_IOLBF = 0 if sys.platform == "darwin" else 1


def _report_stacks(spec: RankSpec) -> None:
    """On a crash, and when the kernel asks by SIGUSR1, C code writes this rank's stacks to a
    file: it needs no GIL.
    """
    path = spec.run_dir / f"stack.{spec.rank}"
    file = open(path, "w", opener=private)  # noqa: SIM115 - open as long as the rank lives
    faulthandler.enable(file, all_threads=True)
    faulthandler.register(signal.SIGUSR1, file, all_threads=True)


_TWICE = "trying to initialize the default process group twice"
_ONCE = (
    "(A rank begins with torch.distributed initialised, as its rank and with its backend: leave "
    "init_process_group out, or write `if not dist.is_initialized():` before it where the same "
    "function is also started by other means.)"
)


def describe(error: BaseException) -> tuple[str, str, str, bytes | None]:
    """Kind, headline, traceback without the launcher's own frames, and the exception if it can be
    pickled.
    """
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    text = "".join(traceback.format_exception(type(error), error, frames))
    headline = "".join(traceback.format_exception_only(error)).strip()
    if _TWICE in headline:
        headline, text = (f"{said.rstrip()}\n{_ONCE}" for said in (headline, text))
    try:
        packed = payloads.pack_result(error)
        payloads.unpack_result(packed)  # some exceptions pickle, but do not come back
    except Exception:
        packed = None
    kind = "exit" if isinstance(error, SystemExit) else "exception"
    if kind == "exit":
        headline = f"called sys.exit({error.code!r})"
    return kind, headline, text, packed


def _exit_code(error: SystemExit) -> int:
    return error.code if isinstance(error.code, int) else (1 if error.code else 0)


def _end(code: int) -> None:
    """End at once, losing no output: neither Python's nor C's exit handlers may hang in a dead
    collective.
    """
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
        ctypes.CDLL(None).fflush(None)
    os._exit(code)
