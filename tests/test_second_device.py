"""What the notebooks compute, on a device beside the processor: no two devices meet in one operation."""
from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
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


def python(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_device_refuses_what_cuda_refuses():
    python("-c", REFUSED)


def test_the_methods_compute_the_same_on_a_device_beside_the_processor():
    # Apart by rounding alone: attention is another kernel there.
    with ThreadPoolExecutor(2) as both:
        here, there = (json.loads(said.splitlines()[-1]) for said in both.map(
            lambda device: python("-m", "tests.simulated.compute", device), ("cpu", "sim")))
    assert here.keys() == there.keys()
    for name, numbers in here.items():
        assert there[name] == pytest.approx(numbers, rel=1e-5), name
