"""Levels of columns: what identifies one, which are refused, which a prediction starts from."""

import datetime
import decimal

import numpy as np
import pandas as pd
import pytest

from trvae_sc import levels
from trvae_sc.errors import InputError


def column(values, **kwargs):
    return pd.Series(values, name="dose", **kwargs)


@pytest.mark.parametrize(
    ("level", "name"),
    [
        (1, "1"),
        (1.0, "1"),
        ("1", "1"),
        (True, "True"),
        (np.bool_(False), "False"),
        (np.int8(3), "3"),
        (0.1, "0.1"),
        (np.float32(0.5), "0.5"),
        ("a b", "a b"),
        (-0.25, "-0.25"),
        (-0.0, "0"),  # as rounding leaves it
        (np.float32(-0.0), "0"),
    ],
)
def test_a_level_is_what_it_reads(level, name):
    assert levels.level_name(level) == name


@pytest.mark.parametrize(
    "values",
    [
        pd.to_datetime(["2024-01-01", "2024-01-02"]),
        pd.cut([1, 2, 3], 3),
        pd.period_range("2024", periods=2, freq="M"),
        [decimal.Decimal(1), decimal.Decimal(2)],
        [b"a", b"b"],
        [("a", 1), ("b", 2)],
        [datetime.date(2024, 1, 1)],
        [None, "a"],
        pd.array([1, None], dtype="Int64"),
    ],
)
def test_levels_that_no_file_keeps_are_refused(values):
    with pytest.raises(InputError, match=r"adata\.obs\['dose'\]"):
        levels.check_levels(column(values))
    categories = column(values, dtype="category")
    with pytest.raises(InputError, match=r"adata\.obs\['dose'\]"):
        levels.check_levels(categories)


@pytest.mark.parametrize(
    "values",
    [
        ["a", "b"],
        [1, 2],
        [0.5, 1.0],
        [True, False],
        pd.array([1, 2], dtype="Int64"),
        pd.array(["a", "b"], dtype="string"),
        np.array(["a", "b"], dtype=object),
    ],
)
def test_text_numbers_and_booleans_are_levels(values):
    for given in (column(values), column(values, dtype="category")):
        levels.check_levels(given)
        assert levels.as_text(given).tolist() == [levels.level_name(v) for v in list(values)]


def test_levels_that_read_the_same_are_refused():
    with pytest.raises(InputError, match=r"Levels 1, '1' of adata\.obs\['dose'\] read the same"):
        levels.check_levels(column([1, "1", "2"], dtype=object))


@pytest.mark.parametrize("dtype", ["float64", "Float64", "category"])
def test_what_is_said_of_levels_that_read_the_same_makes_them_one(dtype):
    obs = pd.DataFrame({"dose": pd.Series([0.3, 3 * 0.1, 1.0] * 2, dtype=dtype)})
    with pytest.raises(InputError, match="read the same") as raised:
        levels.check_levels(obs["dose"])
    told = str(raised.value).split(" = ")[1].removesuffix(".").replace("adata.obs", "obs")
    assert levels.levels(eval(told)) == [0.3, 1.0]


def test_a_column_of_names_of_cells_is_refused():
    names = [f"cell_{i}" for i in range(60)]
    with pytest.raises(InputError, match=r"'dose'\] has 60 levels \('cell_0',.*about one for each"):
        levels.check_levels(column(names))
    levels.check_levels(column(names * 2))
    levels.check_levels(column(names[:50]))


def test_text_of_a_column_keeps_rows_and_refuses_missing_values():
    given = column([2, 1, 2], index=["x", "y", "z"])
    assert levels.as_text(given).to_dict() == {"x": "2", "y": "1", "z": "2"}
    assert levels.as_text(given.iloc[:0]).tolist() == []
    with pytest.raises(InputError, match=r"missing \(NaN\) in 1 cells"):
        levels.as_text(column(["a", np.nan]))


