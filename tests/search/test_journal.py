import json
import random
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

import prunekit as pk
from prunekit.search import journal as journals
from prunekit.search.budgets import Budget
from tests.search.toy import Racing, Sloped, distance

SCRIPT = textwrap.dedent("""
    import sys
    import prunekit as pk
    from tests.search.toy import Racing, Sloped, slow_distance
    evaluator = {"racing": Racing(), "sloped": Sloped()}.get(sys.argv[2], slow_distance)
    changes = {"evolve": "both"} if sys.argv[2] == "sloped" else {}
    for generation in pk.evolve(evaluator, "modern", int(sys.argv[3]), seed=3, journal=sys.argv[1],
                                population=20, progress=False, **changes):
        pass
""")


def script(path, budget=120, evaluator="slow", **kwargs):
    command = [sys.executable, "-c", SCRIPT, str(path), evaluator, str(budget)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, **kwargs)


def lines(path):
    return [journals.stable(event) for event in journals.read(path)]


def search(path, budget=60, preset="modern", **kwargs):
    kwargs |= {"seed": 3, "journal": path, "population": 20, "progress": False}
    return list(pk.evolve(Racing(), preset, budget, **kwargs))


def test_losses_survive_as_float32():
    values = [0.1, -3.5e-8, 7e30]
    once = journals.unpack(journals.pack(values))
    assert list(once) == list(journals.unpack(journals.pack(once))) == pytest.approx(values, rel=1e-7)


@pytest.mark.parametrize("patience", [250, 4])
def test_a_search_resumed_after_each_line_is_the_undisturbed_one(tmp_path, patience):
    search(tmp_path / "whole.jsonl", 40, patience=patience)
    assert ("smallest" in set(pk.history(tmp_path / "whole.jsonl")["operator"])) == (patience == 4)
    whole = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    assert len(whole) > 80
    for cut in random.Random(0).sample(range(1, len(whole)), 12):
        part = tmp_path / f"cut-{cut}.jsonl"
        part.write_bytes(b"".join(whole[:cut]) + whole[cut][:cut % 40])  # and a torn line
        search(part, 40, patience=patience)
        assert lines(part) == lines(tmp_path / "whole.jsonl")


@pytest.mark.parametrize("evolve", ["budget", "both"])
def test_a_search_for_budgets_is_resumed_after_each_line(tmp_path, evolve):
    def run(path):
        return list(pk.evolve(Sloped(), "modern", 30, 3, path, evolve=evolve, population=8, progress=False,
                              budgets=[Budget(Sloped.places, (2, 2, 2, *(0,) * 9, -2, -2, -2))]))

    run(tmp_path / "whole.jsonl")
    whole = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    for cut in random.Random(0).sample(range(1, len(whole)), 6):
        part = tmp_path / f"cut-{cut}.jsonl"
        part.write_bytes(b"".join(whole[:cut]) + whole[cut][:cut % 40])
        run(part)
        assert lines(part) == lines(tmp_path / "whole.jsonl")
    search = pk.replay(tmp_path / "whole.jsonl")
    assert search.best.budget.places == Sloped.places and search.candidates[0].budget == Sloped.places.uniform


def test_a_larger_budget_continues_where_the_smaller_ended(tmp_path):
    search(tmp_path / "a.jsonl", 30), search(tmp_path / "a.jsonl", 60), search(tmp_path / "b.jsonl", 60)
    assert lines(tmp_path / "a.jsonl") == lines(tmp_path / "b.jsonl")


@pytest.mark.parametrize("preset", ["modern", "paper"])
def test_a_smaller_budget_keeps_a_smaller_journal_where_it_may_restart(tmp_path, preset):
    a, b, aside = (tmp_path / name for name in ("a.jsonl", "b.jsonl", "a.jsonl~"))
    search(a, 60, preset=preset), search(b, 25, preset=preset)
    whole = a.read_bytes()
    search(a, 25, preset=preset)
    assert a.read_bytes() == whole and not aside.exists()  # what is one's own is not cut unasked
    last = search(a, 25, preset=preset, restart=True)[-1]
    assert lines(a) == lines(b) and aside.read_bytes() == whole
    assert (pk.replay(a).counted, pk.replay(a).best.fitness) == (25, last.best.fitness)
    search(a, 60, preset=preset, restart=True)
    assert lines(a) == lines(aside)


