"""The rules as Prometheus itself evaluates them: fast and slow burns, by ``promtool test rules``.

promtool comes with Prometheus and with no wheel: without it these tests are skipped. What an alert should do is worked
out here from the objective's target and the workbook's table, not taken from the rules.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.generate.objectives import Objective, load
from service.telemetry.names import BUCKETS
from tests.deploy.queries import RULES

PROMTOOL = shutil.which("promtool")
pytestmark = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not here: make test-alerts fetches it")

OBJECTIVES = {one.name: one for one in load().objective}


def promtool(*arguments: str) -> None:
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr


def read_rules() -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"]
    return groups


def test_promtool_accepts_the_rules_and_the_configuration() -> None:
    promtool("check", "rules", str(RULES))
    promtool("check", "config", str(RULES.with_name("prometheus.yaml")))


@dataclass(frozen=True)
class Phase:
    """For so many minutes, so many events a minute, so many times more of them bad than the objective allows."""

    minutes: int
    burn: float
    events: float = 1000.0


@dataclass(frozen=True)
class Story:
    """What happens, and which severities then burn."""

    name: str
    phases: tuple[Phase, ...]
    severities: frozenset[str]


def story(name: str, *phases: Phase, burns: str = "") -> Story:
    return Story(name, phases, frozenset(burns.split()))


STORIES = [
    story("fast burn", Phase(60, 0), Phase(62, 16), burns="page ticket"),
    story("fast burn, over", Phase(60, 16), Phase(40, 0), burns="ticket"),
    story("a blip", Phase(180, 0), Phase(3, 16)),
    story("six hours at seven", Phase(364, 7), burns="page ticket"),
    story("slow burn", Phase(24 * 60 + 30, 4), burns="ticket"),
    story("slower burn", Phase(3 * 24 * 60 + 30, 1.3), burns="ticket"),
    story("within the budget", Phase(3 * 24 * 60 + 30, 0.8)),
    story("three calls at night", Phase(60, 16, events=0.2)),
]


@pytest.mark.parametrize("told", STORIES, ids=lambda told: told.name)
def test_budgets_burn(tmp_path: Path, told: Story) -> None:
    """Of one objective of each kind; a fast burn, of every one."""
    found = OBJECTIVES if told is STORIES[0] else ("first_token", "answered", "deadlines")
    minutes = sum(phase.minutes for phase in told.phases)
    step = 30 if minutes > 600 else 2 if minutes > 300 else 1
    tests = [
        burning(series(one, told.phases, step), one, told.severities, minutes)
        for one in map(OBJECTIVES.__getitem__, found)
    ]
    evaluate(tmp_path, "firstword-slo-", tests, step)


def burning(given: dict[str, str], objective: Objective, severities: Iterable[str], minutes: int) -> dict[str, Any]:
    expr = f'max by (severity) (ALERTS{{alertname="{objective.alert}", alertstate="firing"}})'
    return expecting(given, expr, {f'{{severity="{name}"}}': 1 for name in severities}, minutes)


def expecting(given: dict[str, str], expr: str, samples: dict[str, float], minutes: int) -> dict[str, Any]:
    """A test in promtool's terms: series, and what an expression gives after so many minutes."""
    expected = [{"labels": labels, "value": value} for labels, value in sorted(samples.items())]
    return {
        "input_series": [{"series": name, "values": values} for name, values in given.items()],
        "promql_expr_test": [{"expr": expr, "eval_time": f"{minutes}m", "exp_samples": expected}],
    }


def evaluate(tmp_path: Path, prefix: str, tests: list[dict[str, Any]], step: int) -> None:
    """Run the tests on the groups of rules whose names begin so, but for the period's, whose window is a month."""
    groups = [
        group for group in read_rules() if group["name"].startswith(prefix) and group["name"] != "firstword-slo-period"
    ]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}))
    every = {"interval": f"{step}m"}
    whole = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": f"{step}m",
        "group_eval_order": [group["name"] for group in groups],  # alerts behind what they look at
        "tests": [every | test for test in tests],
    }
    path = tmp_path / "test.yaml"
    path.write_text(yaml.safe_dump(whole))
    promtool("test", "rules", str(path))


