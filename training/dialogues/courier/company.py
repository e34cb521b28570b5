# ruff: noqa: E501 - word lists are read best on one line
"""A parcel courier: its facts, its standing orders, its system prompt and its tools. Owns what a call's context says;
knows nothing of the wording of turns.
"""

import datetime
import random
from dataclasses import dataclass
from typing import Any

from training.dialogues import names
from training.dialogues.business import MONTHS, WEEKDAYS
from training.dialogues.courier import values

TRADES = ("Couriers", "Parcel Express", "Carriers", "Freight", "Despatch", "Parcels", "Conveyance")
BANDS = ((2, 10, 30), (1, 5, 15), (2, 5, 20), (3, 10, 25))
FREE = "free of charge"


@dataclass(frozen=True)
class Orders:
    """What the clerk must do; each is said in the system prompt, so that a reply's policy follows from the context."""

    name_first: bool
    read_back: bool
    confirm: bool


@dataclass(frozen=True)
class Company:
    """One courier as its system prompt tells it. `tariff` gives the price in pounds up to each weight in kg; `last_collection` is the
    last weekday with collections (4 is Friday); `barred` is empty where the prompt says nothing of it.
    """

    name: str
    prefix: str
    depot: str
    address: str
    today: datetime.date
    clock: str
    weekday_hours: tuple[str, str]
    saturday_hours: tuple[str, str] | None
    tariff: dict[int, int]
    last_collection: int
    collection_fee: str
    redirect_fee: str
    claim_days: int
    cover: str
    reply_days: int
    barred: tuple[str, ...]
    orders: Orders

    @property
    def greeting(self) -> str:
        hour = int(self.clock[:2])
        return "Good morning" if hour < 12 else "Good afternoon" if hour < 17 else "Good evening"

    @property
    def collection_days(self) -> str:
        return f"Monday to {WEEKDAYS[self.last_collection]}"

    def hours(self, weekday: int) -> tuple[str, str] | None:
        """When the depot opens and closes on a day of the week, None where it does not."""
        return self.weekday_hours if weekday < 5 else self.saturday_hours if weekday == 5 else None

    def charge(self, weight: int) -> tuple[int, int] | None:
        """The tariff's band for so many kg and its price, None where the parcel is too heavy."""
        return next(((most, price) for most, price in self.tariff.items() if weight <= most), None)

    def system_prompt(self) -> str:
        """The facts and the standing orders, one per line."""
        date = f"{WEEKDAYS[self.today.weekday()]} {self.today.day} {MONTHS[self.today.month - 1]}"
        saturday = (
            f"Saturday {' to '.join(self.saturday_hours)}, closed on"
            if self.saturday_hours
            else "closed on Saturday and"
        )
        orders = self.orders
        lines = [
            f"Duty clerk on the service line of {self.name}, {self.depot} depot. Be formal. It is {date}, {self.clock}.",
            f"Depot: {self.address}. Open {' to '.join(self.weekday_hours)} on weekdays, {saturday} Sunday.",
            "Tariff: " + "; ".join(f"up to {most} kg £{price}" for most, price in self.tariff.items()) + ".",
            f"Collections: {self.collection_days}, {self.collection_fee}.",
            f"Redirection: {self.redirect_fee}; refused once out for delivery.",
            f"Claims: within {self.claim_days} days of posting, cover up to {self.cover}.",
            f"Complaints: written reply within {self.reply_days} working days.",
            *([f"Not carried: {', '.join(self.barred)}."] if self.barred else []),
            f"Tracking numbers: {self.prefix} and eight digits{', read back' if orders.read_back else ''}.",
            f"Names: {'taken first' if orders.name_first else 'for complaints only'}. "
            f"Confirm before acting: {'yes' if orders.confirm else 'no'}.",
        ]
        return "\n".join(lines)


PARAMETERS = {
    "number": "The tracking number.", "address": "House, street and town.", "reason": "What went wrong, in the caller's words.",
    "day": "The day, as the caller says it.", "name": "Title and surname.", "matter": "What the complaint is about, in the caller's words.",
}  # fmt: skip


def _tool(name: str, description: str, *parameters: str) -> dict[str, Any]:
    properties = {key: {"type": "string", "description": PARAMETERS[key]} for key in parameters}
    schema = {"type": "object", "properties": properties, "required": list(parameters)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


def tools() -> list[dict[str, Any]]:
    """The clerk's tools as JSON Schema function definitions."""
    return [
        _tool("track_parcel", "Look a parcel up.", "number"),
        _tool("redirect_parcel", "Send a parcel to another address.", "number", "address"),
        _tool("open_claim", "Open a claim for a lost or damaged parcel.", "number", "reason"),
        _tool("schedule_collection", "Send a van to collect parcels.", "address", "day"),
        _tool("log_complaint", "Enter a complaint.", "name", "matter"),
    ]


def _name(rng: random.Random) -> str:
    first = names.word(rng, names.LAST, False)
    partner = f" & {names.word(rng, names.LAST, False)}" if rng.random() < 0.4 else ""
    return f"{first}{partner} {rng.choice(TRADES)}"


def _pounds(rng: random.Random, least: int, most: int) -> str:
    return f"£{rng.randint(least, most)}.{rng.choice(('00', '20', '40', '50', '75', '90'))}"


def company(rng: random.Random) -> Company:
    """A random courier; its standing orders are coins that most calls do not all pay for."""
    bands = rng.choice(BANDS)
    today = datetime.date(2026, 1, 1) + datetime.timedelta(rng.randrange(365))
    if today.weekday() == 6:
        today += datetime.timedelta(1)
    letters = "ABCDEFGHJKLMNPRSTVWXYZ"
    return Company(
        name=_name(rng),
        prefix=rng.choice(letters) + rng.choice(letters),
        depot=rng.choice(values.TOWNS),
        address=f"Unit {rng.randint(2, 48)}, {rng.choice(values.STREETS)} {rng.choice(('Road', 'Way', 'Lane', 'Park'))}",
        today=today,
        clock=f"{rng.randint(8, 18):02}:{rng.randrange(0, 60, 5):02}",
        weekday_hours=(rng.choice(("06:30", "07:00", "07:30", "08:00")), rng.choice(("18:00", "18:30", "19:00", "20:00"))),
        saturday_hours=(rng.choice(("07:00", "08:00", "09:00")), rng.choice(("12:00", "12:30", "13:00", "14:00"))) if rng.random() < 0.6 else None,
        tariff={most: rng.randint(4 + 5 * rank, 8 + 5 * rank) for rank, most in enumerate(bands)},
        last_collection=rng.choice((4, 4, 5)),
        collection_fee=FREE if rng.random() < 0.25 else _pounds(rng, 2, 5),
        redirect_fee=FREE if rng.random() < 0.3 else _pounds(rng, 1, 4),
        claim_days=rng.choice((7, 10, 14, 21, 28)),
        cover=f"£{rng.choice((50, 75, 100, 150, 200, 250, 500))}",
        reply_days=rng.choice((3, 5, 7, 10, 15)),
        barred=tuple(rng.sample(values.GOODS, 3)) if rng.random() < 0.7 else (),
        orders=Orders(name_first=rng.random() < 0.4, read_back=rng.random() < 0.4, confirm=rng.random() < 0.5),
    )  # fmt: skip
