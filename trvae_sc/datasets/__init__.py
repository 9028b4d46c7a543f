"""Data to try things on: simulated with known truth, images, and published ones."""

from trvae_sc.datasets._digits import digits
from trvae_sc.datasets._load import load
from trvae_sc.datasets._public import haber17, kang18
from trvae_sc.datasets._simulate import simulate, simulate_doses

__all__ = ["digits", "haber17", "kang18", "load", "simulate", "simulate_doses"]
