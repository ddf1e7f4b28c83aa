"""G against plain backward passes, and what collecting it holds in memory and leaves behind."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit.models import layers
from prunekit.pruning import gradients
from prunekit.pruning.masks import keep_mask
from tests.pruning.families import FAMILIES, assert_close, block_outputs, windows

NAME = "model.layers.1.mlp.down_proj"


def by_hand(model: nn.Module, ids: torch.Tensor, norm: str, scale: float) -> dict[str, torch.Tensor]:
    sums: dict[str, torch.Tensor] = {}
    for window in ids:
        model.zero_grad()
        logits = model(input_ids=window[None]).logits[0]
        nn.functional.cross_entropy(logits[:-1], window[1:]).backward()
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and "layers" in name:
                g = scale * module.weight.grad
                sums[name] = sums.get(name, 0) + {"l2": g.square(), "l1": g.abs(), "signed": g}[norm]
    model.zero_grad()
    return {name: total.sqrt() if norm == "l2" else total.abs() for name, total in sums.items()}


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True}, {"offload": "sums"}])
@pytest.mark.parametrize("norm, scale", [("l2", 100.0), ("l1", 1.0), ("signed", 10.0)])
def test_norms_over_windows(model: nn.Module, norm: str, scale: float, options: dict, tmp_path: Path):
    options = {key: tmp_path / value if key == "offload" else value for key, value in options.items()}
    found = pk.collect_gradients(model, windows(3, 10), norm=norm, scale=scale, progress=False, **options)
    assert_close(found, by_hand(model, windows(3, 10), norm, scale))
    assert {key: found.meta[key] for key in ("norm", "scale", "n", "seqlen", "dtype")} == {
        "norm": norm, "scale": scale, "n": 3, "seqlen": 10, "dtype": "float32"}


def test_sums_on_disk_are_files_of_their_size(model: nn.Module, tmp_path: Path):
    found = pk.collect_gradients(model, windows(2, 10), offload=tmp_path / "sums", progress=False)
    sizes = [file.stat().st_size for file in sorted((tmp_path / "sums").iterdir())]
    assert sizes == [4 * G.numel() for G in found.values()]
    again = pk.Gradients.load(found.save(tmp_path / "G.safetensors"))
    assert all(torch.equal(found[name], again[name]) for name in found)
    # not on top of the old
    twice = pk.collect_gradients(model, windows(2, 10), offload=tmp_path / "sums", progress=False)
    assert all(torch.equal(twice[name], again[name]) for name in again)


def test_no_more_than_one_gradient_is_alive(model: nn.Module, monkeypatch: pytest.MonkeyPatch):
    parameters = [layer.parameter for layer in layers(model)]
    alive: list[int] = []
    register = torch.Tensor.register_post_accumulate_grad_hook

    def watched(parameter: nn.Parameter, receive):
        def hook(p: nn.Parameter) -> None:
            alive.append(sum(other.grad is not None for other in parameters))
            receive(p)
        return register(parameter, hook)

    monkeypatch.setattr(torch.Tensor, "register_post_accumulate_grad_hook", watched)
    pk.collect_gradients(model, windows(2, 10), progress=False)
    assert alive == [1] * (2 * len(parameters))


def test_checkpointing_keeps_only_the_blocks_inputs(model: nn.Module):
    def saved(**options: bool) -> int:
        sizes: list[int] = []

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            sizes.append(tensor.numel() if not isinstance(tensor, nn.Parameter) else 0)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            pk.collect_gradients(model, windows(1, 32), progress=False, **options)
        return sum(sizes)

    assert saved(gradient_checkpointing=True) < saved() / 2


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True}, {"local": True}])
@pytest.mark.parametrize("fails", [False, True])
def test_model_is_left_as_it_was(model: nn.Module, options: dict, fails: bool):
    model.train()
    frozen = model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    if fails:
        with torch.no_grad():
            model.model.layers[2].mlp.down_proj.weight.fill_(torch.nan)
        with pytest.raises(pk.UsageError,
                           match="loss of gradient window 0 is nan; load the model in float32"):
            pk.collect_gradients(model, windows(1, 8), progress=False, **options)
    else:
        pk.collect_gradients(model, windows(1, 8), progress=False, **options)
    assert model.training and torch.is_grad_enabled()
    assert not frozen.requires_grad and model.lm_head.weight.requires_grad
    assert all(p.grad is None and not p._post_accumulate_grad_hooks for p in model.parameters())
    assert all("forward" not in module.__dict__ for module in model.modules())


def test_local_gradients_are_those_of_the_norm_of_the_blocks_output(model: nn.Module):
    """|block(x)| by finite differences of one weight, everything before the block as it is."""
    ids = windows(2, 10)
    found = pk.collect_gradients(model, ids, scale=3.0, local=True, progress=False)
    assert found.meta["local"] is True
    weight, step = model.get_submodule(NAME).weight, 1e-2
    for place in ((0, 0), (5, 17), (31, 47)):
        norms = []
        for move in (step, -step):
            with torch.no_grad():
                weight[place] += move
            norms.append(block_outputs(model, "model.layers", ids)[1].flatten(1).norm(dim=1))
            with torch.no_grad():
                weight[place] -= move
        g = 3.0 * (norms[0] - norms[1]) / (2 * step)
        torch.testing.assert_close(found[NAME][place], g.square().sum().sqrt(), rtol=2e-2, atol=1e-3)
    assert not torch.allclose(found[NAME], pk.collect_gradients(model, ids, progress=False)[NAME], rtol=0.1)


def test_local_gradients_prune(model: nn.Module):
    G = pk.collect_gradients(model, windows(2, 10), local=True, progress=False)
    report = pk.prune(model, windows(), "pruner-zero", 0.5, gradients=G, progress=False)
    assert report.sparsity == 0.5


def test_unknown_norm_and_infinite_loss_are_refused(model: nn.Module):
    with pytest.raises(pk.UsageError, match="did you mean 'l2'"):
        pk.collect_gradients(model, windows(), norm="l22")
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.inf)
    with pytest.raises(pk.UsageError, match="loss of gradient window 0"):
        pk.collect_gradients(model, windows(), progress=False)


@pytest.mark.parametrize(("options", "message"), [
    ({"scale": 0}, "scale = 0 must be greater than 0"),
    ({"scale": float("nan")}, "scale = nan must be a finite number"),
    ({"scale": float("inf")}, "scale = inf must be a finite number"),
    ({"scale": 1e-30}, "G is zero everywhere with scale 1e-30; take a larger one"),
    ({"scale": 1e30}, r"G is not finite with scale 1e\+30; take a smaller one"),
    ({"on_device": torch.int8}, "dtype torch.int8 holds no G"),
])
def test_what_gives_no_gradients_is_refused(model: nn.Module, options: dict, message: str):
    with pytest.raises(pk.UsageError, match=message):
        pk.collect_gradients(model, windows(1, 8), progress=False, **options)


@pytest.mark.parametrize("family", ["Mixtral", "Qwen2-MoE"])
def test_the_loss_of_the_routers_is_no_part_of_it(family: str):
    plain, asked = (pk.collect_gradients(FAMILIES[family].model(output_router_logits=asked), windows(2, 8),
                                         progress=False) for asked in (False, True))
    assert all(torch.equal(plain[name], asked[name]) for name in plain)


def test_activations_that_are_not_finite_are_refused(model: nn.Module):
    model.model.layers[1].self_attn.v_proj.weight.data[0, 0] = torch.inf
    with pytest.raises(pk.UsageError, match=r"inputs of layer model\.layers\.1\..* are not finite"):
        pk.collect_activations(model, windows(), progress=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_of_16_bits_stay_where_they_are_and_rank_alike(model: nn.Module, dtype: torch.dtype):
    exact = pk.collect_gradients(model, windows(), progress=False)
    short = pk.collect_gradients(model, windows(), on_device=dtype, progress=False)
    W = torch.empty(1, device="meta")  # a device that is not the processor
    assert {short.near(W, name).dtype for name in short} == {dtype}
    assert {short.near(torch.empty(1), name).dtype for name in short} == {torch.float32}
    for name, G in exact.items():
        assert torch.equal(short[name], G.to(dtype).float())
        keep, other = (keep_mask(one, 0.5) for one in (G, short[name]))
        assert (keep == other).float().mean() > 0.97
    report = pk.prune(model, None, "mul(W, G)", 0.5, gradients=short, progress=False)
    assert report.sparsity == 0.5


def test_a_dtype_that_cannot_hold_the_gradients_is_refused(model: nn.Module):
    with pytest.raises(pk.UsageError, match="torch.float16 cannot hold G, which reaches"):
        pk.collect_gradients(model, windows(2), scale=1e7, on_device=torch.float16, progress=False)
    with pytest.raises(pk.UsageError, match="torch.float16 makes 0 of G, which is below"):
        pk.collect_gradients(model, windows(2), scale=1e-7, on_device=torch.float16, progress=False)


@pytest.mark.parametrize("local", [False, True])
def test_where_sums_are_ordered_g_is_that_of_plain_sums(model: nn.Module, local: bool,
                                                        monkeypatch: pytest.MonkeyPatch):
    plain = pk.collect_gradients(model, windows(), local=local, progress=False)
    asked = []
    model.get_submodule(NAME).register_forward_pre_hook(
        lambda *_: asked.append(torch.are_deterministic_algorithms_enabled()))
    monkeypatch.setattr(gradients, "_ORDERED_ON", ("cpu",))
    ordered = pk.collect_gradients(model, windows(), local=local, progress=False)
    assert asked and all(asked) and not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert ordered.meta == plain.meta and all(torch.equal(ordered[name], plain[name]) for name in plain)


def test_what_a_caller_asks_of_sums_is_as_it_was(model: nn.Module, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gradients, "_ORDERED_ON", ("cpu",))
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        pk.collect_gradients(model, windows(1), progress=False)
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_model_without_ordered_sums_begins_again_and_says_so(model: nn.Module,
                                                               monkeypatch: pytest.MonkeyPatch):
    plain = pk.collect_gradients(model, windows(), progress=False)

    def refuse(module: nn.Module, before: object) -> None:
        if torch.are_deterministic_algorithms_enabled():
            raise RuntimeError("index_add_cuda_ does not have a deterministic implementation")

    model.model.layers[1].register_full_backward_pre_hook(refuse)  # when the last layer has its sums
    monkeypatch.setattr(gradients, "_ORDERED_ON", ("cpu",))
    found = pk.collect_gradients(model, windows(), progress=False)
    assert found.meta == plain.meta | {"repeatable": False}
    assert all(torch.equal(found[name], plain[name]) for name in plain)
    assert not torch.are_deterministic_algorithms_enabled()


def test_what_was_not_asked_for_is_left_alone():
    model = FAMILIES["LLaMA"].model()
    embedding = model.get_input_embeddings().weight
    prunable = layers(model)[0].parameter
    for parameter in (embedding, prunable):
        parameter.grad = torch.ones_like(parameter)
    block = model.model.layers[0].eval()
    model.model.layers[1].train()
    pk.collect_gradients(model, windows(2, 8), progress=False)
    pk.prune(model, windows(2, 8), "wanda", 0.5, progress=False)
    assert (embedding.grad == 1).all() and (prunable.grad == 1).all()
    assert not block.mlp.training and model.model.layers[1].mlp.training
