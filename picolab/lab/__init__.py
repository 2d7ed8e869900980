"""The notebook's face: guess and compare, the live dashboard, the panel, the quiz, mystery runs.

Light to import: ipywidgets and plotly are imported when something is drawn, torch when something
runs.
"""

from picolab import chapters
from picolab.exercises.mystery import register_form
from picolab.lab.budget_panel import BudgetPanel, budget_panel
from picolab.lab.dashboard import Dashboard, dashboard
from picolab.lab.doctor import doctor
from picolab.lab.guesses import Comparison, Disagreement, Guess, compare, guess, scoreboard
from picolab.lab.mystery_form import form, mystery
from picolab.lab.package_source import Source, source
from picolab.lab.panel import Panel, panel
from picolab.lab.placement import placement_figure
from picolab.lab.quiz_card import Quiz, quiz
from picolab.lab.report import report
from picolab.lab.timetable import timetable

chapters.register()
register_form(form)

# The functions `budget_panel`, `dashboard`, `doctor`, `panel`, `report` and `timetable` have the
# names of their modules. They are imported here at once, so that these names are the functions from
# the first moment on: importing a module later does not put it in their place.
__all__ = [
    "BudgetPanel",
    "Comparison",
    "Dashboard",
    "Disagreement",
    "Guess",
    "Panel",
    "Quiz",
    "Source",
    "budget_panel",
    "compare",
    "dashboard",
    "doctor",
    "guess",
    "mystery",
    "panel",
    "placement_figure",
    "quiz",
    "report",
    "scoreboard",
    "source",
    "timetable",
]
