"""The 5 Hz language model: prompts, grammar, sampling, and one file for each engine."""
