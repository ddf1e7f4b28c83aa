"""The paper of a profile: what LaTeX would stumble over, checked by a reader of that part of its grammar."""
from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import prunekit as pk
from prunekit.cli import main
from prunekit.evaluate.perplexity import Perplexity
from prunekit.metric.catalogue import METHODS
from prunekit.report import paper
from prunekit.workbook import display

ROOT = Path(__file__).resolve().parents[2]
HARD = "50 % of $W_{ij}$ & G_x, {a} ^2 ~ #1 \\x, 5 $ ± 1 − “q” τ ∂"
TABLE = pd.DataFrame({"a_b": ["[1]", "x & y", "100 %"], "score": [0.5, 1.25, 3.0],
                      "form": ["|W|^2", "{G}", "w²"]})


@pytest.fixture
def runs(home):
    """A finished run of 01 and one of 03, with a figure, a table and a table that is long."""
    for topic, rows in (("01_data", 1), ("03_baselines", 20)):
        values = {"profile": "tiny", "method": "wanda", "methods": ["wanda"], "sparsity": 0.5,
                  "pattern": "unstructured",
                  "targets": ["2:4"], "scale": 1.0, "nsamples": 2, "fast": True, "model": "embedded/llama",
                  "corpus": "embedded", "windows": "", "rows": 4, "seqlen": 8, "seed": 0}
        run = pk.start_run(topic, values)
        figure, axes = plt.subplots(figsize=(1, 1))
        axes.plot([1, 2])
        run.figure(figure, "same-name", HARD)
        run.table(pd.concat([TABLE] * rows), "same-name", HARD)
        run.takeaway(f"**{HARD}** and `mul(W, _x)`, `mul(W, sqrt(X))` is -3 to 1-2")
        run.table(TABLE[:0], "empty", "Nothing.")
        run.finish()
    return home


def expanded(folder: Path) -> str:
    """main.tex with its inputs in place and its comments gone; every input and picture exists."""
    def content(match: re.Match) -> str:
        return (folder / f"{match[1]}.tex").read_text(encoding="utf-8")

    text = re.sub(r"\\input\{([^}]*)\}", content, (folder / "main.tex").read_text(encoding="utf-8"))
    text = re.sub(r"(?<!\\)%.*", "", text)
    for picture in re.findall(r"\\includegraphics\[[^]]*\]\{([^}]*)\}", text):
        assert (folder / picture).read_bytes().startswith(b"%PDF")
    return text


def check_latex(text: str) -> None:
    """Environments and braces nest; in the body no special character is bare, columns are as announced."""
    open_ones = []
    for word, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if word == "begin":
            open_ones.append(name)
        else:
            assert open_ones.pop() == name
    assert not open_ones
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", text.replace("\\\\", "")):
        depth += 1 if brace == "{" else -1
        assert depth >= 0
    assert depth == 0
    body = text.partition("\\maketitle")[2]
    for _, columns, rows in re.findall(r"\\begin\{(tabular|longtable)\}\{(\w+)\}(.*?)\\end\{\1\}", body,
                                       re.DOTALL):
        lines = [line for line in rows.splitlines() if line.endswith("\\\\") and "label{" not in line]
        assert lines and all(len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1 for line in lines)
        assert not re.search(r"^[\[*]", rows, re.MULTILINE)
    prose = re.sub(r"(?<!\\)\$[^$]*(?<!\\)\$|\\ensuremath\{(?:\{\}\^\d|[^{}]*)\}", "", body)
    prose = re.sub(r"~?\\(label|includegraphics|cite|ref)(\[.*?\])?\{[^}]*\}", "", prose)
    prose = re.sub(r"\\begin\{equation\}.*?\\end\{equation\}", "", prose, flags=re.DOTALL)
    prose = re.sub(r"\\begin\{(tabular|longtable)\}.*?\\end\{\1\}", "", prose, flags=re.DOTALL)
    assert not re.search(r"(?<!\\)[&#_^~$%]", prose)
    assert not re.search(r"[^\x00-\x7fÀ-ſ]", text)  # what T1 and utf8 know


def compiled(folder: Path) -> str:
    """What pdfLaTeX says the third time, when references and citations are known."""
    latex = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
    for command in (latex, ["bibtex", "main"], latex, latex):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:]
    assert "Warning--" not in (folder / "main.blg").read_text()
    return done.stdout


