"""Replies of a form: constraints made into grammars that say which tokens may come next.

The work is llguidance's (a lexer and an Earley parser over the tokenizer's trie). ``compiler`` and ``guided`` import
it, and ``library`` imports those with the first constraint.
"""
