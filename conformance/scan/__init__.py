"""Static scanner: finds code that works on one PyTorch device only, without running it."""

from conformance import __version__

__all__ = ["__version__"]
