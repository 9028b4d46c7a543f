"""Writers killed at every step, and commands killed at random moments, leave nothing half done."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLING = Path(__file__).with_name("killing.py")


def kill(python, *arguments):
    """Return how many kills there were and what they did wrong, and no temporary folder is left."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(Path.cwd())}
    environment["TRVAE_SC_PYTHON"] = sys.executable
    environment["RAY_TMPDIR"] = "/tmp"  # its sockets need short paths
    done = subprocess.run(
        [python, KILLING, *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [p.name for p in Path.cwd().iterdir() if p.name.startswith(".trvae_sc-")] == []
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_killed_at_every_step_what_is_there_is_old_or_new(tmp_path, python):
    found = kill(python, "steps", tmp_path)
    assert found["wrong"] == []
    assert found["kills"] >= 40


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n_kills", "commands"),
    [
        (27, ["train", "predict", "select", "benchmark", "report"]),
        (3, ["benchmark of two"]),
        (1, ["benchmark on Ray"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else str(value),
)
def test_killed_at_random_commands_end_as_if_they_were_not(tmp_path, python, n_kills, commands):
    found = kill(python, "random", tmp_path, *commands)
    assert found == {"kills": n_kills, "wrong": []}
