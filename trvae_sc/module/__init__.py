"""The network and its loss."""

from trvae_sc.module._layers import CONDITION_KEY, TARGET_KEY, TOTAL_KEY, stack
from trvae_sc.module._likelihood import (
    COUNT_LIKELIHOODS,
    Likelihood,
    gaussian_kl,
    negative_binomial_nll,
    normal_nll,
)
from trvae_sc.module._module import TRVAEModule
from trvae_sc.module._peers import Peers

__all__ = [
    "CONDITION_KEY",
    "COUNT_LIKELIHOODS",
    "TARGET_KEY",
    "TOTAL_KEY",
    "Likelihood",
    "Peers",
    "TRVAEModule",
    "gaussian_kl",
    "negative_binomial_nll",
    "normal_nll",
    "stack",
]
