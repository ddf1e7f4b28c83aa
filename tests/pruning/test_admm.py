"""ADMM against exact least squares on its support, against the column loop, and on every kind of target."""
from __future__ import annotations

import pytest
import torch

from prunekit import AdmmOptions, Tree, UsageError, collect_gradients, layer_errors, prune
from prunekit.metric.catalogue import GROUPS
from prunekit.pruning.admm import above_optimum, admm_inverse, admm_update, output_error
from prunekit.pruning.obs import inverse_factor, obs_update
from tests.pruning.families import FAMILIES, weights, windows

TARGETS = [(0.6, "unstructured"), (0.5, "2:4"), (0.5, "4:8"), (0.2, "1:5"), (0.75, "3:4")]


def problem(seed: int = 0, out: int = 24, inputs: int = 40, tokens: int = 400):
    """W (out, in), and H of inputs that are correlated."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, inputs, generator=generator) @ torch.randn(inputs, inputs, generator=generator)
    return torch.randn(out, inputs, generator=generator), 2 * x.T @ x / 10


def solved(W, H, *target, options: AdmmOptions = AdmmOptions(), **how) -> torch.Tensor:
    V = W.clone()
    keep = admm_update(V, admm_inverse(H, options), *target, options=options, **how)
    assert torch.equal(V != 0, keep)
    return V


def least_squares(W: torch.Tensor, H: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """The exact optimum, row by row: min over v on its support of |L.T (w - v)| with H = L L.T; float64."""
    L, best = torch.linalg.cholesky(H.double()), torch.zeros(W.shape, dtype=torch.float64)
    for w, row, best_row in zip(W.double(), keep, best, strict=True):
        best_row[row] = torch.linalg.lstsq(L.T[:, row], L.T @ w).solution
    return best


def damped(H: torch.Tensor, damping: float) -> torch.Tensor:
    return H + damping * H.diagonal().diag()


def test_one_step_by_hand():
    """Two inputs, the second removed: Z = (w1, 0), U = (0, w2), V = (W' H' + Z - U) M."""
    W, H = torch.tensor([[2.0, 1.0]]), torch.tensor([[4.0, 1.0], [1.0, 1.0]])
    A = torch.tensor([[1.1, 0.5], [0.5, 1.1]])  # H / (2, 1)(2, 1)^T, damped
    M = torch.linalg.inv(A + torch.eye(2))
    expected = (torch.tensor([[4.0, 1.0]]) @ A + torch.tensor([[4.0, -1.0]])) @ M
    V = solved(W, H, 0.5, "unstructured", keep=torch.tensor([[True, False]]),
               options=AdmmOptions(1, 1, damping=(0.1,), rho=1.0, relaxation=1.0))
    torch.testing.assert_close(V, torch.stack([expected[:, 0] / 2, torch.zeros(1)], 1))


@pytest.mark.parametrize("damping", [0.1, 0.01])
def test_many_iterations_reach_the_exact_optimum_of_the_support(damping):
    W, H = problem()
    keep = torch.rand(W.shape, generator=torch.Generator().manual_seed(1)) > 0.5
    V = solved(W, H, 0.5, "unstructured", keep=keep, options=AdmmOptions(20000, damping=(damping,)))
    assert torch.equal(V != 0, keep)
    best = least_squares(W, damped(H, damping), keep)
    torch.testing.assert_close(V.double(), best, rtol=1e-3, atol=1e-3)
    assert above_optimum(W, V, damped(H, damping)) < 1e-4


def test_the_distance_from_the_optimum_is_that_of_least_squares():
    W, H = problem()
    V = solved(W, H, 0.6, "unstructured")
    best = least_squares(W, H, V != 0)
    found, least = (output_error(W.double(), one.double(), H.double()) for one in (V, best))
    expected = found / least - 1
    assert expected > 0.001
    assert above_optimum(W, V, H) == pytest.approx(expected, rel=1e-6)
    assert above_optimum(W, best, H) == pytest.approx(0, abs=1e-9)
    assert above_optimum(W, V, H, rows=5) != above_optimum(W, V, H)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", range(3))
def test_less_error_than_the_column_loop(target, seed):
    W, H = problem(seed)
    V = W.clone()
    obs_update(V, inverse_factor(H), *target)
    assert output_error(W, solved(W, H, *target), H) < 0.95 * output_error(W, V, H)


@pytest.mark.parametrize("seed", range(3))
def test_less_error_than_the_column_loop_with_the_same_mask(seed):
    W, H = problem(seed)
    keep = W.abs() > W.abs().median()
    V = W.clone()
    obs_update(V, inverse_factor(H), 0.5, "unstructured", keep=keep)
    U = solved(W, H, 0.5, "unstructured", keep=keep, options=AdmmOptions(200, damping=(0.01,)))
    assert torch.equal(U != 0, keep)
    assert output_error(W, U, H) < output_error(W, V, H)


def test_a_mask_that_grows_beats_the_same_metric_s_fixed_mask():
    W, H = problem()
    fixed, grown = (solved(W, H, 0.6, "unstructured", options=AdmmOptions(growth=n)) for n in (0, 15))
    assert output_error(W, grown, H) < 0.95 * output_error(W, fixed, H)


@pytest.mark.parametrize(("sparsity", "pattern"), TARGETS)
@pytest.mark.parametrize("inputs", [40, 120])
def test_sparsity_is_exact(sparsity, pattern, inputs):
    W, H = problem(inputs=inputs)
    removed = solved(W, H, sparsity, pattern) == 0
    assert (removed.sum(1) == int(inputs * sparsity)).all()
    if pattern != "unstructured":
        assert (removed.view(len(W), -1, int(pattern[2])).sum(2) == int(pattern[0])).all()


@pytest.mark.parametrize(("group", "inputs", "zeros"), [
    ("row", 37, 24 * 22), ("row", 1, 0), ("layer", 37, 533), ("layer", 1, 15), ("variant", 37, 533)])
def test_groups_and_odd_widths(group, inputs, zeros):
    """As `keep_mask` counts: int(in s) in every row, int(numel s) + 1 in the layer, about that as variant."""
    assert group in GROUPS
    W, H = problem(inputs=inputs)
    found = int((solved(W, H, 0.6, "unstructured", group) == 0).sum())
    assert found == pytest.approx(zeros, abs=0.01 * W.numel() if group == "variant" else 0)


def test_sparsity_zero_changes_nothing():
    W, H = problem()
    torch.testing.assert_close(solved(W, H, 0.0, "unstructured"), W)


def test_the_mask_ranks_the_metric_of_the_current_weights():
    """The metric sees weights in their own units, so that Wanda's line gives what the default does."""
    W, H = problem()
    X = H.diagonal()[None] / 2
    wanda = Tree.parse("mul(W, sqrt(X))")
    seen = []

    def score(Y: torch.Tensor) -> torch.Tensor:
        seen.append(Y.clone())
        return wanda.score(Y, None, X)
    V = solved(W, H, 0.6, "unstructured", score=score)
    assert len(seen) == AdmmOptions().growth
    torch.testing.assert_close(seen[0], W)
    assert not torch.allclose(seen[1], W, rtol=0.01)
    torch.testing.assert_close(V, solved(W, H, 0.6, "unstructured"))
    assert torch.equal(solved(W, H, 0.6, "unstructured", score=torch.abs, options=AdmmOptions(growth=0)) != 0,
                       W.abs() > W.abs().kthvalue(24, dim=1, keepdim=True).values)


