"""How a synthesiser may read what is written in figures, signs and abbreviations, in English.

Numbers, times, dates, amounts of money, units and titles. Forms are letters as in ``Words.parts``, without spaces. What
is not here is passed over by ``Alignment``, in any language.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from functools import lru_cache

import regex

from service.heard.abbreviations import ABBREVIATIONS, MONTHS
from service.heard.numbers import MOST_DIGITS, Forms, by_digit, cardinal, ideographic, ordinal, whole

LONGEST = 200
"""Letters of a form that are compared."""
LONGEST_WRITTEN = 32
"""Code points of what a form is spoken for: so much nearer to the end of a text it may still be something else."""

_COINS = {
    "$": ("dollar", "dollars", "cent", "cents"),
    "€": ("euro", "euros", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"),
    "¥": ("yen", "yen", "", ""),
    "₹": ("rupee", "rupees", "paisa", "paise"),
}

_SCALES = {"k": "thousand", "m": "million", "mn": "million", "bn": "billion", "b": "billion"}

_SCALE = "|".join(_SCALES)
_LARGE = "thousand|million|billion|trillion"
_NUMBER = r"(?P<whole>\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.(?P<part>\d+))?"


def readings(text: str, start: int) -> Iterator[tuple[int, Forms]]:
    """What may be written in a text from ``start`` on, where a letter or a digit is: (where it ends, its forms)."""
    signed = regex.search(r"\p{Sc}\s?\Z", text[max(0, start - 2) : start])
    sign = unicodedata.normalize("NFKC", signed.group()[0]) if signed else ""
    for pattern, read in _PATTERNS:
        if (match := pattern.match(text, start)) is not None:
            forms = read(match, sign)
            if forms:
                yield match.end(), forms


def _money(match: regex.Match[str], sign: str) -> Forms:
    sign = sign or unicodedata.normalize("NFKC", match["sign"] or "")
    return _amount(sign, match["whole"], match["part"] or "", (match["scale"] or "").lower()) if sign else frozenset()


@lru_cache(512)
def _amount(sign: str, units: str, parts: str, scale: str) -> Forms:
    """An amount of money: "fivedollars", "twelvedollarsandfiftycents", "twelvefifty", "onemilliondollars"."""
    one, many, cent, cents = _COINS.get(sign, ("", "", "", ""))
    if not many or len(_plain(units)) > MOST_DIGITS:
        return frozenset()
    count = int(_plain(units))
    scale = _SCALES.get(scale, scale)
    if scale or (parts and len(parts) != 2):
        return frozenset(form + scale + coin for form in _decimal(units, parts) for coin in {one, many})
    coins = {form + (one if count == 1 else many) for form in cardinal(count)}
    coins |= {f"a{one}"} if count == 1 else set()
    if not parts or int(parts) == 0 or not cent:
        return frozenset(coins | ({form + many for form in _decimal(units, parts)} if parts else set()))
    small = {form + (cent if int(parts) == 1 else cents) for form in cardinal(int(parts))}
    bare = _two_digits(parts)
    forms = {coin + joint + more for coin in coins for joint in ("", "and") for more in small | bare}
    forms |= {form + more for form in cardinal(count) for more in bare}
    forms |= {form + many for form in _decimal(units, parts)}
    return frozenset(forms | (small if count == 0 else set()))


def _number(match: regex.Match[str], _: str) -> Forms:
    if not match["part"]:
        return whole(match["whole"])
    return _decimal(match["whole"], match["part"])


def _scaled(match: regex.Match[str], _: str) -> Forms:
    scale = match["scale"].lower()
    return frozenset(form + _SCALES[scale] for form in _decimal(match["whole"], match["part"] or ""))


@lru_cache(512)
def _decimal(units: str, parts: str) -> Forms:
    """As "threepointfive", "threeandahalf"."""
    if len(_plain(units)) > MOST_DIGITS:
        return frozenset()
    count = cardinal(int(_plain(units)))
    if not parts:
        return count
    digits = "".join(str(int(digit)) for digit in parts)
    behind = set(by_digit(digits)) | set(by_digit(digits.rstrip("0") or digits))
    if len(digits) == 2 and digits[0] != "0":
        behind |= cardinal(int(digits))
    forms = {form + "point" + more for form in count for more in behind}
    forms |= {form + "andahalf" for form in count} if digits == "5" else set()
    return frozenset(forms | ({"point" + more for more in behind} if int(_plain(units)) == 0 else set()))


def _ordinal(match: regex.Match[str], _: str) -> Forms:
    if len(match["whole"]) > MOST_DIGITS:
        return frozenset()
    return frozenset(
        the + form + of for form in ordinal(int(match["whole"])) for the in ("", "the") for of in ("", "of")
    )


def _time(match: regex.Match[str], _: str) -> Forms:
    half = (match["half"] or "").lower()
    return _clock(int(match["hour"]), match["minute"], f"{half}m" if half else "")


@lru_cache(512)
def _clock(hour: int, minutes: str, half: str) -> Forms:
    """A time of day: "fourthirty", "halfpastfour", "quartertofive", "fouroclock", "sixteenhundredhours"."""
    minute = int(minutes)
    if hour > 24 or minute > 59:
        return frozenset()
    forms: set[str] = set()
    for read, halves in {hour: ("",), (hour - 1) % 12 + 1: ("", "am" if hour % 24 < 12 else "pm")}.items():
        (now,), (next_,) = cardinal(read), cardinal(read % 12 + 1)
        if minute == 0:
            told = {now, f"{now}oclock", f"{now}hundred", f"{now}hundredhours", f"{now}zerozero"}
        else:
            told = {now + more for more in _two_digits(minutes)} | {f"{now}hours{more}" for more in cardinal(minute)}
            told |= _beside_the_hour(now, next_, minute)
        forms |= {form + behind for form in told for behind in ({half} if half else set(halves))}
    if minute == 0 and hour in (0, 12, 24) and half != "am":
        forms.add("noon" if hour == 12 else "midnight")
    points = {form + point for form in ideographic(hour) for point in "点點時时"}
    behind = {form + mark for form in ideographic(minute) for mark in ("", "分")} | ({"半"} if minute == 30 else set())
    return frozenset(forms | (points if minute == 0 else {point + more for point in points for more in behind}))


def _beside_the_hour(now: str, next_: str, minute: int) -> set[str]:
    """As "quarterpastfour"."""
    forms = set()
    for size, names in ((minute, _minutes(minute)), (60 - minute, _minutes(60 - minute))):
        joint, hour = (("past", "after"), now) if size == minute else (("to", "before", "of"), next_)
        if size <= 30:
            forms |= {name + word + hour for name in names for word in joint}
    return forms


def _minutes(minute: int) -> set[str]:
    names = {form + behind for form in cardinal(minute) for behind in ("", "minutes", "minute")}
    return names | {15: {"quarter", "aquarter"}, 30: {"half"}}.get(minute, set())


def _date(match: regex.Match[str], _: str) -> Forms:
    one, other = int(match["one"]), int(match["other"])
    years = _year(match["year"] or "")
    return frozenset(
        day + year for first, second in ((one, other), (other, one)) for day in _day(first, second) for year in years
    )


def _iso_date(match: regex.Match[str], _: str) -> Forms:
    return frozenset(
        day + year for day in _day(int(match["month"]), int(match["day"])) for year in _year(match["year"])
    )


def _day(month: int, day: int) -> set[str]:
    """As "mayfifth", "thefifthofmay"."""
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return set()
    name, days = MONTHS[month - 1], ordinal(day)
    forms = {name + the + form for form in days | cardinal(day) for the in ("", "the")}
    return forms | {the + form + of + name for form in days for the in ("", "the") for of in ("", "of")}


def _year(digits: str) -> set[str]:
    return set(whole(digits)) if digits else {""}


def _fraction(match: regex.Match[str], _: str) -> Forms:
    above, below = int(match["above"]), int(match["below"])
    return _parts_of(above, below)


def _vulgar(match: regex.Match[str], _: str) -> Forms:
    above, _slash, below = unicodedata.normalize("NFKC", match.group()).partition("⁄")
    return _parts_of(int(above), int(below))


def _parts_of(above: int, below: int) -> Forms:
    """As "threequarters"."""
    names = {2: {"half", "halves"}, 4: {"quarter", "quarters", "fourth", "fourths"}}.get(below)
    if names is None:
        names = {form + plural for form in ordinal(below) for plural in ("", "s")} if 2 < below < 101 else set()
    counts = cardinal(above) | (frozenset({"a", "", "an"}) if above == 1 else frozenset())
    behind = ("", "a", "an", "of", "ofa", "ofan")
    return frozenset(count + name + more for count in counts for name in names for more in behind)


def _abbreviation(match: regex.Match[str], _: str) -> Forms:
    return ABBREVIATIONS.get(regex.sub(r"[^a-z]", "", match.group().lower()), frozenset())


def _plain(digits: str) -> str:
    return digits.replace(",", "")


def _two_digits(digits: str) -> set[str]:
    """As "fifty", "ohfive"."""
    if digits[0] in "0０":
        return {zero + form for zero in ("oh", "o", "zero", "and") for form in cardinal(int(digits))}
    return set(cardinal(int(digits)))


_Read = Callable[["regex.Match[str]", str], Forms]

_PATTERNS: tuple[tuple[regex.Pattern[str], _Read], ...] = tuple(
    (regex.compile(pattern, regex.IGNORECASE), read)
    for pattern, read in (
        (
            _NUMBER + rf"(?:\s?(?P<scale>{_SCALE}|{_LARGE})\b)?(?:\s?(?P<sign>\p{{Sc}})(?!\d))?",
            _money,
        ),
        (_NUMBER + rf"(?P<scale>{_SCALE})\b", _scaled),
        (_NUMBER, _number),
        (r"(?P<whole>\d+)(?!,\d{3})(?P<part>)", _number),
        (r"(?P<whole>\d+)(?:st|nd|rd|th)\b", _ordinal),
        (r"(?P<hour>\d{1,2})[:.：](?P<minute>\d{2})(?!\d)(?:\s?(?P<half>[ap])\.?\s?m\b)?", _time),
        (r"(?P<hour>\d{1,2})[:.：](?P<minute>\d{2})(?!\d)(?P<half>)", _time),
        (r"(?P<one>\d{1,2})[/.](?P<other>\d{1,2})(?:[/.](?P<year>\d{2,4}))?(?!\d)", _date),
        (r"(?P<year>\d{4})-(?P<month>\d{2})-(?P<day>\d{2})(?!\d)", _iso_date),
        (r"(?P<above>\d{1,2})[/⁄](?P<below>\d{1,3})(?!\d)", _fraction),
        (r"[½¼¾⅓⅔⅛⅜⅝⅞]", _vulgar),
        (r"[a-z]+(?:[./]?[a-z]+)*", _abbreviation),
    )
)
