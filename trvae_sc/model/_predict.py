"""Counterfactual prediction: from calibrated rates to an AnnData of predicted cells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import anndata
import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse

from trvae_sc.alignment import ALIGNMENT
from trvae_sc.arguments import check_seed, check_whole
from trvae_sc.checks import PREDICTED_VAR, RECORD, check_free, logger
from trvae_sc.errors import InputError
from trvae_sc.files import read, write_whole
from trvae_sc.identity import among, marks_of
from trvae_sc.levels import as_text, level_name, listing
from trvae_sc.model._counts import Draws
from trvae_sc.model._decode import (
    Batch,
    decoded_batches,
    latent_shifts,
    predicted_totals,
    predicted_values,
    scaled,
)
from trvae_sc.model._exemplars import Exemplars, check_labels, exemplar_notes
from trvae_sc.model._factors import Calibration, Change
from trvae_sc.model._record import combination_table, layer_of, predicted_obs, provenance
from trvae_sc.model._trained import Known, Trained, chosen_labels, given_labels
from trvae_sc.model._write import PieceWriter, check_out, stacked
from trvae_sc.rows import Rows, give_back_memory
from trvae_sc.scales import scale_notes
from trvae_sc.training import row_numbers

Output = Literal["counts", "delta", "mean", "sample"]
_SOME_CELLS = 64  # of a label and source, whose means tell of their scale


class Request(NamedTuple):
    """What is to be predicted; see :meth:`TRVAE.predict`."""

    target: Any
    source: Any = None
    labels: Any = None
    indices: Sequence[int] | None = None
    output: Output | None = None
    n_samples: int = 1
    seed: int = 0
    batch_size: int | None = None
    out: str | Path | None = None
    overwrite: bool = False
    exemplars: dict[str, Exemplars] | None = None


def check_request(trained: Trained, request: Request, *read: AnnData | None) -> Request:
    """Return a request with its target and output as the model has them; raise before any work."""
    if request.out is not None:
        out = check_out(request.out, *read, overwrite=request.overwrite)
        request = request._replace(out=out)
    check_seed(request.seed)
    for name in ("n_samples", "batch_size"):
        if getattr(request, name) is not None:
            check_whole(name, getattr(request, name))
    check_weights(trained.module)
    output = _check_output(trained, request.output)
    return request._replace(output=output, target=trained.conditions.level(request.target))


def predict_cells(
    trained: Trained, original: AnnData, registered: AnnData, request: Request
) -> AnnData:
    """Return predicted cells; see :meth:`TRVAE.predict`.

    `original` are the cells as they were passed, `registered` with the model; the request was
    checked.
    """
    check_free(original, *(["sample"] if request.n_samples > 1 else []))
    rows = source_rows(trained, original, request)
    present = trained.label_column(original.obs.iloc[rows]).unique()
    if request.exemplars:
        check_labels(request.exemplars, present)
    if request.labels is not None:
        asked = map(level_name, given_labels(trained.labels_key, request.labels))
        if absent := [label for label in asked if label not in present]:
            logger.warning(
                "No cell of %s to start from: only others are predicted.", listing(absent)
            )
    for remark in trained.conditions.remarks(request.target)[1:]:
        logger.warning(remark)
    layer = layer_of(trained.layer, trained.module.is_count, request.output)
    prediction = _Prediction(trained, original, registered, rows, request)
    if request.out is not None:
        _write(prediction, layer)
        del prediction  # what was written is read again
        give_back_memory()
        return read(request.out, backed=True)
    result = prediction.around(stacked(prediction.pieces(), prediction.n_rows))
    if layer is not None:
        result.layers[layer] = result.X.copy()
    return result


class _Prediction:
    """Predicted values in pieces, and the AnnData around them."""

    def __init__(
        self,
        trained: Trained,
        original: AnnData,
        registered: AnnData,
        rows: np.ndarray,
        request: Request,
    ) -> None:
        self.trained, self.original, self.registered = trained, original, registered
        self.rows, self.request = rows, request
        self.groups = trained.groups(original.obs.iloc[rows])
        self.shifts = latent_shifts(trained, self.groups["source"].unique(), request.target)
        self.calibration = Calibration(
            trained,
            registered,
            rows,
            self.groups,
            request.target,
            request.exemplars,
            drawn=request.n_samples > 1,
        )
        self.n_rows = n = len(rows) * request.n_samples
        self.latent, self.response = Rows(n), Rows(n)
        self.totals = Rows(n)  # of predicted counts, where cells have one
        self.marks = Rows(n)  # of the source cells
        self.sums = np.zeros((2, registered.n_vars))
        by_group = self.groups.groupby(["label", "source"])
        self.names = by_group.size().index
        # some cells of each group, sums of their shares, and their number
        self.some = np.where(by_group.cumcount() < _SOME_CELLS, by_group.ngroup(), -1)
        self.observed = np.zeros((len(self.names), registered.n_vars))
        self.n_observed = np.zeros(len(self.names), dtype=int)

    def pieces(self) -> Iterator[np.ndarray | sparse.csr_matrix]:
        """Yield predicted values, batch by batch."""
        request, module = self.request, self.trained.module
        draws, features = Draws(request.seed), self.trained.features(request.target)
        for _ in range(request.n_samples):
            done = 0
            for raw in decoded_batches(
                self.trained,
                self.registered,
                self.rows,
                features,
                shifts=self.shifts,
                draws=draws if request.n_samples > 1 else None,
                batch_size=request.batch_size,
            ):
                at = slice(done, done + len(raw.observed))
                batch = self.calibration(raw, at, request.output)
                done += len(raw.observed)
                self.response.add(self.calibration.response(raw, at))
                self.latent.add(batch.latent)
                self.marks.add(marks_of(raw.observed))
                self._add_observed(raw, self.some[at])
                if not self.calibration.factors:
                    ends = batch.source, batch.target
                    self.sums += [rates.sum(0, dtype=np.float64) for rates in ends]
                values = predicted_values(module, batch, features, request.output, draws)
                if module.has_total and request.output in ("counts", "sample"):
                    self.totals.add(predicted_totals(batch, values))
                yield values

    def _add_observed(self, batch: Batch, group: np.ndarray) -> None:
        """Add what was observed of some cells of a batch, by their group; -1: of none that is looked at."""
        for code in np.unique(group[group >= 0]):
            shares = batch.shares(group == code)
            self.observed[code] += shares.sum(0, dtype=np.float64)
            self.n_observed[code] += len(shares)

    def _scale_notes(self) -> list[str]:
        """Return a note where cells are on another scale than those of training."""
        trained, found, groups = self.trained, [], zip(self.observed, self.n_observed, strict=True)
        profiles = trained.profiles().mean
        for (label, source), (total, n) in zip(self.names, groups, strict=True):
            code = trained.conditions.code(trained.conditions.level(source))
            if n_known := trained.n_cells_of(label, code):
                own = profiles[trained.labels.index(label), code]
                found.append((scaled(trained.module, total / n), own, min(n, n_known)))
        is_count = trained.module.is_count
        return scale_notes("these cells", found, "in training", is_count=is_count)

    def around(self, x: np.ndarray | sparse.csr_matrix | None) -> AnnData:
        """Return what belongs to the values, once they have all been predicted."""
        trained, rows, request = self.trained, self.rows, self.request
        notes: list[str] = []
        obs = self.obs().assign(response=self.response.array())
        if len(self.totals):
            obs = obs.assign(**{trained.total_counts_key: self.totals.array()})
        result = AnnData(X=x, obs=obs, var=self.var(), obsm={"X_trvae": self.latent.array()})
        is_training = among(self.marks.array()[: len(rows)], trained.marks)
        factors = self.calibration.factors
        table = combination_table(trained, self.groups, request.target, factors, is_training)
        settings = {name: getattr(request, name) for name in ("output", "n_samples", "seed")}
        record = provenance(trained, table, request.target, **settings)
        key = trained.labels_key
        if key is not None and key not in self.original.obs:
            notes.append(
                f"The cells have no column '{key}': they were moved as one group, and whether training saw their "
                "labels under the target is not known."
            )
        notes += self._scale_notes()
        filled = self.original.uns.get(ALIGNMENT, {}).get("share_missing", 0.0)
        if filled:
            notes.append(
                f"{filled:.1%} of the genes were not measured in these cells: their mean was filled in."
            )
        if shown := {label: of.n for label, of in (request.exemplars or {}).items()}:
            notes += exemplar_notes(trained, shown, request.target)
            table["n_exemplars"] = [shown.get(label, 0) for label in table["label"]]
        record["notes"] = np.array([*record["notes"], *notes], dtype=object)
        result.uns[RECORD] = record
        return result

    def obs(self) -> pd.DataFrame:
        """Return the source cells' columns with the target condition."""
        asked = self.request.target, self.request.n_samples
        return predicted_obs(self.trained, self.original, self.rows, *asked)

    def var(self) -> pd.DataFrame:
        """Return the genes' columns; of a single label and source with its change and interval."""
        var = self.original.var.loc[self.registered.var_names].copy()
        var.index.name = None
        factors = self.calibration.factors
        if len(factors) == 1:
            change = factors[0].change
        elif factors or len(self.groups.drop_duplicates()) > 1:
            return var
        else:  # not calibrated: the mean over the cells
            change = Change(*scaled(self.trained.module, self.sums / self.n_rows))
        return var.assign(**dict(zip(PREDICTED_VAR, change.columns(), strict=True)))


