"""``python -m service.store.forget KEY``: deletes what the store holds of a caller."""

from __future__ import annotations

import argparse
import asyncio
import sys

from service.config import ConfigError, ServiceConfig, load_config
from service.store.opening import store_of
from service.store.protocol import StoreUnavailable


def main() -> int:
    """The exit status: 0 when it is deleted, 1 where the store does not answer, 2 where there is none."""
    parser = argparse.ArgumentParser(prog="python -m service.store.forget", description=__doc__)
    parser.add_argument("caller_key", metavar="KEY", help="the caller_key that calls were opened with")
    parser.add_argument("--tenant", default="", help="whose calls they are")
    given = parser.parse_args()
    try:
        config = load_config()
    except ConfigError as error:
        print(f"configuration: {error}", file=sys.stderr)
        return 2
    if not config.store.url:
        print("configuration: without store.url nothing is stored", file=sys.stderr)
        return 2
    try:
        calls = asyncio.run(_forgotten(config, given.tenant, given.caller_key))
    except StoreUnavailable as error:
        print(f"the store does not answer: {error}", file=sys.stderr)
        return 1
    print(f"{calls} calls deleted")
    return 0


async def _forgotten(config: ServiceConfig, tenant: str, caller: str) -> int:
    store = store_of(config, "", lambda: (0, 0), dict)
    try:
        return await store.forget(tenant, caller)
    finally:
        await store.stop(0.0)


if __name__ == "__main__":
    sys.exit(main())
