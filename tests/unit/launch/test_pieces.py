"""The launcher's pieces that need no ranks: the display, stacks made readable, run numbers.

Wrong versions these catch: a display that prints the middle of lines, a stack report that shows
the launcher's own frames or the wrong thread."""

from hypothesis import given
from hypothesis import strategies as st

from picolab.launch import stacks
from picolab.launch.display import SHOWN_LINES, Display

DUMP = """
Thread 0x00007f01 (most recent call first):
  File "/x/multiprocessing/connection.py", line 947 in wait
  File "/x/picolab/launch/orphans.py", line 47 in watch

Current thread 0x00007f02 (most recent call first):
  File "/x/torch/distributed/distributed_c10d.py", line 3252 in all_reduce
  File "/x/torch/distributed/c10d_logger.py", line 83 in wrapper
  File "/y/ipykernel_12/345.py", line 4 in lesson
  File "/x/picolab/launch/rank.py", line 90 in _call
  File "/x/picolab/launch/rank.py", line 70 in main
  File "/x/multiprocessing/process.py", line 108 in run
"""


def test_a_stack_shows_the_users_thread_from_the_users_function_down():
    assert stacks.readable(DUMP).splitlines() == [
        '  File "/y/ipykernel_12/345.py", line 4, in lesson',
        '  File "/x/torch/distributed/distributed_c10d.py", line 3252, in all_reduce',
    ]
    assert stacks.readable("") == ""


@given(st.lists(st.binary(max_size=40), max_size=30))
def test_lines_arrive_whole_however_the_bytes_are_cut(chunks):
    import contextlib
    import io
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()) as out:
        display = Display(Path(folder), 1)
        for chunk in chunks:
            display.feed(0, chunk)
        display.close()
        assert (Path(folder) / "rank.0.log").read_bytes() == b"".join(chunks)
    lines = b"".join(chunks).split(b"\n")
    last = [lines[-1]] if lines[-1].decode(errors="replace").strip() else []
    expected = [
        "[0] " + line.rstrip(b"\r").rsplit(b"\r", 1)[-1].decode(errors="replace")
        for line in [*lines[:-1], *last]
    ]
    assert out.getvalue() == "".join(line + "\n" for line in expected)


def test_a_progress_bar_shows_its_last_state_and_floods_are_counted(tmp_path, capsys):
    display = Display(tmp_path, 2)
    display.feed(1, b"10 %\r50 %\r100 %\n")
    for i in range(SHOWN_LINES + 10):
        display.feed(0, f"{i}\n".encode())
    display.close()
    out = capsys.readouterr().out
    assert "[1] 100 %\n" in out and "50 %" not in out
    assert "... 11 more lines" in out
    assert display.tail(0)[-1] == str(SHOWN_LINES + 9)
