"""Replies of a form: constraints made into grammars that say which tokens may come next.

The work is llguidance's (a lexer and an Earley parser over the tokenizer's trie); it is imported here and nowhere else,
and only when a reply has a constraint.
"""
