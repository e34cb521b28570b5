# ruff: noqa: E501 - a template is read best on one line
"""What stands around and inside a caller's line whatever its act: openers, closers, self-corrections, topics."""

OPENERS = """
Okay|Okay so|Right|Alright|Let me see|Let me think|Good question|Sure thing|Hold on a second|One moment|Thanks|Great|Perfect|
Ah yes|Oh right|Now|Listen|Look|You see|To be honest|Honestly|If you don't mind|Excuse me|Pardon me|By the way|Hm|Gotcha|
I see|Fair enough|Very well|No worries|Fantastic|Wonderful|Lovely|Ah okay|Yes well|As I said|Like I said|Well now|Actually yes|
Cool|Nice|Awesome|Thank you so much|That's helpful|Good to know|Bear with me|Just a second|Sorry about that|Anyway|So then
""".replace("\n", "").split("|")
CLOSERS = """
if that helps|if I remember correctly|as I said|like I told you|thanks a lot|thanks again|many thanks|you know|right|okay|
if that's not too much trouble|whenever you're ready|that's what I want|I believe|I guess|as usual|for now|got that|
just so you know|if you have it|like before|to be clear|for sure|cheers|please and thank you|no rush|that's all for now|
hopefully|with pleasure|you got that
""".replace("\n", "").split("|")
"""What stands before or behind a line now and then; every fifth is held out like the templates."""
CORRECTED = ("{no wait|no, sorry|sorry, I mean|I mean|no, actually|scratch that}, <right>",)
TOPICS = (
    ("a", "the", "my", "an old", "a recent", "the last"),
    ("missing", "unpaid", "wrong", "double", "late", "lost", "broken", "returned", "pending", "second", "monthly", "blue", "small", "spare"),
    ("invoice", "order", "payment", "delivery", "receipt", "refund", "key", "coat", "report", "form", "package", "quote", "contract", "gift card", "warranty"),
    ("", "", "", "from last week", "from this morning", "for my sister", "in your window", "on the website", "from the spring", "for the office"),
)  # fmt: skip
"""A message's topic is one of each, so that most of the topics in a held-out call were never seen whole."""
