"""What a client keeps of a call, so that any server can go on with it: where it stands, and what may be nowhere else.

Knows no stream: what is sent and received goes through here, on whichever stream it goes.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Any

import grpc

from firstword.errors import CallFailed
from firstword.v1 import call_service_pb2 as call_pb
from firstword.v1 import client_events_pb2 as client_pb
from firstword.v1 import resume_pb2 as resume_pb

MAX_RECORDS = 8192
"""Records kept for a service whose store does not keep up; the oldest go first."""

RECORDS_LOST = "RECORDS_LOST"
"""Reason of a ``CallFailed`` where a server went on with less of the call than it had promised to keep."""

_HYPOTHESES = ("partial", "eager_end_of_turn")
_COMMITS = ("final", "respond", "say")


class Books:
    """seq: highest ``CallResponse.seq`` received. generation: the highest one seen. records: by ``seq``, those that the
    service's store does not hold yet. token: what the call can be resumed with; empty: it cannot.
    """

    def __init__(self) -> None:
        self.seq = 0
        self.generation = 0
        self.records: OrderedDict[int, bytes] = OrderedDict()
        self._last_record = 0
        self.token = b""
        self._client_seq = 0
        self._forgotten = 0
        self._sent: deque[call_pb.CallRequest] = deque()
        self._hypothesis: call_pb.CallRequest | None = None
        self._asked_in_vain = 0

    def number(self, **event: Any) -> call_pb.CallRequest:
        """The request of a client event, which is kept until it is in a record."""
        self._client_seq += 1
        request = call_pb.CallRequest(client_seq=self._client_seq, **event)
        (kind,) = event
        if kind in _HYPOTHESES:
            if self._sent and self._sent[-1].WhichOneof("event") in _HYPOTHESES:
                self._sent.pop()  # replaced by this one
            self._hypothesis = request
        elif kind in _COMMITS:
            self._hypothesis = None
        if kind != "open":
            self._sent.append(request)
        return request

    def take(self, response: call_pb.CallResponse) -> bool:
        """Enter a server event; whether it is news. A server that lost the call, and one that says something twice, has
        none.
        """
        if response.generation < self.generation or response.seq <= self.seq:
            return False
        self.generation, self.seq = response.generation, response.seq
        self._renew(response)
        if response.record:
            self.records[response.seq] = response.record
            self._last_record = response.seq
            # What was sent before the newest that the server had is wholly in the record; the newest may not be.
            while self._sent and self._sent[0].client_seq < response.client_seq:
                self._forgotten = self._sent.popleft().client_seq
        safe = max(response.durable_seq, response.whole_seq - 1)
        while self.records and (next(iter(self.records)) <= safe or len(self.records) > MAX_RECORDS):
            self.records.popitem(last=False)
        return True

    def resume(self, *, take_over: bool) -> call_pb.CallRequest:
        """What asks a server to go on with the call."""
        resume = resume_pb.Resume(
            resume_token=self.token,
            last_seq=self.seq,
            last_generation=self.generation + self._asked_in_vain,
            records=self.records.values(),
            take_over=take_over,
            last_record_seq=self._last_record,
        )
        self._asked_in_vain += 1
        return call_pb.CallRequest(open=client_pb.Open(resume=resume))

    def refused(self) -> None:
        """The server that was asked last has said that it does not go on with the call."""
        self._asked_in_vain -= 1

    def superseded(self, generation: int) -> None:
        """The call has this generation already: the next request must be above it."""
        self._asked_in_vain = max(self._asked_in_vain, generation - self.generation)

    def resumed(self, response: call_pb.CallResponse) -> list[call_pb.CallRequest]:
        """Enter the ``opened`` of a resumed stream; returns what has to be sent again. Raises CallFailed where the
        server knows less than what was thought to be safe.
        """
        if response.client_seq < self._forgotten:
            raise CallFailed(grpc.StatusCode.DATA_LOSS, RECORDS_LOST, "the service has lost a part of the call")
        self.generation, self._asked_in_vain = max(self.generation, response.generation), 0
        self._renew(response)
        again = [request for request in self._sent if request.client_seq > response.client_seq]
        if self._hypothesis is not None and self._hypothesis not in again:
            supposed = call_pb.CallRequest()
            supposed.CopyFrom(self._hypothesis)
            supposed.client_seq = 0  # not resent: the server may have had it, and may not have it any more
            again.append(supposed)
        return again

    def _renew(self, response: call_pb.CallResponse) -> None:
        """Keep the newest token."""
        match response.WhichOneof("event"):
            case "opened":
                told = response.opened.resume_token
            case "notice" if response.notice.WhichOneof("kind") == "resume_token":
                told = response.notice.resume_token
            case "notice" if response.notice.WhichOneof("kind") == "draining":
                told = response.notice.draining.resume_token
            case _:
                return
        self.token = told.token or self.token
