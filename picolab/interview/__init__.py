"""Interview practice: question banks whose answers are computed, and a partner that remembers.

    bank.py        questions as data, read from interview_questions/TOPIC.yaml and checked
    values.py      the numbers in them: expressions over costs, schedules and specs
    answers.py     a typed number with its unit, compared; rubric ticks, a proposed grade
    reviews.py     the append-only log of what was answered, and what is due (FSRS)
    session.py     draw, think, reveal, grade: a state machine without a face
    mock.py        forty-five minutes, and a report
    statistics.py  how much is known, what comes, is confidence earned
    sources.py     what the questions cite
    lint.py        what must hold of every bank, with lint_places, lint_values, lint_texts.py and
                   typed_numbers.py
    index.py       the generated list of all questions
    anki.py        the same questions as an Anki deck
    words.py       what both faces say, in both languages
    terminal.py    the face in a terminal; the one in a notebook is lab/quiz_card.py

Takes no torch: a coding task says what to install.
"""
