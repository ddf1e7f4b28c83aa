"""The recorded study: it is whole, says what made it, and can be recorded anew from a run."""
from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest

import prunekit as pk
from prunekit.choices import percent
from prunekit.errors import UsageError
from prunekit.evaluate.sentences import comparing
from prunekit.ledger import exhibits, study
from prunekit.workbook import display

RECORDED = study.FOLDER


def test_the_recorded_searches_are_a_history():
    history = pk.recorded("history")
    assert not history.duplicated(["journal", "i"]).any() and history["measured"].nunique() == 1
    for row in history.sample(20, random_state=0).itertuples():
        tree = pk.Tree.parse(row.tree)
        assert str(tree) == row.tree
        assert (row.parents == "") == (row.operator in ("random", "given", "monomial"))
    frame = pk.traits(history)
    assert frame["key"].is_unique and len(frame) > 100 and np.isfinite(frame["fitness"]).all()


@pytest.mark.parametrize("name", pk.studies())
def test_the_recorded_tables_are_of_these_searches(name):
    history, seeds = pk.recorded("history", name), pk.recorded("seeds", name).set_index("search")
    assert seeds.loc["modern", "seeds"] == history[history["preset"] == "modern"]["seed"].nunique()
    ends = history[history["preset"] == "modern"].groupby("journal")["best"].last()
    assert seeds.loc["modern", "lowest"] == pytest.approx(ends.min(), rel=1e-5)
    winner = pk.recorded("finalists", name).loc[0, "tree"]
    assert winner in set(history["tree"])
    result = pk.recorded("result", name)
    assert set(result[result["method"] == "winner"]["tree"]) == {winner}
    paired = pk.recorded("paired", name)
    keys = study.row_names(paired)
    ppl = result.set_index(["method", *keys])["ppl"]
    for row in paired.to_dict("records"):
        of = [row[key] for key in keys]
        assert row["ratio"] == pytest.approx(ppl["winner", *of] / ppl[row["rival"], *of], rel=1e-4)
        assert row["low"] <= row["ratio"] <= row["high"]


@pytest.mark.parametrize(("name", "table"), [
    (name, table) for name in pk.studies() for table in ("paired", "by_seed", "zero_shot", "update")
    if table in study._files(name)])
def test_recorded_p_values_intervals_and_verdicts_are_one(name, table):
    """Holm's correction is over the whole table, in the six digits that a CSV file holds."""
    rows = pk.recorded(table, name)
    effect, null = ("difference", 0) if "difference" in rows else ("ratio", 1)
    assert rows["p_holm"].tolist() == pytest.approx(pk.holm(rows["p"]).tolist(), rel=1e-3)
    sides = np.where(rows[effect] < null, "lower", "higher")
    found = np.where(rows["p_holm"] < 0.05, sides, "indistinguishable")
    assert rows["verdict"].tolist() == found.tolist() and len(set(found)) > 1
    for prefix, p in (("", "p"), ("holm_", "p_holm")):
        if f"{prefix}low" in rows:
            apart = (rows[f"{prefix}low"] > null) | (rows[f"{prefix}high"] < null)
            assert (apart == (rows[p] < 0.05)).all()


def test_it_says_what_made_it_and_is_small():
    assert pk.recorded_by().startswith("recorded on 20")
    made = json.loads((study.FOLDER / "study" / "manifests.json").read_text())
    assert made["04_gp_search"]["parameters"]["profile"] == "study" and not made["04_gp_search"]["dirty"]
    assert sum(file.stat().st_size for file in study.FOLDER.rglob("*") if file.is_file()) < 1 << 20


def test_what_was_not_recorded_is_one_sentence():
    with pytest.raises(UsageError, match="nothing is recorded as 'pared' .did you mean 'paired'"):
        pk.recorded("pared")


def test_a_run_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEKIT_HOME", str(tmp_path))
    monkeypatch.setattr(study, "FOLDER", tmp_path / "study")
    (tmp_path / "notebooks").mkdir()
    missing = "01_data of profile tiny has not been run: `prunekit run tiny 01_data` does it"
    with pytest.raises(UsageError, match=missing):
        study.record("tiny")
    tables = {f"tables/{name}": {"files": {f"tables/{name}.csv": 1}} for name in study._TABLES}
    searched = {"journal-modern": {}, "evaluator": {}}
    for topic in ("01_data", "02_gradients", "04_gp_search"):
        folder = tmp_path / "runs/tiny" / topic
        (folder / "tables").mkdir(parents=True)
        manifest = dict.fromkeys(study._KEPT, "x")
        manifest |= {"commit": "0123456789", "started": "2026-01-31 10:00:00",
                     "machine": "Linux x86_64, An Epyc",
                     "parameters": {"model": "/a/tiny", "targets": ["0.6", "2:4"]}}
        (folder / "manifest.json").write_text(json.dumps(manifest | {"artifacts": searched}))
    with pytest.raises(UsageError, match="04_gp_search of profile tiny has no table seeds"):
        study.record("tiny")
    (folder / "manifest.json").write_text(json.dumps(manifest | {"artifacts": searched | tables}))
    for name in study._TABLES:
        frame = pd.DataFrame({"target": ["0.50", "2:4"], "ratio": [1 / 3, 2.0]})
        frame.to_csv(folder / "tables" / f"{name}.csv", index=False)
    journal = tmp_path / "runs/tiny/04_gp_search/journal-modern.jsonl"
    list(pk.evolve(lambda tree: 1.0 / tree.size, "modern", 40, 3, journal, progress=False))
    assert study.record("tiny") < 10_000
    assert pk.recorded_by("tiny") == ("recorded on 2026-01-31 with prunekit run tiny on An Epyc, commit "
                                      "0123456")
    assert pk.recorded("paired", "tiny")["target"].tolist() == ["0.50", "2:4"]
    again, whole = pk.recorded("history", "tiny"), pk.history(journal)
    expected = whole[list(again)].astype({"same": float})
    pd.testing.assert_frame_equal(again, expected, check_dtype=False, rtol=1e-5)
    pd.testing.assert_frame_equal(pk.traits(again), pk.traits(whole), check_dtype=False, rtol=1e-5)


