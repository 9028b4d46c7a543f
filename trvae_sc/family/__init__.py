"""Relatives of trVAE, and what can be done in the latent space of any of them."""

from trvae_sc.family._latent import interpolate, shift_attribute, traverse

__all__ = ["interpolate", "shift_attribute", "traverse"]
