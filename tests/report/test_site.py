"""Two small notebooks from source to pages: run, fail, resume, render; pages checked by an HTML parser."""
from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup

from prunekit.batch import schedule
from prunekit.cli import main
from prunekit.ledger import study
from prunekit.metric.catalogue import METHODS
from prunekit.report import html, metrics_page, site
from prunekit.workbook import manifest
from prunekit.workbook.project import GRAPH
from tests.pages import check_site, slips
from tests.tiny_project import profile, write_notebook

SETUP = "import prunekit as pk\nrun = pk.start_run({!r}, globals())\nrun.banner"
DATA = [
    ("md",
     "# 01 · Data\n\nWhat does a **window** hold?\n\n| Reads | Writes |\n|---|---|\n| nothing | counts |"),
    ("parameters",
     'profile: str = "tiny"\nrows: int = 3   # rows of the table\npattern: str = "unstructured"\n'),
    ("", SETUP.format("01_data")),
    ("md", ("## 1 Method\n\nThe norm is $x_{t,j}^2$, and with two lines\n\n"
           "$$\\begin{aligned} a &= b \\\\ c &< d \\end{aligned}$$\n\n"
           "A price of `$5` stays. [Next](03_baselines.ipynb), [gone](09_none.ipynb), [paper](https://arxiv.org/abs/2406.02924)")),
    ("", ("import sys\nimport pandas as pd\n"
         "sys.stderr.write('  50%|##  | 1/2 [00:00<00:00, 9.00it' '/s]\\n\\x1b[A')\n"
         "counts = pd.DataFrame({'row': range(rows), 'share': [i / 4 for i in range(rows)]})\n"
         "frame = run.save('counts', counts)\nframe")),
    ("", "run.table(frame, 'counts', 'Counts by row.', headline=True)"),
    ("", ("import matplotlib.pyplot as plt\nfig, ax = plt.subplots(figsize=(2, 2))\nax.plot(frame['row'])\n"
         "run.figure(fig, 'counts', 'Rows & $G$ grow.', headline=True)")),
    ("", ("from IPython.display import Image, Math, display\ndisplay(Math(r'\\sqrt{X}'))\n"
         "fig, ax = plt.subplots(figsize=(1, 1))")),
    ("solution", "1 + 1"),
    ("hide", "'not on the page'"),
    ("", "run.takeaway(f'There are **{rows}** rows.')"),
    ("", "run.finish()"),
]
BASELINES = [
    ("md", "# 03 · Baselines\n\nWhich is best?"),
    ("parameters", 'profile: str = "tiny"\nfail: str = ""\nwait: int = 0\n'),
    ("", SETUP.format("03_baselines")),
    ("", "import time\ntime.sleep(wait)\nif fail:\n    raise pk.UsageError(fail)"),
    ("", "run.save('total', {'total': float(run.load('01_data', 'counts')['share'].sum())})\nrun.finish()"),
]


@pytest.fixture
def project(home):
    write_notebook(home / "notebooks" / "01_data.ipynb", DATA)
    write_notebook(home / "notebooks" / "03_baselines.ipynb", BASELINES)
    profile(home, "tiny", common="rows: 5\n")
    return home


def outcomes(**options):
    return {record.topic: (record.outcome, record.reason)
            for record in schedule.run_profile("tiny", progress=False, **options)}


def test_two_runs_of_one_profile_do_not_meet(project, capsys):
    with schedule.only_one(project / "runs" / "tiny", "prunekit run tiny"):
        assert main(["run", "tiny"]) == 2
        sentence = f"`prunekit run tiny` is under way already, in process {os.getpid()}: wait for it, or"
        assert sentence in capsys.readouterr().err
    assert not (project / "runs/tiny/01_data").exists()
    assert outcomes() == {"01_data": ("done", ""), "03_baselines": ("done", "")}


MEET = """import os, pathlib, time
mine, other = run.folder.parent / "{0}", run.folder.parent / "{1}"
mine.touch()
ends = time.monotonic() + 60
while not other.exists():
    assert time.monotonic() < ends, "alone"
    time.sleep(0.05)
run.save("threads", {{"omp": os.environ["OMP_NUM_THREADS"]}})
run.finish()"""


