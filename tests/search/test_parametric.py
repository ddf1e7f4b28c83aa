import pytest
import torch

import prunekit as pk


def test_the_points_of_the_parametric_form_are_metrics_of_their_own_and_hold_the_known_ones():
    points = pk.parametric()
    keys = {pk.rank_key(tree) for tree in points.values()}
    assert len(points) == len(keys) == 140 and all(key[0] != "invalid" for key in keys)
    for name, point in (("wanda", ("plain", "same", "same")), ("ria", ("ria", "same", "root"))):
        assert pk.rank_key(pk.METHODS[name].tree) == pk.rank_key(points[point])


@pytest.mark.parametrize(("point", "score"), [
    (("column", "square", "root"), lambda W, column, both, norm: W**2 / column * norm**0.5),
    (("relative", "root", "log"), lambda W, column, both, norm: W**0.5 / both * (norm + 0.001).log()),
    (("column", "exp", "exp"), lambda W, column, both, norm: W.exp() / column * norm.exp()),
    (("relative", "same", "sigmoid"), lambda W, column, both, norm: W / both * norm.sigmoid() * 2)])
def test_a_point_is_its_formula(point, score):
    W, X = torch.rand(4, 6) + 0.01, torch.rand(1, 6)
    column, row = W.sum(0, keepdim=True), W.sum(1, keepdim=True)
    wanted = score(W, column, row + column, X.sqrt())
    torch.testing.assert_close(pk.parametric()[point].score(W, W, X), wanted)


def test_a_search_tries_every_point_and_nothing_else(tmp_path):
    points = list(pk.parametric().values())
    hidden, journal = pk.Planted(pk.METHODS["ria"].tree), tmp_path / "journal-parametric.jsonl"
    *_, last = pk.evolve(hidden, "random-distinct", len(points), 0, journal, seeds=points, progress=False)
    assert last.best.fitness == 0 and last.evaluated == len(points)
    assert set(pk.history(journal)["operator"]) == {"given"}
