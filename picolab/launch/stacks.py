"""Where a rank is: its stack, read from outside.

`faulthandler` in the rank writes all threads' stacks to a file when it gets SIGUSR1 (C code: no
GIL needed). Here the file is read, the thread that runs the user's function is picked, the
launcher's own frames are dropped, and the source lines are added. A rank that is stopped cannot
write anything; that is said instead."""

import linecache
import os
import re
import signal
import sys
import time
from pathlib import Path

import psutil

_FRAME = re.compile(r'  File "(?P<file>.*)", line (?P<line>\d+) in (?P<name>.*)')
_WRAPPERS = (os.path.join("comm", "raw.py"), "c10d_logger.py")  # no news to a reader
_OWN = os.path.join("picolab", "launch", "rank.py")


def ask(pids: dict[int, int], run_dir: Path, patience: float = 1.5) -> dict[int, str]:
    """The stack of each rank, as text. pids: rank -> process id."""
    marks, answers = {}, {}
    for rank, pid in pids.items():
        try:
            if is_stopped(pid):
                answers[rank] = (
                    "  stopped by a signal (SIGSTOP): it can give no stack until it continues"
                )
                continue
            if not (run_dir / f"stack.{rank}").exists():
                answers[rank] = "  has only just begun: it can give no stack yet"
                continue
            marks[rank] = _size(run_dir / f"stack.{rank}")
            os.kill(pid, signal.SIGUSR1)
        except ProcessLookupError:
            answers[rank] = "  already gone"
            marks.pop(rank, None)
    deadline = time.monotonic() + patience
    while marks and time.monotonic() < deadline:
        time.sleep(0.05)
        for rank, mark in list(marks.items()):
            text = crash(run_dir, rank, mark)
            if text:
                answers[rank] = text
                del marks[rank]
    for rank in marks:
        answers[rank] = "  gave no stack"
    return answers


def is_stopped(pid: int) -> bool:
    """By SIGSTOP or the like; a process that is gone is not."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_STOPPED
    except psutil.NoSuchProcess:
        return False


def ends_in_torch_distributed(text: str) -> bool:
    """Is the innermost frame of a stack, as `ask` gives it, one of torch.distributed's?"""
    frames = [line for line in text.splitlines() if line[:3].strip() and line.startswith("  ")]
    return bool(frames) and "/torch/distributed/" in frames[-1]


def crash(run_dir: Path, rank: int, mark: int = 0) -> str:
    """What is in the rank's stack file after byte `mark`, made readable; "" if nothing is there."""
    try:
        with open(run_dir / f"stack.{rank}", "rb") as file:
            file.seek(mark)
            return readable(file.read().decode(errors="replace"))
    except OSError:
        return ""


def readable(dump: str) -> str:
    """The frames of the thread that runs the user's function, outermost first, with their source
    lines.
    """
    threads = re.split(r"\n(?=(?:Current thread|Thread) 0x)", dump)
    chosen = next((t for t in threads if _OWN in t), "")
    frames = [match.groupdict() for match in _FRAME.finditer(chosen)]
    frames.reverse()
    own = [i for i, frame in enumerate(frames) if frame["file"].endswith(_OWN)]
    lines = []
    for frame in frames[own[-1] + 1 :] if own else frames:
        if frame["file"].endswith(_WRAPPERS):
            continue
        lines.append(f'  File "{frame["file"]}", line {frame["line"]}, in {frame["name"]}')
        source = linecache.getline(frame["file"], int(frame["line"])).strip()
        if source:
            lines.append(f"    {source}")
    return name_cells("\n".join(lines))


def name_cells(text: str) -> str:
    """`File "/somewhere/ipykernel_12/34.py", line 3` becomes `Cell In[7], line 3`, as IPython
    writes it.
    """
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    numbers = getattr(getattr(shell, "compile", None), "_filename_map", None) or {}
    for file, number in numbers.items():
        text = text.replace(f'File "{file}"', f"Cell In[{number}]")
    return text


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
