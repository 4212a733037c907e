"""Testing: run a workflow, a few steps of it, or one step, and look at everything that it did."""

from __future__ import annotations

from penstock.testing._auditing import StepStruckError, audit
from penstock.testing._isolation import run_step
from penstock.testing._records import StepInvocation, StepOutcome, WorkflowTestResult
from penstock.testing._running import WorkflowTestRunner, run_workflow
from penstock.testing._scenarios import Reading, WorkflowScenario, workflow_scenario
from penstock.testing._stepping import SteppedRun, step_through
from penstock.testing._sweeps.asyncio_time import VirtualLoop
from penstock.testing._sweeps.sweep import SweepReport, fuzz, sweep
from penstock.testing._sweeps.trial import At, InjectedError, Outcome, ScenarioFailure, Trial
from penstock.testing._sweeps.virtual import jump_clock, run_virtually


__all__ = [
    "At",
    "InjectedError",
    "Outcome",
    "Reading",
    "ScenarioFailure",
    "StepInvocation",
    "StepOutcome",
    "StepStruckError",
    "SteppedRun",
    "SweepReport",
    "Trial",
    "VirtualLoop",
    "WorkflowScenario",
    "WorkflowTestResult",
    "WorkflowTestRunner",
    "audit",
    "fuzz",
    "jump_clock",
    "run_step",
    "run_virtually",
    "run_workflow",
    "step_through",
    "sweep",
    "workflow_scenario",
]
