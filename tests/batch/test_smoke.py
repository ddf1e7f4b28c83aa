"""The project's own notebooks, run on the embedded world with the profile `smoke`, and their pages."""
from __future__ import annotations

import re
import shutil
from pathlib import Path

import nbformat
import pytest

from prunekit.batch import schedule
from prunekit.report import gallery, paper, site
from prunekit.workbook import project
from tests.pages import check_site
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
    shown = tmp_path / "docs" / "gallery"
    assert gallery.write("smoke", shown) < gallery.MOST
    for page in shown.glob("*.md"):
        assert [link for link in links(page) if not (shown / link).exists()] == [], page
    assert len(list(shown.glob("*.ipynb"))) == len(NOTEBOOKS) and len(list(shown.glob("figures/*.svg"))) > 10
    paper.write("smoke", tmp_path / "paper")
    main = (tmp_path / "paper" / "main.tex").read_text(encoding="utf-8")
    core = main.partition("\\appendix")[0]
    assert "{tab:main}" in core and core.count("\\includegraphics") == 3
