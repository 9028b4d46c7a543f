"""Predictors of a shift, which train nothing."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from trvae_sc.baselines._shift import shift_of
from trvae_sc.checks import RECORD, check_free, is_number, layer_names
from trvae_sc.conditions import ConditionSpace
from trvae_sc.errors import InputError
from trvae_sc.expression import (
    Keys,
    check_measured,
    conditions_of,
    dense,
    groups,
    log_values,
    mean_level,
    profiles,
)
from trvae_sc.levels import level_name
from trvae_sc.scales import warn_of_scale
from trvae_sc.shift import Profiles

Method = Callable[..., "AnnData | dict[str, AnnData]"]

#: Methods that train nothing, simplest first.
SIMPLE = ("no_change", "mean_shift", "nearest_shift", "context_shift")
#: Those that compare conditions by their features (``condition_features``), simplest first.
BY_FEATURES = ("mean_condition", "nearest_condition", "feature_ridge")
#: That which adds the parts of sets (``condition_separator``).
BY_PARTS = ("sum_of_parts",)
#: All of them in one order.
SIMPLEST_FIRST = (*SIMPLE[:-1], *BY_FEATURES, *BY_PARTS, SIMPLE[-1])


def no_change(train: AnnData, source: AnnData, *, target: Any, keys: Keys) -> AnnData:
    """Return the source cells as they are. Parameters and returns as of :func:`mean_shift`."""
    return _shifted(train, source, target, keys, "no_change")


def mean_shift(train: AnnData, source: AnnData, *, target: Any, keys: Keys) -> AnnData:
    r"""Add the mean over labels of their own shift.

    .. math:: \hat x = x + \frac1L \sum_{l} (\bar x_{lt} - \bar x_{ls})

    Differences are taken within labels: a pooled one would contain the difference in composition, since the label
    to predict is missing from the target. (Where it is not, its own shift counts like the others.)

    Parameters
    ----------
    train, source
        Cells to learn from, and to start from.
    target
        Condition to predict.
    keys
        Where the data are.

    Returns
    -------
    AnnData with log values in ``X``.
    """
    return _shifted(train, source, target, keys, "mean_shift")


def nearest_shift(train: AnnData, source: AnnData, *, target: Any, keys: Keys) -> AnnData:
    """Add the shift of the label whose source profile is nearest (Euclidean, log values).

    Of labels that are as near, as those that share their source cells, the mean. Parameters and returns as of
    :func:`mean_shift`.
    """
    return _shifted(train, source, target, keys, "nearest_shift")


def context_shift(train: AnnData, source: AnnData, *, target: Any, keys: Keys) -> AnnData:
    """Add the change that ridge regression on the source profiles of the labels predicts.

    Changes of counts are log fold changes: what a gene of another label can do depends on its own level.
    The strongest simple method we know of; see :class:`trvae_sc.shift.Ridge`. A condition that no cell was
    measured under is predicted by its features or parts, from all labels and conditions. Parameters and
    returns as of :func:`mean_shift`.
    """
    space = conditions_of(train, keys)
    if space.tells_of_new and space.code(space.level(target)) is None:
        return _by_conditions(train, source, target, keys, "context_shift")
    return _shifted(train, source, target, keys, "context_shift")


def sum_of_parts(train: AnnData, source: AnnData, *, target: Any, keys: Keys) -> AnnData:
    r"""Add the sum of the log fold changes of the label under each part of a set.

    .. math:: d_{AB} = d_A + d_B

    from the control. Each part must have been measured alone; a label that lacks one counts with the mean of the
    others. Parameters and returns as of :func:`mean_shift`.
    """
    return _by_conditions(train, source, target, keys, "sum_of_parts")


def mean_condition(train: AnnData, source: AnnData, *, target: Any, keys: Keys) -> AnnData:
    """Add the mean log fold change of the label over all conditions that were measured.

    A label that lacks one counts with the mean of the others. What features say beyond it is what they are
    worth. Parameters and returns as of :func:`mean_shift`.
    """
    return _by_conditions(train, source, target, keys, "mean_condition")


def nearest_condition(train: AnnData, source: AnnData, *, target: Any, keys: Keys) -> AnnData:
    """Add the log fold change of the label under the condition whose features are nearest.

    Euclidean, of standardised features; of conditions as near, such as doses on either side, the mean.
    Parameters and returns as of :func:`mean_shift`.
    """
    return _by_conditions(train, source, target, keys, "nearest_condition")


def feature_ridge(train: AnnData, source: AnnData, *, target: Any, keys: Keys) -> AnnData:
    """Add the log fold change that kernel ridge regression on features predicts, the same in all labels.

    Its strength and reach are those of :meth:`trvae_sc.conditions.ConditionSpace.informed`. Parameters and
    returns as of :func:`mean_shift`.
    """
    return _by_conditions(train, source, target, keys, "feature_ridge")


SIMPLE_METHODS: dict[str, Method] = {
    f.__name__: f
    for f in (
        *(no_change, mean_shift, nearest_shift, mean_condition, nearest_condition),
        *(feature_ridge, sum_of_parts, context_shift),
    )
}


def _by_conditions(
    train: AnnData, source: AnnData, target: Any, keys: Keys, method: str
) -> AnnData:
    """Return the source cells plus the change that a method says of their label by features."""
    from trvae_sc.baselines._cells import learn

    learned = learn(train, keys)
    _check_source(train, source, keys)
    known, space, kappa = learned.profiles, learned.known.conditions, learned.kappa
    return _moved(source, space.level(target), keys, method, known, space, kappa, of_shares=True)


def _shifted(train: AnnData, source: AnnData, target: Any, keys: Keys, method: str) -> AnnData:
    """Return the source cells plus the change of mean log values that a method says of their label."""
    check_measured(train, keys, name="train")
    _check_source(train, source, keys)
    level = target_level(train, target, keys, strict=method != "no_change")
    means, space = profiles(train, keys), conditions_of(train, keys)
    known = means.of_conditions(space.levels)
    return _moved(source, level, keys, method, known, space, means.kappa, of_shares=False)


def _moved(
    source: AnnData,
    target: Any,
    keys: Keys,
    method: str,
    known: Profiles,
    space: ConditionSpace,
    kappa: float,
    *,
    of_shares: bool,
) -> AnnData:
    """Return the source cells plus the change of their label; `of_shares`: means are of :func:`mean_level`."""
    x = np.array(dense(log_values(source, keys, kappa)), dtype=np.float64)
    shifts: dict[str, Any] = {}
    start = []
    for (label, condition), rows in groups(source.obs, keys):
        if method == "no_change" or condition == level_name(target):
            continue
        code, place = space.levels.index(space.level(condition)), None
        if condition not in shifts:
            shifts[condition] = shift_of(method, known, space, code, target)
        own = mean_level(x[rows], is_count=keys.is_count and of_shares)
        if label in known.labels and known.n_cells[known.labels.index(label), code] > 0:
            place = known.labels.index(label)
            n_cells = min(len(rows), known.n_cells[place, code])
            start.append((own, known.mean[place, code], n_cells))
            own = known.mean[place, code] if of_shares else own
        x[rows] += shifts[condition].predict(own, place) - own
    warn_of_scale("source", start, "in train", is_count=keys.is_count)
    return as_prediction(x, source, target, keys, kappa, method)


def _check_source(train: AnnData, source: AnnData, keys: Keys) -> None:
    """Raise where cells to start from have other genes than those to learn from, or other values than keys say."""
    if not train.var_names.equals(source.var_names):
        raise InputError(
            "source does not have the genes of train in their order. Pass source[:, train.var_names].copy()."
        )
    check_measured(source, keys, name="source")


def as_prediction(
    x: Any, source: AnnData, target: Any, keys: Keys, kappa: float, name: str
) -> AnnData:
    """Return predicted values as an AnnData like those of the model.

    Parameters
    ----------
    x
        Values, shape (n_cells, n_genes): of counts log(1 + kappa share).
    source
        Cells that they were made from, one a row.
    target
        Condition that is predicted.
    keys
        Where the data are.
    kappa
        Median total of the training cells; 1 of values that are not counts.
    name
        Name of the method.

    Returns
    -------
    AnnData with the columns of `source` under the target, ``source_condition`` and ``source_cell``, and a record in
    ``uns["trvae_sc"]``.
    """
    check_free(source)
    obs = source.obs.assign(
        source_condition=keys.conditions(source.obs), source_cell=source.obs_names.astype(str)
    )
    for column, value in keys.columns_of(target).items():
        numbers = not isinstance(keys.condition_key, str) and is_number(obs[column])
        obs[column] = float(value) if numbers else pd.Categorical([value] * len(obs))
    obs.index = source.obs_names.astype(str) + f"_{level_name(target)}"
    obs.index.name = None
    var = source.var.copy()
    var.index.name = None
    result = AnnData(np.asarray(x, dtype=np.float32), obs=obs, var=var)
    result.uns[RECORD] = {
        "method": name,
        "keys": keys.named(),
        "target": level_name(target),
        "scale": "log(1 + kappa * share)" if keys.is_count else "values",
        "kappa": kappa,
        "n_genes": source.n_vars,
        "versions": {"trvae_sc": version("trvae_sc")},
    }
    return result


def target_level(train: AnnData, target: Any, keys: Keys, *, strict: bool = True) -> Any:
    """Return the target as the training cells have it; methods may get its name.

    Parameters
    ----------
    train
        Training cells.
    target
        Condition to predict.
    keys
        Where the data are.
    strict
        Raise on a target that they lack; else it is returned as it is.

    Raises
    ------
    InputError
        No training cell has the target.
    """
    space = conditions_of(train, keys)
    try:
        return space.level(target)
    except InputError:
        if space.tells_of_new:
            raise
        if not strict:
            return target
        raise InputError(
            f"No training cell has target {level_name(target)!r}; there are "
            f"{sorted(map(level_name, space.levels))}."
        ) from None


def with_own_columns(adata: AnnData) -> AnnData:
    """Return the cells with columns of their own, for scvi-tools to add to; values are shared."""
    layers = {name: adata.layers[name] for name in layer_names(adata)}
    own = {"obs": adata.obs.copy(), "var": adata.var.copy(), "uns": dict(adata.uns)}
    return AnnData(adata.X, layers=layers, **own)
