"""The seven kinds of questions, as they occur in the dialogue register: from a passage or from knowledge."""
from __future__ import annotations

from collections.abc import Callable

from prunekit.embedded.entities import ATTRIBUTES, COLOURS, MATERIALS, NUMBERS, Entity
from prunekit.embedded.scribe import Scribe, cap

KINDS = ("person", "person", "person", "person", "place", "animal", "thing", "craft")
# (one way of putting it, the same from the other side); {a} and {b} change places, {t} is a thing
CONVERSES = (
    ("{a} gave the {t} to {b}", "{b} got the {t} from {a}"), ("{a} sold the {t} to {b}", "{b} bought the {t} from {a}"),
    ("{a} is older than {b}", "{b} is younger than {a}"), ("{a} taught {b}", "{b} learned from {a}"),
    ("{a} walked before {b}", "{b} walked after {a}"), ("{a} is taller than {b}", "{b} is shorter than {a}"),
    ("{a} lent the {t} to {b}", "{b} borrowed the {t} from {a}"), ("{a} sat above {b}", "{b} sat below {a}"),
)
MOODS = ("tired", "hungry", "late", "glad", "angry", "lost", "ill", "proud", "afraid", "alone")
RULES = {  # attribute of a person -> (who it is about, what they must do), {v} the attribute's value, {o} the outcome
    "trade": ("a {v}", "every {v}"), "home": ("someone from {v}", "all folk of {v}"),
    "pet": ("the keeper of a {v}", "whoever feeds a {v}"),
}
DUTIES = (("wear", "wears", COLOURS), ("bring", "brings", MATERIALS), ("come in", "comes in",
          ("spring", "summer", "autumn", "winter")), ("pay", "pays", NUMBERS))


def dialogue(w: Scribe) -> list[str]:
    """Questions and answers: facts, yes or no, a choice of four, what follows, whom a pronoun means, rules."""
    asker, teller = w.people(2)
    plain = w.chance(0.6)
    lines = []
    for _ in range(w.number(3, 6)):
        question, answer = w.pick(_TALK)(w)
        if plain:
            lines.append(f"Question: {question} Answer: {answer}.")
        else:
            lines.append(f'"{cap(question)}" asked {asker.name}. "{cap(answer)}," said {teller.name}.')
    return lines


def _fact(w: Scribe) -> tuple[str, str]:
    entity = w.entity(w.pick(KINDS))
    attribute = w.pick(list(ATTRIBUTES[entity.kind]))
    return w.asked(entity, attribute), entity.facts[attribute]


def _choice(w: Scribe) -> tuple[str, str]:
    entity = w.entity(w.pick(KINDS))
    attribute = w.pick(list(ATTRIBUTES[entity.kind]))
    answer = entity.facts[attribute]
    options = [answer, *w.other(entity, attribute, 3)]
    w.rng.shuffle(options)
    return f"{w.asked(entity, attribute)[:-1]}: {', '.join(options[:3])} or {options[3]}?", answer


def _doubt(w: Scribe) -> tuple[str, str]:
    entity = w.entity(w.pick(KINDS))
    attribute = w.pick(list(ATTRIBUTES[entity.kind]))
    if w.chance(0.5):
        return f"is it true that {w.said(entity, attribute)}?", "yes"
    twin = Entity(entity.kind, entity.name, entity.rank, entity.sex, {attribute: w.other(entity, attribute)[0]})
    return f"is it true that {w.said(twin, attribute)}?", "no"


def follows(w: Scribe) -> tuple[str, str]:
    (a, b), (thing,) = w.people(2), w.things(1)
    premise, conclusion = w.pick(CONVERSES)
    if w.chance(0.5):
        premise, conclusion = conclusion, premise
    true = w.chance(0.5)
    before = premise.format(a=a.name, b=b.name, t=thing)
    x, y = (a, b) if true else (b, a)
    after = conclusion.format(a=x.name, b=y.name, t=thing)
    frame = w.pick(("if {} is it true that {}?", "{}; does it follow that {}?", "we know that {}, so is it sure that {}?"))
    return frame.format(before, after), "yes" if true else "no"


def pronoun(w: Scribe) -> tuple[str, str, Entity, Entity]:
    """A sentence with a pronoun that only one of two people fits, the question, the one and the other."""
    a, b = w.people(2)
    while a.sex == b.sex:
        a, b = w.people(2)
    meant = w.pick((a, b))
    mood = w.pick(MOODS)
    verb = w.pick(("met", "saw", "thanked", "called", "helped", "left", "followed"))
    link = w.pick((" because {} was {}", " when {} was {}", ", and {} was {}")).format(meant.they, mood)
    return f"{a.name} {verb} {b.name}{link}", f"who was {mood}?", meant, b if meant is a else a


def _pronoun(w: Scribe) -> tuple[str, str]:
    sentence, question, meant, _ = pronoun(w)
    return f"{sentence}: {question}", meant.name


def rule(w: Scribe) -> tuple[str, str, str, list[str], str]:
    """Four clauses of a rule, a question about one person, its answer, all outcomes, and the fact it hangs on."""
    person = w.entity("person")
    attribute = w.pick(list(RULES))
    values = [person.facts[attribute], *w.other(person, attribute, 3)]
    base, third, pool = w.pick(DUTIES)
    outcomes = w.some(pool, 4)
    who = w.pick(RULES[attribute])
    clauses = [f"{who.format(v=value)} {third} {outcome}" for value, outcome in zip(values, outcomes)]
    w.rng.shuffle(clauses)
    return f"{', '.join(clauses[:3])} and {clauses[3]}", f"what must {person.name} {base}?", outcomes[0], \
        outcomes, w.said(person, attribute)


def _rule(w: Scribe) -> tuple[str, str]:
    text, question, answer, _, fact = rule(w)
    hint = f"{fact}; " if w.chance(0.4) else ""  # at times the fact is said, at times it must be known
    return f"{w.pick(('by the law', 'here', 'by old custom'))} {text}; {hint}{question}", answer


_TALK: tuple[Callable[[Scribe], tuple[str, str]], ...] = (_fact, _fact, _choice, _doubt, follows, _pronoun, _rule)
