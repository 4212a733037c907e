"""``sluicegate timeline``."""

from __future__ import annotations

import json


def test_a_page_and_a_trace(cli, recorded, tmp_path):
    """The suffix tells the form."""
    page, trace = tmp_path / "run.html", tmp_path / "run.json"

    assert cli("timeline", str(recorded), "-o", str(page)) == (0, f"{page}\n", "")
    assert page.read_text().startswith("<!doctype html>")
    assert cli("timeline", str(recorded), "-o", str(trace)) == (0, f"{trace}\n", "")
    assert json.loads(trace.read_text())["traceEvents"]


def test_text(cli, recorded):
    """The text goes to standard output."""
    code, out, err = cli("timeline", str(recorded), "--text", "--run", "run")

    assert (code, err) == (0, "")
    assert out.startswith("Flow run: completed, 7.5 s\n")


def test_refusals(cli, recorded, tmp_path):
    """Unknown forms, files and runs are refused."""
    code, _, err = cli("timeline", str(recorded), "-o", "run.png")

    assert (code, err) == (
        2,
        "sluicegate: cannot tell the form from 'run.png'; expected a name that ends in .html or .json\n",
    )
    assert cli("timeline", str(tmp_path / "none"))[0] == 2
    assert cli("timeline", str(recorded), "--run", "other")[0] == 2
    assert (
        "cannot write" in cli("timeline", str(recorded), "-o", str(tmp_path / "no" / "x.html"))[2]
    )
