"""The closing quiz of a chapter asks only what the chapter teaches, by the chapter's own record.

Wrong versions these catch: a question of the list that the bank does not have, a quiz that draws
from the whole bank.
"""

import pytest

from picolab.chapters import all_chapters, register
from picolab.interview.bank import load
from picolab.lab import quiz

register()
BANK = load()


@pytest.mark.parametrize("chapter", all_chapters(), ids=lambda chapter: chapter.notebook)
def test_the_list_is_of_the_bank_and_touches_several_areas(chapter):
    found = [BANK.find(id) for id in chapter.taught]
    assert len(set(chapter.taught)) == len(found) >= 9
    assert len({question.area for question in found}) >= 4


def check_drawn(asked, chapter):
    drawn = []
    while asked.session.question is not None and len(drawn) < 40:
        drawn.append(asked.session.question.id)
        asked.session.skip()
        asked.session.draw()
    assert drawn and set(drawn) <= set(chapter.taught), drawn


@pytest.mark.parametrize("chapter", all_chapters(), ids=lambda chapter: chapter.notebook)
def test_nothing_else_is_asked(chapter):
    check_drawn(quiz(chapter.topic, n=40, taught=True, live=False), chapter)


def test_a_quiz_of_the_whole_bank_is_noticed():
    [chapter, *_] = all_chapters()
    with pytest.raises(AssertionError):
        check_drawn(quiz(chapter.topic, n=40, live=False), chapter)
