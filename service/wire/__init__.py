"""Between the protobuf messages of ``firstword.v1`` and the service's own values; checks what comes in."""

from service.wire.incoming import client_event
from service.wire.outgoing import response

__all__ = ["client_event", "response"]
