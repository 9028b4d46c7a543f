"""What is said of the package is the same everywhere, and what it promises is there."""

import re
import tomllib
from importlib.metadata import metadata
from pathlib import Path

import pytest
import yaml

import trvae_sc

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
YAML = [
    *ROOT.glob("*.cff"),
    *ROOT.glob(".*.yaml"),
    *(ROOT / ".github").rglob("*.y*ml"),
    ROOT / "docs" / "meta.yaml",
]


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_one_version():
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", changes, flags=re.M)
    assert PROJECT["version"] == released[0]
    assert read(ROOT / "CITATION.cff")["version"] == PROJECT["version"]
    assert read(ROOT / "docs" / "meta.yaml")["version"] == f"v{PROJECT['version']}"


def test_typed_and_described():
    assert (Path(trvae_sc.__file__).parent / "py.typed").exists()
    found = metadata("trvae_sc")
    assert "Typing :: Typed" in found.get_all("Classifier")
    assert found["Summary"] == PROJECT["description"]


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_files_can_be_read(path):
    assert read(path)


def test_workflows_run_on_what_make_offers():
    """A target that a workflow calls, and that the Makefile lacks, would be found on a server only."""
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), flags=re.M))
    for path in (ROOT / ".github" / "workflows").glob("*.yaml"):
        for line in re.findall(r"\bmake ([\w ]+)", path.read_text(encoding="utf-8")):
            assert set(line.split()) <= targets, (path.name, line)


def test_every_supported_python_is_tested():
    jobs = read(ROOT / ".github" / "workflows" / "test.yaml")["jobs"]
    tested = {entry["python"] for entry in jobs["test"]["strategy"]["matrix"]["include"]}
    named = {c.rpartition(" ")[2] for c in PROJECT["classifiers"] if "Python :: 3." in c}
    assert named == tested
