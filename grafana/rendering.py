"""What dashboards are made of, and how Grafana reads it. What they show is in dashboards.py."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

Json = dict[str, object]

COLUMNS = 24
"""Of a page."""

METRICS: Json = {"type": "prometheus", "uid": "${datasource}"}
TRACES: Json = {"type": "jaeger", "uid": "${traces}"}

GREEN, YELLOW, ORANGE, RED, BLUE, GREY, PURPLE = "green", "yellow", "orange", "red", "blue", "text", "purple"
COLOURS = {
    "published": BLUE, "sent": PURPLE, "acked": GREEN, "retried": ORANGE, "dropped": RED,
    "nacked": YELLOW, "expired": ORANGE, "released": PURPLE,
    "ready": BLUE, "delayed": YELLOW, "outstanding": PURPLE, "waiting": GREEN, "full": ORANGE,
    "the ack deadline": RED, "backlog_full": RED, "duplicate": BLUE, "failed": RED, "simulated_drop": ORANGE,
}  # fmt: skip
"""One meaning has one colour on every panel."""


@dataclass(frozen=True)
class Query:
    """What a panel asks for, and how its series are called."""

    expression: str
    legend: str = ""
    exemplars: bool = False
    heatmap: bool = False


@dataclass(frozen=True)
class Panel:
    """One panel. Widths are of 24; a row of the page ends where the next panel does not fit."""

    title: str
    unit: str
    description: str
    queries: tuple[Query, ...]
    kind: str = "timeseries"
    width: int = 8
    height: int = 7
    stacked: bool = False
    decimals: int | None = None
    steps: tuple[tuple[float | None, str], ...] = ((None, GREEN),)
    """For single numbers: from which value on they have which colour."""


@dataclass(frozen=True)
class Search:
    """A table of traces, found by tags."""

    title: str
    description: str
    tags: str
    width: int = 12
    height: int = 9


@dataclass(frozen=True)
class Text:
    """Words."""

    title: str
    content: str
    width: int = 24
    height: int = 7


@dataclass(frozen=True)
class Row:
    """Panels under one heading."""

    title: str
    panels: tuple[Panel | Search | Text, ...]


@dataclass(frozen=True)
class Dashboard:
    """One dashboard."""

    uid: str
    file: str
    title: str
    description: str
    variables: list[Json]
    links: list[Json]
    rows: tuple[Row, ...]
    annotations: list[Json] = field(default_factory=list)


def render(dashboard: Dashboard) -> str:
    """Returns a dashboard as Grafana's JSON."""
    return json.dumps(
        {
            "uid": dashboard.uid, "title": dashboard.title, "description": dashboard.description, "tags": ["ackstream"],
            "schemaVersion": 39, "version": 1, "editable": False, "graphTooltip": 1,
            "time": {"from": "now-5m", "to": "now"}, "refresh": "5s", "timezone": "browser",
            "timepicker": {"refresh_intervals": ["5s", "10s", "30s", "1m", "5m"]},
            "templating": {"list": dashboard.variables},
            "annotations": {"list": dashboard.annotations},
            "links": dashboard.links,
            "panels": list(place(dashboard.rows)),
        },
        indent=1,
    ) + "\n"  # fmt: skip


def place(rows: tuple[Row, ...]) -> Iterator[Json]:
    """Yields the panels of all rows, each at its place on the page of 24 columns."""
    number, top = 0, 0
    for row in rows:
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "panels": [],
            "gridPos": at(0, top, COLUMNS, 1),
        }
        top += 1
        left, tallest = 0, 0
        for panel in row.panels:
            if left + panel.width > COLUMNS:
                left, top, tallest = 0, top + tallest, 0
            number += 1
            yield {"id": number, "gridPos": at(left, top, panel.width, panel.height), **show(panel)}
            left, tallest = left + panel.width, max(tallest, panel.height)
        top += tallest


def at(left: int, top: int, width: int, height: int) -> Json:
    """Returns a place on the page."""
    return {"x": left, "y": top, "w": width, "h": height}


