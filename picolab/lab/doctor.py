"""What this machine can do, and the cure for what it cannot: `picolab doctor`, `pico.doctor()`.

Each check looks at one thing a chapter needs and says what it found, in one line, with a cure where
something is missing:

    ok    nothing to do
    warn  the chapters run, but something will be slower, smaller or missing
    fail  ranks or notebooks cannot run before this is cured

torch is asked in a process of its own. So the doctor works where torch is missing or broken, and no
CUDA context is ever made in the caller, which would keep it from forking ranks later. Measuring
(`doctor`) is kept apart from judging (the functions with facts as arguments), so that a test can
show the judge a machine that it does not have.
"""

import html
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import psutil

from picolab.show.table import Table, bytes_text

# What `picolab` supports; pyproject.toml says the same, and tests/unit/test_packaging.py compares
# the two.
PYTHON = (3, 11)
TORCH = ((2, 11), (2, 14))
_WIDGETS = {"jupyterlab": 4, "ipykernel": 6, "ipywidgets": 8, "anywidget": 0, "plotly": 6}

# A rank that has imported torch and holds the `tiny` model takes about 0.3 GB.
_RANK_BYTES = 0.35e9


EXTRAS = "pip install -e '.[torch,lab]'"
WITHOUT_TORCH = (
    "Works already, without torch: interview practice (picolab quiz), what was done (picolab "
    "progress), formulas, layouts and schedules (pico.costs, pico.Layout, pico.schedules). For "
    f"ranks and notebooks, in the checkout: {EXTRAS}"
)


class Check(NamedTuple):
    name: str
    status: str  # "ok", "warn" or "fail"
    finding: str
    cure: str = ""


class DoctorReport:
    """The checks, in the order a reader cures them: `print(report)`, shown as a table in a
    notebook, `.to_json()`.

    Where there is nothing to cure it is one line, which a notebook unfolds; `.full()` is all of it.
    """

    def __init__(self, checks: list[Check], folded: bool = True):
        self.checks = checks
        self._folded = folded and all(check.status == "ok" for check in checks)

    def full(self) -> "DoctorReport":
        """The same, with every check."""
        return DoctorReport(self.checks, folded=False)

    @property
    def ok(self) -> bool:
        """True if nothing stands in the way of running a chapter."""
        return all(check.status != "fail" for check in self.checks)

    @property
    def verdict(self) -> str:
        if any(check.name == "torch" and check.status == "fail" for check in self.checks):
            return WITHOUT_TORCH
        failed = [check.name for check in self.checks if check.status == "fail"]
        warned = [check.name for check in self.checks if check.status == "warn"]
        if failed:
            return f"To cure before anything runs: {', '.join(failed)}."
        if warned:
            return f"Ready. Worth a look: {', '.join(warned)}."
        return "Ready."

    @property
    def line(self) -> str:
        """Ready, and the most important facts."""
        found = {check.name: check.finding for check in self.checks}
        facts = [
            f"{name} {re.split(' [(]|, ', found[name])[0]}"
            for name in ("Python", "torch")
            if name in found
        ]
        facts += [f"{found['cores'].split()[0]} cores"] if "cores" in found else []
        facts += [found["memory"].rpartition(", ")[2]] if "memory" in found else []
        gpus = found.get("GPUs", "").partition(";")[0]
        facts += [gpus if gpus != "none" else "no GPU"] if gpus else []
        return f"{self.verdict[:-1]}: {'; '.join(facts)}." if facts else self.verdict

    def to_json(self) -> str:
        return json.dumps(
            {
                "ok": self.ok,
                "verdict": self.verdict,
                "checks": [check._asdict() for check in self.checks],
            }
        )

    def _table(self) -> Table:
        wrong = [number for number, check in enumerate(self.checks) if check.status == "fail"]
        return Table(["check", "", "found"], [check[:3] for check in self.checks], "", wrong)

    def __rich__(self):
        from rich.console import Group

        if self._folded:
            return Group(f"{self.line} (Every check: picolab doctor --all.)")
        cures = [f"{check.name}: {check.cure}" for check in self.checks if check.cure]
        return Group(self._table(), "", *cures, self.verdict)

    def __repr__(self) -> str:
        from picolab.show.terminal import text

        return text(self)

    def _repr_html_(self) -> str:
        cures = "".join(
            f"<li><b>{html.escape(check.name)}</b>: {html.escape(check.cure)}</li>"
            for check in self.checks
            if check.cure
        )
        if self._folded:
            line = html.escape(self.line)
            return f"<details><summary>{line}</summary>{self._table()._repr_html_()}</details>"
        listed = f"<ul>{cures}</ul>" if cures else ""
        return f"{self._table()._repr_html_()}{listed}<p>{html.escape(self.verdict)}</p>"


