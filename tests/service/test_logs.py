"""What logs say of an exception, and what they leave out."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from service import logs

SECRET = "zanzibarquux"


def entry(formatter: logging.Formatter) -> str:
    """A record of an exception that quotes what was said, as are the one it came of and the one before that."""
    try:
        try:
            try:
                raise KeyError(SECRET)
            except KeyError as error:
                raise ValueError(f"{SECRET} is none") from error
        except ValueError:
            raise RuntimeError(SECRET)  # noqa: B904
    except RuntimeError as error:
        record = logging.makeLogRecord({"msg": "failed", "exc_info": (type(error), error, error.__traceback__)})
    return formatter.format(record)


@pytest.mark.parametrize("form", [logs.JsonFormatter, logs.TextFormatter])
def test_an_exception_is_told_by_its_type_and_place_and_not_by_what_it_says(form: Any) -> None:
    said = entry(form())
    assert SECRET not in said
    for name in ("KeyError", "ValueError", "RuntimeError", "test_logs.py"):
        assert name in said
    assert SECRET in entry(form(content=True))


def test_an_entry_is_one_line_of_json() -> None:
    said = entry(logs.JsonFormatter())
    assert "\n" not in said and json.loads(said)["event"] == "failed"


async def test_a_task_that_fails_unheard_is_told_in_the_same_way(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(logs.unhandled)

    async def fails() -> None:
        raise ValueError(SECRET)

    loop.call_soon(lambda: (_ for _ in ()).throw(ValueError(SECRET)))
    asyncio.create_task(fails())  # noqa: RUF006
    await asyncio.sleep(0.01)
    import gc

    gc.collect()
    records = [record for record in caplog.records if record.name == "asyncio"]
    assert len(records) == 2
    for record in records:
        assert record.exc_info and SECRET not in logs.JsonFormatter().format(record)
