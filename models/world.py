"""The support-desk world: questions with exact answers, seeded, in families of known difficulty.

One item is a conversation whose last turn is the expected answer. For the families of `HARD` it also carries a
*working*, which the large model learns to write before the answer (`working # answer`); the small model answers at
once. What a test may hold out: whole phrasings, names, operand pairs (`Item.part` says which).

    python world.py                      # two items of every family
    python world.py --check              # splits share nothing, answers agree with a second computation
    python world.py --write ../examples  # the example files of the test split
"""

import argparse
import hashlib
import itertools
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

SEED = 20_260
MARK = "#"  # stands between working and answer, and nowhere else in the world

# ---- words -----------------------------------------------------------------------------------------------------
# A name after "|" is held out: it appears in the test split only.


def words(text: str) -> tuple[list[str], list[str]]:
    seen, _, held = text.partition("|")
    return seen.split(), held.split()


PEOPLE = words(
    "Ann Bob Cara Dan Eva Finn Gina Hugo Iris Jack Kira Leo Mona Nils Olga Paul Rita Sven Tara Udo Vera Will Xena Yann "
    "Zoe Adam Beth Carl Dora Emil Fay Gus Hana Ivan Jill Kurt Lena Marc Nora Otto"
    "| Pia Ralf Selma Timo Ursa Viktor Wanda Ludo Marla Anton"
)
ITEMS = words(
    "mug lamp chair desk pen bag book clock plate towel cable radio scarf kettle brush plant shelf vase rug fan bowl "
    "tray sofa mirror | stool teapot candle bucket"
)
CITIES = words("Paris Rome Oslo Bern Prague Lisbon Dublin Vienna Madrid Athens Warsaw Riga | Turin Ghent Porto")
TEAMS = words("billing returns shipping repairs sales support stock quality | legal hiring")
STATUSES = "shipped packed delayed delivered cancelled returned".split()
MONTHS = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
MONTH_DAYS = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
# Made-up names are put together from these, so that copying a name does not rest on knowing it.
ONSETS = "b bl br c ch cl cr d dr f fl fr g gl gr h j k kl l m n p ph pl pr qu r s sc sh sk sl sm sn sp st str sw t th tr v w z".split()
NUCLEI = "a a a e e e i i o o o u u ai ea ee ie oa oo ou".split()
CODAS = ["", "", "", *"b ck d f g k l ll m n nd nk nt p r rd rn rt s sh ss st t th x".split()]

HELD_NAMES = {w for pool in (PEOPLE, ITEMS, CITIES, TEAMS) for w in pool[1]}

# In a phrasing, "(a|b)" is either of the two, and either may be empty. Held-out phrasings are written out.
ALTERNATIVES = re.compile(r"\(([^()]*\|[^()]*)\)")

