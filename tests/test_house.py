"""The house stays as it was built: short lines, imports one way, a budget for each room, names that exist."""
from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Lines of Python, at most: the plan's number, or, where a room is larger still, today's: it should fall.
BUDGETS = {
    "__init__": 90, "__main__": 10, "errors": 30, "files": 195, "hub": 213, "parallel": 162, "choices": 209,
    "models": 503, "data": 579, "embedded": 803, "metric": 1560, "pruning": 2136, "streaming": 755,
    "evaluate": 1747, "search": 2465, "analysis": 1069, "lora": 772, "figures": 676, "workbook": 1838,
    "batch": 836, "report": 1045, "ledger": 677, "course": 1007, "cli": 1045, "progress": 20,
}

# Lines of code in a notebook, at most; a larger number is today's, and should fall.
SHORT, LONGER = 200, {"03_baselines": 225}


def room(path: str | Path) -> str:
    """`metric` of prunekit/metric/tree.py, `data` of prunekit/data.py, `tests` of tests/test_data.py."""
    first, *rest = (ROOT / path).relative_to(ROOT).parts
    return Path(rest[0]).stem if first == "prunekit" else first


def run(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})


def test_lines_are_short_and_imports_absolute():
    found = json.loads(run("-m", "ruff", "check", "--no-cache", "--output-format=json", ".").stdout)
    told = [f"{Path(each['filename']).relative_to(ROOT)}:{each['location']['row']}: {each['message']}"
            for each in found]
    assert not told, "\n".join(told)


def test_imports_run_one_way_and_never_in_circles():
    """The contracts in pyproject.toml."""
    code = "from importlinter.cli import lint_imports; lint_imports(no_cache=True, no_logo=True)"
    checked = run("-c", code)
    assert "0 broken" in checked.stdout, checked.stdout


def test_every_name_that_is_used_exists():
    """mypy, as pyproject.toml sets it."""
    said = run("-m", "mypy", "--cache-dir", os.devnull).stdout
    assert re.search(r"(checked|in) \d+ source files", said), said
    told = [line for line in said.splitlines() if ": error: " in line]
    assert not told, "\n".join(told)


def test_every_room_keeps_to_its_budget():
    lines = Counter()
    for path in (ROOT / "prunekit").rglob("*.py"):
        lines[room(path)] += len(path.read_text(encoding="utf-8").splitlines())
    assert lines.keys() == BUDGETS.keys()
    over = [f"{name}: {count} lines where {BUDGETS[name]} are allowed" for name, count in lines.items()
            if count > BUDGETS[name]]
    assert not over, "; ".join(over)


def test_notebooks_are_short():
    """Counted are lines of code cells that are neither blank nor a comment alone; not the cell of parameters,
    nor the answers, checks and solutions of exercises."""
    others = {"parameters", "answer", "check", "solution"}
    lines = {}
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"
                         and not others & set(cell["metadata"].get("tags", [])))
        lines[path.stem] = len(re.findall(r"^ *[^\s#].*$", code, re.MULTILINE))
    over = [f"{name}: {count} lines where {LONGER.get(name, SHORT)} are allowed"
            for name, count in lines.items() if count > LONGER.get(name, SHORT)]
    assert lines and not over, "; ".join(over)


def test_progress_bars_come_from_one_place():
    """A bar on stderr is red in a notebook; what runs in a terminal alone may say so itself."""
    asked = {room(path) for path in (ROOT / "prunekit").rglob("*.py")
             if re.search(r"^ *(from|import) tqdm", path.read_text(encoding="utf-8"), re.MULTILINE)}
    assert asked <= {"progress", "batch", "course"}


def test_windows_can_import_the_package():
    """No module asks at its top for what only Unix has; locks work through what both have."""
    unix = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
    for path in (ROOT / "prunekit").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            asked = unix & (names | {getattr(node, "module", None)})
            assert not asked, f"{path} imports {asked}"
    imported = run("-c", "import sys; sys.modules['fcntl'] = None; import prunekit.files")
    assert imported.returncode == 0, imported.stderr
