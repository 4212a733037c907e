"""The layers of the source, which `tests.layers` lists."""

from __future__ import annotations

import ast
from collections import defaultdict

import pytest

from sluicegate._engine.machine import Machine
from tests import layers


#: The modules that may import Trio or AnyIO: the seam, and what stands apart.
#: `_errors` derives `WorkflowTimeoutError` from `trio.TooSlowError`, and lies below the seam.
KNOW_A_LOOP = ("_errors", "_loop", "llms", "cli", "serve._hypercorn_", "testing._sweeps")


def test_imports_run_down():
    """A module imports from lower layers, and never up; what is imported for types counts."""
    assert layers.upward() == []


def test_no_imports_make_a_circle():
    """No module imports itself through others, not even for types or inside a function."""
    assert layers.circles() == []


def test_private_names_stay_private():
    """No file reads a private name of another package, and few read one of their neighbours."""
    across, within = layers.private_accesses()

    assert across == []
    assert len(within) <= layers.MOST_PRIVATE, "\n".join(within)


#: The modules of the engine that give the machine an input, by the name of the input. Whatever records
#: the inputs of a run, in the order in which they are applied, does so in these methods.
INPUTS = {
    # the start, events from outside
    "receive": {"runner", "control"},
    "receive_at": {"control"},
    "answer_wait": {"control"},
    "answer_question": {"control"},
    # events that a step sends or collects
    "check_sendable": {"step_operations"},
    "open_branch": {"step_operations"},
    "send": {"runner", "step_operations"},
    "release": {"journal", "step_operations"},
    "buffer": {"step_operations", "journal", "snapshot_read"},
    # a worker takes a delivery; its invocation ends
    "take": {"runner"},
    "next_start": {"runner", "failures"},
    "check_result": {"runner"},
    "finish": {"runner"},
    # what is done about a failure
    "drop": {"failures"},
    "delay": {"failures"},
    "retry": {"failures"},
    "recover": {"failures"},
    # waits, and the places that they give up
    "take_early": {"step_operations"},
    "keep_early": {"step_operations", "snapshot_read"},
    "begin_wait": {"step_operations"},
    "end_wait": {"step_operations"},
    "begin_branch_wait": {"step_operations"},
    "end_branch_wait": {"step_operations"},
    "begin_rest": {"idle"},
    "end_rest": {"idle"},
    "leave_place": {"idle"},
    "reclaim_place": {"invocation"},
    "force_place": {"invocation"},
    "note_question": {"step_operations"},
    "adopt_question": {"step_operations"},
    # the end of a branch, and of the run
    "cancel": {"failures", "step_operations"},
    "drain": {"control"},
    "close": {"ending"},
    "retire": {"ending"},
    # the loading of a snapshot
    "load_asked": {"snapshot_read"},
    "reopen": {"snapshot_read"},
    "enqueue": {"snapshot_read"},
    "load_delayed": {"snapshot_read"},
    "end_node": {"snapshot_read"},
    "pair_join_of": {"snapshot_read"},
}


#: The machine, and what applies the recorded inputs to a machine of its own.
MACHINES = {"_engine.machine", "_engine.replay", "_engine.past_records"}


def uses_of_the_machine():
    """Yield each use of a machine in the engine: module, attribute, whether it is assigned."""
    for module in layers.modules():
        if module.startswith("_engine.") and module not in MACHINES:
            for node in ast.walk(layers.tree(module)):
                match node:
                    case (
                        ast.Attribute(value=ast.Name(id="machine" | "outer"))
                        | ast.Attribute(value=ast.Attribute(attr="machine"))
                    ):
                        is_assigned = not isinstance(node.ctx, ast.Load)
                        yield module.removeprefix("_engine."), node.attr, is_assigned
                    case _:
                        pass


def test_the_machine_changes_only_through_its_inputs():
    """Each input comes from the modules that are listed for it, and no other code sets its state."""
    inputs = defaultdict(set)
    for module, name, is_assigned in uses_of_the_machine():
        assert not is_assigned, f"{module} assigns machine.{name}"
        if name in INPUTS:
            inputs[name].add(module)
        elif callable(getattr(Machine, name, None)):
            assert name in QUERIES, (
                f"{module} calls machine.{name}, which is no known input or query"
            )

    assert inputs == INPUTS


#: The methods of the machine that change nothing.
QUERIES = {"first_wait", "find_wait", "find_question", "was_asked", "recoveries"}


def test_one_function_calls_the_body_of_every_step():
    """``Worker.invoke`` runs bodies in the loop, in threads and processes, and the hop calls it once."""
    calls = [
        (module, node.func.attr)
        for module in layers.modules()
        for node in ast.walk(layers.tree(module))
        if module.startswith("_engine.") and isinstance(node, ast.Call)
        if isinstance(node.func, ast.Attribute)
    ]

    assert [module for module, name in calls if name == "invoke"] == ["_engine.runner"]
    assert {module for module, name in calls if name == "function"} == {"_engine.invocation"}


@pytest.mark.parametrize(
    ("part", "allowed"),
    [
        (
            "llms",
            ("llms", "_loop", "_sse", "_data", "_annotations", "_errors", "_exceptions", "_events"),
        ),
        ("testing._sweeps", ("testing._sweeps", "durable")),
    ],
)
def test_parts_that_serve_any_program_stand_apart(part, allowed):
    """``llms`` needs the seam and the data, no engine; the sweep itself, and a store that crashes."""
    for module in layers.modules():
        if module.startswith(part):
            assert all(other.startswith(allowed) for other in layers.imported(module)), module


def test_only_the_seam_knows_an_event_loop():
    """Above ``_loop`` nothing imports Trio, AnyIO or asyncio."""
    found = [
        (module, name)
        for module in layers.modules()
        if not module.startswith(KNOW_A_LOOP)
        for node in ast.walk(layers.tree(module))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [a.name for a in node.names]
        )
        if name.partition(".")[0] in {"trio", "anyio", "asyncio"}
    ]

    assert found == []


def test_every_file_has_a_first_line_that_names_its_subject():
    without = [m for m, path in layers.modules().items() if not path.read_text().startswith('"""')]

    assert without == []
