from __future__ import annotations

import pytest
from tiny_project import BASELINES, DATA, profile, write_notebook


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A project root with 01_data and 03_baselines (parameters only) and the profile `tiny`."""
    root = tmp_path / "project"
    write_notebook(root / "notebooks" / "01_data.ipynb", [("parameters", DATA)])
    write_notebook(root / "notebooks" / "03_baselines.ipynb", [("parameters", BASELINES)])
    profile(root, "tiny")
    monkeypatch.setenv("PRUNEKIT_HOME", str(root))
    monkeypatch.chdir(tmp_path)
    return root
