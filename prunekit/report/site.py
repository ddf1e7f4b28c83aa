"""Pages from executed notebooks: an index, a page for each notebook, and those beside them, in a folder that
opens from a file URL.

Nothing is loaded from outside: formulas become MathML when the page is built, styles and script lie beside
the pages. Every Markdown file in `pages/`, and in `docs/` of the project, becomes a page too: its first
heading is its name in the menu, a number in front of the file's name (`10-glossary.md` is glossary.html) its
place there.
"""
from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
from bs4 import BeautifulSoup
from nbconvert.filters import strip_ansi

from prunekit.batch import schedule
from prunekit.files import replacing
from prunekit.ledger import claims, study
from prunekit.report import html, metrics_page
from prunekit.workbook import manifest, params, project

PAGES = Path(__file__).parent / "pages"
_LINK = re.compile(r"(?:[\w./-]*/)?(?:\d+-)?(\w[\w-]*)\.(?:ipynb|md|html)(#.*)?")
_PROGRESS = re.compile(r"\d%\||\dit/s|\ds/it|TqdmWarning|autonotebook")
_NOISE = re.compile(r"(Executing|Ending) Cell \d+-|(Input|Output) Notebook: |Working directory: |"
                    rf"^[\d:]+ <|^[\d:]*\s*$|Unable to parse line|{_PROGRESS.pattern}")
# Where, of what kind, what, and the line of code that follows.
_WARNING = re.compile(r"^\S*:\d+: (?:(?:User|Runtime)Warning: (?P<ours>.*)|\w*Warning: .*)(?:\n  .*)?$",
                      re.MULTILINE)


def render(profile: str) -> Path:
    """Render the runs of a profile to reports/<profile>/ and return the path of its index page."""
    entries = [_entry(profile, topic, state) for topic, state in schedule.status(profile).items()]
    pages = list(_pages(profile, entries))
    names = {"index", *(Path(page.file).stem for page in pages)}
    shared = {"profile": profile, "entries": entries, "pages": pages, "names": names}
    with replacing(project.report_folder(profile)) as folder:
        for part in ("assets", "figures", "tables"):
            (folder / part).mkdir()
        for entry in entries:
            for source, target in entry["copied"].items():
                shutil.copy(source, folder / target)
        for page in pages:
            (folder / page.file).write_text(_page(page, shared), encoding="utf-8")
        (folder / "index.html").write_text(_index(shared), encoding="utf-8")
        claims.table(profile).to_csv(folder / "tables" / "claims.csv", index=False)
        style = (html.TEMPLATES / "style.css").read_text(encoding="utf-8") + html.code_css()
        (folder / "assets" / "style.css").write_text(style, encoding="utf-8")
        shutil.copy(html.TEMPLATES / "page.js", folder / "assets" / "page.js")
    return project.report_folder(profile) / "index.html"


def _entry(profile: str, topic: str, state: manifest.State) -> dict[str, Any]:
    """What the templates need to know about one notebook."""
    made = manifest.read(profile, topic) or {}
    folder = project.run_folder(profile, topic)
    folder = folder if made else project.attempt_folder(folder)
    source = next(filter(Path.exists, (folder / "executed.ipynb", folder / "failed.ipynb")), None)
    heading, question = project.title(topic)
    artifacts, copied = [], {}
    for key, artifact in made.get("artifacts", {}).items():
        if artifact["kind"] in ("figure", "table"):
            targets = {folder / file: file.replace("/", f"/{topic}-") for file in artifact["files"]
                       if (folder / file).is_file()}
            copied |= targets
            named = {file.suffix[1:].upper(): target for file, target in targets.items()}
            artifacts.append({**artifact, "name": key.partition("/")[2], "files": named})
    return {"topic": topic, "number": topic[:2], "title": heading, "question": question, "state": state,
            "made": made, "by_hand": bool(made and not source), "folder": folder, "copied": copied,
            "source": project.notebook(topic) if made and not source else source,
            "rests": {claim["sentence"]: claim["table"] for claim in made.get("claims", ())},
            "artifacts": sorted(artifacts, key=lambda artifact: artifact["kind"]),  # figures first
            "declared": _declared(topic, made), "log": _log(folder / "log.txt")}