def test_several_studies_stand_side_by_side_a_real_model_first(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "FOLDER", tmp_path)
    shutil.copytree(RECORDED / "study", tmp_path / "study")
    shutil.copytree(RECORDED / "study", tmp_path / "study-real")
    for table in ("census", "redrawn"):
        (tmp_path / "study-real" / f"{table}.csv").unlink()   # which not every study has
    made = json.loads((tmp_path / "study" / "manifests.json").read_text())
    made["04_gp_search"]["parameters"] |= {"model": "/models/real-135m", "targets": ["0.6", "2:4"]}
    (tmp_path / "study-real" / "manifests.json").write_text(json.dumps(made))
    real = pk.recorded("paired", "study")   # this one was tested on two texts
    real = real.assign(text=["ptb", "c4"] * 6, n=[96, 72] * 6)
    real.to_csv(tmp_path / "study-real" / "paired.csv", index=False)
    assert pk.studies() == ["study-real", "study"]
    assert study.subject("study-real") == "real-135m, searched at 60 % and 2:4"
    both = pk.recorded("paired", "")
    assert both["study"].value_counts().to_dict() == {"study-real": 12, "study": 12}
    assert pk.recorded("redrawn", "")["study"].unique().tolist() == ["study"]
    with pytest.raises(UsageError, match="nothing is recorded as 'redrawn' of 'study-real'"):
        pk.recorded("redrawn", "study-real")
    said = study.answer("study")
    assert said.table == "recorded-paired" and said.rows == list(range(12, 16))
    assert said.sentence.startswith(
        "On embedded/llama, 5 searches of 350 evaluations each, at 70 %, found the metric `W * sqrt(sqrt(G *")
    assert ("its perplexity **is lower than Wanda's at** 50 % (0.998, 0.997 to 0.999), 60 % (0.986, 0.984 to "
            in said.sentence)
    wanted = ("**is lower than that of** pruner-zero at 60 %, 70 % and 2:4; **is higher than that of** best "
              "of the grid at 50 %; **cannot be told from that of** pruner-zero at 50 %, and best of the")
    assert wanted in study.others("study").sentence
    texts = study.answer("study-real").sentence
    assert "50 % on ptb (0.998" in texts
    assert "(one draw of the statistics; 72 to 96 test windows of each text" in texts


def test_a_recorded_study_of_a_real_model_leads(tmp_path, monkeypatch):
    assert study.leading() == ["study-smollm2"]
    monkeypatch.setattr(study, "FOLDER", tmp_path)
    shutil.copytree(RECORDED / "study", tmp_path / "study")
    assert study.leading() == ["study"]
    for name in ("study-b", "study-a"):   # made up: two of real models
        shutil.copytree(RECORDED / "study", tmp_path / name)
        made = json.loads((tmp_path / "study" / "manifests.json").read_text())
        made["04_gp_search"]["parameters"] |= {"model": f"/models/{name}", "repeats": 1}
        (tmp_path / name / "manifests.json").write_text(json.dumps(made))
    assert study.leading() == ["study-a", "study-b"]
    shutil.copytree(tmp_path / "study", tmp_path / ".study.old")  # as a kill leaves it
    assert pk.studies() == ["study-a", "study-b", "study"]
    told = study.answer("study-a")
    assert told.sentence.startswith("On study-a, one search of 350 evaluations, at 70 %, found the metric `")
    assert told.rows == list(range(4))


def test_the_numbers_of_an_answer_are_those_of_its_tables():
    shown, rows = study.beside("study-smollm2"), pk.recorded("redrawn", "study-smollm2")
    assert shown.columns.tolist() == ["target", "text", "Wanda", "found", "ratio"] and len(shown) == 6
    assert study.answer("study-smollm2").table == "recorded-redrawn"
    for (_, one), (_, row) in zip(shown.iterrows(), rows[rows["rival"] == "wanda"].iterrows(), strict=True):
        assert float(one["found"]) / float(one["Wanda"]) == pytest.approx(row["ratio"], rel=1e-3)
        places = len(one["ratio"].split()[0].partition(".")[2])
        value, low, high = (f"{row[part]:.{places}f}" for part in ("ratio", "holm_low", "holm_high"))
        assert one["ratio"] == f"{value} ({low} to {high})" and places >= 2
    assert study.beside("study")["target"].tolist() == ["50 %", "60 %", "70 %", "2:4"]  # on one text


