import base64
import hashlib
import json
import re
import shlex
from html.parser import HTMLParser

import pytest
from plotly.offline import get_plotlyjs

from layers.errors import OvertoneError, UsageError
from results.analysis.importance import importance
from results.analysis.summary import summarize
from results.ledger.codec import encode
from results.ledger.ledger import Ledger
from results.ledger.store import Store
from results.report.plot import plot_front
from results.report.report import write_report
from results.schema import TrialStatus, to_table
from tests.results.conftest import BLOCKS, RECORD, UNCOMPRESSED

COSTS = ("size_bytes", "flops", "parameters")
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
    ledger.append(make_row(**texts, score=0.95, model_sha256="0" * 64))
    ledger.append(make_row(**texts, number=1, size_bytes=5))
    ledger.append(make_row(**texts, number=2, status=TrialStatus.FAILED, error=f"</table>{EVIL}", score=None))
    return ledger


def _data(text: str) -> dict:
    """The page's data, as a browser finds them: up to the first end tag of a script."""
    start = text.index('<script type="application/json" id="data">')
    return json.loads(text[text.index(">", start) + 1 : text.index("</script>", start)])


def test_page_holds_every_trial_and_front_member(full_ledger, html):
    data, summary = _data(html), summarize(full_ledger, "demo")
    trials = data["trials"]
    for name in ("trial", "status", "number", "size_bytes", "flops"):
        assert trials[name] == summary.trials.column(name).to_pylist()
    assert set(trials["model"]) == {"stored"}
    assert trials["score"] == pytest.approx(summary.trials.column("score").to_pylist())
    errors = [None if index < 0 else trials["errors"][index] for index in trials["error"]]
    assert errors == summary.trials.column("error").to_pylist()
    members = [trials["trial"][member["index"]] for member in data["front"]]
    assert members == summary.front.column("trial").to_pylist()
    assert trials["trial"][data["knee"]] == summary.knee["trial"]
    assert data["score_name"] == "val_top1"
    assert data["uncompressed"]["at"] == {name: UNCOMPRESSED[name] for name in ("score", *COSTS)}
    assert data["uncompressed"]["lines"] == ["uncompressed", "97.00 % · 312.0 kB · 25.00 MFLOPs"]
    command = f"overtone export --study demo --store {full_ledger.store.label} --format safetensors"
    assert data["export"] == {"command": command, "out": "demo-", "quoted": {}}
    assert [axis["key"] for axis in data["axes"]] == [
        "size_bytes",
        "flops",
        "latency_ms",
        "latency_b64_ms",
        "parameters",
    ]
    assert data["history"]["hypervolume"][-1] == pytest.approx(summary.hypervolume, abs=1e-6)


def test_page_says_what_was_searched(full_ledger, html):
    page, summary = _Reader(html), summarize(full_ledger, "demo")
    counts = {status: summary.count(status) for status in TrialStatus}
    for text in (
        "resnet8",
        "digits",
        "val_top1 (max), size_bytes (min), flops (min)",
        f"{counts[TrialStatus.FINISHED]} finished, {counts[TrialStatus.FAILED]} failed, 0 pruned",
        f"{summary.hypervolume:.4f}",
        "97.00 % · 312.0 kB · 25.00 MFLOPs",
        "the reference (0.00 % · 312.0 kB · 25.00 MFLOPs)",
        "training run of a single seed",
    ):
        assert text in page.text
    assert page.text.count("out of memory") == min(counts[TrialStatus.FAILED], 20)


