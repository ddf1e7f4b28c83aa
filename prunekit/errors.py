"""The one exception that users are meant to read, and what they are told of others."""
from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UsageError(ValueError):
    """Something asked for cannot be done; the message is one sentence: what is wrong, and what to do."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows for it: the sentence, without the traceback."""
        return [f"{type(self).__name__}: {self}"]


def told(error: Exception) -> str | None:
    """The sentence for an error that a command ends with; None for what is a fault of the program's."""
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported for this
        first = str(error).partition(". ")[0]
        return f"the GPU has no memory left ({first}): let fewer processes share it, and go on."
    return str(error) if isinstance(error, UsageError) else None


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """`" (did you mean 'wanda'?)"` for a near miss, else the list of what is allowed."""
    known = list(known)
    close = get_close_matches(str(name), known, n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else f" (known: {', '.join(known)})"