@pytest.mark.parametrize("evaluator", ["slow", "sloped"])
@pytest.mark.parametrize("kills", [4, pytest.param(50, marks=pytest.mark.torture)])
def test_killed_searches_end_like_the_undisturbed_one(tmp_path, kills, evaluator):
    """kill -9 at random moments; every start resumes."""
    with script(tmp_path / "whole.jsonl", evaluator=evaluator) as process:
        assert process.wait() == 0
    rng, path, killed = random.Random(1), tmp_path / "killed.jsonl", 0
    while killed < kills:
        process = script(path, evaluator=evaluator)
        while not path.exists() or path.stat().st_size < 400:  # past the imports
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.25))
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        process.stderr.close()
        if process.returncode == 0:
            assert lines(path) == lines(tmp_path / "whole.jsonl")
            path.unlink()
    with script(path, evaluator=evaluator) as process:
        assert process.wait() == 0
    assert lines(path) == lines(tmp_path / "whole.jsonl")


def test_a_changed_byte_is_found_wherever_it_is_and_nothing_is_lost(tmp_path):
    path = tmp_path / "j.jsonl"
    search(path, 30)
    whole = path.read_bytes()
    starts = [0, *(at + 1 for at, byte in enumerate(whole[:-1]) if byte == 10)]
    for number in (1, 7, len(starts) // 2, len(starts) - 1, len(starts)):
        advice = f"head -n {number - 1}" if number > 1 else "or begin anew"
        at = starts[number - 1] + 25
        broken = bytearray(whole)
        broken[at] ^= 1
        path.write_bytes(broken)
        with pytest.raises(pk.UsageError, match=f"line {number} of the journal .* is damaged: .*{advice}"):
            search(path, 30)
        assert path.read_bytes() == broken


def test_a_missing_or_doubled_line_is_found(tmp_path):
    path = tmp_path / "j.jsonl"
    search(path, 30)
    whole = path.read_bytes().splitlines(keepends=True)
    for changed in (whole[:9] + whole[10:], whole[:10] + whole[9:]):
        path.write_bytes(b"".join(changed))
        with pytest.raises(pk.UsageError, match="line 1[01] of the journal .* is damaged"):
            search(path, 30)


@pytest.mark.parametrize("change, named", [
    ({"seed": 4}, "seed"), ({"population": 21}, "preset.population"),
    ({"evaluator": distance}, "evaluator.function"), ({"seeds": [pk.Tree.parse("W")]}, "seeds"),
])
def test_a_journal_of_another_search_is_refused_or_set_aside(tmp_path, change, named):
    path = tmp_path / "j.jsonl"
    search(path, 25)
    before = path.read_bytes()
    arguments = {"seed": 3, "population": 20, "evaluator": Racing()} | change
    evaluator = arguments.pop("evaluator")
    with pytest.raises(pk.UsageError, match=f"belongs to another search .it differs in .*{named}"):
        list(pk.evolve(evaluator, "modern", 25, journal=path, progress=False, **arguments))
    assert path.read_bytes() == before
    list(pk.evolve(evaluator, "modern", 25, journal=path, progress=False, restart=True, **arguments))
    aside = tmp_path / "j.jsonl~"
    assert aside.read_bytes() == before and journals.read(path)[0] != journals.read(aside)[0]


def test_two_searches_cannot_write_one_journal(tmp_path):
    path = tmp_path / "j.jsonl"
    first = pk.evolve(Racing(), "modern", 60, seed=3, journal=path, population=20, progress=False)
    next(first)
    with pytest.raises(pk.UsageError, match="is being written by another process"):
        search(path)
    assert journals.read(path)  # reading is always possible
    first.close()
    search(path)


def test_a_full_disk_loses_nothing(tmp_path):
    """The file may not grow beyond a limit; what was written before is whole, and the search goes on from
    there."""
    path = tmp_path / "j.jsonl"
    limited = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); " \
              "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n" + SCRIPT
    found = subprocess.run([sys.executable, "-c", limited, str(path), "racing", "60"], capture_output=True,
                           text=True, check=False)
    assert "cannot be written (File too large): make room" in found.stderr
    assert 15000 < path.stat().st_size <= 20000 and path.read_bytes().endswith(b"\n")
    search(path), search(tmp_path / "whole.jsonl")
    assert lines(path) == lines(tmp_path / "whole.jsonl")


