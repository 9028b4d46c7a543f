"""Counterfactual prediction: from calibrated rates to an AnnData of predicted cells."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import anndata
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from trvae_sc.files import check_suffix, read, write_atomically
from trvae_sc.model._calibration import Calibration, column_sums, decoded_batches
from trvae_sc.model._counts import Draws
from trvae_sc.model._decode import latent_shifts, predicted_values, scaled
from trvae_sc.model._record import combination_notes, combination_table, half_widths, provenance
from trvae_sc.model._setup import check_free, logger
from trvae_sc.model._write import PieceWriter, stacked
from trvae_sc.training import row_numbers

if TYPE_CHECKING:
    from trvae_sc.model._model import TRVAE

Output = Literal["counts", "delta", "mean", "sample"]


def predict_cells(
    model: TRVAE,
    adata: AnnData | None,
    *,
    target: Any,
    source: Any,
    labels: Any,
    indices: Sequence[int] | None,
    output: Output | None,
    n_samples: int,
    seed: int,
    batch_size: int | None,
    out: str | Path | None,
    overwrite: bool,
) -> AnnData:
    """Return predicted cells; see :meth:`TRVAE.predict`."""
    if out is not None:
        check_out(out, overwrite=overwrite)
    output = _check_output(model, output, n_samples)
    target = model._condition_level(target)
    original = model.adata if adata is None else adata
    registered = model._validate_anndata(adata)
    original = registered if original is None else original
    check_free(original, *(["sample"] if n_samples > 1 else []))
    rows = source_rows(model, original, target, source=source, labels=labels, indices=indices)
    for remark in model._condition_remarks(target)[1:]:
        logger.warning(remark)
    layer = model.registry_["setup_args"]["layer"] if output in ("counts", "sample") else None
    prediction = _Prediction(model, original, registered, rows, target, output, n_samples, seed)
    pieces, n_rows = prediction.pieces(batch_size), len(rows) * n_samples
    if out is not None:
        shape = (n_rows, registered.n_vars)
        return _write(Path(out), shape, layer, pieces, prediction.around)
    result = prediction.around(stacked(pieces, n_rows))
    if layer is not None:
        result.layers[layer] = result.X.copy()
    return result


class _Prediction:
    """Predicted values in pieces, and the AnnData around them."""

    def __init__(
        self,
        model: TRVAE,
        original: AnnData,
        registered: AnnData,
        rows: np.ndarray,
        target: Any,
        output: Output,
        n_samples: int,
        seed: int,
    ) -> None:
        self.model, self.original, self.registered = model, original, registered
        self.rows, self.target, self.output = rows, target, output
        self.n_samples, self.seed = n_samples, seed
        sources = model._condition_column(original.obs.iloc[rows]).unique().tolist()
        self.shifts = latent_shifts(model, sources, target)
        self.calibration = Calibration(model, registered, rows, target)
        self.latent: list[np.ndarray] = []
        self.sums = np.zeros((2, registered.n_vars))

    def pieces(self, batch_size: int | None) -> Iterator[np.ndarray | sparse.csr_matrix]:
        """Yield predicted values, batch by batch."""
        draws = Draws(self.seed)
        features = self.model._condition_features(self.target)
        observed = self.calibration.keeps_level
        for _ in range(self.n_samples):
            done = 0
            for raw in decoded_batches(
                self.model,
                self.registered,
                self.rows,
                features,
                shifts=self.shifts,
                draws=draws if self.n_samples > 1 else None,
                batch_size=batch_size,
                decode_source=not (observed and self.output == "mean"),
            ):
                at = slice(done, done + len(raw.observed))
                batch = self.calibration(raw, at, gain=self.output == "counts")
                done += len(raw.observed)
                self.latent.append(batch.latent)
                source = batch.observed_sum() if observed else column_sums(batch.source)
                self.sums += (source, column_sums(batch.target))
                yield predicted_values(self.model, batch, features, self.output, draws)

    def around(self, x: np.ndarray | sparse.csr_matrix | None) -> AnnData:
        """Return what belongs to the values, once they have all been predicted."""
        model, rows, target = self.model, self.rows, self.target
        means = scaled(model, self.sums / (len(rows) * self.n_samples), None)
        half = half_widths(model, self.registered, rows, target)
        result = AnnData(
            X=x,
            obs=_predicted_obs(model, self.original, rows, target, self.n_samples),
            var=_predicted_var(self.original.var.loc[self.registered.var_names], means, half),
            obsm={"X_trvae": np.concatenate(self.latent)},
        )
        source = self.original.obs.iloc[rows]
        table = combination_table(model, source, target, self.calibration.novelty)
        settings = {"output": self.output, "n_samples": self.n_samples, "seed": self.seed}
        result.uns["trvae_sc"] = provenance(model, table, target, **settings)
        return result


def _write(
    path: Path,
    shape: tuple[int, int],
    layer: str | None,
    pieces: Iterable[np.ndarray | sparse.csr_matrix],
    around: Callable[[None], AnnData],
) -> AnnData:
    """Write a prediction, completely or not at all, and return it with X in the file."""

    def write(temporary: Path) -> None:
        writer = PieceWriter(temporary, shape, layer)
        try:
            for values in pieces:
                writer.add(values)
            writer.finish(around(None))
        finally:
            writer.close()

    write_atomically(path, write)
    return read(path, backed=True)


def check_out(out: str | Path, *, overwrite: bool) -> None:
    """Raise where a prediction cannot be written, before any work.

    Raises
    ------
    ValueError
        A path that ends neither in ``.h5ad`` nor in ``.zarr``.
    FileExistsError
        Something is there.
    """
    check_suffix(Path(out))
    if Path(out).exists() and not overwrite:
        raise FileExistsError(f"{out} exists. Pass overwrite=True to replace it.")


def _check_output(model: TRVAE, output: Output | None, n_samples: int) -> Output:
    """Return the output to compute, or raise where the likelihood does not have it."""
    if n_samples < 1:
        raise ValueError(f"n_samples is {n_samples}; at least 1 is needed.")
    is_count = model.module.is_count
    allowed = ["counts", "delta", "mean", "sample"] if is_count else ["delta", "mean", "sample"]
    if output is None:
        return allowed[0]
    if output not in allowed:
        raise ValueError(
            f"Output '{output}' is not available with gene_likelihood "
            f"'{model.module.gene_likelihood}'; choose one of {allowed}."
        )
    return output


def source_rows(
    model: TRVAE,
    adata: AnnData,
    target: Any,
    *,
    source: Any,
    labels: Any,
    indices: Sequence[int] | None,
) -> np.ndarray:
    """Return the rows to predict from, in the caller's order.

    Raises
    ------
    ValueError
        Unknown source or labels, source equal to target, no cell left.
    """
    setup_args = model.registry_["setup_args"]
    condition = model._condition_column(adata.obs)
    rows = row_numbers(indices, adata.n_obs)
    if source is None:
        keep = (condition != target).to_numpy()
    else:
        source = model._condition_level(source)
        if source == target:
            raise ValueError(f"Source and target are both {target!r}: there is nothing to predict.")
        keep = (condition == source).to_numpy()
    if labels is not None:
        keep = keep & has_label(adata, setup_args["labels_key"], labels)
    rows = rows[keep[rows]]
    if not len(rows):
        chosen = {"source": source, "labels": labels, "indices": indices is not None}
        raise ValueError(
            f"No cell to predict {target!r} from: none matches {chosen}. adata has conditions "
            f"{sorted(map(str, condition.unique()))}."
        )
    return rows


def has_label(adata: AnnData, labels_key: str | None, labels: Any) -> np.ndarray:
    """Return which cells have one of some labels."""
    if labels_key is None:
        raise ValueError("The model was set up without labels_key, so labels cannot be chosen.")
    if labels_key not in adata.obs:
        raise KeyError(
            f"No column '{labels_key}' in adata.obs; there are {list(adata.obs.columns)}."
        )
    column = adata.obs[labels_key]
    chosen = [labels] if isinstance(labels, str) or np.isscalar(labels) else list(labels)
    present = column.unique().tolist()
    unknown = [label for label in chosen if label not in present]
    if unknown:
        raise ValueError(f"Unknown labels {unknown}; adata.obs['{labels_key}'] has {present}.")
    return column.isin(chosen).to_numpy()


def _predicted_obs(
    model: TRVAE, adata: AnnData, rows: np.ndarray, target: Any, n_samples: int
) -> pd.DataFrame:
    """Return the source cells' columns with the target condition."""
    own = [name for name in adata.obs if str(name).startswith("_scvi_")]
    obs = adata.obs.iloc[rows].drop(columns=own)
    names = obs.index.astype(str)
    source = model._condition_column(obs).astype("category")
    own = model._condition_values(target, len(obs))
    obs = obs.assign(source_condition=source, source_cell=names).assign(**own)
    obs.index = anndata.utils.make_index_unique(names + f"_{target}")
    if n_samples == 1:
        return obs
    samples = [obs.assign(sample=i).set_axis(obs.index + f"_{i}") for i in range(n_samples)]
    return pd.concat(samples)


