"""The dashboards: what is promised, what callers feel, what it costs."""

from __future__ import annotations

from typing import Any

from deploy.generate.dashboards import calls, capacity, objectives, security, store
from deploy.generate.objectives import Objectives
from deploy.generate.panels import board


def all_of(promised: Objectives) -> dict[str, dict[str, Any]]:
    """Every dashboard, by the name of its file."""
    return {
        "objectives": board(
            "firstword-objectives",
            "Firstword: objectives",
            "What is promised, how much of the error budget is left, and the turns that spent it.",
            {
                "Error budgets": objectives.budgets(promised),
                "Slow turns, and where their milliseconds went (from traces)": objectives.slow(promised),
            },
        ),
        "calls": board(
            "firstword-calls",
            "Firstword: calls",
            "What callers feel: first token, first clause, pace, interruptions, tools.",
            {
                "First token and first clause": calls.first(),
                "How turns go": calls.turns(),
                "Tools and interruptions": calls.tools(),
            },
        ),
        "capacity": board(
            "firstword-capacity",
            "Firstword: drafting and capacity",
            "Where tokens come from, what a forward yields, and how much room there is.",
            {
                "Drafting": capacity.drafting(),
                "Prompts and work ahead": capacity.prompts(),
                "Capacity": capacity.capacity(),
            },
        ),
        "store": board(
            "firstword-store",
            "Firstword: store and takeovers",
            "Whether calls would outlive their server, and how they did.",
            {"The store": store.store(), "Takeovers": store.takeovers()},
        ),
        "security": board(
            "firstword-security",
            "Firstword: security",
            "Who is let in, and what they are let in by.",
            {"Security": security.security()},
        ),
    }