def _declared(topic: str, made: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The notebook's parameters as the run had them: name, value, comment, changed (from the default)."""
    declared = params.read_parameters(project.notebook(topic))
    used = made.get("parameters", {name: parameter.default for name, parameter in declared.items()})
    return [{"name": name, "value": used.get(name), "comment": parameter.comment,
             "changed": used.get(name) != parameter.default} for name, parameter in declared.items()]


def _log(path: Path) -> str:
    """What the notebook printed, without papermill's word on every cell, progress bars and displayed HTML."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return "\n".join(line for line in lines if not _NOISE.search(line))


# ---------------------------------------------------------------- pages

class Page(NamedTuple):
    """A page to be: its file, its name, its content as HTML, and its part of the menu ("": none)."""

    file: str
    title: str
    body: str
    menu: str = ""
    entry: Mapping[str, Any] | None = None


def _pages(profile: str, entries: list[Mapping[str, Any]]) -> Iterator[Page]:
    """All pages but the index."""
    for entry in entries:
        if entry["source"]:
            yield Page(f"{entry['topic']}.html", f"{entry['number']} {entry['title']}", _notebook(entry),
                       "Notebooks", entry)
    metrics = metrics_page.body(entries)
    yield Page("catalogue.html", "Metrics", metrics, "Beside them")
    shown = {entry["topic"] for entry in entries if entry["source"]}
    ledger = html.template("claims.html.j2", profile=profile, entries=entries, names=shown,
                           claims=claims.page(profile))
    yield Page("claims.html", "Claims", ledger, "Beside them")
    figures = html.template("figures.html.j2", entries=entries)
    yield Page("figures.html", "Figures and tables", figures, "Beside them")
    for menu, folder in (("Beside them", PAGES), ("Reference", project.root() / "docs")):
        yield from (_markdown_page(path, menu) for path in sorted(folder.glob("*.md")))
    for entry in entries:
        if entry["made"] or entry["log"]:
            body = html.template("run.html.j2", profile=profile, entry=entry)
            yield Page(f"run-{entry['topic']}.html", f"The run of {entry['number']} {entry['title']}", body)


def _markdown_page(path: Path, menu: str) -> Page:
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    text = path.read_text(encoding="utf-8")
    title = re.search(r"^# (.+)$", text, re.MULTILINE)
    stem = re.sub(r"^\d+-", "", path.stem)
    renderer = IPythonRenderer(escape=False, embed_images=True, path=str(path.parent))
    return Page(f"{stem}.html", re.sub(r"[*_`]", "", title[1]) if title else stem,
                f'<section class="prose">{MarkdownWithMath(renderer).render(text)}</section>', menu)


def _page(page: Page, shared: Mapping[str, Any]) -> str:
    """A page and its contents; links to notebooks lead to their pages, links to nowhere become text."""
    soup = html.parsed(page.body)
    if page.entry:
        _link_artifacts(soup, page.entry)
    for link in soup.select("a[href]"):
        match = _LINK.fullmatch(link["href"])
        if match and match[1] in shared["names"]:
            link["href"] = f"{match[1]}.html{match[2] or ''}"
        elif link["href"] == "../README.md":  # whose place is taken by the front page
            link["href"] = "index.html"
        elif not link["href"].startswith(("http://", "https://", "#", "figures/", "tables/")):
            link.unwrap()
    if page.file == "glossary.html":
        for row in soup.select("tbody tr"):
            row["id"] = row.td.get_text().partition(",")[0].strip("$ ").replace(" ", "-")
    body = html.finish(soup)
    headings = [(head.name, head["id"], head.get_text().rstrip("¶"))
                for head in soup.select("h2[id], h3[id]")]
    return html.template("page.html.j2", page=page, file=page.file, body=body, headings=headings, **shared)


def _link_artifacts(soup: BeautifulSoup, entry: Mapping[str, Any]) -> None:
    """Saved figures are shown from their SVG file; figures and tables get their downloads."""
    known = {(artifact["kind"], artifact["name"]): artifact for artifact in entry["artifacts"]}
    for block in soup.select("figure[data-file]"):
        artifact = known.get(("figure" if block.img else "table", Path(block["data-file"]).stem))
        if artifact and block.img:
            block.img["src"] = artifact["files"]["SVG"]
            block.img.wrap(soup.new_tag("a", href=artifact["files"]["SVG"]))  # to look at it from near
        if artifact:
            links = html.template("downloads.html.j2", artifact=artifact, topic=entry["topic"])
            block.append(html.parsed(links))


def _notebook(entry: Mapping[str, Any]) -> str:
    from nbconvert import HTMLExporter

    notebook = nbformat.read(entry["source"], as_version=4)
    notebook.cells = list(_folded(list(_shown(notebook.cells, entry))))
    exporter = HTMLExporter(template_name="cells", extra_template_basedirs=[str(html.TEMPLATES)])
    exporter.log.setLevel("ERROR")  # it speaks of missing alternative texts, which come with html.finish
    return exporter.from_notebook_node(notebook)[0]


def _shown(cells: list[Any], entry: Mapping[str, Any]) -> Iterator[Any]:
    """The cells that a page shows: parameters as a table, no progress bars, nothing tagged `hide`."""
    for cell in cells:
        tags = cell.metadata.get("tags", [])
        if "parameters" in tags:
            table = html.template("parameters.html.j2", declared=entry["declared"])
            yield nbformat.v4.new_markdown_cell(re.sub(r"\n\s*\n", "\n", table))
        elif not {"hide", "injected-parameters", "papermill-error-cell-tag"} & set(tags):
            if cell.cell_type == "code":
                cell.outputs = [output for output in cell.outputs if worth_showing(output)]
            yield cell


def _folded(cells: list[Any]) -> Iterator[Any]:
    """Neighbouring cells tagged `more` know the first and the last of them, for the template to fold."""
    more = ["more" in cell.metadata.get("tags", []) for cell in cells]
    for cell, before, here, after in zip(cells, [False, *more], more, [*more[1:], False]):
        cell.metadata.fold = {"begins": here and not before, "ends": here and not after}
        yield cell


def worth_showing(output: Any) -> bool:
    """Is something left without progress bars and the warnings of libraries? Of ours the sentence is."""
    if output.output_type == "stream" and (output.name == "stderr" or _PROGRESS.search(output.text)):
        parts = map(strip_ansi, re.split(r"(?:[\r\n]|\x1b\[A)+", output.text))
        lines = _WARNING.sub(lambda found: found["ours"] or "", "\n".join(parts)).split("\n")
        output.text = "\n".join(line for line in lines if line.strip() and not _PROGRESS.search(line))
    if output.output_type == "stream":
        return bool(output.text.strip())  # a bar that is taken away leaves blanks
    return "application/vnd.jupyter.widget-view+json" not in output.get("data", {})


def _answer(name: str, entries: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What a study found: sentences, numbers, how they were measured; where the rows are, and their figure,
    if saved; and the takeaway that says the same."""
    claim, read = study.found(name)
    entry = next((entry for entry in entries
                  if f"tables/{claim.table}" in entry["made"].get("artifacts", {})), None)
    figure = entry and next((artifact for artifact in entry["artifacts"]
                             if (artifact["kind"], artifact["name"]) == ("figure", "recorded-paired")), None)
    numbers = study.beside(name).rename(columns=study.BESIDE)
    return {"said": claim.sentence, "numbers": numbers, "read": read, "figure": figure,
            "takeaway": study.answer(name).sentence,
            "rows": entry and f"{entry['topic']}.html#table-{claim.table}"}


def _index(shared: Mapping[str, Any]) -> str:
    """The front page. Its pictures and table are the headlines of the first notebook that offers both;
    a headline figure of each other stands beside the first sentence of what came out of it."""
    def headlines(entry: Mapping[str, Any], kind: str) -> list[Any]:
        return [a for a in entry["artifacts"] if a["kind"] == kind and a.get("headline")]

    entries = shared["entries"]
    heads = {entry["topic"]: (headlines(entry, "figure"), headlines(entry, "table")) for entry in entries}
    lead = next((entry for entry in entries if all(heads[entry["topic"]])), None)
    table = html.finish(html.parsed(heads[lead["topic"]][1][0]["html"])) if lead else ""
    made = next((entry["made"] for entry in reversed(entries) if entry["made"]), {})
    answers = [_answer(name, entries) for name in study.leading()]
    return html.template("index.html.j2", file="index.html", lead=lead, heads=heads, table_html=table,
                         made=made, answers=answers, recorded_on=study.models(), **shared)
