"""The lines of a notebook, run as a script that is interrupted: its network's class is defined in the script itself."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys

import torch
from torch import nn

import overtone as ot
from layers import UsageError
from search import Resources


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1, stride=2)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.norm1(self.conv1(x)))
        return self.head(torch.relu(self.conv2(x)).mean((2, 3)))


torch.manual_seed(0)
net = Net()
labels = torch.arange(240) % 4
images = torch.randn(240, 1, 8, 8) + labels.view(-1, 1, 1, 1)
store, one = sys.argv[1], Resources(concurrency=1)
study = ot.create_study(
    "demo",
    model=net,
    data=(images, labels),
    objectives=["val_top1", "size_bytes"],
    max_size="2kB",
    epochs=1,
    store=store,
)
for attempt in range(2):
    try:
        study.optimize(n_trials=6, resources=one)
    except KeyboardInterrupt as stopped:
        print("stopped:", stopped)
front = study.front()
print("columns", set(front) >= {"trial", "val_top1", "size_bytes", "probability_dominated"})
print("sizes", study.query("size_bytes < 1e3")["size_bytes"].max() < 1000)
print("rows", study.sql("SELECT count(*) AS n FROM trials")["n"].item())
print("knobs", list(study.importance()))
study.report(f"{store}/report.html")
study.plot_front(f"{store}/front.svg")
print("repeats", study.confirm(n_seeds=1, pick="best", resources=one).done)
trial = study.best(max_size="2kB")
print("knee", study.knee().size_bytes <= 2000, study.trial(trial.id).score == trial.score == front["val_top1"].max())
model = trial.load()
for format in "safetensors", "onnx":
    card = trial.export(f"{store}/{format}", format=format)
    print("export", card["differing"] <= 1, card["own_process"])
loaded = ot.load_model(f"{store}/safetensors/model.safetensors", model=net)
print("loaded", torch.equal(loaded(images[:4]), model(images[:4])))
small, cost = ot.compress(net, {"conv2": {"harmonics": 2, "bits": 6}}, images=images)
print("compressed", cost.size_bytes < 2000, small(images[:1]).shape == (1, 4))
again = ot.load_study("demo", store=store, model=net, data=(images, labels))
print("more", again.optimize(more=1, resources=one).done)
for model, data in (None, None), (net, None), (net, (images[:, :, :4], labels)), (Net(), (images, labels)):
    try:
        ot.load_study("demo", store=store, model=model, data=data).optimize(more=1)
    except UsageError as error:
        print("refused:", error)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_lines_of_a_notebook_go_on_after_ctrl_c(tmp_path: Path) -> None:
    (tmp_path / "lines.py").write_text(SCRIPT)
    store = tmp_path / "runs"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "lines.py"), str(store)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as script:
        assert script.stderr is not None
        lines: list[str] = []
        for line in script.stderr:
            if "[2/6]" in line and "[2/6]" not in "".join(lines):
                script.send_signal(signal.SIGINT)
            lines.append(line)
        out = script.stdout.read() if script.stdout else ""
    assert script.returncode == 0, out + "".join(lines)
    said = out.splitlines()
    assert said[0].startswith("stopped: ")
    assert said[0].endswith(" of 6 trials are done; the same call goes on")
    assert 2 <= int(said[0].split()[1]) < 6
    assert [line for line in said if "False" in line] == ["export True False"]
    assert {"repeats 1", "rows 6"} <= set(said)
    assert "more 7" in said
    refused = [line.removeprefix("refused: ") for line in said if line.startswith("refused: ")]
    assert refused[0] == "the study was begun with the object 'object:Net': give it again in Python, as model"
    assert refused[1] == "the study was begun with the object 'object:tensors': give it again in Python, as data"
    assert refused[2].startswith("study 'demo' exists with data_fingerprint ")
    assert refused[3].startswith("study 'demo' exists with weights_sha256 ")
    pickled = [
        path for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes()[:2] in (b"\x80\x04", b"\x80\x05")
    ]
    assert not pickled
