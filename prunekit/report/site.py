"""Pages from executed notebooks: an index, a page for each notebook, and those beside them, in a folder that
opens from a file URL.

Nothing is loaded from outside: formulas become MathML when the page is built, styles and script lie beside
the pages. Every Markdown file in `pages/`, and in `docs/` of the project, becomes a page too: its first
heading is its name in the menu, and a number in front of the file's name (`10-glossary.md` is glossary.html)
its place there.
"""
from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
from bs4 import BeautifulSoup
from nbconvert.filters import strip_ansi

from prunekit.batch import schedule
from prunekit.files import replacing
from prunekit.ledger import claims
from prunekit.report import html, metrics_page
from prunekit.workbook import manifest, params, project

PAGES = Path(__file__).parent / "pages"
_LINK = re.compile(r"(?:[\w./-]*/)?(?:\d+-)?(\w[\w-]*)\.(?:ipynb|md|html)(#.*)?")
_PROGRESS = re.compile(r"\d%\||\dit/s|\ds/it|TqdmWarning|autonotebook")
_NOISE = re.compile(r"(Executing|Ending) Cell \d+-|(Input|Output) Notebook: |Working directory: |"
                    rf"^[\d:]+ <|^[\d:]*\s*$|Unable to parse line|{_PROGRESS.pattern}")


def render(profile: str) -> Path:
    """Render the runs of a profile to reports/<profile>/ and return the path of its index page."""
    entries = [_entry(profile, topic, state) for topic, state in schedule.status(profile).items()]
    pages = [page for page in _pages(profile, entries) if page.body]
    names = {"index", *(Path(page.file).stem for page in pages)}
    shared = {"profile": profile, "entries": entries, "pages": pages, "names": names}
    with replacing(project.report_folder(profile)) as folder:
        for part in ("assets", "figures", "tables"):
            (folder / part).mkdir()
        for entry in entries:
            _copy_artifacts(folder, entry)
        for page in pages:
            _write_page(folder / page.file, page, shared)
        (folder / "index.html").write_text(_index_page(shared), encoding="utf-8")
        claims.table(profile).to_csv(folder / "tables" / "claims.csv", index=False)
        (folder / "assets" / "style.css").write_text((html.TEMPLATES / "style.css").read_text() + html.code_css(), encoding="utf-8")
        shutil.copy(html.TEMPLATES / "page.js", folder / "assets" / "page.js")
    return project.report_folder(profile) / "index.html"


def _entry(profile: str, topic: str, state: manifest.State) -> dict[str, Any]:
    """What the templates need to know about one notebook."""
    made = manifest.read(profile, topic) or {}
    folder = project.run_folder(profile, topic)
    folder = folder if made else project.attempt_folder(folder)
    source = next((folder / name for name in ("executed.ipynb", "failed.ipynb") if (folder / name).exists()), None)
    by_hand = bool(made and not source)
    heading, question = project.title(topic)
    shown_files = sorted((item for item in made.get("artifacts", {}).items() if item[1]["kind"] in ("figure", "table")),
                         key=lambda item: item[1]["kind"])  # figures first
    artifacts = [{"name": name.partition("/")[2], **artifact, "files": {
        Path(file).suffix[1:].upper(): f"{Path(file).parent}/{topic}-{Path(file).name}" for file in artifact["files"]}}
        for name, artifact in shown_files]
    return {"topic": topic, "number": topic[:2], "title": heading, "question": question, "state": state, "made": made,
            "source": project.notebook(topic) if by_hand else source, "by_hand": by_hand,
            "artifacts": artifacts, "folder": folder, "log": _log(folder / "log.txt")}


