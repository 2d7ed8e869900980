"""A rank is a fresh process, what it starts ends with it, and nobody else gets in.

Wrong versions these catch: ranks that may have no children, children that outlive them, a torch.py
of the working folder in the rank server, files that follow links, a jobs list that keeps results, a
question for a stack that kills, a supervisor that waits for a stopped rank, an interrupt that stops
nobody.
"""

import gc
import json
import linecache
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
import time
import types
import weakref
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch

import picolab as pico
from picolab.launch import payload, rundirs, server
from picolab.launch.job import Job
from picolab.launch.rundirs import RunDirectoryError

forked = pytest.mark.skipif(
    server.start_method() != "forkserver", reason="ranks are fresh processes here"
)


@pytest.fixture(scope="module", autouse=True)
def own_runs(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


def gone(pids, within=10) -> bool:
    end = time.monotonic() + within
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(alive, pids))


def alive(pid) -> bool:
    """A zombie is dead; who its parent is now decides how long it is listed."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# -- children --


def with_children(ending):
    """What a training script does: workers, a pool, other programs. And some that are left."""
    numbers = torch.utils.data.TensorDataset(torch.arange(8))
    loader = torch.utils.data.DataLoader(numbers, batch_size=4, num_workers=1)
    seen = sum(int(batch.sum()) for (batch,) in loader)
    with ProcessPoolExecutor(1) as pool:
        root = pool.submit(abs, -3).result()
    left = subprocess.Popen(["sh", "-c", "sleep 600 & sleep 600; true"])
    while len(children := psutil.Process(left.pid).children()) < 2:
        time.sleep(0.01)
    pids = [left.pid, *(child.pid for child in children)]
    pico.emit(pids=pids)
    if ending == "raise":
        raise RuntimeError("on purpose")
    if ending == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if ending == "stop":
        time.sleep(600)
    return seen, root, pids


def left_by(job) -> list[int]:
    while not (found := [e.data["pids"] for e in job.events if e.kind == "values"]):
        assert not job.done, job.result()
        time.sleep(0.02)
    return found[0]


@pytest.mark.parametrize("ending", ["return", "raise", "killed", "stop"])
def test_workers_work_and_what_a_rank_starts_ends_with_it(ending):
    job = pico.run(with_children, ending, world_size=1, wait=False, quiet=True)
    pids = left_by(job)
    if ending == "return":
        seen, root, _ = job.result()[0]
        assert (seen, root) == (28, 3)
    elif ending == "stop":
        job.stop()
    else:
        with pytest.raises(pico.RankFailure):
            job.result()
    assert gone(pids), ending


# -- what is not ours --


@forked
def test_a_torch_of_the_working_folder_is_not_loaded_by_the_server(tmp_path):
    for name in ("torch", "sympy", "numpy"):
        loaded = f"open({name!r} + '.was.loaded', 'w')\nraise SystemExit"
        (tmp_path / f"{name}.py").write_text(loaded)
    (tmp_path / "script.py").write_text(
        "import sys\n"
        "folder = sys.path.pop(0)\n"  # the kernel itself would load them
        "import picolab as pico\n"
        "from picolab.launch import server\n"
        "sys.path.insert(0, '')\n"
        "server._server.ensure()\n"
        "del sys.path[0]\n"
        "print(pico.run(lambda: 7, world_size=1, quiet=True)[0])\n"
    )
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(pico.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.splitlines()[-1:] == ["7"], done.stderr
    assert not list(tmp_path.glob("*.loaded"))


def test_run_directories_are_this_accounts(tmp_path):
    directory = pico.run(print, "hello", world_size=1, quiet=True).run_dir
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    assert {"run.json", "rank.0.log", "events.0.jsonl"} <= modes.keys()
    assert set(modes.values()) == {0o600} and stat.S_IMODE(directory.stat().st_mode) == 0o700
    pico.launch.export(print, tmp_path / "out")
    assert stat.S_IMODE((tmp_path / "out" / "payload.pkl").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700


PLANTED = ["beacon.0", "rank.0.log", "stack.0", "events.0.jsonl", "run.json", "payload.pkl"]


def test_a_folder_that_somebody_prepared_is_refused(tmp_path):
    (tmp_path / "theirs").write_text("precious")
    for name in PLANTED:
        prepared = tmp_path / f"with {name}"
        prepared.mkdir()
        (prepared / name).symlink_to(tmp_path / "theirs")
        with pytest.raises(RunDirectoryError, match=f"{name} is not a file, but a link"):
            pico.run(print, world_size=1, quiet=True, run_dir=prepared)
    assert (tmp_path / "theirs").read_text() == "precious"


def test_a_folder_of_everybody_is_refused_and_so_are_its_pickles(tmp_path):
    pico.launch.export(print, tmp_path / "run")
    (tmp_path / "run").chmod(0o777)
    with pytest.raises(RunDirectoryError, match="can be written by every account"):
        pico.run(print, world_size=1, quiet=True, run_dir=tmp_path / "run")
    with pytest.raises(ValueError, match=r"can be written by every account, and payload\.pkl is a"):
        rundirs.read_pickle(tmp_path / "run" / "payload.pkl")
    if os.getuid() == 0:
        (tmp_path / "run").chmod(0o700)
        os.chown(tmp_path / "run", 12_345, 12_345)
        with pytest.raises(ValueError, match="belongs to another account"):
            rundirs.read_pickle(tmp_path / "run" / "payload.pkl")


def test_a_pipe_for_a_run_json_stops_nobody(tmp_path):
    os.mkfifo(tmp_path / "run.json")
    assert rundirs.describe(tmp_path) == {} and not rundirs.is_running(tmp_path)
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "run.json").write_text("[1]")
    assert rundirs.describe(tmp_path / "list") == {}


def test_only_the_cells_that_travel_are_exported():
    text, other = "def fn():\n    return 1\n", "token = 'secret of a cell'\n"
    for name, cell in (("<cell 1>", text), ("<cell 2>", other)):
        linecache.cache[name] = (len(cell), None, cell.splitlines(keepends=True), name)
    space = {}
    exec(compile(text, "<cell 1>", "exec"), space)
    blob = payload.pack(space["fn"], (), {})
    assert b"return 1" in blob and b"secret of a cell" not in blob


def test_what_a_rank_does_not_have_is_said():
    """An lru_cache of a cell travels by its name."""
    module = types.ModuleType("a_cell")
    source = "import functools\n@functools.lru_cache\ndef cached():\n    return 1\n"
    exec(source, module.__dict__)
    sys.modules["a_cell"] = module
    try:
        with pytest.raises(pico.RankFailure, match=r"cannot be sent to the ranks.*lru_cache"):
            pico.run(module.cached, world_size=1, quiet=True)
    finally:
        del sys.modules["a_cell"]


def test_a_cells_habits(capsys):
    def habits():
        display([1], "two")  # noqa: F821 - a notebook has it
        input("a number? ")

    with pytest.raises(pico.RankFailure, match="a rank has no keyboard: ask before the run"):
        pico.run(habits, world_size=1)
    assert "[0] [1]\n[0] 'two'\n" in capsys.readouterr().out


def test_a_cell_with_shell_lines_and_a_comment(capsys):
    pytest.importorskip("IPython")
    from IPython.testing.globalipapp import get_ipython, start_ipython

    shell = start_ipython() or get_ipython()
    shell.run_line_magic("load_ext", "picolab")
    shell.run_cell_magic("ranks", "1  # one rank", "!echo here\nlines = !echo there\nlines")
    out = capsys.readouterr().out
    assert "[0] here" in out and "[0] ['there']" in out


def test_places_that_cannot_be_get_a_sentence(monkeypatch):
    with pytest.raises(RunDirectoryError, match=r"too long\. Choose a shorter name with run_dir"):
        pico.run(print, world_size=1, quiet=True, run_dir="x" * 300)
    assert pico.run(int, world_size=1, quiet=True, name="n" * 300)[0] == 0
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr(Path, "home", classmethod(homeless))
    with pytest.raises(RunDirectoryError, match="HOME is not set"):
        pico.run(print, world_size=1, quiet=True)


def homeless(cls):
    raise RuntimeError("Could not determine home directory.")


HARD = {
    "TMPDIR is .* set TMPDIR to a shorter one": (
        "tempfile.tempdir = os.path.join(folder, 'd' * 90); os.mkdir(tempfile.tempdir)"
    ),
    "may have 24 files open, which is too few": (
        "resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))"
    ),
    "interrupts .* are ignored here; to stop: kill": "signal.signal(signal.SIGINT, signal.SIG_IGN)",
}


@forked
@pytest.mark.parametrize("sentence", HARD)
def test_hard_surroundings_get_a_sentence(sentence, tmp_path):
    script = (
        "import os, resource, signal, sys, tempfile\n"
        "import picolab as pico\n"
        "from picolab import launch\n"
        f"folder = {str(tmp_path)!r}\n"
        f"{HARD[sentence]}\n"
        "try:\n    pico.run(int, world_size=8 if 'few' in sys.argv[1] else 1)\n"
        "except OSError as error:\n    print(error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(pico.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", script, sentence],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert re.search(sentence, done.stdout), (done.stdout[-500:], done.stderr[-2000:])


@forked
def test_a_script_whose_standard_files_are_closed_runs(tmp_path):
    """A service or `<&- >&- 2>&-` starts it so. What it starts inherits three files that are open;
    mutants: nothing takes their numbers, or what does is not inherited."""
    script = (
        "import os, subprocess, sys\nimport picolab as pico\n"
        "from picolab.launch import surroundings\n"
        "CHILD = 'import os; [os.fstat(number) for number in range(3)]'\n"
        "def child():\n    return subprocess.call([sys.executable, '-c', CHILD])\n"
        "told = [child()]\n"  # the first mutant
        "surroundings.os.set_inheritable = lambda *_: None\n"
        "surroundings.keep_standard_files()\n"
        "told.append(child())\n"  # the second
        "os.set_inheritable = __import__('posix').set_inheritable\n"
        "os.closerange(0, 3)\n"
        "told.append(pico.run(int, world_size=2)[1])\n"
        "told.append(child())\n"
        "open(sys.argv[1], 'w').write(str(told))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(pico.__file__).parents[1])}
    closed = 'exec "$0" -c "$1" "$2" <&- >&- 2>&-'
    said = tmp_path / "said"
    subprocess.run(
        ["sh", "-c", closed, sys.executable, script, str(said)],
        env=environment,
        timeout=120,
        check=True,
    )
    assert said.read_text() == "[1, 1, 0, 0]"


def test_a_live_run_is_known_by_its_lock(monkeypatch, tmp_path):
    """Mutant: by the number of its process, which says nothing in another container."""
    job = pico.run(time.sleep, 600, world_size=1, wait=False, quiet=True, run_dir=tmp_path / "run")
    about = rundirs.describe(job.run_dir)
    rundirs.write(job.run_dir, {**about, "pid": 2**22 - 1, "started": 0.0})
    assert rundirs.is_running(job.run_dir)
    with pytest.raises(RunDirectoryError, match="of a run that is going on; take another"):
        pico.run(print, world_size=1, quiet=True, run_dir=tmp_path / "run")
    with monkeypatch.context() as mutant:
        mutant.setattr(rundirs, "describe", lambda directory: {**about, "pid": 1, "started": 0.0})
        mutant.setattr(rundirs, "is_held", lambda directory: False)
        assert not rundirs.is_running(job.run_dir)
    job.stop()
    assert not rundirs.is_running(job.run_dir)
    # A kernel that was killed leaves no lock, whatever its run.json says.
    rundirs.write(job.run_dir, {**about, "pid": os.getpid(), "started": time.time()})
    assert not rundirs.is_running(job.run_dir)
    pico.run(print, world_size=1, quiet=True, run_dir=tmp_path / "run")


@pytest.fixture
def home():
    """A folder that every account may enter and look into."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.mark.skipif(os.getuid() != 0, reason="becoming another account needs root")