def test_a_level_is_matched_by_how_it_reads():
    assert levels.match_level("1", [0, 1], of="condition") == 1
    assert levels.match_level(1.0, ["0", "1"], of="condition") == "1"
    assert levels.match_level(np.str_("b"), ["a", "b"], of="condition") == "b"
    assert levels.match_level("2.0", [0.0, 1.0, 2.0], of="dose") == 2.0  # as messages list it
    assert levels.match_level("1e1", [1, 10], of="dose") == 10
    with pytest.raises(InputError, match="Unknown dose"):
        levels.match_level("2.0", ["1", "2"], of="dose")
    with pytest.raises(InputError, match=r"Unknown condition 1; there are \[False, True\]\. Sorry"):
        levels.match_level(1, [False, True], of="condition", hint=" Sorry")


def test_levels_are_those_present_in_order():
    unused = column(pd.Categorical(["b", "a"], categories=["c", "b", "a"]))
    assert levels.levels(unused) == ["a", "b"]
    ordered = column(pd.Categorical(["a", "b"], categories=["c", "b", "a"], ordered=True))
    assert levels.levels(ordered) == ["b", "a"]
    assert levels.levels(column([10, 5, 10])) == [5, 10]
    assert levels.levels(column(["x", 2, "a"], dtype=object)) == [2, "a", "x"]


@pytest.mark.parametrize("name", ["control", "Ctrl", "vehicle", "DMSO", "untreated", "mock", "PBS"])
def test_a_control_is_the_source(name):
    assert levels.default_source(column(["a", name, "zz"])) == name


@pytest.mark.parametrize("name", ["IFN:0", "IFN:0ng", "drug 0.0 nM", 0, "0", "day 0", "a + 0"])
def test_a_dose_of_zero_is_the_source(name):
    others = ["IFN:10ng", "drug 10 nM"] if isinstance(name, str) else [5, 10]
    assert levels.default_source(column([*others, name])) == name


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("none + 0", ["a + 1", "a + 10"]),
        ("0 + none", ["1 + a", "10 + a"]),
        ("none + 0 + 0", ["a + 1 + 0", "a + 0 + 6", "a + 1 + 6"]),
        ("none + 24 + 0", ["a + 24 + 1", "a + 6 + 1"]),
    ],
)
def test_the_condition_with_most_doses_of_zero_is_the_source(name, others):
    assert levels.default_source(column([*others, name])) == name


def test_the_first_of_ordered_categories_is_the_source():
    ordered = pd.Categorical(["after", "before"], ["before", "after"], ordered=True)
    assert levels.default_source(column(ordered)) == "before"


@pytest.mark.parametrize(
    "values",
    [
        ["IFNb", "none"],
        [5, 10],
        ["DMSO", "untreated", "drug"],
        ["type_0", "type_1"],
        ["x0", "10"],
        ["a:10", "a:20"],
        ["none + 0 + 24", "a + 10 + 0", "a + 10 + 24"],
    ],
)
def test_without_a_control_the_source_has_to_be_named(values):
    with pytest.raises(InputError, match=r"Name it with source="):
        levels.default_source(column(values))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "Float32", "Float64"])
def test_numbers_of_any_precision_read_by_the_digits_they_have(dtype):
    """0.1 in float32 was the level 0.10000000149, which neither 0.1 nor "0.1" was."""
    plain = column([0.7, 0.1], dtype=dtype)
    kinds = (pd.CategoricalDtype(), pd.CategoricalDtype(ordered=True))
    for given in (plain, *(plain.astype(kind) for kind in kinds if dtype != "float16")):
        found = levels.levels(given)
        assert levels.codes_among(given, found).tolist() == [1, 0]
        assert found == [0.1, 0.7]
        assert {type(level) for level in found} == {float}
        assert levels.as_text(given).tolist() == ["0.7", "0.1"]
        for level in ("0.1", 0.1, np.float32(0.1), np.float16(0.1)):
            assert levels.match_level(level, found, of="dose") == 0.1


def test_whole_numbers_read_without_a_point():
    for given in ([1.0, 2.0], [1, 2], np.float32([1, 2]), pd.array([1, 2], dtype="Int8")):
        assert levels.as_text(column(given)).tolist() == ["1", "2"]
