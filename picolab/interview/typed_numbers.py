"""Numbers in an answer that somebody typed, where a computed one belongs.

In what is said to be right (answer, rubric, red flags, points of the follow-ups) a number must not
stand as text if it

* has a decimal point or an exponent: 3.2, 1e9
* or has a unit behind it: 25 %, 80 GB, 3 ms (0 % and 100 % are words, and up to 32 bytes or bits
  are the width of a number: 2 bytes, 16 bits)
* or has three digits or more: 128, 1,024 (years from 1980 to 2039 are no results)

It comes from a value, `{{bubble:.1f}} %`, or it is part of a formula and stands in backticks. What
the question gives may be repeated. A number that is glued to a name is the name's: 405B, H100,
fp32, 1F1B, GPT-3.5, Llama 3.1, PCIe 5.0, arXiv 2205.05198, pull request 34191.
"""

import re
from collections.abc import Collection, Iterable

_NO_RESULT = re.compile(
    r"\{\{.*?\}\}"  # a placeholder
    r"|```.*?```|`[^`]*`"  # a formula, code
    r"|https?://\S+"
    r"|(?:\bpull request|\bissue|#)\s*#?\d+"
    r"|\b(?:Llama|GPT|DeepSeek|Qwen|Mixtral|Claude|Gemini|PyTorch|torch|transformers|CUDA|NCCL|PCIe|NVLink|NVSwitch"
    r"|ConnectX|Megatron|ROCm|Python|Triton|Section|Table|Figure|Chapter|Appendix|Equation|arXiv)"
    r"[ :-]*v?\d[\d.]*\b",
    re.DOTALL,
)
_NUMBER = re.compile(
    # Not glued to a name in front of it (H100, top-8, x_2), nor in the middle of a number.
    r"(?<![A-Za-z0-9_.])(?<![A-Za-z]-)"
    r"(?P<number>\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?)"
    r"(?P<unit>\s*(?:%|‰|per\s?cent\b|percent\b|°C"
    r"|(?:[kKMGTPE]i?)(?:B|b|bit|byte|Byte)(?:ps|/s)?(?![A-Za-z])"
    r"|(?:[kMGTPE])?(?:FLOP/s|FLOPS|FLOPs?|flops?)(?![A-Za-z])"
    r"|(?:bytes?|bits?|ns|us|µs|ms|seconds?|minutes?|hours?|days?|[kM]W)\b"
    r"|字节|比特|毫秒|微秒|纳秒|秒|分钟|小时|天)"
    # A letter alone is a unit before a word or the end; in 34 s b h it is one of the letters.
    r"|\s+[Bsh](?=\s*(?:[.,;:)]|$|\s[a-z]{2})))?"
    r"(?P<glued>[A-Za-z_]?)"
)
_RIGHT = ("answer", "rubric", "red_flags", "followups")
_WIDTH = re.compile(r"\s*(?:bytes?|bits?|字节|比特)")


def typed_numbers(text: str, given: Collection[str] = ()) -> list[str]:
    """Numbers in the text that look like results: see the rule at the top. `given`: those that may
    be repeated, as `given_numbers` finds them.
    """
    found = []
    for match in _NUMBER.finditer(_NO_RESULT.sub("\N{REPLACEMENT CHARACTER}", text)):
        number, unit = match["number"].rstrip(","), match["unit"]
        digits = number.replace(",", "")
        if digits in given:
            is_result = False
        elif unit:
            is_word = digits in ("0", "100") and unit.strip() in ("%", "per cent", "percent")
            is_width = _WIDTH.fullmatch(unit) and digits.isdigit() and int(digits) <= 32
            is_result = not is_word and not is_width
        elif match["glued"]:
            is_result = False
        elif not digits.isdigit():
            is_result = True
        else:
            is_result = len(digits) >= 3 and not re.fullmatch(r"19[89]\d|20[0-3]\d", number)
        if is_result:
            found.append(number + (unit or ""))
    return found


def given_numbers(texts: Iterable[str]) -> set[str]:
    """All numbers that stand in these texts, without their thousands separators."""
    return {
        match["number"].rstrip(",").replace(",", "")
        for text in texts
        for match in _NUMBER.finditer(text)
    }
