# ruff: noqa: E501 - word lists are read best on one line
"""What courier calls are about: addresses, tracking numbers, days, reasons for claims, matters of complaint. Owns how a
value is said; knows nothing of turns.
"""

import datetime
import random
from dataclasses import dataclass

from training.dialogues import names
from training.dialogues.business import MONTHS, WEEKDAYS, ordinal
from training.dialogues.noise import spoken_phone

TOWNS = (
    "Corby", "Thirsk", "Ludlow", "Selby", "Morpeth", "Bodmin", "Kendal", "Wigan", "Redcar", "Oakham", "Stroud", "Frome", "Hexham", "Malton", "Ripon",
    "Yeovil", "Andover", "Harlow", "Luton", "Penrith", "Buxton", "Goole", "Matlock", "Newark", "Rugby", "Swindon", "Tring", "Ely", "Deal", "Crewe",
)  # fmt: skip
STREETS = (
    "Mulberry", "Quay", "Abbey", "Foundry", "Priory", "Castle", "Orchard", "Canal", "Chapel", "Windmill", "Granary", "Rectory", "Harbour", "Viaduct",
    "Heron", "Juniper", "Lavender", "Paddock", "Quarry", "Thistle", "Weaver", "Falcon",
)  # fmt: skip
WAYS = ("Road", "Lane", "Crescent", "Terrace", "Close", "Row", "Avenue", "Gardens", "Way", "Mews", "Parade", "Drive")
TITLES = {"sir": ("Mr", "Mr", "Mr", "Dr"), "madam": ("Mrs", "Ms", "Miss", "Dr")}

FRAGILE = (
    ("porcelain", "glass", "brass", "ceramic", "enamel", "silver", "hand-painted", "cast-iron"),
    ("vase", "lamp", "bowl", "teapot", "figurine", "clock", "candlestick", "jug", "cake stand", "wine glasses", "plates", "tiles"),
)  # fmt: skip
DEVICES = (
    ("new", "second-hand", "vintage", "spare", "grey", "black", "rented", "repaired"),
    ("camera", "keyboard", "printer", "guitar", "radio", "record player", "coffee machine", "monitor", "sewing machine", "headphones", "violin", "scanner"),
)  # fmt: skip
HARM = (
    "arrived cracked", "arrived in pieces", "arrived soaked", "arrived badly dented", "came without any packing", "came with parts missing",
    "arrived scratched all over", "never arrived", "turned up broken", "came in a torn box", "arrived bent", "came with a crushed corner",
)  # fmt: skip
PEOPLE = (
    "the driver",
    "a driver",
    "the courier",
    "the van driver",
    "the relief driver",
    "the man from the depot",
    "the woman from the depot",
)
DEEDS = (
    "left the parcel in the rain", "threw the box over the gate", "did not ring the bell", "blocked the drive", "was rude to a neighbour", "left no card",
    "drove across the lawn", "left the gate open", "came before seven", "left the parcel on the bins", "refused to wait", "walked off without a word",
    "handed the parcel to a child", "scraped the garden wall", "bent the letter box", "put the wrong name on the card",
)  # fmt: skip
FAILINGS = (
    "the depot did not answer the telephone", "the parcel went to the wrong house", "the label had been torn off", "the website gave the wrong day",
    "nobody came for the collection", "the box had been opened", "the delivery came three hours late", "the card gave no telephone number",
)  # fmt: skip
OCCASIONS = (
    "",
    "this morning",
    "yesterday",
    "last week",
    "on Monday",
    "on Tuesday",
    "on Thursday",
    "for the second time",
    "once again",
)
GOODS = (
    "batteries", "perfumes", "fireworks", "live plants", "paint tins", "aerosols", "gemstones", "banknotes", "soft cheeses", "wine bottles",
    "kitchen knives", "passports", "oil paintings", "lighters",
)  # fmt: skip
DELAYS = (
    "heavy snow",
    "a van breakdown",
    "a strike at the port",
    "a customs check",
    "flooding on the road",
    "a missed connection",
    "a sorting error",
)
HELD_CAUSES = ("a signature is required", "the duty is unpaid", "nobody was at home", "the label is illegible")
NO_ADDRESS = "the address is incomplete"
RECEIVERS = ("a neighbour", "the porter", "the concierge", "the caretaker")


def on_day(said: str) -> str:
    """A day as it stands in a sentence: "on Tuesday", "tomorrow"."""
    return said if said.split(" ")[0] in ("tomorrow", "yesterday", "next") else f"on {said}"


