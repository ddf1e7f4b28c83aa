"""Pages from executed notebooks: an index, a page for each notebook, and those beside them, in a folder that opens from a
file URL.

Nothing is loaded from outside: formulas become MathML when the page is built, styles and script lie beside the pages.
Every Markdown file in `pages/` becomes a page too: its first heading is its name in the menu, and a number in front of the
file's name (`10-glossary.md` is glossary.html) its place there.
"""
from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import nbformat
from bs4 import BeautifulSoup
from jinja2 import Environment, FileSystemLoader

from prunekit.workbook import batch, manifest, markup, params, project, runs, shown

TEMPLATES = Path(__file__).parent / "templates"
PAGES = Path(__file__).parent / "pages"
_PROGRESS = re.compile(r"\d%\||\dit/s|\ds/it|TqdmWarning|autonotebook")


def render(profile: str) -> Path:
    """Render the runs of a profile to reports/<profile>/ and return the path of its index page.

    Built in a folder of its own that replaces the old one at the end, so that a killed call leaves the old pages.
    """
    final = project.report_folder(profile)
    folder = final.with_name(f".{profile}.building")
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "assets").mkdir(parents=True)
    states = batch.status(profile)
    entries = [_entry(profile, topic, state) for topic, state in states.items()]
    for entry in entries:
        _copy_artifacts(folder, entry)
    bodies = {file: (title, body(profile, entries)) for file, title, body in _beside()}
    bodies = {file: found for file, found in bodies.items() if found[1]}
    rendered = {"index", *(entry["topic"] for entry in entries if entry["source"]), *(Path(file).stem for file in bodies)}
    shared = {"profile": profile, "entries": entries, "menu": [(file, title) for file, (title, _) in bodies.items()]}
    for entry in entries:
        if entry["source"]:
            title = f"{entry['number']} {entry['title']}"
            _write_page(folder / f"{entry['topic']}.html", title, _notebook_body(entry), rendered, shared | {"entry": entry})
    for file, (title, body) in bodies.items():
        _write_page(folder / file, title, body, rendered, shared)
    (folder / "index.html").write_text(_index_page(shared), encoding="utf-8")
    (folder / "assets" / "style.css").write_text((TEMPLATES / "style.css").read_text() + markup.code_css(), encoding="utf-8")
    shutil.copy(TEMPLATES / "page.js", folder / "assets" / "page.js")
    old = final.with_name(f".{profile}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    folder.rename(final)
    shutil.rmtree(old, ignore_errors=True)
    return final / "index.html"


def _entry(profile: str, topic: str, state: manifest.State) -> dict[str, Any]:
    """What the templates need to know about one notebook."""
    folder = project.run_folder(profile, topic)
    source = next((folder / name for name in ("executed.ipynb", "failed.ipynb") if (folder / name).exists()), None)
    heading, question = _title(topic)
    made = manifest.read(profile, topic) or {}
    shown_files = sorted((item for item in made.get("artifacts", {}).items() if item[1]["kind"] in ("figure", "table")),
                         key=lambda item: item[1]["kind"])  # figures first
    artifacts = [{"name": name.partition("/")[2], **artifact, "files": {
        Path(file).suffix[1:].upper(): f"{Path(file).parent}/{topic}-{Path(file).name}" for file in artifact["files"]}}
        for name, artifact in shown_files]
    return {"topic": topic, "number": topic[:2], "title": heading, "question": question, "state": state, "made": made,
            "source": source, "artifacts": artifacts, "folder": folder}


def _title(topic: str) -> tuple[str, str]:
    """The notebook's H1 without its number, and the paragraph below it."""
    cells = json.loads(project.notebook(topic).read_text(encoding="utf-8"))["cells"]
    text = next(("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"), "")
    heading = re.search(r"^# (?:\d+\s*[·.:-]?\s*)?(.+)$", text, re.MULTILINE)
    blocks = re.split(r"\n\s*\n", re.sub(r"^#.*$", "\n", text, flags=re.MULTILINE).strip())
    prose = next((block.strip() for block in blocks if not block.lstrip().startswith(("|", "<", "-"))), "")
    return heading[1] if heading else topic, re.sub(r"[*_`]|\$|\[([^]]*)\]\([^)]*\)", r"\1", prose)


def _copy_artifacts(folder: Path, entry: Mapping[str, Any]) -> None:
    for artifact in entry["artifacts"]:
        for target in artifact["files"].values():
            parent, _, name = target.partition("/")
            (folder / parent).mkdir(exist_ok=True)
            shutil.copy(entry["folder"] / parent / name.removeprefix(f"{entry['topic']}-"), folder / target)


# ---------------------------------------------------------------- pages

def _beside() -> list[tuple[str, str, Callable[[str, list[Mapping[str, Any]]], str]]]:
    """The pages beside the notebooks': file, name in the menu, and the function of (profile, entries) that gives the
    body as HTML ("": no such page)."""
    return [*(_markdown_page(path) for path in sorted(PAGES.glob("*.md")))]


def _markdown_page(path: Path) -> tuple[str, str, Callable[..., str]]:
    from nbconvert.filters.markdown import markdown2html

    text = path.read_text(encoding="utf-8")
    title = re.search(r"^# (.+)$", text, re.MULTILINE)
    stem = re.sub(r"^\d+-", "", path.stem)
    return (f"{stem}.html", re.sub(r"[*_`]", "", title[1]) if title else stem,
            lambda *_: f'<section class="prose">{markdown2html(text)}</section>')


@cache
def _environment() -> Environment:
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["label"] = runs.label
    environment.filters["takeaway"] = shown.marked_up
    environment.filters["math"] = lambda text: markup.finish(BeautifulSoup(escape(text), "html.parser"))
    return environment


def _write_page(path: Path, title: str, body: str, rendered: set[str], shared: Mapping[str, Any]) -> None:
    """A page with its table of contents; links to notebooks lead to their pages, those to what is not there become text."""
    soup = BeautifulSoup(body, "html.parser")
    for link in soup.select("a[href]"):
        match = re.fullmatch(r"(?:\./)?(?:\d+-)?(\w[\w-]*)\.(?:ipynb|md|html)(#.*)?", link["href"])
        if match and match[1] in rendered:
            link["href"] = f"{match[1]}.html{match[2] or ''}"
        elif not link["href"].startswith(("http://", "https://", "#", "figures/", "tables/")):
            link.unwrap()
    content = markup.finish(soup)
    headings = [(h.name, h["id"], h.get_text().rstrip("¶")) for h in soup.find_all(["h2", "h3"]) if h.get("id")]
    path.write_text(_environment().get_template("page.html.j2").render(
        title=title, file=path.name, body=content, headings=headings, **shared), encoding="utf-8")


def _notebook_body(entry: Mapping[str, Any]) -> str:
    from nbconvert import HTMLExporter

    notebook = nbformat.read(entry["source"], as_version=4)
    notebook.cells = list(_prepared(notebook.cells, entry))
    exporter = HTMLExporter(template_name="cells", extra_template_basedirs=[str(TEMPLATES)])
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
        lines = [line for line in re.split(r"[\r\n]+", output.text) if line.strip() and not _PROGRESS.search(line)]
        output.text = "\n".join(lines)
        return bool(output.text)
    return "application/vnd.jupyter.widget-view+json" not in output.get("data", {})


def _parameter_table(entry: Mapping[str, Any]) -> str:
    declared = params.read_parameters(project.notebook(entry["topic"]))
    used = entry["made"].get("parameters", {name: p.default for name, p in declared.items()})
    changed = [name for name, p in declared.items() if used.get(name) != p.default]
    rows = "".join(f"<tr{' class=changed' if name in changed else ''}><td><code>{name}</code></td>"
                   f"<td>{escape(str(used.get(name)))}</td><td>{escape(p.comment)}</td></tr>"
                   for name, p in declared.items())
    note = f", {len(changed)} changed by the profile" if changed else ""
    return (f"<details class='parameters'><summary>{len(declared)} parameters{note}</summary><table><thead><tr><th>name</th>"
            f"<th>value</th><th>meaning</th></tr></thead><tbody>{rows}</tbody></table></details>")


def _index_page(page: Mapping[str, Any]) -> str:
    entries = page["entries"]

    def headline(kind: str) -> Any:
        found = [(entry, artifact) for entry in entries for artifact in entry["artifacts"]
                 if artifact["kind"] == kind and artifact.get("headline")]
        return found[-1] if found else None

    figure, table = headline("figure"), headline("table")
    shared: dict[str, Any] = {}
    for entry in entries:
        shared |= {key: value for key, value in entry["made"].get("parameters", {}).items() if key not in shared}
    html = markup.finish(BeautifulSoup(table[1]["html"], "html.parser")) if table else ""
    made = next((entry["made"] for entry in reversed(entries) if entry["made"]), {})
    return _environment().get_template("index.html.j2").render(
        figure=figure, table=table, table_html=html, parameters=shared, made=made, **page)


def _link_artifacts(soup: BeautifulSoup, entry: Mapping[str, Any]) -> None:
    """Saved figures are shown from their SVG file; figures and tables get their downloads."""
    known = {(artifact["kind"], artifact["name"]): artifact for artifact in entry["artifacts"]}
    for block in soup.select("figure[data-file]"):
        artifact = known.get(("figure" if block.img else "table", Path(block["data-file"]).stem))
        if artifact is None:
            continue
        if block.img:
            block.img["src"] = artifact["files"]["SVG"]
        links = " ".join(f'<a href="{escape(file)}">{suffix}</a>' for suffix, file in artifact["files"].items())
        block.append(BeautifulSoup(f'<span class="downloads">{links}</span>', "html.parser"))
