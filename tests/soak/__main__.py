"""``make soak``: what the service promises of calls, held against everything that can go wrong beside the phone."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from pathlib import Path

from tests.soak.checker import report
from tests.soak.faults import Plan
from tests.soak.run import soak


def main() -> int:
    """The exit status: 0 where nothing was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--callers", type=int, default=4, help="calls at a time")
    parser.add_argument("--scripts", type=int, default=8, help="different calls")
    parser.add_argument("--kills", type=int, default=10, help="of servers, half of them in a reply")
    parser.add_argument("--restarts", type=int, default=6, help="of the store")
    parser.add_argument("--freezes", type=int, default=8, help="of servers, past their lease")
    parser.add_argument("--both", type=int, default=3, help="the store down, and then a server killed")
    parser.add_argument("--lines", type=int, default=60, help="cut, or silent")
    parser.add_argument("--local", action="store_true", help="servers in this process: no signals, and no waiting")
    parser.add_argument("--pace", type=float, default=1.0, help="above 1 on a busy machine: times are so much longer")
    parser.add_argument("--out", type=Path, help="write the table there too")
    given = parser.parse_args()
    plan = Plan(given.kills, given.restarts, given.freezes, given.both, given.lines)
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - began:7.1f} s  {line}", flush=True)

    say(f"seed {given.seed}, {plan}")
    verdict, trouble = asyncio.run(
        soak(
            plan,
            seed=given.seed,
            callers=given.callers,
            scripts=given.scripts,
            local=given.local,
            pace=given.pace,
            say=say,
        )
    )
    page = report(verdict, dict(sorted(trouble.done.items())), time.monotonic() - began, given.seed)
    print(page)
    if given.out:
        given.out.write_text(f"# The soak\n\n{page}\n")
    return 1 if verdict.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
