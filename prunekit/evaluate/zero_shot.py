"""Zero-shot tasks through lm-eval, unmodified: metrics by their own names, with uncertainty and protocol.

    frame = pk.zero_shot(model, tokenizer, ["embedded"])    # or ["boolq", "rte"], or anything lm-eval knows
    pk.mean_over(frame, "acc")                              # a mean of one metric; never of a mixture
    frame, documents = pk.zero_shot(model, tokenizer, ["embedded"], return_documents=True)
    pk.compare_documents(documents, other, "acc")           # against another model, question by question
"""
from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from scipy import stats

from prunekit.choices import checked
from prunekit.errors import UsageError, did_you_mean
from prunekit.evaluate.harness import load_tasks, quiet, with_fewshot
from prunekit.evaluate.intervals import (
    Mean,
    detectable,
    graded,
    holm,
    mean_of,
    pooled,
    verdict,
    wilson,
    within,
)
from prunekit.models import in_eval_mode

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn


_COUNT = Annotated[int, Field(ge=1)]
_SHARE = Annotated[float, Field(gt=0, lt=1, description="a share; a number of documents is a whole one")]
_AUTO = Annotated[str, Field(pattern=r"^auto(:\d+)?$", description="a whole number, or 'auto'")]


def zero_shot(model: nn.Module, tokenizer: Any, tasks: Sequence[str] | Mapping[str, Any],
              limit: float | None = None, num_fewshot: int | None = 0, *, batch_size: int | str = 32,
              datasets: Mapping[str, str | Path] | None = None, include_path: str | Path | None = None,
              allow_code: bool = False, return_documents: bool = False,
              progress: bool = True) -> pd.DataFrame | tuple[pd.DataFrame, pd.DataFrame]:
    """Evaluate a model in memory on lm-eval's tasks: one row per task and metric.

    Columns: task, metric (acc and acc_norm are two; one of several filters is named as lm-eval does,
    `exact_match,strict`), value, low, high (95 %: Wilson's where answers are right or wrong, else Student's),
    stderr (lm-eval's), n (documents), num_fewshot, chance (of guessing among the choices; NaN where that
    means nothing), limit (0: none), task_version, harness.

    tasks: names of tasks, groups or tags: `embedded` (the package's seven), `embedded_recall`, boolq, rte,
    hellaswag …; or what `harness.load_tasks` gave, so that many models are asked and the data are read once.
    limit: the first documents of each task only, a number or a share; for trying out, since it is another
    protocol. num_fewshot: worked examples before each question; None: the task's own number. batch_size: a
    number, or "auto". datasets, include_path, allow_code: see `harness.load_tasks`. return_documents: also a
    frame with a row per document: task, metric, document (number and hash), value.

    Raises UsageError for options that cannot be, no or unknown tasks, tasks that run code, data sets that
    cannot be had, and a missing tokenizer.
    """
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    if tokenizer is None:
        raise UsageError("the model has no tokenizer, and tasks are text; give a model with one.")
    if limit is not None:
        checked("limit", limit, _COUNT if isinstance(limit, int) else _SHARE)
    if num_fewshot is not None:
        checked("num_fewshot", num_fewshot, Annotated[int, Field(ge=0)])
    checked("batch_size", batch_size, _AUTO if isinstance(batch_size, str) else _COUNT)
    with quiet(progress), in_eval_mode(model):
        if not tasks or not isinstance(tasks, Mapping):
            tasks = load_tasks(tasks, datasets=datasets, include_path=include_path, allow_code=allow_code)
        wrapped = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size,
                       trust_remote_code=False)
        answers = evaluate(lm=wrapped, task_dict=with_fewshot(tasks, num_fewshot), limit=limit,
                           confirm_run_unsafe_code=allow_code)
    documents = _documents(answers["samples"])
    frame = _frame(answers, documents, limit)
    return (frame, documents) if return_documents else frame