def test_notebooks_side_by_side(project, monkeypatch, capsys):
    """Two that both read from the first, and wait for each other; a third cannot start before its own."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for topic, others in {"03_baselines": ("a", "b"), "04_gp_search": ("b", "a")}.items():
        write_notebook(project / "notebooks" / f"{topic}.ipynb", [
            ("md", f"# {topic}"), ("parameters", 'profile: str = "tiny"\nrows: int = 1\n'),
            ("", SETUP.format(topic)),
            ("", MEET.format(*others))])
    write_notebook(project / "notebooks" / "05_tree_analysis.ipynb", [
        ("md", "# 05"), ("parameters", 'profile: str = "tiny"\n'), ("", SETUP.format("05_tree_analysis")),
        ("", "assert run.load('04_gp_search', 'threads')\nrun.finish()")])
    assert main(["run", "tiny", "--workers", "2"]) == 0
    ahead, *said = capsys.readouterr().out.splitlines()
    assert ahead.startswith("to run: ")
    assert said[1].startswith("the report so far: ") and said[-1].startswith("report: ")
    told = [line.split()[:2] for line in said if not line.startswith(("the report", "report"))]
    assert sorted(told) == [[topic, "done"]
                            for topic in ("01_data", "03_baselines", "04_gp_search", "05_tree_analysis")]
    assert told[0] == ["01_data", "done"]
    assert told.index(["04_gp_search", "done"]) < told.index(["05_tree_analysis", "done"])
    threads = json.loads((project / "runs/tiny/03_baselines/threads.json").read_text())["omp"]
    assert threads == str(max(1, os.cpu_count() // 2))
    again = [(record.topic, record.outcome)
             for record in schedule.run_profile("tiny", progress=False, workers=2)]
    assert sorted(again) == [(topic, "fresh") for topic, _ in sorted(told)]
    assert main(["run", "tiny", "--workers", "0"]) == 2
    assert "--workers 0: give 1 or more" in capsys.readouterr().err


def test_a_worker_that_dies_is_said(project):
    write_notebook(project / "notebooks" / "02_gradients.ipynb", [
        ("md", "# 02"), ("parameters", 'profile: str = "tiny"\n'), ("", SETUP.format("02_gradients")),
        ("", "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)")])
    found = {record.topic: (record.outcome, record.reason)
             for record in schedule.run_profile("tiny", progress=False, workers=2)}
    assert found["01_data"] == ("done", "")
    assert found["02_gradients"] == (
        "failed", "its worker process died; start this again, it goes on from here")
    assert found["03_baselines"][0] == "skipped"


def test_from_notebooks_to_pages(project, tmp_path, monkeypatch):
    monkeypatch.setattr(site, "PAGES", tmp_path)
    (tmp_path / "10-words.md").write_text(
        "# Some *words*\n\nThe $x_j^2$ of [01](01_data.ipynb#1-Method), [below](10-words.md#Rank-class), "
        "[gone](20-gone.md).\n\n## Rank class\n\nText.")
    assert outcomes() == {"01_data": ("done", ""), "03_baselines": ("done", "")}
    index = site.render("tiny")
    pages = check_site(index.parent)
    assert set(pages) == {"index.html", "01_data.html", "03_baselines.html", "words.html", "figures.html",
                          "catalogue.html",
                          "claims.html", "run-01_data.html", "run-03_baselines.html"}
    words = pages["words.html"]
    assert {"01_data.html#1-Method", "words.html#Rank-class"} <= set(words.links) and "gone" in words.text
    assert "math" in words.tags
    assert all("words.html" in page.links and "Some words" in page.text for page in pages.values())
    data, front = pages["01_data.html"], pages["index.html"]
    assert "output_stderr" not in data.path.read_text()
    assert "not on the page" not in data.text and "it/s" not in data.text and "$x" not in data.text
    # Two in the text, the caption's, the displayed one.
    assert "$5" in data.text and data.tags.count("math") == 4
    assert "mtable" in data.tags  # aligned lines
    assert "3 parameters, 1 changed by the profile" in data.text and "injected" not in data.text
    assert "03_baselines.html" in data.links and not any("09_none" in link for link in data.links)
    assert "Rows & $G$ grow." in data.alts and "figures/01_data-counts.svg" in data.sources
    assert "What does a window hold?" in front.text and "There are 5 rows." in front.text
    for page in (front, pages["figures.html"]):
        assert {"figures/01_data-counts.svg", "figures/01_data-counts.pdf", "tables/01_data-counts.csv",
                "tables/01_data-counts.tex", "run-01_data.html"} <= set(page.links)
    run = pages["run-03_baselines.html"]
    made = manifest.read("tiny", "01_data")
    assert "run-01_data.html" in run.links and made["artifacts"]["counts"]["sha256"][:16] in run.text
    assert made["id"] in pages["run-01_data.html"].text and made["id"] in front.text and "fresh" in front.text
    # The log, without papermill's own lines.
    assert "prunekit 0" in run.text and "Executing Cell" not in run.text


def test_links_of_the_documentation_work_in_the_report_as_in_the_repository(home):
    """Every link to a page, a notebook or the README is one to its page; the README's is the front page."""
    docs = Path(__file__).resolve().parents[2] / "docs"
    shutil.copytree(docs, home / "docs")
    for topic in GRAPH:
        source = write_notebook(home / "notebooks" / f"{topic}.ipynb", [
            ("md", "# 01 · One"), ("parameters", 'profile: str = "tiny"')])
        attempt = home / "runs" / "tiny" / f"{topic}.attempt"
        attempt.mkdir(parents=True)
        shutil.copy(source, attempt / "failed.ipynb")
    pages = check_site(site.render("tiny").parent)
    linked = 0
    for path in docs.glob("*.md"):
        text = path.read_text(encoding="utf-8")
        stems = re.findall(r"\]\((?:[\w./-]*/)?(?:\d+-)?([\w-]+)\.(?:md|ipynb)\)", text)
        shown = [stem.replace("README", "index") + ".html" for stem in stems if stem != "CONTRIBUTING"]
        page = BeautifulSoup(pages[f"{path.stem}.html"].path.read_text(encoding="utf-8"), "html.parser")
        assert set(shown) <= {link["href"] for link in page.select("main a")}, path.name
        assert all(f"{path.stem}.html" in pages[name].links for name in ("index.html", "01_data.html"))
        linked += len(shown)
    assert linked > 15


