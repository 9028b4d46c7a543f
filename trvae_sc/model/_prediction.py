"""The ``predict``, ``predict_missing`` and ``generate`` methods."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS

from trvae_sc.errors import InputError
from trvae_sc.model._codes import decode_codes, generate_cells
from trvae_sc.model._effects import effects
from trvae_sc.model._exemplars import exemplars_of
from trvae_sc.model._features import of_known_conditions, with_features
from trvae_sc.model._predict import (
    Output,
    Request,
    check_request,
    joined,
    missing_combinations,
    predict_cells,
)
from trvae_sc.model._registration import NOT_TRAINED
from trvae_sc.model._training import TrainableModel
from trvae_sc.notes import log_notes
from trvae_sc.threads import suitable_threads


class PredictingModel(TrainableModel):
    """Cells under a condition they were not measured in, and new cells of a condition."""

    def predict(  # noqa: PLR0913
        self,
        adata: AnnData | None = None,
        *,
        target: Any,
        source: Any = None,
        labels: Any = None,
        indices: Sequence[int] | None = None,
        output: Output | None = None,
        n_samples: int = 1,
        seed: int = 0,
        batch_size: int | None = None,
        out: str | Path | None = None,
        overwrite: bool = False,
        exemplars: AnnData | None = None,
        features: Any = None,
    ) -> AnnData:
        r"""Return the cells as they would be under another condition.

        Each cell is encoded and decoded under both conditions; what is decoded is put on the level
        that training observed in the cell's label, and the label's change is the mean of what the
        network and what the other labels' changes say. A prediction depends on the cell and the
        model alone, but for what is drawn, which depends on the cells drawn together and their
        order.

        Parameters
        ----------
        adata
            Cells to start from, with the genes of the model in any order; the model's own data if
            None. Not changed. Labels the model does not know are allowed, and so are cells under the target or, where
            `source` is named, under other conditions that it does not know: they are left out, and those of a
            backed file that are left are read into memory.
        target
            Condition to predict. With several condition columns a dictionary of their values, a tuple
            in their order, or the name in ``model.conditions``; a combination that was never measured
            is predicted from its parts, with a note in ``uns``.
        source
            Condition of the cells to start from, given like `target`; all but `target` if None.
        labels
            Label or labels of the cells to start from; all if None.
        indices
            Rows to start from (list, array or mask), in addition to `source` and `labels`.
        output
            ``"counts"`` (default for counts): whole numbers. Each observed count is kept with
            probability :math:`\min(1, r_t / r_s)`, and counts of mean :math:`t \max(0, g)` are added, t
            being the cell's total and g the mean of its own gain, :math:`r_t - r_s`, and its label's, where
            the label gains (:doc:`/models/transport`).
            ``"delta"`` (default otherwise): observed value plus the change of its expectation, of
            counts on the scale log(1 + kappa share) (kappa: median total of the training cells).
            ``"mean"``: the expected value under the target, on the same scale, without noise.
            ``"sample"``: draws from the likelihood under the target.
        n_samples
            Predictions per cell, from as many draws of z; with 1, z is the posterior mean.
        seed
            Seed of all draws. The result does not depend on `batch_size`.
        batch_size
            Cells decoded at a time.
        out
            File (``.h5ad`` or ``.zarr``) to write to, piece by piece, for more cells than fit into
            memory; it is there completely or not at all. With a backed `adata` neither is ever in
            memory as a whole.
        overwrite
            Replace `out`.
        exemplars
            A few measured cells of the labels to predict under the target. The prediction of a label's mean
            is moved to theirs gene by gene, as far as the variance of their mean is below that of what is
            wrong with labels left out (:doc:`/guide/next`), and the interval gets narrower, unless they show
            that this prediction is more wrong than others.
        features
            Numbers that describe a target that the table of ``condition_features`` lacks: a dictionary or
            Series by feature, or an array in their order.

        Returns
        -------
        AnnData (with `out`: its ``X`` stays in that file) with one row per source cell and sample
        (:doc:`/guide/output`). ``X``: the output, also in the layer the model was set up with,
        if it is on the scale of that.
        ``obs``: the source cell's columns with the target condition, ``source_condition``,
        ``source_cell`` (``sample``), and ``response``, how far the cell moves (1: like the mean of
        its label; NaN where that is not known). ``var``, where all cells have one label and source:
        ``source_mean``, ``predicted_mean`` and ``predicted_change`` of the label, log(1 + kappa
        share) of the mean share (mean values for ``normal``), and the 90 % interval of the change,
        ``change_lower`` and ``change_upper`` (:doc:`/models/intervals`; NaN where nothing is known
        of its error). ``obsm["X_trvae"]``: latent mean. ``uns["trvae_sc"]``: what was predicted
        from what, by which model, and notes on how far to trust it, each logged once a model.

        Raises
        ------
        NotTrainedError
            The model is not trained.
        InputError
            Unknown target, source or labels; target equal to source; no cell selected; genes
            missing; an output the likelihood does not have; `out` of another kind, or there without
            `overwrite`. Where codes are moved: no label was seen under source and target.

        Notes
        -----
        With decoded rates :math:`r_s, r_t` of a cell (its share of each gene, or mean value), and
        means over the label's training cells (of a new label the cells given), :math:`m_s, m_t` of
        these rates and :math:`p_s` of what was observed,

        .. math:: f(\hat p_t) = f(p_s) + (1 - w)\,[f(m_t) - f(m_s)] + w\,\hat d, \qquad
           r_s \leftarrow r_s\,p_s / m_s, \quad r_t \leftarrow r_t\,\hat p_t / m_t

        on the scale :math:`f(r) = \log(1 + \kappa r)` of counts, not below 0 (else the identity, and
        sums in place of factors), with w = ``context_weight`` and the change :math:`\hat d` of kernel
        ridge regression (:class:`trvae_sc.shift.Ridge`); 1 - w gets less as far as a label's own change
        was measured (:doc:`/models/mixture`). Networks that do not see the condition move the codes
        instead, by the mean over labels of the difference between conditions (scGen; Lotfollahi et
        al. 2019, doi:10.1038/s41592-019-0494-8). With ``calibrate=False`` the rates are as they
        were decoded.
        """
        self._check_if_trained(warn=False, message=NOT_TRAINED)
        trained = with_features(self.trained, target, features)
        given = adata
        adata, indices = of_known_conditions(trained, given, indices, target, source)
        request = Request(
            target, source, labels, indices, output, n_samples, seed, batch_size, out, overwrite
        )
        original = self.adata if adata is None else adata
        request = check_request(trained, request, given, self.adata, exemplars)
        names = pd.Index(self.get_var_names())
        shown = exemplars_of(trained, exemplars, names, request.target)
        registered = self._validate_anndata(adata)
        with torch.random.fork_rng(), suitable_threads(self.module.widest):
            request = request._replace(exemplars=shown)
            predicted = predict_cells(trained, original, registered, request)
        return log_notes(predicted, self._notes_said)

    def predict_missing(
        self, *, target: Any = None, source: Any = None, labels: Any = None, **kwargs: Any
    ) -> AnnData:
        """Predict every label x condition combination that the training data lack.

        Parameters
        ----------
        target
            Condition, to predict the labels that lack it; every one if None.
        source
            Condition to predict from. If None, for each label the condition with most of its cells.
        labels
            Label or labels, to predict what they lack; all if None.
        **kwargs
            Passed to :meth:`predict`.

        Returns
        -------
        The predictions of all combinations, concatenated; ``uns["trvae_sc"]["combinations"]`` lists
        them.

        Raises
        ------
        InputError
            No labels were registered, nothing is missing, target, source or a label is unknown, or there are
            exemplars for several combinations.
        """
        self._check_if_trained(warn=False, message=NOT_TRAINED)
        if kwargs.get("out") is not None:
            raise InputError(
                "predict_missing has no out=: predict each combination to a file of its own."
            )
        missing = missing_combinations(self.trained, source, target, labels)
        if kwargs.get("exemplars") is not None and len(missing) > 1:
            raise InputError(
                f"exemplars are of one combination, of {len(missing)} that are missing: call predict for each."
            )
        return joined(
            [self.predict(target=t, source=s, labels=label, **kwargs) for label, s, t in missing]
        )

    def effects(
        self,
        *,
        target: Any,
        source: Any = None,
        labels: Any = None,
        exemplars: AnnData | None = None,
        by: str | None = None,
        features: Any = None,
    ) -> pd.DataFrame:
        """Return the predicted change of every gene in every label, as a table.

        Parameters
        ----------
        target, exemplars, features
            As of :meth:`predict`.
        source
            Condition to start from; every other one if None.
        labels
            Label or labels; all that training has cells of under the source if None.
        by
            ``replicate_key``, for the change in each donor: from its own mean, by the label's fold change.

        Returns
        -------
        One row a label, source and gene (:doc:`/guide/output`): ``label``, ``source``, ``target``,
        ``gene``; ``source_mean``, ``predicted_mean`` and their difference ``change``, log(1 + kappa
        share) of the mean share (mean values for ``normal``); ``log2_fold_change`` of 1 + kappa
        share, of counts; ``lower``, ``upper``, the 90 % interval of the change; ``pval``
        (:class:`trvae_sc.intervals.Decoys`) and ``qval`` within the label (Benjamini and Hochberg),
        evidence from how well labels predict each other, not from replicates, NaN where changes of
        the label itself tell of the target; ``n_source_cells`` of training; ``novelty``
        (:func:`trvae_sc.shift.novelty`); of sets of parts ``sum_of_parts``, ``interaction``,
        ``interaction_lower`` and ``interaction_upper``; with `by` ``replicate`` and
        ``measured_change``.

        Raises
        ------
        NotTrainedError
            The model is not trained.
        InputError
            Unknown target, source or labels; the model does not calibrate.
        """
        self._check_if_trained(warn=False, message=NOT_TRAINED)
        genes = pd.Index(self.get_var_names())
        trained = with_features(self.trained, target, features)
        shown = exemplars_of(trained, exemplars, genes, trained.conditions.level(target))
        with torch.inference_mode(), suitable_threads(self.module.widest):
            return effects(
                trained,
                genes,
                target=target,
                source=source,
                labels=labels,
                exemplars=shown,
                by=by,
            )

    def generate(
        self,
        condition: Any,
        n_obs: int = 1000,
        *,
        labels: Any = None,
        latent: Literal["prior", "posterior"] = "posterior",
        output: Literal["sample", "mean"] = "sample",
        seed: int = 0,
    ) -> AnnData:
        """Draw new cells of a condition.

        Parameters
        ----------
        condition
            Condition to decode with; None where the network does not see it.
        n_obs
            Number of cells.
        labels
            Label or labels that the latent codes come from; all if None. Needs ``"posterior"``.
        latent
            Where z comes from: the ``"prior"`` N(0, I), or the aggregate ``"posterior"``: a random
            training cell is drawn and z from its posterior. Total, batch and covariates are always
            those of a random training cell.
        output
            ``"sample"``: draws from the likelihood; ``"mean"``: their expectation, without noise, on the
            scale of ``predict(output="mean")``.
        seed
            Seed of all draws.

        Returns
        -------
        AnnData with the cells in ``X`` (and in the layer the model was set up with, if they are on its
        scale), their condition, label (where `labels` are given) and total (with ``total_counts_key``) in
        ``obs``, and z in ``obsm["X_trvae"]``.

        Raises
        ------
        InputError
            Unknown condition, label or output, labels with the prior, or the prior of an autoencoder,
            which has none (:meth:`decode` takes any codes).
        """
        self._check_if_trained(warn=False, message=NOT_TRAINED)
        with torch.random.fork_rng(), suitable_threads(self.module.widest):
            return generate_cells(
                self.trained,
                self._validate_anndata(None),
                condition,
                n_obs,
                labels=labels,
                latent=latent,
                output=output,
                seed=seed,
            )

    def decode(
        self,
        z: np.ndarray,
        *,
        condition: Any = None,
        labels: Any = None,
        batch: Any = None,
        output: Literal["mean", "sample"] = "mean",
        seed: int = 0,
    ) -> AnnData:
        """Return the cells that latent codes stand for.

        Parameters
        ----------
        z
            Codes, shape (n_codes, n_latent): from N(0, I), from ``get_latent_representation``, or made by
            hand.
        condition
            Condition to decode with: one, or an array with one for each code. Left out where the network
            does not see it.
        labels
            Label or labels to note in ``obs``: the decoder does not see them.
        batch
            Batch to decode with: one, or one for each code; the most frequent if None. So are other
            categorical covariates, and numeric ones at their mean.
        output
            ``"mean"``: expected values, on the scale of ``predict(output="mean")``. ``"sample"``: draws
            from the likelihood, of counts with the median total of the training cells.
        seed
            Seed of the draws.

        Returns
        -------
        AnnData with a row per code; z in ``obsm["X_trvae"]``, the condition in ``obs``.

        Raises
        ------
        NotTrainedError
            The model is not trained.
        InputError
            Codes of another shape, an unknown condition, batch or output; neither one value nor as many as
            there are codes.

        Examples
        --------
        >>> z = np.random.default_rng(0).standard_normal((100, 10))
        >>> cells = model.decode(z, condition="stimulated")
        """
        self._check_if_trained(warn=False, message=NOT_TRAINED)
        has_batch = self.registry_["setup_args"]["batch_key"] is not None
        names = pd.Index(self.get_var_names())
        with torch.inference_mode(), suitable_threads(self.module.widest):
            return decode_codes(
                self.trained,
                pd.DataFrame(index=names)
                if self.adata is None
                else self.adata.var.loc[names].copy(),
                z,
                condition=condition,
                labels=labels,
                batch=batch,
                batches=self._levels(REGISTRY_KEYS.BATCH_KEY) if has_batch else [],
                output=output,
                seed=seed,
            )
