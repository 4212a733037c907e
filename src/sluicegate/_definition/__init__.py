"""The definition of a workflow: steps, signatures, the graph, and the checks before a run."""