def _predicted_var(var: pd.DataFrame, means: np.ndarray, half: np.ndarray) -> pd.DataFrame:
    """Return the genes' columns with mean, change and interval of the prediction."""
    change = means[1] - means[0]
    return var.assign(
        source_mean=means[0],
        predicted_mean=means[1],
        predicted_change=change,
        change_lower=change - half,
        change_upper=change + half,
    )


def predict_missing(model: TRVAE, *, source: Any, **kwargs: Any) -> AnnData:
    """Return predictions of all combinations that training lacks; see TRVAE.predict_missing."""
    if not model.labels:
        raise ValueError("The model was set up without labels_key: no combination can be missing.")
    if kwargs.get("out") is not None:
        raise ValueError(
            "predict_missing has no out=: predict each combination to a file of its own."
        )
    table = model.n_cells
    missing = [(lab, c) for lab in table.index for c in table.columns if table.loc[lab, c] == 0]
    if not missing:
        raise ValueError("The training data has every combination of label and condition.")
    parts = []
    for label, target in missing:
        start = table.loc[label].idxmax() if source is None else source
        if table.loc[label, start] > 0:
            parts.append(model.predict(target=target, source=start, labels=label, **kwargs))
    if not parts:
        raise ValueError(f"No label that lacks a condition has cells under {source!r}.")
    result = anndata.concat(parts, merge="same")
    record = dict(parts[0].uns["trvae_sc"])
    for key in ("target", "source"):
        record.pop(key)
    tables = [part.uns["trvae_sc"]["combinations"] for part in parts]
    record["combinations"] = pd.concat(tables, ignore_index=True)
    record["notes"] = np.array(combination_notes(record["combinations"]), dtype=object)
    result.uns["trvae_sc"] = record
    return result
