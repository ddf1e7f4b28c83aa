from __future__ import annotations

import functools
import json
import math
import random
import sys
import time

import datasets
import lm_eval.tasks
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import prunekit as pk
import prunekit.hub
from prunekit.choices import default_tasks
from prunekit.cli import main
from prunekit.embedded import tasks
from prunekit.evaluate import harness
from prunekit.evaluate.zero_shot import (
    _documents,
    _frame,
    against_guessing,
    by_limit,
    first_questions,
    log_probabilities,
)
from prunekit.models import fingerprint

RTE = [{"sentence1": f"The {a} is in the box.", "sentence2": f"There is a {b}.", "label": int(a != b),
        "idx": i}
       for i, (a, b) in enumerate([("cat", "cat"), ("dog", "cow"), ("hat", "hat"), ("cup", "pen"),
                                   ("key", "key")])]


@pytest.fixture(scope="module")
def llama():
    return pk.load_model("embedded/llama")


@pytest.fixture
def few_tasks(monkeypatch):
    """lm-eval's index without its fourteen thousand tasks."""
    index = harness._manager
    monkeypatch.setattr(harness, "_manager", lambda everything, include_path: index(False, include_path))


def score(model, tokenizer, query, choice):
    """ln p(choice | query), token by token, without lm-eval."""
    ids = tokenizer(query + choice, return_tensors="pt")["input_ids"]
    start = len(tokenizer(query)["input_ids"])
    with torch.no_grad():
        logs = model(input_ids=ids).logits[0].double().log_softmax(-1)
    return sum(logs[t - 1, ids[0, t]].item() for t in range(start, ids.shape[1]))


# ------------------------------------------------------------ the same numbers

def test_every_document_is_right_where_a_calculation_by_hand_is(llama):
    names = ["embedded_ending", "embedded_rare"]
    frame, found = pk.zero_shot(*llama, names, limit=12, return_documents=True, progress=False)
    for name in names:
        scores = [([score(*llama, d["query"], choice) for choice in d["choices"]], d)
                  for d in tasks.documents(name.removeprefix("embedded_"), 12)]
        by_hand = {"acc": [float(np.argmax(s) == d["gold"]) for s, d in scores],
                   "acc_norm": [float(np.argmax([x / len(c)
                                                 for x, c in zip(s, d["choices"], strict=True)]) == d["gold"])
                                for s, d in scores]}
        for metric, values in by_hand.items():
            rows = found[(found["task"] == name) & (found["metric"] == metric)]
            assert rows["value"].tolist() == values
            row = frame[(frame["task"] == name) & (frame["metric"] == metric)].iloc[0]
            assert (row["value"], row["n"], row["chance"]) == (pytest.approx(np.mean(values)), 12, 0.25)
            assert row["stderr"] == pytest.approx(np.std(values, ddof=1) / math.sqrt(12))
            assert row["low"] <= row["value"] <= row["high"]


def test_lm_evals_own_command_line_gives_the_same(llama, tmp_path, monkeypatch):
    from lm_eval.__main__ import cli_evaluate

    from prunekit.models import EMBEDDED

    # its own tasks are not read in, which takes ten seconds and changes nothing
    monkeypatch.setattr(lm_eval.tasks, "TaskManager",
                        functools.partial(lm_eval.tasks.TaskManager, include_defaults=False))
    monkeypatch.setattr(sys, "argv", [
        "lm-eval", "run", "--model", "hf", "--model_args",
        f"pretrained={EMBEDDED['embedded/llama']},dtype=float32", "--tasks", "embedded,embedded_recall",
        "--include_path", str(harness.EMBEDDED), "--limit", "5", "--device", "cpu", "--batch_size", "8",
        "--output_path", str(tmp_path)])
    cli_evaluate()
    results = json.loads(next(tmp_path.rglob("results_*.json")).read_text())["results"]
    frame = pk.zero_shot(*llama, ["embedded", "embedded_recall"], limit=5, progress=False)
    assert len(frame) == 15
    for row in frame.itertuples():
        assert results[row.task][f"{row.metric},none"] == pytest.approx(row.value)
        assert results[row.task][f"{row.metric}_stderr,none"] == pytest.approx(row.stderr)
    for metric in ("acc", "acc_norm"):
        mean = pk.mean_over(frame[frame["task"] != "embedded_recall"], metric)
        assert results["embedded"][f"{metric},none"] == pytest.approx(mean["value"])
        errors = frame.loc[(frame["task"] != "embedded_recall") & (frame["metric"] == metric), "stderr"]
        pooled = math.sqrt((errors ** 2).sum()) / len(errors)
        # Of a task that is all right lm-eval has no error; ours is what reaches Wilson's bound.
        assert results["embedded"][f"{metric}_stderr,none"] == pytest.approx(pooled, rel=0.1)
        assert mean["stderr"] == pytest.approx(pooled) if errors.all() else mean["stderr"] > pooled


