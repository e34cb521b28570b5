"""Who may speak to the service, and over what: TLS, API keys, tokens, and the tenant that each stream is of.

``guard`` asks for credentials before any method runs; ``authenticator`` knows who they are of; ``api_keys``, ``tokens``
and ``certificates`` know one kind each; ``tls`` and ``files`` keep up with files that change. SECURITY.md has the
threat model.
"""
