from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit import UsageError
from prunekit.choices import parse_pattern
from prunekit.pruning import masks
from prunekit.pruning.masks import keep_by_pairs, keep_mask, kth_smallest, mask_sums, nonzero, zero_out


def scores(seed: int, rows: int, columns: int, levels: int) -> torch.Tensor:
    """Scores with many ties: `levels` distinct values at most."""
    return torch.randint(levels, (rows, columns), generator=torch.Generator().manual_seed(seed)).float()


def lowest_go(row: torch.Tensor, count: int) -> torch.Tensor:
    """The definition: in stable ascending order the first `count` go."""
    keep = torch.ones(len(row), dtype=torch.bool)
    keep[torch.sort(row, stable=True).indices[:count]] = False
    return keep


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 40), st.integers(1, 50), st.floats(0, 0.99))
def test_rows_lose_exactly_their_lowest_ties_by_position(seed, rows, columns, levels, sparsity):
    S = scores(seed, rows, columns, levels)
    expected = torch.stack([lowest_go(row, int(columns * sparsity)) for row in S])
    assert torch.equal(keep_mask(S, sparsity), expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["1:2", "2:4", "4:8", "1:3", "5:7"]), st.integers(1, 9))
def test_every_group_loses_exactly_n(seed, pattern, levels):
    n, m = parse_pattern(pattern)
    S = scores(seed, 4, 6 * m, levels)
    expected = torch.stack([lowest_go(group, n) for group in S.view(-1, m)]).view(S.shape)
    assert torch.equal(keep_mask(S, n / m, pattern), expected)
    assert torch.equal(keep_by_pairs(S, n, m), expected)  # a GPU's way


@pytest.mark.parametrize("pattern", ["150:300", "256:512", "255:256", "998:999"])
@pytest.mark.parametrize("levels", [5, 10**6])
def test_groups_wider_than_a_byte_lose_exactly_n(pattern, levels):
    n, m = parse_pattern(pattern)
    S = scores(0, 2, 2 * m, levels)
    expected = torch.stack([lowest_go(group, n) for group in S.view(-1, m)]).view(S.shape)
    assert torch.equal(keep_mask(S, n / m, pattern), expected)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30), st.floats(0.01, 0.99))
def test_one_threshold_for_the_layer_removes_all_up_to_it(seed, levels, sparsity):
    S = scores(seed, 6, 11, levels)
    threshold = S.flatten().sort().values[int(S.numel() * sparsity)]
    keep = keep_mask(S, sparsity, group="layer")
    assert torch.equal(keep, S > threshold)
    assert (~keep).sum() >= int(S.numel() * sparsity)


def test_variant_by_hand():
    # cumulated shares of the row sum 10: .1 .3 .6 1; a threshold alpha of 0.4 takes two of four
    S = torch.tensor([[4.0, 1.0, 3.0, 2.0]])
    assert keep_mask(S, 0.5, group="variant").tolist() == [[True, False, True, False]]


def test_variant_reaches_its_target_on_spread_scores():
    S = torch.rand(64, 512, generator=torch.Generator().manual_seed(0))
    assert (~keep_mask(S, 0.4, group="variant")).float().mean().item() == pytest.approx(0.4, abs=0.0015)


def published_variant(S: torch.Tensor, sparsity: float) -> torch.Tensor:
    """The loop of the published prune.py, which measures the mask itself; True where a weight goes."""
    ordered = S.sort(dim=1, stable=True).values

    def at(alpha: float) -> tuple[torch.Tensor, float]:
        counts = (ordered.cumsum(1) <= alpha * S.sum(1, keepdim=True)).sum(1, keepdim=True)
        goes = S <= ordered.gather(1, counts - 1)
        return goes, goes.sum().item() / goes.numel()

    low, high, alpha = 0.0, 0.8, 0.4
    goes, share = at(alpha)
    while abs(share - sparsity) > 0.001 and high - low >= 0.001:
        low, high = (low, alpha) if share > sparsity else (alpha, high)
        alpha = (low + high) / 2
        goes, share = at(alpha)
    return goes


