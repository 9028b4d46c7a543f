"""How unlike the training cells a cell is."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from trvae_sc.arguments import check_seed, check_whole
from trvae_sc.checks import logger
from trvae_sc.errors import InputError
from trvae_sc.expression import dense, evenly_spaced
from trvae_sc.family._cells import check_model, values_of
from trvae_sc.identity import among, cell_marks
from trvae_sc.model import TRVAE
from trvae_sc.module import ll_at_mean, saturated_ll

_BATCH, _SAMPLES_PER_PASS = 128, 8  # always, since samples depend on them
_COMPONENTS = (10, 30)  # few where groups differ by programmes, more where they differ in detail
_WITHOUT_LABELS = 20
_NEIGHBORS = 5
_MAX_CELLS = 5000  # cells that are compared with
_MAX_TO_CHOOSE = 2000
_FEWEST = 10
_ROUNDING = 1e-5  # relative difference of equal distances, in single precision


def outlier_score(
    model: TRVAE,
    adata: AnnData | None = None,
    *,
    reference: AnnData | None = None,
    n_samples: int = 32,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Score cells by how far they are from training cells, and say how well the model explains them.

    The score is the mean distance to the 5 nearest training cells but itself, in 10 or 30 principal components
    of the log values: in those where training labels that are left out of the neighbours in turn are found
    better (mean AUROC of their cells against all others; without labels: in 20). Beside it stands

    .. math:: d(x) = \log p(x \mid \mathrm{mean} = x) - \log \hat p(x), \qquad
       \log \hat p(x) = \log \frac1S \sum_{s} \frac{p(x \mid z_s)\,p(z_s)}{q(z_s \mid x)}

    the deviance, which finds outliers less well (importance sampling, Burda et al. 2016, arXiv:1509.00519; of an
    autoencoder and ``mse`` the likelihood at the posterior mean). The likelihood itself is about how deep a cell
    is and how many genes it expresses (Nalisnick et al. 2019, arXiv:1810.09136).

    Parameters
    ----------
    model
        Trained model, any preset.
    adata
        Cells to score, with the genes of the model and conditions it knows; the model's own if None.
    reference
        The cells that are no outliers. If None those that training held back to validate on
        (``train(train_size=0.9)``); if it held back none, with a warning, a random half of the training cells
        (the other half are the neighbours). Where it holds most of `adata`, p-values are uniform whatever
        the cells are.
    n_samples
        Samples S of each cell's posterior.
    seed
        Seed of the samples.

    Returns
    -------
    A row per cell: ``log_likelihood`` (of ``mse`` less its constant) and ``deviance``, in nats; ``score``, the
    distance; and ``p_value``, the share of the m reference cells at as high a score,
    :math:`(1 + \#\{s_j \ge s\}) / (m + 1)`: small for outliers. ``attrs["n_components"]`` says in how many
    components.

    Raises
    ------
    NotTrainedError, InputError
        The model is not trained; `n_samples` is below 1, there is no cell to score, or fewer than 10
        reference cells.
    """
    check_model(model)
    check_whole("n_samples", n_samples)
    check_seed(seed)
    known = model._validate_anndata(reference)
    train = known if model.adata is None else model._validate_anndata(None)
    scored = known if adata is None and reference is None else model._validate_anndata(adata)
    trained_on, held_back, is_apart = _split(model, train)
    rows = held_back if known is train else np.arange(known.n_obs)
    n_cells = min(len(rows), len(trained_on))
    if n_cells < _FEWEST:
        raise InputError(f"{n_cells} cells to compare with; {_FEWEST} or more are needed.")
    if reference is None and not is_apart:
        logger.warning(
            "Outliers are judged against cells that the network was trained on, which it fits better than "
            "any others: p-values may be somewhat off. Train with train_size=0.9, or pass reference=."
        )
    # a model without cells takes those it is given for neighbours, too
    compared = np.arange(known.n_obs) if model.adata is None else rows
    _warn_of_themselves(model, scored, known, compared)
    neighbors = Neighbors(model, train, trained_on)
    score, others = neighbors.distances(scored), np.sort(neighbors.distances(known[rows]))
    n_above = len(others) - np.searchsorted(others, score * (1.0 - _ROUNDING))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        table = _deviance(model, scored, n_samples)
    table = table.assign(score=score, p_value=(1 + n_above) / (1 + len(others)))
    table.attrs["n_components"] = neighbors.n_components
    return table


