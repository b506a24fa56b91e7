"""From findings to answers: reports, baselines, changes, fixes and what is kept of a run."""
