"""Sentences that compare, each built from the table rows that it speaks of and the test that licenses it.

    claim("On unseen windows the winner's perplexity {verdicts}.", paired, "paired", name=["rival", "target"])

Whoever writes one chooses the subject and the rows; the words that compare are chosen here, by the rows' p
and intervals. A sentence that compares without rows is refused where takeaways are taken (`comparing`).
"""
from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from prunekit.choices import percent
from prunekit.errors import UsageError
from prunekit.evaluate.intervals import LEVEL, decimals

if TYPE_CHECKING:
    import pandas as pd

_WORDS = re.compile(r"\b(lower|higher|better|worse|stronger|weaker|smaller|larger|faster|slower|closer|"
                    r"nearer|fewer|lowest|highest|best|worst|strongest|weakest|smallest|fastest|closest|"
                    r"nearest|beats?|ahead|outperforms?|wins?|more|most|less|least|above|below)\b",
                    re.IGNORECASE)
# A bound, how to read a column, names, and the least of what was seen: none of them compares.
_NOT_COMPARING = re.compile(r"at (most|least)|lower is better|lowest loss so far|`[^`]*`", re.IGNORECASE)
_NULLS = {"ratio": 1.0}  # what a column holds where two things are the same; else 0
_SIDES = {"is lower": -1, "is higher": 1}


def comparing(text: str) -> list[str]:
    """The words of a text that compare."""
    return [match[0] for match in _WORDS.finditer(_NOT_COMPARING.sub("", text))]


@dataclass(frozen=True)
class Claim:
    """A sentence, and what it follows from: a template, rows of a table by number, and how they are read."""

    sentence: str
    template: str
    table: str
    rows: list[int]
    how: dict[str, Any]

    as_dict = asdict


def claim(template: str, rows: pd.DataFrame, table: str, *, effect: str = "ratio",
          name: Sequence[str] = (), words: Sequence[str] = ("is lower than that of", "is higher than that of",
                                                            "cannot be told from that of"),
          form: str = "", about: Mapping[str, Any] | None = None) -> Claim | None:
    """The sentence that these rows of a table license; None where none of them has an effect.

    template: text that compares nothing itself, with some of the fields
      {is lower}, {is higher}: "is lower" if all rows are; "is not lower" if one is higher; else "cannot be
        told to be lower";
      {verdicts}: `words`, each followed by the names of its rows;
      {measured}: the same, after each name its effect and interval, "50 % (0.97, 0.95 to 0.99)";
      {verdict}: of one row, one of `words`;
      {counts}: "is lower in 7, is higher in 1 and cannot be told in 4";
      {value}: of one row, its effect with the interval;
      {values}: each row's effect with its interval, and "lower", "higher" or "cannot be told".
    rows: of the table as it is saved, with its index; columns `effect`, p_holm, and an interval (holm_low and
    holm_high, else low and high). A single row may go without p_holm: its interval decides then. table: the
    table's name in the run. name: columns that name a row, "wanda" and "0.5" as "wanda at 50 %", and where a
    third one says something, as "wanda at 50 % (ptb)". words: for
    an effect below no difference (a ratio of 1, anything else of 0), above it, and for what cannot be told.
    form: of effects, see `effects`. about: further fields, for names that might read as words or fields here.

    Raises UsageError for several rows without Holm's correction, and for a template that compares.
    """
    if words_there := comparing(re.sub(r"\{[^}]*\}", "", template)):
        raise UsageError(f"the sentence {template!r:.60} says {words_there[0]!r} itself; let a field such as "
                         "{verdicts} say it, from the rows.")
    rows = rows[rows[effect].notna()]
    if rows.empty:
        return None
    if "p_holm" not in rows and len(rows) > 1:
        raise UsageError(f"{len(rows)} rows of table {table} are compared without Holm's correction: give "
                         "them a column p_holm.")
    null, measured = _NULLS.get(effect, 0.0), rows[[effect, *bounds(rows)]]
    told = rows["p_holm"] < LEVEL if "p_holm" in rows else [
        low > null or high < null for _, low, high in measured.to_numpy()]
    signs = [int(sure) * (1 if value > null else -1) for sure, value in zip(told, rows[effect], strict=True)]
    named = rows[list(name)].astype(object).fillna("").astype(str)
    labels = [tuple(percent(part) for part in parts if part) or ("",) for parts in named.to_numpy()]
    fields = _fields(labels, signs, effects(rows, effect, form), words)
    about = dict(about or {})
    how = {"effect": effect, "name": list(name), "words": list(words), "form": form, "about": about}
    return Claim(template.format(**fields | about), template, table, [int(i) for i in rows.index], how)


