"""The mystery runs of chapter 6: none yet; they come with its notebook."""

from picolab.exercises.mystery_case import Mystery

CASES: tuple[Mystery, ...] = ()
