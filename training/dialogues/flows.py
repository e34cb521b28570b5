"""The receptionist's policy, one flow per intent. What is done next follows from the context alone; only values and
wording are random.
"""

from collections.abc import Callable

from training.dialogues.business import DEPARTMENTS, EXTRAS, WEEKDAYS
from training.dialogues.call import Call, on_date, random_date, random_time, with_article
from training.dialogues.caller.framing import TOPICS
from training.dialogues.names import booking_id, phone

DIGRESSION_RATE = 0.07


def ask(call: Call, acts: tuple[str, ...], answer: Callable[[], list[str]], **slots: str) -> None:
    """Ask something; the caller answers, or first asks a question back and is asked again."""
    call.agent("ack", *acts, **slots)
    if call.rng.random() < DIGRESSION_RATE:
        reply = question(call)
        call.agent(*reply[0], *acts, **reply[1], **slots)
    call.caller(*answer())


# -- questions answered from the system prompt


def question(call: Call) -> tuple[tuple[str, ...], dict[str, str]]:
    """The caller asks about a fact. Returns the acts and slots of the answer."""
    rng, shop = call.rng, call.business
    kind = rng.random()
    if kind < 0.3:
        day = rng.choice(WEEKDAYS)
        call.caller(call.caller_line("ask_weekday_hours", {"day": day}))
        hours = {"Sunday": None, "Saturday": shop.saturday_hours}.get(day, shop.weekday_hours)
        return (
            (("open_hours",), {"day": day, "open": hours[0], "close": hours[1]})
            if hours
            else (("closed",), {"day": day})
        )
    if kind < 0.6:
        service = rng.choice(shop.services)
        call.caller(call.caller_line("ask_price", {"a_service": with_article(service)}))
        return ("price",), {"service": service, "price": str(shop.prices[service])}
    label = rng.choice([*shop.facts, *shop.facts, "Parking", "Address", "Payment", rng.choice(list(EXTRAS))])
    call.caller(call.caller_line(f"ask_{label}" if label in EXTRAS else f"ask_{label.lower()}", {}))
    if label in shop.facts:
        return ("fact",), {"label": label, "low_label": label.lower(), "fact": shop.facts[label]}
    return ("no_fact",), {"low_label": label.lower()}


def ask_question(call: Call) -> None:
    acts, slots = question(call)
    call.agent(*acts, "more", **slots)


def small_talk(call: Call) -> None:
    call.caller(call.caller_line("small_talk", {}))
    call.agent("small_talk", "offer_help")


# -- shared steps


def ensure_contact(call: Call, need_phone: bool) -> None:
    """Ask for the name and, where needed, the phone number that are not known yet."""
    known = call.known
    if "name" not in known and need_phone and "phone" not in known:
        name, number = call.new_person(), phone(call.rng)
        if call.rng.random() < 0.75:
            ask(call, ("ask_name_and_phone",), lambda: contact_lines(call, name, number))
            known.update(name=name, phone=number)
        else:
            ask(call, ("ask_name_and_phone",), lambda: [call.caller_line("give_name", {"name": name})])
            known.update(name=name)
    if "name" not in known:
        name = call.new_person()
        ask(call, ("ask_name",), lambda: [call.caller_line("give_name", {"name": name})])
        known.update(name=name)
    if need_phone and "phone" not in known:
        number = phone(call.rng)
        ask(call, ("ask_phone",), lambda: [call.caller_line("give_phone", {"phone": number})])
        known.update(phone=number)


def contact_lines(call: Call, name: str, number: str) -> list[str]:
    slots = {"name": name, "phone": number}
    if call.rng.random() < 0.65:
        return [call.caller_line("name_and_phone", slots)]
    return [call.caller_line("give_name", slots), call.caller_line("give_phone", slots)]


def ensure_when(call: Call, slots: dict[str, str]) -> None:
    """Ask for the day and the time that are missing; where the rules say so, see whether they are free and settle on
    a time that is.
    """
    rng = call.rng
    if "date" not in slots and "time" not in slots:
        date, time = random_date(rng), random_time(rng)
        if rng.random() < 0.8:
            ask(call, ("ask_when",), lambda: [call.caller_line("give_when", call.when_slots(date, time))])
            slots.update(date=date, time=time)
        else:
            ask(call, ("ask_when",), lambda: [call.caller_line("give_date", {"on_date": on_date(date)})])
            slots.update(date=date)
    if "date" not in slots:
        date = random_date(rng)
        ask(call, ("ask_date",), lambda: [call.caller_line("give_date", {"on_date": on_date(date)})])
        slots.update(date=date)
    if "time" not in slots:
        time = random_time(rng)
        ask(call, ("ask_time",), lambda: [call.caller_line("give_time", {"time": time})])
        slots.update(time=time)
    if call.business.rules.check:
        check(call, slots)


