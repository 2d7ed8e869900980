"""What a chapter says of itself, as plain data: the engines find its parts by this."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from picolab.exercises.catalogue import About


@dataclass(frozen=True)
class Chapter:
    """One chapter. Modules are named, not imported: a name costs nothing and takes no torch."""

    notebook: str
    """the name of its notebook, without .ipynb"""
    key: str
    """what the ids of its exercises and guesses begin with"""
    title: str
    evenings: tuple[tuple[str, int, str], ...]
    """rows of the timetable: notebooks, minutes, what it is about"""
    topic: str
    """its bank: interview_questions/TOPIC.yaml"""
    areas: Mapping[str, str]
    """of the bank: key -> heading"""
    counts: Mapping[str, float]
    """of the bank: see interview/topics.py"""
    taught: tuple[str, ...]
    """of the bank the questions that the chapter itself answers: its closing quiz asks these"""
    exercises: Mapping[str, About]
    """by id; those of the bank's coding tasks too"""
    mysteries: str
    """the module that has them as CASES"""
    cheatsheet: str
    """the module that has it as SHEET; figures are names of the chapter's package"""
    covered: Mapping[str, str] = field(default_factory=dict)
    """what of the package solves an exercise, name -> id: `pico.source` shows it after a try"""
