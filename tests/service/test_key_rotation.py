"""``resume.keys`` rotate while calls go on: two servers of one store have different lists in each roll-out."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
import redis

from tests.firstword.receptionist import LINES, SYSTEM
from tests.service.pods import LocalPod, client_of, local_pods
from tests.service.store.valkey import Valkey, valkey
from tests.service.waiting import until

OLD, NEW, NAMES = "the old secret of the tests", "the new secret of the tests", "a secret of names alone"
STEPS = tuple(pairwise((OLD, f"{OLD},{NEW}", f"{NEW},{OLD}", NEW)))


@pytest.fixture
def store() -> Iterator[Valkey]:
    with valkey(persistent=True) as running:
        yield running


async def goes_there_and_back(store: Valkey, there: dict[str, str], back: dict[str, str]) -> None:
    """A call goes from a server to one with other keys, and back. Behind a gateway,
    so that nobody sends it to the server that is warm for it.
    """
    sections = [{"resume": {"keys": has["keys"]}, "store": {"name_key": has.get("name", "")}} for has in (there, back)]
    options = {"lease_s": 0.6, "advertise": ""}
    async with (
        local_pods(1, store.url, sections=sections[0], **options) as (one,),
        local_pods(1, store.url, sections=sections[1], **options) as (other,),
        client_of([one]) as client,
        client.call(system=SYSTEM, caller_key="anna") as call,
    ):
        ports = {pod: pod.server.port for pod in (one, other)}  # type: ignore[union-attr]
        said = [(await call.ask(LINES[0])).text]
        for before, after, line in ((one, other, LINES[1]), (other, one, LINES[2])):
            await until(lambda: not before.store.writer.pending)  # type: ignore[union-attr] # noqa: B023
            one.lines.lead_to(ports[after])
            one.lines.cut_all()
            said.append((await call.ask(line)).text)
            await until(lambda: not before.sessions)  # noqa: B023
            assert call.opened.session_id in after.sessions
        await one_is_stored_and_forgotten(store, one, other)
    assert all(said) and call.resumes == 2


async def one_is_stored_and_forgotten(store: Valkey, holder: LocalPod, other: LocalPod) -> None:
    """Whoever is asked to forget finds what both have written."""
    await until(lambda: not holder.store.writer.pending)  # type: ignore[union-attr]
    with redis.Redis.from_url(store.url) as client:
        assert len(client.keys("*:lease")) == len(client.keys("*:log")) == 1
        assert await other.store.forget("", "anna") == 1
        assert not client.keys("*:log") and not client.keys("firstword:caller:*")


@pytest.mark.parametrize(("before", "after"), STEPS)
@pytest.mark.parametrize("rolled_back", [False, True])
async def test_a_call_lives_through_each_step(store: Valkey, before: str, after: str, rolled_back: bool) -> None:
    there, back = {"keys": before, "name": NAMES}, {"keys": after, "name": NAMES}
    await goes_there_and_back(store, *((back, there) if rolled_back else (there, back)))


async def test_a_key_of_names_that_is_the_last_that_signs_changes_none(store: Valkey) -> None:
    """So the key of names can be set while calls go on."""
    await goes_there_and_back(store, {"keys": OLD}, {"keys": OLD, "name": OLD})
