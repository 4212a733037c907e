"""Each promise of the design has a test whose docstring begins with its number."""

from __future__ import annotations

import re
from pathlib import Path


def test_every_promise_is_tested():
    named = re.compile(r'"""((?:P\d+(?:, )?)+):')
    found = {
        promise
        for path in Path(__file__).parent.rglob("test_*.py")
        for promises in named.findall(path.read_text(encoding="utf-8"))
        for promise in promises.split(", ")
    }

    assert found >= {f"P{number}" for number in range(1, 24)}
