"""Import: ``import sluicegate`` in a fresh interpreter, everything compiled before."""

import sys

from benchmarks._measure import Numbers, importing, serve
from benchmarks._model import Metric, Work


WORKS = (
    Work(
        id="import",
        name="importing",
        title="import",
        size="",
        sizes=(1,),
        quick=(1,),
        judged=(1,),
        systems=("sluicegate-trio", "trio"),
        metrics=(Metric("ms", "ms"),),
    ),
)


def with_sluicegate(lib) -> Numbers:
    """``import sluicegate``, which does not import AnyIO."""
    return importing("sluicegate")


def on_trio() -> Numbers:
    """``import trio``."""
    return importing("trio")


if __name__ == "__main__":
    serve(globals(), sys.argv[1:])
