"""Loading: rows from memory, from files and on a device; windows, shares, budgets, faults."""

import gc
import itertools
import multiprocessing
import pickle
import shutil
import threading
import time
from pathlib import Path

import anndata
import lightning.pytorch as lightning
import numpy as np
import pytest
import torch
from scipy import sparse

from trvae_sc import TRVAE
from trvae_sc.errors import InputError
from trvae_sc.files import read
from trvae_sc.training import DataLoader, DataSplitter, _files
from trvae_sc.training._data import Batches
from trvae_sc.training._dataset import CSRTensor, Dataset, DeviceDataset, fitted
from trvae_sc.training._files import FileRows, ahead

pytestmark = pytest.mark.filterwarnings("ignore:Writing zarr v2")
CPU = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False}
FILES = list(itertools.product(("h5ad", "zarr"), ("csr", "dense")))


def in_file(adata, suffix="h5ad", layout="csr", name="cells"):
    """Return an AnnData whose X is in a file."""
    adata = adata.copy()
    adata.X = adata.X.toarray() if layout == "dense" else sparse.csr_matrix(adata.X)
    path = Path(f"{name}.{suffix}")
    adata.write_zarr(path) if suffix == "zarr" else adata.write_h5ad(path)
    return read(path, backed=True)


@pytest.fixture
def windows_of(monkeypatch):
    """Return a function that sets how many rows of a file are in memory together."""

    def set_rows(n):
        monkeypatch.setattr(_files, "_WINDOW_ROWS", n)

    return set_rows


def loader_of(adata, rows, batch_size, **kwargs):
    TRVAE.setup_anndata(adata, "condition", labels_key="cell_type", total_counts_key="n_counts")
    manager = TRVAE._get_most_recent_anndata_manager(adata)
    return DataLoader(manager, rows, batch_size, **kwargs)


# -- rows of files ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "layout"), FILES)
@pytest.mark.parametrize("window", [7, 50, 1000])
def test_streamed_rows_are_those_asked_for(make_adata, windows_of, suffix, layout, window):
    adata = make_adata(200)
    backed = in_file(adata, suffix, layout)
    windows_of(window)
    rows = np.random.default_rng(0).integers(0, 200, 133)  # any order, some twice
    found = list(loader_of(backed, rows, 20))
    assert [len(b["X"]) for b in found] == [20] * 6 + [13]
    assert np.array_equal(np.concatenate([b["X"] for b in found]), adata.X[rows].toarray())
    total = np.concatenate([b["total_counts"] for b in found]).ravel()
    assert total == pytest.approx(adata.obs["n_counts"].to_numpy()[rows])
    assert found[0]["X"].dtype == torch.float32


def test_reads_are_contiguous_where_rows_are(make_adata):
    """Rows are cut where more than 32 between two are not wanted, and after 8192."""
    runs = _files._runs(np.array([0, 1, 2, 34, 67, 68, 200]))
    assert [run.tolist() for run in runs] == [[0, 1, 2, 34], [67, 68], [200]]
    assert [len(run) for run in _files._runs(np.arange(20000))] == [8192, 8192, 3616]


def test_bytes_of_a_file_are_those_in_memory(make_adata):
    adata = make_adata(200)
    csr, dense = (FileRows(in_file(adata, "h5ad", kind, kind).X) for kind in ("csr", "dense"))
    x = csr.to_memory()
    assert csr.n_bytes == x.data.nbytes + x.indices.nbytes + x.indptr.nbytes
    assert dense.n_bytes == dense.to_memory().nbytes == 200 * 30 * 4
    assert dense.window(1200) == 10


