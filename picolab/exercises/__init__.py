"""Exercises: a statement, a stub, three hints, a worked solution, and a judge that runs yours in
real ranks.

    exercise = pico.exercise("4d.ring.all-reduce")     # shows the statement
    exercise.check(my_ring_all_reduce)                 # todo, right, or what is wrong
    exercise.hint()                                    # one more each time
    exercise.solution()                                # after a try, or with now=True

The engine: no exercise is here. One module of a chapter is one exercise, and the chapter registers
it (catalogue.py); definition.py says what it is made of, attempt.py what a judge may ask in a rank,
check.py how a verdict comes about, record.py what is remembered, mystery.py the runs whose fault
has to be found.
"""

from picolab.exercises.catalogue import exercise, ids
from picolab.exercises.definition import Case, Exercise
from picolab.exercises.record import progress

__all__ = ["Case", "Exercise", "exercise", "ids", "progress"]
