"""Whether a store can have such a URL: known when the configuration is read, and not when the models are loaded."""

from __future__ import annotations

from urllib.parse import urlsplit

from redis.asyncio import ConnectionPool

FORM = (
    "must be redis://[[USER]:PASSWORD@]HOST[:PORT][/NUMBER], rediss:// for TLS, or unix://PATH, with parameters of "
    "redis-py behind ?; in a password all but letters and digits are percent-encoded"
)


def check(url: str) -> None:
    """Raises ValueError, with nothing of the URL in it: what is wrong with it may be the password."""
    try:
        parts = urlsplit(url)
        ConnectionPool.from_url(url).make_connection()  # type: ignore[no-untyped-call]  # does not connect yet
        # Of a password that is not encoded redis-py takes the end for one of these, and drops what it cannot use.
        number = parts.path.removeprefix("/")
        whole = not parts.fragment and (
            parts.scheme == "unix"
            or (bool(parts.hostname) and (not number or number.isdecimal()) and "@" not in parts.query)
        )
    except (ValueError, TypeError):  # the second one for a parameter that there is not
        whole = False
    if not whole:
        raise ValueError(FORM)
