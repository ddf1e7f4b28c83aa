"""What a project of two tiny notebooks is made of, so that runs and pages are tested in seconds."""
from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

DATA = """profile: str = "tiny"
rows: int = 4   # rows of the table; made up
seqlen: int = 8   # tokens per window
seed: int = 0
"""
BASELINES = """profile: str = "tiny"
method: str = "wanda"
methods: list[str] = ["magnitude", "wanda"]
sparsity: float = 0.5   # share of zeros
pattern: str = "unstructured"
targets: list[str] = ["2:4"]
scale: float = 1.0
nsamples: int = 2
fast: bool = True
model: str = "embedded/llama"
corpus: str = "embedded"
windows: str = ""
seqlen: int = 8
seed: int = 0
"""


def write_notebook(path: Path, cells: Sequence[tuple[str, str]]) -> Path:
    """Cells as (tag or 'md' or '', source)."""
    content = [{"cell_type": "markdown", "id": f"c{i}", "metadata": {}, "source": source} if tag == "md" else
               {"cell_type": "code", "id": f"c{i}", "metadata": {"tags": [tag] if tag else []},
                "source": source, "outputs": [], "execution_count": None}
               for i, (tag, source) in enumerate(cells)]
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": kernel, "cells": content}))
    return path


def profile(root: Path, name: str, **files: str) -> None:
    folder = root / "params" / name
    folder.mkdir(parents=True, exist_ok=True)
    for stem, text in {"common": "# the defaults\n", **files}.items():
        (folder / f"{stem}.yaml").write_text(text)
