"""The cheat sheet of chapter 3, as data. What a line is, and how it is worked out and rendered:
picolab/interview/cheatsheet.py.
"""

from picolab.interview.cheatsheet import Section, Sheet

_SECTIONS: list[Section] = []

SHEET = Sheet(
    stem="cheatsheet_3d",
    title="3D parallelism: formulas and numbers",
    notebook="03_3d_parallel",
    setup={},
    sections=_SECTIONS,
)
