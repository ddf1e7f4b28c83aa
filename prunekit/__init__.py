"""Symbolic pruning of language models: every metric-based pruner is one line over W, G and X."""
from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Public name -> module that holds it. Resolved on first use, so that `import prunekit` costs nothing
# and bad parameters are refused before torch is loaded.
_PUBLIC = {
    "UsageError": "errors",
    "load_model": "models",
    "load_tokenizer": "models",
    "token_windows": "data",
    "Gradients": "pruning.stats",
    "Activations": "pruning.stats",
    "collect_gradients": "pruning.stats",
    "collect_activations": "pruning.stats",
    "prune": "pruning.prune",
    "prune_checkpoint": "pruning.stream",
    "checkpoint_needs": "pruning.stream",
    "ObsOptions": "pruning.obs",
    "owl_budget": "pruning.budgets",
    "layer_errors": "evaluate.layers",
    "prune_and_measure": "evaluate.grid",
    "kept_weights": "evaluate.grid",
    "pruned_in_common": "evaluate.grid",
    "perplexity": "evaluate.perplexity",
    "zero_shot": "evaluate.zero_shot",
    "mean_over": "evaluate.zero_shot",
    "divergence": "evaluate.dense",
    "compare": "evaluate.compare",
    "compare_many": "evaluate.compare",
    "compare_documents": "evaluate.compare",
    "sources": "evaluate.intervals",
    "detectable": "evaluate.intervals",
    "holm": "evaluate.intervals",
    "Tree": "metric.tree",
    "METHODS": "metric.catalogue",
    "simplify": "metric.simplify",
    "rank_key": "metric.rank",
    "canonical": "metric.rank",
    "explain": "metric.rank",
    "Bench": "search.evaluator",
    "Evaluator": "search.evaluator",
    "evolve": "search.engine",
    "open_executor": "search.executors",
    "history": "search.archive",
    "finalists": "search.archive",
    "choose": "search.archive",
    "replay": "search.archive",
    "traits": "search.traits",
    "findings": "search.analysis",
    "lineage": "search.traits",
    "grid": "search.rivals",
    "Planted": "search.rivals",
    "Shuffled": "search.rivals",
    "finetune_lora": "lora",
    "load_lora": "lora",
    "LoraOptions": "lora",
    "recovered": "lora",
    "mask_weights": "lora",
    "start_run": "workbook.runs",
    "choose_from": "workbook.shown",
    "recorded": "workbook.recorded",
    "recorded_by": "workbook.recorded",
    "grade": "workbook.course",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'prunekit' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"prunekit.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
