# ruff: noqa: E501 - word lists are read best on one line
"""A small business: its facts, its rules, its system prompt and its tools. Owns what a call's context says; knows
nothing of the wording of turns.
"""

import random
from dataclasses import dataclass
from typing import Any

from training.dialogues import names

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)

KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "dental office": (("Dental", "Smiles", "Dental Care"), ("teeth cleaning", "filling", "root canal", "whitening", "checkup", "crown fitting")),
    "hair salon": (("Hair", "Salon", "Hair Studio"), ("haircut", "color", "highlights", "blow dry", "perm", "beard trim")),
    "vet clinic": (("Animal Clinic", "Pet Care", "Vets"), ("vaccination", "nail clipping", "dental check", "wellness exam", "microchip", "ear cleaning")),
    "auto shop": (("Auto", "Motors", "Garage"), ("oil change", "brake check", "tire rotation", "inspection", "battery swap", "wheel alignment")),
    "eye clinic": (("Eye Care", "Vision", "Optical"), ("eye exam", "lens fitting", "glasses adjustment", "retina scan", "contact lens check")),
    "physio practice": (("Physio", "Therapy", "Rehab"), ("back treatment", "sports massage", "knee therapy", "posture check", "first visit")),
    "day spa": (("Spa", "Wellness", "Retreat"), ("facial", "hot stone massage", "body wrap", "manicure", "pedicure", "sauna session")),
    "law office": (("Law", "Legal", "Associates"), ("will review", "contract review", "first consultation", "notary service", "case update")),
    "accounting firm": (("Accounting", "Tax Services", "Books"), ("tax return", "payroll setup", "bookkeeping review", "audit meeting", "budget talk")),
    "bike shop": (("Bikes", "Cycles", "Bike Works"), ("tune up", "flat repair", "bike fitting", "chain replacement", "safety check")),
    "music school": (("Music", "Music School", "Academy"), ("piano lesson", "guitar lesson", "voice lesson", "drum lesson", "violin lesson")),
    "photo studio": (("Photo", "Portraits", "Studio"), ("family portrait", "passport photo", "headshot", "baby photos", "product shoot")),
    "dog groomer": (("Grooming", "Paws", "Pet Spa"), ("full groom", "bath and brush", "nail trim", "puppy cut", "flea bath")),
    "tattoo studio": (("Ink", "Tattoo", "Body Art"), ("small tattoo", "touch up", "design talk", "piercing", "cover up")),
}  # fmt: skip
CITIES = [
    "Austin",
    "Portland",
    "Denver",
    "Tucson",
    "Salem",
    "Madison",
    "Boise",
    "Dayton",
    "Fresno",
    "Omaha",
    "Tulsa",
    "Albany",
    "Reno",
    "Tampa",
    "Akron",
    "Mobile",
    "Eugene",
    "Lowell",
]
STREETS = [
    "Oak",
    "Maple",
    "Cedar",
    "Pine",
    "Elm",
    "Lake",
    "Hill",
    "Park",
    "Main",
    "Mill",
    "River",
    "Church",
    "Spring",
    "North",
    "Bridge",
    "Station",
    "Market",
    "Garden",
]
PARKING = (
    "free lot behind the building", "street parking only", "garage next door", "two spots in front", "free parking on the roof",
    "paid lot across the street", "no parking on site", "free for the first hour",
)  # fmt: skip
PAYMENT = ("cash and cards", "cards only", "cash only", "cash, cards and checks", "cards and phone payments")
EXTRAS: dict[str, tuple[str, ...]] = {
    "Wifi": ("free for guests", "not available", "ask at the desk"),
    "Pets": ("welcome", "not allowed", "only in carriers", "small dogs only"),
    "Late arrivals": ("call ahead", "we wait ten minutes", "we wait fifteen minutes", "the visit may be shortened"),
    "Cancelling": (
        "free up to a day before",
        "free at any time",
        "a small fee on the same day",
        "free up to two hours before",
    ),
    "Access": ("step free entrance", "two steps at the door", "elevator in the lobby", "ramp at the side door"),
    "Children": ("welcome", "only with a parent", "play corner in the lobby", "over six years only"),
}
DEPARTMENTS = ("billing", "the manager", "the front desk", "accounts", "support")


@dataclass(frozen=True)
class Rules:
    """What the receptionist must do; each is said in the system prompt, so that a reply's policy follows from the context."""

    confirm: bool
    check: bool
    ask_phone: bool
    find_by: str  # "name" or "phone"
    transfer: bool


