"""The serve command: workflows over HTTP until a signal drains the server."""

from __future__ import annotations

import os
import re
import socket
import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from sluicegate._errors import WorkflowValidationError
from sluicegate._loop import current_backend
from sluicegate._workflow import graph_in
from sluicegate.cli._drain import run_until_drained, second_of_name
from sluicegate.cli._output import note
from sluicegate.cli._store import open_store, store_options
from sluicegate.cli._targets import UsageError, workflow_at


if TYPE_CHECKING:
    import argparse

    from sluicegate.cli._drain import Drain
    from sluicegate.cli._targets import AnyWorkflow
    from sluicegate.serve import WorkflowApp


#: Host names that reach this machine only.
LOOPBACK = ("127.0.0.1", "::1", "localhost")
_NAMED = re.compile(r"([\w.~-]+)=(.+)", re.ASCII)


def serve(arguments: argparse.Namespace) -> int:
    """Serve workflows until a signal ends it; 0 if every run had ended by then, or waits in the store.

    Raises:
        UsageError: A target, the address, the token or the store cannot be used.
        WorkflowValidationError: A workflow has faults.
        KeyboardInterrupt: Ctrl-C, a second time; everything has unwound.
        SystemExit: The same for SIGTERM and SIGHUP.
    """
    _check_installed()
    with _listen(arguments) as listener:
        if arguments.reload:
            return _serve_reloading(arguments, listener)
        server = _Server(arguments, _workflows(arguments), listener)
        return _run(server, arguments)


def _check_installed() -> None:
    try:
        import sluicegate.serve._server as _  # noqa: F401, PLC0415 - it says what is missing
    except ModuleNotFoundError as error:
        raise UsageError(str(error)) from error


def _run(server: _Server, arguments: argparse.Namespace) -> int:
    left = "the server cancelled the remaining runs"
    if arguments.store is not None:
        left = "the store has the remaining runs"
    return run_until_drained(server.main, arguments.backend, arguments.grace, left)


def _serve_reloading(arguments: argparse.Namespace, listener: socket.socket) -> int:
    """Serve, and start again when a file changes; a program that cannot be loaded waits for that."""
    from sluicegate.cli._reload import SourceFiles, files_of, start_again  # noqa: PLC0415

    if sys.platform == "win32":
        msg = "--reload needs POSIX; expected the command without it"
        raise UsageError(msg)
    paths = [_NAMED.sub(r"\2", target).rpartition(":")[0] for target in arguments.targets]
    files = [path for path in paths if path.endswith(".py")]
    try:
        server = _Server(arguments, _workflows(arguments), listener)
    except (UsageError, WorkflowValidationError) as error:
        print(f"sluicegate: {error}", file=sys.stderr)  # noqa: T201
        SourceFiles([*files, *files_of(error)]).wait_blocking()
        start_again(listener)
    server.source = SourceFiles(files)
    kept = listener.dup()
    code = _run(server, arguments)
    if server.has_changed:
        start_again(kept)
    return code


def _workflows(arguments: argparse.Namespace) -> dict[str, AnyWorkflow]:
    """Return the workflows by the names under which they are served.

    Raises:
        UsageError: A target is wrong, or two have the same name.
        WorkflowValidationError: A workflow has faults.
    """
    found: dict[str, AnyWorkflow] = {}
    stored: set[str] = set()
    for target in arguments.targets:
        named = _NAMED.fullmatch(target)
        workflow = workflow_at(named[2] if named is not None else target)
        own_name = graph_in(workflow).name
        name = named[1] if named is not None else own_name
        if name in found:
            msg = (
                f"{target} is a second workflow with the name {name}; expected other_name={target}"
            )
            raise UsageError(msg)
        if arguments.store is not None and own_name in stored:
            raise second_of_name(target, own_name)
        stored.add(own_name)
        found[name] = workflow
    return found


