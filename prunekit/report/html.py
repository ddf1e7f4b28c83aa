"""HTML of pages: templates, and the last touches: formulas, tables, alternative texts, anchors, colours."""
from __future__ import annotations

import re
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from bs4 import BeautifulSoup, NavigableString, Tag
from jinja2 import Environment, FileSystemLoader

from prunekit.workbook import display, protocol

TEMPLATES = Path(__file__).parent / "templates"
_MATH = re.compile(r"\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^$]+?)\$|"
                   r"(?P<environment>\\begin\{(\w+\*?)\}.*?\\end\{\4\})", re.DOTALL)
_NUMBER = re.compile(r"[-+−]?[\d,]*\.?\d+(e[-+]?\d+)?%?|nan|NaN|-?inf|", re.IGNORECASE)


@cache
def _environment() -> Environment:
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True,
                              lstrip_blocks=True)
    environment.filters |= {"label": protocol.label, "spoken": protocol.spoken, "counted": display.counted,
                            "takeaway": lambda text: finish(parsed(display.marked_up(text)))}
    return environment


def template(name: str, **values: Any) -> str:
    return _environment().get_template(name).render(**values)


def parsed(text: str) -> BeautifulSoup:
    return BeautifulSoup(text, "html.parser")


def finish(soup: BeautifulSoup) -> str:
    """Formulas to MathML, tables into scrolling boxes, numbers to the right, image texts, unique anchors."""
    for text in soup.find_all(string=_MATH):
        if type(text) is NavigableString and not text.find_parent(["pre", "code", "style", "script"]):
            text.replace_with(parsed(with_mathml(str(text))))
    for text in soup.find_all(string=re.compile(r"\d\s?%")):
        if type(text) is NavigableString and not text.find_parent(["pre", "code", "style", "script"]):
            text.replace_with(re.sub(r"(?<=\d)\s?%", "\N{NO-BREAK SPACE}%", text))
    for style in soup.find_all("style"):
        style.decompose()
    for table in soup.find_all("table"):
        _tidy_table(table)
        if "scroll" not in table.parent.get("class", []):
            table.wrap(soup.new_tag("div", attrs={"class": "scroll", "tabindex": "0"}))
        rows = len(table.select("tbody tr"))
        text = table.find_parent("details") or table.find_parent(class_="prose")
        if rows > 20 and not text:  # style.css cuts the box until this is opened
            table.parent["class"] = "scroll long"
            more = f'<details class="rows"><summary>all {rows:,} rows</summary></details>'
            table.parent.insert_after(parsed(more))
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
        formula = mathml(block or match["inline"], display=bool(block))
        pieces += [escape(text[end:match.start()], quote=False), formula]
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
    """Columns of numbers, their heads included, go to the right, short ones stay on one line."""
    table.attrs.pop("border", None)
    heads, rows = ([row.find_all(["td", "th"]) for row in table.select(f"{part} tr")]
                   for part in ("thead", "tbody"))
    width = max(map(len, rows), default=0)
    for column in range(width):
        cells, above = ([row[column] for row in part if len(row) == width] for part in (rows, heads))
        texts = [cell.get_text(strip=True) for cell in cells]
        if 2 * sum(map(bool, texts)) > len(texts) and all(map(_NUMBER.fullmatch, texts)):
            for cell in cells + above:
                cell["class"] = "num"
        elif "num" not in cells[0].get("class", ()):
            for cell in cells:
                cell["class"] = "short" if max(map(len, texts)) <= 24 else "text"


def code_css() -> str:
    """Colours for code, light and dark."""
    from pygments.formatters import HtmlFormatter

    light, dark = (HtmlFormatter(style=style, nobackground=True).get_style_defs(".highlight")
                   for style in ("friendly", "nord"))
    return f"\n{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n"
