"""What the YAML files beside this call: the questions of `prunekit.embedded.tasks` as an lm-eval data set."""
from __future__ import annotations

from typing import Any

from datasets import Dataset, DatasetDict

from prunekit.embedded import tasks


def documents(task: str, count: int = 500, seed: int = 0, **_: Any) -> DatasetDict:
    """The split `test`: columns query, choices, gold. lm-eval's `--metadata` can give count and seed."""
    return DatasetDict({"test": Dataset.from_list(list(tasks.documents(task, count, seed)))})