def test_a_second_account_sees_and_touches_nothing(home):
    run = home / "run"
    job = pico.run(time.sleep, 600, world_size=1, wait=False, quiet=True, run_dir=run)
    while not (run / "beacon.0").exists():
        time.sleep(0.01)
    pico.launch.export(print, home / "out")
    (rank,) = job._collector.pids().values()

    def did(*command) -> bool:
        quietly = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        nobody = {"user": 65534, "group": 65534, "extra_groups": []}
        return subprocess.run(["env", *map(str, command)], **quietly, **nobody).returncode == 0

    assert did("ls", home)
    looks = [("ls", run), ("cat", run / "run.json"), ("cat", home / "out" / "payload.pkl")]
    acts = [("touch", run / "rank.1.log"), ("truncate", "-s0", run / "beacon.0"), ("kill", rank)]
    for command in (*looks, *acts):
        assert not did(*command), command
    run.chmod(0o755)  # mutant: a folder as mkdir makes it. Files are still this account's.
    assert did("ls", run) and not did("cat", run / "run.json")
    (run / "run.json").chmod(0o644)
    assert did("cat", run / "run.json")
    job.stop()


# -- supervision --


def test_the_list_of_jobs_keeps_no_results():
    result = pico.run(lambda: torch.ones(3), world_size=1, quiet=True)
    tensor = weakref.ref(result[0])
    number = pico.jobs()[-1].id
    del result
    gc.collect()
    assert tensor() is None
    past = pico.jobs()[-1]
    assert past.id == number and past.state == "done" and past.done
    with pytest.raises(ValueError, match="nobody kept what it returned; its events are in"):
        past.result()
    assert "already ended" in past.stop() and str(past.run_dir) in repr(pico.jobs())