@dataclass(frozen=True)
class Business:
    """One business as its system prompt tells it. `facts` maps a label of the prompt to its text; prices are in dollars."""

    name: str
    kind: str
    city: str
    today: str
    prices: dict[str, int]
    weekday_hours: tuple[str, str]
    saturday_hours: tuple[str, str] | None
    facts: dict[str, str]
    staff: tuple[str, ...]
    rules: Rules

    @property
    def services(self) -> tuple[str, ...]:
        return tuple(self.prices)

    def system_prompt(self) -> str:
        """The facts and the rules, one per line."""
        saturday = " to ".join(self.saturday_hours) if self.saturday_hours else "closed"
        rules = self.rules
        yes_no = ("no", "yes")
        lines = [
            f"You answer the phone for {self.name}, {article(self.kind)} {self.kind} in {self.city}. Today is {self.today}.",
            f"Hours: Monday to Friday {' to '.join(self.weekday_hours)}, Saturday {saturday}, Sunday closed.",
            "Prices: " + ", ".join(f"{service} ${price}" for service, price in self.prices.items()) + ".",
            *(f"{label}: {text}." for label, text in self.facts.items()),
            f"Staff: {', '.join(self.staff)}.",
            f"Rules: confirm first: {yes_no[rules.confirm]}. check availability: {yes_no[rules.check]}. "
            f"ask for phone: {yes_no[rules.ask_phone]}. find bookings by: {rules.find_by}. transfer calls: {yes_no[rules.transfer]}.",
        ]
        return "\n".join(lines)

    def tools(self) -> list[dict[str, Any]]:
        """The tools as JSON Schema function definitions."""
        booking = ["service", "date", "time", "name"] + (["phone"] if self.rules.ask_phone else [])
        tools = [
            _tool("book_appointment", "Book a visit.", [*booking, "provider"], booking),
            _tool("find_appointment", "Find a booked visit.", [self.rules.find_by]),
            _tool("move_appointment", "Move a booked visit.", ["id", "date", "time"]),
            _tool("cancel_appointment", "Cancel a booked visit.", ["id"]),
            _tool("take_message", "Write down a message.", ["name", "phone", "topic"]),
        ]
        if self.rules.check:
            tools.append(_tool("check_availability", "See whether a time is free.", ["date", "time"]))
        if self.rules.transfer:
            tools.append(_tool("transfer_call", "Put the caller through.", ["to"]))
        return tools


PARAMETERS = {
    "service": "The service, as the price list names it.", "date": "The day, as the caller says it.", "time": "The time, as the caller says it.",
    "name": "Full name.", "phone": "Phone number.", "provider": "A member of staff, if the caller asks for one.", "id": "Booking id.",
    "topic": "What it is about.", "to": "A person or a department.",
}  # fmt: skip


def _tool(name: str, description: str, parameters: list[str], required: list[str] | None = None) -> dict[str, Any]:
    properties = {key: {"type": "string", "description": PARAMETERS[key]} for key in parameters}
    schema = {"type": "object", "properties": properties, "required": required or parameters}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


def article(noun: str) -> str:
    """ "a" or "an", by the first letter."""
    return "an" if noun[0] in "aeiou" else "a"


def ordinal(day: int) -> str:
    """3 as "3rd"."""
    suffix = "th" if 10 <= day % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return f"{day}{suffix}"


def _facts(rng: random.Random) -> dict[str, str]:
    facts = {}
    if rng.random() < 0.6:
        facts["Parking"] = rng.choice(PARKING)
    if rng.random() < 0.5:
        facts["Address"] = f"{rng.randint(1, 990)} {rng.choice(STREETS)} Street"
    if rng.random() < 0.5:
        facts["Payment"] = rng.choice(PAYMENT)
    for label in rng.sample(list(EXTRAS), rng.randint(0, 2)):
        facts[label] = rng.choice(EXTRAS[label])
    return facts


def business(rng: random.Random, held_out_names: bool) -> Business:
    """A random business; its rules are fair coins, except that most take a phone number."""
    kind = rng.choice(list(KINDS))
    suffixes, services = KINDS[kind]
    chosen = rng.sample(services, rng.randint(3, min(5, len(services))))
    title = rng.choice(("Dr. ", "", "", ""))
    last = [names.word(rng, names.LAST if title else names.FIRST, held_out_names) for _ in range(rng.randint(2, 3))]
    return Business(
        name=f"{names.word(rng, names.LAST, held_out_names)} {rng.choice(suffixes)}",
        kind=kind,
        city=rng.choice(CITIES),
        today=f"{rng.choice(WEEKDAYS)}, {rng.choice(MONTHS)} {ordinal(rng.randint(1, 28))}",
        prices={service: rng.choice((15, 20, 25, 30, 35, 40, 45, 50, 60, 65, 75, 80, 85, 90, 95, 110, 120, 150, 180, 200)) for service in chosen},
        weekday_hours=(rng.choice(("7 am", "8 am", "8:30 am", "9 am", "9:30 am", "10 am")), rng.choice(("4 pm", "5 pm", "5:30 pm", "6 pm", "7 pm", "8 pm"))),
        saturday_hours=(rng.choice(("8 am", "9 am", "10 am", "11 am")), rng.choice(("12 pm", "1 pm", "2 pm", "3 pm"))) if rng.random() < 0.6 else None,
        facts=_facts(rng),
        staff=tuple(title + word for word in dict.fromkeys(last)),
        rules=Rules(
            confirm=rng.random() < 0.5, check=rng.random() < 0.5, ask_phone=rng.random() < 0.7,
            find_by=rng.choice(("name", "name", "phone")), transfer=rng.random() < 0.6,
        ),
    )  # fmt: skip
