"""Six ways of writing about the world. Each register is a function of a `Scribe` that returns sentences."""
from __future__ import annotations

from prunekit.embedded.entities import ATTRIBUTES, LISTS, WORDS, Entity
from prunekit.embedded.questions import KINDS, dialogue
from prunekit.embedded.scribe import Scribe, cap


# --- almanac
def almanac(w: Scribe) -> list[str]:
    """Entries about two to four entities, facts in varied order and wording."""
    lines = []
    for _ in range(w.number(2, 4)):
        entity = w.entity(w.pick(KINDS))
        attributes = list(ATTRIBUTES[entity.kind])
        w.rng.shuffle(attributes)
        lines += _entry(w, entity, attributes[:w.number(4, 7)])
    return lines


def _entry(w: Scribe, entity: Entity, attributes: list[str]) -> list[str]:
    lines, named = [], True
    while attributes:
        clause = w.said(entity, attributes.pop(), named)
        if attributes and w.chance(0.4):
            clause += f" and {w.said(entity, attributes.pop(), False)}"
        lines.append(cap(clause) + ".")
        named = w.chance(0.3)
    return lines


# --- stories
class Story:
    """Who has what, and who is where, after each event."""

    def __init__(self, w: Scribe, agents: int = 3, things: int = 2) -> None:
        self.w, self.agents, self.things = w, w.people(agents), w.things(things)
        self.at = {agent: w.pick(LISTS["spots"]) for agent in self.agents}
        self.holder: dict[str, Entity | None] = dict.fromkeys(self.things)
        self.left: dict[str, str] = {}
        self.last: Entity | None = None

    def opening(self, places: bool = True) -> list[str]:
        """Where everybody is (unless `places` is False), and who has what."""
        w = self.w
        lines = [w.vary(f"{cap(w.known(agent))} <was at|stood by|waited at> the {self.at[agent]}.")
                 for agent in self.agents if places]
        for thing in self.things:
            self.holder[thing] = agent = w.pick(self.agents)
            lines.append(w.vary(f"{agent.name} <had|carried|held> the {thing}."))
            self.last = agent
        return lines

    def _subject(self, agent: Entity) -> str:
        again, self.last = agent is self.last, agent
        return cap(agent.they) if again and self.w.chance(0.6) else agent.name

    def event(self) -> str:
        """One change of the world, told."""
        return self.w.vary(self._event())

    def _event(self) -> str:
        w, thing = self.w, self.w.pick(self.things)
        holder, draw = self.holder[thing], w.rnd()
        if holder is None:
            taker = w.pick(self.agents)
            self.holder[thing], self.at[taker] = taker, self.left[thing]
            return f"{self._subject(taker)} <found|took|picked up> the {thing} at the {self.left[thing]}."
        if draw < 0.55:
            other = w.pick([agent for agent in self.agents if agent is not holder])
            self.holder[thing] = other
            if w.chance(0.3):
                return f"{self._subject(other)} <took|got|won> the {thing} from {holder.name}."
            return f"{self._subject(holder)} <gave|handed|passed> the {thing} to {other.name}."
        if draw < 0.75:
            self.holder[thing], self.left[thing] = None, self.at[holder]
            return f"{self._subject(holder)} <left|hid|dropped> the {thing} at the {self.at[holder]}."
        mover = w.pick(self.agents)
        self.at[mover] = spot = w.pick([spot for spot in LISTS["spots"] if spot != self.at[mover]])
        return f"{self._subject(mover)} <went to|walked to|ran to> the {spot}."

    def truth(self, thing: str) -> str:
        holder = self.holder[thing]
        return f"{holder.name} had the {thing}" if holder else f"the {thing} lay at the {self.left[thing]}"

    def whereabouts(self, thing: str) -> tuple[str, str]:
        """A question about the thing and its answer."""
        w, holder = self.w, self.holder[thing]
        if holder:
            return w.pick((f"who has the {thing}?", f"who holds the {thing} now?")), holder.name
        question = w.pick((f"where is the {thing}?", f"where does the {thing} lie?"))
        return question, f"at the {self.left[thing]}"

    def doubt(self, thing: str) -> tuple[Entity, str]:
        """Somebody who may have the thing, and if they do; half of those who do not are not of the story."""
        w, holder = self.w, self.holder[thing]
        if holder and w.chance(0.5):
            return holder, "yes"
        named = w.chance(0.5)
        while True:
            agent = w.pick(self.agents) if named else w.entity("person")
            if agent is not holder and (named or agent not in self.agents):
                return agent, "no"


