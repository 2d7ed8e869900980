"""Teach a failure without failing the notebook."""

from types import TracebackType


class expect_failure:
    """The block must fail; then its message is printed and the notebook goes on.

        with pico.expect_failure(ValueError, rank=1) as failure:
            pico.run(fn)
        failure.error.rank

    what    an exception type (that of the rank, or of the launcher), or a kind: "signal", "exit",
            "hang", ...
    rank    the rank that must be the cause
    Raises AssertionError if nothing failed, and lets through a failure of another sort.
    """

    def __init__(self, what: type[BaseException] | str | None = None, rank: int | None = None):
        self._what, self._rank = what, rank
        self.error: BaseException | None = None

    def __enter__(self) -> "expect_failure":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if error is None:
            raise AssertionError("this was expected to fail, and it did not")
        if not isinstance(error, Exception) or not self._matches(error):
            return False
        self.error = error
        print(f"As expected, {type(error).__name__}: {error}")
        return True

    def _matches(self, error: BaseException) -> bool:
        if self._rank is not None and getattr(error, "rank", None) != self._rank:
            return False
        if self._what is None:
            return True
        if isinstance(self._what, str):
            return getattr(error, "kind", None) == self._what
        if isinstance(error, self._what) or isinstance(error.__cause__, self._what):
            return True
        return str(getattr(error, "what", "")).startswith(f"{self._what.__name__}:")
