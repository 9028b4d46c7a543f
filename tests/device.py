"""A device that computes on the CPU but is told apart from it, as a GPU is; it has no float64, as Apple's have none.

Run with the name of a likelihood it trains and predicts there, and compares that with the CPU. It is a process of
its own, since a device cannot be unregistered.
"""

import sys

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)


class Backend(_DummyBackendModule):
    """What torch asks a device for."""

    def get_amp_supported_dtype(self):
        return [torch.bfloat16]

    def get_rng_state(self, device=None):
        return torch.get_rng_state()

    def set_rng_state(self, state, device=None):
        pass


_setup_privateuseone_for_python_backend("other", backend_module=Backend())
DEVICE = torch.device("other", 0)


class Moved(torch.Tensor):
    """A tensor on the device: a wrapper around one of the CPU."""

    @staticmethod
    def __new__(cls, x):
        layout = {"strides": x.stride(), "storage_offset": x.storage_offset()}
        given = {**layout, "dtype": x.dtype, "device": DEVICE, "requires_grad": x.requires_grad}
        return torch.Tensor._make_wrapper_subclass(cls, x.shape, **given)

    def __init__(self, x):
        self.x = x

    def tolist(self):
        return self.x.tolist()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})


def compute(function, args, kwargs):
    """Call a function of torch on the CPU; raise where devices are mixed, or numbers are in float64."""
    here, elsewhere = [], []

    def unwrapped(x):
        if isinstance(x, Moved):
            here.append(x)
            return x.x
        if isinstance(x, torch.Tensor) and x.dim():
            elsewhere.append(x)
        return torch.device("cpu") if isinstance(x, torch.device) and x.type == "other" else x

    def wrapped(x):
        if not isinstance(x, torch.Tensor) or isinstance(x, Moved):
            return x
        if x.dtype == torch.float64:
            raise TypeError(f"{function}: the device has no float64")
        return Moved(x)

    device, name = kwargs.get("device"), function._schema.name
    given, named = tree_map(unwrapped, args), tree_map(unwrapped, kwargs)
    if here and elsewhere and name not in ("aten::copy_", "aten::index", "aten::index_put_"):
        raise RuntimeError(f"{function}: tensors are on different devices")
    found = function(*given, **named)
    written = [a for a in function._schema.arguments if a.alias_info and a.alias_info.is_write]
    if written and function._schema.returns and function._schema.returns[0].alias_info:
        return kwargs.get("out", args[0])
    is_there = bool(here) if device is None else torch.device(device).type == "other"
    return tree_map(wrapped, found) if is_there else found


class On(TorchDispatchMode):
    """Lets tensors be made on the device meanwhile."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})


def moving(make):
    """Let what makes a tensor of numbers know the device."""

    def made(*args, device=None, **kwargs):
        found = make(*args, **kwargs)
        return found if device is None else found.to(device)

    return made


torch.tensor, torch.as_tensor = moving(torch.tensor), moving(torch.as_tensor)


def effects(likelihood, device):
    """Return changes and predicted values of a model that was trained, with its cells, and asked on a device."""
    from conftest import KEYS, QUICK, SMALL, _make_adata
    from lightning.pytorch.accelerators import CPUAccelerator
    from lightning.pytorch.strategies import SingleDeviceStrategy

    from trvae_sc import TRVAE
    from trvae_sc.training import _data, _dataset

    CPUAccelerator.setup_device = lambda self, device: None
    for module in list(sys.modules.values()):
        if hasattr(module, "in_float64"):  # knows Apple's by their name
            module.in_float64 = lambda x: x if x.device == DEVICE else x.double()
    is_count = likelihood != "normal"
    if device == DEVICE:  # cells of counts are sparse there
        _data.fitted = lambda data, *_: _dataset.DeviceDataset(data, device, dense=not is_count)
    adata = _make_adata(values="counts" if is_count else "log")
    keys = KEYS if is_count else {"labels_key": "cell_type"}
    TRVAE.setup_anndata(adata, "condition", batch_key="batch", **keys)
    model = TRVAE(adata, gene_likelihood=likelihood, **SMALL)
    model.train(**QUICK, batch_size=32, strategy=SingleDeviceStrategy(device=device))
    model.module.to(device)
    predicted = model.predict(target="stimulated", output="mean")
    assert {weight.device for weight in model.module.state_dict().values()} == {device}
    return model.effects(target="stimulated")["change"].to_numpy(), np.asarray(predicted.X)


if __name__ == "__main__":
    torch.set_num_threads(1)
    expected = effects(sys.argv[1], torch.device("cpu"))
    with On():
        found = effects(sys.argv[1], DEVICE)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