def _log(path: Path) -> str:
    """What the notebook printed, without papermill's word on every cell, progress bars and displayed HTML."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return "\n".join(line for line in lines if not _NOISE.search(line))


def _copy_artifacts(folder: Path, entry: Mapping[str, Any]) -> None:
    for artifact in entry["artifacts"]:
        for target in artifact["files"].values():
            parent, _, name = target.partition("/")
            shutil.copy(entry["folder"] / parent / name.removeprefix(f"{entry['topic']}-"), folder / target)


# ---------------------------------------------------------------- pages

class Page(NamedTuple):
    """A page to be: its file, its name, its content as HTML, and the part of the menu that it stands in ("":
    none)."""

    file: str
    title: str
    body: str
    menu: str = ""
    entry: Mapping[str, Any] | None = None


def _pages(profile: str, entries: list[Mapping[str, Any]]) -> list[Page]:
    """All pages but the index; those without content are left out."""
    notebooks = [Page(f"{entry['topic']}.html", f"{entry['number']} {entry['title']}", _notebook_body(entry), "Notebooks", entry)
                 for entry in entries if entry["source"]]
    made = [Page(f"run-{entry['topic']}.html", f"The run of {entry['number']} {entry['title']}",
                 html.template("run.html.j2", profile=profile, entry=entry, declared=_declared(entry)))
            for entry in entries if entry["made"] or entry["log"]]
    ledger = html.template("claims.html.j2", profile=profile, entries=entries, claims=claims.page(profile))
    figures = html.template("figures.html.j2", entries=entries)
    return [*notebooks,
            Page("catalogue.html", "Metrics", metrics_page.body(profile, entries), "Beside them"),
            Page("claims.html", "Claims", ledger, "Beside them"),
            Page("figures.html", "Figures and tables", figures, "Beside them"),
            *(_markdown_page(path, "Beside them") for path in sorted(PAGES.glob("*.md"))),
            *(_markdown_page(path, "Reference") for path in sorted((project.root() / "docs").glob("*.md"))),
            *made]


def _markdown_page(path: Path, menu: str) -> Page:
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    text = path.read_text(encoding="utf-8")
    title = re.search(r"^# (.+)$", text, re.MULTILINE)
    stem = re.sub(r"^\d+-", "", path.stem)
    renderer = IPythonRenderer(escape=False, embed_images=True, path=str(path.parent))
    return Page(f"{stem}.html", re.sub(r"[*_`]", "", title[1]) if title else stem,
                f'<section class="prose">{MarkdownWithMath(renderer).render(text)}</section>', menu)


def _write_page(path: Path, page: Page, shared: Mapping[str, Any]) -> None:
    """A page with its table of contents; links to notebooks lead to their pages, those to what is not there
    become text."""
    soup = BeautifulSoup(page.body, "html.parser")
    for link in soup.select("a[href]"):
        match = _LINK.fullmatch(link["href"])
        if match and match[1] in shared["names"]:
            link["href"] = f"{match[1]}.html{match[2] or ''}"
        elif link["href"] == "../README.md":  # whose place is taken by the front page
            link["href"] = "index.html"
        elif not link["href"].startswith(("http://", "https://", "#", "figures/", "tables/")):
            link.unwrap()
    content = html.finish(soup)
    headings = [(h.name, h["id"], h.get_text().rstrip("¶")) for h in soup.find_all(["h2", "h3"]) if h.get("id")]
    path.write_text(html.template("page.html.j2", page=page, file=path.name, body=content, headings=headings, **shared),
                    encoding="utf-8")


def _notebook_body(entry: Mapping[str, Any]) -> str:
    from nbconvert import HTMLExporter

    notebook = nbformat.read(entry["source"], as_version=4)
    notebook.cells = list(_prepared(notebook.cells, entry))
    exporter = HTMLExporter(template_name="cells", extra_template_basedirs=[str(html.TEMPLATES)])
    exporter.log.setLevel("ERROR")  # it speaks of missing alternative texts, which are added below
    body, _ = exporter.from_notebook_node(notebook)
    soup = BeautifulSoup(body, "html.parser")
    _link_artifacts(soup, entry)
    return str(soup)


def _prepared(cells: list[Any], entry: Mapping[str, Any]) -> Iterator[Any]:
    """The cells that a page shows: parameters as a table, no progress bars, nothing tagged `hide`."""
    for cell in cells:
        tags = cell.metadata.get("tags", [])
        if "parameters" in tags:
            yield nbformat.v4.new_markdown_cell(_parameter_table(entry))
        elif not {"hide", "injected-parameters", "papermill-error-cell-tag"} & set(tags):
            if cell.cell_type == "code":
                cell.outputs = [output for output in cell.outputs if _worth_showing(output)]
            yield cell


def _worth_showing(output: Any) -> bool:
    if output.output_type == "stream" and output.name == "stderr":
        parts = map(strip_ansi, re.split(r"(?:[\r\n]|\x1b\[A)+", output.text))
        lines = [line for line in parts if line.strip() and not _PROGRESS.search(line)]
        output.text = "\n".join(lines)
        return bool(output.text)
    return "application/vnd.jupyter.widget-view+json" not in output.get("data", {})


def _declared(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The notebook's parameters with their values in the run: name, value, comment, changed (from the
    default)."""
    declared = params.read_parameters(project.notebook(entry["topic"]))
    used = entry["made"].get("parameters", {name: p.default for name, p in declared.items()})
    return [{"name": name, "value": used.get(name), "comment": p.comment, "changed": used.get(name) != p.default}
            for name, p in declared.items()]


def _parameter_table(entry: Mapping[str, Any]) -> str:
    return "\n".join(line for line in html.template("parameters.html.j2", declared=_declared(entry)).splitlines() if line.strip())


def _index_page(shared: Mapping[str, Any]) -> str:
    """The front page. Its picture and table are the headlines of the first notebook that offers both; the
    other notebooks' headline figures stand beside what came out of them."""
    def headline(entry: Mapping[str, Any], kind: str) -> Any:
        return next((a for a in entry["artifacts"] if a["kind"] == kind and a.get("headline")), None)

    heads = {entry["topic"]: (headline(entry, "figure"), headline(entry, "table")) for entry in shared["entries"]}
    lead = next((entry for entry in shared["entries"] if all(heads[entry["topic"]])), None)
    table = html.finish(BeautifulSoup(heads[lead["topic"]][1]["html"], "html.parser")) if lead else ""
    made = next((entry["made"] for entry in reversed(shared["entries"]) if entry["made"]), {})
    return html.template("index.html.j2", lead=lead, heads=heads, table_html=table, made=made, file="index.html", **shared)


def _link_artifacts(soup: BeautifulSoup, entry: Mapping[str, Any]) -> None:
    """Saved figures are shown from their SVG file; figures and tables get their downloads."""
    known = {(artifact["kind"], artifact["name"]): artifact for artifact in entry["artifacts"]}
    for block in soup.select("figure[data-file]"):
        artifact = known.get(("figure" if block.img else "table", Path(block["data-file"]).stem))
        if artifact is None:
            continue
        if block.img:
            block.img["src"] = artifact["files"]["SVG"]
        block.append(BeautifulSoup(html.template("downloads.html.j2", artifact=artifact, topic=entry["topic"]), "html.parser"))
