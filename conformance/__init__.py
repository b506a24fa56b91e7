"""Proof that PyTorch code runs on any device: a scanner, a simulated MPS device and a suite."""

#: The one place that says it: of the package, its command and its parts.
__version__ = "0.1.0"