# topic: (phrasings, held-out phrasings, answer)
FAQ: list[tuple[list[str], list[str], str]] = [
    (
        ["when are you open( today|)", "what are (your|the) (opening|business|shop) hours", "(what|at what) time do you (close|open)", "are you open on (sundays|saturdays|weekends)",
         "when does the (shop|store) (open|close)", "until when are you open", "(opening|business) (times|hours)", "at what hour do you (open|close)",
         "(give me|send me|list|show) your (opening|shop) (hours|times)", "how late are you open", "when do you open", "is the shop open (now|today|on monday)"],
        ["tell me your opening hours", "when do you close"],
        "We are open Monday to Saturday, 9:00 to 18:00.",
    ),
    (
        ["how do i return (an item|a thing|a parcel)", "what is (your|the) return policy", "can i (send something back|return a thing|bring it back)", "how do returns work",
         "how long do i have to return a (parcel|thing)", "i (want|would like|need) to return (a thing|something)", "how can i (send it back|return it)", "returning (an item|a thing)",
         "(may|can) i return (it|a parcel)", "what is the way to (send it back|return something)", "send (an item|it) back"],
        ["what is the way to return an item", "may i send the item back"],
        "You can return any item within 30 days in its box.",
    ),
    (
        ["when do i get my (money|refund) back", "how long does a refund take", "when will (my|the) refund (arrive|come|be here)", "how are refunds paid",
         "how do refunds work", "how many days until i have the refund", "when is the money back on my card", "refund (time|duration)",
         "when do i have (my|the) money (again|back)", "how (quick|slow) is a refund", "is the refund (fast|quick)", "how fast do refunds (come|arrive)"],
        ["how fast is a refund", "when will i have my money back"],
        "Refunds reach your card within 5 working days.",
    ),
    (
        ["how much is (shipping|delivery|postage)", "what does (delivery|shipping) cost", "is (shipping|delivery) free", "what are the (postage|shipping) fees",
         "what do you charge for delivery", "how much do you charge for shipping", "(shipping|delivery) (costs|fees|price)", "is there a fee for (delivery|shipping)",
         "what is the (price|fee) of (shipping|delivery)", "do i (have to pay|pay extra) for (shipping|postage)", "the cost of delivery"],
        ["what is the cost of shipping", "do i pay for delivery"],
        "Shipping costs 4.90 and is free above 50.00.",
    ),
    (
        ["how long does (delivery|an order) take", "how fast do you (ship|deliver)", "what is the delivery time", "how many days does (shipping|delivery) take",
         "how long until my order is here", "how long is the delivery", "in how many days do you deliver", "delivery time",
         "how (quick|slow) is the delivery", "how fast is (shipping|a parcel)", "how long (must|do) i wait for (a delivery|an order)"],
        ["how long does shipping take", "how fast is the delivery"],
        "Standard delivery takes 3 working days.",
    ),
    (
        ["do you have express (delivery|shipping)", "can i (get|have) it tomorrow", "is (next day|overnight) (shipping|delivery) possible", "how do i speed up delivery",
         "do you ship (overnight|express)", "i need it (by|for) tomorrow", "what does express cost", "express (shipping|delivery)",
         "is there (overnight|next day) shipping", "can it (arrive|come) tomorrow", "is express possible"],
        ["is there express shipping", "can it be here tomorrow"],
        "Express delivery costs 9.90 and arrives the next day.",
    ),
    (
        ["i (forgot|lost) my password", "how do i (reset|change) my password", "i cannot (log|sign) in", "my login (does not work|fails)",
         "i need a new password", "sign in does not work", "my password is (wrong|not accepted)", "(the|this) password does not work",
         "how can i (sign in|get a new password)", "how do i log in( again|)", "login does not work again"],
        ["my password does not work", "how can i log in again"],
        "Use the link Forgot password on the sign-in page.",
    ),
    (
        ["which cards do you (accept|take)", "how can i pay", "can i pay (with|by) paypal", "what payment methods (are there|do you have)",
         "do you (take|accept) cards", "can i pay by (bank transfer|card)", "what are the ways to pay", "(payment|paying) methods",
         "which (methods|ways) of payment do you (accept|take)", "which payment (is|ways are) possible", "is paypal (possible|okay)", "do you accept paypal"],
        ["which payment methods do you accept", "do you take paypal"],
        "We accept cards, PayPal and bank transfer.",
    ),
    (
        ["how long is the (warranty|guarantee)", "is there a (guarantee|warranty)", "what does the warranty cover", "do your items (carry|have) a warranty",
         "how many months of guarantee do i (have|get)", "what about the (warranty|guarantee)", "is my item under (warranty|guarantee)", "warranty (terms|time)",
         "do i (have|get) a warranty", "how many (years|months) (of warranty|does the warranty last)", "how many years is the guarantee"],
        ["do i have a guarantee", "how many months is the warranty"],
        "All items carry a 24 month warranty.",
    ),
    (
        ["how (do|can) i cancel (my|an|the) order", "can i still cancel", "i want to (stop|cancel) my order", "is it possible to cancel a (purchase|parcel)",
         "how can i cancel", "where do i cancel (an order|it)", "until when can i cancel", "(cancelling|cancel) an order",
         "is cancelling (possible|allowed)", "where is cancelling possible", "can i cancel (my order|the purchase|it)"],
        ["is it possible to cancel my order", "where can i cancel"],
        "You can cancel until the order is packed, under My orders.",
    ),
    (
        ["how do i change (my|the|an) address", "i moved to a new (home|house|flat)", "where do i (edit|update|correct) (my|the) address", "wrong delivery address what now",
         "my address is (wrong|old)", "i have a new (address|home)", "can i (update|change|correct) the address", "address change",
         "where can i change (my|an) address", "(the|my) address is new", "my home is new"],
        ["where do i change the address", "my home address is new"],
        "Change the address under My account, Addresses.",
    ),
    (
        ["where is (my|the) (invoice|receipt)", "how do i get (a receipt|an invoice)", "i need a (bill|receipt) for tax", "can you send the invoice again",
         "where do i find (invoices|receipts)", "i need an invoice", "please (give|send) me (a receipt|an invoice)", "invoice copy",
         "can i (have|get) (a receipt|a bill)", "where do i find (the|my) (bill|invoice)", "can i have an invoice"],
        ["can i get an invoice", "where do i find the receipt"],
        "Invoices are under My orders, Documents.",
    ),
    (
        ["how do i track my (parcel|order)", "where is (the|a) tracking link", "is there a tracking (number|link)", "can i follow my (shipment|parcel)",
         "how do i follow my parcel", "i want to track (my|the) order", "where can i track it", "(parcel|order) tracking",
         "can i track (it|the shipment|an order)", "where (do i find|is) my tracking number", "how can i track a parcel"],
        ["can i track my parcel", "where is the tracking number"],
        "The tracking link is in your shipping e-mail.",
    ),
    (
        ["do you sell gift (cards|vouchers)", "can i buy a (voucher|gift card)", "is there a gift (voucher|card)", "how do gift cards work",
         "what gift cards do you have", "i want to buy a gift (card|voucher)", "i (look for|need) a voucher", "gift (cards|vouchers)",
         "do you have (vouchers|a gift card)", "do you sell (vouchers|gift cards)", "are there (vouchers|gift cards)"],
        ["do you have gift cards", "do you sell a voucher"],
        "Gift cards are sold from 10.00 to 200.00.",
    ),
    (
        ["do you (ship|deliver) abroad", "can you (deliver|ship) to (norway|spain|italy)", "is international (shipping|delivery) possible", "which countries do you (deliver|ship) to",
         "do you deliver to other countries", "do you ship to (france|poland|greece)", "i live (abroad|in another country)", "international (delivery|shipping)",
         "is delivery abroad possible", "do you ship to (another country|all countries)", "can i order from abroad"],
        ["is shipping abroad possible", "do you ship to other countries"],
        "We ship to all of Europe; it takes 7 days.",
    ),
    (
        ["how do i (reach|contact|call) you", "what is your phone number", "can i talk to a (person|human)", "how do i contact support",
         "which number can i call", "i want to talk to (someone|a person)", "what is your e-mail", "contact (details|data)",
         "how can i (reach|call) you", "can i (reach|contact) you by (phone|e-mail)", "can i call (you|someone|support)", "your phone please"],
        ["how can i contact you", "can i call you by phone"],
        "Write to help@desk.example or call 0800 4455.",
    ),
    (
        ["how do i (delete|close) my account", "please (remove|delete) my data", "close my account", "i want my profile (erased|deleted)",
         "how can i close my account", "erase my data", "i want to delete my (profile|account)", "account deletion",
         "can you (close|erase) my account", "please (delete|remove) my profile", "can you delete my (profile|data)", "please erase my (account|data)"],
        ["can you delete my account", "please erase my profile"],
        "Account deletion is under My account, Privacy.",
    ),
    (
        ["is there a (student|school) discount", "do students (pay less|get a coupon|get something off)", "how do i get a (discount|coupon)", "do you offer (coupons|discounts)",
         "i am a student", "is there a coupon", "any (discount|coupon) for students", "student (price|discount)",
         "do i get a discount", "are there any discounts", "is there (some|a) discount"],
        ["do students get a discount", "is there any discount"],
        "Students get 10 percent off with a valid card.",
    ),
    (
        ["my parcel (arrived|came) damaged", "the item is (broken|damaged)", "the box was (crushed|damaged)", "i (received|got) a (faulty|damaged) (product|item)",
         "the item came (damaged|broken)", "it arrived (broken|damaged)", "there is damage on the parcel", "damaged (parcel|item)",
         "(my|a) parcel is damaged", "i got a broken (item|product)", "the product is (damaged|broken)"],
        ["the parcel is damaged", "i received a broken item"],
        "Send us a photo within 14 days and we replace it.",
    ),
    (
        ["when is it (back|again) in stock", "the (item|product) is sold out", "will you restock", "is it available again soon",
         "when do you restock( it|)", "it is out of stock", "it (says|shows) sold out", "sold out (item|product)",
         "when is (it|the product) in stock( again|)", "it is sold out( again|)", "is the item (in stock|out of stock)", "when can i buy it again"],
        ["when is the item in stock again", "it is sold out now"],
        "Press Notify me and we write when it is back.",
    ),
]

