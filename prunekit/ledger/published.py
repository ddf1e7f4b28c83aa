"""The field's published numbers, each with its protocol and its source, as far as they are stated."""
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

_FILE = Path(__file__).with_name("published.csv")


def published(**wanted: object) -> pd.DataFrame:
    """Rows of published.csv whose columns hold the wanted values: `published(method="wanda", sparsity=0.5)`.

    Columns: id, method, model, sparsity (float), pattern; those of `workbook.protocol.PROTOCOL` (text: a
    number, `-` for does not apply, `unknown` for not stated); value (float; accuracies in percent), source,
    source_kind (primary: from its own page; secondary: as others quote it; rerun: by a user), note.
    """
    import pandas as pd

    frame = pd.read_csv(_FILE, dtype=str, keep_default_na=False)
    frame = frame.astype({"id": int, "sparsity": float, "value": float})
    for column, value in wanted.items():
        frame = frame[frame[column] == value]
    return frame.reset_index(drop=True)
