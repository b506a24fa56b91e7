"""ACE-Step 1.5 text-to-music inference that runs alike on CUDA, Apple's MPS and CPU."""

__version__ = "0.1.0"
