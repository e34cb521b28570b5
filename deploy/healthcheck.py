"""Asks the service in this container whether it takes calls: exit status 0 if it does.

In plain text: a service that speaks TLS needs a port for health, FIRSTWORD_SERVER__HEALTH_PORT.
"""

from __future__ import annotations

import os
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc


def main() -> int:
    ports = (os.environ.get(f"FIRSTWORD_SERVER__{name}") for name in ("HEALTH_PORT", "PORT"))
    port = next(filter(None, ports), "50051")
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=2.0)
        except grpc.RpcError:
            return 1
    return 0 if answer.status == health_pb2.HealthCheckResponse.SERVING else 1


if __name__ == "__main__":
    sys.exit(main())
