"""The form that asks for a guess: the question, a field or a choice, "Guess" and "Skip".

Buttons only store the answer and uncover what waits for it; nothing here can block. The form can be
used again: a second guess replaces the first.
"""

import html

from picolab.show import read
from picolab.show.guess_figure import value_text

_EXAMPLES = {"bytes": "3.3e6", "%": "12.5"}


def form(guess):
    """The widget for a `Guess`."""
    import ipywidgets as widgets

    question = widgets.HTML(
        '<div style="font-weight:600;white-space:pre-wrap;line-height:1.5">'
        f"{html.escape(guess.question)}</div>"
    )
    if guess.choices is not None:
        field = widgets.RadioButtons(
            options=guess.choices,
            value=guess.value if guess.value in guess.choices else None,
            layout={"width": "max-content"},
        )
    else:
        field = widgets.Text(
            value="" if guess.value is None else str(guess.value),
            placeholder=f"a number, such as {_EXAMPLES.get(guess.unit, 3)}",
            continuous_update=False,
            layout={"width": "22em"},
        )
    send = widgets.Button(description="Guess", button_style="primary", layout={"width": "6em"})
    skip = widgets.Button(description="Skip", layout={"width": "6em"})
    unit = widgets.Label(guess.unit if guess.choices is None else "", layout={"margin": "2px 8px"})
    status = widgets.HTML()

    def say(text: str) -> None:
        status.value = f'<span style="opacity:.8">{html.escape(text)}</span>'

    def sent(_) -> None:
        note = ""
        try:
            if field.value in (None, ""):
                raise ValueError("choose an answer first" if guess.choices else "write a number")
            if guess.choices:
                guess.answer(field.value)
            else:
                typed = read(field.value, guess.unit)
                guess.answer(typed.value)
                note = f" ({typed.note})" if typed.note else ""
        except ValueError as error:
            say(str(error))
            return
        said = value_text(guess.value, guess.unit)
        say(f"your guess: {said}{note}. It is compared below, once the run has measured it.")

    def skipped(_) -> None:
        guess.skip()
        say("skipped: the numbers below are no longer covered")

    send.on_click(sent)
    skip.on_click(skipped)
    say(guess.status())
    if guess.choices is None:
        rows = [question, widgets.HBox([field, unit, send, skip]), status]
    else:
        rows = [question, field, widgets.HBox([send, skip]), status]
    box = widgets.VBox(rows)
    box.parts = {"field": field, "send": send, "skip": skip, "status": status}
    return box
