"""Outputs that cannot be written are noticed before the work; a disk that fills costs nothing there was."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest
import torch
from safetensors import SafetensorError

import prunekit as pk
from prunekit import files
from prunekit.batch import schedule
from prunekit.cli import main
from prunekit.files import replacing, write_atomic
from tests.conftest import options

FULL = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def no_file(folder):
    (folder / "taken").mkdir()
    return folder / "taken"


def below_a_file(folder):
    (folder / "file").write_text("text")
    return folder / "file" / "below"


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT])
def test_what_a_disk_says_is_one_sentence(tmp_path, monkeypatch, number):
    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.tempfile, "mkstemp", refuse)
    monkeypatch.setattr(files.tempfile, "TemporaryFile", refuse)
    tree = pk.Tree.parse("W")
    for write in (
        files.check_file,
        files.check_folder,
        tree.to_json,
        lambda path: write_atomic(path, "text"),
        pk.Gradients({"model.layers.0.q": torch.ones(1, 1)}).save,
    ):
        with pytest.raises(
            pk.UsageError, match=rf"(a\.json|{tmp_path}) cannot be written \({os.strerror(number)}\): "
        ):
            write(tmp_path / "a.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [FULL, OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_the_old_file_stays_when_the_new_one_cannot_be_finished(tmp_path, error):
    link, path = tmp_path / "link", tmp_path / "inside" / "a.csv"
    link.symlink_to(path)
    write_atomic(link, "old")  # what the link leads to, though that was not there
    with (
        pytest.raises(type(error) if isinstance(error, KeyboardInterrupt) else pk.UsageError),
        files.replacing_file(link) as new,
    ):
        new.write_text("half")
        raise error
    assert link.is_symlink() and path.read_text() == "old" and os.listdir(path.parent) == ["a.csv"]


def test_other_errors_stay_what_they_are(tmp_path):
    for error in (FileNotFoundError(errno.ENOENT, "no"), ValueError("no")):
        with pytest.raises(type(error)), files.replacing_file(tmp_path / "a"):
            raise error
    with (
        pytest.raises(pk.UsageError, match="the file cannot be used .Permission denied.: give another place"),
        files.writing_to(),
    ):
        raise PermissionError(errno.EACCES, "no", "the file")


@pytest.mark.parametrize(
    "command",
    [
        "prune --method=magnitude --results={below}",
        "prune --method=magnitude --save-model={below}",
        "evaluate --tasks=embedded_rare --results={below}",
        "finetune --output={below}",
        "finetune --output={new} --save-model={below}",
        "finetune --output={new} --results={below}",
        "gradients --output={below}.safetensors",
        "gradients --output={taken}",
        "search start --output={below}",
        "search start --output={searched}",
    ],
)
def test_outputs_are_tried_before_a_model_is_loaded(tiny, tmp_path, monkeypatch, capsys, command):
    def never(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(pk, "load_model", never)
    (tmp_path / "x.safetensors").mkdir()
    (tmp_path / "searched" / "journal.jsonl").mkdir(parents=True)
    names = {
        "below": below_a_file(tmp_path),
        "taken": tmp_path / "x.safetensors",
        "new": tmp_path / "new",
        "searched": tmp_path / "searched",
    }
    assert main([*(word.format(**names) for word in command.split()), *options(tiny)]) == 2
    assert "cannot be written (" in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_a_table_that_rows_cannot_be_added_to_is_noticed_first(tiny, tmp_path, capsys):
    (tmp_path / "results.csv").touch()
    assert main(["prune", "--method=magnitude", f"--results={tmp_path}", *options(tiny)]) == 2
    assert "results.csv is no table that rows can be added to" in capsys.readouterr().err


def test_a_disk_that_fills_while_a_model_is_saved(tiny, tmp_path, monkeypatch, capsys):
    from transformers import LlamaForCausalLM

    def full(*args, **kwargs):
        raise FULL

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", full)
    assert main(["prune", "--method=magnitude", f"--save-model={tmp_path}/pruned", *options(tiny)]) == 2
    assert (
        capsys.readouterr().err
        == f"prunekit: {tmp_path}/pruned cannot be written (No space left on device): make room, then "
        "start this again.\n"
    )


def test_whoever_reads_may_stop_reading():
    """As `prunekit … | head` does."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "prunekit", "explain", "W"], stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_journals_where_none_can_be(tmp_path):
    def search(path):
        return list(pk.evolve(lambda tree: 1.0 / tree.size, budget=2, journal=path, progress=False))

    for place, why in (
        (no_file(tmp_path), "Is a directory"),
        (below_a_file(tmp_path), "File exists|Not a directory"),
    ):
        with pytest.raises(pk.UsageError, match=f"{place} cannot be written .({why})."):
            search(place)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "j.jsonl")
    search(tmp_path / "link")
    assert (tmp_path / "elsewhere" / "j.jsonl").is_file()


@pytest.mark.parametrize("part", ["runs", "reports"])
def test_runs_and_reports_are_tried_before_a_notebook_runs(tmp_path, monkeypatch, capsys, part):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "params" / "tiny").mkdir(parents=True)
    (tmp_path / "params" / "tiny" / "common.yaml").touch()
    (tmp_path / part).write_text("a file")
    monkeypatch.setenv("PRUNEKIT_HOME", str(tmp_path))
    monkeypatch.setattr(
        schedule, "bring_up_to_date", lambda *args, **kwargs: (pytest.fail("a notebook was run") for _ in "1")
    )
    assert main(["run", "tiny"]) == 2
    assert f"{part}/tiny cannot be written (" in capsys.readouterr().err
    with pytest.raises(pk.UsageError, match="cannot be written"), replacing(tmp_path / part / "tiny"):
        pass


def test_a_folder_whose_exchange_fails_or_is_killed_is_the_old_one(tmp_path, monkeypatch):
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "old.txt").write_text("old")
    rename = files.Path.rename

    def refuse(self, target):
        if self.name.endswith(".building"):
            raise OSError(errno.EACCES, "no")
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(files.Path, "rename", refuse)
        with pytest.raises(pk.UsageError, match="cannot be written"), replacing(folder) as place:
            (place / "new.txt").write_text("new")
    assert [file.name for file in tmp_path.rglob("*.txt")] == ["old.txt"] and folder.is_dir()
    folder.rename(tmp_path / ".study.old")  # a kill between the two renames
    with pytest.raises(KeyError), replacing(folder):
        raise KeyError
    assert (folder / "old.txt").read_text() == "old"
    with replacing(folder) as place:
        (place / "new.txt").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["study"] and not (folder / "old.txt").exists()


def test_a_file_keeps_its_mode_and_a_pipe_is_not_replaced(tmp_path):
    write_atomic(tmp_path / "secret", "a")
    (tmp_path / "secret").chmod(0o600)
    write_atomic(tmp_path / "secret", "b")
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(pk.UsageError, match="a device or a pipe"):
        write_atomic(tmp_path / "pipe", "text")
    assert (tmp_path / "pipe").is_fifo()
