"""The parametric form that OptiShear searches in, as metrics of our language: a rival at an equal budget."""
from __future__ import annotations

from prunekit.metric.rank import rank_key
from prunekit.metric.tree import Tree

_OPERATIONS = {"same": "{}", "root": "sqrt({})", "square": "sqr({})", "exp": "exp({})", "log": "log({})",
               "sigmoid": "add(1, tanh(mul(0.5, {})))"}  # twice the sigmoid; a factor changes no mask
# |W| divided by: nothing, the sum of its column; by either, added (RIA's); the sums of its row and its column
# together. A row's own sum is one factor for all that is compared.
_NORMALIZED = {
    "plain": "W", "column": "rcol(W)", "ria": "add(rcol(W), rrow(W))",
    "relative": "ediv(mul(rcol(W), rrow(W)), add(rcol(W), rrow(W)))"}


def parametric() -> dict[tuple[str, str, str], Tree]:
    """Every f(|W|) / n(|W|) · g(||X||) that is provably a metric of its own when compared within rows.

    By (n, f, g): n a normalization of the weight (plain, column, ria, relative), f and g one operation each
    on the weight and on its input's norm (same, root, square, exp, log, sigmoid), in the extended grammar.
    Holds Wanda ("plain", "same", "same") and RIA ("ria", "same", "root"). Of several with the same masks the
    first is kept. Source: the meta metric of arXiv 2502.10735 as far as it is known. Left out are softmax
    over a row, which is exp there, and coefficients of X, which are one number or undo X; RIA's normalization
    is added to theirs, so that RIA itself is a point. Their search also varies the sparsity of layers.
    """
    points: dict[tuple[str, str, str], Tree] = {}
    known = set()
    for n, normalized in _NORMALIZED.items():
        for f, of_weight in _OPERATIONS.items():
            weight = of_weight.format("W")
            if n != "plain":
                weight = normalized if f == "same" else f"mul({weight}, ediv({normalized}, W))"
            for g, of_input in _OPERATIONS.items():
                tree = Tree.parse(f"mul({weight}, {of_input.format('sqrt(X)')})")
                if (key := rank_key(tree)) not in known:
                    known.add(key)
                    points[n, f, g] = tree
    return points