# intent: (phrasings, held-out phrasings)
INTENTS: dict[str, tuple[list[str], list[str]]] = {
    "refund": (
        ["i want my money back for (the|my) {i}", "please refund (the|my) {i}", "you still owe me the money for the {i}",
         "the refund for my {i} is missing", "give me back what i paid for the {i}", "i am waiting for the refund of (the|my) {i}",
         "i (need|want|expect) a refund for (the|my) {i}", "i would like my money back( for the {i}|, it is about the {i})", "pay me back for the {i}",
         "when is the {i} refunded"],
        ["i would like a refund for the {i}"],
    ),
    "delivery": (
        ["my {i} has not (arrived|come)", "where is (my|the) {i}", "(the|my) {i} is late again", "still waiting for the {i} to (arrive|come)",
         "the parcel with the {i} never (came|arrived)", "when does my {i} (arrive|come)", "the {i} is (still|yet) not here", "the {i} did not (come|arrive)",
         "the {i} should have come by now", "nobody brought the {i}"],
        ["the {i} has still not come"],
    ),
    "defect": (
        ["(the|my) {i} is (broken|faulty)", "my {i} (stopped working|broke)", "the {i} came with a (crack|scratch)", "the {i} does not (turn on|work)",
         "the {i} fell apart", "there is a (hole|crack) in (the|my) {i}", "(the|this) {i} has a (scratch|hole|crack)", "my {i} has a (fault|hole)",
         "a part of the {i} is missing"],
        ["my {i} has a crack"],
    ),
    "cancel": (
        ["please cancel (the|my) {i}", "i do not (need|want) the {i} any more", "stop the order of the {i}", "i ordered the {i} by mistake",
         "take the {i} out of my order", "i changed my mind about the {i}", "cancel the {i}( please|)", "i want to cancel (the|my) (order of the |){i}",
         "do not send the {i}", "cancel (this|the) order of the {i}"],
        ["cancel my order of the {i}"],
    ),
    "praise": (
        ["(the|my) {i} is (wonderful|lovely|great)", "i love (the|my) (new |){i}", "best {i} i ever had", "great {i}, works well",
         "(the|this) {i} is just perfect", "my family loves the {i}", "what a (wonderful|lovely|great) {i}", "(this|a) wonderful {i}", "i love this {i}",
         "so happy with the {i}"],
        ["i love this wonderful {i}"],
    ),
    "question": (
        ["does the {i} come in (blue|red)", "how (big|wide|tall) is the {i}", "is the {i} made of (wood|steel)", "which {i} fits a small room",
         "how heavy is the {i}", "do you have the {i} in (green|white)", "is the {i} (big|light|wide|waterproof)", "how much does the {i} weigh",
         "what colours does the {i} have", "is there a (bigger|heavy|lighter) {i}"],
        ["is the {i} heavy"],
    ),
}
# sentiment: (phrasings, held-out phrasings)
SENTIMENTS: dict[str, tuple[list[str], list[str]]] = {
    "negative": (
        ["this is (awful|bad|horrible)", "i am (really |so |)angry", "(very bad|awful|horrible|poor) service", "i am (so |)disappointed", "what a mess", "i am fed up",
         "this (shop |)is terrible", "worst shop ever", "i am (sad|upset) and angry", "your service is (bad|awful|terrible)", "never again",
         "i am disappointed and (sad|upset)"],
        ["i am angry and disappointed", "this service is terrible"],
    ),
    "neutral": (
        ["just so you know", "it is for (the office|my room)", "order was last week", "let me know", "for your information",
         "this is about my (last|first) order", "i use the same address", "it is the second one", "let me know about (it|the state)", "just (as|for) information",
         "(this|it) is about an order", "only for your (notes|records)"],
        ["let me know about my order", "just for your information"],
    ),
    "positive": (
        ["you are (great|wonderful)", "so happy with you", "(lovely|great|super) service", "keep it up", "(super|great|lovely) team", "i am (very |so |)pleased",
         "you are the best", "what a nice shop", "i am (very|so) happy with you", "(nice|super) and lovely people", "i am pleased( with you| with the service|)",
         "great and (nice|super) people"],
        ["i am so pleased with you", "great and lovely team"],
    ),
}
INTENT_ASKS = (
    ["(Classify|Name|Tell|Give) the intent: {m}", "What does the (customer|person) want? {m}", "Intent of this (message|text): {m}", "{m} - (which|what) intent is it?",
     "Which intent (is this|does this have)? {m}", "Intent? {m}", "What is the intent of this (message|text)? {m}", "{m} - (name|give) the intent",
     "Which intent do you see? {m}", "What intent has this text? {m}"],
    ["Which intent has this message? {m}"],
)
SENTIMENT_ASKS = (
    ["Sentiment: {m}", "Is this positive, (neutral or negative|negative or neutral)? {m}", "What is the sentiment (of|in): {m}", "{m} - what is the (mood|sentiment)?",
     "(Classify|Name|Tell|Give) the (sentiment|mood): {m}", "Mood? {m}", "Mood of this (message|text): {m}", "Which (mood|sentiment) is (this|it)? {m}",
     "What is the mood (here|in this text)? {m}", "What is the sentiment of this message? {m}"],
    ["What is the mood of this message? {m}"],
)

GREETINGS = ["hi", "hello", "hey", "good morning", "dear team", "hello there", "good evening", "good day", "hi all"]
LEADS = ["quick question: ", "please help, ", "excuse me, ", "sorry to ask, ", "one thing: ", "can you tell me, ", "i would like to know: ",
         "please tell me, ", "just asking: ", "a question: "]
TAILS = [" please", " thanks", " thank you", " asap", " it is urgent", " many thanks", " i could not find it", " if you can"]
ASIDES = ["it is raining here", "my cat sends greetings", "i am on the train", "i ordered twice this year", "my phone is slow today",
          "it is my first order", "i wrote last week", "my brother told me about you"]
NOTES = ["Note: the shop closes early on Friday.", "Note: new boxes are on the way.", "Note: the driver calls before he comes.",
         "Note: all times are local.", "Note: the list is from this morning.", "Note: ask the stock team about gifts."]
SYSTEMS = ["You are the support desk of a small shop.", "Answer briefly.", "You help customers and colleagues."]
SMALL_TALK = [("hello", "Hello, how can I help?"), ("are you there?", "Yes, how can I help?"), ("good morning", "Good morning, how can I help?")]


# ---- items -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Turn:
    role: str  # system, user or assistant
    text: str
    working: str = ""
    learn: bool = False  # an answer that carries loss in training


@dataclass(frozen=True)
class Item:
    family: str
    part: str  # "seen", or what the item holds out: "phrasing", "name", "pair"
    turns: tuple[Turn, ...]  # the last one is the expected answer

    @property
    def expect(self) -> str:
        return self.turns[-1].text

    @property
    def messages(self) -> list[dict[str, str]]:
        return [{"role": t.role, "content": t.text} for t in self.turns[:-1]]

    @property
    def fingerprint(self) -> bytes:
        text = "\n".join(t.text for t in self.turns[:-1]).lower()
        return hashlib.blake2b(text.encode(), digest_size=8).digest()


@dataclass
class Draft:
    """What a family makes: one context and questions about it, before politeness, typos and turns are added."""

    questions: list[tuple[str, str, str]]  # (question, working, answer)
    context: str = ""
    pairs: list[tuple[int, int]] = field(default_factory=list)

    @property
    def key(self) -> str:
        return self.context + "\n" + self.questions[0][0]


