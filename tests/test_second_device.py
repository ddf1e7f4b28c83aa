"""What the notebooks compute, on a device beside the processor: no two devices meet in one operation."""
from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "tests" / "simulated" / "site"  # with it on the path, models are placed there
SMALL = {"dtype": "float32", "budget": 4, "population": 4, "rival_searches": "[grid]", "update_budget": 2,
         "budget_evaluations": 2, "census_trees": 10, "leaders": 2, "shuffles": 2, "top": 3,
         "eval_windows": 2, "train_samples": 16, "documents": 4, "divergence_windows": 2}
REFUSED = """
import pytest, torch, tests.simulated.device
x = torch.arange(6.).view(2, 3)
there, at = x.to("sim"), torch.tensor([1])
for mixed in (lambda: there + x, lambda: there @ x.T, lambda: x + there.sum(), lambda: x[at.to("sim")],
              lambda: torch.cat([there, x]), lambda: there.index_select(0, at),
              lambda: there.masked_fill(x > 1, 0)):
    with pytest.raises(RuntimeError, match="device"):
        mixed()
with pytest.raises(TypeError, match="numpy"):
    there.numpy()
with pytest.raises(RuntimeError, match="generator"):
    torch.rand(2, device="sim", generator=torch.Generator())
there[0].mul_(10)
assert (there[at] + torch.tensor(1.0)).tolist() == [[4, 5, 6]] and there.sum().item() == 42 and x.sum() == 15
"""


def python(*arguments: str, **environment: str) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False,
                          env=os.environ | environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_device_refuses_what_cuda_refuses():
    python("-c", REFUSED)


def test_the_methods_compute_the_same_on_a_device_beside_the_processor():
    with ThreadPoolExecutor(2) as both:
        here, there = (json.loads(said.splitlines()[-1]) for said in both.map(
            lambda device: python("-m", "tests.simulated.compute", device), ("cpu", "sim")))
    assert here.keys() == there.keys()
    masks = {name: (bits(here.pop(name)), bits(there.pop(name))) for name in list(here) if "masks of" in name}
    assert len(masks) == 7
    for name, numbers in here.items():
        kept = masks.get(f"masks of {name}", (bits(""), bits("")))
        flipped = (kept[0] != kept[1]).sum()
        assert flipped <= 1e-3 * kept[0].size, name
        # Apart by rounding; a weight that nearly ties with its rival then falls on either side.
        apart = 0.02 if flipped or name == "search" else 1e-5
        assert there[name] == pytest.approx(numbers, rel=apart), name


def bits(packed: str) -> np.ndarray:
    return np.unpackbits(np.frombuffer(bytes.fromhex(packed), np.uint8))


def test_every_notebook_runs_there(tmp_path):
    for folder in ("notebooks", "params"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    settings = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
    said = python("-m", "prunekit", "run", "smoke", *settings, PRUNEKIT_HOME=str(tmp_path),
                  PYTHONPATH=f"{ROOT}{os.pathsep}{SITE}", ACCELERATE_TORCH_DEVICE="sim:0")
    assert said.count(" done ") == len(list((ROOT / "notebooks").glob("*.ipynb"))), said
    journal = tmp_path / "runs" / "smoke" / "04_gp_search" / "journal-modern.jsonl"
    with journal.open(encoding="utf-8") as lines:
        assert '"device": "sim"' in next(lines)
