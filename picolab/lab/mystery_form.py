"""A mystery run in a front end: its looks as buttons, its suspects to choose from.

Everything is the case's own (`exercises.mystery`): the form only calls `picture` and `name`, so
looks and wrong names count as in code, and code that is run beside it shows here too. A look that
was taken can be opened again for nothing, and so no button is ever switched off: the one that has
the keyboard would lose it. Tab goes from look to look, on to the suspects and to "Name it"; the
space bar or Enter presses, arrows choose a suspect (own_keys.py).
"""

import html

from picolab.exercises.mystery import mystery, points
from picolab.lab.choices import STYLE, choices
from picolab.lab.own_keys import own_keys
from picolab.show.front_end import Message, as_widget

__all__ = ["form", "mystery"]


def form(case):
    """The widget for a `MysteryRun`."""
    import ipywidgets as widgets

    story = widgets.HTML(Message(case.story())._repr_html_())
    size = {"width": "8em", "flex": "0 0 auto"}
    buttons = {name: widgets.Button(description=name, layout=size) for name in case.about.looks}
    rows = [
        widgets.HBox([buttons[name], widgets.HTML(html.escape(words))])
        for name, words in case.about.looks.items()
    ]
    status, seen = widgets.HTML(), widgets.VBox()
    suspects = choices(_choices(case))
    name_it = widgets.Button(description="Name it", button_style="primary")
    which = widgets.HTML(f"{STYLE}<b>Which one is it?</b>")
    verdict = widgets.VBox()

    def say(text: str) -> None:
        status.value = f'<span style="opacity:.85">{html.escape(text)}</span>'

    def settled() -> None:
        for name, button in buttons.items():
            button.icon = "check" if name in case.looks else ""
        chosen, options = suspects.value, _choices(case)
        if tuple(suspects.options) != options:
            suspects.options = options
            suspects.value = chosen if chosen in dict(options).values() else None
        say(_status(case))

    def looked(button) -> None:
        heard: list[str] = []

        def hear(text: str) -> None:
            heard.append(text)
            say("".join(heard))

        told, case.say = case.say, hear
        try:
            shown = case.picture(button.description)
        except Exception as failure:
            say(f"{type(failure).__name__}: {failure}")
            return
        finally:
            case.say = told
        seen.children = (as_widget(shown),)

    def named(_) -> None:
        if suspects.value is None:
            say("Choose a suspect first.")
            return
        verdict.children = (as_widget(case.name(suspects.value)),)

    for button in buttons.values():
        button.on_click(looked)
    name_it.on_click(named)
    case.forms.append(settled)
    settled()
    parts = [story, *rows, status, seen, which, suspects, name_it, verdict, own_keys()]
    box = widgets.VBox(parts).add_class("picolab-mystery")
    box.parts = {**buttons, "suspects": suspects, "name": name_it, "status": status}
    box.parts |= {"seen": seen, "verdict": verdict}
    return box


def _choices(case) -> tuple[tuple[str, str], ...]:
    """What stands beside each radio button, and its letter."""
    return tuple(
        (f"{letter}  {of.words}" + (" (wrong)" if letter in case.wrong else ""), letter)
        for letter, of in case.about.letters.items()
    )


def _status(case) -> str:
    """How many looks are left, and what the right name is worth now and after one more."""
    if case.closed:
        return f"Closed, score {case.score}. Looks are free now."
    left = len(case.about.looks) - len(case.looks)
    said = f"{left} look{'s' * (left != 1)} left; the right name is worth {case.worth()} points now"
    if left:
        said += f", {points(len(case.looks) + 1, len(case.wrong))} after another look"
    wrong = f" Wrong so far: {', '.join(case.wrong)}." if case.wrong else ""
    return f"{said}.{wrong}"
