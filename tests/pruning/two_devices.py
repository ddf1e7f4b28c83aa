"""A model spread over two devices, the second of them simulated: statistics, gradients, masks, a search.

Run by test_devices.py in a process of its own, since a device cannot be unregistered:
python -m tests.pruning.two_devices FOLDER
"""
from __future__ import annotations

import sys
from collections.abc import Iterable

import torch
from accelerate.hooks import attach_align_device_hook_on_blocks
from torch import Tensor, nn

import prunekit as pk
import tests.simulated.device  # noqa: F401
from prunekit.evaluate.divergence import divergence
from prunekit.models import prunable_layers
from prunekit.pruning.budgets import owl_budget
from tests.pruning.families import FAMILIES, windows

FAR = "sim:0"


def spread(first: str, second: str) -> nn.Module:
    """A LLaMA whose embeddings and first block are on one device, the rest on another, with accelerate's
    hooks."""
    model = FAMILIES["LLaMA"].model()
    places = {"model.embed_tokens": first, "model.rotary_emb": first, "model.layers.0": first,
              "model.layers.1": second, "model.layers.2": second, "model.norm": second, "lm_head": second}
    for name, place in places.items():
        model.get_submodule(name).to(place)
    attach_align_device_hook_on_blocks(model, execution_device=places | {"": first},
                                       offload=dict.fromkeys(places, False))
    return model


def assert_close(mine: Iterable[Tensor], theirs: Iterable[Tensor]) -> None:
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a.detach().cpu(), b.detach(), rtol=1e-4, atol=2e-5)


def check(first: str, second: str, folder: str) -> None:
    whole, ids = FAMILIES["LLaMA"].model(), windows()
    model = spread(first, second)
    assert [str(layers[0].weight.device) for layers in prunable_layers(model)] == [first, second, second]
    gradients = pk.collect_gradients(whole, ids, progress=False)
    assert_close(pk.collect_gradients(model, ids, progress=False).values(), gradients.values())
    local = [pk.collect_gradients(one, ids, progress=False, local=True).values() for one in (model, whole)]
    assert_close(*local)
    assert_close(*([torch.tensor(pk.perplexity(one, ids, 12, progress=False).nll)] for one in (model, whole)))
    assert divergence(model, whole, ids, 12, progress=False).kl.max() < 1e-5
    assert_close(*(map(torch.tensor, owl_budget(one, ids, 0.6, progress=False)) for one in (model, whole)))
    for method, options in (("magnitude", {}), ("wanda-variant", {}), ("gblm", {"pattern": "2:4"}),
                            ("sparsegpt", {}), ("wanda", {"one_shot": True})):
        model, whole = spread(first, second), FAMILIES["LLaMA"].model()
        reports = [pk.prune(one, ids, method, 0.5, gradients=gradients, progress=False, **options)
                   for one in (model, whole)]
        assert reports[0].rows == reports[1].rows
        assert_close(model.parameters(), whole.parameters())
    search((spread(first, second), FAMILIES["LLaMA"].model()), ids, gradients)
    model.save_pretrained(folder)
    assert_close(pk.load_model(folder)[0].parameters(), whole.parameters())


def search(models: Iterable[nn.Module], ids: Tensor, gradients: pk.Gradients) -> None:
    """Losses and refusals are the same; masks have other names where they do not come to the processor."""
    benches = [pk.Bench(model, ids, ids, gradients=gradients) for model in models]
    evaluators = [pk.Evaluator(bench, ["0.5", "2:4"]) for bench in benches]
    trees = [pk.Tree.parse(text) for text in ("W", "mul(W, sqrt(X))", "mul(W, G)", "mul(sqr(W), X)")]
    found = [[evaluator(tree) for tree in trees] for evaluator in evaluators]
    assert_close(*([torch.tensor([one.losses for one in outcomes])] for outcomes in found))
    for outcomes in found:  # of the second and the fourth it is provable that their masks are the same
        assert [one.masks == outcomes[1].masks for one in outcomes] == [False, True, False, True]
    assert found[0][0].masks != found[1][0].masks
    for evaluator in evaluators:
        evaluator._probe = lambda tree: ""
    refused = [evaluator(pk.Tree.parse("mms(sub(G, G))")).defect for evaluator in evaluators]
    assert refused[0] == refused[1] == "not finite in layer model.layers.0.self_attn.q_proj"
    for evaluator, outcomes in zip(evaluators, found, strict=True):
        assert evaluator(trees[0]) == outcomes[0]  # of dense weights again


if __name__ == "__main__":
    check("cpu", FAR, sys.argv[1])
    check(FAR, "cpu", sys.argv[1])
