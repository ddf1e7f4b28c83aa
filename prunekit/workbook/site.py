"""Pages from executed notebooks: one HTML per notebook and an index, in a folder that opens from a file URL.

Nothing is loaded from outside: formulas become MathML when the page is built, styles and script lie beside the pages.
"""
from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import nbformat
from bs4 import BeautifulSoup, NavigableString, Tag
from jinja2 import Environment, FileSystemLoader

from prunekit.workbook import batch, manifest, params, project, runs, shown

TEMPLATES = Path(__file__).parent / "templates"
_MATH = re.compile(r"\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^$]+?)\$|(?P<environment>\\begin\{(\w+\*?)\}.*?\\end\{\4\})", re.DOTALL)
_PROGRESS = re.compile(r"\d%\||\dit/s|\ds/it|TqdmWarning|autonotebook")
_NUMBER = re.compile(r"[-+−]?[\d,]*\.?\d+(e[-+]?\d+)?%?|nan|NaN|-?inf|", re.IGNORECASE)


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
        if entry["source"]:
            _copy_artifacts(folder, entry)
            (folder / f"{entry['topic']}.html").write_text(_notebook_page(profile, entry, entries), encoding="utf-8")
    (folder / "index.html").write_text(_index_page(profile, entries), encoding="utf-8")
    (folder / "claims.html").write_text(_claims_page(profile, entries, folder), encoding="utf-8")
    (folder / "assets" / "style.css").write_text((TEMPLATES / "style.css").read_text() + _code_css(), encoding="utf-8")
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

@cache
def _environment() -> Environment:
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["label"] = runs.label
    environment.filters["takeaway"] = shown.marked_up
    environment.filters["math"] = lambda text: _finish(BeautifulSoup(escape(text), "html.parser"))
    return environment


def _notebook_page(profile: str, entry: Mapping[str, Any], entries: list[Mapping[str, Any]]) -> str:
    from nbconvert import HTMLExporter

    notebook = nbformat.read(entry["source"], as_version=4)
    notebook.cells = list(_prepared(notebook.cells, entry))
    exporter = HTMLExporter(template_name="cells", extra_template_basedirs=[str(TEMPLATES)])
    exporter.log.setLevel("ERROR")  # it speaks of missing alternative texts, which are added below
    body, _ = exporter.from_notebook_node(notebook)
    soup = BeautifulSoup(body, "html.parser")
    _link_artifacts(soup, entry)
    _link_notebooks(soup, {e["topic"] for e in entries if e["source"]})
    content = _finish(soup)
    headings = [(h.name, h["id"], h.get_text().rstrip("¶")) for h in soup.find_all(["h2", "h3"]) if h.get("id")]
    return _environment().get_template("notebook.html.j2").render(
        profile=profile, entry=entry, entries=entries, body=content, headings=headings)


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


def _index_page(profile: str, entries: list[Mapping[str, Any]]) -> str:
    def headline(kind: str) -> Any:
        found = [(entry, artifact) for entry in entries for artifact in entry["artifacts"]
                 if artifact["kind"] == kind and artifact.get("headline")]
        return found[-1] if found else None

    figure, table = headline("figure"), headline("table")
    shared: dict[str, Any] = {}
    for entry in entries:
        shared |= {key: value for key, value in entry["made"].get("parameters", {}).items() if key not in shared}
    html = _finish(BeautifulSoup(table[1]["html"], "html.parser")) if table else ""
    made = next((entry["made"] for entry in reversed(entries) if entry["made"]), {})
    return _environment().get_template("index.html.j2").render(
        profile=profile, entries=entries, figure=figure, table=table, table_html=html, parameters=shared, made=made)


def _claims_page(profile: str, entries: list[Mapping[str, Any]], folder: Path) -> str:
    from prunekit.workbook import claims

    found = claims.page(profile)
    found["ledger"].to_csv(folder / "claims.csv", index=False)
    return _environment().get_template("claims.html.j2").render(profile=profile, entries=entries, claims=found)


# ---------------------------------------------------------------- finishing touches on the HTML

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


def _link_notebooks(soup: BeautifulSoup, rendered: set[str]) -> None:
    """Links between notebooks lead to their pages; a link to one that has no page becomes plain text."""
    for link in soup.select("a[href]"):
        match = re.fullmatch(r"(?:\./)?(\w+)\.ipynb(#.*)?", link["href"])
        if match and match[1] in rendered:
            link["href"] = f"{match[1]}.html{match[2] or ''}"
        elif not link["href"].startswith(("http://", "https://", "#", "figures/", "tables/")):
            link.unwrap()


def _finish(soup: BeautifulSoup) -> str:
    """Formulas to MathML, tables into scrolling boxes with numbers to the right, alternative texts, unique anchors."""
    for text in soup.find_all(string=_MATH):
        if type(text) is NavigableString and not text.find_parent(["pre", "code", "style", "script"]):
            text.replace_with(BeautifulSoup(with_mathml(str(text)), "html.parser"))
    for style in soup.find_all("style"):
        style.decompose()
    for table in soup.find_all("table"):
        _tidy_table(table)
        table.wrap(soup.new_tag("div", attrs={"class": "scroll", "tabindex": "0"}))
    for image in soup.find_all("img"):
        if not image.get("alt"):
            above = image.find_previous(["h1", "h2", "h3"])
            image["alt"] = f"Figure in: {above.get_text().rstrip('¶')}" if above else "Figure"
    seen: set[str] = set()
    for element in soup.find_all(id=True):
        while element["id"] in seen:
            element["id"] += "-2"
        seen.add(element["id"])
    return str(soup)


def with_mathml(text: str) -> str:
    pieces, end = [], 0
    for match in _MATH.finditer(text):
        block = match["block"] or match["environment"]
        pieces += [escape(text[end:match.start()], quote=False), mathml(block or match["inline"], display=bool(block))]
        end = match.end()
    return "".join([*pieces, escape(text[end:], quote=False)])


def mathml(latex: str, display: bool = False) -> str:
    """LaTeX as MathML; a formula with commands that the converter does not know is shown as its source."""
    from latex2mathml.converter import convert

    source = latex.strip().removeprefix(r"\displaystyle").replace("{aligned}", "{align*}")
    try:
        converted = convert(source, display="block" if display else "inline")
    except Exception:  # noqa: BLE001 (the converter raises many kinds; a formula must not cost the page)
        converted = "\\"
    if "\\" in converted:  # a command that the converter has passed through
        return f'<code class="latex">{escape(latex)}</code>'
    return converted


def _tidy_table(table: Tag) -> None:
    table.attrs.pop("border", None)
    rows = [row.find_all(["td", "th"]) for row in table.select("tbody tr")]
    width = max((len(row) for row in rows), default=0)
    for column in range(width):
        cells = [row[column] for row in rows if len(row) == width]
        texts = [cell.get_text(strip=True) for cell in cells]
        if any(texts) and all(_NUMBER.fullmatch(text) for text in texts):
            heads = [row.find_all(["td", "th"])[column] for row in table.select("thead tr")
                     if len(row.find_all(["td", "th"])) == width]
            for cell in cells + heads:
                cell["class"] = "num"


def _code_css() -> str:
    """Colours for code, light and dark."""
    from pygments.formatters import HtmlFormatter

    light, dark = (HtmlFormatter(style=style, nobackground=True).get_style_defs(".highlight") for style in ("friendly", "nord"))
    return f"\n{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n"
