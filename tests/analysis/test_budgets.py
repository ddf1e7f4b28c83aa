import pytest

import prunekit as pk
from prunekit.analysis.budgets import worth


def test_an_evolved_budget_is_held_against_what_takes_no_search_and_luck():
    model, tokenizer = pk.load_model("embedded/llama", dtype="float32")
    windows = {role: pk.token_windows("embedded", tokenizer, role, 8, 32)
               for role in ("calibration", "gradient", "search", "select")}
    gradients = pk.collect_gradients(model, windows["gradient"], progress=False)
    bench = pk.Bench("embedded/llama", windows["calibration"], windows["search"], gradients=gradients,
                     dtype="float32")
    evaluator = pk.Evaluator(bench, ["0.7", "2:4"])
    budgets, table = worth(evaluator, model, windows["calibration"], windows["select"], 6)
    assert list(budgets) == ["uniform", "OWL", "best of random", "evolved"]
    assert table["name"].tolist() == ["OWL by uniform", "best of random by uniform", "evolved by uniform",
                                      "evolved by best of random"]
    ratios = table.set_index("name")["ratio"]
    assert ratios.iloc[3] == pytest.approx(ratios.iloc[2] / ratios.iloc[1])
    settings = [{"method": "wanda", "sparsity": budgets[name]} for name in ("OWL", "uniform")]
    owl, even = pk.prune_and_measure(model, windows["calibration"], windows["select"], settings,
                                     progress=False)
    assert ratios.iloc[0] == owl.perplexity.value / even.perplexity.value
    assert owl.report.sparsity == even.report.sparsity
    pattern = evaluator.on(targets=["2:4"])
    assert "OWL" not in worth(pattern, model, windows["calibration"], windows["select"], 2)[0]
