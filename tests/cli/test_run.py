"""``sluicegate run`` in this process: its input, its output and its exit codes."""

from __future__ import annotations

import io
import json
import sys

import pytest

from tests.helpers import on_each_backend


def lines_of(text):
    return [json.loads(line) for line in text.splitlines()]


def is_one_line(text):
    return text.count("\n") == 1 and text.endswith("\n") and "Traceback" not in text


# -- events and results ------------------------------------------------------------------------


@on_each_backend
def test_events_as_json_lines(cli, backend):
    """Each event of the stream is one line of JSON with the name of its class; the stop is last."""
    code, out, err = cli("run", "flows_for_cli:Shout", "-i", "topic=ab", "--backend", backend)

    assert (code, err) == (0, "")
    assert lines_of(out) == [
        {"event": "Progress", "msg": "warming up"},
        {"event": "Token", "delta": "Call"},
        {"event": "Token", "delta": " me"},
        {"event": "Token", "delta": " Ish"},
        {"event": "Token", "delta": "mael"},
        {"event": "Odd", "event_": "launch", "value": 3},
        {"event": "StopEvent", "result": "AB"},
    ]


def test_events_for_reading(cli):
    """Tokens make up one line of text, messages stand alone, other events show their fields."""
    code, out, err = cli("run", "flows_for_cli:Shout", "-i", "topic=ab", "--events", "pretty")

    assert (code, err) == (0, "")
    assert out == "warming up\nCall me Ishmael\nOdd(event='launch', value=3)\nAB\n"


def test_no_events(cli):
    """With --events none the output is the result alone."""
    assert cli(
        "run", "flows_for_cli:Shout", "-i", "topic=ab", "-i", "count=2", "--events", "none"
    ) == (0, "AB AB\n", "")


def test_what_json_cannot_hold(cli):
    """A value that cannot be encoded appears as its repr, and takes nothing else with it."""
    code, out, _ = cli("run", "flows_for_cli:Strange")

    assert code == 0
    assert lines_of(out) == [
        {"event": "Odd", "event_": "x", "value": "<Opaque>"},
        {
            "event": "StopEvent",
            "result": {"fine": 1, "strange": {"(1, 2)": 3}, "also": "<Opaque>"},
        },
    ]


def test_a_result_that_is_an_event(cli):
    """A stop event of a class of its own is the result, and printed with its fields."""
    assert cli("run", "flows_for_cli:OwnStop", "--events", "none") == (0, '{"score":7}\n', "")


# -- input ---------------------------------------------------------------------------------------


def test_pairs_follow_the_fields(cli):
    """-i keeps a string where the field takes one, and reads JSON where it does not."""
    pairs = ("topic=7", "count=2", 'tags=["a"]', "note=null")
    _, out, _ = cli(
        "run",
        "flows_for_cli:EchoDeclared",
        "--events",
        "none",
        *(part for pair in pairs for part in ("-i", pair)),
    )

    assert json.loads(out) == {"topic": "7", "count": 2, "tags": ["a"], "note": "null"}


def test_pairs_without_fields_are_strings(cli):
    """Where the start event declares no field, every value is kept as it was typed."""
    _, out, _ = cli("run", "flows_for_cli:Echo", "-i", "a=1", "-i", "b=x=y", "--events", "none")

    assert json.loads(out) == {"a": "1", "b": "x=y"}


@pytest.mark.parametrize("given", ["--input", "--input-file", "-i"])
def test_input_that_is_too_deep(cli, tmp_path, given):
    """P19: a JSON value of any depth is an error of one line."""
    file = tmp_path / "deep.json"
    file.write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}")
    text = {"--input": file.read_text(), "--input-file": file}.get(given)
    if given == "-i":
        arguments = ("flows_for_cli:EchoDeclared", "-i", "topic=a", "-i", f"count={'[' * 100_000}")
    else:
        arguments = ("flows_for_cli:Echo", given, text)
    code, _, err = cli("run", *arguments)

    assert code == 2
    assert "nested too deeply" in err
    assert "Traceback" not in err


def test_input_file_that_is_not_utf8_is_named(cli, tmp_path):
    """The error names the file."""
    file = tmp_path / "latin.json"
    file.write_bytes('{"a": "é"}'.encode("latin-1"))
    code, _, err = cli("run", "flows_for_cli:Echo", "--input-file", file)

    assert code == 2
    assert f"{file} is not UTF-8" in err


