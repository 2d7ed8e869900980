"""The planner: every layout of so many devices, with what it costs, or what kills it. No torch.

pico.plan("llama-3-70b", 256, "h100", seq=8192, global_batch=1024)

request.py    what is asked, with names resolved
practice.py   how good and of what kind the code is: efficiencies, fitted once
costing.py    bytes and seconds of one candidate
verdict.py    a layout lives, or what kills it first
bounds.py     what no layout of a split can beat
search.py     all layouts, most of them told from the bounds
changes.py    what would save one that died
published.py  runs from papers, to hold it all against
"""

from picolab.planner.plan import Judged, Plan, plan
from picolab.planner.practice import FITTED, PRACTICES, Efficiency, Practice
from picolab.planner.published import PUBLISHED, Published
from picolab.planner.request import Request
from picolab.planner.verdict import Killed, Verdict

__all__ = [
    "FITTED",
    "PRACTICES",
    "PUBLISHED",
    "Efficiency",
    "Judged",
    "Killed",
    "Plan",
    "Practice",
    "Published",
    "Request",
    "Verdict",
    "plan",
]
