"""The doctor: what it finds here is so, and it knows a machine that lacks something.

Catches a doctor that calls everything ok, one that imports torch (or makes a CUDA context) in its
caller, one that dies where torch is missing or broken, and a failure without a cure.
"""

import json
import os
import subprocess
import sys
from importlib import metadata

import psutil
import pytest

from picolab.lab.doctor import (
    Check,
    DoctorReport,
    ask_torch,
    backends,
    cores,
    doctor,
    gpus,
    loopback,
    loopback_interface,
    memory,
    python,
    run_directory,
    shared_memory,
    short_products,
    torch_build,
    usable_cores,
    usable_memory,
    widgets,
)

HERE = {"version": "2.13.0+cpu", "cuda": None, "gloo": True, "nccl": False, "gpus": []}


@pytest.fixture(scope="module")
def report():
    return doctor()


def test_this_machine(report):
    """The suite runs here, so ranks can: nothing may be a failure, and the facts are checked."""
    assert report.ok, repr(report)
    found = {check.name: check for check in report.checks}
    assert list(found) == [
        *("Python", "torch", "backends", "GPUs", "bf16", "cores", "memory"),
        *("shared memory", "loopback", "run directory", "widgets"),
    ]
    assert metadata.version("torch") in found["torch"].finding
    assert "gloo" in found["backends"].finding
    assert found["bf16"].finding.startswith("times fp32's speed: y ")
    assert "127.0.0.1" in found["loopback"].finding
    assert metadata.version("plotly") in found["widgets"].finding
    assert all(check.cure for check in report.checks if check.status != "ok")


def test_three_faces_say_the_same(report):
    read = json.loads(report.to_json())
    assert read["ok"] is report.ok
    for entry, check in zip(read["checks"], report.checks, strict=True):
        assert Check(**entry) == check
        assert check.finding in repr(report.full())
    full = report.full()
    assert report.verdict in repr(full) and report.verdict in full._repr_html_()


def check_one_line(report):
    lines = repr(report).splitlines()
    assert repr(report).startswith("Ready: ") and "2 cores" in repr(report).replace("\n", " ")
    assert not [line for line in lines if line.startswith("loopback")]
    shown = report._repr_html_()
    assert shown.startswith("<details><summary>Ready: ") and "127.0.0.1 on lo" in shown


FINE = [Check("Python", "ok", "3.11.7 (/usr/bin/python)"), Check("cores", "ok", "2 usable")]
FINE += [Check("loopback", "ok", "127.0.0.1 on lo")]


def test_a_machine_that_is_fine_takes_one_line():
    check_one_line(DoctorReport(FINE))
    assert "3.11.7; 2 cores." in repr(DoctorReport(FINE))
    assert "loopback" in repr(DoctorReport(FINE).full())


@pytest.mark.parametrize("status", ["warn", "fail"])
def test_what_is_to_be_cured_is_not_folded_away(status):
    with pytest.raises(AssertionError):
        check_one_line(DoctorReport([*FINE, Check("memory", status, "little", "do that")]))
    with pytest.raises(AssertionError):
        check_one_line(DoctorReport(FINE).full())


def test_one_failure_is_enough():
    fine, worse, broken = (
        Check(status, status, "found <this>", "" if status == "ok" else "do that")
        for status in ("ok", "warn", "fail")
    )
    assert DoctorReport([fine, worse]).ok and DoctorReport([fine, worse]).verdict.startswith(
        "Ready."
    )
    assert not DoctorReport([fine, worse, broken]).ok
    shown = DoctorReport([fine, broken])._repr_html_()
    assert "found &lt;this&gt;" in shown and "do that" in shown


def test_the_caller_gets_no_torch():
    code = "from picolab.lab.doctor import doctor; doctor(); import sys; print(*sys.modules)"
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "torch" not in asked.stdout.split()


