"""Real signals: random programs under ``run(main)``, interrupted by a signal at a random moment.

``python -m tests.random_programs.signals --seeds 0-99 --backend trio``. Whatever was running then
has unwound when ``run`` is left, clean-up behind shields included, and what leaves is one exception.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import random
import signal
import sys
import threading
import time
import traceback
from typing import Any

import anyio
import attrs

import sluicegate
from tests.random_programs.building import Builder, Ledger
from tests.random_programs.checking import Plan, Watched
from tests.random_programs.programs import make


#: How much of a second a program's second is.
SCALE = 0.004
#: Seconds after which a program hangs.
LONGEST = 60

SIGNALS = (signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@attrs.define
class Sender:
    """Sends a signal to this process after a while, unless the program is over by then."""

    number: int
    delay: float
    is_over: bool = False
    was_sent: bool = False
    lock: threading.Lock = attrs.Factory(threading.Lock)

    def send(self) -> None:
        """Wait and send, in a thread of its own."""
        time.sleep(self.delay)
        with self.lock:
            if not self.is_over:
                self.was_sent = True
                os.kill(os.getpid(), self.number)

    def end(self) -> None:
        """Send nothing any more."""
        with self.lock:
            self.is_over = True


def interrupt(seed: int, backend: str) -> list[str]:
    """Run the program of a seed and interrupt it; return the deviations."""
    chance = random.Random(f"signal {seed}")
    program = make(seed)
    ledger = Ledger(lambda seconds: seconds * SCALE)
    sender = Sender(
        chance.choice(SIGNALS), chance.choice((0.0005, 0.002, 0.005, 0.02)) * chance.random()
    )
    owner: Any = chance.choice(("block", "nursery"))
    plan = Plan("none", 0, "step", owner, None, 0, 0.0)
    watched: list[Watched] = []

    async def main() -> None:
        builder = Builder("s", program.stages, anyio.CapacityLimiter(2), SCALE)
        workflow = builder.kind()()
        for each in (workflow, *builder.children):
            each.ledger = ledger  # type: ignore[attr-defined]
        watched.append(Watched(workflow.run(value=program.value, path="r"), ledger, plan, SCALE))
        watched[0].snapshots = False
        thread.start()
        await watched[0].run()
        sender.end()

    thread = threading.Thread(target=sender.send)
    problems = []
    left: BaseException | None = None
    options: dict[str, Any] = {"use_uvloop": True} if backend == "uvloop" else {}
    try:
        sluicegate.run(
            main, backend="trio" if backend == "trio" else "asyncio", backend_options=options
        )
    except BaseException as error:
        left = error
    sender.end()
    if thread.ident is not None:
        thread.join()
    if sender.was_sent:
        wanted = KeyboardInterrupt if sender.number == signal.SIGINT else SystemExit
        if type(left) is not wanted:
            problems.append(f"{signal.Signals(sender.number).name}: {left!r} left")
        elif isinstance(left, SystemExit) and left.code != 128 + sender.number:
            problems.append(f"exit status {left.code}, expected {128 + sender.number}")
    elif left is not None:
        problems.append(f"nothing was sent, and {left!r} left")
    if ledger.running:
        problems.append(f"still running: {dict(ledger.running)}")
    if ledger.cleaning != ledger.cleaned:
        problems.append(f"{ledger.cleaning - ledger.cleaned} clean-ups were broken off")
    for each in watched:
        problems += each.deviations
        if each.terminal is None and not sender.was_sent:
            problems.append("the stream has no end")
    return [*problems, *ledger.deviations]


def main() -> int:
    """Run the programs; return 1 if one deviates."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.random_programs.signals", description=__doc__
    )
    parser.add_argument("--seeds", default="0-99", help="one, or first-last")
    parser.add_argument("--backend", choices=("trio", "asyncio", "uvloop"), default="trio")
    arguments = parser.parse_args()
    first, _, last = arguments.seeds.partition("-")
    for number in SIGNALS:  # as a shell starts a program in the foreground
        default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, default)
    bad = total = 0
    for seed in range(int(first), int(last or first) + 1):
        faulthandler.dump_traceback_later(LONGEST, exit=True)
        total += 1
        try:
            problems = interrupt(seed, arguments.backend)
        except BaseException:
            problems = [traceback.format_exc()]
        bad += bool(problems)
        for problem in problems:
            print(f"{arguments.backend} {seed}: {problem}", flush=True)
    faulthandler.cancel_dump_traceback_later()
    print(f"{total} signals, {bad} deviate")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
