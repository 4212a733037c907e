"""Who may ask: hosts, origins, headers and tokens are checked before anything else is read."""

from __future__ import annotations

import hmac
import inspect
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from sluicegate._errors import brief
from sluicegate.serve._requests import Refusal


if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from sluicegate.serve._requests import Exchange

#: The most headers of a request, and the most bytes in them.
MOST_HEADERS = 100
MOST_HEADER_BYTES = 32_768
#: The methods and headers that a page of an allowed origin may use, and the headers that it may read.
_CORS_METHODS = "GET, POST, OPTIONS"
_CORS_HEADERS = "accept, authorization, content-type, idempotency-key, last-event-id, traceparent"
_CORS_EXPOSED = "retry-after, traceparent, x-run-id"


def bearer_token(*tokens: str) -> Callable[[HTTPConnection], bool]:
    """Return an ``authenticate`` hook that admits requests with a bearer token.

    A request has to carry ``Authorization: Bearer <token>``. The comparison takes the same time
    for every wrong token of a length.

    Args:
        *tokens: The tokens that are admitted; several while one replaces another.

    Raises:
        ValueError: There is no token, or one is empty or has characters that no header can hold.
    """
    if not tokens or not all(token and token.isascii() and token.isprintable() for token in tokens):
        msg = (
            "bearer_token() takes at least one token of printable ASCII characters; expected a secret: "
            '`bearer_token(os.environ["TOKEN"])`'
        )
        raise ValueError(msg)
    known = [token.encode() for token in tokens]

    def authenticate(request: HTTPConnection) -> bool:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return False
        raw = given.strip().encode("latin-1", "replace")
        found = [hmac.compare_digest(raw, token) for token in known]  # all of them, always
        return any(found)

    return authenticate


class Guards:
    """Checks a request before its body is read.

    Args:
        authenticate: The hook; None admits all.
        hosts: The host names that are this server's; ``"*"`` for any.
        origins: The origins whose pages may call it.
    """

    def __init__(
        self,
        authenticate: Callable[[HTTPConnection], bool | Awaitable[bool]] | None,
        hosts: Iterable[str],
        origins: Iterable[str],
    ) -> None:
        self._authenticate = authenticate
        self._hosts = {host.lower() for host in hosts}
        self._origins = frozenset(origins)
        for origin in self._origins:
            parts = urlsplit(origin)
            if origin != "*" and (not parts.scheme or not parts.netloc or parts.path):
                msg = (
                    f"cors_origins has {brief(origin)}; expected an origin: "
                    "`cors_origins=['https://app.example']`"
                )
                raise ValueError(msg)

    @property
    def needs_token(self) -> bool:
        """Whether requests are authenticated."""
        return self._authenticate is not None

    def check(self, exchange: Exchange) -> None:
        """Check headers, host and origin.

        Raises:
            Refusal: One of them is not admitted.
        """
        raw: list[tuple[bytes, bytes]] = list(exchange.scope["headers"])
        size = sum(len(name) + len(value) for name, value in raw)
        if len(raw) > MOST_HEADERS or size > MOST_HEADER_BYTES:
            msg = (
                f"the request has {len(raw)} headers of {size:,} bytes; expected at most "
                f"{MOST_HEADERS} of {MOST_HEADER_BYTES:,} bytes"
            )
            raise Refusal(431, msg, headers={"connection": "close"})
        hosts = [value.decode("latin-1") for name, value in raw if name == b"host"]
        if "*" not in self._hosts and not any(
            _name_of(host) in self._hosts for host in (hosts if len(hosts) == 1 else ())
        ):
            shown = brief(hosts[0], 100) if hosts else "missing"
            msg = (
                f"the header Host is {shown}, which is not the name of this server; expected one of "
                f"{', '.join(sorted(self._hosts))}, or `asgi_app(..., allowed_hosts=[...])` on the server"
            )
            raise Refusal(421, msg)
        origin = exchange.headers.get("origin")
        if (
            origin is not None
            and exchange.method not in ("GET", "HEAD", "OPTIONS")
            and not self.allows(origin)
            and urlsplit(origin).netloc.lower() != (hosts[0].lower() if hosts else None)
        ):
            msg = (
                f"a page of {brief(origin, 100)} may not call this server; expected a page of the server, "
                "or `asgi_app(..., cors_origins=[...])` on the server"
            )
            raise Refusal(403, msg)

    async def authenticate(self, exchange: Exchange) -> None:
        """Ask the hook. A checkpoint if the hook is one.

        Raises:
            Refusal: It does not admit the request.
        """
        if self._authenticate is None:
            return
        admitted: Any = self._authenticate(HTTPConnection(exchange.scope))
        if inspect.isawaitable(admitted):
            admitted = await admitted
        if not admitted:
            msg = "the request is not authenticated; expected `Authorization: Bearer <token>`"
            raise Refusal(401, msg, headers={"www-authenticate": "Bearer"})

    def allows(self, origin: str) -> bool:
        """Whether pages of an origin may call this server."""
        return "*" in self._origins or origin in self._origins

    def cors_headers(self, exchange: Exchange) -> dict[str, str]:
        """Return the headers with which a page of another origin may read the response."""
        origin = exchange.headers.get("origin")
        if not self._origins:
            return {}
        found = {"vary": "origin"}
        if origin is not None and self.allows(origin):
            found |= {
                "access-control-allow-origin": origin,
                "access-control-expose-headers": _CORS_EXPOSED,
            }
            if exchange.method == "OPTIONS":
                found |= {
                    "access-control-allow-methods": _CORS_METHODS,
                    "access-control-allow-headers": _CORS_HEADERS,
                    "access-control-max-age": "600",
                }
        return found


def _name_of(host: str) -> str:
    """Return the name in a ``Host`` header, without its port."""
    host = host.strip().lower()
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]
