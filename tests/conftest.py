"""The golden models, and models that are only as large as a test needs."""
from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.tiny_project import BASELINES, DATA, profile, write_notebook

os.environ.setdefault("TQDM_DISABLE", "1")
# Models this small gain nothing from threads, and sums depend on their number.
os.environ.setdefault("OMP_NUM_THREADS", "1")
GOLDEN = Path(__file__).parent / "golden"


def pytest_collection_modifyitems(items):
    """All notebooks take longest: first, so that at the end no worker waits for another."""
    items.sort(key=lambda item: not any(name in item.nodeid for name in ("test_smoke", "second_device")))


@pytest.fixture
def golden_model():
    """Family name -> a fresh copy of that golden model."""
    from prunekit import load_model

    return lambda family: load_model(GOLDEN / family)[0]


@pytest.fixture(scope="session")
def golden_windows():
    from safetensors.torch import load_file

    return load_file(GOLDEN / "calib.safetensors")["calib"]


@pytest.fixture(scope="session")
def golden_gradients():
    from prunekit import Gradients

    return {family: Gradients.load(GOLDEN / f"{family}-grad-l2.pth") for family in ("llama", "opt")}


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
