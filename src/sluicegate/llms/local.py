"""
A model server on this machine: OpenAI's chat format, without a language model.

It replaces a model where there is no key and no network: ``python -m sluicegate.llms.local``, or
`LocalServer` in a program, or `stand_in_model` around one. A Markov chain over a few pages of prose
writes the replies. The model's name is ``sluicegate-markov``, and every reply has a
``system_fingerprint`` that says so. For tests it can be slow, call tools and "reason", and it keeps
the requests that it received.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import os
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any, cast

import trio

from sluicegate._loop import current_backend
from sluicegate._loop.cleanup import shielded_scope


try:
    import hypercorn.config
    import hypercorn.trio

    from ._local_app import MODEL, Exchange, LocalApp
except ModuleNotFoundError as _exc:
    _missing = (_exc.name or "").partition(".")[0]
    if _missing not in {"hypercorn", "starlette"}:
        raise
    _msg = f'sluicegate.llms.local needs {_missing}: pip install "sluicegate[local]"'
    raise ModuleNotFoundError(_msg, name=_missing) from _exc


if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from types import TracebackType
    from typing import Self


__all__ = [
    "MODEL",
    "Exchange",
    "LocalServer",
    "main",
    "stand_in_model",
]

_KEYS = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_API_BASE")


class LocalServer:
    """
    The server in a separate thread, for programs on Trio, on asyncio or on neither.

    ::

        async with LocalServer(delay=0.01) as server:  # or: with LocalServer() as server:
            llm = OpenAI(base_url=server.base_url)

    When the block is left, the thread has ended and every connection is closed.

    Args:
        host: The address to listen on.
        port: The port; with 0 the system chooses one.
        seed: The same seed and prompt give the same reply.
        delay: Seconds before each piece of a reply.
        tools: Call the first tool of a request, if it has one, as with ``tool_choice="required"``;
            but answer in words if the last message is the result of a tool.
        reasoning: The number of words of reasoning before the text.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        seed: int = 0,
        delay: float = 0,
        tools: bool = False,
        reasoning: int = 0,
    ) -> None:
        self._app = LocalApp(seed, host, delay=delay, tools=tools, reasoning=reasoning)
        self._address = host, port
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._base_url: str | None = None
        self._failure: Exception | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._scope = trio.CancelScope()

    def __repr__(self) -> str:
        where = self._base_url or "not running"
        return f"<LocalServer {where}, {len(self.exchanges)} requests seen>"

    @property
    def base_url(self) -> str:
        """
        The address for ``OpenAI(base_url=...)``.

        Raises:
            RuntimeError: The server is not running.
        """
        if self._base_url is None:
            msg = "the local server is not running; write: async with LocalServer() as server:"
            raise RuntimeError(msg)
        return self._base_url

    @property
    def exchanges(self) -> list[Exchange]:
        """The requests that the server has received, in order; the list grows while it runs."""
        return self._app.exchanges

    def __enter__(self) -> Self:
        if self._thread is not None:
            msg = "a LocalServer is used once; make another one"
            raise RuntimeError(msg)
        config = _listen(*self._address)
        # A daemon, so that a block that is never left cannot hold up the end of the program.
        self._thread = threading.Thread(
            target=self._run, args=[config], name="sluicegate-local-llm", daemon=True
        )
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        with shielded_scope():
            await _in_thread(self.__enter__)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.aclose()

    def close(self) -> None:
        """Stop the server, its connections and its thread; leaving the block does it."""
        self._base_url = None
        if self._token is not None:
            # The server may have ended by itself.
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._scope.cancel)
        if self._thread is not None:
            self._thread.join()

    async def aclose(self) -> None:
        """Do as `close` does without blocking the event loop, in a cancelled scope too."""
        with shielded_scope():
            await _in_thread(self.close)

    def _run(self, config: hypercorn.config.Config) -> None:
        try:
            trio.run(self._serve, config)
        except Exception as exc:
            if self._ready.is_set():
                raise  # threading reports it, because no caller waits
            self._failure = exc
        finally:
            self._ready.set()

    async def _serve(self, config: hypercorn.config.Config) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            self._base_url = await _start(nursery, self._app, config)
            self._ready.set()
            with self._scope:
                await trio.sleep_forever()
            nursery.cancel_scope.cancel()


@contextlib.contextmanager
def stand_in_model(**options: Any) -> Generator[LocalServer | None]:
    """
    Run a `LocalServer` for the block if neither a key nor another server is set.

    ::

        with stand_in_model():
            sluicegate.run(main)

    If ``OPENAI_API_KEY``, ``OPENAI_BASE_URL`` or ``OPENAI_API_BASE`` is set, this does nothing.
    Otherwise ``OPENAI_BASE_URL`` is the address of the server while the block runs, and a line on
    standard error says that no language model is used.

    Args:
        options: The options of `LocalServer`.
    """
    if any(os.environ.get(name) for name in _KEYS):
        yield None
        return
    with LocalServer(**options) as server:
        sys.stderr.write(f"OPENAI_API_KEY is not set: {MODEL}, a stand-in, writes the replies\n")
        os.environ["OPENAI_BASE_URL"] = server.base_url
        try:
            yield server
        finally:
            del os.environ["OPENAI_BASE_URL"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the address of the server, and run it until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(
        prog="python -m sluicegate.llms.local",
        description=f"Serve {MODEL}, a stand-in for a language model, in OpenAI's chat format.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=0, help="a free one unless given")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other words")
    parser.add_argument(
        "--delay", type=float, default=0, metavar="SECONDS", help="before each word"
    )
    parser.add_argument("--reasoning", type=int, default=0, metavar="WORDS", help="before the text")
    parser.add_argument("--tools", action="store_true", help="call the first tool of a request")
    given = parser.parse_args(arguments)
    options = {"delay": given.delay, "reasoning": given.reasoning, "tools": given.tools}
    try:
        app = LocalApp(given.seed, given.host, **options)
        config = _listen(given.host, given.port)
    except (OSError, ValueError) as exc:
        parser.error(str(exc))
    trio.run(_serve_until_signal, app, config)
    return 0


async def _in_thread(function: Callable[[], object]) -> None:
    await current_backend().run_in_thread(function, abandon_on_cancel=False)


async def _serve_until_signal(app: LocalApp, config: hypercorn.config.Config) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            base_url = await _start(nursery, app, config)
            sys.stdout.write(f"{MODEL}, a stand-in for a language model, at {base_url}\n")
            sys.stdout.flush()
            await anext(signals)
            nursery.cancel_scope.cancel()


async def _start(nursery: trio.Nursery, app: LocalApp, config: hypercorn.config.Config) -> str:
    # Hypercorn and Starlette have different types for the same ASGI.
    serve = cast("Any", hypercorn.trio.serve)  # pyright: ignore[reportUnknownMemberType]
    binds = await nursery.start(functools.partial(serve, app.asgi(), config, mode="asgi"))
    return f"{binds[0]}/v1"


def _listen(host: str, port: int) -> hypercorn.config.Config:
    # The socket is made here, so that a port in use is a plain OSError in the caller.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as listener:
        # Accepted connections inherit it: small pieces are sent at once.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        config = hypercorn.config.Config()
        config.accesslog = None
        # Hypercorn would print a greeting to standard error; a logger is silent by default.
        config.errorlog = logging.getLogger(__name__)
        config.bind = [f"fd://{listener.detach()}"]
    return config


if __name__ == "__main__":
    sys.exit(main())
