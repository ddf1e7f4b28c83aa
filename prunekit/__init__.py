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
    "Gradients": "pruning.gradients",
    "Activations": "pruning.gradients",
    "collect_gradients": "pruning.gradients",
    "collect_activations": "pruning.gradients",
    "prune": "pruning.prune",
    "prune_checkpoint": "streaming.stream",
    "checkpoint_needs": "streaming.stream",
    "ObsOptions": "pruning.obs",
    "AdmmOptions": "pruning.admm",
    "owl_budget": "pruning.budgets",
    "layer_errors": "evaluate.measure",
    "prune_and_measure": "evaluate.measure",
    "kept_weights": "evaluate.measure",
    "pruned_in_common": "evaluate.measure",
    "perplexity": "evaluate.perplexity",
    "zero_shot": "evaluate.zero_shot",
    "mean_over": "evaluate.zero_shot",
    "divergence": "evaluate.divergence",
    "compare": "evaluate.compare",
    "compare_many": "evaluate.compare",
    "compare_documents": "evaluate.compare",
    "claim": "evaluate.sentences",
    "sources": "evaluate.intervals",
    "detectable": "evaluate.intervals",
    "holm": "evaluate.intervals",
    "Tree": "metric.tree",
    "METHODS": "metric.catalogue",
    "simplify": "metric.simplify",
    "rank_key": "metric.rank",
    "canonical": "metric.rank",
    "explain": "metric.simplify",
    "Bench": "search.bench",
    "Evaluator": "search.evaluator",
    "evolve": "search.engine",
    "open_executor": "parallel",
    "history": "analysis.history",
    "finalists": "analysis.history",
    "choose": "analysis.history",
    "replay": "analysis.history",
    "traits": "analysis.traits",
    "findings": "analysis.findings",
    "lineage": "analysis.traits",
    "grid": "search.random_trees",
    "parametric": "search.parametric",
    "Planted": "search.controls",
    "Shuffled": "search.controls",
    "finetune_lora": "lora.finetune",
    "load_lora": "lora.finetune",
    "LoraOptions": "lora.options",
    "recovered": "lora.finetune",
    "mask_weights": "lora.finetune",
    "start_run": "workbook.run",
    "choose_from": "workbook.display",
    "recorded": "ledger.study",
    "recorded_by": "ledger.study",
    "studies": "ledger.study",
    "grade": "course.grading",
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
