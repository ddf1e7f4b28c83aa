"""The walk over decoder blocks: whose inputs it shows, and what it leaves behind."""
from __future__ import annotations

from types import MethodType

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit.evaluate import perplexity
from prunekit.pruning import inputs, prune, walk
from prunekit.pruning.walk import InputGroup, Stop, Walk
from tests.pruning.families import assert_close, windows


def column_norms(walk: Walk, change: bool) -> dict[str, torch.Tensor]:
    """X of every layer; with `change`, half of each block's weights go before the next block is looked at."""
    found: dict[str, torch.Tensor] = {}

    def observe(group: InputGroup, x: torch.Tensor) -> None:
        for layer in group.layers:
            found[layer.name] = found.get(layer.name, 0) + x.square().sum(0)

    for step in walk:
        step.collect(observe)
        for layer in step.layers if change else ():
            layer.weight.mul_(torch.arange(layer.weight.shape[1]) % 2)
    return found


def hooked_norms(model: nn.Module, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same by plain hooks on one ordinary forward pass."""
    found: dict[str, torch.Tensor] = {}
    handles = [module.register_forward_pre_hook(lambda m, args,
                                                name=name: found.update({name: args[0].square().sum((0, 1))}))
               for name, module in model.named_modules() if isinstance(module, nn.Linear)
               and "layers" in name]
    with torch.no_grad():
        model(input_ids=ids)
    for handle in handles:
        handle.remove()
    return found


def test_inputs_of_an_unchanged_model(model: nn.Module):
    expected = hooked_norms(model, windows())
    assert_close(column_norms(Walk(model, windows(), progress=False), change=False), expected)
    assert_close(column_norms(Walk(model, windows(), one_shot=True, progress=False), change=False), expected)


def test_every_block_reads_what_the_pruned_blocks_before_it_return(model: nn.Module):
    found = column_norms(Walk(model, windows(), progress=False), change=True)
    pruned = hooked_norms(model, windows())
    # they see their block before it is pruned
    first = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    for name, X in pruned.items():
        if name.endswith(first):
            torch.testing.assert_close(found[name], X, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found["model.layers.1.mlp.up_proj"], pruned["model.layers.1.mlp.up_proj"],
                              rtol=1e-2)


def test_one_shot_reads_what_the_dense_blocks_return(model: nn.Module):
    expected = hooked_norms(model, windows())
    assert_close(column_norms(Walk(model, windows(), one_shot=True, progress=False), change=True), expected)


def test_layers_that_share_an_input_are_one_group(model: nn.Module):
    for step in Walk(model, windows(), progress=False):
        kinds = [[layer.kind for layer in group.layers] for group in step.groups]
        assert kinds == [["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], ["self_attn.o_proj"],
                         ["mlp.gate_proj", "mlp.up_proj"], ["mlp.down_proj"]]


def test_an_input_changed_in_place_between_two_layers_is_another_one(model: nn.Module):
    def forward(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        gate = self.gate_proj(x)
        return self.down_proj(self.act_fn(gate) * self.up_proj(x.mul_(torch.linspace(0.1, 9, x.shape[-1]))))

    for block in model.model.layers:
        block.mlp.forward = MethodType(forward, block.mlp)
    expected = hooked_norms(model, windows())
    assert_close(column_norms(Walk(model, windows(), progress=False), change=False), expected)


def test_collecting_stops_at_the_last_layer(model: nn.Module):
    """Its product is not needed: the pass ends with its input."""
    for step in Walk(model, windows(), progress=False):
        products: list[int] = []
        last = step.groups[-1].layers[0].module
        handle = last.register_forward_hook(lambda *_, products=products: products.append(1))
        step.collect(lambda group, x: None)
        handle.remove()
        assert not products


@pytest.mark.parametrize("ends", ["completes", "breaks", "raises"])
def test_model_is_left_as_it_was(model: nn.Module, ends: str):
    model.train()
    model.config.use_cache = True
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        for step in Walk(model, windows(), progress=False):
            assert not model.training
            step.collect(lambda group, x: None)
            if ends == "breaks":
                break
            if ends == "raises":
                raise KeyError
    except KeyError:
        pass
    del step
    assert model.training and model.config.use_cache
    for module in model.modules():
        assert "forward" not in module.__dict__ and not module._forward_pre_hooks
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_forward_of_ones_own_is_kept(model: nn.Module):
    """As accelerate puts on every block of a model that is spread over devices."""
    block, calls = model.model.layers[1], []
    forward = block.forward

    def counted(*args, **kwargs):
        calls.append(1)
        return forward(*args, **kwargs)

    block.forward = counted
    column_norms(Walk(model, windows(), progress=False), change=False)
    assert block.forward is counted and len(calls) == 4  # probe and its replay, collecting, passing on


def test_batches_that_differ_in_size(model: nn.Module):
    expected = hooked_norms(model, windows(5))
    for batch in (1, 2, 3, 5):
        assert_close(column_norms(Walk(model, windows(5), batch=batch, progress=False), change=False),
                     expected)


def test_outputs_are_differentiable_where_asked(model: nn.Module):
    for step in Walk(model, windows(), one_shot=True, batch=1, progress=False):
        assert [output.requires_grad for output in step.outputs()] == [torch.is_grad_enabled()] * 4
        with torch.no_grad():
            assert not any(output.requires_grad for output in step.outputs())


@pytest.mark.parametrize("ids", [torch.zeros(8, dtype=torch.long), torch.zeros(2, 1, dtype=torch.long)])
def test_windows_of_another_shape_are_refused(model: nn.Module, ids: torch.Tensor):
    with pytest.raises(pk.UsageError, match="shape"):
        Walk(model, ids)


def test_model_without_blocks_is_refused(model: nn.Module):
    model.config.num_hidden_layers = 7
    with pytest.raises(pk.UsageError, match="LlamaForCausalLM has no list of 7 decoder blocks"):
        Walk(model, windows())


def test_stop_is_not_an_error_that_users_catch():
    assert not issubclass(Stop, pk.UsageError)


def test_batches_are_powers_of_two_within_limits():
    """Bytes of room, bytes of a token."""
    found = [walk._fitting(room, 1000) for room in (0, 5_000_000, 9_000_000, 10**12)]
    assert found == [4096, 4096, 8192, 65536]


def test_batches_other_than_usual_are_noted(model: nn.Module, monkeypatch: pytest.MonkeyPatch):
    def reports() -> list[dict]:
        found = pk.perplexity(model, windows(), 12, progress=False)
        return [pk.prune(model, windows(), "wanda", 0.5, progress=False).meta, found.meta]

    assert all("batch_tokens" not in meta for meta in reports())
    for module in (prune, perplexity):
        monkeypatch.setattr(module, "batch_tokens", lambda model: 8192)
    assert [meta["batch_tokens"] for meta in reports()] == [8192, 8192]


def test_products_of_16_bits_are_tried_before_they_are_used(monkeypatch: pytest.MonkeyPatch):
    """As a GPU should have it, as one that rounds has it, and as torch has it on a processor: not at all."""
    def exact(a: torch.Tensor, b: torch.Tensor, out_dtype: torch.dtype) -> torch.Tensor:
        return a.to(out_dtype) @ b.to(out_dtype)

    def rounded(a: torch.Tensor, b: torch.Tensor, out_dtype: torch.dtype) -> torch.Tensor:
        return exact(a, b, out_dtype).to(a.dtype).to(out_dtype)

    here = torch.device("cpu")
    assert not inputs.multiplies_exactly(here, torch.bfloat16)
    assert not inputs.product_is_exact(here, torch.bfloat16)
    for product, expected in ((exact, True), (rounded, False)):
        monkeypatch.setattr(torch, "mm", product)
        for dtype in (torch.bfloat16, torch.float16):
            assert inputs.product_is_exact(here, dtype) == expected
    monkeypatch.setattr(torch, "mm", exact)
    monkeypatch.setattr(inputs, "multiplies_exactly", lambda *_: True)
    x = torch.randn(64, 7).bfloat16()
    assert torch.equal(inputs._gram(x), x.float().T @ x.float())
