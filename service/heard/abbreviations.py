"""What symbols and abbreviations are called in English. Names are letters as in ``Words.parts``, without spaces."""

from __future__ import annotations

SYMBOLS = {
    "-": ("to", "dash", "minus", "hyphen", "through", "until"),
    "–": ("to", "dash", "minus", "through", "until"),
    "—": ("to", "dash"),
    "−": ("minus",),
    "/": ("slash", "or", "per", "by", "over"),
    ".": ("point", "dot"),
    ",": ("comma",),
    ":": ("colon", "to"),
    "+": ("plus", "and"),
    "&": ("and",),
    "@": ("at",),
    "%": ("percent",),
    "％": ("percent",),
    "#": ("number", "hash", "hashtag", "pound"),
    "=": ("equals", "is"),
    "°": ("degrees", "degree"),
    "_": ("underscore",),
    "×": ("times", "by"),
    "*": ("star", "times", "asterisk"),
    "~": ("about", "around", "approximately", "tilde"),
    "$": ("dollars", "dollar"),
    "€": ("euros", "euro"),
    "£": ("pounds", "pound"),
    "¥": ("yen", "yuan"),
    "₹": ("rupees", "rupee"),
    "<": ("lessthan",),
    ">": ("greaterthan",),
}

MONTHS = """
    january february march april may june july august september october november december
""".split()  # noqa: SIM905

_ABBREVIATIONS = """
    dr: doctor drive; mr: mister; mrs: missus misses missis; ms: miss miz; prof: professor; st: saint street;
    ave: avenue; rd: road; blvd: boulevard; ln: lane; sq: square; apt: apartment; ste: suite; fl: floor;
    hwy: highway; no: number; nr: number; nos: numbers; vs: versus; etc: etcetera; eg: forexample; ie: thatis;
    approx: approximately; jr: junior; sr: senior; inc: incorporated; ltd: limited; co: company; corp: corporation;
    dept: department; tel: telephone; ext: extension; ok: okay; incl: including; excl: excluding; est: estimated;
    asap: assoonaspossible; min: minutes minute; mins: minutes; hr: hours hour; hrs: hours; h: hours hour;
    sec: seconds second; secs: seconds; s: seconds second; ms: milliseconds millisecond; max: maximum;
    temp: temperature; avg: average; pt: point part; kg: kilograms kilogram kilos kilo; g: grams gram;
    mg: milligrams milligram; lb: pounds pound; lbs: pounds; oz: ounces ounce;
    km: kilometers kilometer kilometres kilometre; m: meters meter metres metre million;
    cm: centimeters centimeter centimetres centimetre; mm: millimeters millimeter millimetres millimetre;
    mi: miles mile; ft: feet foot; in: inches inch; yd: yards yard; l: liters liter litres litre;
    ml: milliliters milliliter millilitres millilitre; c: celsius degreescelsius; f: fahrenheit degreesfahrenheit;
    mph: milesperhour; kmh: kilometersperhour kilometresperhour; kph: kilometersperhour kilometresperhour;
    gb: gigabytes gigabyte; mb: megabytes megabyte; kb: kilobytes kilobyte; tb: terabytes terabyte;
    usd: dollars dollar usdollars; eur: euros euro; gbp: pounds pound; chf: francs swissfrancs; jpy: yen;
    jan: january; feb: february; mar: march; apr: april; jun: june; jul: july; aug: august; sep: september;
    sept: september; oct: october; nov: november; dec: december; mon: monday; tue: tuesday; tues: tuesday;
    wed: wednesday; thu: thursday; thur: thursday; thurs: thursday; fri: friday; sat: saturday; sun: sunday;
    am: inthemorning; pm: intheafternoon intheevening atnight; x: times by; w: with; k: thousand; bn: billion;
"""

ABBREVIATIONS: dict[str, frozenset[str]] = {}
"""By their letters."""

for _entry in _ABBREVIATIONS.replace("\n", ";").split(";"):
    if _entry.strip():
        _letters, _, _names = _entry.strip().partition(":")
        ABBREVIATIONS[_letters] = ABBREVIATIONS.get(_letters, frozenset()) | frozenset(_names.split())
