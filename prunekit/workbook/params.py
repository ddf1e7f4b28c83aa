"""Typed parameters: a parameter file may change what a notebook's parameters cell declares, and nothing else.

A notebook declares its parameters as annotated literals in the cell tagged `parameters`. This module reads
that cell without running it, lays the parameter files and `--set` over the defaults, and refuses anything
that does not fit with one sentence: file, key, value, what is allowed. It loads no torch.
"""
from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from prunekit.choices import CORPORA, default_tasks
from prunekit.errors import UsageError, did_you_mean
from prunekit.workbook import checks, project

TYPES = {"str": str, "int": int, "float": float, "bool": bool}


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell: `name: annotation = default   # comment`."""

    name: str
    type: Any        # str, int, float, bool, or list[one of these]
    default: Any
    comment: str


@dataclass(frozen=True)
class Setting:
    """A value on its way to a notebook, and where it was written."""

    value: Any
    origin: str


Settings = dict[str, Setting]


# ---------------------------------------------------------------- the parameters cell

def read_parameters(path: Path) -> dict[str, Parameter]:
    """The parameters that a notebook declares, in order; UsageError for a line of another kind."""
    where = project.relative(path)
    sources = [cell["source"] for cell in project.cells(path) if project.tagged(cell, "parameters")]
    if len(sources) != 1:
        raise UsageError(f"{where}: needs exactly one cell tagged 'parameters', has {len(sources)}.")
    source = sources[0]
    try:
        declared = [_parameter(node, source.splitlines()) for node in ast.parse(source).body]
    except (SyntaxError, ValueError) as error:
        raise UsageError(f"{where}: the parameters cell may hold only lines `name: type = literal`, and "
                         f"{error}.") from None
    return {parameter.name: parameter for parameter in declared}


def _parameter(node: ast.stmt, lines: list[str]) -> Parameter:
    if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None):
        raise ValueError(f"line {node.lineno} is not one")
    comment = lines[node.end_lineno - 1].encode()[node.end_col_offset:].decode()
    try:
        kind = _annotation(node.annotation)
        return Parameter(node.target.id, kind, ast.literal_eval(node.value), comment.strip().lstrip("# "))
    except ValueError:
        raise ValueError(f"line {node.lineno} has another type or no literal") from None


def _annotation(node: ast.expr) -> Any:
    if isinstance(node, ast.Name) and node.id in TYPES:
        return TYPES[node.id]
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "list":
        return list[_annotation(node.slice)]
    raise ValueError(ast.unparse(node))


# ---------------------------------------------------------------- parameter files and --set

class _Loader(yaml.SafeLoader):
    """YAML as papermill reads it (no dates), except that a key given twice is an error."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [rule for rule in rules if rule[0] != "tag:yaml.org,2002:timestamp"]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            said = f"the key '{twice}' is given twice"
            raise yaml.constructor.ConstructorError(None, None, said, node.start_mark)
        return super().construct_mapping(node, deep)


