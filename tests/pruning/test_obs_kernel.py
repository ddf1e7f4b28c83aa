"""The kernel of SparseGPT's solver against the loop: on a GPU, or in Triton's interpreter on a processor."""
from __future__ import annotations

import os
import warnings

import pytest
import torch

from prunekit import UsageError
from prunekit.metric.tree import Tree
from prunekit.pruning import obs
from prunekit.pruning.obs import Scores, inverse_factor, obs_update, solve_block

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernel is imported
pytest.importorskip("triton", reason="the kernel is not tried, for want of Triton: pip install triton.")
from prunekit.pruning import obs_kernel

UNTOUCHED = 7.0


def problem(out: int, inputs: int, dead: tuple[int, ...] = ()) -> tuple[torch.Tensor, obs.Factor]:
    generator = torch.Generator().manual_seed(out * inputs)
    x = torch.randn(4 * inputs, inputs, generator=generator)
    x[:, list(dead)] = 0
    factor = inverse_factor(x.T @ x)
    return (torch.randn(out, inputs, generator=generator).to(DEVICE),
            obs.Factor(factor.U.to(DEVICE), factor.dead.to(DEVICE), factor.damping))


@pytest.fixture
def on_the_chip(monkeypatch):
    """For a while, blocks are solved by the kernel where it agrees with the loop, whatever the device."""
    monkeypatch.setattr(obs, "_KERNEL_ON", (DEVICE.type,))
    monkeypatch.setattr(obs, "_refused", set())
    obs._solver.cache_clear()
    yield
    obs._solver.cache_clear()


@pytest.mark.parametrize(("ratio", "metric"), [(None, False), ((2, 4), False), ((2, 4), True),
                                               ((1, 3), False), ((4, 8), True), ((5, 16), False)])
@pytest.mark.parametrize(("out", "groups"), [(1, 1), (37, 3)])
def test_a_block_is_solved_as_by_the_loop_and_nothing_around_it_is_touched(ratio, metric, out, groups):
    """Odd widths, rows that fill no tile; W is a part of something larger, lying in either direction."""
    group = ratio[1] if ratio else 7
    width = groups * group
    rows, factor = problem(out, width)
    found = []
    for solve, transposed in ((solve_block, False), (obs_kernel.solve_block, False),
                              (obs_kernel.solve_block, True)):
        whole = rows.new_full((out + 2, width + 3), UNTOUCHED)
        whole = whole.T.contiguous().T if transposed else whole
        W = whole[1:-1, 1:-2]
        W.copy_(rows)
        all_kept = torch.ones_like(whole, dtype=torch.bool)
        keep = all_kept[1:-1, 1:-2]
        if not ratio:
            keep.copy_(rows > 0)
        scores = Scores(factor.U, (lambda columns, part: part.abs()) if metric else None)
        errors = solve(W, factor.U, keep, 0, group if ratio else 1, ratio, scores)
        found.append((keep.clone(), W.clone(), errors))
        whole[1:-1, 1:-2], all_kept[1:-1, 1:-2] = UNTOUCHED, True
        assert (whole == UNTOUCHED).all() and all_kept.all()
        assert scores.bounds or not ratio
    for keep, W, errors in found[1:]:
        assert torch.equal(keep, found[0][0])
        torch.testing.assert_close(W, found[0][1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(errors, found[0][2], rtol=1e-4, atol=1e-5)
    if ratio:
        assert ((~found[1][0]).view(-1, group).sum(1) == ratio[0]).all()


def test_equal_scores_go_from_the_left():
    W = torch.ones(3, 8, device=DEVICE)
    keep = torch.ones(3, 8, dtype=torch.bool, device=DEVICE)
    U = torch.eye(8, device=DEVICE)
    obs_kernel.solve_block(W, U, keep, 0, 4, (2, 4), Scores(U))
    assert keep.tolist() == [[False, False, True, True] * 2] * 3


@pytest.mark.parametrize(("pattern", "sparsity", "metric"), [
    ("unstructured", 0.6, None), ("unstructured", 0.5, "mul(W, sqrt(X))"), ("2:4", 0.5, None),
    ("2:4", 0.5, "mul(W, mms(X))"), ("unstructured", 0.5, "given")])
def test_a_layer_is_updated_as_by_the_loop(on_the_chip, pattern, sparsity, metric):
    """Dead inputs, several blocks of which the last is narrower."""
    W, factor = problem(21, 40, dead=(3, 20))
    keep = W > 0.1 if metric == "given" else None
    score = None
    if metric and keep is None:
        score = Tree.parse(metric).bind(W, None, torch.linspace(0.5, 2, 40, device=DEVICE)[None]).score
    results = []
    for kinds in ((), obs._KERNEL_ON):
        obs._KERNEL_ON = kinds
        obs._solver.cache_clear()
        V = W.clone()
        mask = obs_update(V, factor, sparsity, pattern, keep=None if keep is None else keep.clone(),
                          score=score, options=obs.ObsOptions(block_size=16))
        results.append((mask, V))
    assert obs._solver(DEVICE, 16, 1, None, False) is obs_kernel.solve_block and not obs._refused
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-4, atol=1e-5)
    assert (results[1][1][:, [3, 20]] == 0).all()


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 1e30])
def test_scores_that_are_not_finite_are_refused(on_the_chip, wrong):
    W, factor = problem(5, 8)
    W[2, 6] = wrong
    with pytest.raises(UsageError, match="the scores are not finite"):
        obs_update(W, factor, 0.5, "2:4")


def raises(*args):
    raise RuntimeError("PTX was not understood")


def differs(W, U, keep, start, group, ratio, scores):
    errors = solve_block(W, U, keep, start, group, ratio, scores)
    W[:, -1] *= 1.01
    return errors


def other_masks(W, U, keep, start, group, ratio, scores):
    errors = solve_block(W, U, keep, start, group, ratio, scores)
    keep.logical_not_()
    return errors


@pytest.mark.parametrize(("kernel", "why"), [(raises, "RuntimeError: PTX was not understood"),
                                             (differs, "its weights are not those of the loop"),
                                             (other_masks, "its weights are not those of the loop")])
def test_a_kernel_that_fails_is_replaced_by_the_loop_with_one_warning(on_the_chip, monkeypatch, kernel, why):
    monkeypatch.setattr(obs_kernel, "solve_block", kernel)
    W, factor = problem(9, 24)
    expected = W.clone()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for pattern in ("2:4", "unstructured"):
            obs_update(W, factor, 0.5, pattern, options=obs.ObsOptions(block_size=16))
    assert [why in str(warning.message) for warning in caught] == [True]
    obs._KERNEL_ON = ()
    obs._solver.cache_clear()
    for pattern in ("2:4", "unstructured"):
        obs_update(expected, factor, 0.5, pattern, options=obs.ObsOptions(block_size=16))
    assert torch.equal(W, expected)
