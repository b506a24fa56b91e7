"""The 5 Hz language model: prompts, grammar, sampling, and one file for each engine.

A call comes in at `planner` or `describing`, becomes prompts and a grammar in `writer`, crosses
the seam in `backend` as a job, and comes back as tokens. `loading` finds a model and its engine.
"""
