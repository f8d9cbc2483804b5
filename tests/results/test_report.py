import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from layers.errors import OvertoneError, UsageError
from results.ledger import Ledger
from results.report import write_report
from results.schema import TrialStatus
from results.store import Store
from results.summary import summarise
from tests.results.conftest import RECORD, UNCOMPRESSED

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"


class _Reader(HTMLParser):
    """Tags, and the text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script" and self.cdata_elem == "script":
            self.scripts.append(data)
        elif self.cdata_elem is None:
            self.text += data


@pytest.fixture(scope="module")
def html(full_ledger, tmp_path_factory):
    return write_report(full_ledger, "demo", tmp_path_factory.mktemp("report") / "report.html").read_text()


@pytest.fixture
def hostile(tmp_path, make_row):
    """A ledger in which every text that may be free is markup."""
    ledger = Ledger(Store(tmp_path / "<b>runs"))
    names = {"model": EVIL, "dataset": f"{EVIL}$\\frac", "created_at": EVIL}
    ledger.create_study("evil", {**RECORD, **names})
    blocks = [{"block": EVIL, "basis": EVIL, "harmonics_y": 1, "harmonics_x": 2, "bits": 3}]
    texts = {"study": "evil", "blocks": blocks, "device": EVIL, "model": EVIL}
    ledger.append(make_row(**texts, val_top1=0.95, model_sha256="0" * 64))
    ledger.append(make_row(**texts, number=1, size_bytes=5))
    ledger.append(make_row(**texts, number=2, status=TrialStatus.FAILED, error=f"</table>{EVIL}", val_top1=None))
    return ledger


def test_page_shows_every_front_member_with_its_export_command(full_ledger, html):
    page = _Reader(html)
    members = full_ledger.front("demo").to_pylist()
    for row in members:
        assert row["trial"] in page.text
        assert f"{row['size_bytes'] / 1e3:,.2f}" in page.text
        assert f"--study demo --store {full_ledger.store.label} --pick {row['trial']} " in page.text
    assert page.text.count("overtone export") == len(members)
    assert sum(tag == "button" for tag, _ in page.tags) == len(members)
    assert page.text.count("knee") == 1


def test_page_says_what_was_searched(full_ledger, html):
    page, summary = _Reader(html), summarise(full_ledger, "demo")
    counts = {status: summary.count(status) for status in TrialStatus}
    for text in (
        "resnet8",
        "digits",
        "val_top1 (max), size_bytes (min), flops (min)",
        f"{counts[TrialStatus.FINISHED]} finished, {counts[TrialStatus.FAILED]} failed, 0 pruned",
        f"{summary.hypervolume:.4f}",
        "97.00 % · 312.0 kB · 25.00 MFLOPs",
        "training run of a single seed",
    ):
        assert text in page.text
    assert page.text.count("out of memory") == min(counts[TrialStatus.FAILED], 20)


def _plots(page: _Reader) -> list[tuple[list[dict[str, object]], dict[str, object]]]:
    """Traces and layout of each picture, as the page's scripts hand them to plotly."""
    found, decoder = [], json.JSONDecoder()
    for script in page.scripts:
        for match in re.finditer(r'Plotly\.newPlot\(\s*"[^"]+",\s*', script[-2_000_000:] if len(script) < 3e6 else ""):
            traces, end = decoder.raw_decode(script, match.end())
            layout, _ = decoder.raw_decode(script, script.index("{", end))
            found.append((traces, layout))
    return found


def test_pictures_hold_all_trials_front_baseline_and_knee(full_ledger, html):
    plots, summary = _plots(_Reader(html)), summarise(full_ledger, "demo")
    assert len(plots) == 3
    for (traces, layout), (cost, unit) in zip(plots[:2], [("size_bytes", 1e3), ("flops", 1e6)], strict=True):
        points = {trace["name"]: trace for trace in traces if trace.get("mode") == "markers"}
        assert layout["xaxis"]["type"] == "log"
        shown = len(points["other trials"]["text"]) + len(points["front"]["text"])
        assert shown == summary.finished.num_rows
        expected = [value / unit for value in summary.front.column(cost).to_pylist()]
        assert points["front"]["x"] == pytest.approx(expected)
        assert points["uncompressed"]["x"] == [UNCOMPRESSED[cost] / unit]
        assert points["uncompressed"]["y"] == [pytest.approx(97.0)]
        assert points["knee"]["x"] == [summary.knee[cost] / unit]
        assert "layer1: cosine 2x3, 50 % templates, G=2, 8 bits" in points["front"]["text"][0]
    assert plots[2][0][0]["y"] == pytest.approx(summary.history.tolist())


