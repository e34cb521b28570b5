"""The objectives, read and checked."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from deploy.generate import naming
from service.telemetry.names import BUCKETS

FILE = Path(__file__).resolve().parents[1] / "objectives.toml"

Severity = Literal["page", "ticket"]
Window = Annotated[str, Field(pattern=r"^[1-9][0-9]*[mhd]$")]


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Objective(Strict):
    """A share of ``target`` of the events must be good: within a histogram's bound, or not among the bad ones.

    minimum: events that the long window of an alert needs.
    """

    name: str = Field(pattern=r"^[a-z][a-z_]*$")
    title: str
    summary: str
    target: float = Field(gt=0.5, lt=1)
    minimum: int = Field(default=0, ge=0)
    histogram: str = ""
    within_s: float = 0.0
    events: str = ""
    bad: str = ""
    bad_where: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_one_of_two_kinds(self) -> Self:
        if bool(self.histogram) == bool(self.events and self.bad):
            raise ValueError("either a histogram and within_s, or events and bad")
        if self.histogram and self.within_s not in BUCKETS.get(self.histogram, ()):
            raise ValueError(f"{self.histogram} has no bucket that ends at {self.within_s} s")
        if self.histogram and self.within_s == int(self.within_s):
            raise ValueError("a whole number of seconds is written differently by different exporters")
        return self

    @property
    def budget(self) -> float:
        """Share of the events that may be bad."""
        return round(1.0 - self.target, 6)

    @property
    def alert(self) -> str:
        """The name of its alerts."""
        return "Firstword" + "".join(word.capitalize() for word in self.name.split("_")) + "BudgetBurn"

    def total(self, window: str) -> str:
        """Events a second over the window, by model."""
        metric = f"{naming.histogram(self.histogram)}_count" if self.histogram else naming.counter(self.events)
        return f"sum by (gen_ai_request_model) (rate({metric}[{window}]))"

    def error_ratio(self, window: str) -> str:
        """Share of bad events over the window, by model; nothing where there were no events."""
        total = self.total(window)
        if self.histogram:
            good = f'{naming.histogram(self.histogram)}_bucket{{le="{self.within_s}"}}'
            return f"1 - sum by (gen_ai_request_model) (rate({good}[{window}])) / ({total} > 0)"
        where = f"{{{naming.matchers(self.bad_where)}}}" if self.bad_where else ""
        bad = f"sum by (gen_ai_request_model) (rate({naming.counter(self.bad)}{where}[{window}]))"
        # Where nothing was ever bad there is no such series.
        return f"({bad} or 0 * {total}) / ({total} > 0)"


class Burn(Strict):
    """An alert's condition: the budget burns ``burn`` times too fast over both windows."""

    severity: Severity
    long: Window
    short: Window
    burn: float = Field(gt=0)


class Alert(Strict):
    """An alert that no objective makes."""

    name: str = Field(pattern=r"^Firstword[A-Z][A-Za-z]+$")
    severity: Severity
    wait: str = Field(alias="for", pattern=r"^[0-9]+[mh]$")
    expr: str
    summary: str


class Objectives(Strict):
    """All of ``deploy/objectives.toml``."""

    period_days: int = Field(ge=1)
    objective: tuple[Objective, ...]
    burn: tuple[Burn, ...]
    alert: tuple[Alert, ...]

    @model_validator(mode="after")
    def _can_fire(self) -> Self:
        for objective in self.objective:
            for burn in self.burn:
                if burn.burn * objective.budget >= 1:
                    raise ValueError(f"{objective.name} can never burn its budget {burn.burn} times too fast")
        return self

    @property
    def windows(self) -> list[str]:
        """Every window that an alert looks at, shortest first."""
        found = {window for burn in self.burn for window in (burn.long, burn.short)}
        return sorted(found, key=seconds)


def seconds(window: str) -> int:
    """The length of a window such as 5m, 6h or 3d."""
    return int(window[:-1]) * {"m": 60, "h": 3600, "d": 86_400}[window[-1]]


def load(path: Path = FILE) -> Objectives:
    """Raises pydantic's ValidationError, a ValueError, for what cannot be meant."""
    return Objectives.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
