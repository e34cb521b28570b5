"""A conversation with a server, in the terminal. Only ``app``, ``view`` and ``picture`` need textual, and only they
import it.
"""