def doctor() -> DoctorReport:
    """Look at this machine; takes a few seconds, most of them torch's import in a process of its
    own."""
    from picolab.launch import rundirs

    torch = ask_torch()
    return DoctorReport(
        [
            python(sys.version_info[:3], sys.implementation.name),
            torch_build(torch),
            backends(torch),
            gpus(torch, _nvidia_gpus()),
            short_products(torch),
            cores(usable_cores()),
            memory(*usable_memory()),
            shared_memory("/dev/shm"),
            loopback("127.0.0.1"),
            run_directory(rundirs.root()),
            widgets({name: _installed(name) for name in _WIDGETS}),
        ]
    )


# --- the judges ----------------------------------------------------------------------------------


def python(version: tuple, implementation: str = "cpython") -> Check:
    text = ".".join(map(str, version))
    if implementation != "cpython":
        return Check("Python", "fail", f"{implementation} {text}", "torch needs CPython")
    if version[:2] < PYTHON:
        wanted = ".".join(map(str, PYTHON))
        return Check("Python", "fail", text, f"install Python {wanted} or newer")
    return Check(
        "Python", "ok", f"{text} ({sys.executable})" if version == sys.version_info[:3] else text
    )


def torch_build(torch: dict) -> Check:
    wanted = ">={}.{},<{}.{}".format(*TORCH[0], *TORCH[1])
    if not torch.get("version"):
        return Check(
            "torch",
            "fail",
            torch.get("problem", "not installed"),
            f'pip install "torch{wanted}" (or, in the checkout, '
            "pip install -e '.[torch]'). "
            "Formulas, monitors and layouts work without it; ranks do not",
        )
    build = f"CUDA {torch['cuda']} build" if torch.get("cuda") else "CPU build"
    number = tuple(int(part) for part in torch["version"].split("+")[0].split(".")[:2])
    if not TORCH[0] <= number < TORCH[1]:
        return Check(
            "torch",
            "warn",
            f"{torch['version']}, {build}",
            f'tested with torch{wanted}: pip install "torch{wanted}"',
        )
    return Check("torch", "ok", f"{torch['version']}, {build}")


def backends(torch: dict) -> Check:
    if not torch.get("version"):
        return Check("backends", "fail", "none without torch", "install torch first")
    found = [name for name in ("gloo", "nccl", "mpi") if torch.get(name)]
    if "gloo" not in found:
        return Check(
            "backends",
            "fail",
            f"{', '.join(found) or 'none'}; gloo is missing",
            "this build of torch has no gloo; the wheels from PyPI have it",
        )
    return Check("backends", "ok", ", ".join(found))


def gpus(torch: dict, driver: list[str] | None) -> Check:
    """`torch` is what torch sees, `driver` what nvidia-smi lists (None: there is no nvidia-smi)."""
    seen = torch.get("gpus", [])
    if seen:
        one = "1 GPU" if len(seen) == 1 else f"{len(seen)} GPUs"
        note = "" if torch.get("nccl") else "; this torch has no NCCL, so ranks use gloo"
        return Check("GPUs", "ok", f"{one}: {', '.join(seen)}{note}")
    if driver:
        why = (
            "torch is a CPU build; for a CUDA build see https://pytorch.org/get-started/locally/"
            if torch.get("version") and not torch.get("cuda")
            else "torch cannot use them; compare the driver's CUDA version (nvidia-smi) with torch"
        )
        return Check("GPUs", "warn", f"the driver lists {', '.join(driver)}, torch sees none", why)
    return Check(
        "GPUs", "ok", "none; ranks run on the CPU over gloo, which every chapter is made for"
    )


