"""The contract as Python: stubs that ``scripts/gen_proto.py`` makes from ``proto/firstword/v1/``. Not written by hand."""
