"""The ``predict``, ``predict_missing`` and ``generate`` methods."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from anndata import AnnData
from scvi.model.base import BaseModelClass

from trvae_sc.model._generate import generate_cells
from trvae_sc.model._inference import NOT_TRAINED
from trvae_sc.model._predict import Output, predict_cells, predict_missing
from trvae_sc.threads import suitable_threads


class PredictionMixin(BaseModelClass):
    """Cells under a condition they were not measured in, and new cells of a condition."""

    def predict(
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
    ) -> AnnData:
        r"""Return the cells as they would be under another condition.

        Each source cell is encoded with its own condition, giving z, and decoded under source and
        target: :math:`r_s, r_t`, the expected share of each gene in the cell's total (or mean value).

        With ``calibrate`` (default preset) the rates are then scaled gene by gene, for all cells of a
        label and source condition alike. With f(r) = log(1 + kappa r) (identity for ``normal``), means
        :math:`m_s, m_t` of the decoded rates and :math:`p_s` of the observed shares of those cells,

        .. math:: r_s \leftarrow r_s\,p_s / m_s, \qquad r_t \leftarrow r_t\,\hat p_t / m_t, \qquad
           f(\hat p_t) = f(p_s) + (1 - u)\,[(1 - w)\,\Delta + w\,\hat d]
           + u\,\mathrm{median}(\Delta, \hat d, d_l), \qquad \Delta = f(m_t) - f(m_s)

        (``normal``: :math:`r_s + p_s - m_s`, :math:`r_t + \hat p_t - m_t`), so that the mean change is
        shared between the network and the ridge estimate :math:`\hat d` from the other labels'
        profiles (:func:`trvae_sc.expression.ridge_shift`) with weight w = ``context_weight``. The two
        err differently: together they are better than either. Where the network is far from the ridge,
        w is larger: :math:`w = \max(\mathtt{context\_weight}, 1 - s^2 / D)` with their squared distance
        D and the squared error :math:`s^2` of the ridge for the most similar label l, left out in turn.
        The median over the two and the shift of that label, gene by gene, guards against one of them
        that is far off; u is two thirds of the smaller of ``context_weight`` and one less it.
        Cells of a lineage that was never seen under the target change too little in the network. The
        size of a change, its component along the labels' mean shift :math:`\bar d`, is therefore that of
        :math:`\hat d` to a share of :math:`1 - e^2 / \delta^2`, where this is more than
        ``context_weight``: :math:`\delta` is by how much network and ridge differ in size, and e twice
        the largest error of the ridge in the sizes of the training labels, left out in turn.
        A label that was measured under further conditions is compared with the others by its changes to
        these, too: in the ridge, the inner products of such changes (less their mean over labels, times
        the labels' weights), three times their mean over the conditions, add to those of profiles.

        A combination of several condition columns that was not measured has no such :math:`\hat d`. A
        number beside others that were measured with the same other parts (and are not the source): the
        network's change is corrected by what it lacks, on the scale of f, at those (against the label's
        own change there where it is known, as far as the difference is no sampling noise, else against
        the mixture above), interpolated between the two nearest, beyond all at the nearest. A new
        combination of parts: the changes of labels, its own among them, are the sums of those of its
        parts, :math:`d_l = \sum_c w_c f(p_{lc})` over measured conditions c with
        :math:`A w = a_t - a_s` for the indicators A of parts, of least
        :math:`\sum_c w_c^2 / n_{lc}`, and enter the mixture in place of measured ones (without labels:
        the sum alone, as far as it is no noise). Its intervals are not known (NaN).

        A network that does not see the condition (``condition_in="none"``: presets ``"vae"``,
        ``"beta_vae"``, ``"autoencoder"``) decodes :math:`r_t` from a code that is moved instead, by
        :math:`\frac1L \sum_l (\bar z_{lt} - \bar z_{ls})` over the training labels seen under both
        (scGen, Lotfollahi et al. 2019, doi:10.1038/s41592-019-0494-8, with labels weighing the same).

        Parameters
        ----------
        adata
            Cells to start from, with the genes of the model in any order; the model's own data if
            None. Not changed. Labels the model does not know are allowed.
        target
            Condition to predict. With several condition columns a dictionary of their values, a tuple
            in their order, or the name in :attr:`conditions`; a combination that was never measured
            is predicted from its parts, with a note in ``uns``.
        source
            Condition of the cells to start from, given like `target`; all but `target` if None.
        labels
            Label or labels of the cells to start from; all if None.
        indices
            Rows to start from (list, array or mask), in addition to `source` and `labels`.
        output
            ``"counts"`` (default for counts): the observed counts moved to the target; each count
            is kept with probability :math:`\min(1, r_t / r_s)`, and counts of mean
            :math:`t \max(0, r_t - r_s)` are added, t being the cell's total (calibrated, with
            labels: the mean of a cell's own gain :math:`r_t - r_s` and its label's). Integer.
            ``"delta"`` (default otherwise): observed value plus the change of its expectation. Of
            counts on the scale log(1 + kappa share) (kappa: median total of the training cells), with
            the expectation :math:`q\log(1 + \kappa r / q)` of a gene that the cell shows with
            probability :math:`q = 1 - (1 + t r / \theta)^{-\theta}`: the logarithm of the mean would
            overstate the change of genes that few cells show. Values slightly below 0 occur.
            ``"mean"``: the expected value under the target, on the same scale; without noise.
            ``"sample"``: draws from the likelihood under the target.
        n_samples
            Predictions per cell, from as many draws of z; with 1, z is the posterior mean.
        seed
            Seed of all draws. The result does not depend on `batch_size`.
        batch_size
            Cells decoded at a time.
        out
            File (``.h5ad`` or ``.zarr``) to write the prediction to, piece by piece, for more cells
            than fit into memory; it is there completely or not at all. With a backed `adata` neither
            input nor output is ever in memory as a whole.
        overwrite
            Replace `out`.

        Returns
        -------
        AnnData (with `out`: its ``X`` stays in that file) with one row per source cell and sample.
        ``X``: the output, also in the layer the model was set up with. ``obs``: the source cell's
        columns with the target condition, and ``source_condition``, ``source_cell`` (``sample``).
        ``var``: ``source_mean``, ``predicted_mean`` and ``predicted_change``, log(1 + kappa share) of
        the mean share over the cells (mean values for ``normal``), and ``change_lower``,
        ``change_upper``, the 90 % interval of the change (:func:`trvae_sc.uncertainty.half_width`,
        times 0.9 where network and ridge share the change: together they lack about a tenth less than
        the ridge, whose residuals these are; NaN with fewer than three labels to learn from).
        ``obsm["X_trvae"]``: latent mean. ``uns["trvae_sc"]``: what was predicted from
        what, by which model, and notes on how far to trust it.

        Raises
        ------
        NotTrainedError
            The model is not trained.
        InputError
            Unknown target, source or labels; target equal to source; no cell selected; genes
            missing; an output the likelihood does not have; `out` of another kind. Where codes are
            moved: no label was seen under source and target, or the model has no data.
            `out` exists and `overwrite` is False.
        """
        self._check_if_trained(warn=False, message=NOT_TRAINED)
        with torch.random.fork_rng(), suitable_threads(self.module.widest):
            return predict_cells(
                self,
                adata,
                target=target,
                source=source,
                labels=labels,
                indices=indices,
                output=output,
                n_samples=n_samples,
                seed=seed,
                batch_size=batch_size,
                out=out,
                overwrite=overwrite,
            )

    def predict_missing(self, *, source: Any = None, **kwargs: Any) -> AnnData:
        """Predict every label x condition combination that the training data lack.

        Parameters
        ----------
        source
            Condition to predict from. If None, for each label the condition with most of its cells.
        **kwargs
            Passed to :meth:`predict`.

        Returns
        -------
        The predictions of all combinations, concatenated; ``uns["trvae_sc"]["combinations"]`` lists
        them.

        Raises
        ------
        InputError
            No labels were registered, or nothing is missing.
        """
        self._check_if_trained(warn=False, message=NOT_TRAINED)
        return predict_missing(self, source=source, **kwargs)

    def generate(
        self,
        condition: Any,
        n_obs: int = 1000,
        *,
        labels: Any = None,
        latent: Literal["prior", "posterior"] = "posterior",
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
        seed
            Seed of all draws.

        Returns
        -------
        AnnData with draws from the likelihood in ``X`` (and in the layer the model was set up with).

        Raises
        ------
        InputError
            Unknown condition or label, labels with the prior, or the prior of an autoencoder, which
            has none.
        """
        self._check_if_trained(warn=False, message=NOT_TRAINED)
        with torch.random.fork_rng(), suitable_threads(self.module.widest):
            return generate_cells(self, condition, n_obs, labels=labels, latent=latent, seed=seed)
