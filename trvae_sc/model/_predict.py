"""Counterfactual prediction: from calibrated rates to an AnnData of predicted cells."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import anndata
import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse

from trvae_sc.files import read, write_atomically
from trvae_sc.model._calibration import Batch, Calibration, decoded_batches, seen_pairs
from trvae_sc.model._counts import Draws, by_row, draw_counts, transport_counts
from trvae_sc.model._setup import check_free, logger
from trvae_sc.model._write import PieceWriter, stacked
from trvae_sc.training import row_numbers
from trvae_sc.uncertainty import half_width

if TYPE_CHECKING:
    from trvae_sc.model._model import TRVAE

Output = Literal["counts", "delta", "mean", "sample"]

_NOVEL = 1.5  # distance from the training labels above which a note says so


# -- values ---------------------------------------------------------------------------------------------


def predicted_values(
    model: TRVAE, batch: Batch, target: torch.Tensor, output: Output, draws: Draws
) -> np.ndarray | sparse.csr_matrix:
    """Return the predicted values of a batch."""
    module = model.module
    if output == "delta":
        return _scaled(model, batch.observed, batch.total) + log_change(model, batch)
    if output == "mean":
        return _scaled(model, batch.target, None)
    if not module.is_count:
        scale = 1.0  # "mse": half the squared error is the likelihood of unit variance
        if module.gene_likelihood == "normal":
            scale = (module.gene_scale * module.log_theta(target).exp()).detach().cpu().numpy()
        noise = draws.add.standard_normal(batch.target.shape, dtype=np.float32)
        return batch.target + scale * noise
    theta = None
    if module.gene_likelihood != "poisson":
        theta = module.log_theta(target).exp().detach().cpu().numpy()
    if output == "sample":
        return draw_counts(batch.target * batch.total, theta, draws.add)
    counts = by_row(batch.observed)
    ratio = batch.target / np.maximum(batch.source, 1e-30)
    gain = np.maximum(batch.target - batch.source, 0.0) if batch.gain is None else batch.gain
    return transport_counts(counts, ratio, gain * batch.total, theta, draws)


def _scaled(model: TRVAE, values: np.ndarray, total: np.ndarray | None) -> np.ndarray:
    """Return log(1 + kappa share) of counts (with their total) or shares; other values as they are."""
    if not model.module.is_count:
        return values
    shares = values if total is None else values / total
    return np.log1p(model.module.kappa.item() * shares)


def log_change(model: TRVAE, batch: Batch) -> np.ndarray:
    """Return the change from source to target on the scale of ``output="mean"``."""
    return _scaled(model, batch.target, None) - _scaled(model, batch.source, None)


# -- the AnnData ------------------------------------------------------------------------------------


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
    features = model._condition_features(target)
    original = model.adata if adata is None else adata
    registered = model._validate_anndata(adata)
    original = registered if original is None else original
    check_free(original, *(["sample"] if n_samples > 1 else []))
    rows = source_rows(model, original, target, source=source, labels=labels, indices=indices)
    for remark in model._condition_remarks(target)[1:]:
        logger.warning(remark)
    draws = Draws(seed)
    calibration = Calibration(model, registered, rows, target)
    latent, means = [], np.zeros((2, registered.n_vars))
    layer = model.registry_["setup_args"]["layer"] if output in ("counts", "sample") else None

    def pieces() -> Iterator[np.ndarray | sparse.csr_matrix]:
        for _ in range(n_samples):
            done = 0
            for raw in decoded_batches(
                model,
                registered,
                rows,
                features,
                draws=draws if n_samples > 1 else None,
                batch_size=batch_size,
            ):
                at = slice(done, done + len(raw.observed))
                batch = calibration(raw, at, gain=output == "counts")
                done += len(raw.observed)
                latent.append(batch.latent)
                means[0] += batch.source.sum(0, dtype=np.float64)
                means[1] += batch.target.sum(0, dtype=np.float64)
                yield predicted_values(model, batch, features, output, draws)

    def around(x: np.ndarray | sparse.csr_matrix | None) -> AnnData:
        """Return what belongs to the values, once they have all been predicted."""
        result = AnnData(
            X=x,
            obs=_predicted_obs(model, original, rows, target, n_samples),
            var=_predicted_var(
                original.var.loc[registered.var_names],
                _scaled(model, means / (len(rows) * n_samples), None),
                half_widths(model, registered, rows, target),
            ),
            obsm={"X_trvae": np.concatenate(latent)},
        )
        table = combination_table(model, original.obs.iloc[rows], target, calibration.novelty)
        result.uns["trvae_sc"] = provenance(
            model, table, target, output=output, n_samples=n_samples, seed=seed
        )
        return result

    if out is not None:
        shape = (len(rows) * n_samples, registered.n_vars)
        return _write(Path(out), shape, layer, pieces(), around)
    result = around(stacked(list(pieces())))
    if layer is not None:
        result.layers[layer] = result.X.copy()
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
    if Path(out).suffix not in (".h5ad", ".zarr"):
        raise ValueError(f"{out} is neither .h5ad nor .zarr.")
    if Path(out).exists() and not overwrite:
        raise FileExistsError(f"{out} exists. Pass overwrite=True to replace it.")


def _check_output(model: TRVAE, output: Output | None, n_samples: int) -> Output:
    """Return the output to compute, or raise where the model or its likelihood does not have it."""
    if n_samples < 1:
        raise ValueError(f"n_samples is {n_samples}; at least 1 is needed.")
    if model.module.decoder_in.condition is None:
        raise ValueError(f"The preset '{model.preset_}' ignores the condition and cannot predict.")
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
        keep = keep & _has_label(adata, setup_args["labels_key"], labels)
    rows = rows[keep[rows]]
    if not len(rows):
        chosen = {"source": source, "labels": labels, "indices": indices is not None}
        raise ValueError(
            f"No cell to predict {target!r} from: none matches {chosen}. adata has conditions "
            f"{sorted(map(str, condition.unique()))}."
        )
    return rows


def _has_label(adata: AnnData, labels_key: str | None, labels: Any) -> np.ndarray:
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


# -- how far to trust it ------------------------------------------------------------------------------


def half_widths(model: TRVAE, adata: AnnData, rows: np.ndarray, target: Any) -> np.ndarray:
    """Return half the width of each gene's interval, the mean over the source cells; NaN if unknown."""
    condition = model._condition_column(adata.obs.iloc[rows])
    scale = 1.0 if model.module.is_count else model.module.gene_scale.cpu().numpy()
    total = np.zeros(adata.n_vars)
    for source, n_cells in condition.value_counts().items():
        if not n_cells or source == target:
            continue
        half = half_width(*seen_pairs(model, source, target)) if model.labels else None
        total += n_cells * (np.full(adata.n_vars, np.nan) if half is None else half * scale)
    return total / len(rows)


