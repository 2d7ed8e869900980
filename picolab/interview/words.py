"""The words of both faces, in both languages.

WORDS       what a terminal and a notebook say, by key
spoken      a sentence of the engine (answers.py, reviews.py, statistics.py), which speaks English,
            in the face's language

The sentences are told apart by their pattern: so the engine needs no language, and a test asks that
none of them is left in English.
"""

import re

from picolab.interview.bank import Language

WORDS: dict[str, dict[str, str]] = {
    "en": {
        "question": "Question {n} of {of}",
        "minutes": "about {m} min",
        "conventions": "Conventions",
        "think": "Answer aloud. Keywords to keep, if you like (an empty line ends):",
        "confidence": "How sure are you? 1 no idea, 2 unsure, 3 fairly, 4 sure (Enter: not said)",
        "number": "{prompt}{unit} (Enter: pass)",
        "asked in": " [in {unit}]",
        "answer": "Answer",
        "steps": "In this order",
        "took": "You took {took} of {planned}.",
        "rubric": "What an interviewer would look for",
        "must": " (must)",
        "flags": "Red flags",
        "followups": "Follow-ups",
        "read": "Read",
        "ticks": "Which did you say? Numbers, such as 1 3 (a: all, Enter: none)",
        "said flags": "Did you say one of the red flags? Letters, such as a (Enter: none)",
        "grade": "Grade: {choices} (Enter: {proposed}, {why})",
        "again": "again", "hard": "hard", "good": "good", "easy": "easy",
        "next": "Comes again on {day}.",
        "skip": "(s: skip, q: stop)",
        "skipped": "Skipped; nothing was written.",
        "stopped": "Stopped. The question that was open is not written; {n} graded.",
        "done": "{n} graded, {score:.0%} of the points on average.",
        "nothing": "Nothing is due; the next comes on {day}. Without {due}, new ones come too.",
        "nothing at all": "Nothing is due, and nothing was graded yet. Without {due}, new ones "
        "come.",
        "all seen": "All of these were seen, and none is due; the next comes on {day}.",
        "no reviews": "Nothing is graded yet, so there is nothing to count: `picolab quiz` asks "
        "the first of {n} questions, `picolab quiz list` shows them all.",
        "none graded": "Nothing was graded, and nothing was written.",
        "quota": "{q} new ones a day are enough to have seen all before {until}.",
        "part": "Part: {part}. {left} minutes left.",
        "time": "The {minutes} minutes are over.",
        "report": "Report: {path}",
        "code": "This one is judged in real ranks. The stub is in {path}; edit it there.",
        "check": "c: check it, Enter: go on",
        "no torch": "It runs in real ranks and needs PyTorch: "
        "pip install -e '.[torch]' in the checkout.",
        # The notebook's own.
        "keywords": "Answer aloud. Keywords to keep, if you like:",
        "how sure": "How sure are you?",
        "sure 1": "1 no idea", "sure 2": "2 unsure", "sure 3": "3 fairly sure", "sure 4": "4 sure",
        "for instance": "for instance {example}",
        "first counts": "For the grade, the first answer counts.",
        "show answer": "Show answer", "skip it": "Skip", "stop": "Stop",
        "go on": "Next question", "finish": "Finish", "deepen": "Deepen",
        "clock": "{took} of {planned}",
        "over": "{took}: more than the planned {planned}, and nothing is cut off",
        "points": "{n} points", "one point": "1 point",
        "tick": "What an interviewer would look for. Tick what you said:",
        "tick flags": "Red flags. Tick what you said:",
        "proposed": "Proposed: {grade} ({why})",
        "written": "Written: {grade}, {score:.0%} of the points.",
        "not written": "Not written: {error}. The question stays open; grade again.",
        "copy": "Copy this into a cell, write your version, run it, then come back:",
        "static": "To practise: JupyterLab and `pico.quiz()`, or `picolab quiz` in a terminal.",
        "summary": "Practice: {n} graded, {score:.0%} of the points on average",
        "columns": "question|area|level|score|grade|confidence|took (planned)|comes again",
        "no report": "The report could not be written ({error}); here it is.",
        "warm-up": "warm-up", "deep": "deep", "numeric": "numeric", "diagnosis": "diagnosis",
    },
    "zh": {
        "question": "第 {n} 题，共 {of} 题",
        "minutes": "约 {m} 分钟",
        "conventions": "约定",
        "think": "请口头作答。可写下关键词（空行结束）：",
        "confidence": "有多大把握？1 没有，2 不太确定，3 比较确定，4 确定（回车：不说）",
        "number": "{prompt}{unit}（回车：跳过）",
        "asked in": "［单位 {unit}］",
        "answer": "答案",
        "steps": "按此顺序排查",
        "took": "用时 {took}，计划 {planned}。",
        "rubric": "面试官会看的要点",
        "must": "（必须）",
        "flags": "危险信号",
        "followups": "追问",
        "read": "延伸阅读",
        "ticks": "你说到了哪几点？例如 1 3（a：全部，回车：没有）",
        "said flags": "说出了哪条危险信号？例如 a（回车：没有）",
        "grade": "评分：{choices}（回车：{proposed}，{why}）",
        "again": "重来", "hard": "困难", "good": "良好", "easy": "轻松",
        "next": "下次复习：{day}。",
        "skip": "（s：跳过，q：结束）",
        "skipped": "已跳过，未记录。",
        "stopped": "已结束。未评分的题不记录；已评分 {n} 题。",
        "done": "已评分 {n} 题，平均得分 {score:.0%}。",
        "nothing": "没有到期的题。下一题在 {day} 到期；不加 {due} 时也会出新题。",
        "nothing at all": "没有到期的题，也还没有评过分。不加 {due} 时会出新题。",
        "all seen": "这些题都看过了，没有到期的；下一题在 {day} 到期。",
        "no reviews": "还没有评过分，无从统计：`picolab quiz` 会从 {n} 道题中出题，"
        "`picolab quiz list` 列出全部。",
        "none graded": "没有评分，也没有记录。",
        "quota": "每天 {q} 道新题，就能在 {until} 之前全部看过一遍。",
        "part": "环节：{part}。还剩 {left} 分钟。",
        "time": "{minutes} 分钟到了。",
        "report": "报告：{path}",
        "code": "这道题会在真实的 rank 里评判。代码模板在 {path}，请在那里修改。",
        "check": "c：检查，回车：继续",
        "no torch": "它要在真实的 rank 里运行，需要 PyTorch："
        "在源码目录里 pip install -e '.[torch]'。",
        # The notebook's own.
        "keywords": "请口头作答。可写下关键词：",
        "how sure": "有多大把握？",
        "sure 1": "1 没有", "sure 2": "2 不太确定", "sure 3": "3 比较确定", "sure 4": "4 确定",
        "for instance": "例如 {example}",
        "first counts": "评分以第一次的回答为准。",
        "show answer": "看答案", "skip it": "跳过", "stop": "结束",
        "go on": "下一题", "finish": "完成", "deepen": "深入追问",
        "clock": "{took} / {planned}",
        "over": "{took}：已超过计划的 {planned}，不会中断",
        "points": "{n} 分", "one point": "1 分",
        "tick": "面试官会看的要点，勾选你说到的：",
        "tick flags": "危险信号，勾选你说出的：",
        "proposed": "建议评分：{grade}（{why}）",
        "written": "已记录：{grade}，得分 {score:.0%}。",
        "not written": "未能记录：{error}。这道题仍然打开，请再评一次。",
        "copy": "把下面的代码复制到一个单元格，写出你的版本并运行，然后回到这里：",
        "static": "练习方式：在 JupyterLab 里用 `pico.quiz()`，或在终端里用 `picolab quiz`。",
        "summary": "练习：已评分 {n} 题，平均得分 {score:.0%}",
        "columns": "题目|领域|级别|得分|评分|把握|用时（计划）|下次复习",
        "no report": "报告无法写入（{error}），内容如下。",
        "warm-up": "热身", "deep": "深入", "numeric": "计算", "diagnosis": "排查",
    },
}  # fmt: skip