@pytest.mark.parametrize("content, sentence", [
    (b"", "does not begin with a header"), (b"text\n", "its first line is no header"),
    (b"x" * 100_000_000, "its first line is no header"),
    (b"[" * 10_000 + b"\n", "its first line is no header"),
    (b'{"event": "header", "format"', "does not begin with a header"),
])
def test_files_that_are_no_journal(tmp_path, content, sentence):
    path = tmp_path / "j.jsonl"
    path.write_bytes(content)
    with pytest.raises(pk.UsageError, match=sentence):
        journals.read(path)
    if b"header" not in content and content:
        with pytest.raises(pk.UsageError, match=sentence):
            search(path)
        assert path.read_bytes() == content


def test_a_journal_of_another_planted_target_or_hat_is_refused(tmp_path):
    """They are of one class each, and measure different things."""
    def run(evaluator, name):
        return list(pk.evolve(evaluator, "modern", 6, 3, tmp_path / name, population=5, progress=False))

    first, second = (pk.Planted(pk.Tree.parse(text), layers=1) for text in ("mul(W, X)", "mul(W, G)"))
    run(first, "planted.jsonl"), run(pk.Shuffled((1.0, 2.0)), "hat.jsonl")
    run(pk.Planted(pk.Tree.parse("mul(W, X)"), layers=1), "planted.jsonl")  # the same, made again
    for other, name in ((second, "planted.jsonl"), (pk.Shuffled((1.0, 3.0)), "hat.jsonl"),
                        (pk.Shuffled((1.0, 2.0), seed=1), "hat.jsonl")):
        with pytest.raises(pk.UsageError, match="another search .*evaluator.state"):
            run(other, name)


def test_a_missing_journal_is_named():
    with pytest.raises(pk.UsageError, match="there is no journal nowhere.jsonl"):
        journals.read("nowhere.jsonl")


def test_tables_of_a_journal(tmp_path):
    search(tmp_path / "j.jsonl", 80)
    frame = pk.history([tmp_path / "j.jsonl"])
    assert frame["evaluated"].iloc[-1] == 80 and frame["best"].dropna().is_monotonic_decreasing
    assert (frame.loc[frame["same"].isna(), "fitness"] > -0.1).all()
    raw = [json.loads(line) for line in (tmp_path / "j.jsonl").read_text().splitlines()]
    assert len(frame) == sum(event["event"] == "evaluate" for event in raw)
    assert frame["rung"].equals(frame["windows"].map({8: 1, 20: 2, 40: 3})) and frame["rung"].nunique() > 1
    assert np.allclose(frame["loss[2:4]"] - frame["loss[0.5]"], 0.2, atol=1e-5)
    whole = frame[frame["complete"]]
    assert np.allclose(whole[["loss[0.5]", "loss[2:4]"]].mean(axis=1), whole["fitness"], atol=1e-5)
    assert frame["same"].notna().any() and list(pk.traits(frame).columns[-2:]) == ["loss[0.5]", "loss[2:4]"]
    replayed = pk.replay(tmp_path / "j.jsonl")
    family = pk.lineage(frame, replayed.best.index)
    assert family["i"].iloc[-1] == replayed.best.index and family["best"].iloc[-1]
    assert all(int(parent) in set(family["i"]) for parents in family["parents"] for parent in parents.split())
    chosen = pk.finalists(replayed.candidates.values(), 5)
    assert chosen[0] is replayed.best and set(replayed.front) <= set(chosen)


def test_two_that_restart_at_once_keep_what_was_put_aside(tmp_path, monkeypatch):
    path = tmp_path / "journal.jsonl"
    with journals.Journal(path, {"search": "old"}) as journal:
        journal.append({"event": "note", "of": "the old search"})
    old = path.read_bytes()
    lock = journals.lock

    def late(handle, sentence):  # between opening and locking the other one begins, and ends
        monkeypatch.setattr(journals, "lock", lock)
        with journals.Journal(path, {"search": "new"}, restart=True):
            pass
        lock(handle, sentence)

    monkeypatch.setattr(journals, "lock", late)
    with journals.Journal(path, {"search": "new"}, restart=True) as journal:
        assert [event["search"] for event in journal.events] == ["new"]
        journal.append({"event": "note", "of": "the new search"})
    assert path.with_name("journal.jsonl~").read_bytes() == old
    assert [event.get("of") for event in journals.read(path)] == [None, "the new search"]