def test_recall_is_the_greedy_continuation(llama):
    model, tokenizer = llama
    _, found = pk.zero_shot(model, tokenizer, ["embedded_recall"], limit=6, return_documents=True,
                            progress=False)
    by_hand = []
    for document in tasks.documents("popular", 6):
        text = document["query"]
        for _ in range(12):
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                best = model(input_ids=ids).logits[0, -1].argmax().item()
            text += tokenizer.decode([best])
            if "." in text[len(document["query"]):] or best == tokenizer.eos_token_id:
                break
        said = text[len(document["query"]):].split(".")[0]
        by_hand.append(float(said == document["choices"][document["gold"]]))
    assert found["value"].tolist() == by_hand


def test_the_group_is_the_packages_seven_tasks_whole():
    loaded = harness.load_tasks(["embedded"])
    assert set(loaded) == {f"embedded_{name}" for name in tasks.TASKS}
    for name, task in loaded.items():
        assert list(task.eval_docs) == list(tasks.documents(name.removeprefix("embedded_"), 500))


# ------------------------------------------------------------ what a row says, and what is left alone

def test_rows_carry_their_protocol(llama):
    model, tokenizer = llama
    loaded = harness.load_tasks(["embedded_entailment"])  # read once, and not changed by being asked
    pk.zero_shot(model, tokenizer, loaded, limit=1, progress=False)
    frame = pk.zero_shot(model, tokenizer, loaded, limit=0.01, num_fewshot=2, progress=False)
    assert frame.equals(pk.zero_shot(model, tokenizer, ["embedded_entailment"], limit=0.01, num_fewshot=2,
                                     progress=False))
    assert list(frame["metric"]) == ["acc", "acc_norm"]
    row = frame.iloc[0]
    assert (row["n"], row["num_fewshot"], row["chance"], row["limit"],
            row["task_version"]) == (5, 2, 0.5, 0.01, 1.0)
    assert row["harness"] == f"lm-eval {lm_eval.__version__}"


def test_model_tokenizer_and_generators_stay_as_they_are(llama):
    model, tokenizer = llama
    model.train()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    before = repr(tokenizer)
    pk.zero_shot(model, tokenizer, ["embedded_rare"], limit=2, progress=False)
    assert model.training and repr(tokenizer) == before
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected
    model.eval()


def test_pruning_shows_in_pairs(llama):
    """A model without its weights guesses; against the dense one the same documents are compared."""
    _, dense = pk.zero_shot(*llama, ["embedded_reference"], limit=30, return_documents=True, progress=False)
    ruined, tokenizer = pk.load_model("embedded/llama")
    pk.prune(ruined, None, method="magnitude", sparsity=0.99, progress=False)
    _, pruned = pk.zero_shot(ruined, tokenizer, ["embedded_reference"], limit=30, return_documents=True,
                             progress=False)
    row = pk.compare_documents(pruned, dense, "acc").iloc[0]
    assert row["n"] == 30 and row["verdict"] == "lower" and row["only_second"] > row["only_first"]


def test_graded_answers_get_students_interval_and_choices_scored_twice_count_once():
    """A record as lm-eval makes it, where with mutual information each choice is scored without its question
    as well: documents of 2, 4, 4 and 4 choices."""
    f1, right, choices = [0.1, 0.5, 0.6, 1.0], [1, 0, 1, 1], [2, 4, 4, 4]
    samples = [{"doc_id": i, "doc_hash": "0123456789", "filter": "none", "arguments": [()] * 2 * count,
                "metrics": ["acc", "acc_mutual_info", "f1"], "acc": one, "acc_mutual_info": one, "f1": part}
               for i, (count, one, part) in enumerate(zip(choices, right, f1, strict=True))]
    results = {"alias": "quiz"}
    for metric, values in (("acc", right), ("acc_mutual_info", right), ("f1", f1)):
        results |= {f"{metric},none": np.mean(values), f"{metric}_stderr,none": np.std(values, ddof=1) / 2}
    answers = {"samples": {"quiz": samples}, "results": {"quiz": results}, "n-shot": {"quiz": 0},
               "n-samples": {"quiz": {"effective": 4}}, "versions": {"quiz": 1},
               "configs": {"quiz": {"output_type": "multiple_choice"}}}
    frame = _frame(answers, _documents(answers["samples"]), None).set_index("metric")
    student = stats.ttest_1samp(f1, 0).confidence_interval()
    assert tuple(frame.loc["f1", ["low", "high"]]) == pytest.approx((student.low, student.high))
    wilson = stats.binomtest(3, 4).proportion_ci(method="wilson")
    assert tuple(frame.loc["acc", ["low", "high"]]) == pytest.approx((wilson.low, wilson.high))
    assert frame.loc[["acc", "acc_mutual_info"], "chance"].tolist() == [(1 / 2 + 3 / 4) / 4] * 2
    assert math.isnan(frame.loc["f1", "chance"])


