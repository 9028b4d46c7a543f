"""trvae_sc.threads: how many threads torch and numpy use."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from trvae_sc.threads import suitable_threads


def of_numpy() -> set[int]:
    """Threads of the libraries that numpy and scipy multiply matrices with."""
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_narrow_networks_use_one_thread_and_what_was_set_comes_back():
    torch.set_num_threads(2)
    with threadpool_limits(2, user_api="blas"):
        with suitable_threads(256):
            assert torch.get_num_threads() == 1
            assert of_numpy() == {1}
        assert torch.get_num_threads() == 2
        assert of_numpy() == {2}


def test_wide_networks_never_use_more_than_were_set():
    torch.set_num_threads(1)
    with suitable_threads(4096):
        assert torch.get_num_threads() == 1


def test_threads_that_predict_from_the_same_cells_do_not_disturb_each_other(fit):
    """Each registered anew what the others read, and the model was damaged for good."""
    model = fit(setup={"batch_key": "batch", "categorical_covariate_keys": ["sex"]})
    alone = model.predict(target="stimulated", output="mean").X
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(6) as pool:
            calls = [
                pool.submit(model.predict, target="stimulated", output="mean") for _ in range(18)
            ]
        assert all(np.array_equal(call.result().X, alone) for call in calls)
    finally:
        sys.setswitchinterval(interval)