def test_page_loads_nothing_and_forbids_it(html):
    page = _Reader(html)
    assert not [attrs for tag, attrs in page.tags if "src" in attrs or tag == "link"]
    policies = [attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    assert "default-src 'none'" in policies[0]
    assert "http" not in policies[0]
    running = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    hashes = {f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in running}
    assert set(re.search(r"script-src ([^;]*);", policies[0])[1].split()) == hashes
    assert len(hashes) == 2
    assert html.count("plotly.js v") == 1
    assert "color-scheme: light dark" in html


def test_page_is_readable_by_keyboard(html):
    tags = _Reader(html).tags
    assert ("a", {"class": "skip", "href": "#front"}) in tags
    ids = {attrs["id"] for _, attrs in tags if "id" in attrs}
    assert "front" in ids
    assert all(a.get("tabindex") == "0" and a.get("aria-label") for _, a in tags if a.get("class") == "scroll")
    assert all(a.get("aria-label") for _, a in tags if a.get("role") in ("img", "application", "region", "group"))
    assert all(a["aria-labelledby"] in ids for _, a in tags if "aria-labelledby" in a)
    assert all(a["aria-describedby"] in ids for _, a in tags if "aria-describedby" in a)
    assert not [a for _, a in tags if int(a.get("tabindex") or 0) > 0]
    assert dict(tags)["html"] == {"lang": "en"}


def test_hostile_names_stay_text(hostile, tmp_path):
    text = write_report(hostile, "evil", tmp_path / "report.html").read_text()
    assert "<script>alert" not in text
    assert "onerror=alert(2)>" not in text
    page = _Reader(text)
    assert page.text.count(EVIL) >= 4
    assert not [tag for tag, attrs in page.tags if tag in ("img", "b") or "onerror" in attrs]
    data = _data(text)
    assert data["networks"]["names"] == [EVIL]
    assert data["trials"]["errors"] == [f"</table>{EVIL}"]
    assert data["trials"]["model"] == ["rerun", None, None]
    assert "--store '" in data["export"]["command"]
    for suffix in (".png", ".svg"):
        assert plot_front(hostile, "evil", tmp_path / f"front{suffix}").stat().st_size > 1000


def test_ids_that_need_quotes_are_quoted_for_a_shell(tmp_path, make_row):
    ledger = Ledger(Store(tmp_path / "my runs"))
    ledger.create_study("demo", RECORD)
    rows = [make_row(number=number, trial=trial) for number, trial in enumerate(("a;b", "a'b", "plain-1"))]
    ledger.store.write_bytes("trials/study=demo/foreign.parquet", encode(to_table(rows)))
    export = _data(write_report(ledger, "demo", tmp_path / "report.html").read_text())["export"]
    assert shlex.split(export["command"])[2:6] == ["--study", "demo", "--store", str(tmp_path / "my runs")]
    assert list(export["quoted"]) == ["a;b", "a'b"]
    for trial, quoted in export["quoted"].items():
        assert shlex.split(f"--pick {quoted} --out {export['out']}{quoted}") == [
            *("--pick", trial),
            *("--out", f"demo-{trial}"),
        ]


def test_study_without_results_has_a_report_too(ledger, make_row, tmp_path):
    for _ in range(2):
        page = _Reader(write_report(ledger, "demo", tmp_path / "report.html").read_text())
        assert "No trial has finished yet" in page.text
        with pytest.raises(OvertoneError, match="study 'demo' has no finished trial to draw"):
            plot_front(ledger, "demo", tmp_path / "front.png")
        for number in range(25):
            ledger.append(make_row(number=number, status=TrialStatus.FAILED, error="diverged", score=None))
    assert page.text.count("diverged") == 20
    assert "5 more are in the ledger" in page.text
    assert not (tmp_path / "front.png").exists()


def test_single_trial_without_a_baseline_is_drawn(tmp_path, make_row):
    ledger = Ledger(Store(tmp_path / "runs"))
    ledger.create_study("demo", {"score_name": "val_top1", "objectives": ["val_top1", "size_bytes", "latency_ms"]})
    place = {"latency_runtime": "openvino", "latency_threads": 1, "latency_device": "Z80"}
    ledger.append(make_row(latency_ms=1.25, **place))
    page = _Reader(write_report(ledger, "demo", tmp_path / "report.html").read_text())
    data = _data((tmp_path / "report.html").read_text())
    assert data["trials"]["latency_ms"] == [1.25]
    assert data["trials"]["model"] == [None]
    assert "1 finished" in page.text
    assert "openvino on Z80, 1 thread" in page.text
    assert "What matters" not in page.text  # no knob varied
    plot_front(ledger, "demo", tmp_path / "front.svg")


def test_a_score_has_its_own_name(tmp_path, make_row):
    ledger = Ledger(Store(tmp_path / "runs"))
    record = {**RECORD, "score_name": "val_iou", "objectives": ["val_iou", "size_bytes", "flops"]}
    ledger.create_study("demo", record)
    for number, harmonics in enumerate((2, 3)):
        block = {**BLOCKS[1], "harmonics_y": harmonics}
        ledger.append(make_row(number=number, score=0.5 + harmonics / 10, blocks=[block]))
    text = write_report(ledger, "demo", tmp_path / "report.html").read_text()
    page = _Reader(text)
    assert _data(text)["score_name"] == "val_iou"
    assert page.text.count("val_iou") == 4  # objectives, note, legend of the axes, effects
    assert "top1" not in text.replace(get_plotlyjs(), "")
    assert "<!-- val_iou (%) -->" in plot_front(ledger, "demo", tmp_path / "front.svg").read_text()


def test_other_endings_and_places_that_cannot_be_written_are_refused(full_ledger, tmp_path):
    for name in ("report", "report.pdf", "report.HTM"):
        with pytest.raises(UsageError, match=rf"^out \(='.*{name}'\) must end in \.html$"):
            write_report(full_ledger, "demo", tmp_path / name)
    for name in ("front.png", "front.svg"):
        with pytest.raises(UsageError, match=rf"{name}'\) must end in \.html: `overtone plot front` draws"):
            write_report(full_ledger, "demo", tmp_path / name)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OvertoneError, match=r"^cannot write '[^\n]*report\.html': [^\n]+$"):
        write_report(full_ledger, "demo", tmp_path / "file" / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_front_repeated_with_other_seeds_carries_intervals(ledger, make_row, tmp_path):
    for number, size in enumerate((10_000, 20_000)):
        ledger.append(make_row(number=number, size_bytes=size, score=0.8 + number / 10))
    plain = plot_front(ledger, "demo", tmp_path / "plain.svg").read_bytes()
    for number, score in ((2, 0.78), (3, 0.82)):
        ledger.append(make_row(number=number, score=score, seed=number, repeat_of="t000000000"))
    text = write_report(ledger, "demo", tmp_path / "report.html").read_text()
    data = _data(text)
    repeated, single = data["front"]
    assert [data["trials"]["trial"][member["index"]] for member in (repeated, single)] == ["t000000000", "t000000001"]
    assert (repeated["seeds"], single["seeds"]) == (3, 1)
    assert repeated["score_mean"] == pytest.approx(0.8)
    assert repeated["score_low"] < 0.8 < repeated["score_high"]
    assert single["score_low"] is None
    assert "1 of the front" in _Reader(text).text
    assert plot_front(ledger, "demo", tmp_path / "sure.svg").read_bytes() != plain


def test_importance_is_shown_if_a_knob_varied(ledger, make_row, tmp_path, html):
    for number in range(12):
        block = {**BLOCKS[1], "bits": 4 + number % 3}
        ledger.append(make_row(number=number, score=0.5 + (number % 3) / 10, blocks=[block]))
    text = write_report(ledger, "demo", tmp_path / "report.html").read_text()
    shown = _data(text)["importance"]
    assert shown["shares"] == [{"knob": "layer1.bits", "share": 1.0}]
    assert {key: shown[key] for key in ("effects", "shared")} == {
        key: importance(ledger, "demo")[key] for key in ("effects", "shared")
    }
    assert "What matters" in _Reader(text).text
    assert "What matters" not in _Reader(html).text


def test_published_rows_are_shown_for_their_model_alone(ledger, make_row, tmp_path, html):
    ledger.append(make_row())
    ledger.update_study("demo", {"model": "vgg16", "dataset": "cifar10"})
    page = _Reader(write_report(ledger, "demo", tmp_path / "report.html").read_text())
    assert "Published on other training data (CIFAR-10)" in page.text
    assert "published top-1" in page.text
    assert "93.92 %" in page.text
    assert "Published on" not in _Reader(html).text


def test_sketches_are_marked_as_never_trained_and_in_no_other_figure(ledger, random_rows, make_row, tmp_path):
    sketched = {"status": TrialStatus.SKETCH, "score": None, "epochs_run": 0, "init_score": 0.8125, "size_bytes": 4321}
    ledger.append(make_row(trial="sketched", **sketched))
    alone = write_report(ledger, "demo", tmp_path / "alone.html").read_text()
    assert "No trial has finished yet" in alone
    assert "Sketched, never trained: 1 network<" in alone
    assert plot_front(ledger, "demo", tmp_path / "alone.svg").read_text().count("sketch (never trained)") > 0
    other = Ledger(Store(tmp_path / "other"))
    other.create_study("demo", RECORD)
    for row in random_rows(20):
        ledger.append(row)
        other.append(row)
    text = write_report(ledger, "demo", tmp_path / "report.html").read_text()
    data = _data(text)
    (sketch,) = data.pop("sketches")
    assert sketch["at"]["score"] == 0.8125
    assert sketch["lines"][:2] == [
        "sketched: a sketch, calibrated and never trained",
        "81.25 % · 4.3 kB · 2.00 MFLOPs",
    ]
    without = _data(write_report(other, "demo", tmp_path / "without.html").read_text())
    assert without.pop("sketches") == []
    assert {**data, "export": None} == {**without, "export": None}
    assert "0 sketch" not in text