def check(call: Call, slots: dict[str, str]) -> None:
    """check_availability until a time is free; an offered time counts as free."""
    rng = call.rng
    for _ in range(3):
        wanted = {"date": slots["date"], "time": slots["time"]}
        if rng.random() < 0.7:
            call.tool("check_availability", wanted, {"free": True})
            return
        offered = random_time(rng)
        call.tool("check_availability", wanted, {"free": False, "next": offered})
        call.agent("offer_other", "offer_next", **wanted, next=offered)
        if rng.random() < 0.7:
            call.caller(call.caller_line("accept_offer", {}))
            slots["time"] = offered
            return
        slots["time"] = random_time(rng)
        call.caller(call.caller_line("correct_time", {"time": slots["time"]}))
    call.tool("check_availability", {"date": slots["date"], "time": slots["time"]}, {"free": True})


def confirm(call: Call, acts: tuple[str, ...], slots: dict[str, str], correctable: tuple[str, ...]) -> None:
    """Read back and wait for a yes; a correction changes one value, checks it where the rules say so, and reads back
    again.
    """
    while True:
        call.agent(*acts, **slots)
        if not correctable or call.rng.random() < 0.8:
            call.caller(call.caller_line("yes", {}))
            return
        field = call.rng.choice(correctable)
        value = {
            "name": call.new_person,
            "phone": lambda: phone(call.rng),
            "time": lambda: random_time(call.rng),
            "date": lambda: random_date(call.rng),
        }[field]()
        call.caller(call.caller_line(f"correct_{field}", {field: value}))
        slots[field] = value
        if field in ("name", "phone"):
            call.known[field] = value
        elif call.business.rules.check:
            check(call, slots)


# -- intents that end in a tool call


def book(call: Call) -> None:
    rng, shop = call.rng, call.business
    slots: dict[str, str] = {}
    provider = rng.choice(shop.staff) if rng.random() < 0.25 else None
    service, date, time = rng.choice(shop.services), random_date(rng), random_time(rng)
    kind = 1.0 if call.generous else rng.random()
    if kind < 0.12:
        lines = [call.caller_line("book_bare", {})]
    elif kind < 0.4:
        lines = [call.caller_line("book", {"a_service": with_article(service)})]
        slots.update(service=service)
    else:
        lines = [call.caller_line("book_when", {"a_service": with_article(service), **call.when_slots(date, time)})]
        slots.update(service=service, date=date, time=time)
    if provider:
        lines.append(call.caller_line("with_provider", {"provider": provider}))
    lines += volunteered(call, shop.rules.ask_phone)
    call.caller(*lines)
    finish_booking(call, slots, provider)


def volunteered(call: Call, need_phone: bool) -> list[str]:
    """Name and phone said before they are asked for."""
    if "name" in call.known or not (call.generous or call.rng.random() < 0.25):
        return []
    call.known["name"] = name = call.new_person()
    if not need_phone or not (call.generous or call.rng.random() < 0.5):
        return [call.caller_line("give_name", {"name": name})]
    call.known["phone"] = number = phone(call.rng)
    return contact_lines(call, name, number)


def finish_booking(call: Call, slots: dict[str, str], provider: str | None) -> None:
    rng, shop = call.rng, call.business
    if "service" not in slots:
        service = rng.choice(shop.services)
        ask(call, ("ask_service",), lambda: [call.caller_line("give_service", {"a_service": with_article(service)})])
        slots["service"] = service
    ensure_when(call, slots)
    ensure_contact(call, shop.rules.ask_phone)
    contact = ("name", "phone") if shop.rules.ask_phone else ("name",)
    slots.update({key: call.known[key] for key in contact}, **({"provider": provider} if provider else {}))
    if shop.rules.confirm:
        acts = (
            ("confirm_book", "confirm_phone", "confirm_ask")
            if shop.rules.ask_phone
            else ("confirm_book", "confirm_ask")
        )
        confirm(call, acts, slots, ("date", "time", *contact))
    order = ("service", "date", "time", "name", "phone", "provider")
    booked = {"id": booking_id(rng)}
    call.tool("book_appointment", {key: slots[key] for key in order if key in slots}, booked)
    call.agent("booked", "booked_id", "more", **slots, **booked)


def look_up(call: Call) -> dict[str, str]:
    """find_appointment by the rules' key, until it is found. Returns the booking."""
    rng, key = call.rng, call.business.rules.find_by
    make = call.new_person if key == "name" else lambda: phone(rng)
    if key not in call.known:
        value = make()
        ask(call, (f"ask_{key}",), lambda: [call.caller_line(f"give_{key}", {key: value})])
        call.known[key] = value
    while rng.random() < 0.12:
        call.tool("find_appointment", {key: call.known[key]}, {"found": False})
        kind = "name" if key == "name" else "number"
        call.agent("not_found", "ask_other_key", key=call.known[key], key_kind=kind)
        call.known[key] = make()
        call.caller(call.caller_line(f"give_{key}", {key: call.known[key]}))
    booking = {
        "id": booking_id(rng),
        "service": rng.choice(call.business.services),
        "date": random_date(rng),
        "time": random_time(rng),
    }
    call.tool("find_appointment", {key: call.known[key]}, booking)
    return booking


