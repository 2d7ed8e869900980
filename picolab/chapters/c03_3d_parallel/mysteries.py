"""The mystery runs of chapter 3. How a case is made: picolab/exercises/mystery_case.py."""

from picolab.exercises.mystery_case import Mystery

CASES: tuple[Mystery, ...] = ()
