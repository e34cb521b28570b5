"""How a stream without the right credentials is told so: nobody learns which part of a secret was wrong.

cause, everywhere: why, for the operator's log; holds no part of a secret and is never sent.
"""

from __future__ import annotations

from service.problems import Problem, Reason


def missing() -> Problem:
    """There are no credentials."""
    return Problem(Reason.NO_CREDENTIALS, "credentials are wanted: authorization: Bearer ...", cause="none given")


def refused(cause: str) -> Problem:
    """They are not valid."""
    return Problem(Reason.INVALID_CREDENTIALS, "the credentials are not valid", cause=cause)


def expired(cause: str) -> Problem:
    """They were valid. Only for those that are known to be authentic."""
    return Problem(Reason.CREDENTIALS_EXPIRED, "the credentials have expired", cause=cause)


def no_tenant(cause: str) -> Problem:
    """They are authentic, and name no tenant."""
    return Problem(Reason.NO_TENANT, "the credentials name no tenant", cause=cause)