def short_products(torch: dict) -> Check:
    """How fast bf16 is multiplied on one core, each product of a linear by itself."""
    timed = torch.get("bf16", {})
    if not timed:
        return Check("bf16", "ok", "not measured without torch")
    said = []
    for which, (fp32_s, native_s, rounded_s) in timed.items():
        native = native_s < rounded_s
        speed = fp32_s / min(native_s, rounded_s)
        said.append(f"{which} {speed:.1f} ({'native' if native else 'rounded'})")
    slow = all(min(native, rounded) > fp32 for fp32, native, rounded in timed.values())
    note = "; here it saves memory and no time" if slow else ""
    return Check("bf16", "ok", f"times fp32's speed: {', '.join(said)}{note}")


def cores(count: float) -> Check:
    text = f"{count:g} usable" if count != 1 else "1 usable"
    if count < 2:
        return Check(
            "cores", "warn", text, "ranks take turns on one core; everything works, slower"
        )
    return Check("cores", "ok", text)


def memory(total: float, available: float) -> Check:
    ranks = int(available / _RANK_BYTES)
    text = f"{bytes_text(available)} of {bytes_text(total)} available, room for about {ranks} ranks"
    if ranks < 2:
        return Check("memory", "fail", text, "close other programs; two ranks need about 1 GB")
    if ranks < 8:
        return Check(
            "memory", "warn", text, "enough for small worlds; close other programs for eight ranks"
        )
    return Check("memory", "ok", text)


def shared_memory(path: str) -> Check:
    if not os.path.isdir(path):
        if sys.platform == "linux":
            return Check("shared memory", "fail", f"{path} is missing", f"mount a tmpfs on {path}")
        return Check("shared memory", "ok", "managed by the system here")
    if not os.access(path, os.W_OK):
        return Check(
            "shared memory", "fail", f"{path} is not writable", f"chmod 1777 {path}, as root"
        )
    size = shutil.disk_usage(path)
    text = f"{path}: {bytes_text(size.free)} free of {bytes_text(size.total)}"
    if size.free < 256e6:
        return Check(
            "shared memory",
            "warn",
            text,
            "NCCL and data loaders want more; in a container: --shm-size=1g, or --ipc=host",
        )
    return Check("shared memory", "ok", text)


def loopback(address: str) -> Check:
    """Ranks on one machine send each other tensors over loopback; a firewall or a VPN client can be
    in the way."""
    interface = loopback_interface(address)
    try:
        with socket.socket() as listening:
            listening.settimeout(5)
            listening.bind((address, 0))
            listening.listen(1)
            with socket.create_connection(listening.getsockname(), timeout=5) as calling:
                answering, _ = listening.accept()
                with answering:
                    calling.sendall(b"picolab")
                    answering.settimeout(5)
                    heard = answering.recv(16)
    except OSError as problem:
        return Check(
            "loopback",
            "fail",
            f"{address}: {problem.strerror or problem}",
            f"ranks talk over {address}; let the firewall or VPN client allow local connections",
        )
    if heard != b"picolab" or interface is None:
        found = (
            "no interface has this address" if interface is None else "what was sent did not arrive"
        )
        return Check(
            "loopback", "fail", f"{address}: {found}", "bring it up: ip link set lo up, as root"
        )
    return Check("loopback", "ok", f"{address} on interface {interface}")


