"""The gallery: pages that a repository browser shows, made from runs, with nothing of the machine in them."""
from __future__ import annotations

import re
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest

import prunekit as pk
from prunekit.report import gallery
from prunekit.workbook import display

TABLE = pd.DataFrame({"a_b": ["x | y"] * 40, "score": range(40)})
SETUP = "import prunekit as pk\nrun = pk.start_run('01_data', globals())"


def links(page: Path) -> list[str]:
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [link for link in re.findall(r"\]\(([^)#:]+)\)", prose)]


@pytest.fixture
def ran(home):
    """A finished run of 01 with the notebook that papermill leaves; there is no other notebook."""
    (home / "notebooks" / "03_baselines.ipynb").unlink()
    run = pk.start_run("01_data", {"profile": "tiny", "rows": 4, "seqlen": 8, "seed": 0})
    figure, axes = plt.subplots(figsize=(1, 1))
    axes.plot([1, 2])
    shown = [run.figure(figure, "curve", "A curve of $W_{ij}$, [1]."), run.table(TABLE, "table", "A table."),
             run.takeaway("It is **2** of `W`.")]
    run.finish()
    cells = [nbformat.v4.new_markdown_cell("# 01 · Data\n\nWhat is it?\n\nSee [itself](01_data.ipynb).")]
    for place, sight in enumerate(shown):
        tags = ["unfold"] if place == 0 else []
        data = {"text/html": sight._repr_html_(), "text/plain": repr(sight)}
        cells.append(nbformat.v4.new_code_cell(f"line_{place} = 0", metadata={"tags": tags}, outputs=[
            nbformat.v4.new_output("stream", name="stderr", text="50%|#### | 1/2"),
            nbformat.v4.new_output("execute_result", data=data)]))
    cells.append(nbformat.v4.new_code_cell("answer = 42", metadata={"tags": ["solution"], "papermill": {}}))
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={
        "kernelspec": {"name": "python3", "display_name": "Python 3"},
        "papermill": {"input_path": str(home)}})
    nbformat.write(notebook, run.folder / "executed.ipynb")
    return home


def test_a_page_shows_figures_tables_and_sentences(ran):
    target = ran / "docs" / "gallery"
    assert gallery.write("tiny", target) == sum(path.stat().st_size for path in target.rglob("*.*"))
    page = (target / "01_data.md").read_text(encoding="utf-8")
    assert "![A curve of $W_{ij}$, \\[1\\].](figures/01-curve.svg)" in page
    assert (target / "figures/01-curve.svg").read_text(encoding="utf-8").startswith("<?xml")
    assert "**A table.**\n\n| a b | score |\n|---|---:|\n| x \\| y | 0 |\n" in page
    assert page.count("x \\| y") == 30 and "*10 more rows in the notebook.*" in page
    assert "> It is **2** of `W`." in page
    assert page.count("<details>") == 2 and "```python\nline_0 = 0\n```" in page
    assert "50%" not in page and "42" not in page
    assert links(target / "01_data.md") == ["01_data.md", "figures/01-curve.svg"]
    index = (target / "README.md").read_text(encoding="utf-8")
    assert "## 01 · Data\n\nWhat is it?" not in index  # its question is that of the project's notebook
    assert "- It is **2** of `W`." in index and links(target / "README.md") == ["01_data.md", "01_data.ipynb"]


def test_the_notebook_is_whole_shows_pictures_and_nothing_of_the_machine(ran):
    gallery.write("tiny", ran / "gallery")
    text = (ran / "gallery/01_data.ipynb").read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    assert str(ran) not in text and "papermill" not in text and "50%" not in text
    assert notebook.cells[1].outputs[0].data["image/svg+xml"].startswith("<?xml")
    assert notebook.cells[-1].source == "answer = 42"


def test_nothing_is_replaced_by_what_is_not_whole(ran, monkeypatch):
    gallery.write("tiny", ran / "gallery")
    before = (ran / "gallery/README.md").read_bytes()
    monkeypatch.setattr(gallery, "MOST", 1000)
    with pytest.raises(pk.UsageError, match=r"would have [\d,]+ bytes, 1,000 are allowed"):
        gallery.write("tiny", ran / "gallery")
    (ran / "runs/tiny/01_data/executed.ipynb").unlink()
    with pytest.raises(pk.UsageError, match="01_data has no finished run: `prunekit run tiny 01_data`"):
        gallery.write("tiny", ran / "gallery")
    assert (ran / "gallery/README.md").read_bytes() == before


def test_a_column_of_numbers_is_right_and_text_is_literal():
    shown = display.show_table(pd.DataFrame({"f": ["$a|b$ *x*"], "n": [1.5]}), "tables/x.csv", "C.").html
    assert gallery._table(shown) == "**C.**\n\n| f | n |\n|---|---:|\n| $a\\vert b$ \\*x\\* | 1.5 |"


def test_captions_keep_their_code_and_formulas():
    assert gallery._escaped("a|b of `W | X` and $|w|$") == r"a\|b of `W \| X` and $\vert w\vert $"
