"""What must outlive a call's process: one small protocol, and the store that forgets."""

from service.store.memory import MemoryStore
from service.store.protocol import LogEntry, SessionStore

__all__ = ["LogEntry", "MemoryStore", "SessionStore"]
