"""A run is made beside the finished one: whatever becomes of it, readers have the last one that finished."""
from __future__ import annotations

import json
import os
import signal

import pytest
from jupyter_client.manager import start_new_kernel

import prunekit as pk
from prunekit.batch import schedule
from prunekit.cli import main
from prunekit.files import lock, write_atomic
from prunekit.report import paper, site
from prunekit.workbook import manifest
from prunekit.workbook import project as places
from tests.pages import check_site
from tests.report.test_site import DATA, outcomes, project  # noqa: F401
from tests.tiny_project import write_notebook

VALUES = {"profile": "tiny", "rows": 5, "pattern": "unstructured"}


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*")
            if path.is_file()}


def in_a_kernel(cells, home):
    """Run cells as JupyterLab does, and kill the kernel with -9."""
    manager, client = start_new_kernel(cwd=str(home / "notebooks"),
                                       env={**os.environ, "PRUNEKIT_HOME": str(home)})
    try:
        for tag, source in cells:
            if tag != "md":
                source = source.replace("rows: int = 3", "rows: int = 5")
                reply = client.execute_interactive(source, output_hook=lambda _: None)
                assert reply["content"]["status"] == "ok", source
    finally:
        client.stop_channels()
        os.kill(manager.provisioner.process.pid, signal.SIGKILL)
        manager.shutdown_kernel(now=True)


def by_hand(topic="01_data"):
    run = pk.start_run(topic, VALUES)
    run.finish()
    return run


def test_a_notebook_that_is_stopped_half_way_harms_nothing(project, tmp_path):  # noqa: F811
    outcomes(topics=["01_data"])
    run = places.run_folder("tiny", "01_data")

    def readers():
        page = site.render("tiny").with_name("01_data.html").read_bytes()
        paper.write("tiny", tmp_path / "paper")
        return page, content(tmp_path / "paper"), content(run)

    before = readers()
    in_a_kernel(DATA[:-1], project)
    assert readers() == before and places.attempt_folder(run).is_dir()
    assert manifest.state("tiny", "01_data", VALUES) == manifest.State(
        "fresh", "last attempt interrupted: started, but not finished")
    assert "last attempt interrupted" in check_site(project / "reports/tiny")["index.html"].text
    assert outcomes(topics=["01_data"]) == {"01_data": ("fresh", "")}
    in_a_kernel(DATA, project)
    assert not places.attempt_folder(run).exists() and manifest.read("tiny", "01_data")["log"] is None
    assert manifest.state("tiny", "01_data", VALUES) == manifest.State("fresh")
    pages = check_site(site.render("tiny").parent)
    assert "made by hand" in pages["index.html"].text
    assert "its page has no outputs" in pages["01_data.html"].text


def test_a_notebook_written_while_it_runs_is_stale_unless_its_cells_were_run(project):  # noqa: F811
    file = project / "notebooks" / "01_data.ipynb"
    save = f"from pathlib import Path\nfile = Path({str(file)!r})\nfile.write_text(file.read_text().replace"
    start, *more = DATA[2], ("", "x = 1"), DATA[-1]
    then, late = [*DATA[:2], ("", f"{save}('x = ' + '1', 'x = 2'))"), start, *more], manifest.State(
        "stale", "notebooks/01_data.ipynb changed")
    write_notebook(file, then)
    assert outcomes(topics=["01_data"]) == {"01_data": ("done", "")}  # edited before its set-up cell ran
    assert manifest.state("tiny", "01_data", VALUES) == late
    then = [*then[:2], start, then[2], *more]
    for number, state in ((1, late), (2, manifest.State("fresh"))):  # saved after it ran, or not run at all
        write_notebook(file, then)
        in_a_kernel([(tag, source.replace("x = 1", f"x = {number}")) for tag, source in then], project)
        assert manifest.state("tiny", "01_data", VALUES) == state


def test_a_run_that_fails_even_after_its_end_leaves_the_one_before_it(project):  # noqa: F811
    made = by_hand()
    before = content(made.folder)
    write_notebook(project / "notebooks" / "01_data.ipynb", [*DATA, ("", "run.save('late', {'a': 1})")])
    reason = ("01_data was started anew elsewhere or is already finished: "
              "run this notebook from its set-up cell again")
    assert outcomes(topics=["01_data"]) == {"01_data": ("failed", f"{reason}.")}
    assert content(made.folder) == before
    assert {"failed.ipynb", "reason.txt", "log.txt"} <= content(places.attempt_folder(made.folder)).keys()
    finished = manifest.read("tiny", "01_data")["finished"]
    assert schedule.status("tiny")["01_data"] == manifest.State(
        "failed", f"{reason}; the run of {finished} is kept")
    page = check_site(site.render("tiny").parent)["01_data.html"]
    assert f"The last attempt is failed: {reason}" in page.text


def test_journals_are_gone_on_with_and_all_else_is_made_anew(project):  # noqa: F811
    first = pk.start_run("01_data", VALUES)
    (first.folder / "journal-a.jsonl").write_text("finished\n")
    first.save("plain", {"a": 1})
    first.finish()
    for word in ("of the finished run", "of the interrupted one"):
        again = pk.start_run("01_data", VALUES)
        journal = again.folder / "journal-a.jsonl"
        assert (word == "of the finished run") == (journal.read_text() == "finished\n")
        assert content(again.folder).keys() == {"journal-a.jsonl", "running.json"}
        journal.write_text("half\n")
        (again.folder / "tables").mkdir()
        (again.folder / "left.csv").write_text("")
    assert (first.folder / "journal-a.jsonl").read_text() == "finished\n"
    assert manifest.read("tiny", "01_data")["id"] == first.id


def test_a_kill_between_the_two_renames_is_mended_by_whoever_reads(project):  # noqa: F811
    first = by_hand()
    second = pk.start_run("01_data", VALUES)
    write_atomic(second.folder / "manifest.json", json.dumps({"id": second.id}))
    first.folder.rename(first.folder.with_name(".01_data.old"))
    assert manifest.read("tiny", "01_data")["id"] == second.id and not second.folder.exists()
    by_hand()
    assert not first.folder.with_name(".01_data.old").exists()


def test_nobody_begins_a_run_that_prunekit_run_is_making(project):  # noqa: F811
    attempt = pk.start_run("01_data", VALUES).folder
    with open(attempt / "log.txt", "w") as log:
        lock(log.fileno(), "")
        with pytest.raises(pk.UsageError,
                           match="`prunekit run` is making runs/tiny/01_data now: wait for it, or stop it"):
            pk.start_run("01_data", VALUES)
    assert pk.start_run("01_data", VALUES).folder == attempt


def test_a_paper_says_what_is_missing(project, tmp_path, capsys):  # noqa: F811
    by_hand()
    assert main(["paper", str(tmp_path / "paper"), "--profile", "tiny"]) == 0
    assert "03_baselines      no finished run" in capsys.readouterr().out
    text = (tmp_path / "paper" / "main.tex").read_text()
    assert "\\section{Baselines}" not in text  # no heading above nothing
