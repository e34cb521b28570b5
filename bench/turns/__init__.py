"""Recorded calls over gRPC: what hearing and answering ahead of the final is worth."""
