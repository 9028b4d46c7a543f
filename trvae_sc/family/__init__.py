"""Relatives of trVAE in the contract of TRVAE: ``setup_anndata``, ``train``, ``predict``."""

from trvae_sc.family._between import BetweenTranslator
from trvae_sc.family._cgan import ConditionalGAN
from trvae_sc.family._cyclegan import CycleGAN
from trvae_sc.family._flow import Gaussian, posterior
from trvae_sc.family._flow_matching import FlowMatching, coupling
from trvae_sc.family._flow_transfer import FlowTransfer
from trvae_sc.family._methods import METHODS
from trvae_sc.family._networks import critic_loss, gradient_penalty
from trvae_sc.family._paired import PairedTranslator
from trvae_sc.family._translator import Translator

__all__ = [
    "METHODS",
    "BetweenTranslator",
    "ConditionalGAN",
    "CycleGAN",
    "FlowMatching",
    "FlowTransfer",
    "Gaussian",
    "PairedTranslator",
    "Translator",
    "coupling",
    "critic_loss",
    "gradient_penalty",
    "posterior",
]
