"""What every monomial W^a G^b X^c of the grid does to one model: does an order of metrics travel?

    python -m recipes.monomials --model DIR --corpus FOLDER --targets 0.6 2:4 --windows 16 --seqlen 512 \\
        --output FILE.csv

One row per monomial, target and group of neighbouring windows: the summed negative log-likelihood (nats) and
the number of predicted tokens, so that whatever is computed from the sums has an interval. The dense model
has target "dense". Pruning is one-shot, as in the search; a monomial that is no metric there has NaN. The
file is whole after every monomial: a run that was killed goes on where it was, if it is asked for the same.
"""
from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

import prunekit as pk
from prunekit.errors import UsageError
from prunekit.files import check_file, replacing_file
from prunekit.models import fingerprint
from prunekit.workbook.manifest import machine
from prunekit.workbook.protocol import label

EXPONENTS = ["W", "G", "X"]  # in quarters


def monomials(model: str, corpus: str, targets: list[str], output: Path, *, windows: int = 16,
              groups: int = 16, seqlen: int = 512, role: str = "select", calibration: int = 32,
              gradient: int = 32, steps: int = 12, every: int = 1, dtype: str = "auto",
              device: str = "auto", seed: int = 0, properties: Path | None = None,
              progress: bool = True) -> pd.DataFrame:
    """Measure, or go on measuring; returns the table. Raises UsageError for a file with another table.

    properties: another file, for what might explain the table: `layer_properties` of the model.
    """
    if windows % groups:
        raise UsageError(f"{windows} windows cannot be {groups} groups of equal size: give a number of "
                         "groups that divides them.")
    check_file(output)
    network, tokenizer = pk.load_model(model, dtype=dtype, device=device)
    asked = {"model": label(model), "weights": fingerprint(model), "corpus": Path(corpus).name,
             "dtype": str(network.dtype).removeprefix("torch."), "role": role, "seqlen": seqlen,
             "windows": windows, "calibration_windows": calibration, "gradient_windows": gradient,
             "seed": seed}
    made = {"recorded": time.strftime("%Y-%m-%d"), "machine": machine()}
    if properties:
        check_file(properties)
    table = _resumed(output, asked, groups * len(targets))
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
            layer_properties(bench).assign(**asked, **made).to_csv(file, index=False, float_format="%.5g")

    def rows(exponents: tuple[int, ...], target: str, nll: np.ndarray) -> pd.DataFrame:
        sums = (nll * (seqlen - 1)).reshape(groups, -1).sum(1)
        return pd.DataFrame({**dict(zip(EXPONENTS, exponents, strict=True)), "target": target,
                             "group": range(groups), "nll": sums,
                             "tokens": windows // groups * (seqlen - 1), **asked, **made})

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


def _resumed(file: Path, asked: dict[str, Any], rows: int) -> pd.DataFrame | None:
    if not file.exists():
        return None
    table = pd.read_csv(file, dtype={"target": str})
    had = {key: table[key].iloc[0] if key in table else "unknown" for key in asked}
    differing = [f"{key} {had[key]}" for key in asked if str(asked[key]) != str(had[key])]
    if not differing and (table[table["target"] != "dense"].groupby(EXPONENTS).size() != rows).any():
        differing = ["other targets or groups"]
    if differing:
        raise UsageError(f"{file} was measured with {differing[0]}: ask for the same, or for another file.")
    return table


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.monomials",
                                     description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="a name or directory, as for load_model")
    parser.add_argument("--corpus", required=True, help="of all windows: a known corpus, a file or a folder")
    parser.add_argument("--output", type=Path, required=True, help="the CSV file; resumes what is there")
    parser.add_argument("--properties", type=Path, help="a CSV file for what the layers' W, G and X are like")
    parser.add_argument("--targets", nargs="+", default=["0.6", "2:4"])
    parser.add_argument("--role", default="select", help="whose windows are measured (default: select)")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    for name, default, text in (
            ("windows", 16, "to measure on"), ("groups", 16, "of neighbouring windows, each summed"),
            ("seqlen", 512, "tokens a window"), ("calibration", 32, "windows for X"),
            ("gradient", 32, "windows for G"), ("steps", 12, "of the grid: 91 monomials"),
            ("every", 1, "of the grid's exponents: 2 leaves the 28 monomials that are even"),
            ("seed", 0, "of the windows"), ("threads", torch.get_num_threads(), "of torch")):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} (default: {default})")
    asked = vars(parser.parse_args(arguments))
    torch.set_num_threads(asked.pop("threads"))
    try:
        monomials(**asked)
    except UsageError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
