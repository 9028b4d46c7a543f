"""Counterfactual prediction: from calibrated rates to an AnnData of predicted cells."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import anndata
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from trvae_sc.arguments import check_seed, check_whole
from trvae_sc.checks import PREDICTED_VAR, check_free, logger, without_codes
from trvae_sc.errors import InputError
from trvae_sc.files import check_suffix, check_target, is_zarr, read, write_file, write_folder
from trvae_sc.identity import among, marks_of
from trvae_sc.levels import as_text, level_name
from trvae_sc.model._calibration import Calibration, column_sums, decoded_batches
from trvae_sc.model._counts import Draws
from trvae_sc.model._decode import latent_shifts, predicted_totals, predicted_values, scaled
from trvae_sc.model._record import combination_table, half_widths, provenance
from trvae_sc.model._write import PieceWriter, stacked
from trvae_sc.stored import files_of
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
    original = model.adata if adata is None else adata
    if out is not None:
        check_out(out, overwrite=overwrite, adata=original)
    check_seed(seed)
    for name, number in (("n_samples", n_samples), ("batch_size", batch_size)):
        if number is not None:
            check_whole(name, number)
    output = _check_output(model, output)
    _check_weights(model)
    target = model._condition_level(target)
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
        with_x = prediction.obs(), prediction.var(np.zeros((2, registered.n_vars)))
        writing = _Writing(shape, layer, pieces, with_x, prediction.around)
        return _write(Path(out), writing, overwrite=overwrite)
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
        self.totals: list[np.ndarray] = []  # of predicted counts, where cells have one
        self.marks: list[np.ndarray] = []  # of the source cells
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
                self.marks.append(marks_of(raw.observed))
                source = batch.observed_sum() if observed else column_sums(batch.source)
                self.sums += (source, column_sums(batch.target))
                values = predicted_values(self.model, batch, features, self.output, draws)
                if self.model.module.has_total and self.output in ("counts", "sample"):
                    self.totals.append(predicted_totals(batch, values))
                yield values

    def around(self, x: np.ndarray | sparse.csr_matrix | None) -> AnnData:
        """Return what belongs to the values, once they have all been predicted."""
        model, rows = self.model, self.rows
        means = scaled(model, self.sums / (len(rows) * self.n_samples), None)
        obs = self.obs()
        if self.totals:
            key = model.registry_["setup_args"]["total_counts_key"]
            obs = obs.assign(**{key: np.concatenate(self.totals)})
        obsm = {"X_trvae": np.concatenate(self.latent)}
        result = AnnData(X=x, obs=obs, var=self.var(means), obsm=obsm)
        source = self.original.obs.iloc[rows]
        is_training = among(np.concatenate(self.marks)[: len(rows)], model.training_marks_)
        novelty = self.calibration.novelty
        table = combination_table(model, source, self.target, novelty, is_training)
        settings = {"output": self.output, "n_samples": self.n_samples, "seed": self.seed}
        result.uns["trvae_sc"] = provenance(model, table, self.target, **settings)
        return result

    def obs(self) -> pd.DataFrame:
        """Return the source cells' columns with the target condition."""
        return _predicted_obs(self.model, self.original, self.rows, self.target, self.n_samples)

    def var(self, means: np.ndarray) -> pd.DataFrame:
        """Return the genes' columns with mean, change and interval of the prediction."""
        half = half_widths(self.model, self.registered, self.rows, self.target)
        return _predicted_var(self.original.var.loc[self.registered.var_names], means, half)


class _Writing(NamedTuple):
    """What a prediction is written from."""

    shape: tuple[int, int]
    layer: str | None
    pieces: Iterable[np.ndarray | sparse.csr_matrix]
    columns: tuple[pd.DataFrame, pd.DataFrame]  #: of obs and var, as far as they are known before
    around: Callable[[None], AnnData]


def _write(path: Path, what: _Writing, *, overwrite: bool) -> AnnData:
    """Write a prediction, completely or not at all, and return it with X in the file."""

    def write(temporary: Path) -> None:
        writer = PieceWriter(temporary, what.shape, what.layer)
        try:
            for name, table in zip(("obs", "var"), what.columns, strict=True):
                writer.check(name, table)
            for values in what.pieces:
                writer.add(values)
            writer.finish(what.around(None))
        finally:
            writer.close()

    (write_folder if path.suffix == ".zarr" else write_file)(path, write, overwrite=overwrite)
    return read(path, backed=True)


def check_out(out: str | Path, *, overwrite: bool, adata: AnnData | None = None) -> None:
    """Raise where a prediction cannot be written, before any work.

    Raises
    ------
    InputError
        A path that ends neither in ``.h5ad`` nor in ``.zarr``; something is there, without
        `overwrite` or of another kind; it is the file that `adata` is read from.
    """
    path = Path(out)
    check_suffix(path)
    zarr = path.suffix == ".zarr"
    check_target(
        path,
        overwrite=overwrite,
        replaces=is_zarr if zarr else None,
        kind="zarr store" if zarr else "file",
        inputs=[] if adata is None else files_of(adata),
    )


