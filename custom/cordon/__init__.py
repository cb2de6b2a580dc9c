"""Cordon: confidential federated learning for hospitals, as an NVIDIA FLARE 2.9 job bundle."""

__version__ = "0.1.0"