def test_dead_inputs_are_zero_and_leave_the_others_alone():
    W, H = problem()
    alive = [i for i in range(40) if i not in (3, 17)]
    H[[3, 17]] = H[:, [3, 17]] = 0
    inverse = admm_inverse(H)
    assert inverse.dead.nonzero().flatten().tolist() == [3, 17]
    V, others = W.clone(), W[:, alive].contiguous()
    keep = torch.rand(W.shape, generator=torch.Generator().manual_seed(1)) > 0.5
    admm_update(V, inverse, 0.5, "unstructured", keep=keep)
    assert (V[:, [3, 17]] == 0).all()
    kept = keep[:, alive].contiguous()
    admm_update(others, admm_inverse(H[alive][:, alive].contiguous()), 0.5, "unstructured", keep=kept)
    torch.testing.assert_close(V[:, alive], others)
    assert above_optimum(W, V, H) >= 0


def test_a_layer_that_only_saw_zeros():
    W, H = problem()
    V = W.clone()
    keep = admm_update(V, admm_inverse(torch.zeros_like(H)), 0.5, "2:4")
    assert not V.any() and (keep.sum(1) == 20).all()
    assert output_error(W, V, torch.zeros_like(H)) == 0.0 == above_optimum(W, V, torch.zeros_like(H))


