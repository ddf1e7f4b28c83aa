"""README and docs/ are true of the code: commands can be parsed, names and files exist, no page is stale."""
from __future__ import annotations

import argparse
import ast
import importlib
import re
import runpy
import shlex
from pathlib import Path

import pytest

import prunekit
from prunekit.cli import _parser
from prunekit.evaluate.sentences import comparing
from tests.pruning.families import table

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
README = ROOT / "README.md"
TEXTS = {path: path.read_text(encoding="utf-8") for path in [README, *DOCS]}


def blocks(language: str) -> list[str]:
    """The blocks of code of all pages, but for the generated one."""
    return [block.replace("\\\n", "") for path, text in TEXTS.items() if path.name != "api.md"
            for block in re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)]


COMMANDS = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("prunekit ")]
INLINE = {word for text in TEXTS.values() for word in re.findall(r"`prunekit ([a-z]+)", text)}


def rows(name: str) -> list[list[str]]:
    """The cells of every table row of a page, head and rule left out."""
    text = re.sub(r"^\|.*\|\n\|[-:| ]+\|$", "", TEXTS[ROOT / "docs" / name], flags=re.MULTILINE)
    return [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_can_be_parsed(line):
    assert callable(_parser().parse_args(shlex.split(line, comments=True)[1:]).command)


def test_commands_that_are_named_exist():
    assert len(INLINE) > 5 and options(_parser()).keys() >= INLINE


def test_python_blocks_use_public_names():
    nodes = [node for block in blocks("python") for node in ast.walk(ast.parse(block))]
    found = {node.attr for node in nodes
             if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pk"}
    assert len(found) > 10 and found <= set(prunekit.__all__)
    named = {name for text in TEXTS.values() for name in re.findall(r"`pk\.(\w+)", text)}
    assert len(named) > 5 and named <= set(prunekit.__all__)


def options(parser: argparse.ArgumentParser) -> dict[str, set[str]]:
    """The flags of every command."""
    commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return {name: set(sub._option_string_actions) for name, sub in commands.choices.items()}


def test_the_flags_for_the_published_scripts_exist():
    """Under a heading that names a command, each flag on the right is one of that command's."""
    known = options(_parser())
    text = TEXTS[ROOT / "docs" / "published-scripts.md"]
    sections = re.findall(r"^## [^\n]*: `prunekit (\w+)`\n(.*?)(?=^## )", text, re.DOTALL | re.MULTILINE)
    assert [command for command, _ in sections] == ["prune", "gradients", "evaluate", "finetune"]
    for command, section in sections:
        right = re.findall(r"^\|.*\| (.*) \|$", section, re.MULTILINE)
        ours = set(re.findall(r"--[\w-]+", "\n".join(right)))
        assert len(ours) > 1 and ours <= known[command], command


def test_the_functions_of_the_formulas_exist():
    names = [name for row in rows("formulas.md") for name in re.findall(r"`([^`]+)`", row[2])]
    assert len(names) == len(rows("formulas.md")) - 1  # one is lm-eval's
    for name in names:
        parts = re.fullmatch(r"([a-z_.]+)\.(\w+)(?:\.(\w+))?(?:\[\"(\w+)\"\])?", name)
        module, thing, member, key = parts.groups()
        found = getattr(importlib.import_module(f"prunekit.{module}"), thing)
        assert member is None or hasattr(found, member) or member in found.__annotations__, name
        assert key is None or key in found, name


def test_the_families_are_those_that_are_tested():
    assert table().strip() in TEXTS[ROOT / "docs" / "families.md"]


def test_files_that_are_named_exist():
    """Whether their links lead somewhere is asked in workbook/test_pages.py."""
    path = re.compile(r"(?:benchmarks|notebooks|params|prunekit|tests)/[a-z0-9_/.-]*[a-z]")
    named = {file for text in TEXTS.values() for file in path.findall(text)}
    assert len(named) > 10 and [file for file in sorted(named) if not (ROOT / file).exists()] == []


def test_the_readme_is_short_and_leads_to_every_page():
    assert len(TEXTS[README].encode()) <= 9_000
    assert {f"docs/{path.name}" for path in DOCS} <= set(re.findall(r"\]\(([^)]+)\)", TEXTS[README]))


def test_the_api_page_is_of_today():
    made = runpy.run_path(str(ROOT / "docs" / "make_api.py"))["page"]()
    assert re.findall(r"^### (.+)$", made.replace("\\", ""), re.MULTILINE) == prunekit.__all__
    assert made == TEXTS[ROOT / "docs" / "api.md"], "docs/api.md is stale: run `make docs`"


def test_what_studies_license_is_of_today_and_nothing_else_compares_there(tmp_path, monkeypatch):
    made = runpy.run_path(str(ROOT / "docs" / "make_answers.py"))
    for path, text in made["pages"]().items():
        assert text == TEXTS[path], f"{path.name} is stale: run `make docs`"
        start, end = (text.index(mark) for mark in made["MARKS"])
        assert start < end
    monkeypatch.setitem(made["pages"].__globals__, "ROOT", tmp_path)
    (tmp_path / "README.md").write_text(f"A page {made['MARKS'][0]} without its end.")
    with pytest.raises(SystemExit, match="README.md lacks one of the marks"):
        made["pages"]()
    studied = TEXTS[ROOT / "docs" / "study.md"]
    typed = studied[:studied.index(made["MARKS"][0])] + studied[studied.index(made["MARKS"][1]):]
    assert not comparing(typed)
