"""Trials: one run of a scenario, where it is disturbed, and what comes of it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, Literal, final, get_args

import attrs


if TYPE_CHECKING:
    from contextlib import AbstractContextManager


#: How a scenario is disturbed.
Kind = Literal["scope", "native", "timeout", "deadline", "interrupt", "error"]

#: When: it has just blocked, or is to go on and has not yet.
Mode = Literal["park", "wake"]

#: What may be left by a run if it is allowed.
Leftover = Literal["task", "thread", "generator", "channel", "warning", "swallowed"]

#: An async function without arguments, or with the trial.
Scenario = Callable[..., Awaitable[Any]]

KINDS: Final[dict[str, tuple[Kind, ...]]] = {
    "trio": ("scope", "deadline", "interrupt", "error"),
    "asyncio": ("scope", "native", "timeout", "deadline", "interrupt", "error"),
}
DEFAULT_KINDS: Final[dict[str, tuple[Kind, ...]]] = {
    "trio": ("scope",),
    "asyncio": ("scope", "native"),
}
MODES: Final[tuple[Mode, ...]] = get_args(Mode)
LEFTOVERS: Final[tuple[Leftover, ...]] = get_args(Leftover)

_TOKEN = re.compile(
    r"(?P<backend>trio|asyncio)(?::(?P<kind>[a-z]+):(?P<position>\d+)(?:\+(?P<again>\d+))?)?"
    r"(?:@(?P<seed>\d+))?"
)


class InjectedError(Exception):
    """Raised in place of an await by ``sweep(kinds="error")``, unless another is asked for."""


@attrs.frozen
class At:
    """Which run of a scenario: where it was disturbed, and how. Its text replays it.

    The text is ``backend:kind:position+again@seed``; ``+again`` and ``@seed`` are left out where
    there is no second cancellation and where the seed is 0. Undisturbed it is ``backend@seed``.
    """

    backend: str
    """The event loop: ``"trio"`` or ``"asyncio"``."""
    kind: Kind | None = None
    """How it was disturbed, if it was to be."""
    position: int = 0
    """At which moment, counted from 1; 0 for nowhere."""
    again: int = 0
    """How many moments after that it was cancelled a second time; 0 for not at all."""
    seed: int = 0
    """The seed of the schedule."""

    def __str__(self) -> str:
        text = self.backend
        if self.kind is not None:
            text += f":{self.kind}:{self.position}" + (f"+{self.again}" if self.again else "")
        return text + (f"@{self.seed}" if self.seed else "")

    @classmethod
    def parse(cls, text: str) -> At:
        """Read one from its text.

        Raises:
            ValueError: It is none.
        """
        match = _TOKEN.fullmatch(text)
        if match is None or (
            match["kind"] is not None and match["kind"] not in KINDS[match["backend"]]
        ):
            msg = (
                f"at={text!r} names no run of a scenario; expected a position, at=7, or what a "
                "failure printed: at='trio:scope:7', 'asyncio:native:7+2@5', 'trio@5' (kinds: "
                f"{', '.join(KINDS['asyncio'])}; 'native' and 'timeout' are asyncio's)"
            )
            raise ValueError(msg)
        kind: Any = match["kind"]
        return cls(
            match["backend"],
            kind,
            int(match["position"] or 0),
            int(match["again"] or 0),
            int(match["seed"] or 0),
        )


@final
class Trial:
    """What a scenario is given if it takes an argument: one run of it."""

    __slots__ = ("_open_target", "backend", "state")

    def __init__(
        self, backend: str, open_target: Callable[[str], AbstractContextManager[None]]
    ) -> None:
        #: The event loop: ``"trio"`` or ``"asyncio"``.
        self.backend: str = backend
        #: For whatever the check is to see: ``trial.state.sent = [1, 2]``.
        self.state: SimpleNamespace = SimpleNamespace()
        self._open_target = open_target

    def target(self, name: str) -> AbstractContextManager[None]:
        """Name a block that ``sweep(target=name)`` cancels, and that alone.

        By a scope the block is left; natively (and by an interrupt, an error or an
        ``asyncio.timeout``) what is in it is hit, and the exception goes on outward.

        Args:
            name: The name; several blocks may have the same.

        Returns:
            What is to be entered by ``with``.
        """
        return self._open_target(name)


@attrs.frozen(kw_only=True)
class Outcome:
    """What came of one run of a scenario; given to its check."""

    at: At
    """Which run this was; ``str(outcome.at)`` replays it."""
    struck: bool
    """Whether the scenario was disturbed: False for whole runs, and for those that ended first."""
    where: str
    """Which task was where when it was, in words; empty if it was not."""
    value: Any
    """What the scenario returned."""
    error: BaseException | None
    """What left the scenario, unless it was the cancellation itself."""
    cancelled: bool
    """Whether the cancellation (or interrupt) left the scenario, as it should."""
    state: Any
    """The trial's ``state``, as the scenario left it."""
    seconds: float
    """The virtual seconds it took, from the disturbance or else from its beginning."""

    @property
    def completed(self) -> bool:
        """Whether the scenario returned."""
        return self.error is None and not self.cancelled


class ScenarioFailure(AssertionError):  # noqa: N818 - what pytest shows is a failure
    """Raised when a run of a scenario breaks an invariant.

    Its text says what, where it was disturbed, what was alive, and how to replay just that run.
    """

    def __init__(
        self,
        text: str,
        *,
        problem: str,
        at: str,
        outcome: Outcome | None,
        failed: tuple[str, ...] = (),
    ) -> None:
        super().__init__(text)
        #: What was wrong; of tasks that were left, a line for each.
        self.problem: str = problem
        #: The text of the run's ``At``: ``sweep(scenario, at=failure.at)``.
        self.at: str = at
        #: What came of the run; None if it never ended.
        self.outcome: Outcome | None = outcome
        #: The texts of the ``At`` of all runs that failed: several with ``keep_going=True``.
        self.failed: tuple[str, ...] = failed or (at,)