def test_page_loads_nothing_and_forbids_it(html):
    page = _Reader(html)
    assert not [attrs for tag, attrs in page.tags if "src" in attrs or tag == "link"]
    policies = [attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    assert "default-src 'none'" in policies[0]
    assert "http" not in policies[0]
    assert html.count("plotly.js v") == 1
    assert "prefers-color-scheme: dark" in html


def test_page_is_readable_by_keyboard(html):
    tags = _Reader(html).tags
    assert ("a", {"class": "skip", "href": "#front"}) in tags
    assert any(attrs.get("id") == "front" for _, attrs in tags)
    assert all(a.get("tabindex") == "0" and a.get("aria-label") for _, a in tags if a.get("class") == "scroll")
    assert dict(tags)["html"] == {"lang": "en"}


def test_hostile_names_stay_text(hostile, tmp_path):
    text = write_report(hostile, "evil", tmp_path / "report.html").read_text()
    assert "<script>alert" not in text
    assert "onerror=alert(2)>" not in text
    page = _Reader(text)
    assert page.text.count(EVIL) >= 4
    assert not [tag for tag, attrs in page.tags if tag in ("img", "b") or "onerror" in attrs]
    hover = [text for traces, _ in _plots(page)[:2] for trace in traces for text in trace.get("text", [])]
    assert hover
    assert not [line for line in hover if "<script" in line or "<img" in line]
    command = re.search(r"overtone export [^\n]*?evil-t000000000", page.text)
    assert command
    assert "--store '" in command[0]
    for suffix in (".png", ".svg"):
        assert write_report(hostile, "evil", tmp_path / f"front{suffix}").stat().st_size > 1000


def test_study_without_results_has_a_report_too(ledger, make_row, tmp_path):
    for _ in range(2):
        page = _Reader(write_report(ledger, "demo", tmp_path / "report.html").read_text())
        assert "No trial has finished yet" in page.text
        with pytest.raises(OvertoneError, match="study 'demo' has no finished trial to draw"):
            write_report(ledger, "demo", tmp_path / "front.png")
        for number in range(25):
            ledger.append(make_row(number=number, status=TrialStatus.FAILED, error="diverged", val_top1=None))
    assert page.text.count("diverged") == 20
    assert "5 more are in the ledger" in page.text
    assert not (tmp_path / "front.png").exists()


def test_single_trial_without_a_baseline_is_drawn(tmp_path, make_row):
    ledger = Ledger(Store(tmp_path / "runs"))
    ledger.create_study("demo", {"objectives": ["val_top1", "size_bytes", "latency_ms"]})
    ledger.append(make_row(latency_ms=1.25))
    page = _Reader(write_report(ledger, "demo", tmp_path / "report.html").read_text())
    assert "1.25" in page.text
    assert "its model was not kept" in page.text
    write_report(ledger, "demo", tmp_path / "front.svg")


def test_pictures_are_of_their_kind_and_the_same_each_time(full_ledger, tmp_path):
    png = write_report(full_ledger, "demo", tmp_path / "a.png").read_bytes()
    svg = write_report(full_ledger, "demo", tmp_path / "a.svg").read_bytes()
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert b"<svg" in svg[:1000]
    assert png == write_report(full_ledger, "demo", tmp_path / "b.png").read_bytes()
    assert svg == write_report(full_ledger, "demo", tmp_path / "b.svg").read_bytes()


def test_other_endings_and_places_that_cannot_be_written_are_refused(full_ledger, tmp_path):
    for name in ("report", "report.pdf", "report.HTM"):
        with pytest.raises(UsageError, match=rf"{name}'\) must end in \.html, \.png or \.svg"):
            write_report(full_ledger, "demo", tmp_path / name)
    (tmp_path / "file").write_text("x")
    for name in ("report.html", "front.png"):
        with pytest.raises(OvertoneError, match=r"^cannot write '[^\n]*': [^\n]+$|is a file"):
            write_report(full_ledger, "demo", tmp_path / "file" / name)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_page_draws_itself_in_a_browser(full_ledger, hostile, tmp_path):
    for ledger, study in ((full_ledger, "demo"), (hostile, "evil")):
        out = write_report(ledger, study, tmp_path / f"{study}.html")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        flags += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
        command = ["chromium", *flags, "--virtual-time-budget=5000", "--dump-dom", out.as_uri()]
        dom = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout
        assert dom.count('class="scatterlayer') == 3
        assert "uncompressed</text>" in dom
        assert 'data-title="Share' not in dom
