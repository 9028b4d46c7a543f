"""Writers killed at every step, and commands killed at random moments, leave nothing half done."""

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

KILLING = Path(__file__).with_name("killing.py")
#: Kills expected of each call; they run side by side, for they wait most of the time.
KILLS = {
    ("random", "benchmark on Ray"): 1,
    ("random", "benchmark of two"): 3,
    ("random", "train", "predict", "select", "benchmark", "report"): 27,
}


def start(python, folder, kind, *commands):
    """Start a process that kills others, with a temporary folder of its own."""
    (folder / "tmp").mkdir(parents=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder / "tmp")}
    environment |= {"TRVAE_SC_PYTHON": sys.executable, "TRVAE_SC_WARM": python}
    environment["RAY_TMPDIR"] = "/tmp"  # its sockets need short paths
    return subprocess.Popen(
        [python, KILLING, kind, folder, *commands],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def result(process, folder):
    """Return how many kills there were and what they did wrong, and no temporary folder is left."""
    out, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert [p.name for p in (folder / "tmp").iterdir() if p.name.startswith(".trvae_sc-")] == []
    return json.loads(out.splitlines()[-1])


@pytest.mark.slow
def test_kills_at_every_step_and_at_random_leave_nothing_half_done(tmp_path, python):
    calls = [("steps",), *KILLS]
    folders = [tmp_path / str(i) for i in range(len(calls))]
    with ExitStack() as stack:
        running = [
            stack.enter_context(start(python, folder, *call))
            for folder, call in zip(folders, calls, strict=True)
        ]
        stack.callback(lambda: [process.kill() for process in running])
        steps, *found = [result(p, folder) for p, folder in zip(running, folders, strict=True)]
    assert steps["wrong"] == []
    assert steps["kills"] >= 40
    assert found == [{"kills": n, "wrong": []} for n in KILLS.values()]