def mean_over(frame: pd.DataFrame, metric: str | None = None) -> pd.Series:
    """The mean of one metric over tasks: metric, tasks, value, low, high, stderr, chance, n.

    stderr = sqrt(sum of the tasks' squared errors) / tasks; the interval is Student's, and of shares within 0
    and 1. A task with every answer right, or none, has the error that reaches Wilson's bound, not zero.
    frame: rows of `zero_shot` for one model.

    Raises UsageError if no metric is named and the frame holds several, if a task has no such metric (a mean
    that takes acc_norm where there is one and acc elsewhere is a mean of nothing), or if a task occurs twice.
    """
    import pandas as pd

    names = list(dict.fromkeys(frame["metric"]))
    if metric is None and len(names) != 1:
        raise UsageError(f"a mean over {', '.join(names)} mixes metrics; name one, as mean_over(frame, "
                         f"'{names[0]}').")
    metric = metric or names[0]
    rows = frame[frame["metric"] == metric]
    lacking = sorted(set(frame["task"]) - set(rows["task"]))
    if lacking:
        raise UsageError(f"{', '.join(lacking)} {'have' if len(lacking) > 1 else 'has'} no {metric}; average "
                         "another metric, or choose the tasks that have it first.")
    if len(again := rows["task"][rows["task"].duplicated()]):
        raise UsageError(f"task '{again.iloc[0]}' occurs more than once; give one model's rows.")
    mean = pooled([graded(row.value, row.stderr, row.n) for row in rows.itertuples()])
    low, high = within(mean.interval(), 0, 1) if metric.startswith("acc") else mean.interval()
    return pd.Series({"metric": metric, "tasks": len(rows), "value": mean.value, "low": low, "high": high,
                      "stderr": mean.error, "chance": rows["chance"].mean(), "n": rows["n"].sum()})


# --- from lm-eval's records ---------------------------------------------------------------------------------


def _key(metric: str, kind: str) -> str:
    return metric if kind == "none" else f"{metric},{kind}"


def _documents(samples: Mapping[str, list[dict[str, Any]]]) -> pd.DataFrame:
    import pandas as pd

    rows = [{"task": task, "metric": _key(metric, sample["filter"]),
             "document": f"{sample['doc_id']}:{sample['doc_hash'][:8]}", "value": float(sample[metric])}
            for task, listed in samples.items() for sample in listed for metric in sample["metrics"]
            if isinstance(sample[metric], (bool, int, float))]
    return pd.DataFrame(rows, columns=["task", "metric", "document", "value"])


def _frame(found: Mapping[str, Any], documents: pd.DataFrame, limit: float | None) -> pd.DataFrame:
    import pandas as pd
    from lm_eval import __version__

    right = {key: values for key, values in documents.groupby(["task", "metric"])["value"]
             if set(values) <= {0.0, 1.0}}
    rows = []
    for task, samples in found["samples"].items():
        for key, value in found["results"][task].items():
            metric, _, kind = key.partition(",")
            if not kind or metric.endswith("_stderr") or isinstance(value, str):
                continue
            error = found["results"][task].get(f"{metric}_stderr,{kind}")
            error = float(error) if isinstance(error, (int, float)) else math.nan
            name = _key(metric, kind)
            n = found["n-samples"][task]["effective"]
            answers = right.get((task, name))
            low, high = (Mean(float(value), error, n - 1).interval() if answers is None
                         else wilson(answers.sum(), len(answers)))
            rows.append({"task": task, "metric": name, "value": float(value), "low": low, "high": high,
                         "stderr": error, "n": n, "num_fewshot": found["n-shot"][task],
                         "chance": _chance(found["configs"][task], metric, samples), "limit": limit or 0,
                         "task_version": found["versions"].get(task), "harness": f"lm-eval {__version__}"})
    return pd.DataFrame(rows)


def _chance(config: Mapping[str, Any], metric: str, samples: list[dict[str, Any]]) -> float:
    """Of guessing one choice of each document: the mean of 1 / choices."""
    if config.get("output_type") != "multiple_choice" or not metric.startswith("acc"):
        return math.nan
    # every choice is also scored without its question
    twice = 2 if "acc_mutual_info" in samples[0]["metrics"] else 1
    return float(sum(twice / len(sample["arguments"]) for sample in samples) / len(samples))


