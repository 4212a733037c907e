"""What a workflow is: its steps, their signatures, its graph, and what is checked before a run."""