def test_guesses_by_hand():
    """Of ten coins 8 fall right: 2 (45 + 10 + 1) / 2^10; none: 2 / 2^10; 8 of 8 in four choices: 1 / 4^8."""
    frame = pd.DataFrame({"task": ["a", "b", "c"], "value": [0.8, 0.0, 1.0], "low": [0.4, 0.0, 0.6],
                          "high": [0.9, 0.3, 1.0], "n": [10, 10, 8], "chance": [0.5, 0.5, 0.25]})
    found = against_guessing(frame)
    p = [112 / 2**10, 2 / 2**10, 1 / 4**8]
    assert found["p"].tolist() == pytest.approx(p)
    assert found["p_holm"].tolist() == pytest.approx([p[0], 2 * p[1], 3 * p[2]])
    assert found["verdict"].tolist() == ["indistinguishable", "lower", "higher"]
    by_hand = [[0.3, -0.1, 0.4], [-0.5, -0.5, -0.2], [0.75, 0.35, 0.75]]
    np.testing.assert_allclose(found[["difference", "low", "high"]], by_hand)


# ------------------------------------------------------------ means

def rows(**tasks_):
    return pd.DataFrame([{"task": task, "metric": metric, "value": value, "stderr": 0.03, "chance": 0.5,
                          "n": 100}
                         for task, values in tasks_.items() for metric, value in values.items()])


def test_a_mean_is_of_one_metric_over_all_tasks():
    frame = rows(rte={"acc": 0.5}, arc_easy={"acc": 0.7, "acc_norm": 0.9})
    mean = pk.mean_over(frame, "acc")
    assert (mean["value"], mean["tasks"], mean["n"]) == (pytest.approx(0.6), 2, 200)
    assert mean["stderr"] == pytest.approx(0.03 / math.sqrt(2))
    cases = [((frame,), "a mean over acc, acc_norm mixes metrics"),
             ((frame, "acc_norm"), "rte has no acc_norm"),
             ((pd.concat([frame, frame]), "acc"), "'rte' occurs more than once")]
    for arguments, message in cases:
        with pytest.raises(pk.UsageError, match=message):
            pk.mean_over(*arguments)


def test_a_mean_of_right_answers_alone_is_not_certain():
    """Of one task the interval is Wilson's: (n / (n + z^2), 1), near the rule of three, 1 - 3/n."""
    z = stats.norm.isf(0.025) ** 2
    for share, low, high in ((1.0, 50 / (50 + z), 1), (0.0, 0, z / (50 + z))):
        alone = rows(rte={"acc": share}).assign(stderr=0.0, n=50)
        assert pk.mean_over(alone)[["low", "high"]].tolist() == pytest.approx([low, high])
        documents = pd.DataFrame({"task": "rte", "metric": "acc", "value": share,
                                  "document": [f"{number}:a" for number in range(50)]})
        last = by_limit(documents).iloc[-1]
        assert [last["low"], last["high"]] == pytest.approx([low, high])
    both = pd.concat([alone, rows(arc_easy={"acc": 0.5}).assign(n=50)])
    assert pk.mean_over(both)["stderr"] > 0.03 / 2


# ------------------------------------------------------------ data from this disk, and none

