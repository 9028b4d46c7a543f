"""The demo's page: what was asked, what came out in words, genes, coverage, what to do next."""

import re

import pandas as pd
import pytest

from trvae_sc import demo


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    return demo.run(folder, max_epochs=3), (folder / "report.html").read_text(encoding="utf-8")


def test_the_page_says_what_was_asked_and_what_to_do_next(made):
    _, text = made
    assert "What would type_0 look like stimulated?" in text
    for heading in ("What was asked", "What came out", "Genes", "What to do next"):
        assert f"<h2>{heading}</h2>" in text
    assert "trvae-sc benchmark" in text
    assert text.count("<img ") == 2
    assert 'name="viewport"' in text
    assert not re.search(r"(?:src|href)=\"(?:https?:)?//", text)  # nothing is loaded


def tables(text):
    """Return the cells of every table, row by row."""
    found = re.findall(r"<table.*?</table>", text, flags=re.S)
    rows = [re.findall(r"<tr.*?</tr>", table, flags=re.S) for table in found]
    return [[re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in table] for table in rows]


def test_the_page_has_scores_genes_and_coverage(made):
    table, text = made
    scores, genes = tables(text)
    assert [row[0] for row in scores[1:]] == list(table.index)
    assert [row[1] for row in scores[1:]] == [
        f"{value:.2f}".replace("-0.00", "0.00") for value in table["effect R2"]
    ]
    assert genes[0] == ["gene", "predicted", "90 % interval", "measured", "in the interval"]
    assert len(genes) == 13
    for row in genes[1:]:
        low, high = map(float, row[2].split(" to "))
        assert low <= float(row[1]) <= high
        assert (low <= float(row[3]) <= high) == (row[4] == "yes")
    share = int(re.search(r"in (\d+)% of all\s+500 genes", text)[1])
    assert 50 <= share <= 100
    assert ">nan<" not in text


@pytest.mark.parametrize(
    ("ours", "words"),
    [
        (0.2, "use the simple one"),
        (0.4, "most of the change is missed"),
        (0.8, "part of"),
        (0.95, "good"),
    ],
)
def test_scores_in_words(ours, words):
    scores = pd.Series({"TRVAE": ours, "mean_shift": 0.27, "no_change": 0.0, "truth ceiling": 1.0})
    assert words in demo.in_words(scores)
