"""The report in a browser: no error, nothing sideways; sorting, filters, search and downloads work."""

import contextlib
import csv
import io
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from trvae_sc.evaluation import Results
from trvae_sc.report import report

sync_api = pytest.importorskip("playwright.sync_api")

EVIL = 'g,"0"</script><img src=x onerror=alert(1)>'
GENES = ["ISG15", "IFI6", EVIL, "B2M"]
#: Real change, predicted change, lower and upper end of every gene, by label.
CHANGES = {
    "B": [
        [2.0, -1.0, 0.5, 0.0],
        [1.5, -0.5, 0.25, 0.1],
        [1.0, -1.5, 0.0, -1.0],
        [1.75, 0.5, 0.5, 1.0],
    ],
    "T cell": [[1.0, 0.0, 3.0, 0.25], [0.5, 0.5, 1.0, 0.0], None, None],
}
RANKS = {"label 10": 0.5, "label 9": 0.75, "B": 0.25, "T cell": 0.875, "Mono": -1.0}
WIDTHS = [1200, 390]


def record(method, label, r2, *, seed=0):
    real, predicted, lower, upper = CHANGES.get(label, CHANGES["T cell"])
    changes = {"gene": GENES, "real_change": real, "predicted_change": predicted}
    if lower is not None:
        changes |= {"change_lower": lower, "change_upper": upper}
    return {
        "method": method,
        "identity": method,
        "holdout": {"label": label, "source": "ctrl", "target": "stim", "key": None, "also": []},
        "seed": seed,
        "scores": [
            ["delta", "effect_r2", "top100", r2],
            ["delta", "effect_r2", "all", r2],
            ["delta", "energy_distance", "pcs", 1 - r2],
        ],
        "genes": {"delta": changes},
        "changes": changes,
        "n_genes": 4,
        "notes": ["a note"],
        "history": {"kl_weighted_train": [1.0, 2.0]},
        "epochs": [2, 2],
        "preset": "default",
        "seconds": 1.0,
    }


def make_results():
    """Return results of five labels and two methods; one combination is missing."""
    records = [
        record(method, label, r2 - less, seed=seed)
        for label, r2 in RANKS.items()
        for method, less, seed in (("mean_shift", 0.125, 0), ("trvae", 0.0, 0), ("trvae", 0.0, 1))
    ]
    run = {
        "format": 4,
        "data": "0" * 64,
        "n_obs": 1234,
        "n_vars": 4,
        "keys": {"condition_key": "condition", "labels_key": "cell_type"},
        "n_top_genes": None,
        "design": {
            "labels": [*RANKS, "NK"],
            "conditions": ["ctrl", "stim"],
            "cells": [*([40, 20] for _ in RANKS), [30, 0]],
        },
        "versions": {"trvae_sc": "0.2.0"},
        "started": "2026-01-02T03:04:05+00:00",
        "command": "trvae-sc benchmark " + "a-long-name-of-a-file" * 8,
    }
    return Results(run, records)


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """Return a page with everything in it."""
    pathways = pd.DataFrame(
        {
            "label": ["B", "NK"],
            "pathway": "interferon",
            "n_genes": 5,
            "score": [3.0, -1.0],
            "qval": 0.5,
        }
    )
    ranking = {"label": ["NK"], "condition": ["stim"], "expected_error": [0.5]}
    ranking = pd.DataFrame({**ranking, "lowers": [1.0], "left": [0.0]})
    path = tmp_path_factory.mktemp("page") / "report.html"
    text = report(make_results(), pathways=pathways, next_experiments=ranking)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser():
    """Return a headless browser; there is none on some machines."""
    with sync_api.sync_playwright() as tool:
        names = ("chromium", "chromium-browser", "google-chrome")
        found = [path for path in map(shutil.which, names) if path]
        found += [tool.chromium.executable_path] * Path(tool.chromium.executable_path).exists()
        if not found:
            pytest.skip("no Chromium")
        started = tool.chromium.launch(
            executable_path=found[0], args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield started
        started.close()


@contextlib.contextmanager
def opened(browser, file, width=1200, **options):
    """Open a file; whatever the page says, asks for or fails at is an error."""
    context = browser.new_context(viewport={"width": width, "height": 800}, **options)
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.resolve().as_uri())
    if options.get("java_script_enabled", True):
        page.wait_for_selector("#gene-plot circle")
    yield page
    context.close()
    assert said == []
    assert {url.split(":")[0] for url in asked} <= {"file", "data", "blob"}