def run_directory(root: Path) -> Check:
    cure = "set XDG_STATE_HOME to a folder that you can write to"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=root, prefix=".doctor-") as file:
            file.write(b"x" * 4096)
            file.flush()
    except OSError as problem:
        return Check("run directory", "fail", f"{root}: {problem.strerror or problem}", cure)
    free = shutil.disk_usage(root).free
    text = f"{root}, {bytes_text(free)} free"
    if free < 100e6:
        return Check(
            "run directory",
            "fail",
            text,
            "free some disk space: picolab runs rm --all, then other files",
        )
    if free < 1e9:
        return Check(
            "run directory", "warn", text, "old runs can go: picolab runs ls, picolab runs rm"
        )
    return Check("run directory", "ok", text)


def widgets(versions: dict[str, str | None]) -> Check:
    """The notebook's packages: name -> version, None if it is not installed."""
    wrong = {
        name: "missing" if version is None else f"{version} is too old"
        for name, version in versions.items()
        if version is None or int(version.split(".")[0]) < _WIDGETS[name]
    }
    if wrong:
        return Check(
            "widgets",
            "warn",
            ", ".join(f"{name} {what}" for name, what in wrong.items()),
            f"pip install --upgrade {' '.join(wrong)} (picolab train needs none of them)",
        )
    return Check(
        "widgets", "ok", ", ".join(f"{name} {version}" for name, version in versions.items())
    )


# --- the measurements ----------------------------------------------------------------------------

_ASK = """
import json
import torch, torch.distributed as dist
from picolab.precision.hardware import HardwareDetector
there = dist.is_available()
torch.set_num_threads(1)
bf16 = HardwareDetector().products("bf16", tokens=512, inputs=256, outputs=688)
print(json.dumps({
    "version": torch.__version__, "cuda": torch.version.cuda,
    "gloo": there and dist.is_gloo_available(),
    "nccl": there and dist.is_nccl_available(),
    "mpi": there and dist.is_mpi_available(),
    "bf16": bf16,
    "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
}))
"""


def ask_torch(executable: str = sys.executable) -> dict:
    """What torch says of itself, from a process of its own; {"problem": ...} if it cannot."""
    try:
        asked = subprocess.run(
            [executable, "-c", _ASK], capture_output=True, text=True, timeout=120, check=False
        )
        lines = asked.stdout.strip().splitlines()
        return (
            json.loads(lines[-1])
            if asked.returncode == 0 and lines
            else {"problem": _last(asked.stderr)}
        )
    except subprocess.TimeoutExpired:
        return {"problem": "import torch did not finish within two minutes"}


def _last(stderr: str) -> str:
    lines = stderr.strip().splitlines()
    return "not installed" if not lines or "No module named 'torch'" in lines[-1] else lines[-1]


def _nvidia_gpus() -> list[str] | None:
    if shutil.which("nvidia-smi") is None:
        return None
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return listed.stdout.split("\n")[:-1] if listed.returncode == 0 else []


def usable_cores(quota_file: str = "/sys/fs/cgroup/cpu.max") -> float:
    """Cores this process may use: its affinity, and a container's quota if that is less."""
    affinity = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    quota, period = [*_words(quota_file), "max", "1"][:2]
    return affinity if quota == "max" else min(affinity, int(quota) / int(period))


def usable_memory(limit_file: str = "/sys/fs/cgroup/memory.max") -> tuple[float, float]:
    """(total, available) bytes, within a container's limit if there is one."""
    machine = psutil.virtual_memory()
    limit = [*_words(limit_file), "max"][0]
    if limit == "max" or int(limit) >= machine.total:
        return machine.total, machine.available
    used = int([*_words(str(Path(limit_file).with_name("memory.current"))), "0"][0])
    told = _words(str(Path(limit_file).with_name("memory.stat")))
    of_files = dict(zip(told[::2], map(int, told[1::2])))  # cached: given up when it is needed
    used -= sum(of_files.get(part, 0) for part in ("inactive_file", "active_file"))
    return int(limit), min(machine.available, int(limit) - used)


def _words(path: str) -> list[str]:
    try:
        return Path(path).read_text().split()
    except OSError:
        return []


def loopback_interface(address: str = "127.0.0.1") -> str | None:
    """The interface's name: `lo` on Linux, `lo0` on macOS, anything in a container."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in addresses):
            return name
    return None


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
