"""The models as methods of a benchmark."""

from __future__ import annotations

from functools import partial
from typing import Any

from anndata import AnnData

from trvae_sc.baselines import Method, target_level, with_own_columns
from trvae_sc.errors import InputError
from trvae_sc.expression import Keys
from trvae_sc.family._between import BetweenTranslator
from trvae_sc.family._cgan import ConditionalGAN
from trvae_sc.family._flow_matching import FlowMatching
from trvae_sc.family._flow_transfer import FlowTransfer
from trvae_sc.family._gans import CycleGAN, PairedTranslator
from trvae_sc.family._translator import Translator
from trvae_sc.levels import levels
from trvae_sc.notes import unlogged


def translate(
    train: AnnData,
    source: AnnData,
    *,
    target: Any,
    keys: Keys,
    seed: int = 0,
    model_cls: type[Translator],
    setup_kwargs: dict[str, Any] | None = None,
    train_kwargs: dict[str, Any] | None = None,
    predict_kwargs: dict[str, Any] | None = None,
    **model_kwargs: Any,
) -> AnnData:
    """Train a model of the family and predict; the contract of :mod:`trvae_sc.baselines`.

    ``FlowTransfer`` predicts its prior: a method is given no cell of the hidden combination. To hand
    it exemplars (``predict_kwargs={"exemplars": cells}``), take them out of the data first.

    Parameters
    ----------
    train, source, target, keys
        As in :func:`trvae_sc.baselines.mean_shift`; source cells are of one condition.
    model_cls, seed, **model_kwargs
        Class of the model, and its arguments.
    setup_kwargs, train_kwargs, predict_kwargs
        Arguments of its ``setup_anndata``, ``train`` and ``predict``.

    Returns
    -------
    AnnData with log values in ``X``.

    Raises
    ------
    InputError
        No training cell has the target, or source cells are of several conditions.
    """
    if not isinstance(keys.condition_key, str):
        raise InputError(
            f"{model_cls.__name__} takes conditions of one column, not {keys.condition_columns}."
        )
    starts = levels(keys.conditions(source.obs))
    level = target_level(train, target, keys)
    if issubclass(model_cls, BetweenTranslator):
        if len(starts) > 1:
            raise InputError(
                f"{model_cls.__name__} translates from one condition; source cells have {starts}."
            )
        model_kwargs = {"source": starts[0], "target": level, **model_kwargs}
    train = with_own_columns(train)
    given = {k: getattr(keys, k) for k in ("labels_key", "layer", "total_counts_key", "is_count")}
    model_cls.setup_anndata(train, keys.condition_key, **given, **(setup_kwargs or {}))
    model = model_cls(train, seed=seed, **model_kwargs)
    model.train(**{"enable_progress_bar": False, **(train_kwargs or {})})
    with unlogged():
        predicted = model.predict(source, target=level, **(predict_kwargs or {}))
    history = {name: v[name].astype(float).tolist() for name, v in model.history.items()}
    predicted.uns["trvae_sc"]["history"] = history
    return predicted


#: Methods by name: for :func:`trvae_sc.evaluation.benchmark` and the command line. ``paired`` needs
#: a column "pair" in ``obs``; ``setup_kwargs={"pair_key": ...}`` of :func:`translate` names another.
METHODS: dict[str, Method] = {
    "cgan": partial(translate, model_cls=ConditionalGAN),
    "cyclegan": partial(translate, model_cls=CycleGAN),
    "flow_matching": partial(translate, model_cls=FlowMatching),
    "flow_transfer": partial(translate, model_cls=FlowTransfer),
    "paired": partial(translate, model_cls=PairedTranslator, setup_kwargs={"pair_key": "pair"}),
}
