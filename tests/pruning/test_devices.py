"""Models that accelerate has spread over devices, or put aside."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from torch import nn

import prunekit as pk
from prunekit.pruning.budgets import owl_budget
from tests.pruning.families import BLOCKS, FAMILIES, windows

PARTS = ("model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head",
         *(f"model.layers.{i}" for i in range(BLOCKS)))


def dispatched(folder: Path, away: tuple[str, ...] = ()) -> nn.Module:
    """With accelerate's hooks on every part, the parts that are `away` on disk."""
    places = {part: "disk" if part in away else "cpu" for part in PARTS}
    return dispatch_model(FAMILIES["LLaMA"].model(), places, offload_dir=folder, force_hooks=True)


def test_two_devices(tmp_path: Path):
    """Statistics, gradients, masks and updates stay on their layer's device: tensors of two devices never
    meet."""
    done = subprocess.run([sys.executable, "-m", "tests.pruning.two_devices", tmp_path], capture_output=True,
                          text=True, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_hooks_change_nothing(tmp_path: Path):
    model, plain = dispatched(tmp_path), FAMILIES["LLaMA"].model()
    hooked = {name: module.forward for name, module in model.named_modules() if hasattr(module, "_hf_hook")}
    assert len(hooked) > len(PARTS)
    options = {"gradient_checkpointing": True, "progress": False}
    G, expected = (pk.collect_gradients(one, windows(2), **options) for one in (model, plain))
    assert all(torch.equal(G[name], expected[name]) for name in expected)
    for one in (model, plain):
        pk.prune(one, windows(), "gblm", 0.5, update="obs", gradients=G, progress=False)
    assert all(torch.equal(mine, theirs)
               for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True))
    assert all(model.get_submodule(name).forward is forward for name, forward in hooked.items())


@pytest.mark.parametrize("away", [("model.layers.1", "model.layers.2"), ("model.embed_tokens",)])
@pytest.mark.parametrize("call", [
    lambda model, ids, options: pk.prune(model, ids, "wanda", 0.5, **options),
    lambda model, ids, options: pk.prune(model, None, "magnitude", 0.5, **options),
    lambda model, ids, options: pk.collect_gradients(model, ids, **options),
    lambda model, ids, options: pk.collect_gradients(model, ids, local=True, **options),
    lambda model, ids, options: owl_budget(model, ids, 0.5, **options)])
def test_offloaded_weights_are_refused(away: tuple[str, ...], call: Any, tmp_path: Path):
    with pytest.raises(pk.UsageError, match="offloaded .* prune_checkpoint"):
        call(dispatched(tmp_path, away), windows(2), {"progress": False})


def test_offloaded_blocks_can_be_evaluated(tmp_path: Path):
    found = pk.perplexity(dispatched(tmp_path, ("model.layers.1", "lm_head")), windows(), 12, progress=False)
    assert found.value == pk.perplexity(FAMILIES["LLaMA"].model(), windows(), 12, progress=False).value
