"""The engine in PyTorch."""