@pytest.mark.parametrize("form", ["save_to_disk", "jsonl", "clone", "subsets"])
@pytest.mark.parametrize("key", ["rte", "nyu-mll/glue"])
def test_published_tasks_read_their_data_from_a_folder(llama, tmp_path, form, key):
    made = datasets.DatasetDict({split: datasets.Dataset.from_list(RTE) for split in ("train", "validation")})
    if form == "save_to_disk":
        made.save_to_disk(tmp_path)
    elif form == "jsonl":
        for split, part in made.items():
            part.to_json(tmp_path / f"{split}.jsonl")
    else:  # a hub repository: one folder for each of several subsets, named in the card, if there is one
        for subset in ("cola", "rte"):
            (tmp_path / subset).mkdir()
            for split, part in made.items():
                few = part.select(range(5 if subset == "rte" else 2))
                few.to_parquet(tmp_path / subset / f"{split}.parquet")
        splits = {s: "".join(f"  - split: {p}\n    path: {s}/{p}.parquet\n" for p in made)
                  for s in ("cola", "rte")}
        card = "".join(f"- config_name: {s}\n  data_files:\n{files}" for s, files in splits.items())
        if form == "clone":
            (tmp_path / "README.md").write_text(f"---\nconfigs:\n{card}---\n")
    frame, found = pk.zero_shot(*llama, ["rte"], datasets={key: tmp_path}, return_documents=True,
                                progress=False)
    assert list(frame["metric"]) == ["acc"] and frame["n"].item() == 5 and frame["chance"].item() == 0.5
    query = "{sentence1}\nQuestion: {sentence2} True or False?\nAnswer:"
    by_hand = [float(np.argmax([score(*llama, query.format(**d), f" {c}")
                                for c in ("True", "False")]) == d["label"]) for d in RTE]
    assert found["value"].tolist() == by_hand


@pytest.mark.parametrize("task", ["rte", "hellaswag"])  # the latter's documents are processed
def test_a_folder_without_training_documents_is_enough_for_no_examples(llama, tmp_path, task):
    question = {"activity_label": "Boxes", "ctx_a": "The ball", "ctx_b": "is", "label": "1",
                "endings": ["red.", "in the box."]}
    rows = RTE if task == "rte" else [{**question, "ind": i} for i in range(3)]
    datasets.Dataset.from_list(rows).to_json(tmp_path / "validation.jsonl")
    frame = pk.zero_shot(*llama, [task], datasets={task: tmp_path}, progress=False)
    assert (frame["n"] == len(rows)).all()
    sentence = f"'{task}' has no documents in its split 'train' to take 2 examples from"
    with pytest.raises(pk.UsageError, match=sentence):
        pk.zero_shot(*llama, [task], datasets={task: tmp_path}, num_fewshot=2, progress=False)


@pytest.mark.parametrize(("content", "reason"), [
    ('{"sentence1": "a", "label": 0}', "'sentence2' is undefined"), ('{"sentence1": ', "JSON parse error"),
    (None, "any data files")])
def test_a_folder_that_holds_something_else_is_named(llama, tmp_path, content, reason):
    if content:
        (tmp_path / "validation.jsonl").write_text(content + "\n")
    with pytest.raises(pk.UsageError) as refused:
        pk.zero_shot(*llama, ["rte"], datasets={"rte": tmp_path}, progress=False)
    assert f"task 'rte' cannot be read from {tmp_path} (" in str(refused.value)
    assert reason in str(refused.value)


def test_missing_data_is_named_at_once(llama, tmp_path, monkeypatch, few_tasks):
    monkeypatch.setattr(prunekit.hub, "_reachable", lambda endpoint: False)
    (tmp_path / "quiz.yaml").write_text(
        "task: quiz\ndataset_path: nobody/quiz-of-nothing\ndataset_name: hard\noutput_type: "
        "multiple_choice\ntest_split: test\ndoc_to_text: q\ndoc_to_choice: c\ndoc_to_target: a\nmetric_list: "
        "[{metric: acc}]\n")
    started = time.perf_counter()
    with pytest.raises(pk.UsageError) as refused:
        pk.zero_shot(*llama, ["quiz"], include_path=tmp_path, progress=False)
    assert time.perf_counter() - started < 10
    said = str(refused.value)
    assert "task 'quiz' needs the data set 'nobody/quiz-of-nothing' (hard), which cannot be had" in said
    assert "datasets={'quiz': 'FOLDER'} (--datasets quiz=FOLDER)" in said


