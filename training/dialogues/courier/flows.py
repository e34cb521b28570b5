"""The clerk's policy, one flow per intent. What is done next follows from the context alone; only values and wording
are random.
"""

from collections.abc import Callable

from training.dialogues.courier import values
from training.dialogues.courier.company import FREE
from training.dialogues.courier.questions import answer
from training.dialogues.courier.service_call import Parcel, ServiceCall
from training.dialogues.courier.values import on_day

ASIDE_RATE, GRUMBLE_RATE, REPEAT_RATE = 0.08, 0.35, 0.12


# -- shared steps


def ask(call: ServiceCall, acts: tuple[str, ...], reply: Callable[[], str], **slots: str) -> None:
    """Ask something; the caller answers, or first asks a question back and is asked again."""
    call.agent(*acts, **slots)
    if call.asides and call.rng.random() < ASIDE_RATE:
        call.asides -= 1
        found, told = answer(call)
        call.agent(found, acts[-1], **(told | slots))
    call.caller(reply())


def end(call: ServiceCall, *acts: str, bad: bool = False, **slots: str) -> None:
    """Report and ask for more; bad news may make the caller grumble, and a reference may have to be repeated."""
    call.agent(*acts, "more", **slots)
    if bad and call.rng.random() < GRUMBLE_RATE:
        call.caller(call.line("grumble"))
        call.agent("regret", "more")
    elif "ref" in slots and call.rng.random() < REPEAT_RATE:
        call.caller(call.line("repeat_please"))
        call.agent("repeat", "more", **slots)


def wish(call: ServiceCall, line: str, same: bool = False) -> None:
    """The caller's wish, sometimes with the parcel's number; where `same`, it may be the parcel spoken of before."""
    if same and call.number and call.rng.random() < 0.6:
        call.caller(line, call.line("same_parcel"))
        return
    call.number = call.new_number() if call.rng.random() < 0.4 else None
    if not call.number:
        call.caller(line)
        return
    call.caller(line, call.line("with_number", number=call.number))
    read_back(call)


def ensure_number(call: ServiceCall) -> str:
    """Ask for the number where none was said. Returns it."""
    if not call.number:
        call.number = number = call.new_number()
        ask(call, ("ack", "ask_number"), lambda: call.line("give_number", number=number))
        read_back(call)
    return call.number


def read_back(call: ServiceCall) -> None:
    """Where the standing orders say so, repeat the number until the caller agrees."""
    while call.company.orders.read_back:
        call.agent("read_number", "read_ask", number=call.number)
        if call.rng.random() < 0.88:
            call.caller(call.line("yes"))
            return
        call.number = values.misread_number(call.rng, call.number)
        call.caller(call.line("correct_number", number=call.number))


def look_up(call: ServiceCall) -> Parcel:
    """track_parcel, once more where the number was wrong. Returns the record."""
    number = ensure_number(call)
    if number not in call.parcels and call.rng.random() < 0.1:
        call.tool("track_parcel", {"found": False}, number=number)
        call.agent("not_found", "ask_again", number=number)
        call.number = number = values.misread_number(call.rng, number)
        call.caller(call.line("new_number", number=number))
        read_back(call)
        number = call.number
    record = call.parcel(number)
    call.tool("track_parcel", record, number=number)
    return record


def confirm(call: ServiceCall, act: str, slots: dict[str, str], fee: str | None = None) -> None:
    """Where the standing orders say so, say what will be done and what it costs, until the caller agrees; an address
    or a day may be corrected.
    """
    while call.company.orders.confirm:
        charge = () if fee is None else ("no_fee",) if fee == FREE else ("fee",)
        on = {"on_day": on_day(slots["day"])} if "day" in slots else {}
        call.agent(act, *charge, "proceed", **slots, **on, **({"fee": fee} if fee else {}))
        fields = [key for key in ("address", "day") if key in slots]
        if not fields or call.rng.random() < 0.85:
            call.caller(call.line("yes"))
            return
        key = call.rng.choice(fields)
        other = slots[key]
        while other == slots[key]:
            other = values.address(call.rng) if key == "address" else call.day(call.company.last_collection).said
        slots[key] = other
        say = {"address": other} if key == "address" else {"day": other, "on_day": on_day(other)}
        call.caller(call.line(f"correct_{key}", **say))


# -- intents


def track(call: ServiceCall) -> None:
    wish(call, call.line("track"))
    record = look_up(call)
    status = record["status"]
    if status == "held":
        held(call, record)
    elif status == "delivered" and call.rng.random() < 0.35:
        call.agent(status, "more", **record, on_day=on_day(record["day"]))
        reason = values.claim_reason(call.rng, "never arrived")
        call.caller(call.line("not_received", reason=reason))
        settle_claim(call, reason)
    else:
        dated = {f"on_{key}": on_day(record[key]) for key in ("due", "day") if key in record}
        end(call, status, bad=status == "delayed", **record, **dated)


def held(call: ServiceCall, record: Parcel) -> None:
    """A parcel that waits at the depot: send it to the full address, or say where to fetch it."""
    shop = call.company
    if record["cause"] != values.NO_ADDRESS:
        opens, closes = shop.weekday_hours
        end(call, "held", "depot_pickup", bad=True, **record, place=shop.address, open=opens, close=closes)
        return
    address = values.address(call.rng)
    ask(call, ("held", "ask_full_address"), lambda: call.line("give_address", address=address), **record)
    send(call, address)


