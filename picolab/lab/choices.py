"""Radio buttons whose options take a second line where the page is narrow, and are not cut off."""

STYLE = (
    "<style>.picolab-choices label { display: flex; align-items: flex-start; gap: .4em;"
    " height: auto !important; line-height: 1.4 !important; white-space: normal !important;"
    " padding: 2px 0 } .picolab-choices label > input { flex: 0 0 auto; order: -1 }</style>"
)
"""To be put into an HTML widget beside them."""


def choices(options, value=None):
    """The widget."""
    import ipywidgets as widgets

    layout = {"width": "auto", "max_width": "100%"}
    field = widgets.RadioButtons(options=options, value=value, layout=layout)
    field.add_class("picolab-choices")
    return field