def test_an_answer_counts_all_that_its_correction_is_over(tmp_path, monkeypatch):
    """Also the comparisons that it does not name."""
    monkeypatch.setattr(study, "FOLDER", tmp_path)
    shutil.copytree(RECORDED / "study-smollm2", tmp_path / "study-smollm2")
    file = tmp_path / "study-smollm2" / "redrawn.csv"
    rows = pd.read_csv(file, dtype={"target": str})
    pd.concat([rows, rows.assign(rival="sparsegpt")]).to_csv(file, index=False)
    assert "by Holm's correction over all 12 comparisons" in study.answer("study-smollm2").sentence


def test_tables_of_several_models_are_read_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "FOLDER", tmp_path)
    (tmp_path / "monomials").mkdir()
    for model in ("a", "b"):
        frame = pd.DataFrame({"model": [model], "target": ["2:4"]})
        frame.to_csv(tmp_path / "monomials" / f"{model}.csv.gz", index=False)
    shutil.copytree(RECORDED / "study", tmp_path / "study")
    assert pk.recorded("monomials")["model"].tolist() == ["a", "b"] and pk.studies() == ["study"]
    assert "study" not in pk.recorded("monomials", "")  # of no study, so once
    with pytest.raises(UsageError, match="nothing is recorded as 'study'"):
        pk.recorded("study")
    with pytest.raises(UsageError, match="nothing is recorded as 'monomial' .did you mean 'monomials'"):
        pk.recorded("monomial")


@pytest.mark.parametrize("shown", [
    *(exhibits.table(name) for name in ("paired", "redrawn", "update")), exhibits.leads(),
    exhibits.convergence(), exhibits.ratios("study-smollm2"), exhibits.ratios("study")],
    ids=lambda shown: shown["name"])
def test_what_is_shown_of_a_study_says_which_and_compares_nothing_itself(shown):
    assert shown["name"].startswith("recorded-") and shown["caption"].startswith("Recorded ")
    assert not comparing(shown["caption"])
    if "frame" in shown:
        assert set(shown.get("columns", [])) <= set(shown["frame"]) and len(shown["frame"]) > 1
    else:
        assert display.recipe(shown["figure"])


@pytest.mark.parametrize(("name", "bound"), [("study-smollm2", "holm_low"), ("study", "low")])
def test_the_figure_of_ratios_has_holms_intervals_where_there_are_any(name, bound):
    rows = pk.recorded("paired", name)
    rows = rows[rows["text"] == "wikitext2"] if "text" in rows else rows  # of several texts the first
    panel = exhibits.ratios(name)["figure"].axes[0]
    drawn = {line.get_xdata()[0] for line in panel.lines if len(line.get_xdata()) == 2}
    assert drawn >= set(rows.loc[rows["target"] == rows["target"].iloc[0], bound])


def test_the_figure_of_ratios_is_over_draws_where_wandas_were_drawn_anew():
    shown, rows = exhibits.ratios("study-smollm2"), pk.recorded("redrawn", "study-smollm2")
    rows = rows[rows["text"] == "wikitext2"].set_index("target")
    assert "(4 against Wanda at 60 % and 2:4)" in shown["caption"]
    [drawn] = [said.sentence for said in study.sentences("study-smollm2") if said.table == "redrawn"]
    first, same = "the first that of the search", "on the same test windows"  # as recipes draw
    assert f"4 draws of calibration and gradient windows, {first}, {same}" in drawn
    assert f"4 draws of the statistics, {first}, each tested on" in study.answer("study-smollm2").sentence
    assert "(the first: the search's own)" in exhibits.table("redrawn")["caption"]
    panels = {panel.get_title("left"): panel for panel in shown["figure"].axes}
    one_draw = pk.recorded("paired", "study-smollm2").query("rival == 'wanda' and text == 'wikitext2'")
    for target in ("0.6", "2:4"):
        lines = panels[percent(target)].lines
        ends = {tuple(line.get_xdata()) for line in lines if len(line.get_xdata()) == 2}
        assert tuple(rows.loc[target, ["holm_low", "holm_high"]]) in ends
        (old,) = one_draw[one_draw["target"] == target].itertuples()
        assert (old.holm_low, old.holm_high) not in ends


def test_a_table_of_studies_says_which_intervals_are_holms():
    shown = exhibits.table("paired")
    assert {"low", "holm_low"} < set(shown["columns"])  # of one study there are none by Holm
    assert "a 95 % interval is of its row alone" in shown["caption"]
    assert "H100" in shown["caption"] and "H100" not in exhibits.table("update")["caption"]