def show(panel: Panel | Search | Text) -> Json:
    """Returns a panel without its place."""
    match panel:
        case Text():
            return {"type": "text", "title": panel.title, "options": {"mode": "markdown", "content": panel.content}}
        case Search():
            query = {
                "refId": "A", "datasource": TRACES, "queryType": "search", "service": "ackstream-server",
                "tags": panel.tags, "limit": 20,
            }  # fmt: skip
            return {
                "type": "table", "title": panel.title, "description": panel.description, "datasource": TRACES,
                "targets": [query], "fieldConfig": {"defaults": {"unit": "short"}, "overrides": []},
                "options": {"showHeader": True},
            }  # fmt: skip
        case Panel():
            return {
                "type": panel.kind, "title": panel.title, "description": panel.description, "datasource": METRICS,
                "targets": [ask(query, chr(ord("A") + place), panel) for place, query in enumerate(panel.queries)],
                "fieldConfig": {"defaults": look(panel), "overrides": colours() if panel.kind == "timeseries" else []},
                "options": OPTIONS[panel.kind],
            }  # fmt: skip


def ask(query: Query, name: str, panel: Panel) -> Json:
    """Returns one query of a panel."""
    target: Json = {"refId": name, "datasource": METRICS, "expr": query.expression, "editorMode": "code", "range": True}
    target["legendFormat"] = query.legend or panel.title
    if panel.kind in {"stat", "bargauge"}:
        target |= {"instant": True, "range": False}
    if query.heatmap:
        target["format"] = "heatmap"
    if query.exemplars:
        target["exemplar"] = True
    return target


def look(panel: Panel) -> Json:
    """Returns unit, colours and lines of a panel."""
    steps = [{"value": value, "color": colour} for value, colour in panel.steps]
    defaults: Json = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}, "min": 0}
    if panel.decimals is not None:
        defaults["decimals"] = panel.decimals
    if panel.kind == "timeseries":
        defaults["color"] = {"mode": "palette-classic"}
        defaults["custom"] = {
            "drawStyle": "line", "lineWidth": 1, "fillOpacity": 25 if panel.stacked else 5, "showPoints": "never",
            "spanNulls": False, "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        }  # fmt: skip
    else:
        defaults["color"] = {"mode": "thresholds"}
    return defaults


def colours() -> list[Json]:
    """Returns the colours that words have."""
    return [
        {
            "matcher": {"id": "byName", "options": word},
            "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}],
        }
        for word, colour in COLOURS.items()
    ]


OPTIONS: dict[str, Json] = {
    "stat": {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}, "colorMode": "background",
        "graphMode": "none", "textMode": "auto", "justifyMode": "auto", "orientation": "auto",
    },
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "heatmap": {
        "calculate": False, "cellGap": 1, "yAxis": {"unit": "s", "axisPlacement": "left"},
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "exponent": 0.5, "reverse": False},
        "tooltip": {"mode": "single", "yHistogram": False}, "legend": {"show": False}, "filterValues": {"le": 1e-9},
    },
    "bargauge": {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "orientation": "horizontal", "displayMode": "gradient", "showUnfilled": True, "valueMode": "color",
    },
}  # fmt: skip


def datasource(name: str, label: str, kind: str, uid: str) -> Json:
    """Returns the variable that picks a data source."""
    current = {"selected": True, "text": label, "value": uid}
    return {
        "type": "datasource",
        "name": name,
        "label": label,
        "query": kind,
        "current": current,
        "hide": 0,
        "refresh": 1,
    }


def values(name: str, label: str, query: str) -> Json:
    """Returns a variable over the values of a label."""
    return {
        "type": "query", "name": name, "label": label, "datasource": METRICS,
        "query": {"query": f"label_values({query}, {name})", "refId": "variable"},
        "definition": f"label_values({query}, {name})",
        "multi": True, "includeAll": True, "allValue": ".+", "current": {"text": "All", "value": "$__all"},
        "refresh": 2, "sort": 1, "hide": 0,
    }  # fmt: skip


def constant(name: str, value: str) -> Json:
    """Returns a variable that links are made of."""
    return {"type": "constant", "name": name, "query": value, "current": {"text": value, "value": value}, "hide": 2}


def link(title: str, url: str, tooltip: str) -> Json:
    """Returns a link at the top."""
    return {
        "type": "link", "title": title, "url": url, "tooltip": tooltip, "icon": "external link",
        "targetBlank": True, "keepTime": url.startswith("/d/"), "includeVars": False, "asDropdown": False, "tags": [],
    }  # fmt: skip
