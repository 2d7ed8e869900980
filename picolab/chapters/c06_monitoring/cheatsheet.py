"""The cheat sheet of chapter 6, as data. What a line is, and how it is worked out and rendered:
picolab/interview/cheatsheet.py.
"""

from picolab.interview.cheatsheet import Line, Section, Sheet

_ALARMS = "tests/unit/costs/test_alarms.py"
_NUMBERS = "tests/chapters/c06_monitoring/test_bank_numbers.py"

_SECTIONS = [
    Section(
        "How good a rule is",
        "p a probability, D shift less slack in deviations, b limit plus 1.166",
        [
            Line(
                "at least one of n ranks pauses",
                "1 - (1 - p)**n",
                "p=1e-4, n=1024",
                "pico.costs.at_least(1, 1024, 1e-4)",
                "%",
                _NUMBERS,
                "tested",
            ),
            Line(
                "twice in a row, by chance",
                "p**2",
                "p=1e-3",
                "pico.costs.at_least(2, 2, 1e-3)",
                "",
                _ALARMS,
                "tested",
            ),
            Line(
                "eight of ten, of a rank that is above the limit in nine of ten steps",
                "45*p**8*(1 - p)**2 + 10*p**9*(1 - p) + p**10",
                "p=0.9",
                "pico.costs.at_least(8, 10, 0.9)",
                "%",
                "scale-alarms-compare",
                "computed",
            ),
            Line(
                "steps until a CUSUM finds a shift of one deviation",
                "(e**(-2*D*b) + 2*D*b - 1)/(2*D**2)",
                "D=0.5, b=6.166, e=2.718281828459045",
                "pico.costs.cusum_run_length(1, 0.5, 5)",
                "",
                _ALARMS,
                "tested",
            ),
            Line(
                "steps between its false alarms",
                "(e**(-2*D*b) + 2*D*b - 1)/(2*D**2)",
                "D=-0.5, b=6.166, e=2.718281828459045",
                "pico.costs.cusum_run_length(0, 0.5, 5)",
                "",
                _ALARMS,
                "tested",
            ),
        ],
    ),
    Section(
        "What failures cost",
        "d seconds of a save, M seconds between failures",
        [
            Line(
                "best interval between saves",
                "sqrt(2*d*M)",
                "d=60, M=10000",
                "pico.costs.checkpoint_interval(60, 10000)",
                "s",
                "answer-compare",
                "computed",
            ),
            Line(
                "lost to saving and repeating, at that interval",
                "sqrt(2*d/M)",
                "d=60, M=10000",
                "pico.costs.checkpoint_waste(interval, 60, 10000)",
                "%",
                "answer-compare",
            ),
        ],
    ),
]

SHEET = Sheet(
    stem="cheatsheet_monitoring",
    title="picolab, chapter 6: alarms in numbers",
    notebook="06_monitoring",
    setup={"interval": "pico.costs.checkpoint_interval(60, 10000)"},
    sections=_SECTIONS,
)
