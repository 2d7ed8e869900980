"""The cheat sheet as one HTML page: a sheet of A4 when printed, readable on light and dark screens.

Nothing is loaded from anywhere; the style is in the page.
"""

import html

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1f24; --soft: #5c626b; --rule: #c9cdd3; --page: #fff;
  --value: #1b5fd0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e6ea; --soft: #a0a6af; --rule: #43474e;
  --page: #111; --value: #7aa8ff; } }
body { margin: 1.2rem auto; max-width: 68rem; padding: 0 1rem; background: var(--page);
  color: var(--ink); font: 13px/1.35 system-ui, sans-serif; }
h1 { font-size: 1.35em; margin: 0 0 .3em }
h2 { font-size: 1.05em; margin: 0; break-after: avoid }
p { margin: 0 0 .4em; color: var(--soft); break-after: avoid }
main { columns: 2; column-gap: 1.6rem }
section { margin: 0 0 .8em }
article { break-inside: avoid; border-top: 1px solid var(--rule); padding: .15em 0 }
.row { display: flex; justify-content: space-between; align-items: baseline; gap: .8em }
.row i { font-family: ui-serif, Georgia, serif; padding-left: .4em }
.value { color: var(--value); font-weight: 600; white-space: nowrap; margin-left: auto }
code { font: .82em ui-monospace, monospace; color: var(--soft); overflow-wrap: anywhere }
a { color: var(--soft); font-size: .85em; white-space: nowrap }
@media (max-width: 52rem) { main { columns: 1 } }
@media print {
  @page { size: A4; margin: 8mm }
  :root { color-scheme: light; --ink: #000; --soft: #444; --rule: #bbb; --page: #fff;
    --value: #124a9e; }
  body { margin: 0; max-width: none; padding: 0; font-size: 6.6pt; line-height: 1.2 }
  main { columns: 2; column-gap: 5mm }
  section { margin: 0 0 .5em }
  p { margin: 0 0 .15em }
  article { padding: .06em 0 }
}
"""


def page(sheet) -> str:
    """`STEM.html` of a Sheet."""
    title, models = sheet.title, "; ".join(f"{name} = {text}" for name, text in sheet.setup.items())
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
            f"<h1>{html.escape(title)}</h1>",
            "<p>No number here is typed: each is what its call returned when <code>make "
            "refresh</code> rendered the page. GB is 1e9 bytes. <i>Measured</i>: the cell holds a "
            "run against the formula; <i>computed</i>: it puts the formula to use; <i>tested</i>: "
            f"the test measures it, no cell does.</p>\n<p><code>{html.escape(models)}</code></p>",
            "<main>",
            *(_section(sheet, section) for section in sheet.sections),
            "</main>\n</body>\n</html>\n",
        ]
    )


def _section(sheet, section) -> str:
    letters = f"<p>{html.escape(section.letters)}</p>" if section.letters else ""
    lines = "\n".join(_line(sheet, line) for line in section.lines)
    return f"<section>\n<h2>{html.escape(section.title)}</h2>{letters}\n{lines}\n</section>"


def _line(sheet, line) -> str:
    formula = f" <i>{html.escape(line.formula_text)}</i>" if line.formula else ""
    return (
        f'<article><div class="row"><span>{html.escape(line.what)}{formula}</span>'
        f'<span class="value">{html.escape(sheet.value_text(line))}</span></div>'
        f'<div class="row"><code>{html.escape(line.call)}</code>'
        f'<a href="{html.escape(sheet.link(line))}">{line.how}: {html.escape(line.place)}</a></div>'
        "</article>"
    )
