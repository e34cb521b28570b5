"""How much of a turn's text was heard, out of the ways in which a client can say it. Text in, code points out."""

from __future__ import annotations

from service.heard.extent import Extent, Hearing

__all__ = ["Extent", "Hearing"]
