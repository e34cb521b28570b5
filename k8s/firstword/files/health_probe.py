"""Asks a Firstword service whether it takes calls: health_probe.py HOST:PORT NAME ...; the exit status says."""

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

address, *names = sys.argv[1:]
with grpc.insecure_channel(address) as channel:
    health = health_pb2_grpc.HealthStub(channel)
    for name in names:
        try:
            status = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=10, wait_for_ready=True).status
        except grpc.RpcError as error:
            sys.exit(f"{address} {name}: {error.code().name} {error.details()}")
        print(address, name, health_pb2.HealthCheckResponse.ServingStatus.Name(status))
        if status != health_pb2.HealthCheckResponse.SERVING:
            sys.exit(1)