def test_input_as_json(cli, tmp_path, monkeypatch):
    """--input and --input-file take the fields as a JSON object, from standard input as well."""
    file = tmp_path / "in.json"
    file.write_text('{"a": [1]}')
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"a": [2]}'))
    target = ("run", "flows_for_cli:Echo", "--events", "none")

    assert cli(*target, "--input", '{"a": [0]}')[1] == '{"a":[0]}\n'
    assert cli(*target, "--input-file", file)[1] == '{"a":[1]}\n'
    assert cli(*target, "--input-file", "-")[1] == '{"a":[2]}\n'


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "Begin lacks 'topic'"),
        (["-i", "topic"], "gives no field a value"),
        (["-i", "topic=a", "-i", "topic=b"], "given twice"),
        (["-i", "topic=a", "-i", "count=many"], "-i count=many is neither int nor JSON"),
        (["-i", "topic=a", "-i", "count=1.5"], "Begin.count is 1.5, which is not int"),
        (["-i", "topic=a", "-i", "cuont=1"], "did you mean 'count'"),
        (["--input", '{"topic": 3}'], "Begin.topic is 3, which is not str"),
        (["--input", '{"topic"'], "--input is not JSON"),
        (["--input", "[1]"], "not a JSON object"),
        (["--input", "{}", "-i", "topic=a"], "not allowed with"),
        (["--input-file", "nowhere.json"], "cannot read nowhere.json"),
        (["-i", "topic=a", "--timeout", "0"], "not a number of seconds above 0"),
        (["-i", "topic=a", "--backend", "curio"], "invalid choice"),
    ],
)
def test_bad_input(cli, arguments, told):
    """Input that does not fit is refused in one line, with exit code 2, before anything runs."""
    code, out, err = cli("run", "flows_for_cli:Shout", *arguments)

    assert (code, out) == (2, "")
    assert told in err
    assert is_one_line(err)


def test_input_makes_only_the_start_event(cli):
    """P19: data cannot choose its class; what looks like a tag is a field like any other."""
    code, _, err = cli("run", "flows_for_cli:Shout", "--input", '{"event": "Middle", "topic": ""}')

    assert code == 2
    assert "Begin has no field 'event'" in err


# -- failures --------------------------------------------------------------------------------------


@on_each_backend
def test_a_failure_names_step_event_and_lines(cli, backend):
    """A run that raised exits with 1 and tells the step, its event and the user's lines alone."""
    code, out, err = cli("run", "flows_for_cli:Fails", "--backend", backend)

    assert code == 1
    assert lines_of(out)[-1]["event"] == "WorkflowFailedEvent"
    assert err.startswith("sluicegate: Fails failed in the step cook\n")
    assert "handling Middle(text='raw')" in err
    assert "ValueError: burnt" in err
    assert 'raise KeyError("oven")' in err  # the cause, through a function of the user's
    files = [line for line in err.splitlines() if line.startswith("  File ")]
    assert len(files) == 3
    assert all("flows_for_cli.py" in line for line in files)


@on_each_backend
def test_a_timeout(cli, backend, tmp_path):
    """--timeout overrides the workflow's own; a run that times out exits with 124."""
    mark = tmp_path / "mark"
    code, out, err = cli(
        *("run", "flows_for_cli:Sleeper", "-i", f"mark={mark}"),
        *("--timeout", "0.01", "--backend", backend),
    )

    assert code == 124
    assert (lines_of(out)[-1]) == {
        "event": "WorkflowTimedOutEvent",
        "timeout": 0.01,
        "active_steps": ["sleep"],
    }
    assert "timeout of 0.01 s; running: sleep" in err
    assert is_one_line(err)
    assert mark.read_text() == "cleaned up"


def test_a_step_timeout_is_a_failure(cli):
    """The timeout of a step is an error of the workflow: 124 is for that of the run."""
    code, _, err = cli("run", "flows_for_cli:StepTooSlow")

    assert code == 1
    assert "StepTimeoutError" in err


def test_a_workflow_with_faults_does_not_run(cli):
    """Every fault is reported, and the exit code is that of `check`."""
    code, out, err = cli("run", "flows_for_cli:Faulty")

    assert (code, out) == (1, "")
    assert "the workflow Faulty has" in err
    assert "Traceback" not in err


# -- targets ---------------------------------------------------------------------------------------


def test_a_file_as_target(cli, tmp_path):
    """A path to a file works, and what lies beside the file can be imported from it."""
    (tmp_path / "beside_flows_for_cli.py").write_text("word = 'found'\n")
    file = tmp_path / "by_path_flows_for_cli.py"
    file.write_text(
        "from beside_flows_for_cli import word\n"
        "from sluicegate import StartEvent, StopEvent, Workflow, step\n"
        "class Here(Workflow):\n"
        "    @step\n"
        "    async def go(self, ev: StartEvent) -> StopEvent:\n"
        "        return StopEvent(result=word)\n"
    )

    assert cli("run", f"{file}:Here", "--events", "none") == (0, "found\n", "")