# --- question by question -----------------------------------------------------------------------------------


def first_questions(tasks: Mapping[str, Any]) -> pd.DataFrame:
    """What tasks of `harness.load_tasks` ask: a row for each, with its first document.

    Columns: task, scored by, documents, question (its end), choices, answer (the right choice's place, or the
    text).
    """
    import pandas as pd

    rows = []
    for name, task in tasks.items():
        first = next(iter(task.eval_docs))
        choices = task.doc_to_choice(first) if task.OUTPUT_TYPE == "multiple_choice" else []
        rows.append({"task": name, "scored by": task.OUTPUT_TYPE.replace("_", " "),
                     "documents": len(task.eval_docs), "question": f"… {str(task.doc_to_text(first))[-90:]}",
                     "choices": " / ".join(map(str, choices)), "answer": str(task.doc_to_target(first))})
    return pd.DataFrame(rows)


def log_probabilities(model: nn.Module, tokenizer: Any, question: str, choices: Sequence[str]) -> list[float]:
    """ln p(choice | question) of each choice, summed over its tokens, in nats: as lm-eval computes it."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    with quiet(progress=False), in_eval_mode(model):
        wrapped = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=len(choices))
        requests = [Instance("loglikelihood", {}, (question, choice), i) for i, choice in enumerate(choices)]
        return [total for total, _ in wrapped.loglikelihood(requests, disable_tqdm=True)]


def against_guessing(frame: pd.DataFrame) -> pd.DataFrame:
    """Are right answers more than guesses? Columns task, difference (of the share of right answers to
    chance), low, high (Wilson's), n, p (exact binomial), p_holm (over the tasks), verdict; from the rows of
    `zero_shot` that hold right or wrong answers, as acc does."""
    right = (frame["value"] * frame["n"]).round().astype(int)
    p = [float(stats.binomtest(count, n, chance).pvalue)
         for count, n, chance in zip(right, frame["n"], frame["chance"], strict=True)]
    table = frame[["task", "n"]].assign(p=p, p_holm=holm(p), **{
        name: frame[column] - frame["chance"]
        for name, column in (("difference", "value"), ("low", "low"), ("high", "high"))})
    table["verdict"] = [verdict(row.p_holm, row.difference) for row in table.itertuples()]
    return table[["task", "difference", "low", "high", "n", "p", "p_holm", "verdict"]].reset_index(drop=True)


def by_limit(documents: pd.DataFrame, metric: str = "acc",
             limits: Sequence[int] = (25, 50, 100, 200, 500, 2000)) -> pd.DataFrame:
    """The mean over tasks as it would be known if only the first documents of each task had been asked.

    documents: one model's, as `zero_shot(…, return_documents=True)` gives them. A row per limit, and one for
    all: documents (the limit), value, low, high (95 %), detectable (the smallest true difference found with
    probability 0.8 between two models that were asked so many documents each, but not the same ones).

    Raises UsageError for a metric that no task has.
    """
    import pandas as pd

    if metric not in (known := set(documents["metric"])):
        raise UsageError(f"no task here has the metric {metric!r:.40}{did_you_mean(metric, sorted(known))}.")
    answers = documents[documents["metric"] == metric]
    number = answers["document"].str.partition(":")[0].astype(int)
    rows = []
    for limit in [*(n for n in limits if n <= number.max()), number.max() + 1]:
        asked = answers[number < limit].groupby("task")["value"]
        found = [(mean_of(values.to_numpy(), running=False), len(values)) for _, values in asked]
        mean = pooled([graded(one.value, one.error, n) for one, n in found])
        low, high = within(mean.interval(), 0, 1) if metric.startswith("acc") else mean.interval()
        rows.append({"documents": limit, "value": mean.value, "low": low, "high": high,
                     "detectable": detectable(math.sqrt(2) * mean.error)})
    return pd.DataFrame(rows)