def test_fewer_tokens_than_inputs():
    W, H = problem(tokens=5)  # rank 5 of 40
    V = solved(W, H, 0.5, "2:4")
    assert torch.isfinite(V).all() and output_error(W, V, H) < 0.1


@pytest.mark.parametrize("magnitude", [1e-12, 1e12])
def test_scale_of_the_inputs_does_not_matter(magnitude):
    W, H = problem()
    expected = solved(W, H, 0.6, "unstructured")
    torch.testing.assert_close(solved(W, H * magnitude, 0.6, "unstructured"), expected)


def test_damping_climbs_its_ladder_and_says_so():
    H = torch.eye(4) * 4
    H[0, 1] = H[1, 0] = 4.8  # eigenvalue -0.2 after preconditioning
    assert admm_inverse(H).damping == 1.0
    assert admm_inverse(H, AdmmOptions(damping=(0.01, 0.3))).damping == 0.3
    with pytest.raises(UsageError, match="not positive definite even with damping 0.1"):
        admm_inverse(H, AdmmOptions(damping=(0.1,)))


@pytest.mark.parametrize("wrong", [
    {"iterations": 0, "growth": 0}, {"iterations": 10}, {"growth": -1}, {"damping": ()},
    {"damping": (0.1, 0.0)}, {"damping": "0.1"}, {"iterations": 20.0},
    {"rho": 0.0}, {"rho": float("nan")}, {"relaxation": 0.0}, {"relaxation": 2.0},
    {"rho": "0.7"}, {"rho": True}, {"rho": float("inf")}, {"relaxation": "x"}, {"relaxation": True}])
def test_options_that_solve_nothing_are_refused(wrong):
    with pytest.raises(UsageError, match="iterations|growth|damping|rho|relaxation"):
        AdmmOptions(**wrong)


def test_the_same_twice():
    W, H = problem()
    assert torch.equal(solved(W, H, 0.6, "unstructured"), solved(W, H, 0.6, "unstructured"))


# --- in a model ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["LLaMA", "OPT", "GPT-2", "Mixtral"])
def test_in_a_model_of_any_dtype(name, dtype):
    model = FAMILIES[name].model().to(dtype)
    report = prune(model, windows(), "mul(W, mms(G))", 0.5, "2:4", update="admm",
                   gradients=collect_gradients(FAMILIES[name].model(), windows()))
    assert 2 * sum(row["masked"] for row in report.rows) == sum(row["numel"] for row in report.rows)
    for W in weights(model).values():
        assert W.dtype == dtype and torch.isfinite(W).all()
        assert ((W == 0).view(len(W), -1, 4).sum(2) >= 2).all()
    for row in report.rows:
        if not row.get("unseen"):
            assert row["damping"] == AdmmOptions().damping[0] and row["iterations"] == 20
            assert 0 < row["error"] < 1


def test_the_error_in_the_report_is_relative_to_the_dense_layer():
    dense, model = FAMILIES["LLaMA"].model(), FAMILIES["LLaMA"].model()
    found = prune(model, windows(), "wanda", 0.6, update="admm", one_shot=True).to_frame().set_index("layer")
    expected = layer_errors(model, dense, windows()).set_index("layer")
    assert found["error"].to_dict() == pytest.approx(expected["error"].to_dict(), rel=1e-3)