def _write(prediction: _Prediction, layer: str | None) -> None:
    """Write a prediction, completely or not at all."""
    path = prediction.request.out

    def write(temporary: Path) -> None:
        shape = prediction.n_rows, prediction.registered.n_vars
        writer = PieceWriter(temporary, shape, layer)
        try:
            writer.check("obs", prediction.obs())  # as far as they are known before
            writer.check("var", prediction.var())
            for values in prediction.pieces():
                writer.add(values)
            writer.finish(prediction.around(None))
        finally:
            writer.close()

    write_whole(path, write, overwrite=prediction.request.overwrite)


def check_weights(module: torch.nn.Module) -> None:
    """Raise where weights are no numbers."""
    if not all(bool(weight.isfinite().all()) for weight in module.parameters()):
        raise InputError(
            "Weights of the model are NaN or infinite: training failed, or they were changed. Train a "
            "new model."
        )


def _check_output(trained: Trained, output: Output | None) -> Output:
    """Return the output to compute, or raise where the likelihood does not have it."""
    is_count = trained.module.is_count
    allowed = ["counts", "delta", "mean", "sample"] if is_count else ["delta", "mean", "sample"]
    if output is None:
        return allowed[0]
    if output not in allowed:
        raise InputError(
            f"Output '{output}' is not available with gene_likelihood "
            f"'{trained.module.gene_likelihood}'; choose one of {allowed}."
        )
    return output


