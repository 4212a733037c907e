"""The agent of ``examples/agent.py``: a loop as a workflow, with limits, approval, and a store."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from sluicegate import RateLimiter
from sluicegate.llms import ChatMessage, MockLLM, TextDelta, ToolCall, ToolCalled, Usage, tool
from sluicegate.testing import sweep
from tests.helpers import on_each_backend, run_virtually


EXAMPLE = Path(__file__).parent.parent / "examples" / "agent.py"
TRIP = '{"destination": "Ostia", "price": 4.5, "is_booked": false}'


@pytest.fixture(scope="module")
def example():
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("agent_example", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def ask(name, arguments="{}", number="1"):
    return ToolCall(id=number, name=name, arguments=arguments)


async def play(agent, example, *, agrees=True):
    """Run an agent; return its answer, the events of its stream, and what it has asked."""
    events, questions = [], []
    async with agent.run(text="Where to?") as handler:
        async for event in handler.stream_events():
            events.append(event)
            if isinstance(event, example.Approve):
                questions.append(event)
                handler.send_event(example.Approved(id=event.id, is_approved=agrees))
        return await handler, events, questions


@on_each_backend
def test_the_loop_ends_with_the_model_s_answer(example, backend, tmp_path):
    """Replies stream, tools are called at once, and their results are before the model in order."""
    llm = example.Script(delay=0.01)
    agent = example.Agent(llm, tmp_path)

    answer, events, questions = run_virtually(backend, play, agent, example)

    assert answer.trip.to_dict() == {"destination": "Ostia", "price": 4.5, "is_booked": True}
    assert (answer.reason, len(questions)) == ("done", 1)
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    assert text == example.SCRIPT[0].text + example.SCRIPT[2]
    called = [event.name for event in events if isinstance(event, ToolCalled)]
    assert sorted(called) == ["book", "fare", "fare", "weather", "weather"]
    assert (tmp_path / "tickets.txt").read_text().count("Rome to Ostia") == 1


@on_each_backend
def test_results_are_before_the_model_in_the_order_of_its_calls(example, backend, tmp_path):
    """However long each tool takes: the conversation is the same in every run."""
    calls = [ask("weather", f'{{"city": "{c}"}}', c) for c in "abc"] + [ask("fare", "{}", "d")]
    llm = MockLLM([calls, "Stay.", TRIP])
    run_virtually(backend, play, example.Agent(llm, tmp_path), example)
    sent = llm.requests[1]

    assert [message.role for message in sent] == ["system", "user", "assistant", *["tool"] * 4]
    assert [message.tool_call_id for message in sent[3:]] == list("abcd")
    assert [message.text for message in sent[3:6]] == [f"{c}: sun, 21 degrees" for c in "abc"]
    assert sent[6].text.startswith("wrong arguments for fare")


@on_each_backend
def test_a_refused_call_is_told_to_the_model(example, backend, tmp_path):
    """A person's no is the result of the call; the tool is not called."""
    booking = ask("book", '{"origin": "Rome", "destination": "Ostia"}')
    llm = MockLLM([booking, "Then not.", TRIP])
    _, _, questions = run_virtually(
        backend, lambda: play(example.Agent(llm, tmp_path), example, agrees=False)
    )

    assert [question.tool for question in questions] == ["book"]
    assert llm.requests[1][-1] == ChatMessage("tool", "the user has refused it", tool_call_id="1")
    assert not (tmp_path / "tickets.txt").exists()


@on_each_backend
@pytest.mark.parametrize(
    ("limits", "reason", "turns"),
    [
        ({"max_turns": 3}, "after 3 turns", 3),
        ({"max_tokens": 30}, "after 32 tokens", 2),
    ],
)
def test_limits_end_the_loop(example, backend, tmp_path, limits, reason, turns):
    """A model that never ends is stopped by the number of its turns, or of its tokens."""
    text = " ".join(["word"] * 13)
    reply = ChatMessage("assistant", text, tool_calls=[ask("weather", '{"city": "Rome"}')])
    llm = MockLLM([*[reply] * turns, TRIP])
    agent = example.Agent(llm, tmp_path, **limits)
    answer, *_ = run_virtually(backend, play, agent, example)

    assert (answer.reason, len(llm.requests)) == (reason, turns + 1)


