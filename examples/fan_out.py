"""A fan-out over real work: hash every file of a tree in worker threads, and report duplicates.

    python examples/fan_out.py [DIRECTORY]

One step lists the files and returns a list: each item is processed independently, eight at a time. The
join runs once, after the whole fan-out has finished. A file that cannot be read ends its branch without
an event, and the join does not wait for it.
"""

import argparse
import hashlib
from collections import defaultdict
from pathlib import Path

import trio

import sluicegate
from sluicegate import Context, Event, StartEvent, StopEvent, Workflow, step


class File(Event):
    path: Path
    size: int
    number: int
    of: int


class Hashed(Event):
    path: Path
    size: int
    digest: str


class Progress(Event):
    file: File


class Unreadable(Event):
    path: Path
    reason: str


class Tree(StartEvent):
    root: Path


class Report(StopEvent):
    files: int
    size: int
    duplicates: list[list[Path]]


def list_files(root: Path) -> list[File]:
    paths = sorted(p for p in root.rglob("*") if p.is_file() and not p.is_symlink())
    return [
        File(path=path, size=path.stat().st_size, number=number, of=len(paths))
        for number, path in enumerate(paths, 1)
    ]


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Duplicates(Workflow[Report]):
    @step
    async def walk(self, ev: Tree) -> list[File]:
        return await trio.to_thread.run_sync(list_files, ev.root)

    @step(num_workers=8)
    async def hash(self, ctx: Context, ev: File) -> Hashed | None:
        try:
            digest = await trio.to_thread.run_sync(digest_of, ev.path)
        except OSError as error:
            ctx.write_event_to_stream(Unreadable(path=ev.path, reason=str(error)))
            return None
        await ctx.stream.send(Progress(file=ev))
        return Hashed(path=ev.path, size=ev.size, digest=digest)

    @step
    async def compare(self, evs: list[Hashed]) -> Report:
        same: defaultdict[str, list[Path]] = defaultdict(list)
        for ev in evs:
            same[ev.digest].append(ev.path)
        return Report(
            files=len(evs),
            size=sum(ev.size for ev in evs),
            duplicates=sorted(sorted(paths) for paths in same.values() if len(paths) > 1),
        )


async def main(root: Path) -> None:
    async with Duplicates(timeout=600).run(root=root) as handler:
        async for event in handler.stream_events():
            match event:
                case Progress(file=file):
                    print(f"{file.number}/{file.of} {file.path}")
                case Unreadable(path=path, reason=reason):
                    print(f"cannot read {path}: {reason}")
        report = await handler
    print(f"{report.files} files, {report.size:,} bytes, {len(report.duplicates)} duplicates")
    for paths in report.duplicates:
        print("  the same:", *paths, sep="\n    ")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", nargs="?", type=Path, default=Path(__file__).parent)
    sluicegate.run(main, parser.parse_args().directory)
