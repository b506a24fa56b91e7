"""Static scanner: finds code that works on one PyTorch device only, without running it."""
