"""Reports killed at random moments and started again end with the tables of an unbroken one."""
from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prunekit.batch.verify import compare_tables
from prunekit.workbook import project

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("PRUNEKIT_REPORT_KILLS", "20"))


def home(folder):
    for name in ("notebooks", "params"):
        shutil.copytree(ROOT / name, folder / name)
    return folder


def start(folder, log):
    environment = {**os.environ, "PRUNEKIT_HOME": str(folder), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-m", "prunekit", "run", "smoke", "--workers", "2"],
                            env=environment, stdout=log, stderr=log)


@pytest.mark.torture
def test_killed_reports_end_like_the_unbroken_one(tmp_path):
    rng, killed = random.Random(0), 0
    with open(tmp_path / "log.txt", "w") as log:
        whole, broken = home(tmp_path / "whole"), home(tmp_path / "broken")
        began = time.monotonic()
        assert start(whole, log).wait() == 0
        # The longest notebook takes a quarter: some finish, some do not.
        reach = (time.monotonic() - began) / 2
        while True:
            process = start(broken, log)
            try:
                code = process.wait(rng.uniform(0, reach) if killed < KILLS else None)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                killed += 1
                continue
            assert code == 0
            assert (broken / "reports/smoke/index.html").is_file()
            for topic in project.GRAPH:
                numbers, found = compare_tables(whole / "runs/smoke" / topic, broken / "runs/smoke" / topic)
                assert numbers and not found, topic
            if killed == KILLS:
                return
            shutil.rmtree(broken / "runs")