def open_with_key(call: Call, line: str) -> None:
    """The caller's wish, sometimes with the key that the booking is found by."""
    key = call.business.rules.find_by
    lines = [line]
    if key not in call.known and (call.generous or call.rng.random() < 0.3):
        call.known[key] = call.new_person() if key == "name" else phone(call.rng)
        lines.append(call.caller_line(f"give_{key}", {key: call.known[key]}))
    call.caller(*lines)


def move(call: Call) -> None:
    rng = call.rng
    slots: dict[str, str] = {}
    if rng.random() < 0.5:
        slots.update(date=random_date(rng), time=random_time(rng))
        open_with_key(call, call.caller_line("move_when", call.when_slots(slots["date"], slots["time"])))
    else:
        open_with_key(call, call.caller_line("move", {}))
    booking = look_up(call)
    if not slots:
        date, time = random_date(rng), random_time(rng)
        call.agent("found", "ask_when", **{key: booking[key] for key in ("service", "date", "time")})
        call.caller(call.caller_line("give_when", call.when_slots(date, time)))
        slots.update(date=date, time=time)
    ensure_when(call, slots)
    slots["service"] = booking["service"]
    if call.business.rules.confirm:
        confirm(call, ("confirm_move", "confirm_ask"), slots, ("date", "time"))
    call.tool("move_appointment", {"id": booking["id"], "date": slots["date"], "time": slots["time"]}, {"ok": True})
    call.agent("moved", "more", **slots)


def cancel(call: Call) -> None:
    open_with_key(call, call.caller_line("cancel", {}))
    booking = look_up(call)
    slots = {key: booking[key] for key in ("service", "date", "time")}
    if call.business.rules.confirm:
        confirm(call, ("confirm_cancel", "confirm_cancel_ask"), slots, ())
    call.tool("cancel_appointment", {"id": booking["id"]}, {"ok": True})
    call.agent("cancelled", "more", **slots)


def random_topic(call: Call) -> str:
    article, adjective, noun, tail = (call.rng.choice(part) for part in TOPICS)
    article = "an" if article == "a" and adjective[0] in "aeiou" else article
    return " ".join(part for part in (article, adjective, noun, tail) if part)


def message(call: Call, act: str = "message") -> None:
    topic = random_topic(call)
    call.caller(call.caller_line(act, {"topic": topic}), *volunteered(call, True))
    ensure_contact(call, True)
    call.tool("take_message", {"name": call.known["name"], "phone": call.known["phone"], "topic": topic}, {"ok": True})
    call.agent("message_taken", "message_next", "more", topic=topic, phone=call.known["phone"])


def transfer(call: Call) -> None:
    rng = call.rng
    to = rng.choice(call.business.staff) if rng.random() < 0.6 else rng.choice(DEPARTMENTS)
    call.caller(call.caller_line("transfer", {"to": to}))
    if call.business.rules.transfer:
        call.tool("transfer_call", {"to": to}, {"ok": True})
        call.agent("ack", "transferred", to=to)
    else:
        call.agent("no_transfer", "offer_message")
        call.pending = call.caller_line("yes", {})
        message(call)


# -- intents that are never trained


def book_for_other(call: Call) -> None:
    """The name to book is not the caller's own and stands in the middle of the wish."""
    rng = call.rng
    service, date, time = rng.choice(call.business.services), random_date(rng), random_time(rng)
    call.known["name"] = name = call.new_person()
    slots = {"a_service": with_article(service), "name": name, **call.when_slots(date, time)}
    call.caller(call.caller_line("book_for_other", slots))
    finish_booking(call, {"service": service, "date": date, "time": time}, None)


def ask_free(call: Call) -> None:
    """Only a look at the calendar; nothing is booked."""
    date, time = random_date(call.rng), random_time(call.rng)
    call.caller(call.caller_line("ask_free", call.when_slots(date, time)))
    call.tool("check_availability", {"date": date, "time": time}, {"free": True})
    call.agent("is_free", "more", date=date, time=time)


def call_back(call: Call) -> None:
    message(call, "call_back")


TRAINED = {
    "book": book,
    "move": move,
    "cancel": cancel,
    "message": message,
    "transfer": transfer,
    "question": ask_question,
}
"""Intents of the training calls, by name."""
HELD_OUT = {"book_for_other": book_for_other, "ask_free": ask_free, "call_back": call_back}
"""Intents that no training call has."""
