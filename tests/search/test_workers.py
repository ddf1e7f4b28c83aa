import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import BrokenExecutor

import pytest

import prunekit as pk
from prunekit.search import journal as journals
from prunekit.search.workers import KILLED
from tests.search.toy import Deadly, Racing


def events(path):
    return [journals.stable(event) for event in journals.read(path)]


def search(path, executor, evaluator=None, budget=60):
    return list(pk.evolve(evaluator or Racing(), "modern", budget, seed=5, journal=path, executor=executor,
                          population=20, progress=False))[-1]


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    path = tmp_path_factory.mktemp("serial") / "j.jsonl"
    search(path, None)
    return events(path)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_journal_does_not_depend_on_the_number_of_processes(tmp_path, serial, workers):
    with pk.open_executor("processes", workers=workers) as pool:
        search(tmp_path / "j.jsonl", pool)
    assert events(tmp_path / "j.jsonl") == serial


def test_threads_of_the_standard_library_do_as_well(tmp_path, serial):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(3) as pool:
        search(tmp_path / "j.jsonl", pool)
    assert events(tmp_path / "j.jsonl") == serial


def test_a_tree_that_kills_two_workers_is_quarantined_and_no_other(tmp_path):
    with pk.open_executor("processes", workers=2) as pool:
        search(tmp_path / "j.jsonl", pool, Deadly(), 40)
    lines = events(tmp_path / "j.jsonl")
    proposed = {event["i"]: event["tree"] for event in lines if event["event"] == "propose"}
    rejected = [event for event in lines if event["event"] == "reject"]
    killers = [proposed[event["i"]] for event in rejected if event["why"] == KILLED]
    assert killers and all("tanh" in tree for tree in killers)
    settled = [proposed[event["i"]] for event in lines if event["event"] == "evaluate"]
    assert not any("tanh" in tree for tree in settled)


def test_a_worker_that_dies_once_costs_nothing(tmp_path):
    search(tmp_path / "whole.jsonl", None, Deadly(__file__), 40)  # that file exists: nobody dies
    with pk.open_executor("processes", workers=2) as pool:
        search(tmp_path / "once.jsonl", pool, Deadly(str(tmp_path / "died")), 40)
    assert (tmp_path / "died").exists()
    assert events(tmp_path / "once.jsonl") == events(tmp_path / "whole.jsonl")


def test_dask_with_a_scheduler_of_its_own_and_a_worker_killed(tmp_path, serial):
    from distributed import LocalCluster, Nanny

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1") as cluster:
        victims = [worker.pid for worker in cluster.workers.values() if isinstance(worker, Nanny)]
        killer = threading.Timer(0.5, lambda: os.kill(victims[0], signal.SIGKILL))
        killer.start()
        with pk.open_executor("dask", address=cluster.scheduler_address) as pool:
            search(tmp_path / "j.jsonl", pool, _Slow())
        killer.join()
    assert [event for event in events(tmp_path / "j.jsonl")[1:]] == serial[1:]


class _Slow(Racing):
    def __call__(self, tree, race, seen, raw):
        time.sleep(0.03)
        return super().__call__(tree, race, seen, raw)


@pytest.mark.parametrize("arguments, sentence", [
    ({"kind": "threads"}, "executor kind 'threads' is not known"),
    ({"kind": "processes", "workers": 0}, "give a number of"),
    ({"kind": "serial", "address": "tcp://x"}, "has no address"),
    ({"kind": "serial", "workers": 4}, "has no 4 workers; give kind"),
    ({"kind": "dask", "address": "nonsense://127.0.0.1:1"}, "no Dask scheduler answers at nonsense"),
])
def test_bad_executors(arguments, sentence):
    with pytest.raises(pk.UsageError, match=sentence):
        pk.open_executor(**arguments)


def test_something_that_is_no_executor():
    with pytest.raises(pk.UsageError, match="has no submit"):
        list(pk.evolve(Racing(), budget=10, executor=3, progress=False))


def test_a_worker_leaves_ctrl_c_to_its_owner():
    with pk.open_executor("processes", workers=1) as pool:
        assert pool.submit(signal.getsignal, signal.SIGINT).result() == signal.SIG_IGN


def test_a_worker_that_dies_is_noticed_while_another_works(monkeypatch):
    """However long it took to start: the pool looks for dead workers among those that it knew of."""
    pool = pk.open_executor("processes", workers=2)
    pool.submit(os.getpid).result()
    time.sleep(0.2)   # until the pool knows that its only worker is idle
    spawn = pool._pool._spawn_process
    monkeypatch.setattr(pool._pool, "_spawn_process", lambda: (time.sleep(0.3), spawn()))
    long, dying = pool.submit(time.sleep, 60), pool.submit(os._exit, 1)
    with pytest.raises(BrokenExecutor):
        dying.result(timeout=20)
    assert isinstance(long.exception(timeout=20), BrokenExecutor)   # it goes with the pool
    pool.shutdown(wait=False, cancel_futures=True)


def test_no_worker_outlives_its_pool(tmp_path):
    before = set(multiprocessing.active_children())
    pool = pk.open_executor("processes", workers=2)
    pool.submit(time.sleep, 1000)
    pool.submit(os.kill, os.getpid(), 0).result()
    pool.renew()
    pool.submit(time.sleep, 1000)
    pool.shutdown(wait=False, cancel_futures=True)
    until = time.monotonic() + 30
    while set(multiprocessing.active_children()) - before and time.monotonic() < until:
        time.sleep(0.05)
    assert not set(multiprocessing.active_children()) - before


@pytest.mark.parametrize("kind", ["processes", "dask"])
def test_every_worker_sees_a_gpu_of_its_own(monkeypatch, kind):
    """Three workers, two GPUs that are not there; a pool's are chosen before an argument (a model) is read;
    Dask reads arguments in its scheduler, too."""
    asked = (_given, _Read()) if kind == "processes" else (_gpu,)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    seen, until = {}, time.monotonic() + 60
    with pk.open_executor(kind, workers=3) as pool:
        while len(seen) < 3 and time.monotonic() < until:
            seen |= dict(call.result() for call in [pool.submit(*asked) for _ in range(6)])
    assert sorted(seen.values()) == ["5", "5", "7"]


class _Read:
    """Becomes, where it is unpickled, what that process sees."""

    def __reduce__(self):
        return _gpu, ()


def _gpu():
    time.sleep(0.05)  # so that no worker takes all calls
    return os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"]


def _given(read):
    return read


@pytest.mark.parametrize("named", ["3", ""])
def test_one_gpu_or_none_is_left_to_all(monkeypatch, named):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    with pk.open_executor("processes", workers=1) as pool:
        assert pool.submit(_gpu).result()[1] == named
