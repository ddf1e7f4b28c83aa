"""HTML of pages: templates, and the finishing touches: formulas, tables, alternative texts, anchors, colours
for code."""
from __future__ import annotations

import re
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from bs4 import BeautifulSoup, NavigableString, Tag
from jinja2 import Environment, FileSystemLoader

from prunekit.workbook import display as shown
from prunekit.workbook import run

TEMPLATES = Path(__file__).parent / "templates"
_MATH = re.compile(r"\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^$]+?)\$|(?P<environment>\\begin\{(\w+\*?)\}.*?\\end\{\4\})", re.DOTALL)
_NUMBER = re.compile(r"[-+−]?[\d,]*\.?\d+(e[-+]?\d+)?%?|nan|NaN|-?inf|", re.IGNORECASE)


@cache
def _environment() -> Environment:
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["label"] = run.label
    environment.filters["takeaway"] = lambda text: finish(BeautifulSoup(shown.marked_up(text), "html.parser"))
    environment.filters["math"] = lambda text: finish(BeautifulSoup(escape(text), "html.parser"))
    return environment


def template(name: str, **values: Any) -> str:
    return _environment().get_template(name).render(**values)


def finish(soup: BeautifulSoup) -> str:
    """Formulas to MathML, tables into scrolling boxes with numbers to the right, alternative texts, unique
    anchors."""
    for text in soup.find_all(string=_MATH):
        if type(text) is NavigableString and not text.find_parent(["pre", "code", "style", "script"]):
            text.replace_with(BeautifulSoup(with_mathml(str(text)), "html.parser"))
    for style in soup.find_all("style"):
        style.decompose()
    for table in soup.find_all("table"):
        _tidy_table(table)
        if "scroll" not in table.parent.get("class", []):
            look = "scroll long" if len(table.select("tbody tr")) > 20 else "scroll"
            table.wrap(soup.new_tag("div", attrs={"class": look, "tabindex": "0"}))
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


def code_css() -> str:
    """Colours for code, light and dark."""
    from pygments.formatters import HtmlFormatter

    light, dark = (HtmlFormatter(style=style, nobackground=True).get_style_defs(".highlight") for style in ("friendly", "nord"))
    return f"\n{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n"