class Dice(random.Random):
    """Random choices that know whether they may touch what the test holds out."""

    def __init__(self, seed: int, test: bool = False):
        super().__init__(seed)
        self.test = test
        self.hold = ""
        self.held = False

    def start(self) -> None:
        """Decides what the next draft holds out (test split only)."""
        self.hold = ""
        if self.test:
            self.hold = self.choices(["", "phrasing", "name", "pair"], [0.56, 0.12, 0.12, 0.2])[0]

    def phrase(self, pool: tuple[list[str], list[str]]) -> str:
        seen, held = pool
        if self.hold != "phrasing":
            return self.vary(self.choice(seen))
        self.held = True
        return self.choice(held)

    def vary(self, phrasing: str) -> str:
        """One of the phrasing's variants: either side of every "(a|b)"."""
        return ALTERNATIVES.sub(lambda m: self.choice(m[1].split("|")), phrasing)

    def name(self, pool: tuple[list[str], list[str]]) -> str:
        return self.names(pool, 1)[0]

    def names(self, pool: tuple[list[str], list[str]], n: int) -> list[str]:
        """`n` different names; where names are held out, at least one of them is new."""
        seen, held = pool
        if self.hold == "name":
            self.held = True
            new = self.sample(held, min(n, len(held), 1 + self.randrange(2)))
            out = new + self.sample(seen, n - len(new))
            self.shuffle(out)
            return out
        made: set[str] = set()
        if not self.test and self.random() < 0.5:
            capital = seen[0][0].isupper()
            made = {self.made_up(capital) for _ in range(self.randint(1, n))} - HELD_NAMES
        out = sorted(made) + self.sample([w for w in seen if w not in made], n - len(made))
        self.shuffle(out)
        return out

    def made_up(self, capital: bool) -> str:
        """A name that means nothing: one to three syllables."""
        syllables = self.choices([1, 2, 3], [0.35, 0.5, 0.15])[0]
        word = "".join(self.choice(ONSETS) + self.choice(NUCLEI) for _ in range(syllables)) + self.choice(CODAS)
        return word.capitalize() if capital else word


def order_id(d: Dice) -> str:
    return f"{d.choice('ABCDEFGHKLMNPRST')}{d.randint(0, 9999):04d}"


def date(d: Dice) -> str:
    month = d.randrange(12)
    return f"{d.randint(1, MONTH_DAYS[month])} {MONTHS[month]}"


def price(d: Dice) -> str:
    return f"{d.randint(2, 199)}.{d.choice(['00', '50', '90', '99', '25'])}"


def email(d: Dice) -> str:
    user = d.name(PEOPLE).lower() + d.choice(["", "", ".", "_"])
    user += d.choice(["", d.name(PEOPLE).lower()]) if user[-1].isalpha() else d.name(PEOPLE).lower()
    return f"{user}{d.choice(['', '', str(d.randint(1, 99))])}@{d.choice(['mail', 'post', 'desk', 'box'])}.example"


# ---- easy families ---------------------------------------------------------------------------------------------
def faq(d: Dice) -> Draft:
    seen, held, answer = d.choice(FAQ)
    return Draft([(d.phrase((seen, held)), "", answer)])


def message(d: Dice, intent: str, sentiment: str | None) -> str:
    about = d.phrase(INTENTS[intent]).format(i=d.name(ITEMS))
    if sentiment is None:
        return about
    mood = d.phrase(SENTIMENTS[sentiment])
    return f"{about}, {mood}" if d.random() < 0.6 else f"{mood}. {about}"


def intent(d: Dice) -> Draft:
    label = d.choice(list(INTENTS))
    # A complaint with praise, or praise with a complaint, would have no one right label.
    moods = ["positive", None] if label == "praise" else ["neutral", "negative", None]
    text = message(d, label, d.choice(moods))
    return Draft([(d.phrase(INTENT_ASKS).format(m=text), "", label)])


def sentiment(d: Dice) -> Draft:
    label = d.choice(list(SENTIMENTS))
    about = {"positive": ["praise", "question"], "neutral": ["question", "cancel"], "negative": ["defect", "delivery", "refund"]}
    text = message(d, d.choice(about[label]), label)
    return Draft([(d.phrase(SENTIMENT_ASKS).format(m=text), "", label)])


EXTRACT_PARTS = {
    "order number": ["my order is {}", "order number {}", "it is about {}", "i mean order {}"],
    "amount": ["i paid {}", "the total was {}", "you charged me {}", "it cost {}"],
    "date": ["bought on {}", "it was the {}", "ordered {}", "it came on {}"],
    "e-mail": ["write to {}", "my e-mail is {}", "reach me at {}", "answer to {}"],
}
EXTRACT_ASKS = (
    ["(Give|Name|Tell me) the {f} in: {m}", "(Extract|Read) the {f}: {m}", "(Find|Get|Pick) the {f}: {m}", "{m} (What|Which) is the {f}?", "{m} (Give me|Find) the {f}.",
     "What is the {f} (in this|here): {m}", "Which {f} (is there|does it have|do you see): {m}", "(The|Only the) {f} of this: {m}", "{f}? {m}", "What {f} do you find in: {m}"],
    ["What {f} is in this: {m}"],
)


def extract(d: Dice) -> Draft:
    values = {"order number": order_id(d), "amount": price(d), "date": date(d), "e-mail": email(d)}
    kept = d.sample(list(values), d.choice([2, 3, 4]))
    parts = [d.choice(EXTRACT_PARTS[f]).format(values[f]) for f in kept]
    text = ", ".join(parts) + "."
    fields = d.sample(kept, min(2, len(kept)))
    ask = d.phrase(EXTRACT_ASKS)
    questions = [(ask.format(f=fields[0], m=text), "", values[fields[0]])]
    questions += [(d.choice(["and the {}?", "now the {}", "what about the {}?"]).format(f), "", values[f]) for f in fields[1:]]
    return Draft(questions)


REWRITE_ASKS = {
    "Could you please {x}?": (
        ["(Rewrite|Write|Put|Word) (it |this |)politely: {x}", "Make (it|this) (polite|more polite|kinder): {x}", "(Say|Ask) (it|this) politely: {x}", "Politely: {x}",
         "(Turn it into|As) a polite (request|question): {x}", "A polite (form|version)( please|): {x}", "More polite( please|): {x}", "(Kinder|Friendlier) please: {x}"],
        ["Polite please: {x}"],
    ),
    "We will {x}.": (
        ["(Turn|Make) (it|this) into a promise: {x}", "Promise (it|this): {x}", "(Write|Put|Word|Rewrite) (it|this) as a promise: {x}", "Make (it|this) a promise: {x}",
         "A promise( please|): {x}", "Promise please: {x}", "(Say|Tell) it as our promise: {x}", "As what we promise: {x}"],
        ["As a promise: {x}"],
    ),
    "Please {x}.": (
        ["(Shorten|Make it short|Short please|Say it in short|In short|Make this shorter): (hello, |hi, |)i was (just |)(wondering|asking myself) if you could (maybe |perhaps |){x}",
         "(Shorten|Make it short|Make it brief|In few words|Shorter please): (sorry to ask, but |excuse me, )could (somebody here|anybody|one of you) {x}",
         "(Shorten|Make it short|Cut it short|Make this shorter): it would be (really |so |)(nice|kind) if you could {x} some day",
         "(Shorten|Make it short|In short|Brief please): i (hope|wish|think) that (somebody|someone) (there |)could {x}"],
        ["Make it short: i was wondering if somebody could {x}"],
    ),
}