def test_what_is_fresh_is_not_run_again_and_a_failure_keeps_its_trace(project):
    assert outcomes(overrides={"fail": "It was told to."}) == {
        "01_data": ("done", ""), "03_baselines": ("failed", "It was told to.")}
    folder = project / "runs" / "tiny" / "03_baselines.attempt"
    assert (folder / "reason.txt").read_text() == "It was told to.\n"
    assert "It was told to." in (folder / "log.txt").read_text()
    shown = "".join(output.get("traceback", [""])[0]
                    for cell in nbformat.read(folder / "failed.ipynb", 4).cells
                    for output in cell.get("outputs", []) if output.output_type == "error")
    assert shown == "UsageError: It was told to." and not (folder / "executed.ipynb").exists()
    assert schedule.status("tiny")["03_baselines"].word == "failed"
    pages = check_site(site.render("tiny").parent)
    assert "It was told to." in pages["index.html"].text
    assert "This run is failed" in pages["03_baselines.html"].text
    assert outcomes() == {"01_data": ("fresh", ""), "03_baselines": ("done", "")}
    assert outcomes(topics=["03_baselines"], force=True) == {
        "01_data": ("fresh", ""), "03_baselines": ("done", "")}
    assert not folder.exists() and (folder.with_name("03_baselines") / "executed.ipynb").exists()