def provenance(
    model: TRVAE, combinations: pd.DataFrame, target: Any, *, output: str, n_samples: int, seed: int
) -> dict[str, Any]:
    """Return the record of a prediction, in types that h5ad and zarr can hold."""
    remarks = model._condition_remarks(target)
    notes = _notes(combinations, measured=not remarks) + remarks
    if not model.labels:
        notes.append(
            "The model was set up without labels_key, so there was no transfer loss, and no label "
            "to learn from how another changes: expect too small a change, and no intervals."
        )
    return {
        "method": "TRVAE",
        "preset": model.preset_,
        "gene_likelihood": model.module.gene_likelihood,
        "model_seed": int(model.seed_),
        "target": str(target),
        "source": np.array(combinations["source"].unique(), dtype=object),
        "output": output,
        "scale": _scale_name(model, output),
        "kappa": float(model.module.kappa),
        "n_samples": int(n_samples),
        "seed": int(seed),
        "combinations": combinations,
        "notes": np.array(notes, dtype=object),
        "versions": {name: version(name) for name in ("trvae_sc", "scvi-tools", "torch")},
    }


def _scale_name(model: TRVAE, output: str) -> str:
    if not model.module.is_count:
        return "values"
    return "counts" if output in ("counts", "sample") else "log(1 + kappa * share)"


