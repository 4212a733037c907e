"""What an import of the package brings in, and what the package never does (P19, P20)."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import sluicegate


PACKAGE = Path(sluicegate.__file__).parent


#: The command line imports the workflow that whoever types it names; that is not data.
BY_HAND = {PACKAGE / "cli" / "_targets.py"}


SOURCE = sorted(set(PACKAGE.rglob("*.py")) - BY_HAND)


FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle"}


FORBIDDEN_CALLS = {"eval", "exec", "__import__", "import_module", "import_string", "locate"}


def test_nothing_is_imported_by_name_and_nothing_unpickled():
    """P19: no module of the package uses pickle, or imports or evaluates what a string says."""
    found = []
    for path in SOURCE:
        names = []
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names += [a.name for a in node.names if a.name.split(".")[0] in FORBIDDEN_MODULES]
            elif isinstance(node, ast.ImportFrom):
                if (node.module or "").split(".")[0] in FORBIDDEN_MODULES:
                    names.append(node.module)
                names += [a.name for a in node.names if a.name in FORBIDDEN_CALLS]
            elif isinstance(node, ast.Call):
                names.append(getattr(node.func, "id", getattr(node.func, "attr", "")))
        where = path.relative_to(PACKAGE).as_posix()
        found += [
            (where, name)
            for name in names
            if name in FORBIDDEN_MODULES | FORBIDDEN_CALLS
            # A worker process and its parent pickle, over their own socket.
            and not (name == "pickle" and path.name.startswith("process"))
        ]

    # The constructor of an event class, made of the class's own names, as attrs does it.
    assert found == [("_events/__init__.py", "exec")]


PROGRAM = """
import sys

{before}

import sluicegate
from sluicegate import *

class Item(Event):
    number: int

class Done(Event):
    number: int

class Ask(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> InputRequiredEvent:
        return InputRequiredEvent(prompt="?")

    @step
    async def end(self, ev: HumanResponseEvent) -> StopEvent:
        return StopEvent(result=ev.answer)

class Work(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> list[Item]:
        ctx.write_event_to_stream(Item(number=0))
        return [Item(number=n) for n in range(5)]

    @step(num_workers=2, timeout=50)
    async def work(self, ctx: Context, ev: Item) -> Done:
        await ctx.stream.send(Item(number=ev.number))
        if ev.number == self.bad:
            raise ValueError
        return Done(number=ev.number)

    @step
    async def end(self, evs: list[Done]) -> StopEvent:
        return StopEvent(result=len(evs))

async def use(open_nursery):
    work = Work(timeout=60, stream_buffer=2)
    work.bad = None
    assert await work.run() == 5
    async with work.run() as handler:
        assert len([e async for e in handler.stream_events(expose_internal=True)]) > 7
        assert await handler == 5
    async with open_nursery() as nursery:
        handler = work.run().start_soon(nursery)
        assert await handler == 5
    async with workflow_scope():
        handler = work.run()
        assert len([e async for e in handler.stream_events()]) == 7
        assert await handler == 5
    work.bad = 3
    try:
        await work.run()
    except ValueError:
        pass
    else:
        raise AssertionError
    async with Ask().run() as handler:
        handler.send_event(HumanResponseEvent(answer="yes"))
        assert await handler == "yes"
    async with Ask().run() as handler:
        await handler.cancel()
    try:
        async with Ask(timeout=0.001).run() as handler:
            await handler
    except TimeoutError:
        pass
    else:
        raise AssertionError

def loaded(*names):
    return sorted(n for n in names if n in sys.modules)

{after}
print("fine")
"""


BLOCK = """
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names!r}:
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Block())
"""


def run_program(before, after):
    """Run the program in a Python of its own, where nothing has been imported before."""
    code = PROGRAM.replace("{before}", textwrap.dedent(before)).replace(
        "{after}", textwrap.dedent(after)
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout == "fine\n"


def test_import_brings_in_neither_anyio_nor_asyncio():
    """P20: ``import sluicegate`` imports neither, nor any optional extra."""
    run_program(
        "",
        """
        assert loaded("anyio", "asyncio", "uvloop", "openai", "rich", "starlette") == []
        """,
    )


def test_run_under_trio_brings_in_neither_anyio_nor_asyncio():
    """P20: no AnyIO call is on any path of a run under Trio: it works where AnyIO is blocked."""
    run_program(
        BLOCK.format(names=("anyio", "asyncio", "sniffio_compat", "uvloop")),
        """
        import trio

        trio.run(use, trio.open_nursery)
        sluicegate.run(use, trio.open_nursery)
        assert loaded("anyio", "asyncio") == []
        """,
    )


@pytest.mark.slow
def test_anyio_is_imported_when_a_run_first_starts_under_asyncio():
    """P20: and not before."""
    run_program(
        "",
        """
        import asyncio

        async def main():
            workflow = Work()
            handler = workflow.run()
            assert loaded("anyio") == []
            workflow.bad = None
            assert await handler == 5
            assert loaded("anyio") == ["anyio"]
            import anyio
            await use(anyio.create_task_group)

        asyncio.run(main())
        """,
    )


@pytest.mark.slow
def test_entry_imports_the_event_loop_that_it_is_told():
    """P20: ``sluicegate.run(main)`` on Trio imports no other loop, ``backend="asyncio"`` does."""
    run_program(
        "",
        """
        async def main():
            work = Work()
            work.bad = None
            handler = work.run()
            assert len([e async for e in handler.stream_events()]) == 7
            return await handler

        assert sluicegate.run(main) == 5
        assert loaded("anyio", "asyncio") == []
        assert sluicegate.run(main, backend="asyncio") == 5
        assert loaded("anyio", "asyncio") == ["anyio", "asyncio"]
        """,
    )


@pytest.mark.slow_for("asyncio")
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_core_works_without_any_extra(backend):
    """P20: no optional package is needed, on either event loop."""
    extras = ("openai", "httpx", "rich", "starlette", "hypercorn", "uvloop", "hypothesis", "pytest")
    run_program(
        BLOCK.format(names=extras),
        f"""
        if {backend!r} == "trio":
            import trio
            trio.run(use, trio.open_nursery)
        else:
            import anyio
            anyio.run(use, anyio.create_task_group)
        """,
    )


def test_trio_tasks_of_a_run_never_enter_anyio():
    """P20: with AnyIO there and imported, no function of it is called by a run under Trio."""
    run_program(
        "import anyio, anyio._backends._trio",
        """
        import trio

        called = []

        def profile(frame, kind, _):
            if kind == "call" and "anyio" in frame.f_globals.get("__name__", "").split("."):
                called.append(frame.f_code.co_qualname)

        async def main():
            sys.setprofile(profile)
            try:
                await use(trio.open_nursery)
            finally:
                sys.setprofile(None)

        trio.run(main)
        assert called == [], called
        """,
    )


def test_importing_sluicegate_imports_no_event_loop_but_trio():
    """P20: AnyIO, asyncio, msgspec and openai are not imported by ``import sluicegate``."""
    code = (
        "import sys, trio; before = set(sys.modules); import sluicegate; "
        "print(sorted({m.partition('.')[0] for m in set(sys.modules) - before}))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    imported = set(ast.literal_eval(printed))

    assert "sluicegate" in imported
    assert not imported & {"anyio", "asyncio", "msgspec", "openai", "httpx", "starlette", "rich"}