@dataclass(frozen=True)
class Day:
    """A day as it is said and its day of the week: 0 is Monday."""

    said: str
    weekday: int

    @property
    def on(self) -> str:
        return on_day(self.said)


def _dated(rng: random.Random, date: datetime.date) -> str:
    if rng.random() < 0.5:
        return f"the {ordinal(date.day)}"
    return f"{date.day} {MONTHS[date.month - 1]}"


def coming_day(rng: random.Random, today: datetime.date, last_weekday: int = 6) -> Day:
    """One of the next twelve days that is no later in its week than `last_weekday`."""
    ahead = [days for days in range(1, 13) if (today.weekday() + days) % 7 <= last_weekday]
    days = rng.choice(ahead)
    date = today + datetime.timedelta(days)
    name = WEEKDAYS[date.weekday()]
    said = "tomorrow" if days == 1 else name if days < 7 else f"next {name}"
    return Day(_dated(rng, date) if rng.random() < 0.25 else said, date.weekday())


def past_day(rng: random.Random, today: datetime.date) -> Day:
    """One of the last six days but Sunday."""
    days = rng.choice([days for days in range(1, 7) if (today.weekday() - days) % 7 != 6])
    date = today - datetime.timedelta(days)
    return Day("yesterday" if days == 1 else WEEKDAYS[date.weekday()], date.weekday())


def days_ago(rng: random.Random, least: int, most: int) -> str:
    """When a parcel was posted, `least` to `most` days ago."""
    days = rng.randint(least, most)
    if days == 1:
        return "yesterday"
    if days % 7 == 0 and rng.random() < 0.7:
        return f"{('a week', 'two weeks', 'three weeks', 'four weeks', 'five weeks')[days // 7 - 1]} ago"
    return f"{days} days ago"


def address(rng: random.Random) -> str:
    """ "37 Heron Crescent, Selby"; half of the streets bear a surname, a few homes are flats."""
    street = rng.choice(STREETS) if rng.random() < 0.5 else names.word(rng, names.LAST, False)
    flat = f"Flat {rng.randint(1, 30)}, " if rng.random() < 0.12 else ""
    return f"{flat}{rng.randint(1, 260)} {street} {rng.choice(WAYS)}, {rng.choice(TOWNS)}"


def misspoken_address(rng: random.Random, right: str) -> str:
    """`right` with another house number or another town."""
    street, town = right.rsplit(", ", 1)
    if rng.random() < 0.5:
        return f"{street}, {rng.choice([other for other in TOWNS if other != town])}"
    house = street.split(", ")[-1].split(" ", 1)
    return f"{rng.randint(261, 299)} {house[1]}, {town}"


def tracking_number(rng: random.Random, prefix: str) -> str:
    """A number of the company's form, KD-4071-9928."""
    return f"{prefix}-{rng.randint(1000, 9999)}-{rng.randint(0, 9999):04}"


def misread_number(rng: random.Random, number: str) -> str:
    """`number` with one digit read wrong."""
    at = rng.choice([index for index, character in enumerate(number) if character.isdigit()])
    digit = rng.choice([digit for digit in "0123456789" if digit != number[at]])
    return number[:at] + digit + number[at + 1 :]


def spoken_number(rng: random.Random, number: str) -> str:
    """The number in words: K D, four zero seven one, nine nine two eight."""
    prefix, digits = number.split("-", 1)
    return f"{' '.join(prefix)}, {spoken_phone(rng, digits)}"


def titled_name(rng: random.Random, sir: str) -> str:
    """A caller as the clerk writes them down: "Mrs Okafor"."""
    return f"{rng.choice(TITLES[sir])} {names.word(rng, names.LAST, False)}"


def claim_reason(rng: random.Random, harm: str | None = None) -> str:
    """ "the brass clock arrived cracked"."""
    kinds, things = rng.choice((FRAGILE, DEVICES))
    return f"the {rng.choice(kinds)} {rng.choice(things)} {harm or rng.choice(HARM)}"


def complaint(rng: random.Random) -> str:
    """ "the driver blocked the drive yesterday"."""
    what = f"{rng.choice(PEOPLE)} {rng.choice(DEEDS)}" if rng.random() < 0.75 else rng.choice(FAILINGS)
    return f"{what} {rng.choice(OCCASIONS)}".strip()