def series(objective: Objective, phases: tuple[Phase, ...], step: int) -> dict[str, str]:
    """The counters of the story, in promtool's notation."""
    bad_per_step = [
        (phase.minutes // step, phase.events * step * min(1.0, phase.burn * objective.budget)) for phase in phases
    ]
    all_per_step = [(phase.minutes // step, phase.events * step) for phase in phases]
    good_per_step = [(n, every - bad) for (n, every), (_, bad) in zip(all_per_step, bad_per_step, strict=True)]
    if objective.histogram:
        name = objective.histogram.replace(".", "_") + "_seconds"
        bounds = BUCKETS[objective.histogram]
        at = bounds.index(objective.within_s)
        found = {  # its own bucket, and those beside it, which must not be taken for it
            f'{name}_bucket{{gen_ai_request_model="m", le="{bound}"}}': counter(rates)
            for bound, rates in zip(
                bounds[at - 1 : at + 2],
                ([(n, 0.0) for n, _ in good_per_step], good_per_step, all_per_step),
                strict=True,
            )
        }
        return found | {
            f'{name}_bucket{{gen_ai_request_model="m", le="+Inf"}}': counter(all_per_step),
            f'{name}_count{{gen_ai_request_model="m"}}': counter(all_per_step),
        }
    total, bad = (name.replace(".", "_") + "_total" for name in (objective.events, objective.bad))
    if total != bad:
        return {
            f'{total}{{gen_ai_request_model="m"}}': counter(all_per_step),
            f'{bad}{{gen_ai_request_model="m"}}': counter(bad_per_step),
        }
    found = {f'{total}{{gen_ai_request_model="m"}}': counter(good_per_step)}
    if any(rate for _, rate in bad_per_step):  # a reason that never came has no series
        found[f'{total}{{gen_ai_request_model="m", error_type="INTERNAL"}}'] = counter(bad_per_step)
    return found


def counter(rates: list[tuple[int, float]]) -> str:
    """A counter that grows at these rates, each for so many steps."""
    parts, value = [], 0.0
    for steps, rate in rates:
        parts.append(f"{value:.6f}+{rate:.6f}x{steps - 1}")
        value += rate * steps
    return " ".join([*parts, f"{value:.6f}"])


def test_what_a_client_does_wrongly_burns_nothing(tmp_path: Path) -> None:
    objective = OBJECTIVES["answered"]
    given = {
        'firstword_turns_total{gen_ai_request_model="m"}': counter([(62, 1000.0)]),
        'firstword_turns_total{gen_ai_request_model="m", error_type="CONTEXT_FULL"}': counter([(62, 500.0)]),
    }
    evaluate(tmp_path, "firstword-slo-", [burning(given, objective, (), 62)], 1)


def test_what_is_left_of_a_budget(tmp_path: Path) -> None:
    """Of the period, by the bad share of its events: an eighth of what is allowed leaves seven eighths."""
    objective = OBJECTIVES["first_token"]
    given = series(objective, (Phase(60, 0.125),), 5)
    rule = next(
        rule
        for group in yaml.safe_load(RULES.read_text())["groups"]
        for rule in group["rules"]
        if rule.get("record") == "firstword_slo:budget_left:period" and rule["labels"]["objective"] == "first_token"
    )
    left = expecting(given, f"round({rule['expr']}, 0.001)", {'{gen_ai_request_model="m"}': 0.875}, 60)
    evaluate(tmp_path, "none", [left], 5)


def came_back(resumed: float, **refused: float) -> dict[str, str]:
    """Clients that came back to their calls, so many a minute: those that found them, and those that did not."""
    labels = 'gen_ai_request_model="m"'
    return {
        f'firstword_calls_resumed_total{{{labels}, firstword_resume_kind="here"}}': f"0x5 0+{resumed}x30",
        **{
            f'firstword_calls_resume_refused_total{{{labels}, error_type="{reason}"}}': f"0x5 0+{rate}x30"
            for reason, rate in refused.items()
        },
    }


CAUSES: dict[str, tuple[dict[str, str], int]] = {
    "FirstwordNoMetrics": ({}, 6),
    "FirstwordEngineDown": ({'firstword_engine_serving{gen_ai_response_model="m"}': "1x5 0x10"}, 12),
    "FirstwordEngineRestarts": ({'firstword_engine_restarts_total{gen_ai_response_model="m"}': "0x5 1x3 2x3 4x20"}, 20),
    "FirstwordPagesNearlyGone": (
        {
            'firstword_engine_pages_used{gen_ai_response_model="m"}': "95x30",
            'firstword_engine_pages_free{gen_ai_response_model="m"}': "5x30",
        },
        10,
    ),
    "FirstwordCallsRefused": (
        {'firstword_calls_refused_total{gen_ai_request_model="m", error_type="ENGINE_SATURATED"}': "0+3x30"},
        20,
    ),
    "FirstwordStoreBehind": ({"firstword_store_behind": "0x5 1x10"}, 12),
    "FirstwordStoreNearlyFull": (
        {"firstword_store_memory_used_bytes": "95x30", "firstword_store_memory_limit_bytes": "100x30"},
        10,
    ),
    "FirstwordCallsNotResumed": (came_back(20, UNKNOWN_CALL=1, TOKEN_EXPIRED=1, STORE_UNAVAILABLE=4), 15),
    "FirstwordTokensNotBelieved": (
        {'firstword_calls_resume_refused_total{gen_ai_request_model="m", error_type="FORGED"}': "0x5 0+2x10"},
        12,
    ),
    "FirstwordTakeovers": (
        {'firstword_calls_resumed_total{gen_ai_request_model="m", firstword_resume_kind="taken_over"}': "0+2x90"},
        60,
    ),
    "FirstwordCertificateExpires": (
        {  # of one server of two
            'firstword_tls_certificate_expires_in_seconds{instance="a"}': "259500-60x30",
            'firstword_tls_certificate_expires_in_seconds{instance="b"}': "7776000-60x30",
        },
        25,
    ),
    "FirstwordReloadFailed": (
        {'firstword_security_reload_failures_total{firstword_security_file="certificate"}': "0x5 1x200"},
        180,
    ),
    "FirstwordKeySetUnavailable": (  # asked every ten seconds, to which the network adds some
        {'firstword_security_reload_failures_total{firstword_security_file="jwks_url"}': "0x5 1+5x60"},
        45,
    ),
    "FirstwordDraftsWorthLess": (
        {
            'firstword_reply_tokens_total{gen_ai_request_model="m"}': "0+300x312 93700+100x60",  # every five minutes
            'firstword_steps_total{gen_ai_request_model="m"}': "0+100x372",
        },
        1740,
    ),
}
WELL = {  # every five minutes
    'firstword_turns_open{gen_ai_response_model="m"}': "1x400",
    'firstword_engine_serving{gen_ai_response_model="m"}': "1x400",
    'firstword_engine_restarts_total{gen_ai_response_model="m"}': "0x100 1x300",
    'firstword_engine_pages_used{gen_ai_response_model="m"}': "80x400",
    'firstword_engine_pages_free{gen_ai_response_model="m"}': "20x400",
    'firstword_calls_refused_total{gen_ai_request_model="m", error_type="TENANT_TOO_MANY_CALLS"}': "0+3x400",
    'firstword_reply_tokens_total{gen_ai_request_model="m"}': "0+300x400",
    'firstword_steps_total{gen_ai_request_model="m"}': "0+100x400",
    'firstword_security_reload_failures_total{firstword_security_file="certificate"}': "0x400",
    'firstword_security_reload_failures_total{firstword_security_file="jwks_url"}': "0x100 1x300",
    "firstword_tls_certificate_expires_in_seconds": "2592000-300x400",
    "firstword_store_behind": "0x400",
    "firstword_store_memory_used_bytes": "95x400",
    "firstword_store_memory_limit_bytes": "0x400",
    'firstword_calls_resume_refused_total{gen_ai_request_model="m", error_type="WARM_ELSEWHERE"}': "0+3x400",
    'firstword_calls_resumed_total{gen_ai_request_model="m", firstword_resume_kind="here"}': "0+30x400",
    'firstword_calls_resumed_total{gen_ai_request_model="m", firstword_resume_kind="taken_over"}': "0x100 50x300",
}


@pytest.mark.parametrize("alert", [alert.name for alert in load().alert])
def test_a_cause_is_told(tmp_path: Path, alert: str) -> None:
    given, minutes = CAUSES[alert]
    step = 5 if minutes > 600 else 1
    expr = f'count (ALERTS{{alertname="{alert}", alertstate="firing"}})'
    evaluate(tmp_path, "firstword-alerts", [expecting(given, expr, {"{}": 1}, minutes)], step)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (came_back(0, UNKNOWN_CALL=2), True),
        (came_back(0, STORE_UNAVAILABLE=2), True),
        (came_back(4, UNKNOWN_CALL=2, WARM_ELSEWHERE=50), True),
        (came_back(30, UNKNOWN_CALL=2), False),
        (came_back(0, UNKNOWN_CALL=0.4), False),
        (came_back(0, WARM_ELSEWHERE=9, SUPERSEDED=9), False),
    ],
    ids=["over", "no store", "sent on", "one client", "a few", "had elsewhere"],
)
def test_callers_that_are_lost_are_told_of_where_they_are_a_share(
    tmp_path: Path, given: dict[str, str], told: bool
) -> None:
    """A client of one tenant that asks for calls which are over wakes nobody where others find theirs."""
    expr = 'count (ALERTS{alertname="FirstwordCallsNotResumed", alertstate="firing"})'
    evaluate(tmp_path, "firstword-alerts", [expecting(given, expr, {"{}": 1} if told else {}, 20)], 1)


@pytest.mark.parametrize("failures", ["0x5 1+5x8 41x100", "0x5 1x4 2x4 3x4 4x4 5x4 6x4 7x4 8x4 9x4 10x60"])
def test_an_address_of_keys_that_answers_again_is_not_told_of(tmp_path: Path, failures: str) -> None:
    """It did not for some minutes, in which it is asked every ten seconds, or does not now and then."""
    expr = 'count (ALERTS{alertname="FirstwordKeySetUnavailable", alertstate="firing"})'
    name = 'firstword_security_reload_failures_total{firstword_security_file="jwks_url"}'
    tests = [expecting({name: failures}, expr, {}, minutes) for minutes in (14, 36, 41, 50)]
    evaluate(tmp_path, "firstword-alerts", tests, 1)


def test_servers_that_are_behind_are_one_alert_that_says_how_many(tmp_path: Path) -> None:
    rule = next(
        rule for group in read_rules() for rule in group["rules"] if rule.get("alert") == "FirstwordStoreBehind"
    )
    given = {
        f'firstword_store_behind{{instance="{name}"}}': f"{behind}x10"
        for name, behind in (("a", 1), ("b", 1), ("c", 0))
    }
    annotations = {**rule["annotations"], "summary": rule["annotations"]["summary"].replace("{{ $value }}", "2")}
    assert annotations != rule["annotations"]
    told = {
        "eval_time": "8m",
        "alertname": "FirstwordStoreBehind",
        "exp_alerts": [{"exp_labels": rule["labels"], "exp_annotations": annotations}],
    }
    test = expecting(given, "vector(1)", {"{}": 1}, 8) | {"alert_rule_test": [told]}
    evaluate(tmp_path, "firstword-alerts", [test], 1)


def test_where_all_is_well_nothing_is_told(tmp_path: Path) -> None:
    evaluate(tmp_path, "firstword-alerts", [expecting(WELL, 'ALERTS{alertstate="firing"}', {}, 1740)], 5)