@pytest.mark.parametrize("target", ["flows_for_cli:built", "flows_for_cli:Fixed"])
def test_objects_and_classes_as_targets(cli, target):
    """A workflow that is built already runs as it is."""
    assert cli("run", target, "--events", "none") == (0, "fixed\n", "")


def test_a_function_as_target_gets_the_timeout(cli, tmp_path):
    """A function that makes the workflow is given --timeout, if it takes one."""
    mark = tmp_path / "mark"

    assert cli("run", "flows_for_cli:make", "-i", f"mark={mark}", "--timeout", "0.01")[0] == 124


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("flows_for_cli", "does not name a workflow; expected module:Name"),
        ("flows_for_cli:Nothing", "one of its workflows: Shout, Echo"),
        ("no_such_module:Nothing", "there is no module 'no_such_module'"),
        ("no/such/file.py:Nothing", "there is no file"),
        ("flows_for_cli:burn", "cannot be built: KeyError: 'oven'"),
        ("flows_for_cli:make_nothing", "returned 5; expected it to return a workflow"),
        ("flows_for_cli:Needy", "needs model to be built"),
        ("flows_for_cli:sys.path", "expected a Workflow class"),
    ],
)
def test_bad_targets(cli, target, told):
    """A target that is no workflow is refused in one line that says what was expected."""
    code, out, err = cli("run", target)

    assert (code, out) == (2, "")
    assert told in err
    assert is_one_line(err)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("def broken(:", "SyntaxError"),
        ("import no_such_dependency", "No module named 'no_such_dependency'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit(0)", "it exits"),
    ],
)
def test_a_module_that_cannot_be_imported(cli, tmp_path, source, told):
    """What a module raises while it is imported is reported in one line, with its place."""
    file = tmp_path / "broken_flows_for_cli.py"
    file.write_text(f"{source}\n")
    code, _, err = cli("run", f"{file}:Any")

    assert code == 2
    assert told in err
    assert is_one_line(err)
    assert "broken_flows_for_cli" in err


@pytest.mark.parametrize("target", ["flows_for_cli:built", "flows_for_cli:Fixed"])
def test_a_timeout_that_cannot_be_given(cli, target):
    """Where --timeout cannot reach the workflow it is refused, never half applied."""
    code, _, err = cli("run", target, "--timeout", "5")

    assert code == 2
    assert "--timeout" in err
    assert is_one_line(err)


# -- questions -------------------------------------------------------------------------------------


@on_each_backend
@pytest.mark.parametrize("flow", ["AsksInside", "AsksInAChild"])
def test_a_question_in_the_middle_of_a_step_is_asked_too(cli, monkeypatch, backend, flow):
    """What a step waits for can be answered, that of a child's step as well."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("fine\n"))

    code, out, _ = cli("run", f"flows_for_cli:{flow}", "--backend", backend)

    assert code == 0
    assert lines_of(out)[-1]["result"] == "fine"


@on_each_backend
def test_answers_come_from_standard_input(cli, monkeypatch, backend):
    """A question is answered with a line of standard input, where that is no terminal."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("Ada\nrest\n"))
    code, out, err = cli("run", "flows_for_cli:Greeter", "--backend", backend)

    assert (code, err) == (0, "")
    assert lines_of(out) == [
        {"event": "AskName", "prefix": "Your name?"},
        {"event": "StopEvent", "result": "Hello Ada"},
    ]


@on_each_backend
def test_several_questions_at_once(cli, monkeypatch, backend):
    """Questions are answered one after the other, each with a line of its own."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("red\nblue\n"))
    code, out, _ = cli("run", "flows_for_cli:Interview", "--events", "none", "--backend", backend)

    assert (code, out) == (0, "red and blue\n")


def test_an_answer_of_several_fields(cli, monkeypatch):
    """Where the workflow takes answers of its own class, a line of JSON gives their fields."""
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"approved": true, "reason": "ok"}\n'))

    assert cli("run", "flows_for_cli:Approve", "--events", "none") == (0, "True ok\n", "")


@on_each_backend
@pytest.mark.parametrize(
    ("target", "line", "told"),
    [
        ("Greeter", "", "AskName: Your name?) and standard input has ended"),
        ("Approve", "yes\n", 'expected as answer {"approved": ..., "reason": ...}'),
    ],
)
def test_an_answer_that_is_missing_or_wrong(cli, monkeypatch, backend, target, line, told):
    """A question that cannot be answered ends the run, with one line that says what was asked."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(line))
    code, _, err = cli("run", f"flows_for_cli:{target}", "--backend", backend)

    assert code == 2
    assert told in err
    assert is_one_line(err)
