"""``make fuzz``: random clients, most of them nearly in order, against real servers. Seeds can be gone through in
pieces: what is done is kept in ``--out``, and not done again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from tests.fuzz.answers import Tally
from tests.fuzz.block import play_block, play_seeds
from tests.fuzz.script import keep, load
from tests.fuzz.scripts import drawn

CORPUS = Path(__file__).parent / "corpus"


def main() -> int:
    """The exit status: 0 where nothing was found, 1 where something was, 3 where the time was too short for all."""
    given = _arguments()
    if given.script:
        return _print(given, _replayed(given.script))
    first, last = map(int, given.seeds.split(":"))
    blocks = [range(at, min(at + given.block, last)) for at in range(first, last, given.block)]
    given.out.mkdir(parents=True, exist_ok=True)
    todo = [seeds for seeds in blocks if not _file(given.out, seeds).exists()]
    print(f"{last - first} seeds in {len(blocks)} blocks, {len(todo)} of them to be played", flush=True)
    _play(todo, given.out, given.jobs, time.monotonic() + 60 * given.minutes)
    done = [seeds for seeds in blocks if _file(given.out, seeds).exists()]
    status = _print(given, (_read(_file(given.out, seeds)) for seeds in done))
    if len(done) < len(blocks):
        print(f"{len(blocks) - len(done)} blocks are left: the same command goes on with them")
    return status or (3 if len(done) < len(blocks) else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seeds", default="0:100000", help="FIRST:LAST, the last one excluded")
    parser.add_argument("--block", type=int, default=1000, help="seeds after which the servers are looked at")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--minutes", type=float, default=90.0, help="after which no further block is begun")
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"))
    parser.add_argument("--keep", action="store_true", help=f"write the scripts that found something to {CORPUS.name}/")
    parser.add_argument("--script", type=Path, nargs="*", help="play these files instead")
    return parser.parse_args()


def _play(todo: Sequence[range], out: Path, jobs: int, until: float) -> None:
    """Blocks, so many at a time. One whose process dies is a finding of its own."""
    waiting = list(todo)
    while waiting and time.monotonic() < until:
        with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
            running: dict[Future[Tally], range] = {}
            try:
                while (waiting and time.monotonic() < until) or running:
                    while waiting and len(running) < jobs and time.monotonic() < until:
                        seeds = waiting.pop(0)
                        running[pool.submit(play_seeds, seeds)] = seeds
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        _write(out, running[future], future.result())
                        del running[future]
            except BrokenProcessPool:
                # Which of them it was, nobody knows: each is played alone, and the one that dies again is it.
                _alone(list(running.values()), out)


def _alone(blocks: Sequence[range], out: Path) -> None:
    for seeds in blocks:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            try:
                tally = pool.submit(play_seeds, seeds).result()
            except BrokenProcessPool:
                tally = Tally(findings=[(-1, f"the process died in seeds {seeds.start} to {seeds.stop - 1}")])
        _write(out, seeds, tally)


def _replayed(paths: Sequence[Path]) -> Iterator[Tally]:
    return (asyncio.run(play_block([load(path)])) for path in paths)


def _file(out: Path, seeds: range) -> Path:
    return out / f"{seeds.start}-{seeds.stop}.json"


def _write(out: Path, seeds: range, tally: Tally) -> None:
    told = {**vars(tally), "answers": [[*answer, count] for answer, count in sorted(tally.answers.items())]}
    _file(out, seeds).write_text(json.dumps(told, indent=1) + "\n")
    print(f"{seeds.start} to {seeds.stop - 1}: {len(tally.findings)} findings", flush=True)


def _read(path: Path) -> Tally:
    told = json.loads(path.read_text())
    answers = Counter({tuple(answer): count for *answer, count in told.pop("answers")})
    findings = [(seed, what) for seed, what in told.pop("findings")]
    return Tally(**told, answers=answers, findings=findings)


def _print(given: argparse.Namespace, tallies: Iterator[Tally]) -> int:
    """The sum, as Markdown; the exit status."""
    total = Tally()
    for tally in tallies:
        total.add(tally)
    print(f"\n{total.scripts} scripts, {total.requests} requests, {total.events} events, {total.resumed} resumed\n")
    print("| what ended or was refused | status | reason | times |\n|---|---|---|---|")
    for (what, code, reason), count in sorted(total.answers.items()):
        print(f"| {what} | {code} | {reason or '-'} | {count} |")
    print(f"\n{len(total.findings)} findings")
    for seed, what in total.findings[:50]:
        print(f"- seed {seed}: {what[:2000]}")
    if given.keep:
        for seed in sorted({seed for seed, _ in total.findings if seed >= 0}):
            keep(drawn(seed), CORPUS / f"{seed}.json")
    return 1 if total.findings else 0


if __name__ == "__main__":
    sys.exit(main())
