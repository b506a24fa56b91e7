"""Lets `python -m acestep.training.planner` train the built-in planner."""

from __future__ import annotations

from acestep.training.planner.recipe import main

if __name__ == "__main__":
    main()
