"""Names that parameters may hold and code acts on: one list of each, without torch, so that checks need not load it."""
from __future__ import annotations

from pathlib import Path

EMBEDDED = {name: Path(__file__).parent / name for name in ("embedded/llama", "embedded/opt")}  # models, and their directories
CORPORA = ("embedded", "wikitext2", "c4", "ptb")
SAMPLINGS = ("disjoint", "published")
DTYPES = ("float32", "bfloat16", "float16")
