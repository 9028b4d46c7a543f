"""What a benchmark needs to know of a method."""

from __future__ import annotations

import hashlib
import inspect
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from types import CodeType
from typing import Any

import joblib
import numpy as np
from anndata import AnnData

from trvae_sc.arguments import check_seed
from trvae_sc.errors import InputError
from trvae_sc.evaluation._ceiling import CEILING
from trvae_sc.expression import Keys
from trvae_sc.names import METHODS

OUTPUT = "delta"  #: what methods are compared by: the output that all of them have


def judged(outputs: Mapping[str, Any]) -> Any:
    """Return what there is of the output that a method is compared by, else of its first."""
    return outputs[OUTPUT] if OUTPUT in outputs else next(iter(outputs.values()))


@dataclass(frozen=True)
class Method:
    """A method by name: ``predict(train, source, *, target, keys)``; see :mod:`trvae_sc.baselines`.

    If it has an attribute ``fit_once``, ``fit_once(train, *, keys)`` returns ``predict(source, target)``.
    """

    name: str  #: in results
    predict: Callable[..., Any]
    #: what tells it from another method of this name: source or version, and arguments
    identity: str = field(init=False)

    def __post_init__(self) -> None:
        """Take the identity before a call can change the method."""
        identity = hashlib.sha256(_describe(self.predict).encode()).hexdigest()[:16]
        object.__setattr__(self, "identity", identity)

    @property
    def _given(self) -> dict[str, Any]:
        """Arguments that were given with it, as a partial."""
        return getattr(self.predict, "keywords", {})

    @property
    def takes_seed(self) -> bool:
        """Whether it draws random numbers."""
        return "seed" in inspect.signature(self.predict).parameters

    @property
    def fit_once(self) -> Callable[..., Any] | None:
        """What trains it for several predictions, if it can."""
        method: Any = self.predict
        method = method.func if isinstance(method, partial) and not method.args else method
        return getattr(method, "fit_once", None)

    @property
    def columns(self) -> list[str]:
        """Columns of ``obs`` that it needs besides those that keys name."""
        setup = self._given.get("setup_kwargs") or {}
        return [value for name, value in setup.items() if name.endswith("_key")]

    def with_epochs(self, max_epochs: int | None) -> Method:
        """Return the method trained for so many epochs; the same one if it trains nothing."""
        if max_epochs is None or "train_kwargs" not in inspect.signature(self.predict).parameters:
            return self
        train_kwargs = {**(self._given.get("train_kwargs") or {}), "max_epochs": max_epochs}
        return replace(self, predict=partial(self.predict, train_kwargs=train_kwargs))

    def fitted(
        self, train: AnnData, *, keys: Keys, seed: int
    ) -> Callable[[AnnData, Any], dict[str, AnnData]]:
        """Return what predicts copies of source cells under a target, trained on a copy as far as it can be."""
        kwargs = {"seed": seed} if self.takes_seed else {}
        if self.fit_once is not None:
            once = self.fit_once(train.copy(), keys=keys, **{**self._given, **kwargs})
            return lambda source, target: once(source.copy(), target)

        def predict(source: AnnData, target: Any) -> dict[str, AnnData]:
            found = self.predict(train.copy(), source.copy(), target=target, keys=keys, **kwargs)
            outputs = found if isinstance(found, dict) else {OUTPUT: found}
            if not outputs or not all(isinstance(one, AnnData) for one in outputs.values()):
                raise InputError(
                    f"Method {self.name!r} returned {type(found).__name__}; an AnnData of predicted cells is needed "
                    "(trvae_sc.baselines.as_prediction makes one), or a dictionary of them by output."
                )
            return outputs

        return predict


def _describe(value: Any) -> str:
    """Return a text of a method or argument that is the same in another process."""
    if isinstance(value, partial):
        return (
            f"partial {_describe(value.func)} {_describe(value.args)} {_describe(value.keywords)}"
        )
    if inspect.ismethod(value):
        return f"{_describe(value.__func__)} of {_describe(value.__self__)}"
    if inspect.isfunction(value):
        held = [cell.cell_contents for cell in value.__closure__ or ()]
        return f"{_source(value)} {_describe([value.__defaults__, value.__kwdefaults__, held])}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_describe(value[k])}" for k in sorted(value, key=str)) + "}"
    if isinstance(value, frozenset):  # in an order that differs between processes
        return str(sorted(map(_describe, value)))
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_describe, value)) + "]"
    source = _source(type(value)) if callable(value) and not isinstance(value, type) else ""
    try:
        return f"{source} {joblib.hash(value)}"
    except (pickle.PicklingError, TypeError, AttributeError):
        return f"{source} {type(value).__qualname__} {_describe(getattr(value, '__dict__', {}))}"


def _source(value: Any) -> str:
    """Return the source of a function or class, or of ours its name and version."""
    name = f"{value.__module__}.{value.__qualname__}"
    if value.__module__.split(".")[0] == "trvae_sc":
        return f"{name} {version('trvae_sc')}"
    try:
        return f"{name} {inspect.getsource(value)}"
    except (OSError, TypeError):  # typed into an interpreter
        parts = vars(value).values() if inspect.isclass(value) else [value]
        return f"{name} {[_code(part.__code__) for part in parts if inspect.isfunction(part)]}"


def _code(code: CodeType) -> list[Any]:
    """Return what code does, with the names and constants that it uses."""
    held = [_code(one) if inspect.iscode(one) else _describe(one) for one in code.co_consts]
    return [code.co_code.hex(), code.co_names, held]


def resolve(methods: Mapping[str, Callable[..., Any]] | Sequence[str] | str) -> dict[str, Method]:
    """Return methods by name."""
    if isinstance(methods, Mapping):
        if CEILING in methods:
            raise InputError(
                f"A method cannot be called {CEILING!r}, which real cells are scored as."
            )
        for name, predict in methods.items():
            _check_call(name, predict)
        found = {name: Method(name, predict) for name, predict in methods.items()}
    else:
        names = [methods] if isinstance(methods, str) else list(methods)
        unknown = [name for name in names if name not in METHODS]
        if unknown:
            raise InputError(f"Unknown methods {unknown}; there are {list(METHODS)}.")
        from trvae_sc import baselines, family  # bring the models; methods handed over do not

        known = {**baselines.METHODS, **family.METHODS}
        found = {name: Method(name, known[name]) for name in names}
    if not found:
        raise InputError("No methods: name at least one.")
    return found


def _check_call(name: str, predict: Any) -> None:
    """Raise on what cannot be called as a method is."""
    try:
        needs = inspect.signature(predict)
        seed = {"seed": 0} if "seed" in needs.parameters else {}
        needs.bind(None, None, target=None, keys=None, **seed)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"Method {name!r} cannot be called as method(train, source, target=..., keys=...): {error}."
        ) from error


def check_seeds(seeds: int | Sequence[int]) -> list[int]:
    """Return seeds, given as a list or by how many there are."""
    given = range(seeds) if isinstance(seeds, int) and not isinstance(seeds, bool) else seeds
    if isinstance(given, bool | str) or not isinstance(given, Sequence | np.ndarray):
        raise InputError(f"seeds are {seeds!r}; give whole numbers, or how many.")
    if not len(given):
        raise InputError("No seeds: name at least one.")
    for seed in given:
        check_seed(seed, "A seed")
    return [int(seed) for seed in given]
