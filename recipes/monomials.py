"""What every monomial W^a G^b X^c of the grid does to one model: does an order of metrics travel?

    python -m recipes.monomials --model DIR --corpus FOLDER --targets 0.6 2:4 --windows 16 --seqlen 512 \\
        --output FILE.csv

One row per monomial, target and group of neighbouring windows: the summed negative log-likelihood (nats) and
the number of predicted tokens, so that whatever is computed from the sums has an interval. The dense model
has target "dense". Pruning is one-shot, as in the search; a monomial that is no metric there has NaN. The
file is whole after every monomial: a run that was killed goes on where it was, if it is asked for the same.
"""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

import prunekit as pk
from prunekit.errors import UsageError
from prunekit.files import check_file, refuse_other, replacing_file
from recipes import common

EXPONENTS = ["W", "G", "X"]  # in quarters


def monomials(model: str, corpus: str, output: Path, *, targets: Sequence[str] = ("0.6", "2:4"),
              role: str = "select", windows: int = 16, groups: int = 16, seqlen: int = 512,
              calibration: int = 32, gradient: int = 32, steps: int = 12, every: int = 1,
              dtype: str = "auto", device: str = "auto", seed: int = 0, properties: Path | None = None,
              progress: bool = True) -> pd.DataFrame:
    """Measure, or go on measuring; returns the table. Raises UsageError for a file with another table.

    properties: another file, for what might explain the table: `layer_properties` of the model.
    """
    if windows % groups:
        raise UsageError(f"{windows} windows cannot be {groups} groups of equal size: give a number of "
                         "groups that divides them.")
    check_file(output)
    network, tokenizer = pk.load_model(model, dtype=dtype, device=device)
    asked = common.columns(model, corpus, str(network.dtype).removeprefix("torch."), seed) | {
        "role": role, "seqlen": seqlen, "windows": windows, "calibration_windows": calibration,
        "gradient_windows": gradient, "steps": steps}
    if properties:
        check_file(properties)
    told = dict.fromkeys(("target", "weights", "content"), str)  # hashes may look like numbers
    table = pd.read_csv(output, dtype=told) if output.exists() else None
    if table is not None:
        row = {"content": asked["content"], **table.iloc[-1].dropna()}  # which older rows do not say
        refuse_other(output, row, asked)
        had = set(table["target"]) - {"dense"}  # none, where it was killed after the dense model
        if table["group"].nunique() != groups or had and had != set(targets):
            raise UsageError(f"{output} was measured at other targets or in other groups: ask for the same, "
                             "or for another file.")
    read, backward, measured = (
        pk.token_windows(corpus, tokenizer, part, n, seqlen, seed)
        for part, n in (("calibration", calibration), ("gradient", gradient), (role, windows)))
    gradients = pk.collect_gradients(network, backward, progress=progress)
    bench = pk.Bench(network, read, measured, gradients=gradients)
    evaluator = pk.Evaluator(bench, targets, threads=torch.get_num_threads(), seed=seed)
    evaluator = evaluator.on([measured])  # in the text's order
    dense = evaluator.benches[0].nll
    if properties:
        with replacing_file(properties) as file:
            layer_properties(bench).assign(**asked).to_csv(file, index=False, float_format="%.5g")

    def rows(exponents: tuple[int, ...], target: str, nll: np.ndarray) -> pd.DataFrame:
        sums = (nll * (seqlen - 1)).reshape(groups, -1).sum(1)
        return pd.DataFrame({**dict(zip(EXPONENTS, exponents, strict=True)), "target": target,
                             "group": range(groups), "nll": sums,
                             "tokens": windows // groups * (seqlen - 1), **asked})

    table = rows((0, 0, 0), "dense", dense) if table is None else table
    known = set(map(tuple, table[EXPONENTS].to_numpy().tolist()))
    wanted = {powers: tree for powers, tree in pk.grid(steps).items()
              if powers not in known and not any(power % every for power in powers)}
    for exponents, tree in tqdm(wanted.items(), desc="monomials", disable=not progress):
        try:
            added = evaluator.losses(tree)[0]
        except UsageError:  # no metric on this model
            added = np.full((len(targets), windows), np.nan)
        parts = (rows(exponents, target, dense + more) for target, more in zip(targets, added, strict=True))
        table = pd.concat([table, *parts], ignore_index=True)
        with replacing_file(output) as file:
            table.to_csv(file, index=False, float_format="%.8g")
    return table


def layer_properties(bench: pk.Bench) -> pd.DataFrame:
    """What every layer's W, G and X are like; a row per layer: layer, block, kind, size, and

    kurtosis (of G: fourth central moment by the squared variance, 3 if it were normal), top (share of G's sum
    in its largest hundredth), outliers (maximum of X by its median), W~G and W~X (Spearman's correlation of
    |W| with G and with X inside a row, mean over rows).
    """
    rows = []
    for place, layer in enumerate(bench.layers):
        W, G, X = bench.dense[place].abs().float(), bench.G[place].float(), bench.X[place].float()
        apart = (G - G.mean()).square()
        largest = G.flatten().topk(-(-G.numel() // 100)).values
        rows.append({"layer": layer.name, "block": layer.block, "kind": layer.kind, "size": W.numel(),
                     "kurtosis": float(apart.square().mean() / apart.mean().square()),
                     "top": float(largest.double().sum() / G.double().sum()),
                     "outliers": float(X.max() / X.median()), "W~G": _within_rows(W, G),
                     "W~X": _within_rows(W, X.expand_as(W))})
    return pd.DataFrame(rows)


def _within_rows(A: torch.Tensor, B: torch.Tensor) -> float:
    """Spearman's correlation of every row of two matrices (out, in), as if nothing were tied; its mean."""
    n = A.shape[1]
    a, b = (M.argsort(1).argsort(1).double() - (n - 1) / 2 for M in (A, B))
    return float((a * b).sum(1).mean() / (n * (n * n - 1) / 12))


if __name__ == "__main__":
    common.command(monomials, torch.get_num_threads(), role="whose windows are measured",
                   windows="to measure on", groups="of neighbouring windows, each summed",
                   steps="of the grid: 91 monomials",
                   every="of the grid's exponents: 2 leaves the 28 monomials that are even",
                   output="the CSV file; resumes what is there")