def send(call: ServiceCall, address: str, fee: str | None = None) -> None:
    """Confirm where the orders say so, redirect_parcel, report."""
    slots = {"number": call.number, "address": address}
    confirm(call, "confirm_redirect", slots, fee)
    due = call.day().said
    call.tool("redirect_parcel", {"ok": True, "due": due}, **slots)
    call.parcels[call.number] = {"status": "in transit", "at": call.company.depot, "due": due}
    end(call, "redirected", "redirected_due", **slots, due=due, on_due=on_day(due))


def redirect(call: ServiceCall) -> None:
    """A parcel is looked up first: what is out for delivery or delivered is refused."""
    address = values.address(call.rng) if call.rng.random() < 0.45 else None
    line = call.line("redirect_to", address=address) if address else call.line("redirect")
    known = call.parcels.get(call.number or "", {}).get("status")
    wish(call, line, same=known in ("in transit", "delayed", "held"))
    record = look_up(call)
    if record["status"] in ("out for delivery", "delivered"):
        end(call, "refuse_redirect", bad=True, state=record["status"])
        return
    if not address:
        address = values.address(call.rng)
        ask(call, ("noted", "ask_new_address"), lambda: call.line("give_address", address=address))
    send(call, address, call.company.redirect_fee)


def claim(call: ServiceCall) -> None:
    reason = values.claim_reason(call.rng) if call.rng.random() < 0.55 else None
    known = call.parcels.get(call.number or "", {}).get("status")
    wish(call, call.line("claim_for", reason=reason) if reason else call.line("claim"), same=known == "delivered")
    ensure_number(call)
    settle_claim(call, reason)


def settle_claim(call: ServiceCall, reason: str | None) -> None:
    """Ask when the parcel was posted, refuse what is too late, ask for the reason, open_claim."""
    rng, shop = call.rng, call.company
    late = rng.random() < 0.18
    ago = values.days_ago(rng, *((shop.claim_days + 1, shop.claim_days + 12) if late else (2, shop.claim_days)))
    ask(call, ("noted", "ask_posted"), lambda: call.line("give_posted", ago=ago))
    if late:
        end(call, "late_claim", bad=True, days=str(shop.claim_days))
        return
    if not reason:
        reason = values.claim_reason(rng)
        ask(call, ("noted", "ask_reason"), lambda: call.line("give_reason", reason=reason))
    slots = {"number": call.number, "reason": reason}
    confirm(call, "confirm_claim", slots)
    reference = call.new_reference("CL")
    call.tool("open_claim", {"claim": reference}, **slots)
    end(call, "claimed", "claim_next", ref=reference, cover=shop.cover)


def collect(call: ServiceCall) -> None:
    """Ask for the address and the day that were not said; a day without collections is refused and another offered."""
    rng, shop = call.rng, call.company
    call.number = None
    address, day = values.address(rng), call.day(6)
    if rng.random() < 0.45:
        call.caller(call.line("collect_when", address=address, day=day.said, on_day=day.on))
    else:
        call.caller(call.line("collect"))
        ask(call, ("ack", "ask_collection_address"), lambda: call.line("give_address", address=address))
        said = {"day": day.said, "on_day": day.on}
        ask(call, ("noted", "ask_day"), lambda: call.line("give_day", **said), weekdays=shop.collection_days)
    if day.weekday > shop.last_collection:
        day = settle_day(call, day)
    slots = {"address": address, "day": day.said}
    confirm(call, "confirm_collection", slots, shop.collection_fee)
    booked = {"reference": call.new_reference("VN"), **call.window(8)}
    call.tool("schedule_collection", booked, **slots)
    told = {"ref": booked["reference"], "from": booked["from"], "to": booked["to"], "on_day": on_day(slots["day"])}
    end(call, "collected", "reference", **slots, **told)


def settle_day(call: ServiceCall, day: values.Day) -> values.Day:
    """Refuse the day and offer another, which the caller takes or betters."""
    last = call.company.last_collection
    offer, other = call.day(last), call.day(last)
    weekdays = call.company.collection_days
    call.agent("no_collection", "offer_day", day=day.said, on_day=day.on, weekdays=weekdays, offer=offer.said)
    if offer == other or call.rng.random() < 0.7:
        call.caller(call.line("accept_day"))
        return offer
    call.caller(call.line("other_day", day=other.said, on_day=other.on))
    return other


def complain(call: ServiceCall) -> None:
    rng = call.rng
    matter = values.complaint(rng)
    if rng.random() < 0.55:
        call.caller(call.line("complain_of", matter=matter))
    else:
        call.caller(call.line("complain"))
        ask(call, ("regret", "ask_matter"), lambda: call.line("give_matter", matter=matter))
    if not call.name:
        name = values.titled_name(rng, call.sir)
        ask(call, ("noted", "ask_name"), lambda: call.line("give_name", name=name))
        call.name = name
    slots = {"name": call.name, "matter": matter}
    confirm(call, "confirm_complaint", slots)
    reference = call.new_reference("CP")
    call.tool("log_complaint", {"reference": reference}, **slots)
    end(call, "complained", "reference", "reply_time", ref=reference, days=str(call.company.reply_days))


def question(call: ServiceCall) -> None:
    found, told = answer(call)
    end(call, found, **told)


INTENTS = {
    "track": track,
    "redirect": redirect,
    "claim": claim,
    "collect": collect,
    "complain": complain,
    "question": question,
}
WEIGHTS = (26, 20, 16, 20, 10, 8)
"""How often each intent is drawn."""