def effects(rows: pd.DataFrame, effect: str = "ratio", form: str = "") -> list[str]:
    """Each row's effect with its interval, as "0.974 (0.952 to 0.997)".

    form: as in "+.1%"; default: as many decimals as tell every number from no difference and the ends of an
    interval apart, and up to three of them the same in all rows.
    """
    measured, null = rows[[effect, *bounds(rows)]].to_numpy(float), _NULLS.get(effect, 0.0)
    needed = [_places(row, null) for row in measured]
    shared = min(3, max(needed, default=0))
    forms = [form or f"{'' if null else '+'}.{max(shared, places)}f" for places in needed]
    ends = ["no interval" if math.isnan(low) else f"{low:{each}} to {high:{each}}"  # of one window
            for each, (_, low, high) in zip(forms, measured, strict=True)]
    return [f"{value:{each}} ({two})" for each, value, two in zip(forms, measured[:, 0], ends, strict=True)]


def bounds(rows: pd.DataFrame) -> list[str]:
    """The columns of intervals: by Holm's correction where every row has one; some studies have none."""
    by_holm = "low" not in rows or "holm_low" in rows and rows["holm_low"].notna().all()
    return ["holm_low", "holm_high"] if by_holm else ["low", "high"]


def _places(row: Sequence[float], null: float) -> int:
    places, (_, low, high) = decimals(row, null, 2), row
    while low < high and places < 9 and f"{low:.{places}f}" == f"{high:.{places}f}":
        places += 1  # an interval has two ends
    return places


def _fields(labels: Sequence[tuple[str, ...]], signs: Sequence[int], printed: Sequence[str],
            words: Sequence[str]) -> dict[str, str]:
    """What may stand in a template, from each row's names, its sign (0: cannot be told) and its effect."""
    phrases = dict(zip((-1, 1, 0), words, strict=True))
    short = {side: re.sub(r"^is | than.*| from.*", "", phrase) for side, phrase in phrases.items()}
    with_value = [(*label[:-1], f"{label[-1]} ({value.replace(' (', ', ')}")
                  for label, value in zip(labels, printed, strict=True)]

    def by_side(names: Sequence[tuple[str, ...]]) -> str:
        return "; ".join(f"**{phrase}** {_listed(here)}" for side, phrase in phrases.items() if (
            here := [name for name, sign in zip(names, signs, strict=True) if sign == side]))

    return {
        **{field: _whole(field, side, signs) for field, side in _SIDES.items()},
        "verdict": phrases[signs[0]],
        "verdicts": by_side(labels),
        "measured": by_side(with_value),
        "counts": _joined([f"{'is ' * bool(side)}{short[side]} in **{signs.count(side)}**"
                           for side in phrases]),
        "value": printed[0],
        "values": "; ".join(f"{_listed([label])} {value}, {short[sign]}".strip()
                            for label, value, sign in zip(labels, printed, signs, strict=True)),
    }


def _whole(field: str, side: int, signs: Sequence[int]) -> str:
    if all(sign == side for sign in signs):
        return field
    verb, _, word = field.partition(" ")
    return f"{verb} not {word}" if -side in signs else f"cannot be told to be {word}"


def _listed(names: Sequence[tuple[str, ...]]) -> str:
    """("a", "1"), ("a", "2"), ("b", "1"), ("c", "1") as "a at 1 and 2, and b and c at 1"; ("a", "1", "x") as
    "a at 1 (x)"; ("2:4", "x"), where a target comes first, as "2:4 on x"."""
    places: dict[str, dict[str, list[str]]] = {}
    for first, *rest in names:
        at = places.setdefault(first, {})
        if rest:
            at.setdefault(rest[0], []).extend(rest[1:])
    alike: dict[str, list[str]] = {}
    for first, at in places.items():
        alike.setdefault(_where(first, at), []).append(first)
    return _joined([f"{_joined(firsts)} {where}".rstrip() for where, firsts in alike.items()], ", and ")


def _where(first: str, at: Mapping[str, Sequence[str]]) -> str:
    word = "on" if re.fullmatch(r"[\d.]+ %|\d+:\d+", first) else "at"
    return f"{word} {_joined([_on(*each) for each in at.items()])}" if at else ""


def _on(place: str, texts: Sequence[str]) -> str:
    return f"{place} ({', '.join(texts)})" if texts else place


def _joined(parts: Sequence[str], last: str = " and ") -> str:
    return last.join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))
