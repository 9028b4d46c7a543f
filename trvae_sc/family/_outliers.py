"""How unlike the training cells a cell is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from trvae_sc.checks import logger
from trvae_sc.errors import InputError
from trvae_sc.expression import dense, evenly_spaced
from trvae_sc.family._cells import values_of
from trvae_sc.model import NOT_TRAINED, TRVAE

_SAMPLES_PER_PASS = 8
_COMPONENTS = (10, 30)  # few for what differs by programmes, more for what differs in detail
_NEIGHBORS = 5
#: Of the deviance, and of distances in few and more components. Chosen on labels left out of digits, Kang's
#: donors and lung cell lines (AUROC .99, .79, .99): without the first it is .99, .77, .98.
_WEIGHTS = (0.5, 1.0, 1.0)
_MAX_CELLS = 5000  # cells that are compared with
_FEWEST = 10


def outlier_score(
    model: TRVAE,
    adata: AnnData | None = None,
    *,
    reference: AnnData | None = None,
    n_samples: int = 32,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Score cells by how unlike the training cells they are: for the model, and by their neighbours.

    For the model a cell counts by its deviance, the distance to the log-likelihood that a perfect fit of
    the same cell would have,

    .. math:: d(x) = \log p(x \mid \mathrm{mean} = x) - \log \hat p(x), \qquad
       \log \hat p(x) = \log \frac1S \sum_{s} \frac{p(x \mid z_s)\,p(z_s)}{q(z_s \mid x)}

    (importance sampling, Burda et al. 2016, arXiv:1509.00519; an autoencoder and ``mse`` have no likelihood of
    cells, and that at the posterior mean takes its place). The likelihood itself is no score of outliers: deep
    cells and cells that express many genes have a low one however well they fit (Nalisnick et al. 2019,
    arXiv:1810.09136). Models also explain what they can compose from what they know. So the mean distance to
    the 5 nearest training cells counts as well, in 10 and in 30 principal components of the log values, and the
    three are joined as Fisher does (1925, Statistical Methods for Research Workers, section 21.1),

    .. math:: T(x) = -\sum_{c=1}^3 w_c \log \frac{1 + \#\{i : s_c(x_i) \ge s_c(x)\}}{n + 1}

    over the n training cells :math:`x_i` (up to 5,000), with half the weight for the deviance.

    Parameters
    ----------
    model
        Trained model, any preset.
    adata
        Cells to score, with the genes of the model and conditions it knows; the model's own if None.
        Not changed.
    reference
        The cells that are no outliers. If None those that training held back to validate on
        (``train(train_size=0.9)``); if it held back none, a random half of the training cells (the other half
        are the neighbours), with a warning: a network fits these better than any others.
    n_samples
        Samples S of each cell's posterior.
    seed
        Seed of the samples.

    Returns
    -------
    A row per cell: ``log_likelihood`` and ``deviance``, in nats; ``neighbors``, the distance to training cells
    in 30 components, the simple score; ``score``, T, the higher the less like the training cells; and
    ``p_value``, the share of the m reference cells with as high a T, :math:`(1 + \#\{T_j \ge T\}) / (m + 1)`:
    uniform for cells like them, small for outliers.

    Raises
    ------
    NotTrainedError
        The model is not trained.
    InputError
        `n_samples` is below 1, or there are fewer than 10 reference cells.
    """
    model._check_if_trained(warn=False, message=NOT_TRAINED)
    if n_samples < 1:
        raise InputError(f"n_samples is {n_samples}; at least 1 is needed.")
    known = model._validate_anndata(reference)
    train = known if model.adata is None else model._validate_anndata(None)
    scored = known if adata is None and reference is None else model._validate_anndata(adata)
    trained_on, held_back, is_apart = _split(model, train)
    rows = held_back if known is train else np.arange(known.n_obs)
    if min(len(rows), len(trained_on)) < _FEWEST:
        n_cells = min(len(rows), len(trained_on))
        raise InputError(f"{n_cells} cells to compare with; {_FEWEST} or more are needed.")
    if reference is None and not is_apart:
        logger.warning(
            "Outliers are judged against cells that the network was trained on, which it fits better than "
            "any others: p-values may be somewhat off. Train with train_size=0.9, or pass reference=."
        )
    neighbors = Neighbors(model, train, trained_on)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tables = [
            _deviance(model, cells, at, n_samples)
            for cells, at in ((train, trained_on), (known, rows), (scored, np.arange(scored.n_obs)))
        ]
    near = [
        neighbors.distances(cells, at)
        for cells, at in ((train, trained_on), (known, rows), (scored, None))
    ]
    base, of_reference, own = (
        [table["deviance"].to_numpy(), *distances]
        for table, distances in zip(tables, near, strict=True)
    )
    score = _joined(base, own)
    p_value = _share_above(_joined(base, of_reference), score)
    return tables[-1].assign(neighbors=own[-1], score=score, p_value=p_value)


