# ruff: noqa: E501 - a template is read best on one line
"""What the receptionist says, by act. Owns wording only: every turn is composed of several independent clauses, so that a turn carries many bits
while its policy stays decided by the context."""

AGENT: dict[str, tuple[str, ...]] = {
    "greet": (
        "{Thank you|Thanks} for calling <business>{|, good morning|, good afternoon|, hello}.",
        "{Hello|Hi|Good morning|Good afternoon|Good day}{|, and welcome|, thanks for calling}, {this is|you've reached|you are through to} <business>.",
        "<business>, {good morning|hello|good afternoon|good day|hi there}.",
        "{Welcome to|You've reached|This is} <business>{|, glad you called|, nice to hear from you}.",
    ),
    "offer_help": (
        "{How can I|How may I|What can I} {help you|do for you|assist you}{ today| this time| right now|}?",
        "What can {I|we} {help|assist} {you with|with}{ today|}?",
        "{Tell me|Please tell me|Go ahead and tell me} {what you need|how I can help|what this is about}.",
        "{What brings you to us|What are you calling about|What would you like to do}{ today|}?",
    ),
    "ack": (
        "{Sure|Of course|Sure thing|Certainly|Absolutely|Gladly}{|, happy to help|, no problem|, let me see}.",
        "{Okay|Alright|Good|Great|Very well}{|, thank you|, thanks|, got it|, I see}.",
        "{Thank you|Thanks|Many thanks}{| for that| so much|, got it|, that helps}.",
        "{Got it|I've got that|Noted|Understood}{|, thanks|, thank you|, one moment}.",
        "{Perfect|Wonderful|Lovely|Excellent}{|, thank you|, thanks|, let's go on}.",
        "{No problem|No trouble at all|My pleasure|That's fine}{|, let me help|, we can do that}.",
    ),
    "ask_service": (
        "{What|Which} {service|kind of visit|treatment} {would you like|do you need|are you after|should I book}?",
        "{What|Which service} {is it for|is the visit for|should I put down|can I book for you}?",
        "{And |}what {would you like to|do you want to} {come in for|book|have done}?",
    ),
    "ask_when": (
        "{What|Which} {day and time|date and time} {would you like|work for you|suit you|would be best}?",
        "{When|What day and what time} {would you like to come in|would you like to come|suits you|should I look at}?",
        "{And |}{when|for when} {would you like it|would you like that|should it be|can you make it}?",
    ),
    "ask_date": (
        "{What|Which} {day|date} {would you like|works for you|suits you|would be best}?",
        "{And |}{what day|which day} {should it be|can you make it|would you like to come}?",
    ),
    "ask_time": (
        "{What|At what} time {would you like|works for you|suits you|would be best}?",
        "{And |}{what time|at what time} {should it be|can you make it|would you like to come}?",
    ),
    "ask_name": (
        "{May I|Could I|Can I} {have|get|take} {your name|the name|a name}{, please|}?",
        "{What|And what} {is your name|name should I use|name is it under|name can I put down}?",
        "{Who|And who} {is it for|am I speaking with|is calling}{, please|}?",
    ),
    "ask_phone": (
        "{May I|Could I|Can I} {have|get|take} {your|a} {phone number|number|telephone number}{, please|}?",
        "{What|And what} {is your phone number|number can we reach you at|is the best number for you}?",
        "{Where|On what number} can we {reach|call} you{, please|}?",
    ),
    "ask_name_and_phone": (
        "{May I|Could I|Can I} {have|get|take} your {name and phone number|name and number}{, please|}?",
        "{What|And what} {is your name and phone number|name and number should I put down|are your name and number}?",
        "{Please|Just} {tell me|give me} {your name and a phone number|your name and number|a name and a number}.",
    ),
    "offer_other": (
        "{Sorry|I'm sorry|Unfortunately|I'm afraid}, <date> at <time> {is taken|is not free|is already booked|is full}.",
        "{Sadly|Sorry to say}, {we're full|we have nothing|there is no room} <on_date> at <time>.",
    ),
    "offer_next": (
        "{How about|What about|Would you take|I could offer} <next> {instead|that day|on the same day}?",
        "{Would|Does} <next> {work for you|suit you|be okay|be all right} {instead|that day|}?",
        "{The nearest|The next free|The closest} {time|slot} is <next>, {would that work|is that okay|shall I take it}?",
    ),
    "is_free": (
        "{Good news|Great|Yes}, <date> at <time> {is free|is open|is available|works}.",
        "{We have|There is} {room|a slot|an opening} <on_date> at <time>.",
    ),
    "confirm_book": (
        "{So that's|Just to confirm, that's|Let me read that back,|I have} <a_service> <when>{ with <provider>|}, {for <name>|under <name>|in the name of <name>}.",
        "{To confirm|To be sure|Let me repeat}, {it's|I have} <a_service> <when>{ with <provider>|}, {for|under} <name>.",
    ),
    "confirm_phone": (
        "{And |}{your number is|the number is|we reach you at} <phone>.",
        "{Phone|Your phone|The phone number}{| is} <phone>.",
    ),
    "confirm_move": (
        "{So I'll move|Let me move|I would move|Just to confirm, I move} {your visit|the <service>|it} {to|over to} <to_when>.",
        "{So the new time is|The new time would be|I have the new time as} <to_when>.",
    ),
    "confirm_cancel": (
        "{I found|I see|I have} {your|the} <service> <when>.",
        "{There is|Here is} {your|the} <service> <when>.",
    ),
    "confirm_cancel_ask": (
        "{Shall I|Should I|Do you want me to} {cancel it|take it out|cancel that one}?",
        "{Is that the one|Is that the visit} {to cancel|you want to cancel}?",
    ),
    "confirm_ask": (
        "{Is that|Is everything|Is all that} {right|correct|okay}?",
        "{Shall I|Should I|Can I} {book it|go ahead|save it|put that in}?",
        "{Does that|Does it all} {sound right|sound good|look right}?",
    ),
    "found": (
        "{I found|I see|I have} {your|the} <service> <when>.",
        "{There it is|Here it is}, {your|the} <service> <when>.",
    ),
    "not_found": (
        "{Sorry|I'm sorry|Hmm|I'm afraid}, {I can't find|I don't see|there is no} {a visit|a booking|an appointment} {under|for} <key>.",
        "{There's nothing|I see nothing|I find nothing} {under|for} <key>{, sorry|, I'm afraid}.",
    ),
    "ask_other_key": (
        "{Could it be|Might it be|Is it perhaps} under {another|a different} <key_kind>?",
        "{Which other|What other} <key_kind> {could it be under|should I try}?",
        "{Can you give me|Do you have} another <key_kind>?",
    ),
    "booked": (
        "{You're|You are} {all set|booked|booked in|down} for <a_service> <when>.",
        "{Your|The} <service> is {booked|set|confirmed|in the book} for <to_when>.",
        "{We'll|We will} see you <when> for <a_service>.",
    ),
    "booked_id": (
        "{Your|The} {booking|confirmation|reference} {number|code} is <id>.",
        "{It's|You find it|I put it} under <id>.",
    ),
    "moved": (
        "{Your|The} {visit|appointment|booking} is {now set for|moved to|set for} <to_when>.",
        "{I've moved|I moved} {it|you|your visit} to <to_when>.",
        "{The new time is|You're now down for} <to_when>.",
    ),
    "cancelled": (
        "{Your|The} {visit|appointment|booking|<service>} {is|has been} {cancelled|taken out}.",
        "{I've|I have} {cancelled|taken out} {it|your visit|the <service>}.",
        "{That's|It's} {cancelled|off the books|done}.",
    ),
    "message_taken": (
        "{I've|I have} {passed on|written down|left} {your message|a note} about <topic>.",
        "{Your|The} {message|note} about <topic> is {saved|with the team|on its way}.",
    ),
    "message_next": (
        "{Someone|A colleague|The team} will {call you back|get back to you|be in touch} {soon|today|shortly}.",
        "{We'll|They will} {call|ring} you {back |}{at|on} <phone>.",
    ),
    "transferred": (
        "{I'm putting you|I'll put you|Putting you} through to <to> {now|right away}.",
        "{One moment|Hold on|Please hold}, {I'm connecting you with|here comes|you're going to} <to>.",
    ),
    "no_transfer": (
        "{Sorry|I'm sorry|I'm afraid|Unfortunately}, {I can't put calls through|we don't transfer calls|I can't transfer you} {here|from this line|}.",
        "{Calls can't be|I'm not able to have calls} {put through|transferred}{, sorry|, I'm afraid}.",
    ),
    "offer_message": (
        "{Would you like to|Do you want to|Shall I let you} leave a message{ instead|}?",
        "{Can I|Could I|May I} take a message{ instead| for them|}?",
    ),
    "open_hours": (
        "{On <day> |}{we're open|we are open|our hours are} {from |}<open> to <close>{| on <day>}.",
        "{We open|The doors open} at <open> and close at <close>{ on <day>|}.",
    ),
    "closed": (
        "{We're|We are} closed on <day>{, I'm afraid|, sorry|}.",
        "{Sorry|Unfortunately}, {we're closed|we don't open|nobody is here} on <day>.",
    ),
    "price": (
        "{That's|It's|That would be|It comes to} $<price> for <a_service>.",
        "{We charge|You pay|The price is} $<price> for <a_service>.",
        "<a_service> {costs|is|comes to} $<price>.",
    ),
    "fact": (
        "{<label>|As for <low_label>|About <low_label>|On <low_label>}: <fact>.",
        "{For|On} <low_label>, {our note says|it says here|I have}: <fact>.",
    ),
    "no_fact": (
        "{Sorry|I'm sorry|I'm afraid}, {I don't have|there's nothing here|I have no information} {on|about} <low_label>.",
        "{I don't know|I can't say|I'm not sure} about <low_label>{, sorry|, I'm afraid}.",
    ),
    "small_talk": (
        "{Ha|Oh|Well}, {that's kind of you|it's a busy day here|all good over here|can't complain}.",
        "{I'm|I am} the {automatic|virtual|digital} {assistant|receptionist}{ here|}, {but I do my best|at your service|happy to help}.",
        "{I|We} {hear you|understand|know the feeling}, {don't worry|no rush at all|take your time}.",
    ),
    "more": (
        "{Is there|Was there} {anything else|something else}{ I can do| you need| today|}?",
        "{Anything|Something} {else|more} {I can help with|I can do for you|you need}{ today|}?",
        "What {else|more} can I {help with|do for you|help you with}{ today|}?",
        "{Do you need|Would you like} {anything else|more help|something else}{ today|}?",
    ),
    "bye": (
        "{Thanks|Thank you} for calling{ <business>|}{, take care|, goodbye|, bye now|}.",
        "{Have|Enjoy} {a|your} {great|nice|lovely|good} {day|afternoon|week}{, goodbye|, bye|}.",
        "{Goodbye|Bye|Bye now|Take care}{, and thanks for calling|, see you soon|, have a good day}.",
    ),
    "welcome": (
        "{You're|You are} {welcome|very welcome|most welcome}.",
        "{Glad|Happy} {to help|I could help|that worked out}.",
        "{My pleasure|Any time|Of course|No problem at all}.",
    ),
}
