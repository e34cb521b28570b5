"""How numbers are spoken in English, and in the numerals of Chinese and Japanese. Forms are letters without spaces."""

from __future__ import annotations

from functools import lru_cache

ONES = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen
""".split()  # noqa: SIM905
_TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()  # noqa: SIM905
_SCALES = ((10**12, "trillion"), (10**9, "billion"), (10**6, "million"), (1000, "thousand"), (100, "hundred"))
_ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}
_ZEROS = ("zero", "oh", "o", "nought")
MOST_DIGITS = 15
"""Numbers that have more are read digit by digit."""

Forms = frozenset[str]


@lru_cache(512)
def cardinal(number: int) -> Forms:
    """As "twohundredfive" and "twohundredandfive"; the same of a number that begins with one, with "a" for that."""
    forms = _counted(number)
    ones = {form for form in forms if form.startswith("one")} if number >= 100 else set()
    return forms | {"a" + form.removeprefix("one") for form in ones}


def _counted(number: int) -> Forms:
    if number < 20:
        return frozenset({ONES[number]})
    if number < 100:
        tens, ones = divmod(number, 10)
        return frozenset({_TENS[tens] + (ONES[ones] if ones else "")})
    size, name = next((size, name) for size, name in _SCALES if number >= size)
    count, rest = divmod(number, size)
    counted = {form + name for form in _counted(count)}
    if not rest:
        return frozenset(counted)
    joints = ("", "and") if rest < 100 else ("",)
    return frozenset(form + joint + more for form in counted for joint in joints for more in _counted(rest))


@lru_cache(512)
def ordinal(number: int) -> Forms:
    """As "twentyfourth"."""
    return frozenset(map(_as_ordinal, cardinal(number)))


def _as_ordinal(form: str) -> str:
    for one, name in _ORDINALS.items():
        if form.endswith(one):
            return form.removesuffix(one) + name
    return form.removesuffix("y") + "ieth" if form.endswith("y") else f"{form}th"


@lru_cache(512)
def by_digit(digits: str) -> Forms:
    """As "fivefivefive", "doublefivefive", and with each way to say zero."""
    forms = set()
    for zero in _ZEROS if "0" in digits else _ZEROS[:1]:
        names = [zero if digit == "0" else ONES[int(digit)] for digit in digits]
        forms |= {"".join(names), _with_doubles(names)}
    return frozenset(forms)


def _with_doubles(names: list[str]) -> str:
    spoken, at = "", 0
    while at < len(names):
        same = next((n for n in (3, 2) if names[at : at + n] == [names[at]] * n), 1)
        spoken += ("", "double", "triple")[same - 1] + names[at]
        at += same
    return spoken


@lru_cache(512)
def by_pair(digits: str) -> Forms:
    """Three and four digits as years and numbers of rooms and flights are read: "nineteenninetynine", "oneohfive"."""
    if len(digits) not in (3, 4) or digits[0] == "0":
        return frozenset()
    high, low = int(digits[:-2]), int(digits[-2:])
    (first,) = cardinal(high)
    if low == 0:
        return frozenset({f"{first}hundred"})
    (second,) = cardinal(low)
    forms = {f"{first}hundred{second}", f"{first}hundredand{second}"}
    return frozenset(forms | ({first + zero + second for zero in _ZEROS[:3]} if low < 10 else {first + second}))


@lru_cache(512)
def whole(digits: str) -> Forms:
    """All ways to read a row of digits, which may be written in groups: as a number, as a day, as a year, by digit."""
    plain = "".join(str(int(digit)) for digit in digits if digit.isdecimal())
    forms = set(by_digit(plain) | by_pair(plain))
    if len(plain) > MOST_DIGITS:
        return frozenset(forms)
    number = int(plain)
    if plain[0] != "0" or number == 0:
        forms |= cardinal(number) | ideographic(number)
    if 0 < number <= 31:
        forms |= {f"{the}{form}{of}" for form in ordinal(number) for the in ("", "the") for of in ("", "of")}
    return frozenset(forms)


_HAN_DIGITS = "零一二三四五六七八九"
_HAN_SCALES = ((10**8, "億亿"), (10**4, "万萬"), (1000, "千"), (100, "百"), (10, "十"))


@lru_cache(512)
def ideographic(number: int) -> Forms:
    """As "二十四", with and without the one before a ten, a hundred and a thousand, and with the zero of Chinese
    for places that are left out.
    """
    if number < 10:
        return frozenset({_HAN_DIGITS[number]} | ({"〇"} if number == 0 else {"两"} if number == 2 else set()))
    if number >= 10**12:
        return frozenset()
    size, names = next((size, names) for size, names in _HAN_SCALES if number >= size)
    count, rest = divmod(number, size)
    counts = set(ideographic(count)) - ({"两"} if size == 10 else set())
    if count == 1 and size <= 1000:
        counts.add("")
    counted = {form + name for form in counts for name in names}
    if not rest:
        return frozenset(counted)
    joints = ("", "零") if rest < size // 10 else ("",)
    return frozenset(form + joint + more for form in counted for joint in joints for more in ideographic(rest))
