from __future__ import annotations

import itertools
import math
import subprocess
import sys

import pytest
import torch

from prunekit.errors import UsageError
from prunekit.metric.primitives import PRIMITIVES, arity, symbols

A = torch.tensor([[-2.0, 0.0], [1.0, 3.0]])
B = torch.tensor([[3.0, -4.0], [0.0, 12.0]])  # norm 13
HAND = {
    "sqr": [[4, 0], [1, 9]],
    "neg": [[2, 0], [-1, -3]],
    "abs": [[2, 0], [1, 3]],
    "log": [[math.log(2.001), math.log(0.001)], [math.log(1.001), math.log(3.001)]],
    "exp": [[math.exp(-2), 1], [math.e, math.exp(3)]],
    "sqrt": [[2**0.5, 0], [1, 3**0.5]],
    "tanh": [[math.tanh(-2), 0], [math.tanh(1), math.tanh(3)]],
    "pow": [[4, 0], [1, 9]],
    "skp": [[-2, 0], [1, 3]],
    "mms": [[0, 0.4], [0.6, 1]],
    "zsn": [[-2.5 / (13 / 3) ** 0.5, -0.5 / (13 / 3) ** 0.5], [0.5 / (13 / 3) ** 0.5, 2.5 / (13 / 3) ** 0.5]],
    "add": [[1, -4], [1, 15]],
    "sub": [[-5, 4], [1, -9]],
    "mul": [[-6, 0], [0, 36]],
    "div": [[-2 / 13, 0], [1 / 13, 3 / 13]],
    "ediv": [[-2 / 3, 0], [0, 0.25]],
    "rrow": [[-1, 0], [0.25, 0.75]],
    "rcol": [[-2 / 3, 0], [1 / 3, 1]],
}


def test_every_primitive_against_hand_calculation():
    assert set(HAND) == set(PRIMITIVES)
    for name, expected in HAND.items():
        found = PRIMITIVES[name](*(A, B)[: arity(name)])
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32), rtol=1e-6, atol=1e-7)


def test_primitives_leave_their_operands_alone():
    for primitive in PRIMITIVES.values():
        a, b = A.clone(), B.clone()
        primitive(*(a, b)[: primitive.arity])
        assert torch.equal(a, A) and torch.equal(b, B), primitive.name


def test_norm_is_taken_after_broadcasting():
    X = torch.tensor([[3.0, 4.0]])
    assert torch.allclose(PRIMITIVES["div"](A, X), A / math.sqrt(50))  # X counts once per row
    assert torch.allclose(PRIMITIVES["div"](X, B), X.expand(2, 2) / 13)


def test_exp_stays_finite_and_equals_the_reference_below_88():
    x = torch.linspace(-200, 87.9, 50)[None]
    assert torch.equal(PRIMITIVES["exp"](x), torch.exp(x.clamp(max=100)))
    assert PRIMITIVES["exp"](torch.tensor([[1e6]])).isfinite().all()


@pytest.mark.parametrize("name", ["mms", "zsn"])
@pytest.mark.parametrize("value", [0.0, 0.1, 7.3])
def test_scaling_a_constant_is_undefined(name, value):
    assert PRIMITIVES[name](torch.full((50, 30), value)).isnan().all()


def test_dividing_by_a_norm_of_zero_or_infinity_is_undefined():
    for y in (torch.zeros(2, 2), torch.full((2, 2), 3e38)):
        assert PRIMITIVES["div"](A, y).isnan().all()


def test_signs_are_sound():
    some = {1: [A.abs(), torch.zeros(2, 2)], -1: [-A.abs(), torch.zeros(2, 2)], 0: [A, B]}
    for primitive in PRIMITIVES.values():
        for a in (1, -1, 0):
            for b in (1, -1, 0) if primitive.arity == 2 else (0,):
                sign = primitive.sign(*(a, b)[: primitive.arity])
                for x in some[a]:
                    for y in some[b]:
                        value = primitive(*(x, y)[: primitive.arity])
                        assert not sign or not (value * sign < 0).any(), (primitive.name, a, b)


def test_primitives_are_finite_on_zeros_and_negatives_but_those_that_divide_by_a_range_or_norm():
    mixed = torch.tensor([[-3.0, 0.0, 2.0], [0.5, -1e-3, 40.0]])
    probes = (torch.zeros(2, 3), -torch.ones(2, 3), mixed, -mixed * 10)
    undefined = {name for name, primitive in PRIMITIVES.items() for pair in itertools.product(probes, probes)
                 if not primitive(*pair[:primitive.arity]).isfinite().all()}
    assert undefined == {"mms", "zsn", "div"}


def test_symbols_of_a_grammar():
    assert len(symbols()) == 15 + 3
    assert set(symbols("extended")) - set(symbols()) == {
        "ediv",
        "rrow",
        "rcol",
        "0.1",
        "0.5",
        "1",
        "2",
        "10",
        "100",
    }
    with pytest.raises(UsageError, match="did you mean 'extended'"):
        symbols("extend")


@pytest.mark.parametrize(("typo", "meant"), [("w", "W"), ("sqr_t", "sqrt"), ("mull", "mul"), ("MMS", "mms")])
def test_unknown_symbol_names_the_nearest(typo, meant):
    with pytest.raises(UsageError, match=f"did you mean '{meant}'"):
        arity(typo)


def test_metric_package_does_not_import_torch():
    code = (
        "import sys, prunekit.metric.primitives, prunekit.metric.tree, prunekit.metric.catalogue;"
        "sys.exit(bool({'torch', 'transformers', 'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
