"""Checking rendered pages with nothing but an HTML parser."""
from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path


class Page(HTMLParser):
    """Everything of a page that the tests ask about."""

    def __init__(self, path: Path):
        super().__init__()
        self.path, self.text = path, ""
        self.links, self.sources, self.alts, self.ids, self.tags = [], [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.ids += [attrs["id"]] if "id" in attrs else []
        if tag == "a" and "href" in attrs:
            self.links.append(attrs["href"])
        elif tag in ("link", "script", "img", "iframe", "source", "object", "embed"):
            self.sources += [attrs[key] for key in ("href", "src", "data") if key in attrs]
        if tag == "img":
            self.alts.append(attrs.get("alt"))

    def handle_data(self, data):
        self.text += data


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
