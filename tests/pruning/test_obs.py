from __future__ import annotations

import pytest
import torch

from prunekit import ObsOptions, UsageError
from prunekit.pruning.obs import inverse_factor, obs_update


def problem(seed: int = 0, out: int = 7, inputs: int = 40,
            tokens: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, inputs, generator=generator) @ torch.randn(inputs, inputs, generator=generator)
    return torch.randn(out, inputs, generator=generator), 2 * x.T @ x / 10


def plain_solver(W, H, keep):
    """The published recurrence written out: three factorizations, one column at a time."""
    H = H + 0.01 * H.diagonal().mean() * torch.eye(len(H))
    U = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(H)), upper=True)
    W = W.clone()
    for i in range(W.shape[1]):
        err = (W[:, i] - W[:, i] * keep[:, i]) / U[i, i]
        W[:, i:] -= err[:, None] * U[i, i:]
    return W * keep


def test_factor_is_the_upper_cholesky_of_the_inverse():
    _, H = problem()
    factor = inverse_factor(H)
    damped = H + 0.01 * H.diagonal().mean() * torch.eye(len(H))
    assert torch.equal(factor.U, factor.U.triu())
    torch.testing.assert_close(factor.U.T @ factor.U @ damped, torch.eye(len(H)), atol=1e-3, rtol=0)
    assert factor.damping == 0.01 and not factor.dead.any()


@pytest.mark.parametrize("block_size", [8, 16, 40, 128])
def test_given_mask_equals_the_plain_recurrence(block_size):
    W, H = problem()
    keep = torch.rand(W.shape, generator=torch.Generator().manual_seed(1)) > 0.5
    expected = plain_solver(W, H, keep)
    obs_update(W, inverse_factor(H), 0.5, "unstructured", keep=keep,
               options=ObsOptions(block_size=block_size))
    torch.testing.assert_close(W, expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(W != 0, keep)


def test_the_update_lowers_the_output_error():
    W, H = problem()
    keep = W.abs() > W.abs().median()
    updated = W.clone()
    obs_update(updated, inverse_factor(H), 0.5, "unstructured", keep=keep)
    error = lambda V: (((V - W) @ H) * (V - W)).sum()
    assert error(updated) < 0.8 * error(W * keep)


@pytest.mark.parametrize(("pattern", "sparsity", "m"), [("2:4", 0.5, 4), ("4:8", 0.5, 8), ("1:5", 0.2, 5)])
def test_patterns_hold_after_the_update(pattern, sparsity, m):
    W, H = problem()
    keep = obs_update(W, inverse_factor(H), sparsity, pattern)
    assert torch.equal(W != 0, keep)
    assert ((~keep).view(-1, m).sum(1) == int(pattern[0])).all()


def test_dead_inputs_lose_their_weights_and_are_counted():
    W, H = problem()
    H[3] = H[:, 3] = 0
    factor = inverse_factor(H)
    assert factor.dead.nonzero().tolist() == [[3]]
    obs_update(W, factor, 0.0, "unstructured")
    assert (W[:, 3] == 0).all() and torch.isfinite(W).all()


def test_damping_climbs_its_ladder_and_says_so():
    H = torch.diag(torch.tensor([4.0, 2.0, -0.15, 1.0]))  # as rounding can make it
    assert inverse_factor(H).damping == 0.1
    with pytest.raises(UsageError, match="not positive definite even with damping 0.01"):
        inverse_factor(H, ObsOptions(damping=(0.01,)))


def test_a_group_wider_than_a_block_is_refused():
    W, H = problem()
    with pytest.raises(UsageError, match="block size 2 is smaller than a group of pattern 2:4"):
        obs_update(W, inverse_factor(H), 0.5, "2:4", options=ObsOptions(block_size=2))


@pytest.mark.parametrize("wrong", [
    {"damping": ()}, {"damping": (-0.1,)}, {"damping": (float("nan"),)}, {"damping": "0.01"},
    {"block_size": 0}, {"block_size": 1.5}, {"block_size": True}])
def test_options_that_solve_nothing_are_refused(wrong):
    with pytest.raises(UsageError, match="block_size|damping"):
        ObsOptions(**wrong)


def test_one_damping_is_a_ladder_of_one():
    assert ObsOptions(damping=0.01) == ObsOptions(damping=[0.01]) == ObsOptions(damping=(0.01,))