@pytest.mark.parametrize("layout", ["csr", "dense"])
def test_shuffled_windows_have_every_row_once_in_blocks(make_adata, windows_of, layout):
    windows_of(128)  # 32 blocks of 4 rows
    adata = in_file(make_adata(1000), "h5ad", layout)
    rows = np.random.default_rng(1).permutation(1000)[:700]
    loader = loader_of(adata, rows, 16, shuffle=True)
    assert len(loader) == 44
    torch.manual_seed(0)
    first, second = list(loader.sampler.groups()), list(loader.sampler.groups())
    for groups in (first, second):
        assert sorted(np.concatenate(list(itertools.chain(*groups)))) == sorted(rows)
        assert {len(b) for b in list(itertools.chain(*groups))} == {15, 16}
    assert [len(g) for g in first] == [8] * 5 + [4]
    assert np.concatenate(first[0]).tolist() != np.concatenate(second[0]).tolist()
    place = {row: i for i, row in enumerate(sorted(rows))}
    at = np.sort([place[row] for row in np.concatenate(first[0])])
    assert len(_files._runs(at)) < len(at)  # not single rows ...
    breaks = int((np.diff(at) > 1).sum())
    assert breaks <= 33  # ... but blocks of four
    assert at.max() - at.min() > 350  # from all over the file
    torch.manual_seed(0)
    again = list(loader.sampler.groups())
    assert all(
        np.array_equal(a, b)
        for a, b in zip(list(itertools.chain(*first)), list(itertools.chain(*again)), strict=True)
    )


def test_a_file_by_column_is_refused(fit, trained, make_adata):
    """Cells cannot be read from it; :func:`trvae_sc.files.read` reads it to memory."""
    adata = make_adata()
    adata.X = sparse.csc_matrix(adata.X)
    adata.write_h5ad("cells.h5ad")
    message = r"adata\.X is stored by column .* Read the data into memory: adata = adata\.to_memory"
    for call in (fit, lambda cells: trained.predict(cells, target="stimulated")):
        with pytest.raises(InputError, match=message):
            call(anndata.read_h5ad("cells.h5ad", backed="r"))
    expected = trained.predict(adata, target="stimulated").X
    for is_backed in (True, False):
        cells = read(Path("cells.h5ad"), backed=is_backed)
        assert abs(trained.predict(cells, target="stimulated").X - expected).max() == 0
    assert fit(anndata.read_h5ad("cells.h5ad", backed="r").to_memory()).is_trained


# -- training from files ----------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "layout"), FILES)
def test_streamed_training_sees_training_cells_once_an_epoch(
    fit, make_adata, windows_of, suffix, layout
):
    windows_of(64)
    adata = make_adata(240)
    split = [np.arange(0, 200), np.arange(200, 240)]
    train = {
        "max_epochs": 3,
        "batch_size": 20,
        "check_val_every_n_epoch": 1,
        "datasplitter_kwargs": {"external_indexing": split},
    }
    expected = fit(adata, train=train)
    seen = []
    backed = in_file(adata, suffix, layout)
    model = fit(backed, train=False)
    step = model._training_plan_cls.training_step

    def note(plan, batch, index):
        seen.append(batch["X"].numpy().copy())
        return step(plan, batch, index)

    plan = type("Noting", (model._training_plan_cls,), {"training_step": note})
    model._training_plan_cls = plan
    model.train(**train, memory_budget=0, **CPU)
    values = adata.X.toarray()
    order = np.lexsort(values[:200].T)
    for epoch in range(3):
        found = np.concatenate(seen[10 * epoch : 10 * epoch + 10])
        assert np.array_equal(found[np.lexsort(found.T)], values[:200][order])
    state, other = model.module.state_dict(), expected.module.state_dict()
    for name in ("kappa", "n_cells", "profiles"):
        assert torch.equal(state[name], other[name])
    names = ("reconstruction_loss_validation", "train_loss")
    for name in names:  # the same but for the order of cells
        a, b = (m.history[name].to_numpy(float).ravel() for m in (model, expected))
        assert a == pytest.approx(b, rel=0.1)


