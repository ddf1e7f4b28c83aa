"""The project's own notebooks, run on the embedded world with the profile `smoke`, and their pages."""
from __future__ import annotations

import re
import shutil
from pathlib import Path

import nbformat
import pytest
from safetensors.torch import load_file

from prunekit.batch import schedule
from prunekit.report import site
from prunekit.workbook import manifest, params, project
from tests.pages import check_site

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
    every_window_may_begin_with_bos(tmp_path / "runs" / "smoke")


def every_window_may_begin_with_bos(runs):
    before = load_file(runs / "01_data" / "windows.safetensors")
    records = schedule.run_profile("smoke", ["01_data"], {"bos": "always"}, progress=False)
    assert [(record.outcome, record.reason) for record in records] == [("done", "")]
    for role, windows in load_file(runs / "01_data" / "windows.safetensors").items():
        assert windows.shape == before[role].shape and not windows[:, 0].any()  # the embedded BOS is token 0
    assert manifest.read("smoke", "01_data")["artifacts"]["windows"]["said"] == {"begins": "every window"}
    state = manifest.state("smoke", "03_baselines", params.resolve_profile("smoke")["03_baselines"])
    assert state.word == "stale" and "bos was 'always', is 'auto'" in state.reason
