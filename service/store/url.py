"""Whether a store can have such a URL: known when the configuration is read, and not when the models are loaded."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

from redis.asyncio import ConnectionPool

PARAMETERS = (
    *("client_name", "db", "health_check_interval", "lib_name", "lib_version", "max_connections", "password"),
    *("retry_on_timeout", "socket_connect_timeout", "socket_keepalive", "socket_read_size", "socket_timeout"),
    "username",
)
"""Of redis-py, which takes more: those are of no use as text, or give answers another form, which nobody here reads.
Those of TLS begin with ``TLS``.
"""
TLS = "ssl_"

FORM = (
    "must be redis://[[USER]:PASSWORD@]HOST[:PORT][/NUMBER], rediss:// for TLS, or unix://PATH, behind ? with those "
    f"parameters of redis-py that begin with {TLS}, or {', '.join(PARAMETERS)}; in a password all but letters and "
    "digits are percent-encoded"
)


def check(url: str) -> None:
    """Raises ValueError, with nothing of the URL in it: what is wrong with it may be the password."""
    try:
        parts = urlsplit(url)
        # Of a password that is not encoded redis-py takes the end for one of these, and drops what it cannot use.
        number = parts.path.removeprefix("/")
        whole = (
            all(name in PARAMETERS or name.startswith(TLS) for name in parse_qs(parts.query))
            and not parts.fragment
            and (
                parts.scheme == "unix"
                or (bool(parts.hostname) and (not number or number.isdecimal()) and "@" not in parts.query)
            )
        )
        if whole:
            ConnectionPool.from_url(url).make_connection()  # type: ignore[no-untyped-call]  # does not connect yet
    except (ValueError, TypeError):  # the second one for a parameter that there is not
        whole = False
    if not whole:
        raise ValueError(FORM)
