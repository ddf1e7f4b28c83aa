from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_it_runs_small_on_a_processor_and_writes_what_it_has(tmp_path):
    """Every row of the benchmark on models of nothing; all comparisons are of the processor with itself."""
    path = tmp_path / "gpu.json"
    command = [sys.executable, ROOT / "benchmarks/gpu.py", "--tiny", "--device", "cpu", "--output", path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(path.read_text())["rows"]
    assert [row for row in rows if "error" in row] == []
    assert all(row["same"] == 1 for row in rows if "same" in row)
    assert all(row["same masks"] == 1 for row in rows if "same masks" in row)
    small = next(row for row in rows if row["what"].startswith("embedded"))
    assert small["masks told apart"] and small["losses differ by"] == 0
    timed = [row["what"] for row in rows if row.get("part") == "7B whole"]
    assert timed[:2] == ["dense pass", "prune wanda unstructured"] and "a candidate" in timed[-1]
    table = path.with_suffix(".md").read_text()
    assert all(f"| {row['what']} |" in table for row in rows)


def test_a_model_that_is_measured_again_is_not_kept_twice(tmp_path):
    path = tmp_path / "gpu.json"
    command = [sys.executable, ROOT / "benchmarks/gpu.py", "--tiny", "--device", "cpu", "--minutes", "0",
               "--model", ROOT / "prunekit/embedded/llama", "--only", "results", "--output", path]
    for _ in range(2):
        subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    rows = [(row["part"], row["what"]) for row in json.loads(path.read_text())["rows"]]
    assert ("llama", "dense pass") in rows and len(rows) == len(set(rows))


def test_a_limit_of_time_leaves_rows_that_say_so(tmp_path):
    path = tmp_path / "gpu.json"
    subprocess.run([sys.executable, ROOT / "benchmarks/gpu.py", "--tiny", "--device", "cpu", "--minutes", "0",
                    "--output", path], cwd=ROOT, capture_output=True, check=True)
    rows = json.loads(path.read_text())["rows"]
    assert {row["error"] for row in rows} == {"left out for want of time"}
