"""Static scanner: finds code that works on one PyTorch device only, without running it."""

__version__ = "0.1.0"
