"""A server in a thread of its own, for a browser: its connections and its program can be renewed."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from functools import partial

import trio
from hypercorn.config import Config
from hypercorn.trio import serve


class InThread:
    """Serves an application on a port of this machine, with Hypercorn on Trio.

    Args:
        make_app: Makes the application, again after each restart.
    """

    def __init__(self, make_app):
        self._make_app = make_app
        self._up = threading.Event()
        self._is_over = False
        self._failure = None
        self.port = 0
        self.app = None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/"

    @contextmanager
    def running(self):
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            self._wait()
            yield self
        finally:
            self._is_over = True
            self._from_thread(self._stop_serving, is_new=True)
            thread.join(20)
            assert not thread.is_alive()
        if self._failure is not None:
            raise self._failure

    def call(self, function):
        """Call a function in the event loop of the server, and return its result."""
        return trio.from_thread.run_sync(function, trio_token=self._token)

    def drop_connections(self, while_down=lambda: None):
        """Close every connection and the port, and open it again; the application and its runs stay."""
        self._renew(while_down, is_new=False)

    def restart(self, while_down=lambda: None):
        """End the application, and serve a new one."""
        self._renew(while_down, is_new=True)

    def _renew(self, while_down, *, is_new):
        self._up.clear()
        self._down = threading.Event()
        self._go_on = threading.Event()
        self._from_thread(self._stop_serving, is_new=is_new)
        assert self._down.wait(10)
        while_down()
        self._go_on.set()
        self._wait()

    def _wait(self):
        assert self._up.wait(10), "the server did not start"

    def _from_thread(self, function, **arguments):
        trio.from_thread.run_sync(partial(function, **arguments), trio_token=self._token)

    def _stop_serving(self, *, is_new):
        self._is_new = is_new
        self._stop.set()

    def _run(self):
        try:
            trio.run(self._main)
        except BaseException as error:
            self._failure = error
            self._up.set()

    async def _main(self):
        self._token = trio.lowlevel.current_trio_token()
        while not self._is_over:
            self.app = self._make_app()
            async with self.app.lifespan():
                self._is_new = False
                while not self._is_new:
                    await self._serve()

    async def _serve(self):
        config = Config()
        config.bind = [f"127.0.0.1:{self.port}"]
        config.accesslog = config.errorlog = None
        config.graceful_timeout = 0.01
        self._stop = trio.Event()

        async def app(scope, receive, send):
            if scope["type"] != "lifespan":
                await self.app(scope, receive, send)
                return
            for when in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{when}.complete"})

        async with trio.open_nursery() as nursery:
            serve_app = partial(serve, app, config, shutdown_trigger=self._stop.wait, mode="asgi")
            (bound,) = await nursery.start(serve_app)
            self.port = int(bound.rpartition(":")[2])
            self._up.set()
        if not self._is_over:
            self._down.set()
            await trio.to_thread.run_sync(self._go_on.wait)
