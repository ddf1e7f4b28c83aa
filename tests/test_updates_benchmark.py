"""The benchmark of updates keeps what its file has only where the same is asked for."""
from __future__ import annotations

import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

import prunekit as pk

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_numbers_of_another_metric_or_of_other_windows_are_not_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import updates

    tokenizer = pk.load_tokenizer("embedded/llama")
    windows = {role: pk.token_windows("embedded", tokenizer, role, 4, 32)
               for role in ("calibration", "gradient", "test")}
    save_file(windows, tmp_path / "a.safetensors")
    save_file(windows | {"test": windows["test"] + 1}, tmp_path / "b.safetensors")

    def measured(line: str, file: str) -> None:
        told = ["--model", "embedded/llama", "--corpus", "embedded", "--seqlen", "32", "--calibration", "4",
                "--targets", "0.6", "--windows", str(tmp_path / file), "--lines", f"mine={line}",
                "--parts", "SparseGPT", "admm, mine", "--output", str(tmp_path / "found.json")]
        monkeypatch.setattr(sys, "argv", ["updates.py", *told])
        updates.main()

    measured("W", "a.safetensors")
    measured("W", "a.safetensors")
    for line, file, told in (("mul(W, sqrt(X))", "a.safetensors", "has another metric under the name 'mine'"),
                             ("W", "b.safetensors", "is of another content of windows; name a new file")):
        with pytest.raises(SystemExit):
            measured(line, file)
        assert told in capsys.readouterr().err
