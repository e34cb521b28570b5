"""``python -m service.security.new_key TENANT``: makes an API key, and what the service is to know of it."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime, timedelta

from service.security.api_keys import KeyEntry, new_key


def entry_text(entry: KeyEntry) -> str:
    """The entry as it stands in the keys' file."""
    lines = ["[[key]]", f'id = "{entry.id}"', f"tenant = {json.dumps(entry.tenant)}", f'sha256 = "{entry.sha256}"']
    if entry.expires is not None:
        lines.append(f"expires = {entry.expires.isoformat()}")
    return "\n".join(lines) + "\n"


def main() -> int:
    """The exit status. The entry goes to stdout, so that it can be appended to the file; the key, which is shown this
    once, to stderr.
    """
    parser = argparse.ArgumentParser(prog="python -m service.security.new_key", description=__doc__)
    parser.add_argument("tenant", metavar="TENANT", help="whose key it is")
    parser.add_argument("--days", type=int, help="how long it can be used (default: for ever)")
    given = parser.parse_args()
    until = None if given.days is None else datetime.now(UTC).replace(microsecond=0) + timedelta(days=given.days)
    try:
        key, entry = new_key(given.tenant, until)
    except ValueError:
        parser.error("TENANT is 1 to 128 characters of printable ASCII without blanks")
    print(entry_text(entry), end="")
    print(f"\nthe key, for the client, shown this once:\n{key}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
