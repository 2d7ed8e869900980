"""What ranks print: labelled and line by line in the cell, bounded there, whole in the run
directory.
"""

from pathlib import Path

from picolab.show.files import private
from picolab.show.plain import put

SHOWN_LINES = 300
LINE_BYTES = 4_000


class Display:
    """Takes raw bytes of each rank, writes them to `rank.RANK.log`, and prints complete lines as
    `[RANK] line`. Of a line that never ends no more than its beginning is kept here.
    """

    def __init__(self, run_dir: Path, world_size: int, quiet: bool = False):
        self._run_dir, self._quiet = run_dir, quiet
        self._lines = [_Line() for _ in range(world_size)]
        self._tail: list[list[str]] = [[] for _ in range(world_size)]
        self._shown = self._hidden = 0
        self._files: list | None = []
        try:
            for rank in range(world_size):
                path = run_dir / f"rank.{rank}.log"
                self._files.append(open(path, "wb", buffering=0, opener=private))  # noqa: SIM115
        except OSError as error:
            self._give_up(error)

    def feed(self, rank: int, data: bytes) -> None:
        if self._files is not None:
            try:
                view = memoryview(data)
                while view:
                    view = view[self._files[rank].write(view) :]
            except OSError as error:
                self._give_up(error)
        *ended, rest = data.split(b"\n")
        for part in ended:
            self._lines[rank].add(part)
            self._show(rank)
        self._lines[rank].add(rest)

    def close(self) -> None:
        """Print what was not ended by a newline, and how much was not shown."""
        for rank, line in enumerate(self._lines):
            if line.text().strip():
                self._show(rank)
        if self._hidden:
            kept = "not kept" if self._files is None else f"all in {self._run_dir}/rank.*.log"
            self._print(f"... {self._hidden} more lines, {kept}")
            self._hidden = 0
        for file in self._files or ():
            file.close()
        self._files = None

    def tail(self, rank: int) -> list[str]:
        """The last lines a rank printed, for a failure report."""
        return self._tail[rank]

    def say(self, sentence: str) -> None:
        """A sentence of the launcher's own."""
        self._print(sentence)

    def _show(self, rank: int) -> None:
        text = self._lines[rank].text()
        self._lines[rank] = _Line()
        self._tail[rank] = [*self._tail[rank][-19:], text]
        if self._shown < SHOWN_LINES:
            self._shown += 1
            self._print(f"[{rank}] {text}")
        else:
            self._hidden += 1

    def _print(self, text: str, always: bool = False) -> None:
        if always or not self._quiet:
            put(text)

    def _give_up(self, error: OSError) -> None:
        for file in self._files or ():
            file.close()
        self._files = None
        self._print(
            f"what ranks print is no longer kept in {self._run_dir}: {error.strerror or error}",
            always=True,
        )


class _Line:
    """A line as it grows: what follows its last carriage return (a progress bar writes itself over
    and over), and of that the first bytes."""

    def __init__(self):
        self._kept, self._more, self._turned = b"", 0, False

    def add(self, part: bytes) -> None:
        body = part.rstrip(b"\r")  # a carriage return begins anew only if something follows it
        if body:
            _, inside, rest = body.rpartition(b"\r")
            if inside or self._turned:
                self._kept, self._more = b"", 0
            room = LINE_BYTES - len(self._kept)
            self._kept += rest[:room]
            self._more += len(rest[room:])
        self._turned = part.endswith(b"\r") or (self._turned and not body)

    def text(self) -> str:
        text = self._kept.decode(errors="replace")
        return f"{text} ... ({self._more:,} more bytes)" if self._more else text
