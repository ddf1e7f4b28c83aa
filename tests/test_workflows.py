"""What runs on GitHub names only what exists: targets of the Makefile, files, an issue form that is one."""
from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.search(r"^\.PHONY: (.+)$", MAKEFILE, re.MULTILINE)[1].split())


def steps(path: Path) -> list[dict]:
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_is_bounded_and_runs_what_exists(path):
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert content[True] and content["permissions"] == {"contents": "read"}  # YAML reads `on` as true
    for job in content["jobs"].values():
        assert job["runs-on"] and 0 < job["timeout-minutes"] <= 60
        assert set(job.get("needs", "").split()) <= content["jobs"].keys()
    commands = [shlex.split(line) for step in steps(path) for line in step.get("run", "").splitlines()]
    assert commands and all(command[0] == "make" and command[1] in TARGETS for command in commands)
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]) for step in steps(path) if "uses" in step)
    cached = [step["with"] for step in steps(path) if "cache" in step.get("with", {})]
    assert cached and all(each["cache"] == "pip" and (ROOT / each["cache-dependency-path"]).is_file()
                          and f"python{each['python-version']}" in MAKEFILE for each in cached)


def test_the_site_is_the_report_that_was_made_and_works_on_a_fork():
    path = ROOT / ".github" / "workflows" / "pages.yml"
    made = next(shlex.split(step["run"]) for step in steps(path) if "run" in step)
    profile = made[2].removeprefix("PROFILE=")
    uploaded = next(step["with"]["path"] for step in steps(path) if "upload" in step.get("uses", ""))
    assert uploaded == f"reports/{profile}" and (ROOT / "params" / profile).is_dir()
    text = path.read_text(encoding="utf-8")
    assert "if: github.event.repository.has_pages" in text and "secrets." not in text
    assert not re.search(r"github\.io|github\.com", text)   # nobody's address


def test_the_issue_form_is_one():
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert {"name", "description", "body"} <= form.keys()
        ids = [field["id"] for field in form["body"]]
        assert len(ids) == len(set(ids)) and all(field["attributes"]["label"] for field in form["body"])
        assert {field["type"] for field in form["body"]} <= {"textarea", "input", "dropdown", "markdown"}


def test_the_targets_have_recipes_and_stand_in_the_help():
    for target in TARGETS:
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), target
        assert re.search(rf"^# make {target}\b", MAKEFILE, re.MULTILINE), target
