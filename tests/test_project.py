"""The project's own files agree with each other: dependencies, notebooks, parameter files."""
from __future__ import annotations

import ast
import json
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = {canonicalize_name(name): version for name, version in (
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#"))}
GROUPS = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
REQUIRED = [Requirement(line) for group in GROUPS for line in group]


# ---------------------------------------------------------------- dependencies

@pytest.mark.parametrize("requirement", REQUIRED, ids=str)
def test_every_dependency_is_pinned_inside_its_range(requirement):
    assert PINS[canonicalize_name(requirement.name)] in requirement.specifier


def test_the_conda_environment_installs_the_same_set():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python = next(line for line in environment["dependencies"] if str(line).startswith("python="))
    assert python.partition("=")[2] in Requirement(f"python{PROJECT['requires-python']}").specifier
    by_pip = [line["pip"] for line in environment["dependencies"] if isinstance(line, dict)]
    assert by_pip == [["-c constraints.txt", "-e .[test]"]]


def test_the_makefile_installs_the_same_set():
    makefile = (ROOT / "Makefile").read_text()
    assert "-c constraints.txt" in makefile and "-e .[test]" in makefile


def test_what_is_imported_is_declared():
    """Every third-party module that the package imports belongs to a declared dependency."""
    declared = {canonicalize_name(requirement.name) for requirement in REQUIRED} | {"distributed"}  # of dask
    owners = packages_distributions()
    undeclared = {(name, path.name) for path in (ROOT / "prunekit").rglob("*.py") for name in _imports(path)
                  if not {canonicalize_name(owner) for owner in owners.get(name, [name])} & declared}
    assert undeclared == set()


def _imports(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    own = {*sys.stdlib_module_names, "prunekit", "__future__"}
    return {name.partition(".")[0] for name in names} - own


# ---------------------------------------------------------------- sources

@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_committed_without_outputs(path):
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None, cell["source"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_have_the_common_skeleton(path):
    from prunekit.workbook import params, project

    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    exercises = {"answer", "check", "solution"}
    code = ["".join(cell["source"]) for cell in cells
            if cell["cell_type"] == "code" and not exercises & set(cell["metadata"].get("tags", []))]
    assert path.stem in project.GRAPH
    assert "".join(cells[0]["source"]).startswith(f"# {path.stem[:2]} · ")
    assert {"profile", "seed", "bos"} <= params.read_parameters(path).keys()
    begins = re.compile(rf"start_run\([\"']{path.stem}[\"'], globals\(\)\)")
    assert sum(bool(begins.search(source)) for source in code) == 1
    assert code[-1].rstrip().endswith("run.finish()")
    unwanted = re.compile(r"^\s*[!%]|sys\.path|^\s*class ", re.MULTILINE)
    assert not [source for source in code if unwanted.search(source)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_graph_names_what_a_notebook_loads(path):
    from prunekit.workbook import project

    loaded = re.findall(r"run\.load\(\\\"(\w+)", path.read_text(encoding="utf-8"))
    assert set(project.GRAPH[path.stem]) == set(loaded)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_formulas_of_notebooks_can_be_rendered(path):
    from prunekit.report import html

    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = re.sub(r"```.*?```|`[^`\n]*`", "", "".join(cell["source"]), flags=re.DOTALL)
        if cell["cell_type"] == "markdown":
            assert '<code class="latex">' not in html.with_mathml(text), text


SAYING = {"takeaway": 0, "figure": 2, "table": 2}  # methods of a run, and where their text begins


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_takeaways_and_captions_compare_only_through_claim(path):
    """Every text in a call of `run` (also of `claim` in it, whose fields are filled from tested rows)."""
    from prunekit.evaluate.sentences import comparing

    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    calls = [node for cell in cells if cell["cell_type"] == "code"
             for node in ast.walk(ast.parse("".join(cell["source"])))
             if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
             and ast.unparse(node.func.value) == "run" and node.func.attr in SAYING]
    assert calls
    for call in calls:
        given = call.args[SAYING[call.func.attr]:]
        given += [word.value for word in call.keywords if word.arg == "caption"]
        claims = {id(part) for argument in given for node in ast.walk(argument) if isinstance(node, ast.Call)
                  for word in node.keywords for part in ast.walk(word.value)}
        texts = [node.value for argument in given for node in ast.walk(argument) if id(node) not in claims
                 and isinstance(node, ast.Constant) and isinstance(node.value, str)]
        assert not comparing(re.sub(r"\{[^{}]*\}", "", " ".join(texts))), texts


def test_the_package_never_prints():
    printing = {path.name for path in (ROOT / "prunekit").rglob("*.py")
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("print", "eval", "exec")}
    assert printing == set()


# ---------------------------------------------------------------- parameter files

PROFILES = ("embedded", "smoke", "local", "opt-125m", "opt-6.7b", "tinyllama", "llama-7b", "llama-2-7b",
            "smollm2")


@pytest.mark.skipif(len(NOTEBOOKS) < 3, reason="profiles speak of notebooks 01 to 03")
@pytest.mark.parametrize("profile", PROFILES)
def test_profiles_are_valid(profile, tmp_path, monkeypatch):
    from prunekit.workbook import params

    monkeypatch.delenv("PRUNEKIT_HOME", raising=False)
    (tmp_path / "text.txt").write_text("words")
    local = {"model": "embedded/llama", "corpus": str(tmp_path / "text.txt")}
    without_download = {"model": "embedded/llama"}
    values = params.resolve_profile(profile, {"local": local, "smollm2": without_download}.get(profile, {}))
    if profile == "embedded":
        for path in NOTEBOOKS:
            assert values[path.stem] == {name: p.default for name, p in params.read_parameters(path).items()}
    if "llama-" in profile or "opt-" in profile:
        common = values["01_data"]
        assert (common["nsamples"], common["seed"], common["corpus"]) == (128, 0, "c4")
        assert common["seqlen"] == (4096 if profile == "llama-2-7b" else 2048)


@pytest.mark.parametrize("path", sorted((ROOT / "params").glob("*-*/*.yaml")),
                         ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_published_settings_name_their_source(path):
    for line in path.read_text().splitlines():
        if line and not line.startswith(("#", "profile:")):
            assert "   # " in line, line
