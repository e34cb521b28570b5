"""The RPC side: asyncio, gRPC, telemetry. Knows calls, turns and items; knows no tensor."""

__version__ = "0.1.0"
