"""Testing: run a workflow, a few steps of it, or one step, and look at everything that it did."""

from __future__ import annotations

from penstock.testing._isolation import run_step
from penstock.testing._records import StepInvocation, StepOutcome, WorkflowTestResult
from penstock.testing._running import WorkflowTestRunner, run_workflow
from penstock.testing._stepping import SteppedRun, step_through


__all__ = [
    "StepInvocation",
    "StepOutcome",
    "SteppedRun",
    "WorkflowTestResult",
    "WorkflowTestRunner",
    "run_step",
    "run_workflow",
    "step_through",
]
