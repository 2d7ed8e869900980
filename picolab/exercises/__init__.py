"""Exercises: a statement, a stub, three hints, a worked solution, and a judge that runs yours in
real ranks.

    exercise = pico.exercise("4d.ring.all-reduce")     # shows the statement
    exercise.check(my_ring_all_reduce)                 # todo, right, or what is wrong
    exercise.hint()                                    # one more each time
    exercise.solution()                                # after a try, or with now=True

One module is one exercise (its names are listed in catalogue.py); definition.py says what it is
made of, attempt.py what a judge may ask in a rank, check.py how a verdict comes about, record.py
what is remembered, mystery.py the runs whose fault has to be found.
"""

from picolab.exercises.catalogue import exercise, ids
from picolab.exercises.definition import Case, Exercise, Mutant
from picolab.exercises.record import progress

__all__ = ["Case", "Exercise", "Mutant", "exercise", "ids", "progress"]