def _check_weights(model: TRVAE) -> None:
    """Raise where weights are no numbers."""
    if not all(bool(weight.isfinite().all()) for weight in model.module.parameters()):
        raise InputError(
            "Weights of the model are NaN or infinite: training failed, or they were changed. Train a "
            "new model."
        )


def _check_output(model: TRVAE, output: Output | None) -> Output:
    """Return the output to compute, or raise where the likelihood does not have it."""
    is_count = model.module.is_count
    allowed = ["counts", "delta", "mean", "sample"] if is_count else ["delta", "mean", "sample"]
    if output is None:
        return allowed[0]
    if output not in allowed:
        raise InputError(
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
    InputError
        Unknown source or labels, source equal to target, no cell left.
    """
    setup_args = model.registry_["setup_args"]
    condition = as_text(model._condition_column(adata.obs))
    rows = row_numbers(indices, adata.n_obs)
    if source is None:
        keep = (condition != level_name(target)).to_numpy()
    else:
        source = model._condition_level(source)
        if source == target:
            raise InputError(f"Source and target are both {target!r}: there is nothing to predict.")
        keep = (condition == level_name(source)).to_numpy()
    if labels is not None:
        keep = keep & has_label(adata, setup_args["labels_key"], labels)
    rows = rows[keep[rows]]
    if not len(rows):
        chosen = {"source": source, "labels": labels, "indices": indices is not None}
        raise InputError(
            f"No cell to predict {target!r} from: none matches {chosen}. adata has conditions "
            f"{sorted(condition.unique())}."
        )
    return rows


def has_label(adata: AnnData, labels_key: str | None, labels: Any) -> np.ndarray:
    """Return which cells have one of some labels."""
    if labels_key is None:
        raise InputError("The model was set up without labels_key, so labels cannot be chosen.")
    if labels_key not in adata.obs:
        raise InputError(
            f"No column '{labels_key}' in adata.obs; there are {list(adata.obs.columns)}."
        )
    names = as_text(adata.obs[labels_key])
    chosen = [labels] if isinstance(labels, str) or np.isscalar(labels) else list(labels)
    present = sorted(names.unique())
    unknown = [label for label in chosen if level_name(label) not in present]
    if unknown:
        raise InputError(f"Unknown labels {unknown}; adata.obs['{labels_key}'] has {present}.")
    return names.isin([level_name(label) for label in chosen]).to_numpy()


def _predicted_obs(
    model: TRVAE, adata: AnnData, rows: np.ndarray, target: Any, n_samples: int
) -> pd.DataFrame:
    """Return the source cells' columns with the target condition."""
    obs = without_codes(adata.obs.iloc[rows])
    names = obs.index.astype(str)
    source = model._condition_column(obs).astype("category")
    own = model._condition_values(target, len(obs))
    obs = obs.assign(source_condition=source, source_cell=names).assign(**own)
    obs.index = anndata.utils.make_index_unique(names + f"_{level_name(target)}")
    obs.index.name = None  # a column of that name may be there
    if n_samples == 1:
        return obs
    samples = [obs.assign(sample=i).set_axis(obs.index + f"_{i}") for i in range(n_samples)]
    return pd.concat(samples)


def _predicted_var(var: pd.DataFrame, means: np.ndarray, half: np.ndarray) -> pd.DataFrame:
    """Return the genes' columns with mean, change and interval of the prediction."""
    change = means[1] - means[0]
    columns = (means[0], means[1], change, change - half, change + half)
    var = var.assign(**dict(zip(PREDICTED_VAR, columns, strict=True)))
    var.index.name = None
    return var


def predict_missing(model: TRVAE, *, source: Any, **kwargs: Any) -> AnnData:
    """Return predictions of all combinations that training lacks; see TRVAE.predict_missing."""
    if not model.labels:
        raise InputError("The model was set up without labels_key: no combination can be missing.")
    if kwargs.get("out") is not None:
        raise InputError(
            "predict_missing has no out=: predict each combination to a file of its own."
        )
    table = model.n_cells
    missing = [(lab, c) for lab in table.index for c in table.columns if table.loc[lab, c] == 0]
    if not missing:
        raise InputError("The training data has every combination of label and condition.")
    parts = []
    given = None if source is None else model._condition_level(source)
    for label, target in missing:
        start = table.loc[label].idxmax() if given is None else given
        if table.loc[label, start] > 0:
            parts.append(model.predict(target=target, source=start, labels=label, **kwargs))
    if not parts:
        raise InputError(f"No label that lacks a condition has cells under {given!r}.")
    result = anndata.concat(parts, merge="same")
    record = dict(parts[0].uns["trvae_sc"])
    for key in ("target", "source"):
        record.pop(key)
    tables = [part.uns["trvae_sc"]["combinations"] for part in parts]
    record["combinations"] = pd.concat(tables, ignore_index=True)
    notes = dict.fromkeys(note for part in parts for note in part.uns["trvae_sc"]["notes"])
    record["notes"] = np.array(list(notes), dtype=object)
    result.uns["trvae_sc"] = record
    return result
