"""The list of all questions at the end of interview_questions/README.md, made from the banks.

render(bank)      the list as Markdown
write(folder)     put between the two markers of README.md (`make refresh` does)
"""

from pathlib import Path

from picolab.interview import bank as banks
from picolab.interview import topics
from picolab.interview.bank import Bank, BankError, Question
from picolab.show.files import write_beside

BEGIN = "<!-- From here on made by `make refresh`; what is written here by hand is lost. -->"
END = "<!-- End of what `make refresh` makes. -->"


def render(bank: Bank) -> str:
    """By topic and area, in the order of the bank."""
    lines = []
    for topic, held in bank.topics.items():
        numeric = sum(bool(question.numeric) for question in held.questions)
        minutes = sum(question.minutes for question in held.questions)
        lines += [
            f"### {held.title} ({held.title_zh})",
            "",
            f"[`{topic}.yaml`]({topic}.yaml): {len(held.questions)} questions, {numeric} of them "
            f"ask for a number; {minutes / 60:.0f} hours in all.",
            "",
        ]
        used = {question.area: question.area for question in held.questions}
        for area, title in topics.AREAS.get(topic, used).items():
            questions = [q for q in held.questions if q.area == area]
            if questions:
                lines += [f"#### {title}", ""]
                lines += ["| id | question | level | kind | minutes | worked out in |"]
                lines += ["|---|---|---|---|---|---|"]
                lines += [_row(bank.find(question.id)) for question in questions] + [""]
    return "\n".join(lines)


def _row(question: Question) -> str:
    links = []
    for cell in question.cells:
        notebook, _, name = cell.partition("#")
        # JupyterLab goes to the cell of that id; other readers open the notebook.
        links.append(f"[{name}](../{notebook}#cell-id={name})")
    title = question.title.replace("|", "\\|")
    number = ", numeric" if question.numeric and question.kind != "numeric" else ""
    return (
        f"| {question.id} | {title} | {question.level} | {question.kind}{number} "
        f"| {question.minutes} | {', '.join(links)} |"
    )


def filled(readme: str, listing: str) -> str:
    """The README with the list in its place. BankError if the two markers are not there, once."""
    parts = readme.split(BEGIN)
    if len(parts) != 2 or readme.count(END) != 1 or END not in parts[1]:
        raise BankError(f"README.md has no place for the index, between {BEGIN} and {END}")
    return f"{parts[0]}{BEGIN}\n\n{listing}\n{END}{parts[1].partition(END)[2]}"


def write(folder: Path) -> Path:
    """The README of the folder with its index made again."""
    banks.load.cache_clear()
    path = folder / "README.md"
    text = filled(path.read_text(encoding="utf-8"), render(banks.load(folder)))
    write_beside(path, text)
    return path
