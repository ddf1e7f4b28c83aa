"""What git keeps of a notebook after `make dev`: its text, nothing of a run; without it, whole files."""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbconvert.filters import strip_ansi

ROOT = Path(__file__).resolve().parents[1]
WHO = {f"GIT_{role}_{what}": "a@b" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
NOTEBOOK = Path("notebooks") / "01_data.ipynb"
pytestmark = pytest.mark.skipif(not (shutil.which("git") and shutil.which("make")), reason="no git or make")


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False,
                          env={**os.environ, **WHO, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_PAGER": "cat"})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def commit(folder: Path) -> None:
    run(folder, "git", "add", ".")
    run(folder, "git", "commit", "-qm", "all")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A repository with one notebook, after `make dev` with the programs of this environment."""
    folder = tmp_path_factory.mktemp("git") / "a clone"
    (folder / "notebooks").mkdir(parents=True)
    for name in (".gitattributes", "nbdime_config.json", NOTEBOOK):
        shutil.copy(ROOT / name, folder / name)
    run(folder, "git", "init", "-q")
    venv = sys.prefix
    run(folder, "make", "-f", str(ROOT / "Makefile"), "dev", f"VENV={venv}", "-o", f"{venv}/.installed")
    commit(folder)
    run(folder, "git", "branch", "-M", "main")
    return folder


@pytest.fixture
def clone(made, tmp_path):
    return shutil.copytree(made, tmp_path / made.name)


def executed(path: Path) -> None:
    """As JupyterLab leaves it: outputs, counts, times, and its word on kernel and language."""
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata["kernelspec"] = {"display_name": "Python 3 (ipykernel)", "language": "python",
                                       "name": "python3"}
    notebook.metadata["language_info"] = {
        "codemirror_mode": {"name": "ipython", "version": 3}, "file_extension": ".py", "name": "python",
        "mimetype": "text/x-python", "nbconvert_exporter": "python", "pygments_lexer": "ipython3",
        "version": "3.99.0"}
    notebook.metadata["widgets"] = {"state": {}}
    for number, cell in enumerate(cell for cell in notebook.cells if cell.cell_type == "code"):
        cell.outputs = [nbformat.v4.new_output("stream", text="many lines\n" * 100)]
        cell.execution_count = number + 1
        cell.metadata["execution"] = {"iopub.execute_input": "2026-11-26T10:00:00Z"}
        cell.metadata["scrolled"] = True
    nbformat.write(notebook, path)


def test_a_run_leaves_no_difference_and_a_change_is_shown_by_cells(clone):
    executed(clone / NOTEBOOK)
    assert (clone / NOTEBOOK).read_text(encoding="utf-8").count("many lines") > 1000
    assert run(clone, "git", "diff") == ""
    run(clone, "git", "add", "notebooks")   # until then git names a file as modified whose size has changed
    assert run(clone, "git", "status", "--porcelain") == ""
    notebook = nbformat.read(clone / NOTEBOOK, as_version=4)
    notebook.cells[0].source += "\n\nA sentence more."
    nbformat.write(notebook, clone / NOTEBOOK)
    shown = strip_ansi(run(clone, "git", "diff"))
    assert "nbdiff" in shown and "## modified /cells/0/source" in shown and "+A sentence more." in shown
    assert "many lines" not in shown
    commit(clone)
    kept = nbformat.reads(run(clone, "git", "show", f"HEAD:{NOTEBOOK.as_posix()}"), as_version=4)
    before = nbformat.read(ROOT / NOTEBOOK, as_version=4)
    assert [cell.id for cell in kept.cells] == [cell.id for cell in before.cells]
    assert [cell.metadata for cell in kept.cells] == [cell.metadata for cell in before.cells]
    assert kept.metadata == before.metadata and not any(cell.get("outputs") for cell in kept.cells)


def test_two_changes_of_one_notebook_are_merged_by_cells(clone):
    """With the filter and nbdime's driver together, on a file that somebody has just run."""
    def change(cell: int, branch: str) -> None:
        run(clone, "git", "checkout", "-q", "-B", branch, "main")
        notebook = nbformat.read(clone / NOTEBOOK, as_version=4)
        notebook.cells[cell].source += f"\nby {branch}"
        nbformat.write(notebook, clone / NOTEBOOK)
        executed(clone / NOTEBOOK)
        commit(clone)

    change(0, "ann")
    change(3, "ben")
    run(clone, "git", "merge", "-q", "--no-edit", "ann")
    cells = nbformat.read(clone / NOTEBOOK, as_version=4).cells
    assert cells[0].source.endswith("by ann") and cells[3].source.endswith("by ben")
    assert run(clone, "git", "status", "--porcelain") == ""


def test_a_clone_without_the_filter_works(clone, tmp_path):
    """And the gallery's notebooks keep their outputs in any."""
    gallery = clone / "docs" / "gallery"
    gallery.mkdir(parents=True)
    shutil.copy(clone / NOTEBOOK, gallery)
    executed(gallery / NOTEBOOK.name)
    commit(clone)
    other = tmp_path / "other"
    run(tmp_path, "git", "clone", "-q", str(clone), str(other))
    assert run(other, "git", "status", "--porcelain") == ""
    assert "many lines" in (other / "docs/gallery" / NOTEBOOK.name).read_text(encoding="utf-8")
    assert "many lines" not in (other / NOTEBOOK).read_text(encoding="utf-8")
    executed(other / NOTEBOOK)
    assert str(NOTEBOOK) in run(other, "git", "status", "--porcelain")
    assert "many lines" in (other / NOTEBOOK).read_text(encoding="utf-8")