@pytest.mark.parametrize("levels", [4, 8, 50])
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.6])
def test_variant_counts_ties_as_the_published_loop_does(levels, sparsity):
    S = scores(0, 64, 256, levels)
    S[:, 0] = 0  # the published loop needs one score that counts
    assert torch.equal(keep_mask(S, sparsity, group="variant"), ~published_variant(S, sparsity))


def test_nothing_goes_at_zero_sparsity():
    S = torch.rand(3, 8)
    assert all(keep_mask(S, 0.0, group=group).all() for group in ("row", "layer", "variant"))


def test_selection_equals_a_sort():
    S = torch.rand(5, 31)
    assert torch.equal(kth_smallest(S, 7), S.sort(dim=1).values[:, 6:7])
    assert torch.equal(S.kthvalue(7, dim=1, keepdim=True).values, kth_smallest(S, 7))


@pytest.mark.parametrize(("arguments", "message"), [
    (dict(S=torch.rand(2, 6), sparsity=0.5, pattern="2:4"),
     "pattern 2:4 needs inputs in multiples of 4, but the layer has 6."),
    (dict(S=torch.tensor([[1.0, float("nan")]]), sparsity=0.5), "the scores are not finite"),
    (dict(S=torch.rand(2, 4), sparsity=0.5, group="rows"),
     "group 'rows' is not known (did you mean 'row'?)."),
    (dict(S=-torch.rand(2, 4), sparsity=0.5, group="variant"), "the variant cumulates scores"),
    (dict(S=torch.rand(2, 4), sparsity=0.5, pattern="4:2"), "pattern '4:2' is not known"),
])
def test_what_is_refused(arguments, message):
    with pytest.raises(UsageError) as refused:
        keep_mask(**arguments)
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize("dtype", [torch.bool, torch.bfloat16, torch.float16, torch.float32])
def test_both_zeros_count_as_zero(dtype):
    assert nonzero(torch.tensor([[0.0, -0.0, 1e-7], [-2.0, 0.0, 3.0]]).to(dtype)) == 3


def test_sums_tell_masks_apart():
    """One place more or less, two that are swapped, and any way of splitting the rows."""
    generator = torch.Generator().manual_seed(0)
    keep = torch.rand(13, 40, generator=generator) > 0.5
    others = [keep, keep.flip(0), keep.flip(1), keep[:, torch.randperm(40, generator=generator)], ~keep]
    for place in range(keep.numel()):
        other = keep.clone()
        other.view(-1)[place].logical_not_()
        others.append(other)
    sums = torch.stack(list(map(mask_sums, others)))
    assert all(len(column.unique()) == len(others) for column in sums.T)
    assert torch.equal(mask_sums(keep.clone()), sums[0])


def test_sums_are_those_of_whole_numbers_modulo_two_to_the_64():
    keep = torch.rand(5, 9, generator=torch.Generator().manual_seed(1)) > 0.3
    digits, factors = masks._places((5, 9), keep.device)
    kept = keep.nonzero().tolist()
    expected = [sum(int(factors[i, which, c]) * int(digits[j, 8 * which + c]) for i, j in kept
                    for c in range(8)) for which in range(2)]
    assert [value % 2**64 for value in mask_sums(keep).tolist()] == [value % 2**64 for value in expected]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_zeros_are_the_same_bits_written_at_once_or_in_place(dtype):
    dense = torch.tensor([[-1.5, 2.0, -0.0], [torch.inf, -3.0, 0.25]], dtype=dtype)
    keep = torch.tensor([[False, True, True], [False, False, True]])
    here, there = dense.clone(), torch.full_like(dense, torch.nan)
    zero_out(here, keep)
    zero_out(there, keep, dense)
    bits = {torch.bfloat16: torch.int16, torch.float32: torch.int32}[dtype]
    assert torch.equal(here.view(bits), there.view(bits))
    assert here.view(bits).flatten().tolist()[::4] == [0, 0]  # +0, whatever was there


def test_scores_known_to_be_finite_are_not_looked_at_again():
    S = torch.tensor([[1.0, torch.inf, 2.0, 0.5]])
    assert keep_mask(S, 0.5, check=False).tolist() == [[False, True, True, False]]
