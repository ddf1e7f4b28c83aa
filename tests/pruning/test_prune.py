from __future__ import annotations

from functools import partial

import pytest
import torch

import prunekit as pk
from prunekit.models import layers
from prunekit.pruning.masks import keep_mask
from prunekit.pruning.obs import ObsOptions
from tests.pruning.families import FAMILIES, weights


def test_a_tree_is_a_method(golden_model, golden_windows):
    named, written = golden_model("llama"), golden_model("llama")
    pk.prune(named, golden_windows, "wanda", 0.5, "2:4", progress=False)
    pk.prune(written, golden_windows, pk.Tree.parse("mul(W, sqrt(X))"), 0.5, "2:4", progress=False)
    assert all(torch.equal(a, b)
               for a, b in zip(weights(named).values(), weights(written).values(), strict=True))


def test_only_zeros_are_written(golden_model, golden_windows):
    model = golden_model("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = pk.prune(model, golden_windows, "wanda", 0.5, progress=False)
    pruned = {row["layer"] + ".weight" for row in report.rows}
    for name, tensor in model.state_dict().items():
        if name in pruned:
            assert torch.equal(tensor, before[name] * (tensor != 0)) and (tensor == 0).float().mean() == 0.5
        else:
            assert torch.equal(tensor, before[name])


def test_one_shot_scores_the_dense_model(golden_model, golden_windows):
    """One shot agrees with the sequence on the first block and not on the second, whose inputs have
    changed."""
    metric = "mul(W, add(100, X))"  # masks depend on the scale of X
    one, many = golden_model("llama"), golden_model("llama")
    pk.prune(one, golden_windows, metric, 0.5, progress=False, one_shot=True)
    pk.prune(many, golden_windows, metric, 0.5, progress=False)
    same = {name: torch.equal(a, b)
            for (name, a), b in zip(weights(one).items(), weights(many).values(), strict=True)}
    assert same["model.layers.0.mlp.gate_proj"] and not same["model.layers.1.mlp.gate_proj"]
    X = pk.collect_activations(golden_model("llama"), golden_windows, progress=False)
    dense = weights(golden_model("llama"))
    name = "model.layers.1.mlp.down_proj"
    keep = pk.Tree.parse(metric).score(dense[name], X=X[name])
    cut = keep.sort(dim=1).values[:, 79:80]
    assert torch.equal(weights(one)[name] != 0, keep > cut)


def test_sparsity_per_block(golden_model, golden_windows):
    report = pk.prune(golden_model("llama"), golden_windows, "wanda", [0.25, 0.75], progress=False)
    assert report.to_frame().groupby("block")["sparsity"].mean().tolist() == [0.25, 0.75]


BY_BLOCK = {"model.layers.0.*": 0.25, "model.layers.1.*": 0.75}


@pytest.mark.parametrize("update", [None, "obs-iter", "admm"])
def test_a_mapping_prunes_as_the_number_or_list_that_says_the_same(golden_model, golden_windows, update):
    for one, same in ((0.5, {"*": 0.5}), ([0.25, 0.75], BY_BLOCK), ("2:4", {"*.*_proj": "2:4"})):
        models = golden_model("llama"), golden_model("llama")
        for model, sparsity in zip(models, (one, same), strict=True):
            pk.prune(model, golden_windows, "wanda", sparsity, update=update, progress=False)
        first, second = map(weights, models)
        assert all(torch.equal(first[name], second[name]) for name in first), one


def test_the_last_pattern_that_matches_holds_and_what_none_matches_stays_dense(golden_model, golden_windows):
    model, dense = golden_model("llama"), weights(golden_model("llama"))
    asked = {"*.k_proj": 0.25, "mlp.*_proj": 0.5, "*.down_proj": "2:4", "model.layers.1.mlp.*": 0.75}
    report = pk.prune(model, golden_windows, "wanda", asked, skip=["*.1.mlp.up_proj"], update="obs",
                      progress=False)
    frame = report.to_frame().set_index("layer")
    wanted = {"k_proj": [0.25, 0.25], "gate_proj": [0.5, 0.75], "up_proj": [0.5, 0], "down_proj": [0.5, 0.75]}
    for name, row in frame.iterrows():
        assert row["target"] == wanted.get(name.split(".")[-1], [0, 0])[row["block"]]
        assert (row["pattern"] == "2:4") == (name == "model.layers.0.mlp.down_proj")
        assert row["target"] or torch.equal(weights(model)[name], dense[name])
    mean = (frame["target"] * frame["numel"]).sum() / frame["numel"].sum()
    assert report.target == pytest.approx(mean) and report.sparsity == pytest.approx(mean, abs=0.005)
    assert report.meta["pattern"] == "mixed"


@pytest.mark.parametrize("given, message", [
    ({"sparsity": {"down_proj": 0.5}}, r"name matches 'down_proj' \(did you mean '\*.down_proj'\?\)"),
    ({"sparsity": 0.5, "skip": "*.o_prj"}, r"'\*.o_prj' \(did you mean '\*.o_proj'\?\)"),
    ({"sparsity": {"*": 1.5}}, "sparsity 1.5 is not a share of zeros"),
    ({"sparsity": {"*": "4:2"}}, "pattern '4:2' is not known"),
    ({"sparsity": {"*": 0.5, "*.up_proj": "1:7"}}, "pattern 1:7 does not divide the 32 inputs of layer"),
    ({"sparsity": {}}, "sparsity {} names no target"),
    ({"sparsity": {0: 0.5}}, "0 is no pattern of layer names"),
    ({"sparsity": 0.5, "skip": [3]}, "3 is no pattern of layer names"),
])
def test_targets_that_cannot_be_are_refused(golden_model, golden_windows, given, message):
    model = golden_model("llama")
    with pytest.raises(pk.UsageError, match=message):
        pk.prune(model, golden_windows, "wanda", **given, progress=False)
    assert all((weight != 0).all() for weight in weights(model).values())


@pytest.mark.parametrize("update", [None, "obs", "obs-iter", "admm"])
@pytest.mark.parametrize("target", [0.6, "2:4", "4:8"])
@pytest.mark.parametrize("group", ["row", "layer", "variant"])
def test_zeros_are_preserved_and_count(golden_model, golden_windows, update, target, group):
    if group != "row" and (target != 0.6 or update == "obs-iter"):
        return
    model = golden_model("llama")
    pk.prune(model, golden_windows, "magnitude", 0.5 if target == 0.6 else "1:4", group="row", progress=False)
    before = weights(model)
    report = pk.prune(model, golden_windows, "wanda", target, group=group, update=update, preserve=True,
                      progress=False)
    after = weights(model)
    assert all((after[name][before[name] == 0] == 0).all() for name in before)
    assert report.sparsity == pytest.approx(report.target, abs=0.02)
    once = golden_model("llama")
    pk.prune(once, golden_windows, "wanda", target, group=group, update=update, progress=False)
    assert any((weights(once)[name][zeros == 0] != 0).any() for name, zeros in before.items())


def test_preserving_zeros_by_hand():
    S, zeros = torch.tensor([[4.0, 1, 3, 2, 8, 7, 6, 5]]), torch.tensor([[1, 0, 0, 0, 1, 1, 1, 0]]).bool()
    kept = {(0.75, "unstructured"): [0, 0, 1, 0, 0, 0, 0, 1],  # four are gone; two more, the lowest
            (0.25, "unstructured"): [0, 1, 1, 1, 0, 0, 0, 1],  # more than asked for: all stay zero
            (0.5, "2:4"): [0, 0, 1, 1, 0, 0, 0, 1]}  # one more left, three already right
    for (sparsity, pattern), wanted in kept.items():
        assert keep_mask(S, sparsity, pattern, zeros=zeros).int().tolist() == [wanted]


@pytest.mark.parametrize("first, then, message", [
    (0.6, 0.5, "layer .*: of its weights 59.4% are zero already, 9.4% more than sparsity 0.5 can keep"),
    ("4:8", "2:4", "more than groups of 2:4 can keep; ask for another pattern"),
])
def test_more_zeros_than_can_be_preserved_are_refused(golden_model, golden_windows, first, then, message):
    model = golden_model("llama")
    pk.prune(model, golden_windows, "wanda", first, progress=False)
    before = weights(model)
    with pytest.raises(pk.UsageError, match=message):
        pk.prune(model, golden_windows, "wanda", then, preserve=True, progress=False)
    assert all(torch.equal(before[name], weight) for name, weight in weights(model).items())


@pytest.mark.parametrize("refused, along", [
    ({}, "rows"), ({"update": "obs"}, "rows"), ({"update": "admm"}, "rows"),
    ({"update": "obs-iter"}, "columns")])
def test_zeros_are_counted_where_they_are_compared(golden_model, golden_windows, refused, along):
    """Half of a layer, on one side of it, is not half of what is compared: a row, a block of columns."""
    def halved():
        model = golden_model("llama")
        for layer in layers(model):
            if layer.kind in ("self_attn.q_proj", "self_attn.k_proj"):  # what others read stays alive
                side = layer.weight if along == "rows" else layer.weight.T
                side[:len(side) // 2] = 0
        return model

    ask = partial(pk.prune, windows=golden_windows, method="wanda", sparsity=0.5, preserve=True,
                  obs=ObsOptions(block_size=16), progress=False)
    where = "" if along == "columns" else " row by row; ask for more, or by layer"
    with pytest.raises(pk.UsageError, match=f"are zero already, .* more than sparsity 0.5 can keep{where}"):
        ask(halved(), **refused)
    for fitting in ({"group": "layer"}, {"update": "obs"} if along == "columns" else {"update": "obs-iter"}):
        assert ask(halved(), **fitting).sparsity == pytest.approx(0.5, abs=0.01)


def test_a_methods_windows_are_not_needed_where_it_reads_none(golden_model, golden_gradients):
    report = pk.prune(golden_model("llama"), None, "grad-weight", 0.5, gradients=golden_gradients["llama"],
                      progress=False)
    assert report.sparsity == 0.5 and report.meta["n"] == 0


def test_an_update_lowers_the_error_of_a_mask(golden_model, golden_windows, golden_gradients):
    dense = golden_model("llama")
    options = dict(gradients=golden_gradients["llama"], progress=False, one_shot=True)
    errors = {}
    for update in (None, "obs"):
        model = golden_model("llama")
        pk.prune(model, golden_windows, "pruner-zero", 0.5, update=update, **options)
        errors[update] = pk.layer_errors(model, dense, golden_windows, progress=False)["error"]
    assert (errors["obs"] < errors[None]).all()


def test_layer_error_by_hand(golden_model, golden_windows):
    dense, pruned = golden_model("llama"), golden_model("llama")
    pk.prune(pruned, golden_windows, "wanda", 0.5, progress=False)
    inputs = []
    module = dense.model.layers[0].mlp.gate_proj
    handle = module.register_forward_pre_hook(lambda m, args: inputs.append(args[0].flatten(0, 1)))
    with torch.no_grad():
        dense(golden_windows)
    handle.remove()
    x, W, V = inputs[0], module.weight, pruned.model.layers[0].mlp.gate_proj.weight
    expected = ((x @ (W - V).T).square().sum() / (x @ W.T).square().sum()).item()
    found = pk.layer_errors(pruned, dense, golden_windows, progress=False).set_index("layer")["error"]
    assert found["model.layers.0.mlp.gate_proj"] == pytest.approx(expected, rel=1e-4)


def test_ranking_is_in_float32_whatever_the_model(golden_model, golden_windows):
    """Scores of bfloat16 would tie, and keep other weights in some layers."""
    model, told_apart = golden_model("llama").bfloat16(), 0
    rounded, norms = weights(model), pk.collect_activations(model, golden_windows, progress=False)
    pk.prune(model, golden_windows, "wanda", 0.5, one_shot=True, progress=False)
    for name, W in weights(model).items():
        S = rounded[name].float().abs() * norms[name].sqrt()
        keep = keep_mask(S, 0.5)
        assert torch.equal(W != 0, keep)
        told_apart += not torch.equal(keep, keep_mask(S.bfloat16().float(), 0.5))
    assert told_apart


@pytest.mark.parametrize(("method", "options", "message"), [
    ("wandaa", {}, "unknown method 'wandaa' (did you mean 'wanda'?)"),
    ("wanda", {"pattern": "3:5", "sparsity": 0.6}, "pattern 3:5 does not divide the 32 inputs of layer"),
    ("wanda", {"sparsity": [0.5, 0.5, 0.5]}, "3 sparsities were given for a model of 2 decoder blocks"),
    ("pruner-zero", {}, "method pruner-zero reads G; pass gradients="),
    ("wanda", {"windows": None}, "method wanda reads the layers' inputs; pass calibration windows."),
    ("wanda", {"windows": torch.zeros(8, dtype=torch.long)}, "windows have shape (8,)"),
    ("mul(W, sqrt(Y))", {}, "unknown symbol 'Y'"),
    ("log(mms(W))", {"group": "variant"}, "group 'variant' cumulates scores"),
    ("pruner-zero", {"gradients": {}}, "method pruner-zero reads G; pass gradients="),
    ("pruner-zero", {"gradients": "none.safetensors"}, "gradient file none.safetensors does not exist"),
    ("wanda", {"update": "obs-iter", "group": "layer"}, "group 'layer' is not what would happen"),
    ("wanda", {"update": "obs-iter", "group": "variant"}, "group 'variant' is not what would happen"),
    ("sparsegpt", {"obs": pk.AdmmOptions()}, "sparsegpt takes ObsOptions for its update, not AdmmOptions"),
    ("admm", {"admm": {"rho": 1.0}}, "admm takes AdmmOptions for its update, not dict"),
    ("sparsegpt", {"obs": pk.ObsOptions(block_size=4), "sparsity": {"*.q_proj": "2:4", "*.o_proj": "4:8"}},
     "block size 4 is smaller than a group of pattern 4:8; give 8 or more."),
])
def test_refused_before_anything_is_changed(method, options, message, golden_model, golden_windows):
    model = golden_model("llama")
    before = weights(model)
    asked = {"windows": golden_windows, "sparsity": 0.5, **options}
    with pytest.raises(pk.UsageError) as refused:
        pk.prune(model, asked.pop("windows"), method, asked.pop("sparsity"), progress=False, **asked)
    assert message in str(refused.value)
    assert all(torch.equal(before[name], after) for name, after in weights(model).items())


def test_what_weights_and_gradients_show_changes_nothing(golden_model, golden_windows, golden_gradients):
    """The last layer's numbers are looked at before the first layer is written."""
    broken = {name: G.clone() for name, G in golden_gradients["llama"].items()}
    broken["mlp.down_proj_layer_1"].zero_()
    damaged = golden_model("llama")
    damaged.model.layers[1].post_attention_layernorm.weight.data[3] = float("nan")
    for model, method, G, message in (
            (golden_model("llama"), "pruner-zero", pk.Gradients(broken), r"1\.mlp\.down_proj: .* not finite"),
            (damaged, "wanda", None, r"1\.post_attention_layernorm\.weight holds numbers that are not")):
        before = weights(model)
        with pytest.raises(pk.UsageError, match=message) as refused:
            pk.prune(model, golden_windows, method, 0.5, gradients=G, progress=False)
        assert "anew" not in str(refused.value)
        assert all(torch.equal(before[name], after) for name, after in weights(model).items())


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_a_half_pruned_model_is_called_so(method, golden_model, golden_windows):
    model = golden_model("llama")
    model.model.layers[1].mlp.up_proj.weight.data *= 1e20
    with pytest.raises(pk.UsageError) as refused:
        pk.prune(model, golden_windows, method, 0.5, progress=False)
    said = str(refused.value)
    assert said.startswith("the inputs of layer model.layers.1.mlp.down_proj are not finite; check the model")
    assert said.endswith("the layers before it are pruned already, so load the model anew.")
    assert "windows" not in said


def test_what_float16_cannot_hold_is_refused(golden_model, golden_windows):
    """Two inputs that are always the same: the weight of the one that goes is added to the other's."""
    model = golden_model("llama")
    mlp = model.model.layers[1].mlp
    for module in (mlp.gate_proj, mlp.up_proj):
        module.weight.data[1::2] = module.weight.data[::2]
    mlp.down_proj.weight.data.fill_(6e4)[:, ::2] = 5e4
    model.half()
    message = (r"1\.mlp\.down_proj: the update makes a weight of 1\.\d+e\+05, too large for torch\.float16; "
               "load the model in float32; the layers before")
    with pytest.raises(pk.UsageError, match=message):
        pk.prune(model, golden_windows, "magnitude", 0.5, "1:2", update="obs", progress=False)


def test_zeros_are_counted_in_the_weights(golden_model, golden_windows):
    """A dead input loses its whole column, of which the 2:4 mask takes but a half."""
    model = golden_model("llama")
    for block in model.model.layers:
        block.mlp.up_proj.weight.data[:16] = 0
    report = pk.prune(model, golden_windows, "sparsegpt", 0.5, "2:4", progress=False)
    zeros = {name: int((W == 0).sum()) for name, W in weights(model).items()}
    assert {row["layer"]: row["zeros"] for row in report.rows} == zeros
    assert report.sparsity == sum(zeros.values()) / sum(row["numel"] for row in report.rows) > 0.5
    assert all(row["masked"] == row["numel"] / 2 for row in report.rows)
    assert [row["excess"] > 0 for row in report.rows if row["kind"] == "mlp.down_proj"] == [True, True]


def test_a_shortfall_is_said(golden_model, golden_windows):
    message = r"9\d\.\d% .* zero where 99\.9% were asked for: wanda-variant \(group variant\)"
    with pytest.warns(UserWarning, match=message) as said:
        report = pk.prune(golden_model("llama"), golden_windows, "wanda-variant", 0.999, progress=False)
    assert report.sparsity < 0.98 and said[0].filename == __file__


@pytest.mark.parametrize("update", [None, "obs", "obs-iter", "admm"])
def test_what_ranks_nothing_is_refused_under_every_update(update, golden_model, golden_windows):
    with pytest.raises(pk.UsageError, match="constant on this layer, so it ranks nothing"):
        pk.prune(golden_model("llama"), golden_windows, "sub(W, W)", 0.5, update=update, progress=False)


@pytest.mark.parametrize("options", [{"group": "layer"}, {"update": "obs-iter"},
                                     {"group": "layer", "preserve": True}])
def test_an_overshoot_is_said(options, golden_model, golden_windows):
    tied = "tanh(mul(100, mul(100, W)))"  # 1, but for the smallest weights
    with pytest.warns(UserWarning, match=r"100\.0% .* where 50\.0% were asked for: .* too many equal scores"):
        pk.prune(golden_model("llama"), golden_windows, tied, 0.5, progress=False, **options)


def test_gradients_may_be_a_file(golden_model, golden_gradients, tmp_path):
    G = golden_gradients["llama"]
    held, read = golden_model("llama"), golden_model("llama")
    pk.prune(held, None, "grad-weight", 0.5, gradients=G, progress=False)
    pk.prune(read, None, "grad-weight", 0.5, gradients=G.save(tmp_path / "G.safetensors"), progress=False)
    assert all(torch.equal(a, b) for a, b in zip(weights(held).values(), weights(read).values(), strict=True))


def test_inference_mode_is_refused(golden_model, golden_windows):
    with torch.inference_mode():
        made = FAMILIES["LLaMA"].model()
        with pytest.raises(pk.UsageError, match="torch.inference_mode is on"):
            pk.prune(golden_model("llama"), golden_windows, "wanda", 0.5, progress=False)
    with pytest.raises(pk.UsageError, match="or was when the model was loaded"):
        pk.prune(made, None, "magnitude", 0.5, progress=False)


def test_gradients_of_another_model_are_refused(golden_model, golden_windows, golden_gradients):
    with pytest.raises(pk.UsageError, match="made with another model"):
        pk.prune(golden_model("opt"), golden_windows, "grad-weight", 0.5, gradients=golden_gradients["llama"],
                 progress=False)