def core_pages(folder: Path) -> int:
    auxiliary = (folder / "main.aux").read_text()
    return int(re.search(r"\\newlabel\{appendix\}\{\{.*?\}\{(\d+)\}", auxiliary)[1]) - 1


def test_a_paper_is_whole_and_its_labels_are_its_own(runs, tmp_path, capsys):
    folder = tmp_path / "paper"
    assert main(["paper", str(folder), "--profile", "tiny"]) == 0
    assert "main.tex" in capsys.readouterr().out
    text = expanded(folder)
    check_latex(text)
    assert sorted(re.findall(r"\\label\{(.*?)\}", text)) == [
        "appendix", "fig:01-same-name", "fig:03-same-name", "tab:01-same-name", "tab:03-same-name",
        "tab:methods"]
    # The long one's head comes twice; the empty one is not there.
    assert text.count("\\begin{longtable}") == 1 and text.count("\\toprule") == 4
    assert "50 \\% of $W_{ij}$ \\& G\\_x, \\{a\\} \\textasciicircum{}2" in text
    assert "\\texttt{mul(W, \\_x)}" in text and "$W \\cdot \\sqrt{X}$" in text  # no metric, and one
    assert "is $-$3 to 1-2" in text
    assert "[U+2202]" in text  # a character without a command is named, not lost
    assert text.index("same-name.pdf") > text.index("\\appendix")  # none of them is a headline
    if shutil.which("pdflatex"):
        assert not re.search(r"Reference|Citation", compiled(folder)) and core_pages(folder) <= 2


@pytest.mark.site
@pytest.mark.skipif(not shutil.which("pdflatex"), reason="there is no LaTeX here")
@pytest.mark.parametrize("profile",
                         sorted({made.parents[1].name for made in ROOT.glob("runs/*/*/manifest.json")}))
def test_the_paper_of_every_profile_that_was_run_fits_its_pages(profile, tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEKIT_HOME", str(ROOT))
    paper.write(profile, tmp_path / "paper")
    said = compiled(tmp_path / "paper")
    assert not re.search(r"Reference|Citation|Overfull|Float too large|multiply defined", said), said[-3000:]
    assert core_pages(tmp_path / "paper") <= 8


def test_wide_and_long_tables_fit():
    cells = ["a word " * 12, "x", "7"]
    rows = "".join(" & ".join(cells) + " \\\\\n" for _ in range(3))
    head = "\\begin{tabular}{llr}\n\\toprule\nq & b & n \\\\\n\\midrule\n"
    wide = head + rows + "\\bottomrule\n\\end{tabular}"
    assert "{tabular}{llr}" in paper._table(wide, "x", "")  # made smaller as it is
    assert re.search(r"\{tabular\}\{P\{0\.\d\d\}lr\}",
                     paper._table(wide.replace("a word", "another word " * 2), "x", ""))
    assert "{longtable}{llr}" in paper._table(wide.replace(rows, rows * 20), "x", "")


def test_a_table_tells_once_what_is_alike_and_is_cut_where_it_would_be_too_wide():
    names = " & ".join("abcdefghi")
    head = f"\\begin{{tabular}}{{{'l' * 9}}}\n\\toprule\n{names} \\\\\n\\midrule\n"
    rows = "".join(" & ".join([f"row {i}", "-0.5", *["the same words in every row"] * 6, "-"]) + " \\\\\n"
                   for i in range(90))
    made = paper._table(head + rows + "\\bottomrule\n\\end{tabular}", "x", "C.")
    assert "\\caption{C. In all rows: b -0.5, c the same words" in made and "{longtable}{l}" in made
    wide = rows.replace("the same", "{}").format(*range(540))
    made = paper._table(head + wide + "\\bottomrule\n\\end{tabular}", "x", "C.")
    assert made.count("\\begin{table}[H]") == 3 and made.count("\\caption") == 1
    assert made.count("\\toprule") == 3 and made.count("\\bottomrule") == 1


def test_what_the_main_table_prints_in_bold(home, tmp_path):
    """By hand: at 50 % b is lowest and a differs from it by noise, c is worse in every window."""
    values = {"profile": "tiny", "method": "wanda", "methods": ["wanda", "magnitude"], "sparsity": 0.5,
              "pattern": "unstructured", "targets": ["2:4"], "scale": 1.0, "nsamples": 2, "fast": True,
              "model": "embedded/llama", "corpus": "embedded", "windows": "", "seqlen": 8, "seed": 0}
    (home / "notebooks" / "01_data.ipynb").unlink()
    noise = np.random.default_rng(0).normal(0, 0.3, (2, 64))
    losses = {"wanda": 1 + noise[0], "ria": 1 + noise[0] + 0.01 * noise[1], "mul(W, X)": 2 + noise[0]}
    run = pk.start_run("03_baselines", values)
    rows = [{"method": name, "metric": "perplexity", "sparsity": 0.5, "pattern": "unstructured", "n": 64,
             "setting": "50 %", **Perplexity(nll).row()} for name, nll in losses.items()]
    run.table(pd.DataFrame(rows), "perplexity", "All.", result=True)
    run.save("nll", pd.DataFrame({f"{name}|0.5|unstructured": nll for name, nll in losses.items()}
                                 | {"dense": noise[0]}))
    run.finish()
    paper.write("tiny", tmp_path / "paper")
    text = expanded(tmp_path / "paper")
    check_latex(text)
    ppl = {row["method"]: f"{row['ppl']:.3f}" for row in rows}
    assert f"Wanda & \\textbf{{{ppl['wanda']}}} \\\\" in text
    assert f"RIA & \\textbf{{{ppl['ria']}}} \\\\" in text
    assert f"$W \\cdot X$ & {ppl['mul(W, X)']} \\\\" in text
    assert f"\\scriptsize {rows[0]['low']:.3f} to {rows[0]['high']:.3f}" in text
    assert "Wanda~\\cite{sun2024} & $W \\cdot \\sqrt{X}$ & row & none" in text and "{tab:main}" in text


def test_every_citation_is_in_the_bibliography():
    folder = ROOT / "prunekit" / "report" / "templates"
    entries = (folder / "references.bib").read_text(encoding="utf-8")
    known = re.findall(r"^@\w+\{(\w+),$", entries, re.MULTILINE)
    cited = re.findall(r"\\cite\{(\w+)\}", (folder / "paper.tex.j2").read_text(encoding="utf-8"))
    named = list(paper._CITED.values())
    assert len(known) == len(set(known)) and set(cited + named) <= set(known)
    assert paper._CITED.keys() <= METHODS.keys()


def test_the_same_runs_give_the_same_bytes_and_a_second_call_replaces_the_first(runs, tmp_path):
    def content(folder):
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*")
                if path.is_file()}

    paper.write("tiny", tmp_path / "one")
    first = content(tmp_path / "one")
    paper.write("tiny", tmp_path / "one")
    paper.write("tiny", tmp_path / "two")
    assert content(tmp_path / "one") == first == content(tmp_path / "two")
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two", "project"}
    assert not re.search(rb"CreationDate", first["figures/01-same-name.pdf"])


