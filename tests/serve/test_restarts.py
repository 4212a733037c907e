"""A server with a store that is killed while clients read; ``.ci/long`` kills it more often."""

from __future__ import annotations

import sys

import pytest

from tests.helpers import on_each_backend
from tests.serve.killing_server import kill_and_check


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals"),
]


@on_each_backend
def test_clients_of_a_killed_server_miss_nothing(backend, tmp_path):
    """D2: each goes on behind its last event, and has every committed event once at the end."""
    told = kill_and_check(15, runs=8, kills=2, backend=backend, url=f"sqlite:///{tmp_path}/runs.db")

    assert told.startswith("8 runs, 2 kills, ")