def test_streamed_training_follows_the_seed(fit, make_adata, windows_of):
    windows_of(32)
    backed = in_file(make_adata())
    train = {"max_epochs": 2, "batch_size": 20, "memory_budget": 0}
    first, second, other = (
        fit(backed, train=train, seed=seed).module.output.weight for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_a_file_that_fits_is_read_and_trains_as_in_memory(fit, make_adata):
    backed = in_file(make_adata())
    first = fit(backed)
    second = fit(make_adata())
    for a, b in zip(first.module.parameters(), second.module.parameters(), strict=True):
        assert torch.equal(a, b)
    assert "dataset" not in first.trainer.datamodule.data_loader_kwargs  # memory is given back


def test_budgets_decide_where_data_are(make_adata):
    cpu = torch.device("cpu")
    backed = in_file(make_adata())
    n_bytes = FileRows(backed.X).n_bytes

    def dataset():
        TRVAE.setup_anndata(backed, "condition")
        return TRVAE._get_most_recent_anndata_manager(backed).create_torch_dataset()

    assert fitted(dataset(), cpu, n_bytes / 1e9 * 0.99).file is not None
    assert fitted(dataset(), cpu, n_bytes / 1e9 * 1.01).file is None
    assert fitted(dataset(), cpu, None).file is None


@pytest.mark.parametrize("budget", [-1, float("nan")])
def test_a_budget_is_a_number_of_gigabytes(fit, budget):
    model = fit(train=False)
    with pytest.raises(InputError, match="a finite number is needed, 0 or more"):
        model.train(max_epochs=1, memory_budget=budget, **CPU)


def test_balanced_conditions_are_refused_where_data_are_streamed(fit, make_adata):
    model = fit(in_file(make_adata()), train=False)
    with pytest.raises(
        InputError, match="balance_conditions cannot be combined with data that are"
    ):
        model.train(max_epochs=1, memory_budget=0, balance_conditions=True, **CPU)
    model.train(max_epochs=1, balance_conditions=True, **CPU)


# -- faults -----------------------------------------------------------------------------------------


def reading_threads():
    """Return the threads that go on after what they are reading."""
    gc.collect()
    found = [t for t in threading.enumerate() if t.name.startswith("trvae_sc")]
    for thread in found:
        thread.join(10)
    return [t for t in found if t.is_alive()]


def test_reading_ahead_is_in_order_and_leaves_no_thread():
    found = list(ahead(range(5), lambda i: (i * i, threading.current_thread().name)))
    assert [(i, square) for i, (square, _) in found] == [(i, i * i) for i in range(5)]
    assert all(name.startswith("trvae_sc") for _, (_, name) in found)
    started, go_on = threading.Event(), threading.Event()

    def wait(i):
        if i == 1:
            started.set()
            go_on.wait()
        return i

    given_up = ahead(range(5), wait)
    assert next(given_up) == (0, 0)
    started.wait()
    given_up.close()
    go_on.set()
    assert reading_threads() == []
    assert list(ahead([], wait)) == []


def test_one_is_read_at_a_time():
    """Where reading was slower than use two were, and three windows were in memory."""
    n_reading, most = [], []

    def read(i):
        n_reading.append(i)
        most.append(len(n_reading))
        time.sleep(0.02)
        n_reading.pop()

    assert len(list(ahead(range(4), read))) == 4
    assert most == [1] * 4


def test_an_error_of_the_reading_thread_is_raised_where_rows_are_used():
    def fail(i):
        raise OSError(f"no row {i}")

    with pytest.raises(OSError, match="no row 3"):
        list(ahead([3], fail))


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_a_file_changed_while_it_trains_is_named(fit, make_adata, windows_of, suffix):
    windows_of(20)
    backed = in_file(make_adata(), suffix)
    model = fit(backed, train=False)

    class Replace(lightning.Callback):
        def on_train_epoch_start(self, trainer, plan):
            if trainer.current_epoch == 1:
                other = Path("other." + suffix)
                adata = make_adata(60)
                adata.write_zarr(other) if suffix == "zarr" else adata.write_h5ad(other)
                if suffix == "zarr":
                    shutil.rmtree("cells.zarr/X/data")
                    shutil.copytree("other.zarr/X/data", "cells.zarr/X/data")
                else:
                    other.replace("cells.h5ad")

    with pytest.raises(OSError, match=r"cells\..* was changed while it was being read"):
        model.train(max_epochs=3, batch_size=10, memory_budget=0, callbacks=[Replace()], **CPU)
    assert model.is_trained  # with the weights of the latest step
    assert len(model.history["train_loss"]) == 1
    assert reading_threads() == []


class Do(lightning.Callback):
    """Calls a function at the start of a batch."""

    def __init__(self, action, at_step):
        self.action, self.at_step = action, at_step

    def on_train_batch_start(self, trainer, *args):
        if trainer.global_step == self.at_step:
            self.action()


def kill_workers():
    for process in multiprocessing.active_children():
        process.kill()
        process.join()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork beside threads
def test_a_worker_process_that_dies_ends_training_and_leaves_the_model(fit):
    model = fit(train=False)
    with pytest.raises(RuntimeError, match=r"worker .* exited unexpectedly|killed by signal"):
        model.train(
            max_epochs=3,
            batch_size=4,
            callbacks=[Do(kill_workers, 3)],
            datasplitter_kwargs={"num_workers": 1},
            **CPU,
        )
    assert model.is_trained
    assert multiprocessing.active_children() == []
    model.train(max_epochs=1, **CPU)
    assert np.isfinite(model.history["train_loss"].to_numpy(float)).all()


def test_new_processes_load_rows_of_a_file_that_is_in_memory(make_adata):
    """Where processes are not forked (macOS, Windows, Python 3.14): "h5py objects cannot be pickled"."""
    backed = in_file(make_adata())
    TRVAE.setup_anndata(backed, "condition")
    dataset = TRVAE._get_most_recent_anndata_manager(backed).create_torch_dataset()
    dataset = fitted(dataset, torch.device("cpu"), None)
    sent = pickle.loads(pickle.dumps(dataset))
    for key, rows in dataset[[5, 2]].items():
        np.testing.assert_array_equal(sent[[5, 2]][key], rows)


def no_memory(*error):
    def raise_it():
        raise error[0]

    return raise_it


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        MemoryError("Unable to allocate 9 GiB"),
    ],
    ids=["cuda", "torch", "numpy"],
)
def test_out_of_memory_says_what_to_lower(fit, error):
    model = fit(train=False)
    with pytest.raises(
        MemoryError, match=r"Out of memory in epoch 1 .*smaller memory_budget .*batch_"
    ):
        model.train(max_epochs=3, batch_size=40, callbacks=[Do(no_memory(error), 4)], **CPU)
    assert model.is_trained
    assert model.trainer.global_step == 4