def _joined(base: Sequence[np.ndarray], values: Sequence[np.ndarray]) -> np.ndarray:
    """Return T of cells from what is measured of training cells and of them."""
    shares = [_share_above(b, v) for b, v in zip(base, values, strict=True)]
    return -sum(w * np.log(share) for w, share in zip(_WEIGHTS, shares, strict=True))


def _share_above(known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the share of known values, and the value itself, that are as high as each value."""
    n_above = len(known) - np.searchsorted(np.sort(known), values, side="left")
    return (1 + n_above) / (1 + len(known))


def _split(model: TRVAE, train: AnnData) -> tuple[np.ndarray, np.ndarray, bool]:
    """Return rows to be neighbours, rows to be the reference, and whether training did not see the latter.

    Up to 5,000 of each. They are never the same: components fit the noise of their own cells.
    """
    parts = [getattr(model, f"{name}_indices", None) for name in ("train", "validation")]
    parts = [np.zeros(0, int) if part is None else np.asarray(part, int) for part in parts]
    is_own = sum(map(len, parts)) == train.n_obs  # else other data were attached since
    if len(parts[1]) < _FEWEST or not is_own:
        halves = np.array_split(np.random.default_rng(0).permutation(train.n_obs), 2)
        return *(evenly_spaced(np.sort(half), _MAX_CELLS) for half in halves), False
    return *(evenly_spaced(np.sort(part), _MAX_CELLS) for part in parts), True


class Neighbors:
    """Training cells in their principal components, to measure distances to.

    Parameters
    ----------
    model
        Trained model.
    train
        AnnData with its training cells.
    rows
        Which of them to use.
    """

    def __init__(self, model: TRVAE, train: AnnData, rows: np.ndarray) -> None:
        self.model, self.train, self.rows = model, train, rows
        x = dense(values_of(model, train[self.rows])).astype(np.float32)
        n_most = min(max(_COMPONENTS), len(x) - 1, x.shape[1])
        self.pca = PCA(n_most, random_state=0).fit(x)
        self.cells = self.pca.transform(x)

    def distances(self, adata: AnnData, rows: Sequence[int] | None = None) -> list[np.ndarray]:
        """Return the mean distance to the nearest training cells, by number of components.

        A cell that is itself one of them is not its own neighbour.
        """
        rows = np.arange(adata.n_obs) if rows is None else np.asarray(rows)
        at = self.pca.transform(dense(values_of(self.model, adata[rows])).astype(np.float32))
        own = np.isin(rows, self.rows) if adata is self.train else np.zeros(len(at), dtype=bool)
        found = []
        for n in _COMPONENTS:
            tree = NearestNeighbors(n_neighbors=_NEIGHBORS + 1).fit(self.cells[:, :n])
            distance = tree.kneighbors(at[:, :n])[0]
            found.append(np.where(own, distance[:, 1:].mean(1), distance[:, :-1].mean(1)))
        return found


def _deviance(model: TRVAE, adata: AnnData, rows: np.ndarray, n_samples: int) -> pd.DataFrame:
    """Return log-likelihood and deviance of rows of a registered AnnData."""
    module, fitted, saturated = model.module, [], []
    for tensors in model._make_data_loader(adata, rows):
        if module.variational and module.gene_likelihood != "mse":
            per_pass = min(n_samples, _SAMPLES_PER_PASS)
            ll = module.marginal_ll(tensors, n_samples, n_mc_samples_per_pass=per_pass)
        else:
            ll = module.ll_at_mean(tensors)
        fitted.append(ll.numpy())
        saturated.append(module.saturated_ll(tensors).numpy())
    ll, best = np.concatenate(fitted).astype(float), np.concatenate(saturated)
    return pd.DataFrame({"log_likelihood": ll, "deviance": best - ll}, index=adata.obs_names[rows])
