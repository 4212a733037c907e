"""The layers of the source, which `tests.layers` lists."""

from __future__ import annotations

import ast

import pytest

from tests import layers


#: The modules that may import Trio or AnyIO: the seam, and what stands apart.
#: `_errors` derives `WorkflowTimeoutError` from `trio.TooSlowError`, and lies below the seam.
KNOW_A_LOOP = ("_errors", "_loop", "llms", "cli", "testing._sweeps")


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


@pytest.mark.parametrize(
    ("part", "allowed"),
    [("llms", ("llms", "_loop")), ("testing._sweeps", ("testing._sweeps",))],
)
def test_parts_that_serve_any_program_stand_apart(part, allowed):
    """``llms`` needs the seam to the event loops only; the sweep nothing but itself."""
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
