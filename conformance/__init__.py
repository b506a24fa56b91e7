"""Proof that PyTorch code runs on any device: a scanner, a simulated MPS device and a suite."""