@pytest.mark.parametrize("spoil", [
    lambda folder: (folder / "notes.txt").write_text("mine"),
    lambda folder: (folder / "main.tex").write_text("edited"),
    lambda folder: (folder / "prunekit.json").unlink(),
    lambda folder: (folder / "prunekit.json").write_text("[]")])
def test_what_it_has_not_written_it_does_not_touch(runs, tmp_path, spoil, capsys):
    folder = tmp_path / "paper"
    paper.write("tiny", folder)
    spoil(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert main(["paper", str(folder), "--profile", "tiny"]) == 2
    assert "give a new folder" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_table_that_was_changed_since_is_not_printed(runs, tmp_path, capsys):
    file = next((runs / "runs/tiny/01_data/tables").glob("*.tex"))
    file.write_text(file.read_text().replace("1.25", "1.35"))
    assert main(["paper", str(tmp_path / "paper"), "--profile", "tiny"]) == 2
    assert "same-name.tex is missing or was changed: `prunekit run tiny 01_data`" in capsys.readouterr().err


def test_without_a_finished_run_there_is_no_paper(home, tmp_path):
    with pytest.raises(pk.UsageError, match="has no finished run"):
        paper.write("tiny", tmp_path / "paper")
    assert not (tmp_path / "paper").exists()


@pytest.mark.parametrize("bad", ["\\begin{a}\\end{b}", "\\maketitle a & b", "\\maketitle 5 $", "{",
                                 "\\maketitle x_1",
                                 "\\maketitle\\begin{tabular}{ll}\na & b & c \\\\\n\\end{tabular}", "…"])
def test_the_check_finds_what_it_is_for(bad):
    with pytest.raises(AssertionError):
        check_latex(bad)


def test_special_characters_are_escaped_outside_formulas_only():
    assert display.latex_text("a_b $a_b$ {c}") == "a\\_b $a_b$ \\{c\\}"
