import prunekit as pk
from prunekit.search import presets, rivals


def test_searches_at_an_equal_budget_draw_as_often_as_asked_or_not_at_all():
    names = ["modern", "paper", "random", "grid", "parametric"]
    plan = rivals.planned(names, 60, 12, seed=3, repeats=2, steps=3)
    assert list(plan) == ["journal-modern", "journal-modern-4", "journal-paper", "journal-paper-4",
                          "journal-random", "journal-random-4", "journal-grid", "journal-parametric"]
    assert [asked["seed"] for asked in plan.values()] == [3, 4, 3, 4, 3, 4, 3, 3]
    assert [plan[f"journal-{name}"]["budget"] for name in ("paper", "random", "grid", "parametric")] == [
        60, 60, len(pk.grid(3)), 60]
    assert plan["journal-modern"]["population"] == 12 and plan["journal-paper"]["population"] == 20
    hidden = pk.Planted(pk.METHODS["wanda"].tree)
    *_, last = pk.evolve(hidden, progress=False, **plan["journal-grid"])
    assert last.evaluated == len(pk.grid(3)) and last.best.fitness == 0


def test_presets_side_by_side_show_what_each_changes():
    table = rivals.compared().set_index("field")
    assert list(table) == list(presets.PRESETS) and "name" not in table.index
    assert table.loc["budget"].tolist() == ["350", "1,080", "500", "", "500"]
    weights = table.loc["weights"]
    assert weights["paper"] == "none" and weights["modern"].startswith("crossover 3, point 2, ")
    assert table.loc["depths", ["paper", "lpzero"]].tolist() == ["3, 4", ""]
