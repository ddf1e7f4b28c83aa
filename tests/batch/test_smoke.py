"""The project's own notebooks, run on the embedded world with the profile `smoke`, and their pages."""
from __future__ import annotations

import re
import shutil
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from safetensors.torch import load_file

from prunekit.batch import schedule
from prunekit.evaluate.sentences import claim, comparing
from prunekit.report import gallery, paper, site
from prunekit.workbook import manifest, params, project
from tests.pages import check_site, slips
from tests.report.test_gallery import links

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.skipif(not NOTEBOOKS, reason="there are no notebooks")
def test_every_notebook_runs_and_its_page_is_whole(tmp_path, monkeypatch):
    for folder in ("notebooks", "params"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    monkeypatch.setenv("PRUNEKIT_HOME", str(tmp_path))
    records = list(schedule.run_profile("smoke", progress=False))
    outcomes = {record.topic: (record.outcome, record.reason) for record in records}
    assert outcomes == dict.fromkeys(NOTEBOOKS, ("done", ""))
    assert project.topics() == NOTEBOOKS
    for topic in NOTEBOOKS:
        for cell in nbformat.read(tmp_path / "runs" / "smoke" / topic / "executed.ipynb", 4).cells:
            said = "".join(str(output.get("data", {}).get("text/plain", ""))
                           for output in cell.get("outputs", []))
            answered = re.match(r"Exercise \d+: (?!not answered)", said)
            assert not answered or said.endswith(": right."), (topic, said)
            checked = "check" in cell.metadata.get("tags", [])
            assert not checked or said.endswith(": not answered."), (topic, said)
    pages = check_site(site.render("smoke").parent)
    assert set(pages) >= {"index.html", *(f"{topic}.html" for topic in NOTEBOOKS)}
    assert all(state.fresh for state in schedule.status("smoke").values())
    assert any(page.alts for page in pages.values())
    assert {name: found for name, page in pages.items() if (found := slips(page.path))} == {}
    front = pages["index.html"]
    assert {"glossary.html#N:M", "glossary.html#window", "glossary.html#profile", "lesson.html",
            "claims.html"} <= set(front.links)
    shown = tmp_path / "docs" / "gallery"
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("gallery"))
    assert gallery.write("smoke", shown) < gallery.MOST
    for page in shown.glob("*.md"):
        assert not re.search(r"\d%\|", page.read_text(encoding="utf-8")), page  # no bars
        assert [link for link in links(page) if not (shown / link).exists()] == [], page
    assert len(list(shown.glob("*.ipynb"))) == len(NOTEBOOKS) and len(list(shown.glob("figures/*.svg"))) > 10
    paper.write("smoke", tmp_path / "paper")
    main = (tmp_path / "paper" / "main.tex").read_text(encoding="utf-8")
    core = main.partition("\\appendix")[0]
    assert "{tab:main}" in core and core.count("\\includegraphics") == 3
    for topic in NOTEBOOKS:
        check_sentences(manifest.read("smoke", topic), tmp_path / "runs" / "smoke" / topic / "tables")
    every_window_may_begin_with_bos(tmp_path / "runs" / "smoke")


def check_sentences(made, tables):
    """Each that compares follows from the rows of the table that it names, and turns when these turn; no
    other compares, and no caption."""
    built = {each["sentence"]: each for each in made["claims"]}
    plain = [sentence for sentence in made["takeaways"] if sentence not in built]
    captions = [artifact["caption"] for artifact in made["artifacts"].values() if artifact.get("caption")]
    assert plain + list(built) and not [text for text in plain + captions if comparing(text)]
    for each in built.values():
        rows = pd.read_csv(tables / f"{each['table']}.csv", dtype={"target": str}).loc[each["rows"]]
        effect, null = each["how"]["effect"], float(each["how"]["effect"] == "ratio")

        def said(rows, each=each):
            return claim(each["template"], rows, each["table"], **each["how"]).sentence

        assert said(rows) == each["sentence"]
        columns = rows.columns.intersection([effect, "low", "high", "holm_low", "holm_high"])
        sure, unsure = rows.astype(dict.fromkeys(columns, float)), rows.astype(dict.fromkeys(columns, float))
        sure[columns], unsure[columns] = null + 0.5, null + 0.5
        unsure[columns.intersection(["low", "holm_low"])] = null - 0.5
        if "p_holm" in rows:
            sure["p_holm"], unsure["p_holm"] = 0.001, 0.9
        turned = sure.assign(**{column: 2 * null - sure[column] for column in columns})
        assert len({said(sure), said(turned), said(unsure)}) == 3, each["template"]


def every_window_may_begin_with_bos(runs):
    before = load_file(runs / "01_data" / "windows.safetensors")
    records = schedule.run_profile("smoke", ["01_data"], {"bos": "always"}, progress=False)
    assert [(record.outcome, record.reason) for record in records] == [("done", "")]
    for role, windows in load_file(runs / "01_data" / "windows.safetensors").items():
        assert windows.shape == before[role].shape and not windows[:, 0].any()  # the embedded BOS is token 0
    assert manifest.read("smoke", "01_data")["artifacts"]["windows"]["said"] == {"begins": "every window"}
    state = manifest.state("smoke", "01_data", params.resolve_profile("smoke")["01_data"])
    assert state.word == "stale" and "bos was 'always', is 'auto'" in state.reason
