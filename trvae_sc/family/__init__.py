"""Relatives of trVAE in its contract, and what can be done in the latent space of any of them."""

from trvae_sc.family._between import BetweenTranslator
from trvae_sc.family._cgan import ConditionalGAN
from trvae_sc.family._flow import Gaussian, posterior, worth_of_prior
from trvae_sc.family._flow_matching import FlowMatching, coupling
from trvae_sc.family._flow_transfer import FlowTransfer
from trvae_sc.family._gans import CycleGAN, PairedTranslator
from trvae_sc.family._generate import copy_check, generate
from trvae_sc.family._latent import interpolate, lattice, shift_attribute, traverse
from trvae_sc.family._methods import METHODS, translate
from trvae_sc.family._mixing import mixing
from trvae_sc.family._networks import critic_loss, gradient_penalty
from trvae_sc.family._outliers import outlier_score
from trvae_sc.family._training import PlayersPlan
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
    "PlayersPlan",
    "Translator",
    "copy_check",
    "coupling",
    "critic_loss",
    "generate",
    "gradient_penalty",
    "interpolate",
    "lattice",
    "mixing",
    "outlier_score",
    "posterior",
    "shift_attribute",
    "translate",
    "traverse",
    "worth_of_prior",
]
