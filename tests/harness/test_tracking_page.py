"""The report page on wandb: its objects, its file, and what a server is asked."""

import gzip
import json
from http.server import BaseHTTPRequestHandler

import pytest

from harness import tracking
from harness.config.schema import TrackerConfig
from harness.tracking_page import save_page
from tests.harness.hub_server import answering
from tests.harness.test_tracking import OFFLINE, make_record

VIEW = "VmlldzoxMjM="
PANELS = {"Scatter Plot", "Media Browser", "Weave", "Run Comparer"}


def sweep() -> list:
    found = []
    for method, scheme, digit in (("none", "w16", "a"), ("rtn", "w4", "b"), ("gptq", "w4", "c")):
        record = make_record(cell_key=digit * 64, key=digit * 64)
        cell = record.cell.model_copy(update={"method": method, "scheme": scheme})
        found.append(record.model_copy(update={"cell": cell}))
    return found


def blocks_of(path, kind: str) -> list[dict]:
    page = json.loads(path.read_text())
    return [block for block in page["spec"]["blocks"] if block["type"] == kind]


def test_a_page_has_tables_and_panels_over_the_runs_of_its_experiment(
    tmp_path, no_network, home
) -> None:
    path = save_page(sweep(), ["perplexity"], OFFLINE, tmp_path, "quick start")
    assert path.parent == tmp_path / "wandb" / "reports"
    page = json.loads(path.read_text())
    assert (page["displayName"], page["project"]["name"], page["id"]) == (
        "quick start",
        "bitsweep",
        "",
    )
    (table,) = blocks_of(path, "markdown-block")
    assert table["content"].startswith("### Accuracy of embedded")
    assert table["content"].count("5.93") == 3
    (grid,) = blocks_of(path, "panel-grid")
    (runs,) = grid["metadata"]["runSets"]
    (condition,) = runs["filters"]["filters"]
    assert condition["key"] == {"section": "run", "name": "group"}
    assert (condition["op"], condition["value"]) == ("=", "quick start")
    panels = grid["metadata"]["panelBankSectionConfig"]["panels"]
    assert {panel["viewType"] for panel in panels} == PANELS
    scatter = next(panel["config"] for panel in panels if panel["viewType"] == "Scatter Plot")
    assert scatter["xAxis"] == "summary:bits_per_weight"
    (logged,) = [name for name in tracking.summary_metrics(sweep()[:1]) if name in scatter["yAxis"]]
    assert scatter["yAxis"] == f"summary:{logged}"  # under the name that runs log
    assert scatter["yAxisLogScale"] is True
    media = next(panel["config"] for panel in panels if panel["viewType"] == "Media Browser")
    assert media["mediaKeys"] == ["plots/perplexity"]


@pytest.mark.parametrize("name", ["it's", 'a "b"', "a\\nb", "a\nb", "é漢"])
def test_any_name_of_an_experiment_chooses_its_runs(tmp_path, no_network, home, name) -> None:
    path = save_page(sweep()[:1], [], OFFLINE, tmp_path, name)
    (grid,) = blocks_of(path, "panel-grid")
    assert grid["metadata"]["runSets"][0]["filters"]["filters"][0]["value"] == name


def test_the_same_records_give_the_same_page(tmp_path, no_network, home) -> None:
    first = save_page(sweep(), ["p"], OFFLINE, tmp_path / "a", "x").read_bytes()
    second = save_page(sweep()[::-1], ["p"], OFFLINE, tmp_path / "b", "x").read_bytes()
    assert first == second


def test_nothing_is_saved_without_a_figure_or_a_tracker(tmp_path) -> None:
    nothing = [make_record(metrics=[])]
    assert save_page(nothing, [], OFFLINE, tmp_path, "x") is None
    assert save_page(sweep(), [], TrackerConfig(name="none"), tmp_path, "x") is None
    assert list(tmp_path.iterdir()) == []


class Server:
    """What wandb's server answers, and the variables of the pages that it was asked to save."""

    def __init__(self) -> None:
        self.saved: list[dict] = []
        self.broken = False

    def data(self, query: str, given: dict) -> dict:
        if "upsertView" in query:
            self.saved.append(given)
            if self.broken:
                raise RuntimeError("the view was refused")
            project = {"id": "p", "name": given["projectName"], "entityName": given["entityName"]}
            view = {"id": given["id"] or VIEW, "type": given["type"], "project": project}
            kept = {name: given[name] for name in ("name", "displayName", "description", "spec")}
            return {"upsertView": {"inserted": True, "view": {**view, **kept, "updatedAt": None}}}
        if "internalId" in query:
            return {"project": {"internalId": "UHJvamVjdDox"}}
        if "models" in query:
            node = {"id": "1", "name": "bitsweep", "entityName": "team", "createdAt": "2026-01-01"}
            edge = {"node": {**node, "isBenchmark": False, "user": None}, "cursor": "a"}
            return {
                "models": {"edges": [edge], "pageInfo": {"endCursor": "", "hasNextPage": False}}
            }
        teams = {"edges": [{"node": {"name": "team"}}]}
        viewer = {"id": "1", "flags": "{}", "username": "me", "email": "me@example.org"}
        return {"viewer": {**viewer, "entity": "team", "admin": False, "teams": teams}}


@pytest.fixture
def server(home, monkeypatch):
    asked = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            request = json.loads(body)
            try:
                answer = {"data": asked.data(request["query"], request.get("variables") or {})}
            except RuntimeError as error:
                answer = {"errors": [{"message": str(error)}]}
            content = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    tracking.close()  # wandb's own service reads the address when it starts
    with answering(Handler) as address:
        monkeypatch.setenv("WANDB_BASE_URL", address)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        yield asked
        tracking.close()


def test_online_a_page_is_created_once_and_then_replaced(tmp_path, server) -> None:
    online = TrackerConfig(name="wandb", mode="online")
    path = save_page(sweep(), ["perplexity"], online, tmp_path, "quick start")
    first = server.saved[0]
    assert (first["id"], first["entityName"], first["projectName"]) == (None, "team", "bitsweep")
    assert (first["displayName"], first["type"]) == ("quick start", "runs")
    sent = [block["type"] for block in json.loads(first["spec"])["blocks"]]
    assert sent == [block["type"] for block in json.loads(path.read_text())["spec"]["blocks"]]
    assert {"markdown-block", "panel-grid"} <= set(sent)
    assert json.loads(path.read_text())["id"] == VIEW
    save_page(sweep()[:2], ["perplexity"], online, tmp_path, "quick start")
    assert [each["id"] for each in server.saved] == [None, VIEW]
    server.broken = True
    with pytest.warns(tracking.TrackingWarning, match="no page of quick start .*refused.*sync"):
        assert save_page(sweep(), [], online, tmp_path, "quick start") is None
    assert json.loads(path.read_text())["id"] == VIEW  # nothing is lost