def test_what_is_refused(llama, tmp_path, few_tasks):
    datasets.DatasetDict({"train": datasets.Dataset.from_list(RTE)}).save_to_disk(tmp_path / "rte")
    base = ("dataset_path: a/b\noutput_type: generate_until\ntest_split: test\n"
            "doc_to_text: q\ndoc_to_target: a\n")
    for name, line in {"writes": "unsafe_code: true", "script": "dataset_kwargs: {trust_remote_code: true}",
                       "metric": "metric_list: [{metric: bleurt, hf_evaluate: true}]"}.items():
        (tmp_path / f"{name}.yaml").write_text(f"task: {name}\n{base}{line}\n")
    (tmp_path / "all.yaml").write_text("group: all_of_them\ntask: [rte, script]\n")
    cases = [
        (["embeded"], {}, "no task 'embeded' (did you mean 'embedded'?)"),
        (["xyzzy"], {}, "no task 'xyzzy' (`lm-eval ls tasks` lists all"),
        ([], {}, "no task is named"),
        (["writes"], {}, "'writes' is refused, since it executes what the model writes"),
        (["all_of_them"], {}, "'script' is refused, since its data set asks for code of its own"),
        (["metric"], {}, "'metric' is refused, since its metric is code from the hub"),
        (["rte"], {"datasets": {"rt": tmp_path}},
         "'rt' is no task asked for, and no data set of one (did you mean 'rte'?)"),
        (["rte"], {"datasets": {"rte": tmp_path / "no"}}, "for 'rte' does not exist"),
        (["rte"], {"datasets": {"rte": tmp_path / "rte"}}, "has no split 'validation' (it has train)"),
        ({}, {}, "no task is named"),
        (["rte"], {"limit": 0}, "limit = 0 must be at least 1"),
        (["rte"], {"limit": True}, "limit = True must be a whole number"),
        *((["rte"], {"limit": limit}, f"limit = {limit} must be greater than 0 and below 1 (a share")
          for limit in (1.0, 2.7)),
        (["rte"], {"limit": math.nan}, "limit = nan must be a finite number"),
        (["rte"], {"limit": "3"}, "limit = '3' must be a number"),
        (["rte"], {"num_fewshot": -1}, "num_fewshot = -1 must be at least 0"),
        (["rte"], {"num_fewshot": 1.5}, "num_fewshot = 1.5 must be a whole number"),
        (["rte"], {"batch_size": "x"}, "batch_size = 'x' must be a whole number, or 'auto'"),
        (["rte"], {"batch_size": 0}, "batch_size = 0 must be at least 1"),
    ]
    for names, options, message in cases:
        with pytest.raises(pk.UsageError) as refused:
            pk.zero_shot(*llama, names, progress=False, **{"include_path": tmp_path} | options)
        assert message in str(refused.value), (names, options)
    with pytest.raises(pk.UsageError, match="'/nowhere' is not a folder"):
        pk.zero_shot(*llama, ["rte"], include_path="/nowhere")
    with pytest.raises(pk.UsageError, match="no tokenizer"):
        pk.zero_shot(llama[0], None, ["embedded"])


# ------------------------------------------------------------ the command line

def test_the_command_line_evaluates_tasks(llama, tmp_path, capsys):
    assert main(["evaluate", "--model=embedded/llama", "--tasks=embedded_rare,embedded_recall", "--limit=4",
                 f"--results={tmp_path}"]) == 0
    said = capsys.readouterr().out
    frame = pk.zero_shot(*llama, ["embedded_rare", "embedded_recall"], limit=4, progress=False)
    written = pd.read_csv(tmp_path / "zero_shot.csv")
    assert written["value"].tolist() == frame["value"].tolist()
    assert set(written["run_model"]) == {"embedded/llama"}
    assert "perplexity" not in said and "no mean of acc: embedded_recall has no acc" in said
    assert all(f"{row.metric:<10} {row.value:.4f} [{row.low:.4f}, {row.high:.4f}], 4 documents" in said
               for row in frame.itertuples())


def test_rows_say_which_model_and_adapters_they_are_of(tmp_path):
    tuning = ["--nsamples=4", "--block=32", "--no-evaluate", f"--output={tmp_path}/adapter"]
    assert main(["finetune", "--model=embedded/llama", *tuning]) == 0
    for more in ([], [f"--lora-weights={tmp_path}/adapter"]):
        assert main(["evaluate", "--model=embedded/llama", "--tasks=embedded_rare", "--limit=2",
                     f"--results={tmp_path}", *more]) == 0
    written = pd.read_csv(tmp_path / "zero_shot.csv", keep_default_na=False)
    plain, tuned = written[written["metric"] == "acc"].to_dict("records")
    assert [row["run_lora_weights"] for row in (plain, tuned)] == ["", f"{tmp_path}/adapter"]
    assert [len(row["run_lora_hash"]) for row in (plain, tuned)] == [0, 16]
    of_model = {"run_model_hash": fingerprint("embedded/llama"), "run_dtype": "float32",
                "run_version_prunekit": pk.__version__}
    assert all({key: row[key] for key in of_model} == of_model for row in (plain, tuned))


