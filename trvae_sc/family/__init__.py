"""Relatives of trVAE, and what can be done in the latent space of any of them."""

from trvae_sc.family._generate import copy_check, generate
from trvae_sc.family._latent import interpolate, shift_attribute, traverse
from trvae_sc.family._outliers import outlier_score

__all__ = ["copy_check", "generate", "interpolate", "outlier_score", "shift_attribute", "traverse"]
