"""What to measure next: which missing combination would say most of all that are missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from trvae_sc.arguments import check_trvae, check_whole
from trvae_sc.conditions import ConditionSpace
from trvae_sc.errors import InputError
from trvae_sc.levels import as_list, default_source, level_name, listing
from trvae_sc.shift import Likeness, Profiles, Ridge

if TYPE_CHECKING:  # torch and scvi-tools take seconds to import
    from trvae_sc.model import TRVAE

_LEAST = 3  # measured changes, of which errors can be learned


def next_experiments(
    model: TRVAE,
    n: int | None = 5,
    *,
    source: Any = None,
    conditions: Sequence[Any] | None = None,
    n_cells: int | None = None,
) -> pd.DataFrame:
    r"""Return the missing combinations that are most worth measuring, best first.

    The changes of labels l from the source to conditions c are taken for draws from the Gaussian process of
    :class:`trvae_sc.shift.Ridge` with const = 1, :math:`k_C(c, c')\,\big(1 + \langle z_l, z_{l'} \rangle /
    \overline{\lVert z \rVert^2} + 0.3\,\delta_{ll'}\big)`. Given what was measured, V is the covariance of what is
    missing and :math:`\sigma_c` how large the errors of predictions under a condition are where a label is left out.
    Measuring j lowers the expected squared error of all that is missing by

    .. math:: \sum_i \sigma_{c_i}^2\,\frac{V_{ij}^2}{V_{jj} + \nu}

    with the noise :math:`\nu` of the cells planned. The best is chosen, V conditioned on it, and so on
    (greedy; MacKay 1992, doi:10.1162/neco.1992.4.4.590; Krause et al. 2008, jmlr.org/papers/v9/krause08a).
    What a measurement will show plays no role, only that it will be there.

    Parameters
    ----------
    model
        Trained model with labels.
    n
        Number of combinations; all that are missing if None.
    source
        Condition that changes start from; the one called like a control if None.
    conditions
        Conditions to consider, also new ones that are made of parts (doses, combinations, sets) or that features
        describe; all that the model knows if None.
    n_cells
        Cells planned for a combination; by default the median of those measured.

    Returns
    -------
    One row a combination: ``label``, ``source``, ``condition``; ``expected_error``, root mean squared error
    over genes of its predicted mean, log(1 + kappa share) (of values: themselves), before anything of the
    list is measured; ``lowers``, share of the summed squared error of all that is missing that it takes away
    in its turn, and ``left``, what then remains.

    Raises
    ------
    InputError
        The model is no TRVAE, not trained or has no labels; the source or a condition is unknown, or outside of the
        numbers that were measured; nothing is missing; fewer than three changes were measured.

    Examples
    --------
    >>> table = trvae_sc.next_experiments(model)
    >>> ax = trvae_sc.pl.next_experiments(model.n_cells, table)
    """
    check_trvae(model)
    model._check_if_trained(warn=False)
    for name, number in (("n", n), ("n_cells", n_cells)):
        if number is not None:
            check_whole(name, number)
    trained = model.trained
    if trained.labels_key is None:
        raise InputError("The model was set up without labels_key: no combination can be missing.")
    space = trained.conditions
    names = pd.Series(list(space.levels), dtype=object)
    start = default_source(names) if source is None else space.level(source)
    if space.code(start) is None:
        raise InputError(f"The source {start!r} was not measured; there are {[*space.levels]}.")
    given = space.levels if conditions is None else map(space.level, as_list(conditions))
    given = list(dict.fromkeys(given))
    outside = [level_name(condition) for condition in given if space.is_outside(condition)]
    if outside:
        raise InputError(
            f"{listing(outside)}: outside of the numbers that were measured nothing tells how wrong a prediction "
            "is. Name conditions between them."
        )
    return plan(trained.profiles(), space, start, given, n=n, n_cells=n_cells)


def plan(
    profiles: Profiles,
    space: ConditionSpace,
    source: Any,
    conditions: Sequence[Any],
    *,
    n: int | None = None,
    n_cells: int | None = None,
) -> pd.DataFrame:
    """Return what :func:`next_experiments` does, from profiles."""
    missing = _missing(profiles, space, source, conditions)
    ridge, covariance, scale = _posterior(profiles, space, source, missing)
    noise = float(ridge.noise(np.median(ridge.n) if n_cells is None else n_cells))
    n = len(missing) if n is None else min(n, len(missing))
    error = np.square(scale) * np.diag(covariance)
    order, lowers = _greedy(covariance, np.square(scale), noise, n)
    rows = [missing[j] for j in order]
    return pd.DataFrame(
        {
            "label": [profiles.labels[label] for label, _ in rows],
            "source": level_name(source),
            "condition": [level_name(condition) for _, condition in rows],
            "expected_error": np.sqrt(error[order]),
            "lowers": lowers / error.sum(),
            "left": 1.0 - np.cumsum(lowers) / error.sum(),
        }
    )


def _missing(
    profiles: Profiles, space: ConditionSpace, source: Any, conditions: Sequence[Any]
) -> list[tuple[int, Any]]:
    """Return code of label and condition of what is missing and can be predicted from the source."""
    labels = np.flatnonzero(profiles.n_cells[:, space.code(source)] > 0)
    found = []
    for condition in conditions:
        code = space.code(condition)
        lacking = labels if code is None else labels[profiles.n_cells[labels, code] == 0]
        found += [(int(label), condition) for label in lacking]
    if not found:
        raise InputError(
            f"Nothing is missing: every label with cells under {source!r} has cells under "
            f"{listing(list(conditions))}. Name others with conditions=, such as new doses."
        )
    return found


def _posterior(
    profiles: Profiles, space: ConditionSpace, source: Any, missing: list[tuple[int, Any]]
) -> tuple[Ridge, np.ndarray, np.ndarray]:
    """Return the Gaussian process given what was measured, and what it says of missing changes.

    Their covariance in units of the kernel, whose part of conditions is :meth:`ConditionSpace.alike`, shape
    (n_missing, n_missing), and the standard deviation sigma of an error in these units, shape (n_missing,).
    """
    s = space.levels.index(source)
    codes = np.flatnonzero(profiles.measured(s).any(0))
    label, wanted = zip(*missing, strict=True)
    every = list(dict.fromkeys([*(space.levels[c] for c in codes), *wanted]))
    alike = space.informed(profiles, s).alike(source, every)
    own = slice(len(codes))
    ridge = Ridge(profiles, s, Likeness(codes, alike[own, own], np.ones(len(codes))), common=1.0)
    if len(ridge.groups) < _LEAST:
        raise InputError(
            f"{len(ridge.groups)} changes from {source!r} were measured; at least {_LEAST} are needed to "
            "learn how far labels predict each other."
        )
    label, at = np.array(label), [every.index(condition) for condition in wanted]
    measured = alike[np.ix_(at, ridge.condition)]
    across = measured * ridge.labels_alike(label, ridge.groups[:, 0])
    prior = alike[np.ix_(at, at)] * ridge.labels_alike(label, label)
    covariance = prior - across @ ridge.solve(across.T)
    return ridge, covariance, _scale(ridge, [space.code(condition) for condition in wanted])


def _scale(ridge: Ridge, codes: Sequence[int | None]) -> np.ndarray:
    r"""Return how large errors under conditions are, in units of what is expected of them.

    :math:`\sigma_c^2` is the mean of :math:`e_i^2 / v_i` over genes and the labels left out, with one more of
    the mean of all conditions; shape (n_codes,). Errors are those of predictions, which learn what labels share
    from the data alone; of conditions without cells, of which labels share what nothing tells, those with const = 1.
    """
    predicting = Ridge(ridge.profiles, ridge.source, ridge.likeness)
    variance = ridge.left_out_variance()
    missed, new = (np.square(r.left_out()[0]).mean(1) / variance for r in (predicting, ridge))
    own = [missed[ridge.groups[:, 1] == c] for c in codes]
    return np.sqrt(
        [(m.sum() + missed.mean()) / (len(m) + 1) if len(m) else new.mean() for m in own]
    )


def _greedy(
    covariance: np.ndarray, weight: np.ndarray, noise: float, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return n measurements in order, and by how much each lowers the weighted sum of variances."""
    left, rest = covariance.copy(), np.ones(len(covariance), bool)
    order, lowers = [], []
    for _ in range(n):
        gain = weight @ np.square(left) / (np.diag(left) + noise)
        best = int(np.where(rest, gain, -np.inf).argmax())
        order.append(best)
        lowers.append(gain[best])
        rest[best] = False
        left -= np.outer(left[:, best], left[best]) / (left[best, best] + noise)
    return np.array(order), np.array(lowers)
