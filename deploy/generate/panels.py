"""What the dashboards are built of: rows of panels over Prometheus and Tempo, whose data sources the viewer chooses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from grafana_foundation_sdk.builders import dashboard, heatmap, prometheus, stat, table, tempo, timeseries
from grafana_foundation_sdk.builders.common import StackingConfig, VizLegendOptions, VizTooltipOptions
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    DataSourceRef,
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, VariableRefresh
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from grafana_foundation_sdk.models.tempo import SearchTableType

PROMETHEUS = DataSourceRef(type_val="prometheus", uid="${prometheus}")
TEMPO = DataSourceRef(type_val="tempo", uid="${tempo}")
MODEL = 'gen_ai_request_model=~"$model"'
ENGINE = 'gen_ai_response_model=~".+"'
RATE = "$__rate_interval"

Panel = Any
"""Any of the builder's panels: they have no common base."""


def board(uid: str, title: str, about: str, rows: Mapping[str, Sequence[Panel]]) -> dict[str, Any]:
    """A whole dashboard as Grafana reads it."""
    models = "label_values(firstword_turns_total, gen_ai_request_model)"
    made = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(about)
        .tags(["firstword"])
        .refresh("10s")
        .time("now-1h", "now")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("prometheus").label("Metrics").type("prometheus"))
        .with_variable(dashboard.DatasourceVariable("tempo").label("Traces").type("tempo"))
        .with_variable(
            dashboard.QueryVariable("model")
            .label("Model")
            .datasource(PROMETHEUS)
            .query(models)
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .include_all(True)
            .all_value(".*")
            .multi(True)
        )
        .link(dashboard.DashboardLink("Firstword").type("dashboards").tags(["firstword"]).as_dropdown(False))
    )
    for name, panels in rows.items():
        made = made.with_row(dashboard.Row(name))
        for panel in panels:
            made = made.with_panel(panel)
    found: dict[str, Any] = _plain(made.build())
    return found


def lines(
    title: str,
    about: str,
    unit: str,
    queries: Mapping[str, str],
    *,
    exemplars: bool = False,
    stacked: bool = False,
    width: int = 8,
    **limits: float,
) -> Panel:
    """Figures over time. queries: PromQL by legend. exemplars: with a dot for each, one click from its trace."""
    legend = VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM).show_legend(True)
    panel = timeseries.Panel().title(title).description(about).unit(unit).datasource(PROMETHEUS).span(width).height(8)
    panel = panel.legend(legend).tooltip(VizTooltipOptions().mode(TooltipDisplayMode.MULTI)).fill_opacity(8).min(0)
    if stacked:
        panel = panel.fill_opacity(40).stacking(StackingConfig().mode(StackingMode.NORMAL).group("A"))
    if "max" in limits:
        panel = panel.max(limits["max"])
    for ref, (name, expr) in zip("ABCDEFGH", queries.items(), strict=False):
        panel = panel.with_target(_query(expr, name, ref).exemplar(exemplars))
    return panel


def figure(title: str, about: str, unit: str, expr: str, legend: str, *, width: int = 24, decimals: int = 1) -> Panel:
    """The newest values, side by side."""
    panel = stat.Panel().title(title).description(about).unit(unit).decimals(decimals).datasource(PROMETHEUS)
    return panel.span(width).height(4).with_target(_query(expr, legend).instant())


def heat(title: str, about: str, expr: str, *, width: int = 8) -> Panel:
    """A histogram over time. expr: of its buckets by ``le``."""
    panel = heatmap.Panel().title(title).description(about).datasource(PROMETHEUS).span(width).height(8)
    return panel.calculate(False).with_target(_query(expr, "{{le}}").format(PromQueryFormat.HEATMAP))


def traces(title: str, about: str, query: str, *, width: int = 12, spans: bool = False) -> Panel:
    """A table of what a TraceQL query finds, each line one click from its trace."""
    kind = SearchTableType.SPANS if spans else SearchTableType.TRACES
    found = (
        tempo.Dataquery().ref_id("A").query_type("traceql").query(query).limit(20).table_type(kind).datasource(TEMPO)
    )
    return table.Panel().title(title).description(about).datasource(TEMPO).span(width).height(9).with_target(found)


def _query(expr: str, legend: str, ref: str = "A") -> prometheus.Dataquery:
    return prometheus.Dataquery().ref_id(ref).expr(expr).legend_format(legend).datasource(PROMETHEUS)


def _plain(value: Any) -> Any:
    return json.loads(JSONEncoder(sort_keys=True).encode(value))
