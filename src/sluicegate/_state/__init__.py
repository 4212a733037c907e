"""The state of a run and the drafts that change it."""