def _split(model: TRVAE, train: AnnData) -> tuple[np.ndarray, np.ndarray, bool]:
    """Return rows to be neighbours, rows to be the reference, and whether training did not see the latter.

    Up to 5,000 of each. They are never the same: components fit the noise of their own cells.
    """
    parts = [getattr(model, f"{name}_indices", None) for name in ("train", "validation", "test")]
    parts = [np.zeros(0, int) if part is None else np.asarray(part, int) for part in parts]
    is_own = sum(map(len, parts)) == train.n_obs  # else other data were attached since
    is_apart = is_own and len(parts[1]) >= _FEWEST
    if not is_apart:
        parts = np.array_split(np.random.default_rng(0).permutation(train.n_obs), 2)
    return *(evenly_spaced(np.sort(part), _MAX_CELLS) for part in parts[:2]), is_apart


def _warn_of_themselves(model: TRVAE, scored: AnnData, known: AnnData, rows: np.ndarray) -> None:
    """Warn where most scored cells are in the reference: of the same names and values."""
    shared = scored.obs_names.isin(known.obs_names[rows])
    if 2 * shared.sum() <= len(shared):
        return
    there = rows[known.obs_names[rows].isin(scored.obs_names)]
    cells, others = (
        pd.MultiIndex.from_arrays(
            [some.obs_names, np.asarray(values_of(model, some).sum(1)).ravel().round(2)]
        )
        for some in (scored, known[there])
    )
    n_same = int(cells.isin(others).sum())
    if 2 * n_same > len(cells):
        logger.warning(
            f"{n_same} of {len(cells)} scored cells are in the reference themselves: compared with "
            "themselves, cells have uniform p-values or higher ones, whatever they are. Name other cells, "
            "known to be no outliers, as the reference."
        )


class Neighbors:
    """Training cells (some `rows` of them) in their principal components, to measure distances to."""

    def __init__(self, model: TRVAE, train: AnnData, rows: np.ndarray) -> None:
        self.model = model
        x = dense(values_of(model, train[rows])).astype(np.float32)
        self.marks = np.sort(cell_marks(x))
        n_most = min(max(_COMPONENTS), len(x) - 1, x.shape[1])
        self.pca = PCA(n_most, random_state=0).fit(x)
        cells = self.pca.transform(x)
        label = model.known.groups(train.obs.iloc[rows])["label"].to_numpy()
        self.n_components = min(_components(cells, label), n_most)
        self.tree = NearestNeighbors(n_neighbors=_NEIGHBORS + 1).fit(cells[:, : self.n_components])

    def distances(self, adata: AnnData) -> np.ndarray:
        """Return the mean distance of cells to the nearest training cells, themselves not counted."""
        x = dense(values_of(self.model, adata)).astype(np.float32)
        at = self.pca.transform(x)
        distance = self.tree.kneighbors(at[:, : self.n_components])[0]
        own = among(cell_marks(x), self.marks)
        return np.where(own, distance[:, 1:].mean(1), distance[:, :-1].mean(1))


def _components(cells: np.ndarray, label: np.ndarray) -> int:
    """Return in how many components labels are found better that are left out in turn."""
    some = evenly_spaced(np.arange(len(cells)), _MAX_TO_CHOOSE)
    cells, label = cells[some], label[some]
    names, counts = np.unique(label, return_counts=True)
    names = names[(counts >= _FEWEST) & (len(cells) - counts >= _FEWEST)]
    if not len(names):
        return _WITHOUT_LABELS
    found = [np.mean([_found(cells[:, :n], label == name) for name in names]) for n in _COMPONENTS]
    return _COMPONENTS[int(np.argmax(found))]


def _found(cells: np.ndarray, left_out: np.ndarray) -> float:
    """Return how well cells that are left out of the neighbours are told from the others, as AUROC."""
    tree = NearestNeighbors(n_neighbors=_NEIGHBORS).fit(cells[~left_out])
    distance = np.zeros(len(cells))
    distance[left_out] = tree.kneighbors(cells[left_out])[0].mean(1)
    distance[~left_out] = tree.kneighbors()[0].mean(1)  # a cell is not its own neighbour
    return float(roc_auc_score(left_out, distance))


def _deviance(model: TRVAE, adata: AnnData, n_samples: int) -> pd.DataFrame:
    """Return log-likelihood and deviance of the cells of a registered AnnData."""
    module, fitted, saturated = model.module, [], []
    for tensors in model._make_data_loader(adata, batch_size=_BATCH):
        if module.variational and module.gene_likelihood != "mse":
            per_pass = min(n_samples, _SAMPLES_PER_PASS)
            ll = module.marginal_ll(tensors, n_samples, n_mc_samples_per_pass=per_pass)
        else:
            ll = ll_at_mean(module, tensors)
        fitted.append(ll.numpy())
        saturated.append(saturated_ll(module, tensors).numpy())
    ll, best = np.concatenate(fitted).astype(float), np.concatenate(saturated)
    return pd.DataFrame({"log_likelihood": ll, "deviance": best - ll}, index=adata.obs_names)
