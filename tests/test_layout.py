"""How the package is built: one-way imports, small files, prediction on plain data."""

import ast
import functools
from pathlib import Path

import pytest

import trvae_sc

PACKAGE = Path(trvae_sc.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
#: Files that make a prediction of a trained network.
PREDICTION = ("_codes", "_counts", "_decode", "_factors", "_predict", "_record", "_trained")


def name_of(file):
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file): file for file in FILES}


def imported(file):
    """Return the modules of the package that a file imports anywhere, also for annotations only."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name in MODULES}


@functools.cache
def imports():
    """Return by module what it imports of the others; not read where tests are collected only."""
    return {name: imported(file) - {name} for name, file in MODULES.items()}


def test_no_module_imports_what_imports_it():
    """Packages are not their modules here: their own ``__init__`` collects these."""
    graph = {
        name: {other for other in others if MODULES[other].name != "__init__.py"}
        for name, others in imports().items()
        if MODULES[name].name != "__init__.py"
    }
    for start in graph:
        reached, pending = set(), list(graph[start])
        while pending:
            name = pending.pop()
            if name not in reached:
                reached.add(name)
                pending += graph.get(name, ())
        assert start not in reached, start


def test_no_package_imports_one_that_imports_it():
    def package(name):
        parts = name.split(".")
        return ".".join(parts[:2])

    graph: dict[str, set[str]] = {}
    for name, others in imports().items():
        for other in others:
            if len(other.split(".")) > 1 and package(name) != package(other) and name != "trvae_sc":
                graph.setdefault(package(name), set()).add(package(other))
    for one, others in graph.items():
        for other in others:
            assert one not in graph.get(other, ()), (one, other)


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_files_are_short(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("name", PREDICTION)
def test_prediction_is_on_plain_data(name):
    """Not on the model object, nor on the files that have its class."""
    of_class = ("_model", "_prediction", "_training", "_inference", "_saving", "_registration")
    found = imports()[f"trvae_sc.model.{name}"]
    assert not {f"trvae_sc.model.{other}" for other in of_class} & found
    assert "trvae_sc" not in found


def test_the_family_takes_public_names_of_other_packages():
    for name, others in imports().items():
        if name.startswith("trvae_sc.family"):
            private = {
                other
                for other in others
                if not other.startswith("trvae_sc.family") and "._" in other
            }
            assert not private, (name, private)