def combination_table(
    model: TRVAE, source: pd.DataFrame, target: Any, distances: dict[tuple[str, str], float]
) -> pd.DataFrame:
    """Return one row a predicted combination: from what, and what training saw of it.

    ``novelty`` is :func:`trvae_sc.uncertainty.novelty` of the source cells.
    """
    setup_args = model.registry_["setup_args"]
    label = source.get(setup_args["labels_key"], "all")
    pairs = pd.DataFrame({"label": label, "source": model._condition_column(source)})
    counts = pairs.value_counts(sort=False)
    counts = counts[counts > 0].reset_index(name="n_source_cells")
    known = model.n_cells
    if target not in known:
        known = known.assign(**{target: 0})
    seen = [int(known[target].get(label, 0)) for label in counts["label"]]
    both = [int(((known[target] > 0) & (known[s] > 0)).sum()) for s in counts["source"]]
    return counts.assign(
        label=counts["label"].astype(str),
        source=counts["source"].astype(str),
        target=str(target),
        n_training_cells=seen,
        seen_in_training=np.array(seen) > 0,
        n_labels_with_both=both,
        novelty=[
            distances.get((str(lab), str(src)), np.nan)
            for lab, src in zip(counts["label"], counts["source"], strict=True)
        ],
    )


def _notes(combinations: pd.DataFrame, *, measured: bool = True) -> list[str]:
    """Return what a reader of the prediction should know; `measured`: the target itself was."""
    notes = []
    seen = combinations.loc[combinations["seen_in_training"], "label"].unique()
    if len(seen):
        notes.append(
            f"Training saw the target condition of {', '.join(seen)}: these are not predictions of "
            "something unseen, and scoring them says nothing about unseen cells."
        )
    new = combinations[(combinations["novelty"] > _NOVEL) & ~combinations["seen_in_training"]]
    if len(new):
        named = ", ".join(f"{r.label} ({r.novelty:.1f})" for r in new.itertuples())
        notes.append(
            f"Unlike the labels that training saw under both conditions: {named}. The number is the "
            "distance to the nearest of them, in units of how far these are from each other; beyond "
            f"{_NOVEL:g} the prediction extrapolates."
        )
    few = combinations[combinations["n_labels_with_both"].between(1, 2)]
    if len(few):
        notes.append(
            f"Only {few['n_labels_with_both'].min()} label(s) were seen under both source and target: "
            "too few to tell what is particular to a label, or how wide the intervals are."
        )
    if measured and (combinations["n_labels_with_both"] == 0).any():
        notes.append(
            "No label was seen under both source and target, so the change rests on the alignment of "
            "conditions alone."
        )
    return notes


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
    record["notes"] = np.array(_notes(record["combinations"]), dtype=object)
    result.uns["trvae_sc"] = record
    return result


def generate_cells(
    model: TRVAE, condition: Any, n_obs: int, *, labels: Any, latent: str, seed: int
) -> AnnData:
    """Return new cells; see :meth:`TRVAE.generate`."""
    level, features = model._condition_level(condition), model._condition_features(condition)
    if latent not in ("prior", "posterior"):
        raise ValueError(f"Unknown latent '{latent}'; choose 'prior' or 'posterior'.")
    if labels is not None and latent == "prior":
        raise ValueError("The prior knows no labels: use latent='posterior' with labels.")
    adata = model._validate_anndata(None)
    setup_args = model.registry_["setup_args"]
    pool = np.arange(adata.n_obs)
    if labels is not None:
        pool = np.flatnonzero(_has_label(adata, setup_args["labels_key"], labels))
    draws = Draws(seed)
    rows = draws.keep.choice(pool, size=n_obs)
    values = []
    for tensors in model._make_data_loader(adata, rows):
        qz = model.module.encode(tensors)
        noise = draws.latent.standard_normal(tuple(qz.loc.shape), dtype=np.float32)
        noise = torch.as_tensor(noise, device=qz.loc.device)
        z = noise if latent == "prior" else qz.loc + qz.scale * noise
        mean = model.module.expected(tensors, z, features).cpu().numpy()
        total = model.module._total(tensors)
        total = None if total is None else total.cpu().numpy()
        batch = Batch(mean, total, mean, mean, mean)
        values.append(predicted_values(model, batch, features, "sample", draws))
    obs = pd.DataFrame(index=[f"generated_{i}" for i in range(n_obs)])
    obs = obs.assign(**model._condition_values(level, n_obs))
    if labels is not None:
        obs[setup_args["labels_key"]] = adata.obs[setup_args["labels_key"]].iloc[rows].to_numpy()
    result = AnnData(stacked(values), obs=obs, var=adata.var.copy())
    result.uns["trvae_sc"] = {
        "method": "TRVAE.generate",
        "condition": str(level),
        "latent": latent,
        "seed": int(seed),
        "versions": {name: version(name) for name in ("trvae_sc", "scvi-tools", "torch")},
    }
    return result
