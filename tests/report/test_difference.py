"""Between two runs exactly what differs is named: parameters, code, results, numbers in tables."""
from __future__ import annotations

import json
import re

import nbformat
import pandas as pd
import pytest

from prunekit.batch.verify import compare_tables
from prunekit.cli import main
from prunekit.errors import UsageError
from prunekit.report.difference import Difference

PICTURE = '<figure class="pk-figure"><img src="data:image/svg+xml;base64,{}"></figure>'


def executed(folder, *, code="x = 1", ppl=2.5, seed=0, picture="AAAA", seconds=1.0):
    """A run folder as `run` leaves it: a notebook with results, a table, a manifest."""
    cells = [nbformat.v4.new_markdown_cell("## 3 Run"), nbformat.v4.new_code_cell(code),
             nbformat.v4.new_code_cell("show()")]
    for number, cell in enumerate(cells):
        cell.id = f"03-0{number}"
    cells[1].outputs = [nbformat.v4.new_output("stream", name="stderr", text=f"progress {seconds}")]
    cells[2].outputs = [
        nbformat.v4.new_output("execute_result", {"text/plain": f"method ppl\n wanda  {ppl}\nmagnitude 4.0"}),
        nbformat.v4.new_output("execute_result",
                               {"text/plain": "A curve.", "text/html": PICTURE.format(picture)}),
        nbformat.v4.new_output("execute_result", {"text/plain": f"{seconds} s",
                                                  "text/html": f'<p class="pk-banner">{seconds}</p>'})]
    cells[2].metadata = {"papermill": {"duration": seconds}}
    (folder / "tables").mkdir(parents=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "executed.ipynb")
    pd.DataFrame({"method": ["wanda"], "ppl": [ppl],
                  "seconds": [seconds]}).to_csv(folder / "tables" / "perplexity.csv", index=False)
    (folder / "manifest.json").write_text(json.dumps({"parameters": {"seed": seed, "profile": folder.name},
                                                      "seconds": seconds}))
    return str(folder)


def test_the_same_run_has_no_difference_whatever_time_it_took(home, tmp_path):
    assert Difference(executed(tmp_path / "a"), executed(tmp_path / "b", seconds=9.0)).same


def test_everything_that_differs_is_named_and_nothing_else(home, tmp_path):
    a = executed(tmp_path / "a")
    difference = Difference(a, executed(tmp_path / "b", code="x = 2", ppl=2.75, seed=3, picture="BBBB"))
    assert difference.made == [("parameters seed", 0, 3)]
    assert [(mismatch.place, mismatch.then, mismatch.now) for mismatch in difference.mismatches] == [
        ("perplexity, row 1, ppl", "2.5", "2.75")]
    lines = difference.text().splitlines()
    marked = [line.split(maxsplit=1) for line in lines if re.match("[-+] ", line)]
    assert [line for line in marked if "picture" not in line[1]] == [
        ["-", "x = 1"], ["+", "x = 2"], ["-", "wanda 2.5"], ["+", "wanda 2.75"]]
    assert [mark for mark, text in marked if "picture" in text] == ["-", "+"]
    assert lines[:3] == ["parameters seed: 0 → 3", "1 places in tables differ (1 numbers compared)",
                         "perplexity, row 1, ppl: 2.5 → 2.75"]


def test_added_and_removed_cells(home, tmp_path):
    a, b = executed(tmp_path / "a"), executed(tmp_path / "b")
    notebook = nbformat.read(f"{b}/executed.ipynb", as_version=4)
    notebook.cells.insert(1, nbformat.v4.new_markdown_cell("A sentence."))
    nbformat.write(notebook, f"{b}/executed.ipynb")
    for names, mark in (((a, b), "+"), ((b, a), "-")):
        text = Difference(*names).text()
        assert re.findall(r"^([-+]) +A sentence\.$", text, re.MULTILINE) == [mark]
        assert text.count("\n## ") == 1 and "wanda" not in text


def test_the_command_says_when_nothing_differs(home, tmp_path, capsys):
    a = executed(tmp_path / "a")
    assert main(["diff", a, a]) == 0 and capsys.readouterr().out == "no difference\n"
    assert main(["diff", a, executed(tmp_path / "b", code="x = '<script>'")]) == 0
    assert "+  x = '<script>'" in capsys.readouterr().out


def test_what_is_no_run_is_said(home, tmp_path):
    executed(home / "runs" / "tiny" / "01_data")
    assert Difference("tiny/01_data", str(home / "runs/tiny/01_data")).same
    with pytest.raises(UsageError, match=r"tiny/01_dat is no executed run \(did you mean 'tiny/01_data'\?\)"):
        Difference("tiny/01_dat", "tiny/01_data")


@pytest.mark.parametrize(("tolerance", "now", "differs"), [
    (0.0, 2.5, False), (0.0, 2.5000001, True), (1e-3, 2.5024, False), (1e-3, 2.5026, True),
    (1e-3, float("nan"), True)])
def test_numbers_are_compared_within_the_tolerance(home, tmp_path, tolerance, now, differs):
    executed(tmp_path / "a"), executed(tmp_path / "b", ppl=now, seconds=7.0)
    count, found = compare_tables(tmp_path / "a", tmp_path / "b", tolerance)
    assert count == 1 and [one.place for one in found] == ["perplexity, row 1, ppl"] * differs


def test_a_missing_table_and_other_rows_are_differences(home, tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    executed(a), executed(b)
    (a / "tables" / "more.csv").write_text("x\n1\n")
    pd.DataFrame({"method": ["a", "b"], "ppl": [1, 2]}).to_csv(b / "tables" / "perplexity.csv", index=False)
    assert [(one.place, one.then, one.now) for one in compare_tables(a, b)[1]] == [
        ("more, the table", "there", "missing"), ("perplexity, rows × columns", "1 × 2", "2 × 2")]
