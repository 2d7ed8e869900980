"""One setting in which an answer is judged."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Case:
    """One setting in which the learner's function is run, in fresh ranks."""

    layout: str
    """the ranks and their mesh, for instance "dp2tp2"; the axis "world" is always there"""
    about: str = ""
    """what is special about it, in a few words: shown when it is this case that fails"""
    values: dict = field(default_factory=dict)
    """whatever the judge needs: sizes, seeds"""
    if_apart: str = ""
    """said if the ranks enter different collectives here, or wait for ever: the usual reason"""
