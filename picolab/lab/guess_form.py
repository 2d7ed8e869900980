"""The form that asks for a guess: the question, a field or a choice, "Guess" and "Skip".

Enter in the field does what the button does; leaving the field does nothing. Answering only stores
the answer and uncovers what waits for it; nothing here can block. The form can be used again: a
second guess replaces the first. It stands under the question, and in what is covered until then.
"""

import html

from picolab.lab.choices import STYLE, choices
from picolab.lab.own_keys import own_keys
from picolab.show import read
from picolab.show.guess_figure import value_text

_EXAMPLES = {"bytes": "3.3e6", "%": "12.5"}
# What was typed travels with the key: a front end may send a field's value later than the key.
_ENTER_JS = """
function render({ model, el }) {
    let box = null;
    const pressed = event => {
        if (event.key !== 'Enter' || event.isComposing || event.target.type !== 'text') return;
        event.preventDefault();
        model.send({ typed: event.target.value });
    };
    const find = () => {
        box = el.closest('.picolab-guess');
        if (box) box.addEventListener('keydown', pressed, true);
        else timer = setTimeout(find, 50);
    };
    let timer = setTimeout(find, 0);
    return () => {
        clearTimeout(timer);
        if (box) box.removeEventListener('keydown', pressed, true);
    };
}
export default { render };
"""


def form(guess, lead: str = ""):
    """The widget for a `Guess`; `lead` is said above the question."""
    import anywidget
    import ipywidgets as widgets

    lead = f'<div style="white-space:pre-wrap">{html.escape(lead)}</div>' if lead else ""
    question = widgets.HTML(
        f'{STYLE}{lead}<div style="font-weight:600;white-space:pre-wrap;line-height:1.5">'
        f"{html.escape(guess.question)}</div>"
    )
    if guess.choices is not None:
        field = choices(guess.choices, guess.value if guess.value in guess.choices else None)
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

    def entered(_, content, buffers) -> None:
        if "typed" in content:
            field.value = content["typed"]
            sent(None)

    def skipped(_) -> None:
        guess.skip()
        say("skipped: the numbers below are no longer covered")

    def settled() -> None:  # perhaps in the other form
        if guess.choices is None:
            field.value = "" if guess.value is None else str(guess.value)
        else:
            field.value = guess.value
        say(guess.status())

    guess.forms.append(settled)
    send.on_click(sent)
    skip.on_click(skipped)
    say(guess.status())
    if guess.choices is None:
        enter = anywidget.AnyWidget(_esm=_ENTER_JS)
        enter.on_msg(entered)
        rows = [question, widgets.HBox([field, unit, send, skip, enter]), status]
    else:
        rows = [question, field, widgets.HBox([send, skip]), status, own_keys()]
    box = widgets.VBox(rows).add_class("picolab-guess")
    box.parts = {"field": field, "send": send, "skip": skip, "status": status}
    if guess.choices is None:
        box.parts["enter"] = enter
    return box
