"""lm-eval's tasks by name: found, checked before any download, and loaded, from this disk where asked."""
from __future__ import annotations

import copy
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr
from difflib import get_close_matches
from functools import lru_cache
from os import devnull
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prunekit.choices import TASKS
from prunekit.errors import UsageError, did_you_mean
from prunekit.hub import hub_or_cache

# for lm-eval's own command line: --include_path
EMBEDDED = Path(__file__).parents[1] / "embedded" / "lm_eval"
_SEEDS = {"python": 0, "numpy": 1234, "torch": 1234, "fewshot": 1234}  # lm-eval's own defaults


def load_tasks(names: Sequence[str], *, datasets: Mapping[str, str | Path] | None = None,
               include_path: str | Path | None = None, allow_code: bool = False) -> dict[str, Any]:
    """lm-eval's task objects by name, groups and tags resolved; their data sets are loaded (downloaded) here.

    datasets: task name or hub id -> folder that holds that data set: one written by `save_to_disk`, a clone
    of its hub repository, or files `{train,validation,test}.{jsonl,parquet,csv}`. include_path: a folder of
    YAML tasks of your own.

    Raises UsageError for unknown names, tasks that run code, and data sets that cannot be had.
    """
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise UsageError("no task is named; give some, as ['embedded'] or ['boolq', 'rte'].")
    manager = _manager_for(names, str(include_path) if include_path else None)
    local = dict(datasets or {})
    parts = {name: list(_leaves(manager, name)) for name in names}
    configs = {leaf: manager.task_index[leaf].cfg or {} for leaves in parts.values() for leaf in leaves}
    if not allow_code:
        _refuse_code(configs)
    _check_datasets(local, configs)
    tasks: dict[str, Any] = {}
    for name, leaves in parts.items():
        split = {leaf: _folder(leaf, configs[leaf], local) for leaf in leaves}
        specs = [_from_folder(leaf, configs[leaf], folder) if folder else leaf
                 for leaf, folder in split.items()]
        parted = zip(specs, split.values(), strict=True) if any(split.values()) else [(name, None)]
        for spec, folder in parted:
            tasks |= _load(manager, spec, {leaf: configs[leaf] for leaf in leaves}, folder)
    return tasks


@contextmanager
def generators_kept() -> Iterator[None]:
    """Afterwards the generators of random, NumPy and torch are as before."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


@contextmanager
def quiet(progress: bool) -> Iterator[None]:
    """Inside, the seeds of lm-eval's command line, only errors in its log, and no bars unless `progress`."""
    log = logging.getLogger("lm_eval")
    level = log.level
    try:
        log.setLevel(logging.ERROR)
        with generators_kept(), ExitStack() as stack:
            if not progress:
                stack.enter_context(redirect_stderr(stack.enter_context(open(devnull, "w"))))
            random.seed(_SEEDS["python"])
            np.random.seed(_SEEDS["numpy"])
            torch.manual_seed(_SEEDS["torch"])
            yield
    finally:
        log.setLevel(level)


def with_fewshot(tasks: Mapping[str, Any], count: int | None) -> dict[str, Any]:
    """Copies of the tasks, as with lm-eval's `--num_fewshot`: one that fixes zero examples keeps them."""
    copies = {name: copy.copy(task) for name, task in tasks.items()}
    for task in copies.values():
        task._config = copy.copy(task.config)
        own = task.get_config("num_fewshot")
        if own is None or (count is not None and own != 0):
            task.set_config(key="num_fewshot", value=count or 0)
        task.set_fewshot_seed(seed=_SEEDS["fewshot"])
        examples = getattr(getattr(task, "sampler", None), "df", True)
        if (wanted := task.get_config("num_fewshot")) and not examples:
            split = task.config.fewshot_split or task.config.training_split
            raise UsageError(f"task '{task.config.task}' has no documents in its split '{split}' to take "
                             f"{wanted} examples from; add that split to its folder, or ask without any.")
    return copies


# --- names --------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def _manager(everything: bool, include_path: str | None) -> Any:
    """An index of tasks: of the embedded and published ones' folders, or (ten seconds) of all."""
    import lm_eval.tasks

    home = Path(lm_eval.tasks.__file__).parent
    few = [] if everything else sorted({home / folder for folder in TASKS.values()})
    own = [Path(include_path).expanduser()] if include_path else []
    with quiet(progress=False):
        return lm_eval.tasks.TaskManager(include_path=[*few, EMBEDDED, *own], include_defaults=everything)


def _manager_for(names: Sequence[str], include_path: str | None) -> Any:
    if include_path and not Path(include_path).expanduser().is_dir():
        raise UsageError(f"include_path '{include_path}' is not a folder; give one that holds lm-eval's YAML "
                         "files.")
    if all(name in (manager := _manager(False, include_path)).task_index for name in names):
        return manager
    manager = _manager(True, include_path)
    unknown = [name for name in names if name not in manager.task_index]
    if unknown:
        near = get_close_matches(unknown[0], manager.all_tasks, n=1)
        listed = "`lm-eval ls tasks` lists all; the package's own are in 'embedded'"
        hint = f"did you mean '{near[0]}'?" if near else listed
        raise UsageError(f"lm-eval has no task '{unknown[0]}' ({hint}).")
    return manager


