"""Alerts and dashboard ask only for what estd exports, and promtool agrees with the alerts, in form and in what they do."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from live_server import NORTH, Live, attempt, run
from prometheus_client.metrics import MetricWrapperBase

from estd.app import expiry, own_certificate, troubles
from estd.app.ops import OpsServer
from estd.errors import Code
from estd.ra.limits import Limit
from estd.web import metrics
from estd.web.place import Refusal
from estd.web.tls_events import Event

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "estd-rules.yml"
DASHBOARD = DEPLOY / "grafana" / "estd.json"
COUNTED = {one._name: one for one in vars(metrics).values() if isinstance(one, MetricWrapperBase)}
DEFINED = COUNTED | {
    one._name: one
    for module in (troubles, own_certificate, expiry)
    for one in vars(module).values()
    if isinstance(one, MetricWrapperBase)
}
# Counters of what seldom happens appear with their first event; the tests below bring the others about.
SELDOM = {"estd_turned_away_total", "estd_ecosystem_unloaded"}
VALUES = {
    "outcome": {"ok", "gone", *(code.value for code in Code)},
    "event": {str(one) for one in (*Event, *Refusal)},
    "limit": {str(one) for one in Limit},
    "step": {"prepare", "reserve", "seal", "record"},
    "operation": {"cacerts", "csrattrs", "simpleenroll", "simplereenroll"},
    "job": {"estd"},
    "part": set(metrics.PARTS),
}


def read_panels() -> list[dict[str, Any]]:
    document = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return [panel for panel in document["panels"] if panel["type"] != "row"]


def read_dashboard() -> Iterator[str]:
    """Every question the dashboard asks, its variables filled in."""
    for panel in read_panels():
        for target in panel["targets"]:
            yield target["expr"].replace("$__rate_interval", "5m").replace("$instance", ".*")


def read_alerts() -> list[str]:
    """Every expression of the rules; they are the indented text after `expr:`."""
    found = re.findall(r"^        expr: (.+(?:\n {10}.+)*)", RULES.read_text(encoding="utf-8"), re.MULTILINE)
    return [one.removeprefix("|\n") for one in found]


EXPRESSIONS = [*read_alerts(), *read_dashboard()]


def test_promtool_accepts_rules_and_settings(tmp_path: Path) -> None:
    run("promtool", "check", "rules", RULES)
    run("promtool", "check", "config", RULES.with_name("prometheus.yml"))


def test_the_alerts_speak_when_they_should(tmp_path: Path) -> None:
    run("promtool", "test", "rules", RULES.with_name("estd-rules.test.yml"), seconds=60)


@pytest.mark.parametrize(
    ("old", "new"), [("> 0.01", "> 0.5"), ("unless", "and"), ("estd_ready) == 0", "estd_ready) == 2")]
)
def test_the_test_of_the_alerts_can_fail(tmp_path: Path, old: str, new: str) -> None:
    for path in RULES.parent.glob("estd-rules*.yml"):
        shutil.copy(path, tmp_path)
    altered = (tmp_path / RULES.name).read_text().replace(old, new)
    assert altered != RULES.read_text()
    (tmp_path / RULES.name).write_text(altered)
    assert attempt("promtool", "test", "rules", tmp_path / "estd-rules.test.yml", seconds=60).status != 0


def test_what_is_counted_once_is_seen_when_it_is_new() -> None:
    """A counter that appears with its first event has no increase, so a rule that asks for one asks what is new as well."""
    for expression in read_alerts():
        for selector in re.findall(r"increase\(([^\[]+)\[", expression):
            assert f"({selector} unless {selector} offset 10m) or increase(" in re.sub(r"\s+", " ", expression)


def test_a_panel_that_divides_shows_nought_where_there_is_none() -> None:
    """What was never sent away has no series, and a division by or of nothing draws an empty panel."""
    for panel in read_panels():
        for target in panel["targets"]:
            seldom = re.match(r"\(?sum\(rate\(estd_requests_total\{[^}]*outcome=~", target["expr"])
            if panel["type"] == "stat" and seldom:
                assert "or vector(0)" in target["expr"], panel["title"]


def test_every_question_of_the_dashboard_is_understood(tmp_path: Path) -> None:
    rules = [{"record": f"panel_{number}", "expr": expression} for number, expression in enumerate(read_dashboard())]
    # JSON is YAML.
    (tmp_path / "panels.yml").write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    said = run("promtool", "check", "rules", tmp_path / "panels.yml").decode()
    assert f"{len(rules)} rules found" in said


def test_every_metric_is_really_exported(live: Live, tmp_path: Path) -> None:
    device = live.device(NORTH)
    (tmp_path / "csr").write_bytes(device.make_csr())
    curl = ["curl", "-sS", "--cacert", live.trust, "--cert", device.certificate, "--key", device.key]
    body = ["--data-binary", f"@{tmp_path / 'csr'}", "-H", "Content-Type: application/pkcs10"]
    for _ in range(2):  # DER without its base64 is tolerated and counted; the second one gets the same certificate
        run(*curl, *body, live.url("simpleenroll", NORTH))
    asked = {name for expression in EXPRESSIONS for name in re.findall(r"\bestd_\w+", expression)} - SELDOM
    exported: set[str] = set()
    deadline = time.monotonic() + 20
    while not asked <= exported and time.monotonic() < deadline:  # workers write what they count some times a second
        exported = set(re.findall(r"^(estd_\w+?)(?:\{.*\})? \S+$", live.ops("/metrics"), re.MULTILINE))
        time.sleep(0.1)
    assert asked - exported == set()
    assert {name.removesuffix("_total") for name in SELDOM} <= set(DEFINED)
    # Nothing of the kind has happened, and it can be seen that it has not.
    text = live.ops("/metrics")
    assert 'estd_requests_total{operation="simpleenroll",outcome="internal-error"} 0.0' in text
    assert 'estd_tls_total{event="evicted-internal"} 0.0' in text
    parts = set(re.findall(r'^estd_ready\{part="(\w+)"\} 1\.0$', text, re.MULTILINE))
    assert parts == set(metrics.PARTS)


async def test_metrics_tell_what_readyz_tells(tmp_path: Path) -> None:
    async def report() -> dict[str, str]:
        return {"signers": "none is ready"}

    ops = OpsServer(report, tmp_path)
    port = await ops.start("127.0.0.1", 0)
    try:
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/metrics") as answer:
            text = await answer.text()
    finally:
        await ops.stop()
    assert dict(re.findall(r'^estd_ready\{part="(\w+)"\} (\S+)$', text, re.MULTILINE)) == {
        "database": "1.0",
        "signers": "0.0",
        "workers": "1.0",
        "server": "1.0",
    }


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_labels_and_their_values_exist(expression: str) -> None:
    for name, selector in re.findall(r"\b(\w+)\{([^}]*)\}", expression):
        base = re.sub(r"_(total|bucket|sum|count)$", "", name)
        known = {"instance", "job"} | set(DEFINED[base]._labelnames if base in DEFINED else ())
        for label, operator, value in re.findall(r'(\w+)(=~|!~|!=|=)"([^"]*)"', selector):
            assert label in known, f"{name} has no label {label}"
            if label in VALUES:
                # Alternatives one by one, unless they are inside a group: then the whole has to match something.
                words = value.split("|") if "~" in operator and "(" not in value else [value]
                for word in words:
                    assert any(re.fullmatch(word, one) for one in VALUES[label]), f"{label} is never {word}"
    grouped = {word for group in re.findall(r"by \(([^)]*)\)", expression) for word in re.split(r"[ ,]+", group)}
    assert grouped <= {"instance", "le", *(label for one in DEFINED.values() for label in one._labelnames)}


def test_the_dashboard_can_be_provisioned() -> None:
    document = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    identities = [panel["id"] for panel in document["panels"]]
    assert len(set(identities)) == len(identities)
    assert document["uid"] == "estd"
    assert "id" not in document, "Grafana gives the number"
    assert "__inputs" not in document, "a provisioned dashboard is not asked for its data source"
    sources = {json.dumps(target["datasource"]) for panel in read_panels() for target in panel["targets"]}
    assert sources == {'{"type": "prometheus", "uid": "${datasource}"}'}
    assert {one["name"] for one in document["templating"]["list"]} == {"datasource", "instance"}
    cells = set()
    for panel in document["panels"]:
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in cells, f"{panel['title']} covers another"
                cells.add((x, y))
    assert max(x for x, _ in cells) == 23


def test_every_counter_of_estd_is_on_the_dashboard() -> None:
    shown = " ".join(read_dashboard())
    assert [name for name in COUNTED if name not in shown] == []
