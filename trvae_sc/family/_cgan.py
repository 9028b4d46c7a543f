"""A conditional generative adversarial network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor

from trvae_sc.arguments import check_seed, check_whole
from trvae_sc.errors import InputError
from trvae_sc.family._networks import (
    GENERATOR_RATE,
    Adversarial,
    Critic,
    ExpressionModule,
    Network,
    Player,
    Sizes,
    Terms,
)
from trvae_sc.family._translator import Translator
from trvae_sc.levels import as_text, codes_among
from trvae_sc.model import checked_codes, per_code
from trvae_sc.threads import suitable_threads

_CRITIC_UPDATES = 3  # a step: with one the critic does not keep up, and generated cells are alike


class ConditionalGANModule(ExpressionModule):
    r"""Generator :math:`G(\epsilon, s, l)` and critic :math:`D(x, s, l)`; see :class:`ConditionalGAN`."""

    def __init__(
        self,
        sizes: Sizes,
        *,
        n_noise: int,
        n_hidden: Sequence[int],
        adversarial: Adversarial,
        penalty_weight: float,
    ) -> None:
        super().__init__(sizes)
        n_context = sizes.n_conditions + max(sizes.n_labels, 1)
        self.n_noise = n_noise
        self.generator = Network(n_noise + n_context, n_hidden, sizes.n_pcs)
        self.critic = Critic(
            sizes.n_pcs, n_context, n_hidden, kind=adversarial, penalty_weight=penalty_weight
        )

    def players(self) -> list[Player]:
        """Return critic and generator."""
        return [
            Player("critic", self.critic, self.critic_terms, n_updates=_CRITIC_UPDATES),
            Player("generator", self.generator, self.generator_terms, GENERATOR_RATE),
        ]

    def generate(self, noise: Tensor, context: Tensor) -> Tensor:
        """Return components of generated cells, shape (n_cells, n_pcs)."""
        return self.generator(torch.cat([noise, context], 1))

    def _fake(self, context: Tensor) -> Tensor:
        noise = torch.randn(len(context), self.n_noise, device=context.device)
        return self.generate(noise, context)

    def critic_terms(self, batch: dict[str, Tensor]) -> Terms:
        """Return the loss of the critic."""
        context = self.one_hot(batch["condition"], batch["label"])
        with torch.no_grad():
            fake = self._fake(context)
        return self.critic.loss(self.to_components(batch["x"]), fake, context)

    def generator_terms(self, batch: dict[str, Tensor]) -> Terms:
        """Return the loss of the generator."""
        context = self.one_hot(batch["condition"], batch["label"])
        return {"loss": -self.critic(self._fake(context), context).mean()}


class ConditionalGAN(Translator):
    r"""Conditional GAN: generates cells of a label under a condition from noise.

    .. math:: \hat x = G(\epsilon, s, l), \quad \epsilon \sim N(0, I), \qquad
       L_G = -E\,D(G(\epsilon, s, l), s, l)

    with condition s and label l, if any, as one-hot codes (Mirza and Osindero 2014, arXiv:1411.1784).
    The critic D has the :func:`critic_loss`, with a :func:`gradient_penalty`.

    There is no encoder: each source cell is answered with a new cell of its label under the target.
    A combination that was never seen rests on label and condition each having been seen in others.

    Parameters
    ----------
    adata, registry, seed
        As for :class:`Translator`.
    n_pcs
        Most principal components; what is outside of them is not generated.
    n_noise
        Dimensions of the noise.
    n_hidden
        Widths of generator and critic.
    adversarial
        Loss of the critic, ``"wasserstein"`` or ``"hinge"``.
    penalty_weight
        Weight of the gradient penalty; 0 for none.

    Examples
    --------
    >>> adata = trvae_sc.datasets.simulate()
    >>> ConditionalGAN.setup_anndata(adata, "condition", labels_key="cell_type")
    >>> model = ConditionalGAN(adata)
    >>> model.train()
    >>> generated = model.predict(target="stimulated", labels="type_0")
    """

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict[str, Any] | None = None,
        *,
        n_pcs: int = 50,
        n_noise: int = 64,
        n_hidden: Sequence[int] = (128, 128),
        adversarial: Adversarial = "wasserstein",
        penalty_weight: float = 10.0,
        seed: int | None = None,
    ) -> None:
        super().__init__(adata, registry, seed=seed)
        self.init_params_ = self._get_init_params(locals())
        self._build(ConditionalGANModule, locals())

    def generate(
        self, condition: Any, n_obs: int = 1000, *, labels: Any = None, seed: int = 0
    ) -> AnnData:
        """Return new cells of a condition, from noise alone.

        Parameters
        ----------
        condition, n_obs
            Condition and number of the cells.
        labels
            Label of the cells, or one for each; drawn as often as in training if None.
        seed
            Seed of noise and labels.

        Returns
        -------
        AnnData with log values (values that are no counts: as they are) in ``X``, condition and label in
        ``obs``, the noise in ``obsm["X_trvae"]``.

        Raises
        ------
        NotTrainedError, InputError
            As :meth:`decode`; also `n_obs` is no positive number.
        """
        check_whole("n_obs", n_obs)
        check_seed(seed)
        if condition is None:
            raise InputError(
                f"No condition is given, but a {type(self).__name__} needs one of {self.conditions}: give "
                f"condition={self.conditions[0]!r}."
            )
        level = self._level_to_predict(condition)
        rng = np.random.default_rng(seed)
        noise = rng.standard_normal((n_obs, self.module.n_noise), dtype=np.float32)
        if labels is None and self.keys.labels_key is not None:
            cells = self.module.n_cells[:, self.conditions.index(level)].cpu().numpy()
            cells = cells if cells.sum() else np.ones_like(cells)
            labels = rng.choice(np.array(self.labels, object), n_obs, p=cells / cells.sum())
        return self.decode(noise, condition=level, labels=labels)

    def decode(self, z: np.ndarray, *, condition: Any, labels: Any = None) -> AnnData:
        """Return the cells that noise stands for under a condition.

        Parameters
        ----------
        z
            Noise, shape (n_cells, n_noise).
        condition
            Condition of the cells.
        labels
            Label of the cells, or one for each; needed where labels were registered.

        Returns
        -------
        AnnData as of :meth:`generate`.

        Raises
        ------
        NotTrainedError, InputError
            The model is not trained; noise of another shape or that is not finite; unknown condition
            or labels, or no labels where they are needed.
        """
        level, key = self._level_to_predict(condition), self.keys.labels_key
        z = checked_codes("z", z, self.module.n_noise)
        if (key is None) != (labels is None):
            raise InputError(
                "The model was set up without labels_key, so labels cannot be chosen."
                if key is None
                else f"The generator sees the label: choose labels= of {self.labels}."
            )
        obs = pd.DataFrame(index=[f"generated_{i}" for i in range(len(z))])
        obs = obs.assign(**self.condition_space.columns([level] * len(z)))
        if key is not None:
            obs[key] = pd.Categorical(per_code("labels", labels, len(z)))
        with suitable_threads(self.module.widest):
            x = self._from_noise(torch.as_tensor(z), self._label_codes(obs), level)
        return self._as_cells(x, z, obs, "decode")

    def interpolate(
        self, condition: Any, *, labels: Any = None, steps: int = 11, seed: int = 0
    ) -> AnnData:
        r"""Return what lies between two draws of noise, under a condition.

        .. math:: z_f = \frac{\sin((1 - f)\,\omega)}{\sin\omega}\,a + \frac{\sin(f \omega)}{\sin\omega}\,b

        with the angle :math:`\omega` between a and b: a straight line would leave the lengths that noise has
        (White 2016, arXiv:1609.04468).

        Parameters
        ----------
        condition, labels
            As for :meth:`decode`.
        steps
            Number of points, start and end included.
        seed
            Seed of a and b.

        Returns
        -------
        AnnData as of :meth:`generate`, with ``obs["fraction"]``, 0 to 1.

        Raises
        ------
        NotTrainedError, InputError
            As :meth:`decode`; also fewer than two steps.
        """
        check_whole("steps", steps, 2)
        check_seed(seed)
        a, b = np.random.default_rng(seed).standard_normal((2, self.module.n_noise))
        angle = np.arccos(np.clip(a @ b / np.linalg.norm(a) / np.linalg.norm(b), -1.0, 1.0))
        f = np.linspace(0.0, 1.0, steps)[:, None]
        if np.sin(angle) > 1e-6:
            z = (np.sin((1.0 - f) * angle) * a + np.sin(f * angle) * b) / np.sin(angle)
        else:  # on one line through the origin, as in one dimension
            z = (1.0 - f) * a + f * b
        cells = self.decode(z, condition=condition, labels=labels)
        cells.obs["fraction"] = f.ravel()
        return cells

    @torch.no_grad()
    def _from_noise(self, noise: torch.Tensor, label: torch.Tensor, condition: Any) -> np.ndarray:
        """Return the values of cells of these labels, as codes, under a condition."""
        code = torch.full_like(label, self.conditions.index(condition))
        context = self.module.one_hot(code, label).to(self.device)
        generated = self.module.generate(noise.to(self.device), context)
        return (self.module.center + self.module.change_of(generated)).cpu().numpy()

    def _translate(
        self, cells: AnnData, x: np.ndarray, target: Any, generator: torch.Generator
    ) -> np.ndarray:
        label = self._label_codes(cells.obs)
        noise = torch.randn(len(label), self.module.n_noise, generator=generator)
        return self._from_noise(noise, label, target)

    def _label_codes(self, obs: pd.DataFrame) -> torch.Tensor:
        """Return the label of each cell as a code, 0 without labels; raise on those that are new."""
        key = self.keys.labels_key
        if key is None:
            return torch.zeros(len(obs), dtype=torch.long)
        if key not in obs:
            raise InputError(f"No column '{key}' in adata.obs; there are {list(obs.columns)}.")
        codes = codes_among(obs[key], self.labels)
        if (codes < 0).any():
            unknown = sorted(as_text(obs[key])[codes < 0].unique())
            raise InputError(
                f"Unknown labels {unknown}; {type(self).__name__} generates {self.labels}."
            )
        return torch.as_tensor(codes, dtype=torch.long)