def load_yaml(path: Path) -> dict[str, Any]:
    """A parameter file (YAML or JSON) as a dictionary, read exactly as papermill reads it."""
    where = project.relative(path)
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader) or {}
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}:" if error.problem_mark else ""
        raise UsageError(f"{where}:{line} not readable as YAML: {error.problem}.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        said = getattr(error, "strerror", None) or "it is not a text file"
        raise UsageError(f"{where}: cannot be read: {said}.") from None
    except RecursionError:
        raise UsageError(f"{where}: cannot be read: it is nested too deeply.") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UsageError(f"{where}: must be lines of the form 'key: value'.")
    return content


def parse_override(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (equals and key.isidentifier()):
        raise UsageError(f"--set {text}: must have the form key=value.")
    return key, value


def _from_text(text: str, kind: Any) -> Any:
    """What `--set key=text` means: text stands as it is, so that targets=2:4 needs no quotes."""
    if getattr(kind, "__origin__", None) is list:
        if not text.startswith("["):
            text = f"[{json.dumps(text)}]" if "(" in text else f"[{text}]"
        try:
            items = yaml.load(text, Loader=yaml.BaseLoader)
        except (yaml.YAMLError, RecursionError):
            return text
        return [_from_text(item, kind.__args__[0]) if isinstance(item, str) else item for item in items]
    try:
        return {bool: lambda t: {"true": True, "false": False}.get(t.lower(), t)}.get(kind, kind)(text)
    except ValueError:
        return text


# ---------------------------------------------------------------- checking

def validate(topic: str, settings: Mapping[str, Setting]) -> dict[str, Any]:
    """The complete, typed parameters of a notebook: its defaults with `settings` laid over them.

    Unknown keys, wrong types, impossible values and combinations, and missing files raise UsageError.
    """
    path = project.notebook(topic)
    declared = read_parameters(path)
    refuse_unknown(settings, declared, f"{topic} has no parameter")
    values = {name: p.default for name, p in declared.items()} | {key: s.value for key, s in settings.items()}

    def refuse(key: str, sentence: str) -> None:
        origin = settings[key].origin if key in settings else project.relative(path)
        raise UsageError(f"{origin}: {sentence}")

    for key, value in values.items():
        try:
            values[key] = checks.typed(key, value, declared[key].type, yaml_hint)
        except UsageError as error:
            refuse(key, str(error))
    if wrong := checks.together(values):
        refuse(*wrong)
    return values


def yaml_hint(value: Any, kind: Any) -> str:
    """What YAML has probably done to the value, and how to write it so that it arrives."""
    if kind is str and isinstance(value, bool):
        return " (YAML reads an unquoted yes, no, on or off as true or false: quote it)"
    if kind is str and isinstance(value, float):
        return f' (quote it: "{value}")'
    if kind is str and isinstance(value, int):
        n, m = divmod(value, 60)
        return f' (YAML reads an unquoted {n}:{m} as {value}: quote it: "{n}:{m}")' if n else ""
    if kind in (int, float) and isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return ""
        scientific = re.fullmatch(r"([+-]?\d+)(\.\d*)?e([+-]?)(\d+)", value.strip().lower())
        if kind is float and scientific:
            whole, fraction, sign, power = scientific.groups()
            return f" (YAML reads {value} as text: write {whole}{fraction or '.0'}e{sign or '+'}{power})"
        if isinstance(yaml.load(value, _Loader), (int, float)):
            return f" (remove the quotes: {value})" if kind is float or number.is_integer() else ""
        return f" (write {int(number)})" if number.is_integer() else ""
    if value is None:
        return " (the line has a key but no value)"
    if getattr(kind, "__origin__", None) is list and not isinstance(value, (list, dict)):
        return yaml_hint(value, kind.__args__[0]) or f" (write it as a list: [{value}])"
    return ""


# ---------------------------------------------------------------- profiles

def profile_settings(profile: str, overrides: Mapping[str, str] | None = None, base: Path | None = None
                     ) -> dict[str, Settings]:
    """Per existing notebook, what the profile's files and the overrides set (not yet checked against types).

    Every key must be known: of common.yaml and `--set` to some notebook, of NN_topic.yaml to that. One more,
    `data`, is a profile's own: a folder on this disk for what would come from the hub, see `_from_folder`.
    base: what paths of the overrides are relative to; default: the current folder.
    """
    folder = project.root() / "params" / profile
    if profile not in project.profiles():
        raise UsageError(f"There is no profile '{profile}'{did_you_mean(profile, project.profiles())}.")
    declared = {topic: read_parameters(project.notebook(topic)) for topic in project.topics()}
    known = {name: parameter for parameters in declared.values() for name, parameter in parameters.items()}
    for file in sorted(folder.iterdir()):
        if file.stem not in ("common", "expected", *project.GRAPH) or file.suffix != ".yaml":
            near = did_you_mean(file.stem, declared)
            raise UsageError(f"{project.relative(file)}: no notebook reads this file{near}.")
    known["data"] = Parameter("data", str, "", "a folder with corpora and data sets of tasks")
    common = _settings(folder / "common.yaml", known, "no notebook has a parameter")
    if (name := common.get("profile")) and name.value != profile:
        raise UsageError(f"{name.origin}: profile = {name.value!r} must be {profile!r}, the name of the "
                         "file's folder.")
    common["profile"] = Setting(profile, f"params/{profile}")
    overrides, base = overrides or {}, base or Path.cwd()
    if "profile" in overrides:
        raise UsageError(f"--set profile=…: the profile is the one named in the command, {profile}.")
    given = {key: Setting(_from_text(text, known[key].type) if key in known else text, f"--set {key}={text}")
             for key, text in overrides.items()}
    refuse_unknown(given, known, "no notebook has a parameter")
    data = {**common, **given}.get("data")
    result = {}
    for topic, parameters in declared.items():
        own = _settings(folder / f"{topic}.yaml", parameters, f"{topic} has no parameter")
        merged = {k: s for k, s in {**common, **own, **given}.items() if k in parameters}
        if data and data.value:
            place = base if "data" in given else project.root()
            defaults = {name: parameter.default for name, parameter in parameters.items()}
            merged |= _from_folder(data, place, defaults, merged)
        result[topic] = {key: absolute(key, setting, base if key in given else project.root())
                         for key, setting in merged.items()}
    return result


def _from_folder(data: Setting, base: Path, defaults: Mapping[str, Any], settings: Settings) -> Settings:
    """What a folder replaces: a corpus of the hub by FOLDER/NAME or FOLDER/web/NAME.jsonl, the data set of a
    task by FOLDER/zero_shot/TASK (but not where `folders` is set). UsageError for what it lacks."""
    folder = (base / Path(data.value).expanduser()).resolve()
    values = {**defaults, **{key: setting.value for key, setting in settings.items()}}

    def there(*places: str) -> str:
        found = next((folder / place for place in places if (folder / place).exists()), None)
        if not found:
            raise UsageError(f"{data.origin}: {folder} holds no {' and no '.join(places)}.")
        return str(found)

    def own(text: str) -> str:
        return there(text, f"web/{text}.jsonl") if text in CORPORA[1:] else text

    found = {key: each(own, value) for key, value in values.items() if key in checks.PATHS}
    found = {key: value for key, value in found.items() if value != values[key]}
    asked = default_tasks(values["model"]) if values.get("task_documents") else ()
    tasks = [task for task in values.get("zero_shot_tasks", asked) if not task.startswith("embedded")]
    if tasks and not values["folders"]:
        found["folders"] = ",".join(f"{task}={there(f'zero_shot/{task}')}" for task in tasks)
    return {key: Setting(value, data.origin) for key, value in found.items()}


def each(change: Callable[[str], str], value: Any) -> Any:
    """A text changed, or every text of a list."""
    if isinstance(value, list):
        return [each(change, part) for part in value]
    return change(value) if isinstance(value, str) else value


def _settings(file: Path, known: Mapping[str, Parameter], complaint: str) -> Settings:
    content = load_yaml(file) if file.exists() else {}
    settings = {key: Setting(value, project.relative(file)) for key, value in content.items()}
    refuse_unknown(settings, known, complaint)
    return settings


def refuse_unknown(settings: Mapping[str, Setting], known: Collection[str], complaint: str) -> None:
    """Refuse what is not a parameter, and name the nearest."""
    for key, setting in settings.items():
        if key not in known:
            raise UsageError(f"{setting.origin}: {complaint} '{key}'{did_you_mean(key, known)}.")


def absolute(key: str, setting: Setting, base: Path) -> Setting:
    """Paths that exist become absolute: a notebook works in another folder than the file's or command's. A
    link whose suffix says what it leads to, as of a cache of the hub, stays a link."""
    def found(text: str) -> str:
        path = base / Path(text).expanduser()
        if not text or not os.path.exists(path):  # a long text is no path
            return text
        there = path.resolve()
        return str(there if there.suffixes == path.suffixes else path.parent.resolve() / path.name)

    if key == "folders" and isinstance(setting.value, str):
        known = (entry.partition("=") for entry in setting.value.split(","))
        value = ",".join(f"{task}{sign}{found(folder)}" for task, sign, folder in known)
        return Setting(value, setting.origin)
    return Setting(each(found, setting.value), setting.origin) if key in checks.PATHS else setting


def resolve_profile(profile: str, overrides: Mapping[str, str] | None = None, base: Path | None = None
                    ) -> dict[str, dict[str, Any]]:
    """The complete, checked parameters of every existing notebook under a profile; as of `profile_settings`.

    Parameters that a notebook shares with one it reads from must agree between the two.
    """
    settings = profile_settings(profile, overrides, base)
    values = {topic: validate(topic, settings[topic]) for topic in settings}
    for topic, own in values.items():
        agree(f"params/{profile}", topic, own, {other: values[other] for other in project.upstream(topic)})
    return values


def agree(where: str, topic: str, own: Mapping[str, Any], upstream: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a parameter that a notebook shares with one it reads from, when their values differ."""
    for other, values in upstream.items():
        for key in sorted((own.keys() & values.keys()) - project.ITS_OWN):
            if own[key] != values[key]:
                raise UsageError(f"{where}: {key} = {own[key]!r} in {topic} but {values[key]!r} in {other}, "
                                 f"which it reads from: set {key} once, in {where}/common.yaml.")
