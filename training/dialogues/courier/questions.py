"""What callers ask about a courier's rules, answered from the system prompt. Owns which answer is the true one."""

from training.dialogues.business import WEEKDAYS
from training.dialogues.courier import values
from training.dialogues.courier.service_call import ServiceCall

Answer = tuple[str, dict[str, str]]
TOPICS = ("hours", "hours", "charge", "charge", "goods", "goods", "collections", "redirect", "claims", "place", "reply")


def answer(call: ServiceCall) -> Answer:
    """The caller asks. Returns the clerk's act and its slots."""
    shop, topic = call.company, call.rng.choice(TOPICS)
    if topic in ("hours", "charge", "goods"):
        return {"hours": _hours, "charge": _charge, "goods": _goods}[topic](call)
    call.caller(call.line(f"ask_{topic}"))
    return {
        "collections": ("collection_terms", {"weekdays": shop.collection_days, "fee": shop.collection_fee}),
        "redirect": ("redirect_terms", {"fee": shop.redirect_fee}),
        "claims": ("claim_terms", {"days": str(shop.claim_days), "cover": shop.cover}),
        "place": ("place", {"place": shop.address}),
        "reply": ("reply_time", {"days": str(shop.reply_days)}),
    }[topic]


def _hours(call: ServiceCall) -> Answer:
    weekday = call.rng.choice((0, 1, 2, 3, 4, 5, 5, 5, 6))
    name = WEEKDAYS[weekday]
    call.caller(call.line("ask_hours", weekday=name))
    hours = call.company.hours(weekday)
    return ("hours", {"weekday": name, "open": hours[0], "close": hours[1]}) if hours else ("closed", {"weekday": name})


def _charge(call: ServiceCall) -> Answer:
    heaviest = max(call.company.tariff)
    weight = call.rng.randint(1, heaviest + heaviest // 4)
    call.caller(call.line("ask_charge", weight=f"{weight} kg"))
    if band := call.company.charge(weight):
        return "charge", {"weight": f"{weight} kg", "most": str(band[0]), "price": f"£{band[1]}"}
    return "too_heavy", {"weight": f"{weight} kg", "most": str(heaviest)}


def _goods(call: ServiceCall) -> Answer:
    barred = call.company.barred
    goods = call.rng.choice(barred) if barred and call.rng.random() < 0.5 else call.rng.choice(values.GOODS)
    call.caller(call.line("ask_goods", goods=goods))
    told = {"goods": goods, "list": f"{', '.join(barred[:-1])} and {barred[-1]}"} if barred else {"goods": goods}
    return "unknown" if not barred else "barred" if goods in barred else "allowed", told