def _leaves(manager: Any, name: str) -> Iterator[str]:
    """The tasks behind a task, a tag or a group (those that a group defines inline are not in the index)."""
    entry = manager.task_index[name]
    kind = entry.kind.name
    if kind not in ("TAG", "GROUP"):
        yield name
        return
    children = entry.tags if kind == "TAG" else entry.cfg["task"]
    for child in sorted(children) if isinstance(children, set) else children:
        child = child if isinstance(child, str) else child.get("task") or child.get("group")
        if isinstance(child, str) and child in manager.task_index:
            yield from _leaves(manager, child)


def _refuse_code(configs: Mapping[str, Mapping[str, Any]]) -> None:
    for name, config in configs.items():
        metrics = [metric for metric in config.get("metric_list") or [] if isinstance(metric, dict)]
        reasons = {"it executes what the model writes": config.get("unsafe_code"),
                   "its data set asks for code of its own":
                       (config.get("dataset_kwargs") or {}).get("trust_remote_code"),
                   "its metric is code from the hub": any(metric.get("hf_evaluate") for metric in metrics)}
        why = next((reason for reason, given in reasons.items() if given), None)
        if why:
            raise UsageError(f"task '{name}' is refused, since {why}; say allow_code=True (--allow-code) "
                             "where that is safe.")


# --- data ---------------------------------------------------------------------------------------------------


def _check_datasets(local: Mapping[str, Any], configs: Mapping[str, Mapping[str, Any]]) -> None:
    known = {*configs, *(config["dataset_path"] for config in configs.values() if config.get("dataset_path"))}
    for key, folder in local.items():
        if key not in known:
            raise UsageError(f"datasets: '{key}' is no task asked for, and no data set of "
                             f"one{did_you_mean(key, sorted(known))}.")
        if not Path(folder).expanduser().is_dir():
            raise UsageError(f"datasets: the folder '{folder}' for '{key}' does not exist.")


def _folder(name: str, config: Mapping[str, Any], local: Mapping[str, Any]) -> Path | None:
    found = local.get(name) or local.get(config.get("dataset_path"))
    return Path(found).expanduser() if found else None


def _from_folder(name: str, config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The task with its data from a folder, as a group of one, which is how lm-eval changes settings."""
    def read(**_: Any) -> Any:
        asked = [split for split in (config.get("test_split"), config.get("validation_split")) if split][:1]
        data = _read(folder, config.get("dataset_name"), asked)
        for split in {config.get("training_split"), config.get("fewshot_split")} - {None, *data}:
            data[split] = data[asked[0]].select([])  # lm-eval reads the examples even where it shows none
        return data

    return {"group": f"{name} from a folder",
            "task": [{"task": name, "custom_dataset": read, "dataset_kwargs": {}}]}


def _read(folder: Path, subset: str | None, needed: Sequence[str]) -> Any:
    from datasets import DatasetDict, get_dataset_config_names, load_dataset, load_from_disk

    for place in (folder / (subset or ""), folder):
        if (place / "dataset_dict.json").is_file():
            data = load_from_disk(str(place))
            break
    else:
        if subset in get_dataset_config_names(str(folder)):
            data = load_dataset(str(folder), subset)
        else:  # not the subsets' union, where each has a folder
            own = folder / (subset or "")
            data = load_dataset(str(own if own.is_dir() else folder))
    missing = [split for split in needed if split not in data]
    if missing or not isinstance(data, DatasetDict):
        raise UsageError(f"the data set in {folder} has no split '{missing[0]}' (it has {', '.join(data)}).")
    return data


def _load(manager: Any, spec: str | dict[str, Any], configs: Mapping[str, Mapping[str, Any]],
          folder: Path | None = None) -> dict[str, Any]:
    try:
        with hub_or_cache():
            return manager.load([spec])["tasks"]
    except UsageError:
        raise
    except ImportError as error:
        raise UsageError(f"task {_named(configs)} needs the package '{error.name}'; install it.") from error
    except Exception as error:  # the hub client and datasets raise a dozen kinds of error for one fact
        named = [(c.get("dataset_path"), c.get("dataset_name")) for c in configs.values()]
        data = dict.fromkeys(f"'{path}'" + (f" ({name})" if name else "") for path, name in named if path)
        cause = error.__cause__ or error
        reason = next(iter(str(cause).strip().splitlines()), "")[:150] or type(cause).__name__
        if folder:
            raise UsageError(f"task {_named(configs)} cannot be read from {folder} ({reason}); that folder "
                             f"should hold the splits and fields of {', '.join(data)}, for instance as "
                             "{train,validation,test}.jsonl.") from error
        raise UsageError(f"task {_named(configs)} needs the data set {', '.join(list(data)[:3])}, which "
                         f"cannot be had ({reason}); connect to the network once, or give a folder that "
                         f"holds it: datasets={{'{next(iter(configs))}': 'FOLDER'}} (--datasets "
                         f"{next(iter(configs))}=FOLDER).") from error


def _named(configs: Mapping[str, Any]) -> str:
    names = list(configs)
    return f"'{names[0]}'" + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")
