"""Chromium shows the HTML report: the script runs, search and filters work, nothing is wider than a phone."""

from __future__ import annotations

import json
import re
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from virtio_ipsec.conformance.reports.page import to_html
from virtio_ipsec.conformance.result import CaseResult, Check, Identity
from virtio_ipsec.conformance.runner import report_of
from virtio_ipsec.conformance.trace import Event
from virtio_ipsec.conformance.verdict import Verdict
from virtio_ipsec.specification import load_clauses

pytestmark = pytest.mark.interop("chromium")

#: Plays a reader and leaves what it saw in the document, which the browser then prints.
PROBE = """
<script>
const find = (id) => document.getElementById(id);
const shown = (q) => [...document.querySelectorAll(q)].filter((e) => !e.hidden).map((e) => e.id);
const type = (text) => { find("search").value = text; find("filters").dispatchEvent(new Event("input")); };
const seen = {};
try {
  seen.cases = shown("details.case");
  seen.clauses = shown("article").length;
  seen.width = [document.documentElement.scrollWidth, innerWidth];
  type("needle in the evidence");
  seen.found = shown("details.case");
  type("");
  for (const box of document.querySelectorAll("#filters input[type=checkbox]")) box.checked = box.value === "WARN";
  type("");
  seen.warned = shown("details.case");
  for (const box of document.querySelectorAll("#filters input[type=checkbox]")) box.checked = true;
  find("level").value = "SHOULD";
  type("");
  seen.should = shown("article").every((id) => find(id).dataset.level === "SHOULD");
  find("level").value = "";
  type("");
  seen.again = shown("details.case").length;
  location.hash = "#ADM-DEV-05";
  dispatchEvent(new Event("hashchange"));
  seen.folded = Boolean(find("ADM-DEV-05").closest("details:not([open])"));
  seen.hostile = document.body.dataset.hostile || "";
} catch (error) { seen.error = String(error); }
const out = document.createElement("pre");
out.id = "probe";
out.textContent = JSON.stringify(seen);
document.body.append(out);
</script>
"""
HOSTILE = "<img src=x onerror=\"document.body.dataset.hostile='yes'\">"


def case(name: str, verdict: Verdict, evidence: str) -> CaseResult:
    check = Check("ADM-DEV-05", verdict, f"expected {HOSTILE}", "x" * 400)
    event = Event("admin", evidence, ("> " + "00 " * 300,))
    return CaseResult(name, f"Title {HOSTILE}", ("ADM-DEV-05",), verdict, (check,), events=(event,))


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder: Path = tmp_path_factory.mktemp("page")
    cases = [
        case("fails", Verdict.FAIL, "a needle in the evidence"),
        case("warns", Verdict.WARN, "nothing"),
        case("passes", Verdict.PASS, HOSTILE),
    ]
    report = report_of(Identity("loopback", "virtio-1.4", True, 1), cases, seed=0, seconds=1)
    path = folder / "page.html"
    path.write_text(to_html(report).replace("</body>", PROBE + "</body>"))
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={folder / 'profile'}", "--window-size=500,900", "--virtual-time-budget=5000", "--dump-dom",
        path.as_uri(),
    ]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search('<pre id="probe">(.*?)</pre>', dom)
    assert found, dom[-2000:]
    result: dict[str, Any] = json.loads(unescape(found[1]))
    assert "error" not in result, result
    return result


def test_everything_is_there_and_nothing_is_wider_than_the_window(seen: dict[str, Any]) -> None:
    assert seen["cases"] == ["case-fails", "case-warns", "case-passes"]
    assert seen["clauses"] == sum("virtio-1.4" in clause.dialects for clause in load_clauses())
    assert seen["width"][0] <= seen["width"][1] <= 500


def test_search_looks_into_the_evidence(seen: dict[str, Any]) -> None:
    assert seen["found"] == ["case-fails"]


def test_filters_choose_by_verdict_and_level_and_can_be_taken_back(seen: dict[str, Any]) -> None:
    assert seen["warned"] == ["case-warns"]
    assert seen["should"] is True
    assert seen["again"] == 3


def test_a_link_opens_what_it_leads_to(seen: dict[str, Any]) -> None:
    assert seen["folded"] is False


def test_text_from_a_device_stays_text(seen: dict[str, Any]) -> None:
    assert seen["hostile"] == ""
