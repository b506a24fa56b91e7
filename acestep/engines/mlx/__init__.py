"""The engine in MLX, for Apple silicon; the same program runs on a CPU and on CUDA."""
