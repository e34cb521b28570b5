"""Makes recording rules, alerts and dashboards of ``deploy/objectives.toml``: ``python -m deploy.generate``."""
