"""The project's own notebooks, run on the embedded world with the profile `smoke`, and their pages."""
from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from pages import check_site

from prunekit.workbook import batch, project, site

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.skipif(not NOTEBOOKS, reason="there are no notebooks")
def test_every_notebook_runs_and_its_page_is_whole(tmp_path, monkeypatch):
    for folder in ("notebooks", "params"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    monkeypatch.setenv("PRUNEKIT_HOME", str(tmp_path))
    records = list(batch.run_profile("smoke", progress=False))
    assert {record.topic: (record.outcome, record.reason) for record in records} == dict.fromkeys(NOTEBOOKS, ("done", ""))
    assert project.topics() == NOTEBOOKS
    pages = check_site(site.render("smoke").parent)
    assert set(pages) >= {"index.html", *(f"{topic}.html" for topic in NOTEBOOKS)}
    assert all(state.fresh for state in batch.status("smoke").values())
    assert any(page.alts for page in pages.values())