def test_a_notebook_that_does_not_finish_is_a_failure_and_skips_its_readers(project):
    write_notebook(project / "notebooks" / "01_data.ipynb", DATA[:-1])
    assert outcomes() == {"01_data": ("failed", "it ended without run.finish()"),
                          "03_baselines": ("skipped", "it reads from 01_data, which did not finish")}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_batch_leaves_nothing_that_looks_finished_and_resumes(project, workers):
    command = [sys.executable, "-m", "prunekit", "run", "tiny", "--set", "wait=60", "--workers", str(workers)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = project / "runs" / "tiny" / "03_baselines.attempt"
    while not (folder / "running.json").exists():  # the second notebook has started, and waits
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert schedule.status("tiny")["01_data"].fresh
    assert schedule.status("tiny")["03_baselines"].word in ("running", "interrupted")
    assert not {"manifest.json", "executed.ipynb"} & {path.name for path in folder.iterdir()}
    assert outcomes(workers=workers) == {"01_data": ("fresh", ""), "03_baselines": ("done", "")}


def test_a_parameter_of_one_notebook_marks_its_readers_as_well(project):
    outcomes()
    assert all(state.fresh for state in schedule.status("tiny").values())
    assert schedule.status("tiny", {"rows": "6"}) == {
        "01_data": manifest.State("stale", "rows was 5, is 6"),
        "03_baselines": manifest.State("stale", "01_data is stale (rows was 5, is 6)")}
    assert schedule.status("tiny", {"wait": "1"}) == {
        "01_data": manifest.State("fresh"), "03_baselines": manifest.State("stale", "wait was 0, is 1")}


def test_a_run_is_judged_from_any_folder_and_its_lost_files_are_left_out(project, monkeypatch, capsys):
    folder = project.parent / "a"
    folder.mkdir()
    (folder / "my.txt").write_text("A text.")
    notebook = project / "notebooks/01_data.ipynb"
    notebook.write_text(notebook.read_text().replace(
        '# rows of the table', '# rows\\ntest_corpora: list[str] = [\\"\\"]'))
    monkeypatch.chdir(folder)
    assert {outcome for outcome, _ in outcomes(overrides={"test_corpora": "my.txt"}).values()} == {"done"}
    monkeypatch.chdir(project)
    assert all(state.fresh for state in schedule.status("tiny").values())
    file = next((project / "runs/tiny/01_data").rglob("*.tex"))
    held = file.read_bytes()
    file.unlink()
    assert site.render("tiny").is_file()
    file.write_bytes(held)
    (folder / "my.txt").write_text("Another text.")
    reason = f"the test_corpora {folder / 'my.txt'} changed"
    assert schedule.status("tiny")["01_data"] == manifest.State("stale", reason)
    (folder / "my.txt").unlink()
    assert main(["status", "tiny"]) == 2
    assert main(["status"]) == 0
    assert "all               unknown      --set test_corpora=my.txt" in capsys.readouterr().out
    (project / "runs/tiny/01_data/manifest.json").write_text("[" * 100_000)
    assert manifest.read("tiny", "01_data") is None


@pytest.mark.parametrize(("text", "left"), [
    ("  50%|##  | 1/2 [00:00<00:00, 9.00it/s]\r", ""), ("\r      \r\x1b[A\n", ""),
    ("careful\n  9%|# |\r", "careful"),
    ("/tmp/a.py:2: FutureWarning: soon gone\n  frame.old()\nkept", "kept"),
    ("/tmp/a.py:2: UserWarning: 3 % are zero.\n  pk.prune()\n", "3 % are zero.")])
def test_progress_leaves_nothing_behind(text, left):
    output = nbformat.v4.new_output("stream", name="stderr", text=text)
    assert site.worth_showing(output) == bool(left)
    assert output.text == left


def test_a_bar_on_stdout_leaves_nothing_behind_and_words_stay():
    output = nbformat.v4.new_output("stream", name="stdout", text=" 50%|##  | 1/2 [00:00<00:00]\rdone\n")
    assert site.worth_showing(output) and output.text == "done"
    untouched = nbformat.v4.new_output("stream", name="stdout", text="a\n\n b\n")
    assert site.worth_showing(untouched) and untouched.text == "a\n\n b\n"
    blank = nbformat.v4.new_output("stream", name="stdout", text="\r     \r\n")
    assert not site.worth_showing(blank)  # all that is left of a bar


def table(rows):
    return "<table><tbody>" + "".join(rows) + "</tbody></table>"


def test_a_long_table_says_how_many_rows_it_has_and_short_words_stay_whole():
    rows = [f"<tr><td>pruner-zero</td><td>{i}</td><td>{'words ' * 9}70%</td></tr>" for i in range(21)]
    long, short = (BeautifulSoup(html.finish(html.parsed(table(part))), "html.parser")
                   for part in (rows, rows[:20]))
    assert long.select_one(".scroll.long + details.rows summary").text == "all 21 rows"
    assert not short.select(".long, .rows")
    for read in ("section class=prose", "details"):  # what is read as text, or was opened already
        assert "long" not in html.finish(html.parsed(f"<{read}>{table(rows)}</{read.split()[0]}>"))
    assert [cell["class"] for cell in short.tr.find_all("td")] == [["short"], ["num"], ["text"]]
    assert "70\N{NO-BREAK SPACE}%" in short.text


def test_slips_are_noticed(tmp_path):
    page = tmp_path / "page.html"
    page.write_text("<main><h2>All</h2><h3>Part</h3><h2>Empty</h2><details class='code'>x = 1</details>"
                    "<h2>Last</h2><p>70% on 1 threads</p><table><td class='num'>6144</td></table>"
                    "<pre class='stderr'>a.py:1: FutureWarning: b</pre></main>")
    assert [slip.partition(":")[0] for slip in slips(page)] == [
        "library noise", "nothing below", "nothing below", "no space before %", "one of many",
        "no comma in a large number"]
    page.write_text("<main><h2>Part</h2><h3>Inner</h3><p>70 % on 1 thread in 2024, 6,144 tokens: 0.12345</p>"
                    "<h2>More</h2><details><summary>2 lines</summary><pre>1%</pre></details></main>")
    assert slips(page) == []


def test_a_takeaway_on_the_front_page_shows_its_formulas():
    shown = html._environment().filters["takeaway"]("**Half** of $\\sqrt{G}$ is `<0`")
    assert "<strong>Half</strong> of <math" in shown and "<msqrt>" in shown and "<code>&lt;0</code>" in shown


def test_the_front_page_leads_with_what_was_found_on_real_models(project, monkeypatch):
    def page(name="index"):
        text = site.render("tiny").with_stem(name).read_text(encoding="utf-8")
        return BeautifulSoup(text, "html.parser")

    def front():
        return page().select(".answer")

    (only,) = front()
    assert page().select_one("#found").text == "Recorded on a real model: SmolLM2-135M-Instruct (Q4_1)"
    words, glossary = only.select("a.term"), page("glossary")
    assert {"2:4", "perplexity", "Wanda", "Holm"} <= {word.text for word in words}
    assert all(glossary.find(id=word["href"].removeprefix("glossary.html#")) for word in words)
    assert only.p.text.startswith("On SmolLM2-135M-Instruct (Q4_1), 3 searches of 200 evaluations each, at")
    assert only.p.text.endswith("60\xa0% on WikiText-2 and C4, and 2:4 on WikiText-2 and PTB.")
    assert [cell.text for cell in only.select("tr")[1].select("td")] == [
        "60 %", "WikiText-2", "142.5", "137.3", "0.96 (0.91 to 1.03)"]
    assert "test windows of each text of 2" in only.select_one(".read").text and not only.figure
    monkeypatch.setattr(study, "leading", lambda: ["study", "study-smollm2"])  # as if both were of real ones
    assert [each.p.text.partition(",")[0] for each in front()] == [
        "On embedded/llama", "On SmolLM2-135M-Instruct (Q4_1)"]
    monkeypatch.setattr(study, "leading", lambda: ["study"])  # while there is none of a real model
    assert page().select_one("#found").text == "Recorded on the embedded model, for teaching: embedded/llama"


def test_an_answer_of_the_front_page_links_its_rows_and_shows_their_figure():
    table = study.found("study")[0].table
    artifact = {"kind": "figure", "name": table, "caption": "a", "files": {}}
    made = {"artifacts": {f"tables/{table}": {}, f"figures/{table}": {}}}
    entry = {"topic": "04_gp_search", "made": made, "artifacts": [artifact]}
    answer = site._answer("study", [{"topic": "03_baselines", "made": {}, "artifacts": []}, entry])
    assert answer["rows"] == f"04_gp_search.html#table-{table}" and answer["figure"] is artifact
    assert answer["takeaway"].endswith(f" ({answer['read']}.)")


def test_the_metrics_page_says_what_is_proven_equal_and_no_more(project):
    metric = metrics_page.body([])
    cards = {section["id"]: section.parent
             for section in BeautifulSoup(metric, "html.parser").select("section h2")}
    equal = {name: {link.text for link in card.find("th", string="same masks as").parent.select("a")}
             for name, card in cards.items()}
    assert set(cards) == set(METHODS)
    # (W²·X)^½ = W·X^½, (W²·G²)^½ = W·G.
    assert equal["wanda"] == {"obd-layer"} and equal["fisher"] == {"grad-weight"}
    # Other groups, another update.
    assert not any(equal[name] for name in ("wanda-variant", "magnitude", "sparsegpt", "admm"))
    drawn = cards["ria"].find("svg")
    assert [text.text for text in drawn.select("text")] == list(METHODS["ria"].tree)
    assert len(drawn.select("path")) == METHODS["ria"].tree.size - 1


def test_the_metrics_page_groups_and_finds_what_ran_by_proof_not_by_name(tmp_path):
    rows = [("sparsegpt", "w²/U_ii²", "layer", "obs-iter", 3.0),
            ("best without X", "mul(W, sqrt(G))", "row", "", 4.0),
            ("wanda", "mul(W, sqrt(X))", "row", "", 5.0)]
    frame = pd.DataFrame(rows, columns=["method", "tree", "group", "update", "ppl"])
    frame = frame.assign(sparsity=0.5, pattern="unstructured", low=frame["ppl"], high=frame["ppl"], n=8)
    frame.to_csv(tmp_path / "result.csv", index=False)
    made = {"artifacts": {"tables/result": {"files": {"result.csv": 1}}}}
    page = BeautifulSoup(metrics_page.body([{"topic": "04_gp_search", "made": made, "folder": tmp_path}]),
                         "html.parser")
    ran = {section.h2["id"] for section in page.select("section.metric") if "Not run" not in str(section)}
    # W²·G is W·√G; what Wanda's or the OBD metric's masks are is one; the variant is another.
    assert ran == {"sparsegpt", "w2g", "wanda", "obd-layer"}
    rows = [{link.text for link in row.select("a")} for row in page.select("#classes + p + table tbody tr")]
    assert {"wanda", "obd-layer"} in rows and {"wanda-variant"} in rows and {"pruner-zero-variant"} in rows
    assert not any("admm" in row or "sparsegpt" in row for row in rows)


def test_shares_that_round_alike_are_rows_of_their_own(tmp_path):
    frame = pd.DataFrame({"sparsity": [0.5, 0.504, 0.625], "ppl": [20.0, 21.0, 40.0]}).assign(
        method="wanda", tree="mul(W, sqrt(X))", group="row", update="", pattern="unstructured", low=1,
        high=99, n=8)
    frame.to_csv(tmp_path / "result.csv", index=False)
    made = {"artifacts": {"tables/result": {"files": {"result.csv": 1}}}}
    page = BeautifulSoup(metrics_page.body([{"topic": "04_gp_search", "made": made, "folder": tmp_path}]),
                         "html.parser")
    card = next(section for section in page.select("section.metric") if section.h2["id"] == "wanda")
    cells = [[cell.text for cell in row.select("td")] for row in card.select("table")[-1].select("tbody tr")]
    found = {setting: float(ppl) for setting, ppl, *_ in cells}
    assert found == {"50 %": 20, "50.4 %": 21, "62.5 %": 40}


def test_neighbouring_cells_for_more_are_folded_together():
    cell = nbformat.v4.new_markdown_cell
    tags = [[], ["more"], ["more"], [], ["more"]]
    cells = list(site._folded([cell("### More", metadata={"tags": tag}) for tag in tags]))
    assert [each.metadata.fold["begins"] for each in cells] == [False, True, False, False, True]
    assert [each.metadata.fold["ends"] for each in cells] == [False, False, True, False, True]


@pytest.mark.parametrize(("latex", "shown"), [
    (r"\sqrt{G - \min G}", "<msqrt>"), (r"\unknowncommand{x}", '<code class="latex">'),
    (r"\left( x", '<code class="latex">'),
])
def test_formulas_become_mathml_or_stay_readable(latex, shown):
    assert shown in html.mathml(latex)
