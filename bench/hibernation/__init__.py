"""What it costs to have gone cold, and what calls leave behind.

    python -m bench.hibernation [--parts wakes calls memory] [--rounds N] [--calls N] [--resume]

wakes   First tokens of calls that were moved out of the page pool, each beside one of a call that was not: the same
        prompt, in the same round, in an order that alternates, the CPU's caches cleared before either. Announced:
        ``Wake`` came while the caller began to speak, and what it asks for was done before the turn was committed.
calls   Over gRPC, more than ten times as many calls open as the page pool holds, each with a turn now and then, several
        at a time; then each of them alone, on a server with room for all: errors, and turns that went otherwise.
memory  Calls over gRPC on such a pool that come and go, and the memory of the service's processes on the way.
"""