def stories(w: Scribe) -> list[str]:
    """Things change hands, questions or summaries need the state: one long story, or several short scenes."""
    if w.chance(0.65):
        return [line for _ in range(w.number(3, 5)) for line in _scene(w)]
    story = Story(w, w.number(2, 4), w.number(1, 3))
    lines = story.opening()
    for _ in range(w.number(2, 8)):
        lines.append(story.event())
        if w.chance(0.25):
            lines.append(_closing(w, story, w.pick(story.things)))
    return lines + [_closing(w, story, thing) for thing in story.things]


def _scene(w: Scribe) -> list[str]:
    """One to four sentences, then questions on who has what."""
    things = w.pick((1, 1, 2, 2, 3))
    story = Story(w, w.number(2, 3), things)
    lines = story.opening(places=w.chance(0.1))
    if w.chance(0.3):
        lines.append(story.event())
    return lines + [_yes_or_no(w, story, w.pick(story.things)) for _ in range(w.number(1, 2) + things // 2)]


def _closing(w: Scribe, story: Story, thing: str) -> str:
    draw = w.rnd()
    if draw < 0.4:
        question, answer = story.whereabouts(thing)
        return f"Question: {w.put(question)} Answer: {answer}."
    if draw < 0.7:
        return w.vary(f"<In the end|At nightfall|By then> {story.truth(thing)}.")
    return _yes_or_no(w, story, thing)


def _yes_or_no(w: Scribe, story: Story, thing: str) -> str:
    agent, answer = story.doubt(thing)
    doubt = w.pick(("does {} have the {}", "has {} got the {}", "is it {} who has the {}",
                    "is {} the one with the {}"))
    return f"Question: {w.put(doubt.format(agent.name, thing))}? Answer: {answer}."


# --- reckoning
def reckoning(w: Scribe) -> list[str]:
    """Counting, sums, ordering, the calendar."""
    return [w.pick((_sum, _sum, _count, _order, _older, _calendar))(w) for _ in range(w.number(4, 8))]


def _sum(w: Scribe) -> str:
    person, goods = w.entity("person"), w.pick(LISTS["counted"])
    a, b = w.number(2, 30), w.number(2, 15)
    if w.chance(0.5):
        before, change, after = a, f"<found|bought|got> {b} more", f"had {a + b}"
    else:
        before, change, after = a + b, f"<lost|sold|gave away> {b}", f"kept {a}"
    return w.vary(f"{person.name} had {before} {goods} and {change}, so {person.they} {after}.")


def _count(w: Scribe) -> str:
    start, step, length = w.number(1, 60), w.pick((1, 1, 2, 3, 5, 10)), w.number(5, 9)
    series = [start + step * i for i in range(length)]
    if w.chance(0.3):
        series.reverse()
    return f"Count by {step}: {', '.join(map(str, series))}."


def _order(w: Scribe) -> str:
    numbers = w.some(range(10, 100), w.number(3, 5))
    ways = (("from small to great", sorted(numbers)), ("from great to small", sorted(numbers, reverse=True)))
    way, ordered = w.pick(ways)
    return f"Put {', '.join(map(str, numbers))} in order {way}: {', '.join(map(str, ordered))}."


def _older(w: Scribe) -> str:
    a, b = w.people(2)
    years = abs(int(a.facts["born"]) - int(b.facts["born"]))
    older, younger = sorted((a, b), key=lambda person: int(person.facts["born"]))
    if years == 0:
        return f"{a.name} and {b.name} were both born in {a.facts['born']}, so they are of one age."
    ending = f"{older.name} is older" if w.chance(0.5) else f"{younger.name} is younger"
    births = f"{a.name} was born in {a.facts['born']} and {b.name} in {b.facts['born']}"
    return f"{births}, so {ending} by {years} years."


def _calendar(w: Scribe) -> str:
    days = w.world.days
    start, step = w.number(0, 6), w.number(1, 6)
    count = LISTS["numbers"][step - 2] + " days" if step > 1 else "one day"
    if w.chance(0.5):
        return f"If today is {days[start]}, then {count} later it is {days[(start + step) % 7]}."
    return f"If today is {days[start]}, then {count} ago it was {days[(start - step) % 7]}."


# --- nested
def nested(w: Scribe) -> list[str]:
    """Brackets, lists, quotations and repeated phrases: what an induction head is for."""
    ways = (_brackets, _again, _backwards, _chain, _quote, _table, _same)
    return [w.pick(ways)(w) for _ in range(w.number(3, 5))]


def _words(w: Scribe, count: int) -> list[str]:
    return [w.entity(w.pick(("person", "place", "animal", "thing"))).name for _ in range(count)]


def _brackets(w: Scribe) -> str:
    """A random tree of depth three or less, every bracket closed by its own kind."""
    def tree(depth: int) -> str:
        if depth == 0 or w.chance(0.25):
            return w.entity("thing").name
        left, right = w.pick(("()", "[]", "{}", "<>"))
        return f"{left} {' '.join(tree(depth - 1) for _ in range(w.number(1, 3)))} {right}"
    return f"Nest: {tree(3)}, {tree(3)}."


def _again(w: Scribe) -> str:
    phrase = " ".join(_words(w, w.number(4, 9)))
    return w.vary(f"<Say|Sing|Write>: {phrase}. Again: {phrase}. And again: {phrase}.")


def _backwards(w: Scribe) -> str:
    words = _words(w, w.number(3, 6))
    return f"Forwards: {', '.join(words)}. Backwards: {', '.join(reversed(words))}."


def _chain(w: Scribe) -> str:
    """A relative clause inside a relative clause, growing by one with each line."""
    nouns = [w.entity(w.pick(("animal", "thing"))).name for _ in range(w.number(3, 5))]
    verbs = [w.pick(("chased", "carried", "broke", "hid", "found", "feared")) for _ in nouns]
    lines, tail = [], f"the house of {w.entity('person').name}"
    for noun, verb in zip(nouns, verbs):
        tail = f"the {noun} that {verb} {tail}"
        lines.append(f"This is {tail}.")
    return " ".join(lines)


def _quote(w: Scribe) -> str:
    inner = w.entity("person")
    clause = w.said(inner, w.pick(list(ATTRIBUTES["person"])))
    a, b, c = w.people(3)
    heard = f"{a.name} said that {b.name} said that {clause}."
    return f"{heard} {c.name} answered: \"If {b.name} said that {clause}, then {a.name} heard it.\""


def _table(w: Scribe) -> str:
    """A key is given a value; later the key comes back and wants it."""
    keys, values = w.some(range(10, 100), 5), w.things(5)
    pairs = list(zip(keys, values))
    first = ", ".join(f"{key} is {value}" for key, value in pairs)
    w.rng.shuffle(pairs)
    return f"List: {first}. Look up: {', '.join(f'{key} is {value}' for key, value in pairs)}."


def _same(w: Scribe) -> str:
    """Comparing two words, the first step of every answer that is yes or no."""
    lines = []
    for _ in range(w.number(3, 5)):
        one, other = _words(w, 2)
        same = w.chance(0.5)
        lines.append(f"Question: {w.put(f'are {one} and {one if same else other} the same?')} Answer: "
                     f"{'yes' if same or one == other else 'no'}.")
    return " ".join(lines)


# --- chronicle
def chronicle(w: Scribe) -> list[str]:
    """Years in the life of two or three people, one place, one animal and one thing that keep coming back."""
    company, year = w.people(w.number(2, 3)), w.number(300, 690)
    place, thing, animal = w.entity("place").name, w.entity("thing").name, w.entity("animal").name
    craft = w.entity("craft").name
    refrain = w.vary(f"and the {animal} of {place} <slept|sang|was seen|was not seen>")
    first = company[0]
    lines = [w.vary(f"{cap(w.known(first))} and {company[1].name} <lived|met|worked> in {place}.")]
    for _ in range(w.number(4, 9)):
        year += w.number(1, 3)
        who = w.pick(company)
        friend = w.pick([person for person in company if person is not who])
        deed = w.pick(WORDS["deeds"]).format(
            s=who.name, o=friend.name, m=who.them, l=place, t=thing, b=animal, c=craft,
            x=w.pick(("house", "boat", "wall", "cart")))
        end = f", {refrain}" if w.chance(0.3) else ""
        lines.append(f"In {year} {deed}{end}.")
        if w.chance(0.35):
            lines.append(_aside(w, who, friend))
    return lines


def _aside(w: Scribe, who: Entity, friend: Entity) -> str:
    """What the chronicler adds: tense, number and pronouns at work."""
    facts = who.facts
    return cap(w.pick([w.vary(text) for text in (
        f"{who.they} was then <young|old|rich|poor>, and {who.their} {facts['pet']} was with {who.them}.",
        f"{who.they} and {friend.name} were <friends|neighbours|rivals> from that day.",
        f"people who live in {facts['home']} still speak of {who.them}.",
        f"{friend.name}, whose {friend.facts['treasure']} was known to all, <laughed|wept|said nothing>.",
        f"as a {facts['trade']} {who.they} <knew|did not know> what to do.",
    )]))


# How often each is drawn when all are: knowledge and state cost more to learn than form does.
SHARES = {"almanac": 4, "stories": 3, "dialogue": 5, "reckoning": 1, "nested": 2, "chronicle": 1}
REGISTERS = {write.__name__: write for write in (almanac, stories, dialogue, reckoning, nested, chronicle)}