def test_a_question_right_after_the_start_kills_no_rank():
    def nap():
        time.sleep(0.3)
        return "alive"

    for _ in range(6):
        job = pico.run(nap, world_size=2, wait=False, quiet=True)
        while not job._collector.pids():
            time.sleep(0.001)
        job.where()
        assert list(job.result()) == ["alive", "alive"]


def stopped_while_sending():
    from picolab.launch import rank

    connection = rank.channel().connection
    real = connection._send

    def half(data, *rest):
        real(data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGSTOP)

    connection._send = half
    return b"x" * 100_000


def stopped(pid) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_STOPPED


def test_a_rank_stopped_while_it_sends_blocks_nobody():
    job = pico.run(stopped_while_sending, world_size=1, wait=False, quiet=True, timeout=600)
    while not any(map(stopped, pids := list(job._collector.pids().values()))):
        time.sleep(0.02)
    assert "stopped" in job.stop() and job.done and gone(pids, within=1)


def test_an_interrupt_before_anybody_waits_stops_the_job(monkeypatch):
    def interrupted(self):
        pids.extend(self._collector.pids().values())
        raise KeyboardInterrupt

    pids: list[int] = []
    monkeypatch.setattr(Job, "result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pico.run(time.sleep, 600, world_size=1, quiet=True)
    assert pico.jobs()[-1].state == "stopped" and gone(pids)


@forked
def test_a_killed_rank_server_is_called_so():
    job = pico.run(time.sleep, 600, world_size=2, wait=False, quiet=True)
    while len(job._collector.pids()) < 2:
        time.sleep(0.01)
    os.kill(server.pid(), signal.SIGKILL)
    with pytest.raises(pico.RankFailure, match=r"the rank server, .* was killed") as failure:
        job.result()
    assert failure.value.rank is None
    assert pico.run(int, world_size=1, quiet=True)[0] == 0  # a new one


def test_silence_is_not_called_a_hang_without_the_way_out():
    with pytest.raises(pico.RankHang, match=r"Rank 0 may still be computing.*timeout=.* 1 s now"):
        pico.run(time.sleep, 600, world_size=1, quiet=True, timeout=1)


# -- a folder that is used again, a tutorial's first line, stop while torch loads --


def one_event(step):
    pico.emit(step=step)


def test_a_folder_that_is_used_again_holds_one_run(monkeypatch, tmp_path):
    def steps(folder=tmp_path / "run") -> list[int]:
        lines = (folder / "events.0.jsonl").read_text().splitlines()
        return [json.loads(line)["data"]["step"] for line in lines if '"step"' in line]

    def go(step):
        pico.run(one_event, step, world_size=1, quiet=True, run_dir=tmp_path / "run")

    for step in (1, 2, 3):
        go(step)
        assert steps() == [step]
    earlier = sorted((tmp_path / "run").glob("earlier-*"))
    assert [steps(folder) for folder in earlier] == [[1], [2]]
    monkeypatch.setattr(rundirs, "_put_earlier_aside", lambda directory: None)  # the mutant
    go(4)
    assert steps() == [3, 4]


def a_tutorials_first_lines():
    import torch.distributed as dist

    dist.init_process_group("gloo")


def test_a_tutorials_first_line_is_told_what_a_rank_has():
    with pytest.raises(pico.RankFailure, match=r"A rank begins with torch.distributed init"):
        pico.run(a_tutorials_first_lines, world_size=1, quiet=True)


INTERRUPTED = """
import _thread, importlib, sys, threading
import picolab
sys.path.insert(0, sys.argv[1])
load = {"whole": picolab._whole, "mutant": importlib.import_module}[sys.argv[2]]
threading.Timer(0.3, _thread.interrupt_main).start()
try:
    load("large")
    print("not interrupted")
except KeyboardInterrupt:
    pass
try:
    import large
    print("whole", large.whole)
except RuntimeError as error:
    print(error)
"""


@pytest.mark.parametrize("load, said", [("whole", "whole True"), ("mutant", "half of it is there")])
def test_stop_while_torch_loads_leaves_no_half_of_it(load, said, tmp_path):
    """A package that, like torch, cannot be imported again once its first half was."""
    (tmp_path / "large.py").write_text(
        "import sys, time\n"
        "if hasattr(sys, 'half'):\n    raise RuntimeError('half of it is there')\n"
        "sys.half = True\n"
        "for _ in range(100):\n    time.sleep(0.01)\n"
        "whole = True\n"
    )
    root = str(Path(pico.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path), load],
        env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.split("\n")[0] == said, (done.stdout, done.stderr)