# English sentence -> Chinese; the groups are carried over, and translated themselves where they
# are sentences.
_SENTENCES = (
    (r"[Rr]ead as ([^()]+) \(([^()]+)\)\. (.+)", "读作 {0}（{1}）。{2}"),
    (r"(thousands \w+|decimal comma|calculated|a share|\S+ is [\d,]+), (.+)", "{0}，{1}"),
    (r"thousands comma", "逗号分千位"),
    (r"thousands points", "点分千位"),
    (r"decimal comma", "逗号作小数点"),
    (r"calculated", "算出"),
    (r"a share", "份额"),
    (r"(\S+) is ([\d,]+)", "{0} 即 {1}"),
    (r"Right: (.+) \(computed: (.+)\)", "正确：{0}（计算值：{1}）"),
    (r"Not (.+?)\.(?: (.+))?", "不是 {0}。{1}"),
    (r"As a fraction it would be right; asked for are per cent\.",
     "作为小数是对的；要求的是百分数。"),
    (r"The factor looks like (.+) and (.+): 1000 or 1024 a step\.",
     "差的倍数像是 {0} 与 {1}：每级 1000 还是 1024。"),
    (r"It is off by exactly 8: bits and bytes\.", "正好差 8 倍：比特与字节。"),
    (r"The digits are right, and it is off by (.+)\.", "数字对了，但差 {0} 倍。"),
    (r"It is twice the right value\.", "是正确值的两倍。"),
    (r"It is half of the right value\.", "是正确值的一半。"),
    (r"It is too large\.", "太大了。"),
    (r"It is too small\.", "太小了。"),
    (r"(.+) is not a number; write for instance (.+)", "{0} 不是一个数；请写成例如 {1}"),
    (r"(.+) is no unit that is known here; asked for is (.+)", "这里不认识单位 {0}；要求的是 {1}"),
    (r"(.+) is (an? .+|of another kind .+), and asked for is (an? [a-z ]+?)(?: in (.+))?",
     "{0} 是{1}，而要求的是{2} {3}"),
    (r"(.+) is larger than any number that is meant here", "{0} 比这里可能的任何数都大"),
    (r"(.+) divides by zero", "{0} 除以零"),
    (r"an amount of data", "数据量"),
    (r"a time", "时间"),
    (r"a rate of data", "数据速率"),
    (r"a pure number", "纯数"),
    (r"a number of tokens", "token 数"),
    (r"a number of operations", "运算次数"),
    (r"a rate of operations", "运算速率"),
    (r"of another kind (.+)", "另一种量 {0}"),
    (r"a must is missing: (.+)", "缺少必须项：{0}"),
    (r"less than 40 % of the points", "得分不到 40 %"),
    (r"a red flag: (.+)", "危险信号：{0}"),
    (r"a number was wrong", "有一个数不对"),
    (r"(\d+%) of the points", "得分 {0}"),
    (r"another practice window has been writing to (.+) for (\d+) s; close it and grade again, "
     r"nothing is lost", "另一个练习窗口已占用 {0} {1} 秒；请关掉它再评分，什么都不会丢"),
    (r"(\d+) lines? of (.+) cannot be read \(a kill while writing, or an edit\); passed over and "
     r"left as they are", "{1} 里有 {0} 行读不出来（写入时被中断，或被改过）；已跳过，原样保留"),
    (r"Confidence against result \(five .+\)",
     "把握与结果（有五次把握为 3 或 4 的回答后更能说明问题）"),
    (r"Overconfident: of (.+) answers you were sure of, (.+) passed",
     "过于自信：在有把握的 {0} 次回答里，通过了 {1}"),
    (r"Underconfident: of (.+) answers you doubted, (.+) passed",
     "不够自信：在没把握的 {0} 次回答里，通过了 {1}"),
    (r"Well calibrated: of (.+) answers you were sure of, (.+) passed",
     "判断准确：在有把握的 {0} 次回答里，通过了 {1}"),
)  # fmt: skip


def spoken(sentence: str, language: Language) -> str:
    """The sentence in this language; as it is, if it is none of the engine's."""
    if language == "en":
        return sentence
    for pattern, chinese in _SENTENCES:
        if match := re.fullmatch(pattern, sentence, re.DOTALL):
            groups = [spoken(group or "", language) for group in match.groups()]
            return chinese.format(*groups).rstrip()
    return sentence
