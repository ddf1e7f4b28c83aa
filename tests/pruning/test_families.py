"""Every decoder family: the walk sees what the model computes, and exactly the decoder's linears are
pruned."""
from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

import prunekit as pk
from prunekit.models import _layers_of, decoder_blocks, layers, prunable_layers
from prunekit.pruning import walk
from prunekit.pruning.inputs import collect_inputs
from tests.pruning.families import (
    BLOCKS,
    DBRX,
    FAMILIES,
    FURTHER,
    Family,
    block_outputs,
    outputs_of,
    table,
    windows,
)

every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
mixtures = pytest.mark.parametrize("family", [f for f in FAMILIES.values() if f.experts],
                                   ids=lambda f: f.name)
UNTOUCHED = ("embed", "wte", "wpe", "norm", "ln_", "lm_head", "embed_out", "router", "mlp.gate.",
             "shared_expert_gate", "bias", "sinks")


@pytest.mark.parametrize("batch", [1, 3])
@every_family
def test_replayed_blocks_equal_the_model(family: Family, batch: int, monkeypatch: pytest.MonkeyPatch):
    model, ids = family.model(), windows(4, 12)
    expected = block_outputs(model, family.blocks, ids)
    # 4 windows in batches of 3 leave a smaller one at the end
    monkeypatch.setattr(walk, "BATCH_TOKENS", 12 * batch)
    seen = []
    for step in walk.Walk(model, ids, one_shot=True, progress=False):
        with outputs_of(step.block) as outputs:
            step.collect(lambda group, x: None)
        seen.append(torch.cat(outputs))
        assert {len(output) for output in outputs} == {batch, 1}
    assert len(seen) == BLOCKS
    for mine, theirs in zip(seen, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_type", FURTHER)
def test_further_families(model_type: str):
    """The walk agrees with the model (it refuses otherwise), and every matrix of the blocks but the small
    rest is 2:4."""
    model = FURTHER[model_type].model()
    report = pk.prune(model, windows(), "wanda", 0.5, "2:4", progress=False)
    assert report.sparsity == 0.5
    _, blocks = decoder_blocks(model)
    inside = sum(p.numel() for p in blocks.parameters() if p.ndim > 1)
    assert sum(row["numel"] for row in report.rows) > 0.95 * inside
    assert torch.isfinite(model(input_ids=windows()).logits).all()


def test_weights_where_no_linear_layer_is_to_be_seen_are_refused():
    """DBRX keeps all experts of a block in one matrix; pruning only its attention would be no sparsity."""
    with pytest.raises(pk.UsageError, match=r"blocks\.0\.ffn\.experts\.mlp\.w1 holds .*% of its block's "
                                            r"weights"):
        prunable_layers(DBRX.model())


@every_family
def test_inputs_are_those_of_the_layers(family: Family):
    """X of every layer against the columns that reproduce the layer's own output: W x from X's own tokens."""
    model, ids = family.model(), windows(2, 12)
    counts: dict[str, int] = {}
    for step in walk.Walk(model, ids, one_shot=True, progress=False):
        def observe(group: walk.InputGroup, x: torch.Tensor) -> None:
            for layer in group.layers:
                assert x.shape[1] == layer.weight.shape[1]
                counts[layer.name] = counts.get(layer.name, 0) + len(x)
        step.collect(observe)
    for layer in layers(model):
        if layer.expert is None:
            assert counts[layer.name] == ids.numel()
    if family.experts:  # every token goes to two experts, and through both maps of each
        per_block = ids.numel() * 2 * 2
        assert sum(n for name, n in counts.items() if name.endswith("]")) == per_block * BLOCKS


def assert_X_and_H_as_hooked(model: nn.Module, ids: torch.Tensor) -> None:
    """Statistics of every linear module, batch by batch, are those of plain hooks in one ordinary pass."""
    seen: dict[str, torch.Tensor] = {}
    modules = {layer.name: layer.module for layer in layers(model)
              if layer.expert is None}

    def see(module: nn.Module, args: Any, name: str) -> None:
        seen[name] = args[0].flatten(0, -2)

    handles = [module.register_forward_pre_hook(partial(see, name=name)) for name, module in modules.items()]
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    activations, inputs = pk.collect_activations(model, ids, progress=False), {}
    with torch.no_grad():
        for step in walk.Walk(model, ids, one_shot=True, progress=False):
            inputs |= collect_inputs(step, len(ids), hessian=True)
    assert seen.keys() == modules.keys() and inputs.keys() == activations.keys()
    for name, x in seen.items():
        torch.testing.assert_close(activations[name], x.square().sum(0) / len(ids), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(inputs[name].H, 2 * x.T @ x / len(ids), rtol=1e-3, atol=1e-3)
    for name, X in activations.items():  # also of experts, of which hooks see nothing
        torch.testing.assert_close(inputs[name].X[0], X)


@every_family
def test_X_and_H_are_what_plain_hooks_see(family: Family, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(walk, "BATCH_TOKENS", 2 * 12)  # of 5 windows, the last alone
    assert_X_and_H_as_hooked(family.model(), windows(5, 12))


def test_blocks_that_read_the_keys_of_another(monkeypatch: pytest.MonkeyPatch):
    """The last two blocks of a Gemma 4 attend to what the first two left in a store, batch by batch."""
    monkeypatch.setattr(walk, "BATCH_TOKENS", 2 * 12)
    kinds = ["sliding_attention", "full_attention"] * 2
    model = FAMILIES["Gemma 4"].model(num_hidden_layers=4, layer_types=kinds, num_kv_shared_layers=2)
    assert_X_and_H_as_hooked(model, windows(5, 12))


@pytest.mark.parametrize("name, own", [("LLaMA", False), ("Gemma 4", True)])
def test_arguments_are_kept_per_batch_only_where_they_differ(name: str, own: bool):
    model, ids = FAMILIES[name].model(), windows(4, 12)
    walking = walk.Walk(model, ids, progress=False, batch=2)
    steps = iter(walking)
    next(steps)
    one, other = ({id(value) for call in calls for value in tree_leaves((call.args, call.kwargs))
                   if isinstance(value, torch.Tensor)} for calls in walking._calls)
    assert one and (one != other) == own
    steps.close()
    assert not walking._calls


@every_family
def test_prunable_are_all_and_only_the_linears(family: Family):
    model = family.model()
    path, blocks = decoder_blocks(model)
    assert path == family.blocks and len(blocks) == BLOCKS
    assert [len(layers) for layers in prunable_layers(model)] == [family.linears] * BLOCKS
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pk.prune(model, windows(), "wanda", 0.5, progress=False)
    for name, tensor in model.state_dict().items():
        inside = name.startswith(f"{family.blocks}.") and not any(word in name for word in UNTOUCHED)
        changed = not torch.equal(tensor, before[name])
        assert changed == (inside and tensor.ndim >= 2), name
        assert not changed or torch.equal(tensor[tensor != 0], before[name][tensor != 0])


@every_family
@pytest.mark.parametrize("method, pattern, sparsity", [
    ("wanda", "unstructured", 0.5), ("wanda", "2:4", 0.5), ("mul(mul(W, G), sqrt(X))", "2:4", 0.5),
    ("magnitude", "unstructured", 0.6), ("sparsegpt", "unstructured", 0.6), ("sparsegpt", "2:4", 0.5)])
def test_sparsity_is_what_was_asked(family: Family, method: str, pattern: str, sparsity: float):
    model = family.model()
    gradients = pk.collect_gradients(model, windows(2, 12, seed=1), progress=False) if "G" in method else None
    report = pk.prune(model, windows(), method, sparsity, pattern, gradients=gradients, progress=False)
    assert len(report.rows) == family.linears * BLOCKS
    exact = pattern == "2:4" or method not in ("magnitude", "sparsegpt")
    for layer, row in zip(layers(model), report.rows, strict=True):
        zero = layer.weight == 0
        assert row["layer"] == layer.name and row["zeros"] == int(zero.sum())
        if pattern == "2:4":
            assert (zero.reshape(len(zero), -1, 4).sum(2) == 2).all()
        elif exact and not row.get("unseen"):
            assert (zero.sum(1) == int(zero.shape[1] * sparsity)).all()
        assert row["zeros"] >= int(sparsity * zero.numel())
    assert torch.isfinite(model(input_ids=windows()).logits).all()


@every_family
def test_gradients_are_those_of_the_weights(family: Family):
    """G of one window is scale * |gradient|, in the layer's own orientation, of a plain backward pass."""
    model, ids = family.model(), windows(1, 12, seed=2)
    found = pk.collect_gradients(model, ids, scale=10.0, progress=False)
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    assert set(found) == {layer.name for layer in layers(model)}
    for layer in layers(model):
        grad = layer.parameter.grad if layer.expert is None else layer.parameter.grad[layer.expert]
        grad = grad.T if layer.transposed else grad
        torch.testing.assert_close(found[layer.name], 10 * grad.abs(), rtol=1e-3, atol=1e-5)


@every_family
def test_pruned_model_saves_and_loads(family: Family, tmp_path: Path):
    model = family.model()
    pk.prune(model, windows(), "wanda", 0.5, "2:4", progress=False)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert model.state_dict().keys() == again.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


# --- mixtures of experts ------------------------------------------------------------------------------------


@mixtures
def test_experts_read_the_tokens_sent_to_them(family: Family):
    """X of an expert's first map is the sum over the tokens that the router itself sends there."""
    model, ids = family.model(), windows(3, 12)
    routed: list[tuple[torch.Tensor, ...]] = []
    path, experts = next((name, m) for name, m in model.named_modules()
                         if re.search(r"layers\.0\.(mlp|feed_forward)\.experts$", name))
    handle = experts.register_forward_pre_hook(lambda m, args: routed.append(args))
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    handle.remove()
    hidden, *how = routed[0]
    X = {}
    steps = iter(walk.Walk(model, ids, progress=False))
    step = next(steps)
    step.collect(lambda group, x: X.update({g.name: X.get(g.name, 0) + x.square().sum(0)
                                            for g in group.layers}))
    for expert in range(family.experts):
        by_expert = None if how else hidden.view(family.experts, -1, hidden.shape[1])
        sent = hidden[(how[0] == expert).any(1)] if how else by_expert[expert]
        mine = X.get(f"{path}.gate_up_proj[{expert}]", torch.zeros(hidden.shape[1]))
        torch.testing.assert_close(mine, sent.square().sum(0), rtol=1e-4, atol=1e-5)


@mixtures
@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "pruner-zero"])
def test_unseen_experts_fall_back_to_magnitude(family: Family, method: str):
    """Three tokens reach at most three experts; of the others nothing is known, and the report says which."""
    model, dense = family.model(num_experts_per_tok=1), family.model(num_experts_per_tok=1)
    gradients = pk.collect_gradients(model, windows(1, 3),
                                     progress=False) if method == "pruner-zero" else None
    report = pk.prune(model, windows(1, 3), method, 0.5, gradients=gradients, progress=False)
    frame = report.to_frame()
    unseen = frame[frame["unseen"].eq(True)]
    assert len(unseen) >= BLOCKS * 2 * (family.experts - 3)
    if method != "pruner-zero":
        assert (unseen["tokens"] == 0).all() and (frame.loc[frame["unseen"].eq(False), "tokens"] > 0).all()
    assert frame.loc[frame["unseen"].isna(), "layer"].str.contains("experts").sum() == 0
    here = {layer.name: layer for layer in layers(model)}
    original = {layer.name: layer for layer in layers(dense)}
    for name in unseen["layer"]:
        pruned, whole = here[name].weight, original[name].weight.abs()
        kept, gone = whole.masked_fill(pruned == 0, torch.inf), whole.masked_fill(pruned != 0, -torch.inf)
        assert (pruned == 0).float().mean() >= 0.5
        assert (kept.amin(1) >= gone.amax(1)).all()


@mixtures
def test_implementation_of_experts_is_restored(family: Family):
    model = family.model()
    before = model.config._experts_implementation
    for _ in walk.Walk(model, windows(), progress=False):
        assert model.config._experts_implementation == "eager"
    assert model.config._experts_implementation == before


def test_experts_computed_in_an_unknown_way_are_refused(monkeypatch: pytest.MonkeyPatch):
    model = FAMILIES["Mixtral"].model()

    def by_einsum(self, hidden, index, weights):
        return hidden + 0 * torch.einsum("th,eoh->teo", hidden, self.gate_up_proj).sum()

    monkeypatch.setattr(type(model.model.layers[0].mlp.experts), "forward", by_einsum)
    with pytest.raises(pk.UsageError, match=r"gate_up_proj\[0\].* to be seen"):
        pk.prune(model, windows(), "wanda", 0.5, progress=False)


@pytest.mark.parametrize("path, routes", [
    ("mlp.gate", True), ("mlp.router", True), ("mlp.shared_expert_gate", True), ("mlp.router.layer", True),
    ("mlp.shared_expert.gate_proj", False), ("self_attn.k_proj", False), ("self_attn.gate", False)])
def test_routers_stand_next_to_experts(path: str, routes: bool):
    """Whatever their width: k_proj may well have as many outputs as there are experts."""
    block = nn.Module()
    parent = block
    for part in path.split(".")[:-1]:
        parent.add_module(part, nn.Module())
        parent = parent.get_submodule(part)
    parent.add_module(path.rpartition(".")[2], nn.Linear(4, 8))
    if not hasattr(block, "mlp"):
        block.mlp = nn.Module()
    block.mlp.experts = nn.Module()
    block.mlp.experts.down_proj = nn.Parameter(torch.zeros(8, 4, 4))
    names = [layer.name for layer in _layers_of(block, "0", 0) if layer.expert is None]
    assert names == ([] if routes else [f"0.{path}"])


# --- loud failures ------------------------------------------------------------------------------------------


def doctored(change: Callable) -> nn.Module:
    """A LLaMA whose second block is called, or answers, in another way."""
    model = FAMILIES["LLaMA"].model()
    model.model.layers[1].forward = partial(change, model.model.layers[1].forward)
    return model


_CALLS: list[int] = []


def drifts(forward: Callable, hidden: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    _CALLS.append(1)
    return forward(hidden, **kwargs) + len(_CALLS)


def loses_tokens(forward: Callable, hidden: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    return forward(hidden, **kwargs)[0]


def test_block_that_answers_otherwise_on_replay_is_refused():
    with pytest.raises(pk.UsageError, match="block 1 called again"):
        pk.prune(doctored(drifts), windows(), "wanda", 0.5, progress=False)


def test_block_whose_output_is_not_hidden_states_is_refused():
    with pytest.raises(pk.UsageError, match="LlamaForCausalLM cannot be pruned block by block: block 1"):
        pk.prune(doctored(loses_tokens), windows(), "wanda", 0.5, progress=False)


@pytest.mark.parametrize("loop, reason", [
    ("renamed", "block 0 is not called with hidden states"), ("skipped", "block 2 is called where block 1"),
    ("twice", "block 0 is called where block 3"), ("between", "block 1 does not read what block 0 returned"),
    ("never", "0 of 3 blocks were called")])
def test_model_that_calls_its_blocks_otherwise_is_refused(loop: str, reason: str,
                                                          monkeypatch: pytest.MonkeyPatch):
    model = FAMILIES["LLaMA"].model()

    def forward(input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        base = model.model
        hidden = base.embed_tokens(input_ids)
        positions = base.rotary_emb(hidden, torch.arange(hidden.shape[1])[None])
        order = {"skipped": [0, 2], "twice": [0, 1, 2, 0], "never": []}.get(loop, [0, 1, 2])
        for index in order:
            if loop == "renamed":
                hidden = base.layers[index](states=hidden, position_embeddings=positions)
            else:
                hidden = base.layers[index](hidden, position_embeddings=positions)
            hidden = hidden * 2 if loop == "between" else hidden
        return hidden

    monkeypatch.setattr(model, "forward", forward)
    with pytest.raises(pk.UsageError, match=reason):
        pk.prune(model, windows(), "wanda", 0.5, progress=False)


def test_table_lists_every_family():
    rows = table().splitlines()
    assert len(rows) == len(FAMILIES) + 2
    assert "| Mixtral | `model.layers` | 4 + 2 per expert | 4 experts here |" in rows