@on_each_backend
def test_usage_is_that_of_all_requests(example, backend, tmp_path):
    """Tokens of the turns and of the report, each as the server counted them."""
    llm = MockLLM([ask("weather", '{"city": "Rome"}'), "Stay in Rome.", TRIP])
    answer, *_ = run_virtually(backend, play, example.Agent(llm, tmp_path), example)

    assert answer.usage == Usage(
        prompt_tokens=2 + 4 + 5,
        completion_tokens=0 + 3 + 6,
        total_tokens=2 + 4 + 5 + 0 + 3 + 6,
    )


@on_each_backend
def test_requests_wait_for_the_tokens_of_the_minute(example, backend, tmp_path):
    """Agents that share a limiter are spaced by their actual tokens, not by their estimates."""
    tokens = RateLimiter(60, per=60, burst=600)

    async def main():
        start = anyio.current_time()
        for _ in range(2):
            llm = MockLLM(["Stay.", TRIP])
            await play(example.Agent(llm, tmp_path, tokens=tokens), example)
        return anyio.current_time() - start

    assert (
        run_virtually(backend, main) == 0
    )  # the estimates are above 500 each, and 3 tokens were used


@on_each_backend
def test_a_cancelled_run_leaves_no_tool_behind(example, backend, tmp_path, monkeypatch):
    """Cancelled while two tools run and one question is open: both have unwound with the run."""
    unwound = []

    async def wait() -> None:
        """Wait."""
        try:
            await anyio.sleep(1000)
        finally:
            unwound.append(anyio.current_time())

    monkeypatch.setattr(example, "LOOK", [tool(wait)])
    calls = [ask("wait"), ask("wait"), ask("book", '{"origin": "Rome", "destination": "Ostia"}')]

    async def main():
        llm = MockLLM([calls])
        async with example.Agent(llm, tmp_path).run(text="x") as handler:
            called = 0
            async for event in handler.stream_events():
                called += isinstance(event, ToolCalled)
                if called == 3:
                    await anyio.sleep(1)
                    handler.cancel()
        return handler.status, llm.open_streams

    assert run_virtually(backend, main) == ("cancelled", 0)
    assert len(unwound) == 2


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_killed_anywhere_one_ticket_is_bought(example, backend, tmp_path, monkeypatch, at_most):
    """A process that dies anywhere is continued: one answer, one purchase, and no second question."""

    async def scenario(trial):
        ledger = trial.crash.ledger

        async def book(key: str, _folder: Path, origin: str, destination: str) -> str:
            """Buy a ticket; the railway sells one for each key."""
            await anyio.sleep(1)
            ledger.append(("sold", key))
            return f"booked, ticket {key}"

        monkeypatch.setattr(example, "book", book)
        agent = example.Agent(example.Script(delay=0.01), tmp_path)
        async with (
            trial.crash.open_runs() as runs,
            runs.run(agent.run(text="Where to?"), run_id="trip-1") as handler,
        ):
            async for event in handler.stream_events():
                if isinstance(event, example.Approve) and example.is_open(handler, event):
                    handler.send_event(example.Approved(id=event.id, is_approved=True), id="yes")
            answer = await handler
            return answer.trip.is_booked, answer.reason

    def check(outcome):
        assert outcome.value == (True, "done")
        sold = [entry for entry in outcome.ledger if entry[0] == "sold"]
        assert 1 <= len(sold) <= outcome.lives
        assert len(set(sold)) == 1, "bought under two keys"

    report = sweep(scenario, kinds="crash", check=check, backends=[backend], limit=at_most(6))
    assert report.runs >= 6


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_killed_process_is_continued(backend, tmp_path):
    """The example, killed while its question is open, books once and answers; then from the store."""
    command = [sys.executable, "-W", "error", EXAMPLE, "--backend", backend]
    command += ["--store", "sqlite:///agent.db", "--id", "trip-1"]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("OPENAI_")}
    with subprocess.Popen(
        command, cwd=tmp_path, env=clean, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as asking:
        for line in asking.stdout:
            if line.startswith("May I"):
                asking.kill()
    assert not (tmp_path / "tickets.txt").exists()

    def go_on(stdin):
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=clean,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    answered, again = go_on("y\n"), go_on("")

    result = "Trip(destination='Ostia', price=4.5, is_booked=True) (done, 61 tokens)\n"
    assert "Let me look" not in answered  # that turn was over
    assert answered.endswith(result)
    assert again.endswith(result)
    assert "booked" not in again.replace("is_booked", "")
    assert (tmp_path / "tickets.txt").read_text().count("Rome to Ostia") == 1
