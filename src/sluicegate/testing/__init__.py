"""Run a workflow, some of its steps, or one step, and inspect everything that it did."""

from __future__ import annotations

from sluicegate.testing._auditing import StepStruckError, audit
from sluicegate.testing._durable_scenario import DurableScenario, durable_scenario
from sluicegate.testing._isolation import run_step
from sluicegate.testing._records import StepInvocation, StepOutcome, WorkflowTestResult
from sluicegate.testing._replaying import ReplayedRun, ReplayError, ReplayReport, replay
from sluicegate.testing._running import WorkflowTestRunner, run_workflow
from sluicegate.testing._scenarios import Reading, WorkflowScenario, workflow_scenario
from sluicegate.testing._stepping import SteppedRun, step_through
from sluicegate.testing._store_checks import StoreCheck, StoreHarness, store_checks
from sluicegate.testing._sweeps.asyncio_time import VirtualLoop
from sluicegate.testing._sweeps.crash import Crash, CrashLedger, CrashStore
from sluicegate.testing._sweeps.sweep import SweepReport, fuzz, sweep
from sluicegate.testing._sweeps.trial import At, InjectedError, Outcome, ScenarioFailure, Trial
from sluicegate.testing._sweeps.virtual import jump_clock, run_virtually


__all__ = [
    "At",
    "Crash",
    "CrashLedger",
    "CrashStore",
    "DurableScenario",
    "InjectedError",
    "Outcome",
    "Reading",
    "ReplayError",
    "ReplayReport",
    "ReplayedRun",
    "ScenarioFailure",
    "StepInvocation",
    "StepOutcome",
    "StepStruckError",
    "SteppedRun",
    "StoreCheck",
    "StoreHarness",
    "SweepReport",
    "Trial",
    "VirtualLoop",
    "WorkflowScenario",
    "WorkflowTestResult",
    "WorkflowTestRunner",
    "audit",
    "durable_scenario",
    "fuzz",
    "jump_clock",
    "replay",
    "run_step",
    "run_virtually",
    "run_workflow",
    "step_through",
    "store_checks",
    "sweep",
    "workflow_scenario",
]
