"""The examples run, alone and without warnings, and show what they say."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

from sluicegate.testing import ScenarioFailure


EXAMPLES = Path(__file__).parent.parent / "examples"
GUIDE = Path(__file__).parent.parent / "docs" / "steps.md"


def run_example(name, *arguments, cwd, stdin=""):
    """Run an example as its user would, with warnings as errors and no key in the environment."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("OPENAI_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", EXAMPLES / name, *arguments],
        cwd=cwd,
        input=stdin,
        env=clean,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_streaming(backend, tmp_path):
    """The main job: progress and tokens stream, the result follows, the graph is drawn."""
    printed = run_example("streaming.py", "--backend", backend, "canals", cwd=tmp_path)

    assert "-- planning an essay on canals" in printed
    assert "-- writing" in printed
    assert " words\n" in printed
    assert "<svg" in (tmp_path / "streaming.html").read_text()


def test_fan_out(tmp_path):
    """Every file of a tree is hashed, and the duplicates are found."""
    for name, text in {"a": "one", "b": "two", "c/d": "one"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    printed = run_example("fan_out.py", str(tmp_path), cwd=tmp_path)

    assert "3 files, 9 bytes, 1 duplicates" in printed
    assert str(tmp_path / "a") in printed.partition("the same:")[2]
    assert str(tmp_path / "c" / "d") in printed.partition("the same:")[2]


def test_human(tmp_path):
    """The person is asked until the answer fits."""
    printed = run_example("human.py", cwd=tmp_path, stdin="fish\nsoup\n")

    assert "We have no fish" in printed
    assert printed.endswith("One soup, here you are.\n")


@pytest.mark.slow
def test_human_with_nobody_there(tmp_path):
    """The end of the input ends the run, and not in an error."""
    assert run_example("human.py", cwd=tmp_path).endswith("No answer. Good night.\n")


@pytest.mark.slow
def test_client(tmp_path):
    """A run is watched, answered and awaited over HTTP; another one, of the server, is cancelled by its id."""
    printed = run_example("client.py", cwd=tmp_path).splitlines()

    assert printed == [
        "Checked(receipt=1)",
        "Checked(receipt=2)",
        "Approval(text='300 for chairs?')",
        "StopEvent(result='paid by Ada')",
        "paid by Ada",
        "Checked(receipt=1) at 1",
        "cancelled: no",
    ]


@pytest.mark.slow
def test_approval_over_http(tmp_path):
    """A client hangs up and comes back; bad and late answers are refused, a good one is taken."""
    printed = run_example("approval_over_http.py", cwd=tmp_path)
    hung_up, _, answered = printed.partition("POST /events/")

    assert '"1200 for a lock?"' in hung_up
    assert "StopEvent" not in hung_up
    assert "Verdict.approved is 'perhaps', which is not bool" in answered
    assert '"result":"paid by ann"' in answered
    assert "has ended (completed); expected one under way" in answered


@pytest.mark.slow
def test_process_step_of_the_guide(tmp_path):
    """The example of a step in a process works where the guide says: in a file of its own."""
    blocks = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    imports = blocks[0].partition("\n\n\n")[0]
    (shown,) = [block for block in blocks if "in_process=True" in block]
    program = f'{imports}\n{shown}\nif __name__ == "__main__":\n    trio.run(main)\n'
    (tmp_path / "primes.py").write_text(program)

    assert run_example(tmp_path / "primes.py", cwd=tmp_path) == "[7919, 7927]\n"


def test_cancel(tmp_path):
    """After a timeout every clean-up is done, and no file is open and no task left."""
    printed = run_example("cancel.py", cwd=tmp_path)

    assert "clean-ups done: 20 of 20" in printed
    assert "files open:     0" in printed
    assert "tasks left:     0" in printed


@pytest.mark.slow
def test_under_asyncio(tmp_path):
    """Each way to own a run works under asyncio, and its timeout reaches the step."""
    printed = run_example("under_asyncio.py", cwd=tmp_path)

    assert "in place: lift-off" in printed
    assert "['lift-off', 'lift-off']" in printed
    assert "  stopped at 3600\n" in printed
    assert "tasks: 1" in printed


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_agent(backend, tmp_path):
    """The model's mistake is corrected, the person is asked, and what was agreed is booked once."""
    printed = run_example("agent.py", "--backend", backend, cwd=tmp_path, stdin="y\n")

    assert "<- wrong arguments for fare: unknown argument 'from'" in printed
    assert 'May I book {"origin": "Rome", "destination": "Ostia"}? [y/n]' in printed
    assert printed.endswith("is_booked=True) (done, 61 tokens)\n")
    assert (tmp_path / "tickets.txt").read_text().count("Rome to Ostia") == 1


@pytest.mark.slow
def test_mcp_server(tmp_path):
    """A client sees the tool, its progress, its question, its result and an error; a step calls the tool."""
    printed = run_example("mcp_server.py", cwd=tmp_path)

    assert "tool: Book - Book a hotel room." in printed
    assert "progress: 1.0 find: asking hotel 1 (1 of 3)\n" in printed
    assert "the server asks: In Rome there are the Ritz (90) and the Grand (70)." in printed
    assert "result: {'hotel': 'Grand', 'price': 160}\n" in printed
    assert "invalid arguments: Trip has no field 'town'" in printed
    assert printed.endswith("the workflow's step: a night in the Grand for 80\n")


def test_every_example_is_tested():
    """No example is without a test here."""
    tested = Path(__file__).read_text()

    assert all(f'"{path.name}"' in tested for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize(
    ("name", "library", "known", "problem"),
    [
        ("anyio_memory_stream", "anyio", "4.16.0", "sent ['item'], received []"),
        ("anyio_condition", "anyio", "4.16.0", "not holding this lock"),
        ("httpcore_connection", "httpcore", "1.0.9", "did not end"),
    ],
)
def test_what_the_sweep_finds_in_libraries(name, library, known, problem):
    """The guide's bugs are there, in the releases up to the one that it names."""
    installed = version(library)
    if Version(installed) > Version(known):
        pytest.skip(f"{library} {installed} is newer than the guide; run {name}.py, and mend it")

    with pytest.raises(ScenarioFailure) as failed:
        runpy.run_path(str(EXAMPLES / "sweeps" / f"{name}.py"), run_name="__main__")

    assert problem in failed.value.problem


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_approval(backend, tmp_path):
    """The process that asks is killed three times; the answer comes, and the expense is paid once."""
    command = [sys.executable, "-W", "error", EXAMPLES / "approval.py", "--backend", backend]
    for _ in range(3):
        with subprocess.Popen(
            [*command, "ask", "17", "480"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
        ) as asking:
            assert asking.stdout is not None
            assert asking.stdout.readline() == "expense 17: pay 480?\n"
            asking.kill()

    answer = ("--backend", backend, "answer", "17", "yes")
    assert run_example("approval.py", *answer, cwd=tmp_path) == "answered\n"
    printed = run_example("approval.py", "--backend", backend, "ask", "17", "480", cwd=tmp_path)
    again = run_example("approval.py", "--backend", backend, "ask", "17", "480", cwd=tmp_path)

    paid = "paid: receipt for expense-17/1\n"
    assert printed == f"expense 17: pay 480?\npaying 480\n{paid}"
    assert again == f"expense 17: pay 480?\n{paid}"
