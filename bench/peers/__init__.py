"""Other decoders on the same weights, timed as we time ourselves: transformers, and llama.cpp where it is installed."""

from bench.peers.hugging_face import TransformersPeer
from bench.peers.llama_cpp import LlamaCppPeer, load_llama_cpp
from bench.peers.reply import Reply

__all__ = ["LlamaCppPeer", "Reply", "TransformersPeer", "load_llama_cpp"]
