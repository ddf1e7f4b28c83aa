"""The one exception that users are meant to read."""
from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UsageError(ValueError):
    """Something asked for cannot be done; the message is one sentence: what is wrong, and what to do."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows for it: the sentence, without the traceback."""
        return [f"{type(self).__name__}: {self}"]


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """`" (did you mean 'wanda'?)"` for a near miss, else the list of what is allowed."""
    known = list(known)
    close = get_close_matches(str(name), known, n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else f" (known: {', '.join(known)})"
