"""Units of typed numbers, by pint; which is loaded once a unit of data, time or rate is typed.

Two things it takes otherwise than this field does are put right first: b is a bit (pint: a gilbert,
a barn), and K is k. GB is 1e9 bytes and GiB 2**30; Gb/s are bits. pint sees names and no formulas:
it would work out `9**9**9` in them.
"""

import re
from functools import lru_cache

PURE = {"": 1, **dict.fromkeys(("x", "X", "*", "times", "fold", "-fold", "倍"), 1)}
PURE |= dict.fromkeys(("%", "percent", "per cent"), 100) | {"‰": 1000}
"""Pure numbers: how many of each are one."""


def is_share(unit: str) -> bool:
    """Of a hundred or a thousand."""
    return PURE.get(unit, 1) > 1


def has_prefix(unit: str) -> bool:
    """The unit begins with a multiple: GB, and not B."""
    return re.match(r"[kKMGTP]i?(B|b|[A-Z]|byte|bit|flop)", unit) is not None


def known(unit: str) -> bool:
    """Whether a number can be asked for in it."""
    return unit in PURE or _unit(unit) is not None


def convert(value: float, typed: str, asked: str, text: str) -> float:
    """The value in the unit that was asked for. ValueError if `typed` is no unit, or of another
    kind; `text` is what it all was.
    """
    if typed == asked:
        return value
    if typed in PURE and asked in PURE:
        return value * PURE[asked] / PURE[typed]
    there, here = _unit(asked), _unit(typed)
    if there is None and typed.casefold().rstrip("s") == asked.casefold().rstrip("s"):
        return value
    if here is None or there is None:
        raise ValueError(
            f"{typed!r:.40} is no unit that is known here; asked for is {asked or 'a pure number'}"
        )
    if not here.is_compatible_with(there):
        raise ValueError(
            f"{text:.60} is {_kind(here)}, and asked for is {_kind(there)}"
            + (f" in {asked}" if asked not in PURE or is_share(asked) else "")
        )
    return float(registry().Quantity(value, here).to(there).magnitude)


@lru_cache(maxsize=1)
def registry():
    """pint's units, and ours: its bit has no dimension, so a byte would pass for a pure number."""
    import pint  # takes a third of a second

    units = pint.UnitRegistry()
    units.define("databit = [data]")
    units.define("databyte = 8 * databit")
    units.define("token = [token]")
    units.define("flop = [flop]")
    return units


_NAMES = re.compile(r"[A-Za-zµμ%‰]{1,20}( ?[/*] ?[A-Za-zµμ]{1,20}){0,2}")


@lru_cache(maxsize=128)
def _unit(name: str):
    """pint's unit of that name; None if it has none."""
    if name in PURE:
        name = (
            "dimensionless" if PURE[name] == 1 else {100: "percent", 1000: "permille"}[PURE[name]]
        )
    if not _NAMES.fullmatch(name):
        return None
    try:
        return registry().Unit(_spelled(name))
    except Exception:  # pint's parser raises a dozen kinds; whatever it is, the text is no unit
        return None


_PREFIXES = {"": "", "k": "kilo", "K": "kilo", "M": "mega", "G": "giga", "T": "tera", "P": "peta"}
_PREFIXES |= {"Ki": "kibi", "Mi": "mebi", "Gi": "gibi", "Ti": "tebi", "Pi": "pebi", "ki": "kibi"}
_PREFIXES |= {
    p: p for p in ("kilo", "mega", "giga", "tera", "peta", "kibi", "mebi", "gibi", "tebi")
}
_DATA = re.compile(rf"\b({'|'.join(_PREFIXES)})(B|b|[Bb]ytes?|[Bb]its?)(ps)?\b")
_FLOPS = re.compile(r"\b([kKMGTP]|)(FLOPS|FLOP/s|FLOPs|FLOP|flops|flop)\b")


def _spelled(unit: str) -> str:
    """The unit in pint's words."""

    def data(match: re.Match) -> str:
        prefix, what, a_second = match.groups()
        name = "databit" if what == "b" or what.lower().startswith("bit") else "databyte"
        return f"{_PREFIXES[prefix]}{name}" + ("/second" if a_second else "")

    def flops(match: re.Match) -> str:
        rate = match[2] in ("FLOPS", "FLOP/s")
        return f"{_PREFIXES[match[1]]}flop" + ("/second" if rate else "")

    text = re.sub(r"\btokens\b", "token", unit.replace("µ", "micro").replace("μ", "micro"))
    return _FLOPS.sub(flops, _DATA.sub(data, text))


def _kind(unit) -> str:
    """In words, for a person who typed the wrong one."""
    kinds = {
        "databit": "an amount of data",
        "second": "a time",
        "databit/second": "a rate of data",
        "dimensionless": "a pure number",
        "token": "a number of tokens",
        "flop": "a number of operations",
        "flop/second": "a rate of operations",
    }
    for name, kind in kinds.items():
        if unit.is_compatible_with(registry().Unit(name)):
            return kind
    return f"of another kind ({str(unit).replace('data', '')})"
