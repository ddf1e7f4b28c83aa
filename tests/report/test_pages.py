"""The pages are true: what they name exists, what they compute comes out, links lead somewhere."""
from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml

import prunekit
from prunekit.metric.primitives import PRIMITIVES
from prunekit.report import site

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "prunekit"
PAGES = sorted((PACKAGE / "report" / "pages").glob("*.md"))
TEXTS = {path.stem: path.read_text(encoding="utf-8") for path in PAGES}
DOCUMENTS = [*PAGES, *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*.md"))]
NAMED = [(path.stem, part) for path in PAGES for part in re.split(r"\n(?=- |\n|\|)", TEXTS[path.stem])
         if re.search(r"`[\w/]+\.py`", part)]


def names(file: Path) -> set[str]:
    """Everything that a module defines: functions and their arguments, classes, constants and fields."""
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    found = {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    found |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    targets = [target for node in nodes if isinstance(node, (ast.Assign, ast.AnnAssign))
               for target in getattr(node, "targets", None) or [node.target]]
    return found | {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}


@pytest.mark.parametrize(("page", "part"), NAMED, ids=lambda text: re.sub(r"\W+", " ", text)[:40])
def test_files_and_names_on_the_pages_exist(page, part):
    """In a table row or a point of a list, every name in code letters is defined in a file named there."""
    code = re.findall(r"`([^`]+)`", part)
    files = [PACKAGE / word for word in code if word.endswith(".py")]
    assert all(file.is_file() for file in files), files
    known = set(PRIMITIVES).union(*map(names, files))
    for word in code:
        if re.fullmatch(r"[A-Za-z_][\w.]*", word) and not word.endswith(".py"):
            assert set(word.split(".")) <= known, (page, word)


def test_the_reading_order_and_the_glossary_name_what_they_should():
    assert {Path(word).parts[0] for word in re.findall(r"`([\w/]+\.py)`", TEXTS["20-read-the-code"])} >= {
        "metric", "pruning", "evaluate", "search", "workbook", "data.py", "models.py"}
    rows = re.findall(r"^\| (.+?) \|.*\| `([\w/]+\.py)`, `[\w.]+` \|$", TEXTS["10-glossary"], re.MULTILINE)
    words = {word.strip("$") for row, _ in rows for word in row.split(", ")}
    assert {"W", "G", "X", "H", "keep", "N:M", "mms", "rank class", "OOS", "OBS", "obs-iter", "calibration",
            "roles"} <= words
    assert len(rows) == TEXTS["10-glossary"].count("\n| ") - 1  # all but the head


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_pages_can_be_rendered_and_their_links_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    assert not re.search(r"\d\\?%", prose)
    assert text.startswith("# ") and len(re.findall(r"^# ", prose, re.MULTILINE)) == 1
    assert '<code class="latex">' not in site.html.with_mathml(prose)
    assert [link for link in re.findall(r"\]\(([^)#:]+)\)", prose) if not (path.parent / link).exists()] == []


def test_the_lessons_numbers_come_out():
    blocks = re.findall(r"^```python\n(.*?)^```", TEXTS["30-lesson"], re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 4 and all("assert" in block for block in blocks)
    exec("\n".join(blocks), {})  # noqa: S102 - the lesson's own code


def test_the_guide_names_tests_and_files_that_exist():
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for name in re.findall(r"`(test_\w+)`", guide):
        assert f"def {name}(" in tests, name
    for path in re.findall(r"(?:tests|prunekit|params)/[\w/.-]+", guide):
        assert (ROOT / path.rstrip(".")).exists() or "NN_topic" in path, path
    assert all(f"## A {kind}\n" in guide
               for kind in ("metric", "primitive", "notebook", "family of models", "claim"))


def test_the_citation_is_of_this_version():
    """The fields that Citation File Format 1.2.0 requires, of the file and its reference, none unknown."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= cited.keys() <= {
        "cff-version", "message", "title", "authors", "type", "version", "license", "abstract", "keywords",
        "references"}
    assert cited["version"] == prunekit.__version__
    assert (cited["cff-version"], cited["license"]) == ("1.2.0", "MIT")
    assert cited["authors"] == [{"name": "The prunekit authors"}]
    (paper,) = cited["references"]
    assert {"type", "title", "authors"} <= paper.keys() and len(paper["authors"]) == 7
    assert f"version = {{{prunekit.__version__}}}" in TEXTS["40-licences"]
