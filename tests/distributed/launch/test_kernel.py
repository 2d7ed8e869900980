"""In a real kernel: cells that launch ranks, the stop button, a restart, a killed kernel.

Wrong versions these catch: ranks that outlive their kernel (a forkserver without ties leaves
stopped and GIL-holding ranks behind), an interrupt that the ranks take for themselves, a
traceback without the cell's line."""

import os
import signal
import sys
import time

import psutil
import pytest

pytest.importorskip("ipykernel", reason="needs the lab extra: pip install -e '.[lab]'")
from jupyter_client.manager import start_new_kernel

OUTLIVE_S = 3.0
SLACK_S = 3.0


class Kernel:
    """A real ipykernel, and the text that its cells show."""

    def __init__(self):
        self.manager, self.client = start_new_kernel(kernel_name="python3")
        self.pid = self.manager.provisioner.pid

    def start(self, code: str) -> str:
        return self.client.execute(code)

    def finish(self, request: str, timeout: float = 60) -> tuple[str, str]:
        """Output and error text of a cell, once it has ended."""
        output, error = [], []
        deadline = time.monotonic() + timeout
        while True:
            message = self.client.get_iopub_msg(timeout=deadline - time.monotonic())
            if message["parent_header"].get("msg_id") != request:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "stream":
                output.append(content["text"])
            elif kind in ("execute_result", "display_data"):
                output.append(content["data"].get("text/plain", "") + "\n")
            elif kind == "error":
                error.append(content["ename"] + "\n" + "\n".join(content["traceback"]))
            elif kind == "status" and content["execution_state"] == "idle":
                return "".join(output), "\n".join(error)

    def run(self, code: str, timeout: float = 60) -> tuple[str, str]:
        return self.finish(self.start(code), timeout)

    def wait_for_output(self, text: str, timeout: float = 60) -> None:
        deadline = time.monotonic() + timeout
        seen = ""
        while text not in seen:
            message = self.client.get_iopub_msg(timeout=deadline - time.monotonic())
            seen += message["content"].get("text", "")

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.pid).children(recursive=True)

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture
def kernel():
    kernel = Kernel()
    _, error = kernel.run(
        "import picolab as pico, torch, time, os, signal, ctypes\n"
        "import torch.distributed as dist\n"
        "def endless():\n"
        "    print('running', os.getpid())\n"
        "    while True:\n"
        "        dist.all_reduce(torch.ones(1000)); time.sleep(0.01)\n"
    )
    assert not error, error
    yield kernel
    kernel.close()


def gone(processes, seconds) -> list[psutil.Process]:
    """Who is still there after that long."""
    return psutil.wait_procs(processes, timeout=seconds)[1]


def test_cells_magic_and_failures(kernel):
    output, error = kernel.run(
        "offset = 5\n"
        "def f(x): return x + offset + dist.get_rank()\n"
        "print(list(pico.run(f, 1, world_size=2)))"
    )
    assert not error and "[6, 7]" in output

    # The magic: the notebook's variables go in, the last expression is shown, -o brings the
    # result back.
    output, error = kernel.run(
        "%%ranks 3 -o gathered\n"
        "x = torch.tensor([float(rank + offset)])\n"
        "dist.all_reduce(x)\n"
        "print('here is', rank, 'of', world_size)\n"
        "x.item()"
    )
    assert not error, error
    for rank in range(3):
        assert f"[{rank}] here is {rank} of 3" in output and f"[{rank}] 18.0" in output
    assert kernel.run("print(list(gathered))")[0] == "[18.0, 18.0, 18.0]\n"
    output, error = kernel.run("%%ranks 0\n1")
    assert "world_size must be a whole number of ranks" in error
    output, error = kernel.run("%%ranks 2 --nonsense\n1")
    assert "unrecognized arguments" in error and "Traceback" not in error

    # The failing rank's own story, with the cell's line, in place of the launcher's frames.
    output, error = kernel.run(
        "def broken():\n"
        "    if dist.get_rank() == 1:\n"
        "        raise ValueError('wrong on purpose')\n"
        "    dist.all_reduce(torch.ones(1))\n"
        "pico.run(broken)"
    )
    assert error.startswith("RankFailure")
    assert "Cell In[" in error and "raise ValueError('wrong on purpose')" in error
    assert "rank 1 failed: ValueError" in error and "job.py" not in error
    output, error = kernel.run("%%ranks 2\nx = 1\nif rank == 1:\n    1 / 0")
    assert "Cell In[" in error and "    1 / 0" in error and "line 4" in error
    output, error = kernel.run(
        "with pico.expect_failure(ValueError, rank=1):\n    pico.run(broken)"
    )
    assert not error and "As expected" in output

    # A background job's prints go to the cell that started it, and the kernel is free meanwhile.
    output, error = kernel.run("job = pico.run(endless, wait=False); print(job.state)")
    kernel.wait_for_output("running")
    output, error = kernel.run("print(job.where()); print(job.stop())")
    assert "in endless" in output and "Cell In[" in output and "was stopped" in output


def test_the_stop_button(kernel):
    request = kernel.start("pico.run(endless, world_size=4)")
    kernel.wait_for_output("[3] running")
    ranks = [p for p in kernel.descendants() if p.ppid() != kernel.pid]
    assert len(ranks) == 4
    start = time.monotonic()
    # As JupyterLab does it: the whole process group gets the signal.
    os.killpg(os.getpgid(kernel.pid), signal.SIGINT)
    _, error = kernel.finish(request, timeout=10)
    assert error.startswith("KeyboardInterrupt")
    assert time.monotonic() - start < 1.0 + SLACK_S
    assert not gone(ranks, 1.0)
    assert kernel.run("print(list(pico.run(lambda: 7)))")[0].endswith("[7, 7]\n")


RANK_THAT = {
    "computes": "while True: dist.all_reduce(torch.ones(10))",
    "is stopped": "os.kill(os.getpid(), signal.SIGSTOP)",
    "holds the GIL": "ctypes.PyDLL(None).sleep(600)",
}
# In a push each state and each end, and the two states that no watchdog survives with the end
# that says no goodbye.
IN_A_PUSH = [("restart", "computes"), ("SIGKILL", "is stopped"), ("SIGKILL", "holds the GIL")]
ENDS = [
    pytest.param(end, state, marks=[] if (end, state) in IN_A_PUSH else pytest.mark.weekly)
    for end in ("SIGKILL", "restart")
    for state in RANK_THAT
]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends stopped and GIL-holding ranks")
@pytest.mark.parametrize(("end", "state"), ENDS)
def test_no_rank_outlives_its_kernel(kernel, state, end):
    kernel.start(
        f"def hold():\n    print('ready')\n    {RANK_THAT[state]}\npico.run(hold, world_size=2)"
    )
    kernel.wait_for_output("[0] ready")
    time.sleep(0.3)
    others = kernel.descendants()
    assert len([p for p in others if p.ppid() != kernel.pid]) == 2
    if end == "SIGKILL":
        os.kill(kernel.pid, signal.SIGKILL)
    else:
        kernel.manager.restart_kernel(now=True)
    assert not gone(others, OUTLIVE_S + SLACK_S)


def test_importing_picolab_in_a_kernel_warms_the_server_and_nothing_else(kernel):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        names = [" ".join(p.cmdline()) for p in kernel.descendants()]
        if any("forkserver" in name for name in names):
            break
        time.sleep(0.1)
    assert any("forkserver" in name for name in names)
    assert len(names) <= 2, names  # the server, and multiprocessing's resource tracker