def _listen(arguments: argparse.Namespace) -> socket.socket:
    """Return the socket on which the server listens.

    Raises:
        UsageError: The address, or the descriptor, cannot be used.
    """
    if arguments.fd is not None:
        try:
            inherited = socket.socket(fileno=arguments.fd)
        except OSError as error:
            msg = f"--fd {arguments.fd} is no open socket; expected the number of an inherited one"
            raise UsageError(msg) from error
        inherited.set_inheritable(False)
        return inherited
    host, port = arguments.host, arguments.port
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        msg = (
            f"cannot listen on {host} port {port}: {error.strerror}; expected an address of this machine, and a "
            "free port: --port 0 finds one"
        )
        raise UsageError(msg) from error


def address_of(listener: socket.socket) -> str:
    """Return the URL at which a server on a socket is reached."""
    if listener.family not in (socket.AF_INET, socket.AF_INET6):
        return f"the socket {listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server:
    """A server until it is drained.

    Attributes:
        source: The files whose change ends it; None for none.
        has_changed: Whether one of them has changed.
    """

    def __init__(
        self,
        arguments: argparse.Namespace,
        workflows: dict[str, AnyWorkflow],
        listener: socket.socket,
    ) -> None:
        self._arguments = arguments
        self._workflows = workflows
        self._listener = listener
        self._token = _token(arguments.token_env)
        self.source: Any = None
        self.has_changed = False

    async def main(self, drain: Drain) -> bool:
        """Serve until drained; return whether every run had ended, or waits in the store."""
        from sluicegate.serve._server import serving  # noqa: PLC0415

        backend, arguments = current_backend(), self._arguments
        async with AsyncExitStack() as stack:
            app = await self._app(stack)
            async with serving(app, self._listener), backend.open_nursery() as nursery:
                self._tell_where()
                if self.source is not None:
                    nursery.start_soon(self._watch, drain, name="watch the source")
                await drain.wait()
                if not self.has_changed:
                    note(f"draining for at most {drain.grace:g} s")
                grace = 0.0 if self.has_changed else arguments.grace
                is_drained = await app.begin_shutdown(grace=grace)
                backend.cancel(nursery.cancel_scope, "the server has drained")
        # A signal that came meanwhile ends the program.
        self.has_changed = self.has_changed and not drain.is_signalled
        return is_drained or self.has_changed

    async def _app(self, stack: AsyncExitStack) -> WorkflowApp:
        """Return the application, with its store open and its lifespan begun."""
        from sluicegate.serve import asgi_app, bearer_token  # noqa: PLC0415

        arguments = self._arguments
        store = None
        if arguments.store is not None:
            options = store_options(arguments)
            opening = open_store(arguments, self._workflows.values(), creates=True, **options)
            store = (await stack.enter_async_context(opening)).runs
        app = asgi_app(
            self._workflows,
            run_store=store,
            on_disconnect=arguments.on_disconnect,
            max_runs=arguments.max_runs,
            authenticate=None if self._token is None else bearer_token(self._token),
            allowed_hosts=("localhost", "127.0.0.1", "[::1]", *arguments.allow_host),
            cors_origins=arguments.cors_origin,
            read_only=arguments.read_only,
            page=not arguments.no_page,
        )
        await stack.enter_async_context(app.lifespan())
        return app

    async def _watch(self, drain: Drain) -> None:
        await self.source.wait()
        self.has_changed = True
        drain.begin()

    def _tell_where(self) -> None:
        arguments = self._arguments
        names = ", ".join(self._workflows)
        note(f"serving {names} at {address_of(self._listener)}; SIGTERM or Ctrl-C drains it")
        if arguments.fd is not None or arguments.host in LOOPBACK:
            return
        if self._token is None:
            note(
                "anyone who reaches this address may start runs; --token-env NAME asks for a token"
            )
        if not arguments.allow_host:
            note("requests must be for localhost; --allow-host NAME adds a name of this server")


def _token(name: str | None) -> str | None:
    """Return the token in an environment variable.

    Raises:
        UsageError: There is none.
    """
    if name is None:
        return None
    token = os.environ.get(name, "")
    if not token:
        msg = f"--token-env {name}: the environment has no {name}; expected the token in it"
        raise UsageError(msg)
    return token