def test_other_errors_are_left_as_they_are(fit):
    model = fit(train=False)
    with pytest.raises(RuntimeError, match=r"^mine$"):
        model.train(max_epochs=1, callbacks=[Do(no_memory(RuntimeError("mine")), 0)], **CPU)
    assert not model.is_trained


def test_ctrl_c_while_streaming_leaves_no_thread_and_a_usable_model(fit, make_adata, windows_of):
    windows_of(20)
    model = fit(in_file(make_adata()), train=False)
    with pytest.raises(KeyboardInterrupt, match=r"stopped in epoch 0 of 2; .* can be used"):
        model.train(
            max_epochs=2,
            batch_size=10,
            memory_budget=0,
            callbacks=[Do(no_memory(KeyboardInterrupt()), 3)],
            **CPU,
        )
    assert reading_threads() == []
    assert model.predict(make_adata(12), target="stimulated").n_obs == 6


def test_a_truncated_file_is_named_before_training(fit, make_adata):
    make_adata(2000).write_h5ad("cells.h5ad")
    content = Path("cells.h5ad").read_bytes()
    Path("cells.h5ad").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"cells.h5ad cannot be read as h5ad \(damaged or inc"):
        read(Path("cells.h5ad"), backed=True)


# -- shares of processes ----------------------------------------------------------------------------