def source_rows(known: Known, adata: AnnData, request: Request) -> np.ndarray:
    """Return the rows to predict from, in the caller's order; raise where there are none."""
    target, source, labels, indices = request[:4]
    condition = as_text(known.conditions.column(adata.obs))
    rows = row_numbers(indices, adata.n_obs)
    if source is None:
        keep = (condition != level_name(target)).to_numpy()
    else:
        source = known.conditions.level(source)
        if source == target:
            raise InputError(f"Source and target are both {target!r}: there is nothing to predict.")
        keep = (condition == level_name(source)).to_numpy()
    if labels is not None:
        keep = keep & has_label(adata, known.labels_key, labels)
    rows = rows[keep[rows]]
    if not len(rows):
        asked = [] if labels is None else [f"of labels {given_labels(known.labels_key, labels)}"]
        asked += [
            f"under {source!r}"
            if source is not None
            else f"under another condition than {target!r}"
        ]
        asked += [] if indices is None else ["among the indices"]
        raise InputError(
            f"No cell to predict {target!r} from: adata has none {' '.join(asked)}. Its conditions are "
            f"{sorted(condition.unique())}."
        )
    return rows


def has_label(adata: AnnData, labels_key: str | None, labels: Any) -> np.ndarray:
    """Return which cells have one of some labels."""
    chosen = given_labels(labels_key, labels)
    if labels_key not in adata.obs:
        raise InputError(
            f"No column '{labels_key}' in adata.obs; there are {list(adata.obs.columns)}."
        )
    names = as_text(adata.obs[labels_key])
    present = sorted(names.unique())
    unknown = [label for label in chosen if level_name(label) not in present]
    if unknown:
        raise InputError(f"Unknown labels {unknown}; adata.obs['{labels_key}'] has {present}.")
    return names.isin([level_name(label) for label in chosen]).to_numpy()


def missing_combinations(
    trained: Trained, source: Any, target: Any = None, labels: Any = None
) -> list[tuple[str, Any, Any]]:
    """Return label, source and target of what training lacks; see :meth:`TRVAE.predict_missing`."""
    if trained.labels_key is None:
        raise InputError("The model was set up without labels_key: no combination can be missing.")
    names, space = chosen_labels(trained, labels), trained.conditions
    given = None if source is None else space.level(source)
    targets = space.levels if target is None else [space.level(target)]
    missing = [
        (label, to)
        for label in names
        for to in targets
        if not trained.n_cells_of(label, space.code(to), seen=True)
    ]
    if not missing:
        under = "" if target is None else f" that was asked for, {names} under {targets[0]!r}"
        raise InputError(f"The training data has every combination of label and condition{under}.")
    found = []
    for label, to in missing:
        most = trained.n_cells[trained.labels.index(label)].argmax()
        start = space.levels[most] if given is None else given
        if trained.n_cells_of(label, space.code(start)):
            found.append((label, start, to))
    if not found:
        raise InputError(f"No label that lacks a condition has cells under {given!r}.")
    return found


def joined(parts: Sequence[AnnData]) -> AnnData:
    """Return predictions of several combinations as one."""
    result = anndata.concat(parts, merge="same")
    record = dict(parts[0].uns[RECORD])
    tables = [part.uns[RECORD]["combinations"] for part in parts]
    record["combinations"] = pd.concat(tables, ignore_index=True)
    record["source"], targets = (
        np.array(record["combinations"][key].unique(), dtype=object) for key in ("source", "target")
    )
    record["target"] = targets[0] if len(targets) == 1 else targets
    notes = dict.fromkeys(note for part in parts for note in part.uns[RECORD]["notes"])
    record["notes"] = np.array(list(notes), dtype=object)
    result.uns[RECORD] = record
    return result