def rewrite(d: Dice) -> Draft:
    i, p, c = d.name(ITEMS), d.name(PEOPLE), d.name(CITIES)
    task = d.choice(
        [f"send the {i} to {p}", f"ship the {i} to {c}", f"call {p} about the {i}", f"refund order {order_id(d)}",
         f"cancel the {i} for {p}", f"pack the {i} and the {d.name(ITEMS)}", f"change the date to {date(d)}", f"write to {email(d)}",
         f"move order {order_id(d)} to {c}", f"tell {p} the price of the {i}", f"book {price(d)} for {p}", f"meet {p} in {c} on {date(d)}"]
    )
    form = d.choice(list(REWRITE_ASKS))
    return Draft([(d.phrase(REWRITE_ASKS[form]).format(x=task), "", form.format(x=task))])


def records(d: Dice, n: int) -> list[tuple[str, str, str, str]]:
    ids: list[str] = []
    while len(ids) < n:
        new = order_id(d)
        if new not in ids:
            ids.append(new)
    return [(o, d.choice(STATUSES), d.name(ITEMS), date(d)) for o in ids]


def record_text(r: tuple[str, str, str, str]) -> str:
    # No punctuation: a comma in every record would be one more word that says nothing about which record it is in.
    return " ".join(r)


def record_list(d: Dice, rs: list[tuple[str, str, str, str]]) -> str:
    # A bullet, so that a number is preceded by a space here as everywhere: to the tokenizer that is the same word.
    lines = [f"- {record_text(r)}" for r in rs]
    for _ in range(d.choice([0, 0, 0, 1, 2])):
        lines.insert(d.randrange(len(lines) + 1), f"- {d.choice(NOTES)}")
    return "\n".join(lines)


def record_count(d: Dice) -> int:
    return d.choice([1, 2, 3, 3, 4, 4, 5, 6]) if d.random() < 0.96 else d.randint(7, 14)


STATUS_ASKS = (
    ["status of (order |){}?", "what is the (state|status) of {}?", "what is the state of order {}?", "how is (order |){} doing?", "what about (order |){}?", "what happened (to|with) {}?",
     "is (order |){} on its way?", "(tell|give) me the (state|status) of (order |){}", "how far is (order |){}?", "where do we stand with (order |){}?", "what happens with order {}?"],
    ["what is the status of order {}?", "what happened to order {}?"],
)


def status(d: Dice) -> Draft:
    """The answer repeats the order number: "A1234 shipped"."""
    rs = records(d, record_count(d))
    picked = d.sample(rs, min(3, len(rs)))
    asks = [d.phrase(STATUS_ASKS)] + [d.choice(["and {}?", "and order {}?", "what about {}?"]) for _ in picked[1:]]
    return Draft([(a.format(r[0]), "", f"{r[0]} {r[1]}") for a, r in zip(asks, picked)], record_list(d, rs))


# ---- hard families ---------------------------------------------------------------------------------------------
RECORD_ASKS = {
    2: (
        ["what was ordered (in|with|as) (order |){}?", "which item is (in |)(order |){}?", "what is in (order |){}?", "(tell|give) me the item of (order |){}",
         "what item (is|belongs to) (order |){}?", "which item (belongs to|did they order in) {}?", "item of (order |){}?"],
        ["which item was ordered in {}?"],
    ),
    3: (
        ["when was (order |){} (ordered|placed|made)?", "date of (order |){}?", "(of|from) which day is (order |){}?", "what is the (day|date) of {}?",
         "(tell|give) me the (date|day) of (order |){}", "on which (day|date) was {} (ordered|placed)?", "what day is order {} from?"],
        ["what is the date of order {}?"],
    ),
}


def record(d: Dice) -> Draft:
    """Another field of a record than the one beside its number; working: the record itself."""
    rs = records(d, record_count(d))
    questions = []
    for r in d.sample(rs, min(3, len(rs))):
        k = d.choice([2, 3])
        questions.append((d.phrase(RECORD_ASKS[k]).format(r[0]), record_text(r), r[k]))
    return Draft(questions, record_list(d, rs))


def columns(pairs: list[tuple[int, int]]) -> str:
    return "".join(f"{carry}{digit}" for carry, digit in pairs)


