"""The published numbers, read as they are printed."""
from __future__ import annotations

import pandas as pd

from prunekit.ledger.published import published


def test_rows_keep_their_protocol_and_their_source():
    everything = published()
    assert len(everything) > 150 and everything["id"].is_unique
    assert everything["value"].notna().all() and (everything["sparsity"].between(0, 1)).all()
    assert (everything["source"] != "").all()
    assert set(everything["source_kind"]) == {"primary", "secondary", "rerun"}
    stated = everything.drop(columns=["note"])
    assert not stated.isin(["", None]).any(axis=None)   # what is not stated says so


def test_rows_are_chosen_by_their_columns():
    found = published(model="LLaMA-2-7B", method="wanda", metric="perplexity", sparsity=0.5, pattern="2:4",
                      source_kind="primary")
    assert found["value"].tolist() == [11.02]
    pd.testing.assert_frame_equal(published(method="nothing"), published().iloc[:0])


def test_the_two_accuracies_of_the_rerun_are_apart():
    rerun = published(source="pprp/Pruner-Zero issue 3 (rerun by a user)")
    assert dict(zip(zip(rerun["method"], rerun["metric"], strict=True), rerun["value"], strict=True)) == {
        ("wanda", "acc mean"): 56.05, ("wanda", "acc_norm mean"): 60.57,
        ("pruner-zero", "acc mean"): 53.89, ("pruner-zero", "acc_norm mean"): 58.05}