@pytest.mark.parametrize("n", [97, 100, 128])
@pytest.mark.parametrize("window", [None, 32])
def test_processes_share_each_batch(n, window):
    rows = np.arange(50, 50 + n)
    shares = [
        Batches(rows, 8, shuffle=True, share=(rank, 3), seed=5, window=window) for rank in range(3)
    ]
    epochs = []
    for epoch in (0, 1):
        for share in shares:
            share.set_epoch(epoch)
        found = [list(share) for share in shares]
        assert {len(f) for f in found} == {len(s) for s in shares} == {-(-n // 24)}
        sizes = [[len(b) for b in batches] for batches in zip(*found, strict=True)]
        assert all(max(s) - min(s) <= 1 for s in sizes)
        everything = np.concatenate([np.concatenate(f) for f in found])
        assert sorted(everything) == rows.tolist()
        epochs.append(found[0][0].tolist())
    assert epochs[0] != epochs[1]


def test_shares_in_order_are_never_empty():
    shares = [list(Batches(np.arange(25), 4, share=(rank, 3))) for rank in range(3)]
    assert sorted(np.concatenate(list(itertools.chain(*shares)))) == list(range(25))
    assert min(len(b) for share in shares for b in share) > 0


# -- on a device ------------------------------------------------------------------------------------

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA GPU"))]  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
def test_rows_gathered_on_a_device_equal_scipy(device):
    rng = np.random.default_rng(0)
    x = sparse.random(50, 13, 0.2, "lil", np.float32, rng)
    x[7] = 0  # a row without values
    x = x.tocsr()
    tensor = CSRTensor(x, torch.device(device))
    twice = sparse.csr_matrix((x.data.repeat(2), x.indices.repeat(2), 2 * x.indptr), x.shape)
    for chosen in ([3], [7], [49, 0, 7, 7, 12], []):
        rows = np.array(chosen, dtype=np.int64)
        found = tensor[rows]
        assert found.device.type == device
        assert np.array_equal(found.cpu().numpy(), x[rows].toarray())
        found = CSRTensor(twice, torch.device(device))[rows]  # entries in two parts
        assert np.array_equal(found.cpu().numpy(), 2 * x[rows].toarray())
    assert twice.nnz == 2 * x.nnz


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dense", [True, False])
def test_a_device_dataset_has_the_tensors_of_the_dataset(make_adata, device, dense):
    loader = loader_of(make_adata(), None, 10, shuffle=True)
    dataset = DeviceDataset(loader.dataset, torch.device(device), dense=dense)
    assert isinstance(loader.dataset, Dataset)
    assert len(dataset) == 120
    on_device = loader_of(make_adata(), None, 10, shuffle=True, dataset=dataset)
    torch.manual_seed(0)
    expected = list(loader)
    torch.manual_seed(0)
    for batch, other in zip(on_device, expected, strict=True):
        assert batch.keys() == other.keys()
        assert all(torch.equal(batch[k].cpu(), torch.as_tensor(other[k])) for k in batch)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
@pytest.mark.parametrize("budget", [None, 3e-5, 0])
def test_a_gpu_trains_as_the_cpu(fit, make_adata, budget):
    """3e-5 GB: too little for 120 x 30 dense values times two, enough for sparse ones."""
    train = {"max_epochs": 3, "batch_size": 40, "memory_budget": budget}
    gpu = fit(make_adata(), train={**train, "accelerator": "gpu"}, dropout_rate=0.0)
    cpu = fit(make_adata(), train=train, dropout_rate=0.0)
    a, b = (m.history["train_loss"].to_numpy(float).ravel() for m in (gpu, cpu))
    assert a == pytest.approx(b, rel=0.02)


def test_a_splitter_by_itself_has_loaders(make_adata):
    adata = make_adata()
    loader = loader_of(adata, None, 10)
    splitter = DataSplitter(TRVAE._get_most_recent_anndata_manager(adata), 0.8, batch_size=16)
    splitter.setup()
    rows = [np.concatenate([b["X"] for b in l]) for l in (splitter.train_dataloader(), splitter.val_dataloader())]  # noqa: E741  # fmt: skip
    assert [len(r) for r in rows] == [96, 24]
    together = np.concatenate(rows)
    everything = np.concatenate([b["X"] for b in loader])
    assert np.array_equal(together[np.lexsort(together.T)], everything[np.lexsort(everything.T)])