def digits(n: int, width: int) -> list[int]:
    """Units first."""
    return [n // 10**i % 10 for i in range(width)]


def add_working(a: int, b: int) -> str:
    """`067 + 085 = 121501 : 152`: both padded; from the units on, carry and digit of every column; the sum."""
    width = len(str(max(a, b)))
    carry, out = 0, []
    for x, y in zip(digits(a, width), digits(b, width)):
        carry, digit = divmod(x + y + carry, 10)
        out.append((carry, digit))
    return f"{a:0{width}} + {b:0{width}} = {columns(out)} : {a + b}"


def subtract_working(a: int, b: int) -> str:
    """`152 - 085 = 171600 : 67`: as `add_working`, with borrows. `a` must not be below `b`."""
    width = len(str(a))
    borrow, out = 0, []
    for x, y in zip(digits(a, width), digits(b, width)):
        value = x - y - borrow
        borrow = int(value < 0)
        out.append((borrow, value % 10))
    return f"{a:0{width}} - {b:0{width}} = {columns(out)} : {a - b}"


def multiply_working(a: int, q: int) -> str:
    """`45 * 3 = 1513 : 135`: carry and digit of every column."""
    carry, out = 0, []
    for x in digits(a, len(str(a))):
        carry, digit = divmod(x * q + carry, 10)
        out.append((carry, digit))
    return f"{a} * {q} = {columns(out)} : {a * q}"


ARITHMETIC_ASKS = {
    "+": (
        ["(what|how much) is {a} (plus|and) {b}?", "{a} + {b}", "i paid {a} and (then|later) {b}, (what is|give me) the (total|sum)?", "add {a} and {b}", "add {b} to {a}",
         "what is the sum of {a} and {b}?", "what do i get for {a} (plus|and) {b}?", "{a} and {b} together?", "how much do {a} plus {b} (give|come to)?", "(sum|total) of {a} and {b}"],
        ["what do {a} and {b} make?"],
    ),
    "-": (
        ["(what|how much) is {a} minus {b}?", "{a} - {b}", "the bill is {a}, the (refund|discount) {b}, what (is left|remains)?", "(take|subtract) {b} from {a}", "{a} (less|minus) {b}?",
         "how much is left of {a} if i (take|pay) {b}?", "i had {a} and (paid|spent) {b}, what is left?", "what remains of {a} (when|if) {b} is (paid|gone)?", "{a} take away {b}?",
         "what is the (difference|rest) of {a} and {b}?"],
        ["what is left of {a} after {b}?"],
    ),
    "*": (
        ["(what|how much) is {a} times {b}?", "{a} * {b}", "{b} (items|things|pieces) at {a} each, what is the total?", "multiply {a} by {b}", "{a} times {b}?",
         "how much (are|cost) {b} (pieces|items|things) at {a}?", "what do i pay for {b} (items|pieces) at {a}?", "one costs {a}, what do {b} cost?", "{b} at {a} each?",
         "(price|cost) of {b} items at {a}"],
        ["what do {b} items at {a} cost?"],
    ),
}


def arithmetic(d: Dice) -> Draft:
    op = d.choice("+--**")
    if op == "*":
        a, b = d.randint(11, 99) if d.random() < 0.7 else d.randint(100, 999), d.randint(2, 9)
        working, value = multiply_working(a, b), a * b
    else:
        a, b = (d.randint(10, 99) if d.random() < 0.4 else d.randint(100, 999) for _ in range(2))
        if op == "+":
            working, value = add_working(a, b), a + b
        else:
            a, b = max(a, b + 1), min(a, b)
            working, value = subtract_working(a, b), a - b
    ask = d.phrase(ARITHMETIC_ASKS[op])
    return Draft([(ask.format(a=a, b=b), working, str(value))], pairs=[(a, b)])


TOTAL_ASKS = (
    ["what do i (have to |)pay?", "total?", "how much is (it|that|this|all of it)?", "what is the (total|sum)?", "what does it (all |)cost?", "(sum|amount) please.", "how much (do i|must i|should i) pay?",
     "what have i to pay?", "what is the bill?", "what is (the price|due)?"],
    ["what is to pay?"],
)


def total(d: Dice) -> Draft:
    lines = [(d.randint(2, 9), i, d.randint(11, 99)) for i in d.names(ITEMS, d.choice([2, 2, 3]))]
    steps = [multiply_working(p, q) for q, _, p in lines]
    value = lines[0][0] * lines[0][2]
    for q, _, p in lines[1:]:
        steps.append(add_working(value, q * p))
        value += q * p
    text = ", ".join(f"{q} {i} at {p}" for q, i, p in lines)
    extra, x = d.choice(["", "voucher", "shipping"]), d.randint(5, 30)
    if extra == "voucher":
        steps.append(subtract_working(value, x))
        value -= x
        text += f", minus a voucher of {x}"
    elif extra == "shipping":
        steps.append(add_working(value, x))
        value += x
        text += f", plus shipping {x}"
    return Draft([(f"{text}. {d.phrase(TOTAL_ASKS)}", "; ".join(steps), str(value))], pairs=[(p, q) for q, _, p in lines])


SORT_ASKS = {
    False: (
        ["sort (them |)by price, (cheapest|lowest) first.", "(list|sort|order) them from cheap to dear.", "(order|sort|list) these by price, (lowest|cheapest) first.", "(lowest|cheapest) price first(, sort them|, in order).",
         "(sort|put|list) (the|them with the) cheapest first.", "cheapest (to|down to) dearest( please|).", "cheap ones first, (in order|sort them|then the dear ones)."],
        ["cheapest first, please sort."],
    ),
    True: (
        ["sort (them |)by price, (dearest|highest) first.", "(list|sort|order) them from dear to cheap.", "(order|sort|list) these by price, (highest|dearest) first.", "(highest|dearest) price first(, sort them|, in order).",
         "(sort|put|list) (the|them with the) dearest first.", "dearest (to|down to) cheapest( please|).", "dear ones first, (in order|sort them|then the cheap ones)."],
        ["dearest first, please sort."],
    ),
}


def sort(d: Dice) -> Draft:
    items = d.names(ITEMS, d.randint(3, 6))
    lines = list(zip(items, d.sample(range(10, 100), len(items))))
    down = d.random() < 0.5
    ordered = sorted(lines, key=lambda x: x[1], reverse=down)
    text = ", ".join(f"{i} {p}" for i, p in lines)
    working = ", ".join(f"{p} {i}" for i, p in ordered)
    return Draft([(f"{text}. {d.phrase(SORT_ASKS[down])}", working, ", ".join(i for i, _ in ordered))])


COUNT_ASKS = (
    ["how many (are|were|of these are|things are) {}?", "count (those|the ones|all) that are {}.", "how many of them are {}?", "(number|count) of {} (ones|items|things)?",
     "what is the (number|count) of {} (ones|things)?", "count the {} (ones|things).", "how many {} (ones|things) (are there|do you see)?", "(tell|give) me the number of {} ones."],
    ["what is the number of those {}?"],
)


def count(d: Dice) -> Draft:
    wanted = d.choice(STATUSES)
    lines = [(i, wanted if d.random() < 0.4 else d.choice(STATUSES)) for i in d.names(ITEMS, d.randint(4, 8))]
    steps, n = [], 0
    for i, s in lines:
        n += s == wanted
        steps.append(f"{i} {s} {n}")
    text = ", ".join(f"{i} {s}" for i, s in lines)
    return Draft([(f"{text}. {d.phrase(COUNT_ASKS).format(wanted)}", ", ".join(steps), str(n))])


DEADLINE_ASKS = (
    ["(bought|ordered|paid) (on |){a}, return within {k} days. what is the last day?", "{k} days (after|from) {a}?", "(which|what) day is {k} days (after|from) {a}?",
     "(it came|i got it) (on |){a} and i have {k} days. (which|what) is the last day?", "what is the (date|day) {k} days after {a}?", "{a} plus {k} days?",
     "i have {k} days from {a}, until when(| is that)?", "(it starts|begin) (on |){a}, {k} days later is which day?"],
    ["what is the last day if i bought it {a} and have {k} days?"],
)
SPAN_ASKS = (
    ["how many days (are it |)from {a} to {b}?", "(ordered|sent|paid) {a}, (arrived|came|here) {b}. how many days( is that|)?", "days (from|between) {a} (to|and) {b}?",
     "how many days are between {a} and {b}?", "count the days from {a} (to|until) {b}", "how long is it from {a} to {b} in days?", "{a} to {b}, how many days?",
     "from {a} until {b}, how many days( is that|)?"],
    ["how many days lie between {a} and {b}?"],
)


def dates(d: Dice) -> Draft:
    m = d.randrange(12)
    day, following = d.randint(1, MONTH_DAYS[m]), (m + 1) % 12
    start = f"{day} {MONTHS[m]}"
    if d.random() < 0.5:
        k = d.randint(3, 45)
        end, at, steps = day + k, m, [add_working(day, k)]
        while end > MONTH_DAYS[at]:
            steps.append(f"{MONTHS[at]} {MONTH_DAYS[at]} : {subtract_working(end, MONTH_DAYS[at])}")
            end, at = end - MONTH_DAYS[at], (at + 1) % 12
        steps.append(MONTHS[at])
        return Draft([(d.phrase(DEADLINE_ASKS).format(a=start, k=k), "; ".join(steps), f"{end} {MONTHS[at]}")], pairs=[(day, k)])
    if day < MONTH_DAYS[m] and d.random() < 0.35:
        last = d.randint(day + 1, MONTH_DAYS[m])
        working, value, end = subtract_working(last, day), last - day, f"{last} {MONTHS[m]}"
    else:
        last = d.randint(1, MONTH_DAYS[following])
        left = MONTH_DAYS[m] - day
        working = f"{MONTHS[m]} {MONTH_DAYS[m]} : {subtract_working(MONTH_DAYS[m], day)}; {add_working(left, last)}"
        value, end = left + last, f"{last} {MONTHS[following]}"
    return Draft([(d.phrase(SPAN_ASKS).format(a=start, b=end), working, str(value))], pairs=[(day, last)])


HOP_ASKS = {
    "city": (
        ["in (which|what) city does {} work?", "where does {} work?", "(what|which) is the city (where {} works|of {})?", "(tell|give) me the city of {}", "which city has {} at work?",
         "what city does {} work in?", "in which city is {}?"],
        ["which city does {} work in?"],
    ),
    "team": (
        ["(which|what) team did the one {} assists join?", "{} assists someone (of|in) (which|what) team?", "{} assists a person of (which|what) team?", "in (which|what) team is the one {} assists?",
         "the one {} assists is in (which|what) team?", "(tell|give) me the team of the one {} assists", "the person {} assists joined what team?"],
        ["the one {} assists joined which team?"],
    ),
    "city of": (
        ["in (which|what) city works the one {} assists?", "{} assists someone in (which|what) city?", "{} assists a person in (which|what) city?", "where does the one {} assists work?",
         "the one {} assists is in (which|what) city?", "(tell|give) me the city of the one {} assists", "the person {} assists works in what city?"],
        ["the one {} assists works in which city?"],
    ),
}


def staff(d: Dice) -> tuple[list[str], dict[str, str], dict[str, str], dict[str, str], str]:
    people = d.names(PEOPLE, d.randint(3, 5))
    teams = d.names(TEAMS, d.randint(2, 4))
    cities = d.names(CITIES, len(teams))
    helps = {p: d.choice([x for x in people if x != p]) for p in people}
    joined = {p: d.choice(teams) for p in people}
    seat = dict(zip(teams, cities))
    facts = [f"{p} assists {helps[p]}." for p in people] + [f"{p} joined {joined[p]}." for p in people]
    facts += [f"{t} sits in {seat[t]}." for t in teams]
    d.shuffle(facts)
    return people, helps, joined, seat, "Facts: " + " ".join(facts)


def hop_questions(d: Dice, kinds: list[str]) -> Draft:
    people, helps, joined, seat, context = staff(d)
    questions = []
    for p in d.sample(people, min(2, len(people))):
        kind, b = d.choice(kinds), helps[p]
        if kind == "city":
            working, answer = f"{p} joined {joined[p]}, {joined[p]} sits in {seat[joined[p]]}", seat[joined[p]]
        elif kind == "team":
            working, answer = f"{p} assists {b}, {b} joined {joined[b]}", joined[b]
        else:
            working = f"{p} assists {b}, {b} joined {joined[b]}, {joined[b]} sits in {seat[joined[b]]}"
            answer = seat[joined[b]]
        questions.append((d.phrase(HOP_ASKS[kind]).format(p), working, answer))
    return Draft(questions, context)


def hops2(d: Dice) -> Draft:
    return hop_questions(d, ["city", "team"])


def hops3(d: Dice) -> Draft:
    return hop_questions(d, ["city of"])


# ---- families that exist for training only: copying, learned first ------------------------------------------------
def echo(d: Dice) -> Draft:
    kinds = [lambda: d.name(ITEMS), lambda: d.name(PEOPLE), lambda: order_id(d), lambda: str(d.randint(0, 999)), lambda: date(d), lambda: price(d), lambda: email(d)]
    text = " ".join(d.choice(kinds)() for _ in range(d.randint(1, 4)))
    return Draft([(f"Repeat: {text}", "", text)])


def show(d: Dice) -> Draft:
    rs = records(d, d.choice([2, 2, 3, 4]))
    return Draft([(f"show {r[0]}", "", record_text(r)) for r in d.sample(rs, 2)], record_list(d, rs))


def fact(d: Dice) -> Draft:
    people, helps, joined, seat, context = staff(d)
    p, t = d.choice(people), d.choice(list(seat))
    questions = [(f"whom does {p} assist?", "", f"{p} assists {helps[p]}"), (f"which team did {p} join?", "", f"{p} joined {joined[p]}"),
                 (f"where sits {t}?", "", f"{t} sits in {seat[t]}")]
    d.shuffle(questions)
    return Draft(questions, context)


Family = Callable[[Dice], Draft]
EASY: dict[str, Family] = {f.__name__: f for f in (faq, intent, sentiment, extract, rewrite, status)}
HARD: dict[str, Family] = {f.__name__: f for f in (record, arithmetic, total, sort, count, dates, hops2, hops3)}
COPYING: dict[str, Family] = {f.__name__: f for f in (echo, show, fact)}
FAMILIES = EASY | HARD
TRAINED = FAMILIES | COPYING


# ---- noise -----------------------------------------------------------------------------------------------------
def mistype(word: str, d: Dice) -> str:
    i = d.randrange(1, len(word) - 1)
    kind = d.randrange(3)
    if kind == 0:
        return word[:i] + word[i + 1 :]
    if kind == 1:
        return word[:i] + word[i] + word[i:]
    return word[:i] + word[i + 1] + word[i] + word[i + 2 :]


PROTECTED = {w.lower() for pool in (PEOPLE, ITEMS, CITIES, TEAMS) for part in pool for w in part} | set(STATUSES) | {"amount"}


def roughen(text: str, d: Dice, repeated: set[str]) -> str:
    """Typos in ordinary words and careless casing; never in names, numbers or anything that is `repeated`."""
    repeated = PROTECTED | repeated
    if d.random() < 0.15:
        parts = text.split(" ")
        at = [i for i, w in enumerate(parts) if len(w) > 4 and w.isalpha() and w.islower() and w not in repeated]
        if at:
            i = d.choice(at)
            parts[i] = mistype(parts[i], d)
            text = " ".join(parts)
    first = text.split(" ")[0]
    if d.random() < 0.3 and first.lower() not in repeated:
        text = text[0].upper() + text[1:]
    return text


def dress(text: str, d: Dice, repeated: set[str] | None) -> str:
    """Politeness and irrelevant sentences around a question; typos where `repeated` says what must stay as it is."""
    text = text if repeated is None else roughen(text, d, repeated)
    if d.random() < 0.3:
        text = f"{d.choice(GREETINGS)}, {text}" if d.random() < 0.5 else d.choice(LEADS) + text
    elif d.random() < 0.12:
        text = f"{d.choice(ASIDES)}. {text}"
    if d.random() < 0.25:
        text = text.rstrip("?") + d.choice(TAILS) + d.choice(["", "?"]) if text.endswith("?") else text + d.choice(TAILS)
    return text


def compose(family: str, draft: Draft, d: Dice, part: str) -> Item:
    """A draft as a conversation: usually one question, sometimes earlier turns or a system message."""
    turns: list[Turn] = []
    if d.random() < 0.06:
        turns.append(Turn("system", d.choice(SYSTEMS)))
    # A rewriting task repeats its text: no noise may touch it.
    noisy = family not in ("rewrite", *COPYING)
    questions = draft.questions
    if d.test:
        questions = questions[: 2 if d.random() < 0.15 else 1]
    elif d.random() < 0.3:
        questions = questions[:1]
    if not draft.context and d.random() < 0.08:
        asked, answer = d.choice(SMALL_TALK) if d.random() < 0.5 else faq(d).questions[0][::2]
        turns += [Turn("user", asked), Turn("assistant", answer)]
    plain_history = d.test or d.random() < 0.5
    for n, (question, working, answer) in enumerate(questions):
        # What stands in a message must stay findable in it: only the question is roughened where text is quoted.
        repeated = None if family == "extract" else set(re.findall(r"\w+", f"{working} {answer}"))
        asked = dress(question, d, repeated) if noisy else question
        if n == 0 and draft.context:
            asked = f"{draft.context}\nQuestion: {asked}" if d.random() < 0.85 else f"{asked}\n{draft.context}"
        last = n == len(questions) - 1
        keep = last or not plain_history
        turns += [Turn("user", asked), Turn("assistant", answer, working if keep else "", learn=keep or not working)]
    return Item(family, part, tuple(turns))


# ---- splits ----------------------------------------------------------------------------------------------------
def bucket(text: str) -> int:
    return hashlib.blake2b(text.encode(), digest_size=2).digest()[0]


def split_of(key: str) -> str:
    b = bucket(key)
    return "test" if b < 16 else "validation" if b < 32 else "train"


def is_held_pair(pair: tuple[int, int]) -> bool:
    return bucket("{}|{}".format(*sorted(pair))) < 24


def sample(family: str, split: str, d: Dice) -> Item:
    """One item of a family and split. Operand pairs, phrasings and names that are held out appear in "test" only."""
    d.start()
    while True:
        d.held = False
        draft = TRAINED[family](d)
        held_pair = any(map(is_held_pair, draft.pairs))
        part = d.hold if d.held else "pair" if held_pair else "seen"
        if held_pair and not d.test or d.hold == "pair" and draft.pairs and not held_pair:
            continue
        if family == "faq":
            # Few phrasings, many ways to dress them: the dressed message is the item.
            item = compose(family, draft, d, part)
            if split_of(item.turns[-2].text.lower()) == split:
                return item
        elif family in COPYING or split_of(draft.key.lower()) == split:
            return compose(family, draft, d, part)


def fixed_split(split: str, per_family: int, seed: int = SEED) -> list[Item]:
    """The `per_family` items of each family that make up the test or validation split, all different."""
    out, seen = [], set()
    for n, family in enumerate(FAMILIES):
        d = Dice(seed * 1000 + n + (500 if split == "test" else 0), test=split == "test")
        wanted = len(out) + per_family
        while len(out) < wanted:
            item = sample(family, split, d)
            if item.fingerprint not in seen:
                seen.add(item.fingerprint)
                out.append(item)
    return out


TEST_PER_FAMILY = 200


def batch_line(n: int, item: Item) -> dict:
    """A line of an OpenAI batch file, with what the answer is marked by."""
    answer_tokens = 48 if item.family in EASY else 160
    body = {"messages": item.messages, "temperature": 0, "max_completion_tokens": answer_tokens}
    return {"custom_id": f"{item.family}-{n:04d}", "method": "POST", "url": "/v1/chat/completions", "body": body,
            "expect": item.expect, "family": item.family}


def write_examples(folder: Path) -> None:
    """1,000 items of the test split in mixed order, and 200 others."""
    items = fixed_split("test", TEST_PER_FAMILY)
    random.Random(SEED).shuffle(items)
    for name, part in (("support_1000.jsonl", items[:1000]), ("prompts.jsonl", items[1000:1200])):
        with open(folder / name, "w", encoding="utf-8") as f:
            for n, item in enumerate(part):
                f.write(json.dumps(batch_line(n, item), ensure_ascii=False) + "\n")


def variants(phrasing: str) -> list[str]:
    """All that `Dice.vary` may make of a phrasing."""
    parts = ALTERNATIVES.split(phrasing)  # plain, alternatives, plain, …
    return ["".join(x) for x in itertools.product(*(p.split("|") if n % 2 else [p] for n, p in enumerate(parts)))]


def phrasings() -> dict[str, tuple[list[str], list[str]]]:
    """Every pool of phrasings: seen ones and held-out ones."""
    pools = {f"faq {answer}": (seen, held) for seen, held, answer in FAQ}
    for group in (INTENTS, SENTIMENTS, REWRITE_ASKS, RECORD_ASKS, ARITHMETIC_ASKS, SORT_ASKS, HOP_ASKS):
        pools |= {f"{next(iter(group))} {name}": pool for name, pool in group.items()}
    single = (INTENT_ASKS, SENTIMENT_ASKS, EXTRACT_ASKS, STATUS_ASKS, TOTAL_ASKS, COUNT_ASKS, DEADLINE_ASKS, SPAN_ASKS)
    return pools | {f"asks {n}": pool for n, pool in enumerate(single)}


def check(training_items: int) -> None:
    """Asserts what the splits promise."""
    test, validation = fixed_split("test", TEST_PER_FAMILY), fixed_split("validation", 50)
    held = {t.fingerprint for t in test} | {v.fingerprint for v in validation}
    assert len(held) == len(test) + len(validation), "test and validation share an item"
    seen = [{v for p in pool[0] for v in variants(p)} for pool in phrasings().values()]
    for own, (name, (_, hold)) in zip(seen, phrasings().items()):
        assert not own & set(hold), f"{name}: {own & set(hold)} is held out"
    faq_answers = [v for own in seen[: len(FAQ)] for v in own]
    assert len(faq_answers) == len(set(faq_answers)), "a question has two answers"
    d, shared = Dice(1), 0
    for n in range(training_items):
        item = sample(d.choice(list(TRAINED)), "train", d)
        shared += item.fingerprint in held
        text = " ".join(t.text for t in item.turns)
        assert MARK not in text and not HELD_NAMES & set(text.replace(",", " ").replace(".", " ").split()), text
    parts = {p: sum(t.part == p for t in test) for p in ("seen", "phrasing", "name", "pair")}
    print(f"test {len(test)} {parts}, validation {len(validation)}, shared with {training_items} training items: {shared}")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--check", action="store_true")
    p.add_argument("--write", type=Path)
    args = p.parse_args()
    if args.check:
        check(50_000)
    elif args.write:
        write_examples(args.write)
    else:
        d = Dice(1, test=True)
        for family in TRAINED:
            for _ in range(2):
                item = sample(family, "test", d) if family in FAMILIES else sample(family, "train", d)
                print(f"--- {family} ({item.part})")
                for t in item.turns:
                    print(f"{t.role}: {t.working + ' # ' if t.working else ''}{t.text}")


if __name__ == "__main__":
    main()
