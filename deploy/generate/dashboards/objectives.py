"""What is promised, how much of the error budget is left, and the turns that spent it."""

from __future__ import annotations

from collections.abc import Sequence

from deploy.generate.dashboards.queries import span_quantile
from deploy.generate.objectives import Objectives
from deploy.generate.panels import MODEL, RATE, Panel, figure, lines, traces
from deploy.generate.rules import BUDGET_LEFT, TARGET, error_ratio

TURN = 'resource.service.name = "firstword" && name =~ "chat .*"'
PART = 'resource.service.name = "firstword"'


def budgets(objectives: Objectives) -> Sequence[Panel]:
    burn = f"{error_ratio('1h')}{{{MODEL}}} / on (objective, namespace, service) group_left () (1 - {TARGET})"
    targets = "; ".join(f"{one.title}: {one.target:.1%}, {one.summary}" for one in objectives.objective)
    return (
        figure(
            f"Budget left of {objectives.period_days} days",
            f"1 is untouched, 0 is spent. {targets}.",
            "percentunit",
            f"{BUDGET_LEFT}{{{MODEL}}}",
            "{{objective}} {{gen_ai_request_model}}",
        ),
        lines(
            "Burn rate, last hour",
            "How many times faster than allowed the budget is spent. 1 spends it in the period; 14.4 wakes somebody.",
            "none",
            {"{{objective}} {{gen_ai_request_model}}": burn},
            width=12,
        ),
        lines(
            "Bad events, last 5 minutes",
            "Share of the events that were outside their objective.",
            "percentunit",
            {"{{objective}} {{gen_ai_request_model}}": f"{error_ratio('5m')}{{{MODEL}}}"},
            width=12,
        ),
    )


def slow(objectives: Objectives) -> Sequence[Panel]:
    late = {one.name: f"{one.within_s * 1e3:.0f}ms" for one in objectives.objective if one.histogram}
    by_part = "hand over|queue|prefill|decode"
    return (
        lines(
            "First token, 95th percentile by part",
            "hand over: from the committed turn to the engine; queue: until its first step; prefill: until the token.",
            "s",
            {"{{span_name}}": span_quantile(0.95, "hand over|queue|prefill|first token", ahead=False)},
            exemplars=True,
            width=12,
        ),
        lines(
            "Mean time of a turn by part",
            "Where a turn's time goes, tools included.",
            "s",
            {
                "{{span_name}}": "sum by (span_name) (rate(traces_span_metrics_duration_seconds_sum"
                f'{{service_name="firstword", span_name=~"{by_part}|execute_tool .*"}}[{RATE}]))'
                " / ignoring (span_name) group_left () sum (rate(traces_span_metrics_duration_seconds_count"
                f'{{service_name="firstword", span_name=~"chat .*"}}[{RATE}]))'
            },
            stacked=True,
            width=12,
        ),
        traces(
            "Late first tokens",
            f"Turns whose first token took more than {late['first_token']}.",
            f'{{ {PART} && name = "first token" && duration > {late["first_token"]} }}',
        ),
        traces(
            "Late first clauses",
            f"Turns whose first clause took more than {late['first_clause']}.",
            f'{{ {PART} && name = "first clause" && duration > {late["first_clause"]} }}',
        ),
        traces(
            "Waited for others",
            "Generations that stood in the queue for more than 20 ms.",
            f'{{ {PART} && name = "queue" && duration > 20ms }}',
            spans=True,
        ),
        traces(
            "Prefilled while the caller waited",
            "Prompts of which more than 64 tokens had to be computed behind the committed turn.",
            f'{{ {PART} && name = "prefill" && span.firstword.ahead = false && span.firstword.prefill.tokens > 64 }}',
            spans=True,
        ),
        traces("Failed turns", "Turns that ended with an error.", f"{{ {TURN} && status = error }}"),
        traces(
            "Interrupted late",
            f"Replies that went on for more than {late['interruption']} after they had been spoken over.",
            f'{{ {PART} && name = "interruption" && duration > {late["interruption"]} }}',
        ),
    )
