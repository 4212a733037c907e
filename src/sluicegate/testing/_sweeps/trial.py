"""One run of a scenario: where it is disturbed, and its outcome."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, Literal, final, get_args

import attrs


if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from sluicegate.testing._sweeps.crash import Crash


#: How a scenario is disturbed.
Kind = Literal["scope", "native", "timeout", "deadline", "interrupt", "error", "crash"]

#: The moment: a task has just blocked, or is scheduled to resume and has not resumed yet.
Mode = Literal["park", "wake"]

#: The leftovers that ``allow=`` can permit.
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
#: No cancellation, and so not among :data:`KINDS`: both event loops have it.
CRASH: Final = "crash"
MODES: Final[tuple[Mode, ...]] = get_args(Mode)
LEFTOVERS: Final[tuple[Leftover, ...]] = get_args(Leftover)

_TOKEN = re.compile(
    r"(?P<backend>trio|asyncio)(?::(?P<kind>[a-z]+):(?P<position>\d+)(?:\+(?P<again>\d+))?)?"
    r"(?:@(?P<seed>\d+))?"
)


class InjectedError(Exception):
    """Raised in place of an await by ``sweep(kinds="error")``, unless ``error=`` names another."""


@attrs.frozen
class At:
    """Identifies one run of a scenario: where and how it was disturbed. Its text replays the run.

    The text is ``backend:kind:position+again@seed``; ``+again`` is omitted if there is no second
    cancellation, ``@seed`` if the seed is 0. For an undisturbed run it is ``backend@seed``.
    """

    backend: str
    """The event loop: ``"trio"`` or ``"asyncio"``."""
    kind: Kind | None = None
    """How the run was disturbed; None for an undisturbed run."""
    position: int = 0
    """The moment of the disturbance, counted from 1; 0 if there was none."""
    again: int = 0
    """How many moments later it was cancelled a second time; 0 if it was not."""
    seed: int = 0
    """The seed of the schedule."""

    def __str__(self) -> str:
        text = self.backend
        if self.kind is not None:
            text += f":{self.kind}:{self.position}" + (f"+{self.again}" if self.again else "")
        return text + (f"@{self.seed}" if self.seed else "")

    @classmethod
    def parse(cls, text: str) -> At:
        """Parse the text of an ``At``.

        Raises:
            ValueError: The text does not name a run.
        """
        match = _TOKEN.fullmatch(text)
        if match is None or (
            match["kind"] is not None and match["kind"] not in (*KINDS[match["backend"]], CRASH)
        ):
            msg = (
                f"at={text!r} does not name a run of a scenario; expected a position, at=7, or what a "
                "failure printed: at='trio:scope:7', 'asyncio:native:7+2@5', 'trio@5' (kinds: "
                f"{', '.join(KINDS['asyncio'])}, {CRASH}; only asyncio has 'native' and 'timeout')"
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
    """One run of a scenario; passed to the scenario if it takes an argument."""

    __slots__ = ("_open_target", "backend", "crash", "state")

    def __init__(
        self,
        backend: str,
        open_target: Callable[[str], AbstractContextManager[None]],
        crash: Crash,
    ) -> None:
        #: The event loop: ``"trio"`` or ``"asyncio"``.
        self.backend: str = backend
        #: Attributes for the check to inspect: ``trial.state.sent = [1, 2]``.
        self.state: SimpleNamespace = SimpleNamespace()
        #: The data that survives a crash: the ledger of external effects and the store of durable runs.
        self.crash: Crash = crash
        self._open_target = open_target

    def target(self, name: str) -> AbstractContextManager[None]:
        """Name a block that ``sweep(target=name)`` cancels instead of the whole scenario.

        A cancel scope ends the block only. A native cancellation, an interrupt, an error or an
        ``asyncio.timeout`` raises in the block, and the exception propagates outward.

        Args:
            name: The name; several blocks may share it.

        Returns:
            A context manager for the block.
        """
        return self._open_target(name)


@attrs.frozen(kw_only=True)
class Outcome:
    """The outcome of one run of a scenario; passed to its check."""

    at: At
    """Which run this was; ``str(outcome.at)`` replays it."""
    struck: bool
    """Whether the scenario was disturbed. False for undisturbed runs, and if it ended first."""
    where: str
    """A description of the task and place of the disturbance; empty if there was none."""
    value: Any
    """The scenario's return value."""
    error: BaseException | None
    """The exception that left the scenario, unless it was the cancellation itself."""
    cancelled: bool
    """Whether the cancellation (or interrupt) left the scenario, as it should."""
    state: Any
    """The trial's ``state``, as the scenario left it."""
    seconds: float
    """The virtual seconds from the disturbance to the end; without one, from the beginning."""

    ledger: tuple[Any, ...] = ()
    """The entries of ``trial.crash.ledger``, of all lives."""
    lives: int = 1
    """How many lives the scenario had: one more than it was cut off."""

    @property
    def completed(self) -> bool:
        """Whether the scenario returned."""
        return self.error is None and not self.cancelled


class ScenarioFailure(AssertionError):  # noqa: N818 - pytest shows it as a failure
    """Raised when a run of a scenario breaks an invariant.

    The text names the problem, the place of the disturbance and the tasks that were alive, and has
    the call that replays this run alone.
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
        #: The problem; tasks that were left running have a line each.
        self.problem: str = problem
        #: The text of the run's ``At``: ``sweep(scenario, at=failure.at)``.
        self.at: str = at
        #: The outcome of the run; None if it never ended.
        self.outcome: Outcome | None = outcome
        #: The texts of the ``At`` of all runs that failed: several with ``keep_going=True``.
        self.failed: tuple[str, ...] = failed or (at,)
