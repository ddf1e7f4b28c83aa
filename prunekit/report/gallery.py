"""What a repository browser can show: each executed notebook, and a Markdown page of it with its figures and
tables, made from the finished runs of a profile."""
from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbconvert.filters import strip_ansi

from prunekit.errors import UsageError
from prunekit.files import check_folder, replacing
from prunekit.report import html, site
from prunekit.workbook import display, manifest, params, project

MOST = 10_000_000  # bytes of a gallery
_ROWS = 30         # of a table on a page; the notebook has them all
_LEFT_OUT = {"hide", "injected-parameters", "answer", "check", "solution"}  # tags of cells; the last spoil
_INDEX = """# Gallery

The notebooks as `make gallery` last ran them (profile {}), to be read here, where the pages of a report are
shown as source. Each is a page with its code folded, and a notebook with all its outputs. Rebuilt, never
edited.
"""


def write(profile: str, target: str | Path) -> int:
    """Write the gallery of a profile to a folder, replacing it, and return its size in bytes.

    README.md is the index; beside it NN_topic.md, NN_topic.ipynb and figures/. Raises UsageError where a
    notebook has no finished run, and for more than `MOST` bytes, before anything is replaced.
    """
    params.resolve_profile(profile)
    with replacing(check_folder(target)) as folder:
        (folder / "figures").mkdir()
        parts = [_INDEX.format(profile), *(_notebook(profile, topic, folder) for topic in project.topics())]
        (folder / "README.md").write_text("\n".join(parts), encoding="utf-8")
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        if size > MOST:
            raise UsageError(f"The gallery of {profile} would have {size:,} bytes, {MOST:,} are allowed: "
                             "save fewer or smaller figures.")
    return size


def _notebook(profile: str, topic: str, folder: Path) -> str:
    """Write the notebook and its page; its part of the index."""
    made, source = manifest.read(profile, topic), project.run_folder(profile, topic)
    if made is None or not (source / "executed.ipynb").is_file():
        raise UsageError(f"{topic} has no finished run: `prunekit run {profile} {topic}` makes one.")
    notebook = nbformat.read(source / "executed.ipynb", as_version=4)
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], "language_info": {"name": "python"}}
    for cell in notebook.cells:
        cell.metadata = {key: cell.metadata[key] for key in ("tags", "jupyter") if key in cell.metadata}
        cell.outputs = [output for output in cell.get("outputs", []) if site.worth_showing(output)]
        for output in cell.outputs:
            if svg := _picture(output):   # browsers of notebooks show pictures, but none inside HTML
                copy = f"figures/{topic[:2]}-{Path(svg).name}"
                shutil.copy(source / svg, folder / copy)
                content = (source / svg).read_text(encoding="utf-8")
                output.data = {"image/svg+xml": content, "text/plain": output.data["text/plain"]}
                output.metadata = {"file": copy}
        if cell.cell_type != "code":
            del cell["outputs"]
            cell.source = cell.source.replace("](../", "](../../")  # from docs/gallery instead of notebooks
    nbformat.write(notebook, folder / f"{topic}.ipynb")
    page = "\n\n".join(part for cell in notebook.cells for part in _parts(cell))
    (folder / f"{topic}.md").write_text(page.replace(".ipynb)", ".md)") + "\n", encoding="utf-8")
    title, question = project.title(topic)
    said = "".join(f"- {display.typeset(sentence)}\n" for sentence in made["takeaways"])
    return (f"## {topic[:2]} · {title}\n\n{question} [Page]({topic}.md), [notebook]({topic}.ipynb), "
            f"{made['seconds']:.0f} s.\n\n{said}")


def _picture(output: Any) -> str:
    """The file of the saved figure that an output shows, or ""."""
    found = re.search(r'data-file="([\w/.-]+\.svg)"', output.get("data", {}).get("text/html", ""))
    return found[1] if found else ""


# ---------------------------------------------------------------- Markdown

def _parts(cell: Any) -> Iterator[str]:
    tags = set(cell.metadata.get("tags", []))
    if _LEFT_OUT & tags:
        return
    if cell.cell_type == "markdown":
        yield cell.source
    elif cell.cell_type == "code":
        code = f"```python\n{cell.source}\n```"
        yield code if tags & {"unfold", "parameters"} else (
            f"<details><summary>Code</summary>\n\n{code}\n\n</details>")
        yield from map(_shown, cell.outputs)


def _shown(output: Any) -> str:
    """A figure as a link to its file, a table in Markdown, a generated sentence as a quotation."""
    data = output.get("data", {})
    shown, plain = data.get("text/html", ""), strip_ansi(data.get("text/plain", output.get("text", "")))
    if copy := output.get("metadata", {}).get("file"):
        return f"![{_escaped(plain)}]({copy})\n\n*{_escaped(plain)}*"
    if "<table" in shown:
        return _table(shown)
    if 'class="pk-' in shown:
        return f"> {display.typeset(plain)}"
    return f"```text\n{plain.rstrip()}\n```"


def _table(shown: str) -> str:
    soup = html.parsed(shown)
    rows = [row.find_all(["th", "td"]) for row in soup.find_all("tr")]
    lines = [f"| {' | '.join(_escaped(cell.get_text(' ', strip=True)) for cell in row)} |" for row in rows]
    lines.insert(1, f"|{'|'.join('---:' if 'num' in cell.get('class', []) else '---' for cell in rows[0])}|")
    caption = f"**{_escaped(soup.figcaption.get_text())}**\n\n" if soup.figcaption else ""
    more = f"\n\n*{len(rows) - 1 - _ROWS} more rows in the notebook.*" if len(rows) - 1 > _ROWS else ""
    return caption + "\n".join(lines[:_ROWS + 2]) + more


def _escaped(text: str) -> str:
    """Text in one line that Markdown says literally, but for formulas and code, which must not end a cell."""
    parts = re.split(r"(\$[^$]*\$|`[^`]*`)", re.sub(r"\s+", " ", text))
    parts[::2] = [re.sub(r"([|*_<\[\]`])", r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [part.replace("|", r"\vert " if part[0] == "$" else r"\|") for part in parts[1::2]]
    return "".join(parts)
