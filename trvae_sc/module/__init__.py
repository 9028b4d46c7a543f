"""The network and its loss."""

from trvae_sc.module._layers import CONDITION_KEY, TARGET_KEY, TOTAL_KEY, stack
from trvae_sc.module._likelihood import (
    COUNT_LIKELIHOODS,
    Likelihood,
    gaussian_kl,
    negative_binomial_nll,
    normal_nll,
    widest,
)
from trvae_sc.module._module import TRVAEModule
from trvae_sc.module._outputs import (
    aligned,
    expected_and_spared,
    expected_values,
    ll_at_mean,
    saturated_ll,
)
from trvae_sc.module._peers import Peers
from trvae_sc.module._statistics import Statistics

__all__ = [
    "CONDITION_KEY",
    "COUNT_LIKELIHOODS",
    "TARGET_KEY",
    "TOTAL_KEY",
    "Likelihood",
    "Peers",
    "Statistics",
    "TRVAEModule",
    "aligned",
    "expected_and_spared",
    "expected_values",
    "gaussian_kl",
    "ll_at_mean",
    "negative_binomial_nll",
    "normal_nll",
    "saturated_ll",
    "stack",
    "widest",
]
