"""What a bank asks, without a word of its answers: for somebody who answers it blind.

prompts(bank)      Markdown: each question with its conventions, looks to choose from, coding task
                   and numbers; no values, no rubric, no steps in their order
"""

from picolab.interview.bank import Bank, Language
from picolab.interview.words import WORDS


def prompts(bank: Bank, language: Language = "en", topic: str | None = None) -> str:
    words, lines = WORDS[language], []
    for one in bank.questions(topic):
        question = bank.find(one.id, language)
        about = f"{question.kind}, {bank.area(question.area, language)}, L{question.level}"
        minutes = words["minutes"].format(m=question.minutes)
        lines += [f"## {question.id}: {question.title}", "", f"{about}, {minutes}", ""]
        lines += [question.question.strip(), ""]
        if question.conventions:
            lines += [f"{words['conventions']}:", ""]
            lines += [*(f"* {said}" for said in question.conventions), ""]
        if question.exercise:
            lines += [f"`pico.exercise({question.exercise!r})`", ""]
        offered = [question.steps[index].look for index in question.mixed()]
        if offered:
            lines += [words["take"], "", *(f"* {look}" for look in offered), ""]
        for index, numeric in enumerate(question.numeric, 1):
            unit = words["asked in"].format(unit=numeric.unit) if numeric.unit else ""
            said = f" ({numeric.convention})" if numeric.convention else ""
            lines.append(f"{index}. {numeric.prompt}{said}{unit}")
        lines.append("")
    return "\n".join(lines)