def test_ask_torch_where_it_is_broken(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise OSError('libtorch.so: cannot open shared object')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    broken = ask_torch()
    assert broken == {"problem": "OSError: libtorch.so: cannot open shared object"}
    check = torch_build(broken)
    assert check.status == "fail" and "libtorch.so" in check.finding and check.cure


@pytest.mark.parametrize(
    "check, status, word",
    [
        (python((3, 10, 4)), "fail", "3.11"),
        (python((3, 13, 0)), "ok", ""),
        (python((3, 11, 0), "pypy"), "fail", "CPython"),
        (torch_build({"problem": "not installed"}), "fail", "pip install -e '.[torch]'"),
        (torch_build({**HERE, "version": "2.5.1"}), "warn", ">=2.11"),
        (torch_build({**HERE, "version": "2.14.0"}), "warn", "<2.14"),
        (torch_build({**HERE, "version": "2.12.0a0+git1"}), "ok", ""),
        (backends({}), "fail", "torch"),
        (backends({**HERE, "gloo": False, "nccl": True}), "fail", "gloo"),
        (gpus(HERE, None), "ok", ""),
        (gpus(HERE, ["GPU A"]), "warn", "CPU build"),
        (gpus({**HERE, "cuda": "13.0"}, ["GPU A"]), "warn", "driver"),
        (gpus({**HERE, "cuda": "13.0", "nccl": True, "gpus": ["GPU A"] * 2}, ["GPU A"]), "ok", ""),
        (cores(1), "warn", "slower"),
        (cores(0.5), "warn", "slower"),
        (cores(2), "ok", ""),
        (memory(4e9, 0.4e9), "fail", "close"),
        (memory(4e9, 2e9), "warn", "eight"),
        (memory(16e9, 8e9), "ok", ""),
        (loopback("192.0.2.1"), "fail", "allow local connections"),
        (widgets({"plotly": None, "jupyterlab": "4.5.0"}), "warn", "install --upgrade plotly ("),
        (widgets({"plotly": "5.24.1", "jupyterlab": "4.5.0"}), "warn", "plotly"),
        (widgets({"plotly": "6.1.0", "jupyterlab": "4.5.0"}), "ok", ""),
    ],
)
def test_judges(check, status, word):
    """One line a machine: the status it deserves, and a word that its cure must have."""
    assert check.status == status, check
    assert word in check.cure
    assert bool(check.cure) == (status != "ok")


def test_bf16_is_said_to_be_as_fast_as_it_was_seen_to_be():
    """Each product has its own speed, and its own way."""
    fast, slow = {"y": (3, 1, 4), "dx": (3, 90, 2)}, {"y": (3, 90, 4)}
    finding = short_products({"bf16": fast}).finding
    assert finding == "times fp32's speed: y 3.0 (native), dx 1.5 (rounded)"
    assert short_products({"bf16": slow}).finding.endswith("here it saves memory and no time")
    assert short_products({}).finding == "not measured without torch"


def test_run_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    check = run_directory(tmp_path / "file" / "runs")
    assert check.status == "fail" and "XDG_STATE_HOME" in check.cure
    fine = run_directory(tmp_path / "new" / "runs")
    assert fine.status in ("ok", "warn")
    assert list((tmp_path / "new" / "runs").iterdir()) == []


def test_shared_memory_that_is_missing(tmp_path):
    check = shared_memory(str(tmp_path / "shm"))
    assert check.status == ("fail" if sys.platform == "linux" else "ok")


def test_loopback_interface_is_the_one_with_the_address():
    name = loopback_interface("127.0.0.1")
    assert "127.0.0.1" in [entry.address for entry in psutil.net_if_addrs()[name]]
    assert loopback_interface("192.0.2.1") is None


def test_a_containers_limits_count(tmp_path):
    quota, limit, current = (
        tmp_path / name for name in ("cpu.max", "memory.max", "memory.current")
    )
    quota.write_text("50000 100000\n")
    assert usable_cores(str(quota)) == 0.5
    quota.write_text("max 100000\n")
    machine = usable_cores(str(quota))
    assert machine == usable_cores(str(tmp_path / "no such file")) >= 1
    if hasattr(os, "sched_getaffinity"):
        assert machine == len(os.sched_getaffinity(0))
    limit.write_text("500000000\n")
    current.write_text("200000000\n")
    assert usable_memory(str(limit)) == (500_000_000, 300_000_000)
    # What files are cached is given up when it is needed.
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 90000000\nactive_file 10000000\n")
    assert usable_memory(str(limit)) == (500_000_000, 400_000_000)
    limit.write_text("max\n")
    assert usable_memory(str(limit))[0] == psutil.virtual_memory().total
