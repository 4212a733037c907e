"""What the tests of the models share: a server on loopback, and a stand-in for a step."""

from __future__ import annotations

import contextlib
import gc

import anyio
import pytest

from sluicegate._loop.cleanup import current_cleanup
from sluicegate.llms.openai import OpenAI

from .misbehaving import MisbehavingServer


# Rules that keep these tests deterministic: loopback and port 0 only; "at once" is shown by a server
# that would otherwise never end its reply, and by waiting for it to notice while every object is
# still alive, never by a clock; a guard ends a test that hangs.
GUARD_SECONDS = 20


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch):
    """Keep the keys of the person who runs the tests out of them."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_API_BASE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _nothing_for_the_collector():
    """Have what a test left behind warn within this test and not in a later one."""
    yield
    gc.collect()


@pytest.fixture
def server():
    """A well-behaved model server; requests ask for misbehaviour by the name of the model."""
    with MisbehavingServer() as server:
        yield server


@pytest.fixture
def llm(server):
    """The model behind that server."""
    return OpenAI("any", base_url=server.base_url)


class Step:
    """A clean-up list such as the engine has one for every step."""

    def __init__(self, *, newest_first=True):
        self.resources = []
        self.newest_first = newest_first

    def __eq__(self, other):
        """Like many containers: equal to another one that is as empty, and so not hashable."""
        return isinstance(other, Step) and self.resources == other.resources

    __hash__ = None

    def add(self, resource):
        """Have it closed at the end."""
        self.resources.append(resource)

    def discard(self, resource):
        """Forget it."""
        self.resources = [other for other in self.resources if other is not resource]

    async def close(self, *, cancelled=False):
        """End the step: shielded and with a bound, or cancelled already."""
        with anyio.move_on_after(5, shield=True) as scope:
            if cancelled:
                scope.cancel()
            for resource in self.resources[:: -1 if self.newest_first else 1]:
                await resource.aclose()

    @contextlib.asynccontextmanager
    async def running(self, *, cancelled=False):
        """Be the step around a block."""
        token = current_cleanup.set(self)
        try:
            yield self
        finally:
            current_cleanup.reset(token)
            await self.close(cancelled=cancelled)


def guard():
    """End a test that hangs, by an exception."""
    return _Guard()


class _Guard:
    def __enter__(self):
        self._scope = anyio.move_on_after(GUARD_SECONDS)
        self._scope.__enter__()

    def __exit__(self, *exc_info):
        caught = self._scope.__exit__(*exc_info)
        assert not self._scope.cancelled_caught, "the test hung"
        return caught
