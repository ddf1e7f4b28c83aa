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
SEQLEN, VOCABULARY = 16, 64


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


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A random LLaMA of two blocks without a tokenizer, and a file of token windows."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                         num_key_value_heads=1, vocab_size=VOCABULARY, max_position_embeddings=SEQLEN)
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    ids = torch.randint(0, VOCABULARY, (12, SEQLEN))
    roles = {"calibration": ids[:4].clone(), "gradient": ids[4:8].clone(), "test": ids[8:].clone()}
    save_file(roles, folder / "w.safetensors")
    return folder


def options(tiny, **more):
    """Of a command: those that the tiny model takes."""
    given = {"model": tiny / "model", "windows": tiny / "w.safetensors", "corpus": "wikitext2",
             "seqlen": SEQLEN, "nsamples": 4}
    return [f"--{key.replace('_', '-')}={value}" for key, value in {**given, **more}.items()]


@pytest.fixture
def no_fsync(monkeypatch):
    """Without waiting for the disk."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


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