def column(page, table, number):
    """Return the texts of the visible cells of a column."""
    cells = page.locator(f"{table} tbody tr:visible td:nth-child({number})").all_inner_texts()
    return [text.split("\n")[0] for text in cells]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_said_and_nothing_is_wider_than_the_window(browser, page_file, width, scheme):
    with opened(browser, page_file, width, color_scheme=scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == width
        images = page.evaluate("[...document.images].map(i => [i.naturalWidth, i.width])")
        assert len(images) == 2 + 2 + 5 + 1 + 1  # design, scores, genes, training, pathways
        assert all(natural > 300 and drawn <= max(width, 544) for natural, drawn in images)
        narrow = page.evaluate(
            "[...document.querySelectorAll('section img')].map(i => i.closest('.wide') ? 0 : i.width)"
        )
        assert max(narrow) <= width
        back = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", back))) < 200) == (scheme == "dark")
        assert page.locator("#gene-static").is_hidden()
        for link in page.locator("nav a").all():
            link.click()
            assert page.locator(link.get_attribute("href")).is_visible()


@pytest.mark.parametrize("width", WIDTHS)
def test_tables_are_sorted_by_a_click(browser, page_file, width):
    with opened(browser, page_file, width) as page:
        heads = page.locator("#verdict-table th")
        model = heads.nth(2)
        assert model.get_attribute("aria-sort") == "none"
        model.locator("button").click()
        assert model.get_attribute("aria-sort") == "descending"
        falling = ["T cell", "label 9", "label 10", "B", "Mono"]
        assert column(page, "#verdict-table", 1) == falling
        model.locator("button").press("Enter")
        assert model.get_attribute("aria-sort") == "ascending"
        assert column(page, "#verdict-table", 1) == falling[::-1]
        heads.nth(0).locator("button").click()
        assert column(page, "#verdict-table", 1) == ["B", "label 9", "label 10", "Mono", "T cell"]
        assert [head.get_attribute("aria-sort") for head in heads.all()] == [
            "ascending",
            *["none"] * 4,
        ]


@pytest.mark.parametrize("width", WIDTHS)
def test_tables_are_filtered_by_words(browser, page_file, width):
    with opened(browser, page_file, width) as page:
        field = page.get_by_label("Filter scores")
        field.fill("TRVAE label")
        assert sorted(column(page, "#score-table", 1)) == ["label 10", "label 9"]
        assert page.get_by_text("2 of 10 rows").is_visible()
        field.fill("nothing like it")
        assert column(page, "#score-table", 1) == []
        field.fill("")
        assert len(column(page, "#score-table", 1)) == 10


@pytest.mark.parametrize("width", WIDTHS)
def test_a_gene_is_shown_in_all_labels(browser, page_file, width):
    with opened(browser, page_file, width) as page:
        rows = "#gene-rows tbody tr"
        page.get_by_label("Gene", exact=True).fill("ifi6")  # case does not matter
        texts = [row.inner_text().split("\t") for row in page.locator(rows).all()]
        found = {row[0].split("\n")[0]: row[1:] for row in texts}
        assert found["B"] == ["-0.50", "-1.50 to 0.50", "-1.00"]
        assert found["T cell"] == ["0.50", "", "0.00"]
        assert len(found) == 5
        plot = page.locator("#gene-plot svg")
        assert plot.get_attribute("aria-label") == "Change of IFI6 in each label"
        assert plot.locator("circle").count() == 5
        assert plot.locator("path.real").count() == 5
        assert plot.locator("line.interval").count() == 1
        at = {
            mark: plot.locator(f"{mark} >> nth=0").bounding_box()
            for mark in ("circle", "path.real")
        }
        first = page.locator(rows).first.inner_text()
        assert first.startswith("B\n")
        assert at["path.real"]["x"] < at["circle"]["x"]  # -1.0 and -0.5
        names = page.locator("#gene-names option").all()
        assert sorted(o.get_attribute("value") for o in names) == sorted(GENES)

        page.get_by_label("Gene", exact=True).fill("m")
        assert page.locator(rows).count() == 0
        page.get_by_role("button", name="B2M").click()
        assert page.locator(rows).first.inner_text().split("\t")[1:] == [
            "0.10",
            "-1.00 to 1.00",
            "0.00",
        ]
        page.get_by_label("Gene", exact=True).fill("nothing")
        assert page.get_by_text("No gene has these letters.").is_visible()
        page.get_by_label("Gene", exact=True).fill(EVIL)  # a name is a text
        assert page.locator(rows).count() == 5


def test_a_gene_from_several_sources_has_a_name_for_each(browser, tmp_path):
    results = make_results()
    other = [r | {"holdout": r["holdout"] | {"source": "stim_2"}} for r in results.records]
    path = tmp_path / "report.html"
    path.write_text(report(Results(results.run, results.records + other)), encoding="utf-8")
    with opened(browser, path) as page:
        names = [title.text_content() for title in page.locator("#gene-plot title").all()]
        assert len(set(names)) == 10
        assert {"B \u2192 stim from ctrl", "B \u2192 stim from stim_2"} <= set(names)


def downloaded(page, link):
    with page.expect_download() as waiting:
        page.locator(link).click()
    return waiting.value.suggested_filename, Path(waiting.value.path()).read_bytes().decode()


@pytest.mark.parametrize("width", WIDTHS)
def test_files_are_what_the_tables_show(browser, page_file, width):
    with opened(browser, page_file, width) as page:
        name, text = downloaded(page, "#genes-csv")
        assert name == "genes.csv"
        genes = pd.read_csv(io.StringIO(text)).set_index(["label", "gene"])
        assert len(genes) == 5 * 4
        for label, (real, predicted, lower, upper) in CHANGES.items():
            own = genes.loc[label].loc[GENES]
            assert own["real_change"].tolist() == real
            assert own["change"].tolist() == predicted
            assert own["lower"].isna().all() if lower is None else own["lower"].tolist() == lower
            assert own["upper"].isna().all() if upper is None else own["upper"].tolist() == upper

        name, text = downloaded(page, "#scores-csv")
        assert name == "scores.csv"
        table = list(csv.DictReader(io.StringIO(text)))
        shown = [
            row.inner_text().split("\t") for row in page.locator("#score-table tbody tr").all()
        ]
        assert len(table) == len(shown) == 10
        for record_, row in zip(table, shown, strict=True):
            assert [
                record_[k] for k in ("label", "source", "target", "method", "output", "seeds")
            ] == row[:6]
            spread = " \u00b1 0.00" if record_["method"] == "trvae" else ""
            scores = [
                record_[k]
                for k in ("effect_r2 (top100)", "effect_r2 (all)", "energy_distance (pcs)")
            ]
            np.testing.assert_allclose(
                float(scores[0]), RANKS[row[0]] - 0.125 * (row[3] == "mean_shift")
            )
            assert [f"{float(v) + 0.0:.2f}{spread}" for v in scores] == row[6:]


def test_without_javascript_tables_pictures_and_files_remain(browser, page_file):
    with opened(browser, page_file, java_script_enabled=False) as page:
        assert page.locator("#verdict-table tbody tr").count() == 5
        assert page.locator("#gene-search").is_hidden()
        assert page.locator("img:visible").count() >= 8
        assert not page.get_by_label("Filter scores").count()
        assert page.get_by_text("Looking a gene up in all labels needs JavaScript").is_visible()
        name, _ = downloaded(page, "#scores-csv")
        assert name == "scores.csv"
        with page.expect_download() as waiting:
            page.locator("#genes-csv").click()
        table = pd.read_csv(waiting.value.path(), compression="gzip")
        assert len(table) == 20


def test_all_of_it_is_printed(browser, page_file):
    with opened(browser, page_file, color_scheme="dark") as page:
        page.emulate_media(media="print")
        assert (
            page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        )
        assert page.locator("nav").is_hidden()
        assert page.get_by_label("Filter scores").is_hidden()
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert page.locator("#genes details[open]").count() == 5
        assert page.pdf().startswith(b"%PDF")


def test_the_checks_would_have_failed(browser, tmp_path):
    """An error is on the console, and a wide page is wider."""
    bad = tmp_path / "bad.html"
    bad.write_text("<!DOCTYPE html><div style='width:900px'>x</div><script>nothing()</script>")
    page, said = browser.new_page(viewport={"width": 390, "height": 800}), []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(bad.as_uri())
    assert said == ["nothing is not defined"]
    assert page.evaluate("document.documentElement.scrollWidth") > 890
    page.close()
