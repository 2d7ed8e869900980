"""What ranks print: labelled and line by line in the cell, bounded there, whole in the run
directory.
"""

from pathlib import Path

SHOWN_LINES = 300


class Display:
    """Takes raw bytes of each rank, writes them to `rank.RANK.log`, and prints complete lines as
    `[RANK] line`.
    """

    def __init__(self, run_dir: Path, world_size: int, quiet: bool = False):
        self._run_dir, self._quiet = run_dir, quiet
        self._partial = [b""] * world_size
        self._tail: list[list[str]] = [[] for _ in range(world_size)]
        self._shown = self._hidden = 0
        self._files: list | None = []
        try:
            for rank in range(world_size):
                self._files.append(open(run_dir / f"rank.{rank}.log", "wb", buffering=0))  # noqa: SIM115
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
        *lines, rest = (self._partial[rank] + data).split(b"\n")
        # A line that never ends (a progress bar) is kept short: only what follows its last
        # carriage return.
        self._partial[rank] = rest.rsplit(b"\r", 1)[-1] if len(rest) > 65_536 else rest
        for line in lines:
            self._line(rank, line)

    def close(self) -> None:
        """Print what was not ended by a newline, and how much was not shown."""
        for rank, rest in enumerate(self._partial):
            if rest.strip():
                self._line(rank, rest)
            self._partial[rank] = b""
        if self._hidden:
            self._print(
                f"... {self._hidden} more lines, all in {self._run_dir}/rank.*.log", always=True
            )
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

    def _line(self, rank: int, line: bytes) -> None:
        text = line.rstrip(b"\r").rsplit(b"\r", 1)[-1].decode(errors="replace")
        self._tail[rank] = [*self._tail[rank][-19:], text]
        if self._shown < SHOWN_LINES:
            self._shown += 1
            self._print(f"[{rank}] {text}")
        else:
            self._hidden += 1

    def _print(self, text: str, always: bool = False) -> None:
        if always or not self._quiet:
            print(text, flush=True)

    def _give_up(self, error: OSError) -> None:
        for file in self._files or ():
            file.close()
        self._files = None
        self._print(
            f"what ranks print is no longer kept in {self._run_dir}: {error.strerror}", always=True
        )
