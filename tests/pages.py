"""Checking rendered pages with nothing but an HTML parser."""
from __future__ import annotations

import re
from pathlib import Path

from bs4 import BeautifulSoup, NavigableString, Tag


class Page:
    """Everything of a page that the tests ask about."""

    def __init__(self, path: Path):
        self.path, soup = path, BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        self.text, self.tags = soup.get_text(), [tag.name for tag in soup.find_all()]
        self.ids = [tag["id"] for tag in soup.select("[id]")]
        self.links = [tag["href"] for tag in soup.select("a[href]")]
        self.alts = [tag.get("alt") for tag in soup.select("img")]
        self.sources = [tag[key] for tag in soup.select("link, script, img, iframe, source, object, embed")
                        for key in ("href", "src", "data") if key in tag.attrs]


def check_site(folder: Path) -> dict[str, Page]:
    """Links and resources resolve, nothing is from outside, images have texts, anchors are unique."""
    pages = {path.name: Page(path) for path in folder.glob("*.html")}
    for page in pages.values():
        assert len(page.ids) == len(set(page.ids)), page.path
        assert all(page.alts), page.path
        for source in page.sources:
            assert source.startswith("data:") or (folder / source).is_file(), (page.path, source)
        for link in page.links:
            file, _, anchor = link.partition("#")
            if re.match(r"https?://", link):
                continue
            assert not file or (folder / file).is_file(), (page.path, link)
            target = pages.get(file or page.path.name)
            assert not anchor or target is None or anchor in target.ids, (page.path, link)
    styles = (folder / "assets" / "style.css").read_text()
    assert "http" not in styles and "@import" not in styles and "url(" not in styles
    return pages


NOISE = "pre, code, math, script, style, svg"
NOUNS = "line|method|module|number|parameter|question|row|run|seed|setting|task|thread|token|weight|window"


def slips(path: Path) -> list[str]:
    """What a careful reader of a page stumbles over: percent signs, plurals, headings, library noise, …"""
    soup = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
    found = [f"library noise: {said.get_text()[:80]}" for said in soup.select("pre.stderr")
             if re.search(r"\w+Warning:|site-packages|\d%\|", said.get_text())]
    found += [f"nothing below: {head.get_text()}" for head in soup.select("main :is(h2, h3)") if bare(head)]
    for part in soup.select(NOISE):
        part.decompose()
    for block in soup.select("p, li, td, th, figcaption, h1, h2, h3, h4, summary, footer"):
        text = " ".join(block.get_text().split())
        found += [f"{what}: {text[:90]}" for what, pattern in {
            "no space before %": r"\d%", "one of many": rf"(?<![\d.,:])(?<!− )\b1 ({NOUNS})s\b"}.items()
            if re.search(pattern, text)]
    for block in soup.select("td.num, .pk-takeaway, .said, .answer, figcaption"):
        if re.search(r"(?<![\w.,:/+-])(?!(19|20)\d\d\b)\d{4,}(?![\w:/-]|[.,]\d)", block.get_text()):
            found.append(f"no comma in a large number: {block.get_text()[:90]}")
    return found


def bare(head: Tag) -> bool:
    """Does the next heading of its level or above come before any word, picture or table?"""
    for node in head.next_elements:
        if isinstance(node, NavigableString):
            if node.strip() and head not in node.parents and not node.find_parent(class_="code"):
                return False
        elif node.name in ("img", "table", "math", "svg"):
            return False
        elif node.name in ("h1", "h2", "h3", "h4"):
            return node.name <= head.name
    return True
