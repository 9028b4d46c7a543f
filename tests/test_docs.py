"""Every public name has a page, and every example in docstrings, pages and README runs.

No page is built here: ``make docs`` does that, with every warning an error.
"""

import doctest
import functools
import importlib
import re
import shutil
import warnings
from pathlib import Path

import anndata
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import trvae_sc
from trvae_sc import datasets
from trvae_sc.family import Translator

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
MODULES = ["trvae_sc"] + [
    f"trvae_sc.{name}"
    for name in trvae_sc.__all__
    if hasattr(getattr(trvae_sc, name), "__path__") or name == "hub"
]
#: Written when the site is built.
MADE = {"gallery.md", "api/commands.md", "api/generated", "_build"}
PAGES = [
    path
    for path in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
    if not any(path.is_relative_to(DOCS / made) for made in MADE)
]


def named():
    """Return the names that the pages of the API describe."""
    found = set()
    for path in (DOCS / "api").glob("*.md"):
        module = "trvae_sc"
        for line in path.read_text(encoding="utf-8").splitlines():
            if match := re.match(r"\.\. (?:currentmodule|automodule):: (\S+)", line):
                module = match[1]
                found.add(module)
            elif match := re.match(r"\.\. py:data:: (\S+)", line):
                found.add(match[1])
            elif match := re.match(r"   ([\w.]+)$", line):
                found.add(f"{module}.{match[1]}")
    return found


def cells(n_cells=400, seed=1):
    """Return cells with the columns that the examples name."""
    return _cells(n_cells, seed).copy()


@functools.cache
def _cells(n_cells, seed):
    adata = datasets.simulate(n_cells, 60, n_labels=4, seed=seed)
    names = {f"type_{i}": name for i, name in enumerate(["NK", "B", "T", "DC"])}
    adata.obs["cell_type"] = adata.obs["cell_type"].cat.rename_categories(names)
    responders = ["ISG15", "IFI6", "MX1", "IFIT1", "IFIT3"]
    adata.var_names = [*responders, *adata.var_names[len(responders) :]]
    adata.obs["donor"] = np.array(["d0", "d1", "d2"])[np.arange(n_cells) % 3]
    treated = (adata.obs["condition"] == "stimulated").to_numpy()
    adata.obs["drug"] = np.where(treated, "A", "none")
    adata.obs["log_dose"] = np.where(treated, 1.0 + np.arange(n_cells) % 2, 0.0)
    return adata


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return a folder with the files that examples read."""
    folder = tmp_path_factory.mktemp("files")
    cells().write_h5ad(folder / "cells.h5ad")
    cells(seed=0).write_h5ad(folder / "cells_of_another_study.h5ad")
    return folder


@pytest.fixture
def quick(monkeypatch, files):
    """Train for an epoch and simulate few cells where nothing else is asked for, and have the files
    that examples read.
    """

    def briefly(train):
        def run(self, max_epochs=None, **kwargs):
            options = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False}
            return train(self, max_epochs or 1, **{**options, **kwargs})

        return run

    monkeypatch.setattr(trvae_sc.TRVAE, "train", briefly(trvae_sc.TRVAE.train))
    monkeypatch.setattr(Translator, "train", briefly(Translator.train))
    simulate, simulate_doses = datasets.simulate, datasets.simulate_doses

    def few(n_cells=1000, n_genes=60, *, n_labels=3, **kwargs):
        return simulate(n_cells, n_genes, n_labels=n_labels, **kwargs)

    def few_doses(doses=None, **kwargs):
        size = {"n_cells": 30, "n_genes": 60}
        return simulate_doses(doses or {"A": (1, 3), "B": (1,)}, **size | kwargs)

    monkeypatch.setattr(datasets, "simulate", few)
    monkeypatch.setattr(datasets, "simulate_doses", few_doses)
    monkeypatch.setattr("trvae_sc.report._scores._PICTURES", 1)
    monkeypatch.setattr(datasets, "kang18", cells)
    shutil.copytree(files, ".", dirs_exist_ok=True)
    yield
    plt.close("all")


# -- names ----------------------------------------------------------------------------------------------


def test_the_modules_are_those_that_are_public():
    assert {"trvae_sc.metrics", "trvae_sc.pl", "trvae_sc.hub", "trvae_sc.family"} <= set(MODULES)


def described():
    """Return what the pages describe: of names for one thing one has a page."""
    found = []
    for name in named():
        module, _, last = name.rpartition(".")
        try:
            found.append(getattr(importlib.import_module(module), last))
        except (ImportError, AttributeError, ValueError):  # a package, or a method
            continue
    return [thing for thing in found if callable(thing)]


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_has_a_page(module):
    known, things, own = named(), described(), importlib.import_module(module)
    missing = [name for name in own.__all__ if f"{module}.{name}" not in known]
    missing = [name for name in missing if not any(getattr(own, name) is t for t in things)]
    assert not missing, f"not in docs/api/*.md: {missing}"


def test_pages_name_what_exists():
    for name in sorted(named()):
        if not name.startswith("trvae_sc.TRVAE."):
            module, _, last = name.rpartition(".")
            try:
                importlib.import_module(name)
            except ImportError:
                assert hasattr(importlib.import_module(module), last), name
        else:
            assert hasattr(trvae_sc.TRVAE, name.rpartition(".")[2]), name


# -- examples -------------------------------------------------------------------------------------------


class _Checker(doctest.OutputChecker):
    """Compares output where one is written down; other examples only have to run."""

    def check_output(self, want, got, optionflags):
        return not want or super().check_output(want, got, optionflags)


def examples():
    """Return the docstrings with examples of everything public, by name."""
    finder, found = doctest.DocTestFinder(exclude_empty=True, recurse=True), {}
    for module in MODULES:
        for name in importlib.import_module(module).__all__:
            thing = getattr(importlib.import_module(module), name)
            if str(getattr(thing, "__module__", "")).startswith("trvae_sc"):
                tests = finder.find(thing, f"{module}.{name}", globs={})
                found |= {test.name: test for test in tests if test.examples}
    return found


EXAMPLES = examples()


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_in_docstrings_run(name, quick, request):
    test = EXAMPLES[name]
    if name == "trvae_sc.pathways":
        request.getfixturevalue("decoupler")
    adata = cells()
    own = ((adata.obs["cell_type"] == "NK") & (adata.obs["condition"] == "stimulated")).to_numpy()
    train, five_cells = adata[~own].copy(), adata[own][:5].copy()
    trvae_sc.TRVAE.setup_anndata(train, "condition", labels_key="cell_type")
    model = trvae_sc.TRVAE(train, n_latent=4, n_hidden=(16, 8))
    model.train()
    predicted = model.predict(target="stimulated", labels="NK")
    controls = train[train.obs["condition"] == "control"].copy()
    given = {"anndata": anndata, "controls": controls}
    given |= {"train": train, "five_cells": five_cells, "np": np, "pd": pd, "pl": trvae_sc.pl}
    for module in MODULES:  # as a reader would have imported them
        given |= {n: getattr(importlib.import_module(module), n) for n in _own_names(module)}
    given |= {"model": model, "adata": adata, "predicted": predicted}
    test.globs = {**given, "trvae_sc": trvae_sc}
    said = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        doctest.DocTestRunner(checker=_Checker()).run(test, out=said.append)
    assert not said, "".join(said)


def _own_names(module):
    return importlib.import_module(module).__all__ if module != "trvae_sc" else []


def test_docstrings_have_examples():
    assert {"trvae_sc.TRVAE", "trvae_sc.select", "trvae_sc.datasets.simulate"} <= set(EXAMPLES)


def blocks(path):
    """Return the Python blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.S | re.M)


