"""What can go wrong in the engine, by name. The service maps each to a gRPC status."""

from __future__ import annotations


class EngineError(Exception):
    """Base of every error that a caller of the engine can handle."""


class ModelError(EngineError):
    """A model directory cannot be served: unsupported architecture, missing shard, misfitting tokenizer or head."""


class OutOfPages(EngineError):
    """The page pool has no room. Nothing was changed: close, truncate or wait, then try again."""


class ContextFull(EngineError):
    """The session would grow past the longest context that the model or its limits allow."""


class ReplyFailed(EngineError):
    """What constrains or reads a reply raised; the message says what."""


class UnknownSession(EngineError):
    """No session of that name is open."""


class InvalidSampling(EngineError):
    """A sampling parameter is outside its range; the message names it."""


class InvalidConstraint(EngineError):
    """A reply cannot be held to this form; the message says what is wrong with it."""