def test_a_pruned_model_is_evaluated_at_once(tmp_path, capsys):
    assert main(["prune", "--model=embedded/llama", "--method=magnitude", "--sparsity=0.6",
                 "--zero-shot=embedded_reference", "--limit=4", "--no-evaluate",
                 f"--results={tmp_path}"]) == 0
    pruned, tokenizer = pk.load_model("embedded/llama")
    pk.prune(pruned, None, method="magnitude", sparsity=0.6, progress=False)
    frame = pk.zero_shot(pruned, tokenizer, ["embedded_reference"], limit=4, progress=False)
    written = pd.read_csv(tmp_path / "zero_shot.csv")
    assert written["value"].tolist() == frame["value"].tolist()
    assert set(written["run_method"]) == {"magnitude"} and len(pd.read_csv(tmp_path / "results.csv")) == 1
    assert "mean of 1  tasks       acc_norm" in capsys.readouterr().out


@pytest.mark.parametrize(("options", "message"), [
    (["--tasks=embedded_rar"], "lm-eval has no task 'embedded_rar' (did you mean 'embedded_rare'?)."),
    (["--tasks=rte", "--datasets=rte"], "data set 'rte' is not TASK=FOLDER."),
    (["--tasks", "--limit=0"], "--limit 0.0 must be greater than 0 (documents, or a share below 1)."),
])
def test_the_command_line_refuses_before_a_model_is_loaded(few_tasks, monkeypatch, capsys, options, message):
    monkeypatch.setattr("prunekit.models.load_model", None)
    assert main(["evaluate", "--model=embedded/llama", *options]) == 2
    assert capsys.readouterr().err == f"prunekit: {message}\n"


def test_what_a_model_is_asked_if_nothing_is_said():
    assert default_tasks("embedded/opt") == ["embedded"]
    assert default_tasks("some/model") == ["boolq", "rte", "hellaswag", "winogrande", "arc_easy",
                                           "arc_challenge", "openbookqa"]
    assert set(default_tasks("some/model")) <= set(harness._manager(False, None).task_index)


# ------------------------------------------------------------ question by question

def test_the_first_questions_and_what_their_choices_score(llama):
    loaded = harness.load_tasks(["embedded_rare", "embedded_recall"])
    frame = first_questions(loaded).set_index("task")
    first = next(iter(tasks.documents("rare", 1)))
    assert frame.loc["embedded_rare", "choices"] == " / ".join(first["choices"])
    assert frame.loc["embedded_rare", "answer"] == str(first["gold"])
    assert first["query"].endswith(frame.loc["embedded_rare", "question"].removeprefix("… "))
    assert frame.loc["embedded_recall", ["scored by", "choices"]].tolist() == ["generate until", ""]
    assert frame["documents"].tolist() == [len(task.eval_docs) for task in loaded.values()]
    by_hand = [score(*llama, first["query"], choice) for choice in first["choices"]]
    llama[0].train()
    assert log_probabilities(*llama, first["query"], first["choices"]) == pytest.approx(by_hand, rel=1e-4)
    assert llama[0].training
    llama[0].eval()


def test_a_limit_is_what_the_first_documents_say(llama):
    names = ["embedded_ending", "embedded_rare"]
    frame, found = pk.zero_shot(*llama, names, limit=12, return_documents=True, progress=False)
    few, all_of_them = by_limit(found, "acc", limits=(5, 12, 500)).itertuples(index=False)
    assert (few.documents, all_of_them.documents) == (5, 12)
    for row, asked in ((few, pk.zero_shot(*llama, names, limit=5, progress=False)), (all_of_them, frame)):
        mean = pk.mean_over(asked[asked["metric"] == "acc"])
        assert (row.value, row.low, row.high) == pytest.approx((mean["value"], mean["low"], mean["high"]))
        assert row.detectable == pytest.approx(pk.detectable(2 ** 0.5 * mean["stderr"]))
    with pytest.raises(pk.UsageError, match="no task here has the metric 'accuracy'"):
        by_limit(found, "accuracy")