@pytest.mark.parametrize(
    "path", [path for path in PAGES if blocks(path)], ids=lambda path: path.stem
)
def test_python_on_pages_runs(path, quick):
    """Blocks of a page run one after the other, as a reader would copy them."""
    names = {"__name__": "__main__", "trvae_sc": trvae_sc}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, block in enumerate(blocks(path)):
            exec(compile(block, f"{path.name}, block {number + 1}", "exec"), names)


# -- links ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(path):
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.S | re.M)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link or link.startswith(("#", "mailto:")):
            continue
        target = (path.parent / link.partition("#")[0]).resolve()
        notebook = target.parent == DOCS / "tutorials" and target.suffix == ".ipynb"
        target = ROOT / "tutorials" / target.name if notebook else target
        made = any(target.is_relative_to(DOCS / name) for name in MADE)
        assert made or target.exists(), link


def test_llms_txt_names_pages():
    for link in re.findall(r"\]\(([^)]+)\.html\)", (DOCS / "llms.txt").read_text("utf-8")):
        assert link in {"api/commands"} or (DOCS / f"{link}.md").exists(), link


def test_what_users_search_for_is_on_the_first_page():
    words = "perturbation prediction, unseen cell type, counterfactual, scGen, CPA, trVAE, scanpy, batch, dose"
    for word in [*words.split(", "), "drug combination", "uncertainty"]:
        for path in (DOCS / "index.md", DOCS / "llms.txt"):
            assert word in " ".join(path.read_text("utf-8").replace("> ", "").split()), word


def test_readme_is_one_page():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
