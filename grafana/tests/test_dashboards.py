"""What holds for every dashboard: what dashboard-linter looks for, and what Grafana needs to load one."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

GRAFANA = Path(__file__).parents[1]
FILES = sorted((GRAFANA / "dashboards").glob("*.json"))

UNITS = {"short", "none", "s", "ops", "bytes", "percentunit"}
KINDS = {"row", "text", "stat", "timeseries", "heatmap", "bargauge", "table"}
COLUMNS = 24

Json = dict[str, object]


def panels(path: Path) -> list[dict[str, object]]:
    """Returns the panels of a dashboard."""
    return list(json.loads(path.read_text())["panels"])


def about(path: Path) -> list[dict[str, object]]:
    """Returns the panels that show data."""
    return [panel for panel in panels(path) if panel["type"] not in {"row", "text"}]


def expressions(path: Path) -> list[tuple[str, str]]:
    """Returns what Prometheus is asked, with the title of the panel that asks."""
    return [
        (str(panel["title"]), target["expr"])
        for panel in about(path)
        for target in panel["targets"]  # type: ignore[attr-defined]
        if "expr" in target
    ]


def test_the_committed_dashboards_are_what_their_source_makes() -> None:
    done = subprocess.run([sys.executable, GRAFANA / "dashboards.py", "--check"], check=False)
    assert done.returncode == 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
class TestDashboard:
    """The rules for each."""

    def test_it_is_fixed_and_opens_where_the_story_is(self, path: Path) -> None:
        dashboard = json.loads(path.read_text())
        assert dashboard["editable"] is False
        assert dashboard["uid"].startswith("ackstream-")
        assert (dashboard["time"], dashboard["refresh"]) == ({"from": "now-5m", "to": "now"}, "5s")
        assert dashboard["graphTooltip"] == 1, "one crosshair for all panels"
        assert dashboard["schemaVersion"] >= 39

    def test_its_variables_pick_the_data_sources_and_the_processes(self, path: Path) -> None:
        variables = {variable["name"]: variable for variable in json.loads(path.read_text())["templating"]["list"]}
        assert variables["datasource"]["query"] == "prometheus"
        assert variables["traces"]["query"] == "jaeger"
        for name in ("job", "instance"):
            assert variables[name]["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert variables[name]["multi"]
            assert variables[name]["includeAll"]
            assert variables[name]["allValue"] == ".+"

    def test_each_panel_has_a_title_a_unit_and_says_what_a_bad_shape_means(self, path: Path) -> None:
        titles = [panel["title"] for panel in panels(path)]
        assert len(set(titles)) == len(titles)
        for panel in about(path):
            assert panel["type"] in KINDS
            assert panel["title"]
            assert len(str(panel["description"])) > 20, panel["title"]
            assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]  # type: ignore[index]
            assert panel["datasource"]["uid"] in {"${datasource}", "${traces}"}, panel["title"]  # type: ignore[index]

    def test_each_query_is_about_the_chosen_processes_and_the_time_shown(self, path: Path) -> None:
        for title, expression in expressions(path):
            for selector in re.findall(r"\{([^}]*)\}", expression):
                assert 'job=~"$job"' in selector, (title, expression)
                assert 'instance=~"$instance' in selector, (title, expression)
            for window in re.findall(r"\[([^]]*)\]", expression):
                assert window in {"$__rate_interval", "$__range"}, (title, expression)
            for name in re.findall(r"\b(rate|increase)\(([a-z_]+)\{", expression):
                assert re.search(r"_(total|bucket|sum|count)$", name[1]), (title, expression)

    def test_no_two_panels_are_at_one_place(self, path: Path) -> None:
        taken: dict[tuple[int, int], object] = {}
        ids = [panel["id"] for panel in panels(path)]
        assert len(set(ids)) == len(ids)
        for panel in panels(path):
            place: dict[str, int] = panel["gridPos"]  # type: ignore[assignment]
            assert place["x"] + place["w"] <= COLUMNS
            for x in range(place["x"], place["x"] + place["w"]):
                for y in range(place["y"], place["y"] + place["h"]):
                    assert (x, y) not in taken, (panel["title"], taken.get((x, y)))
                    taken[x, y] = panel["title"]
