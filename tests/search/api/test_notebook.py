"""A study in a real notebook: the class of its network is defined there, and a bar shows how far it is."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

CELLS = (
    """
import torch
from torch import nn

import overtone as ot

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))

labels = torch.arange(120) % 4
images = torch.randn(120, 1, 8, 8)
net = Net()
""",
    'study = ot.create_study("demo", model=net, data=(images, labels), epochs=1)',
    "study.optimize(n_trials=3)",
    "study.front()",
)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_cell_that_searches_shows_one_bar(tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    searched, table = (cell.outputs for cell in notebook.cells[2:])
    bars = [output.data["text/html"] for output in searched if "text/html" in output.get("data", {})]
    (bar,) = (bar for bar in bars if "<progress" in bar)
    assert re.search(r'trials <progress value="3" max="3".* 3/3 .*front \d, hypervolume 0\.\d+', bar)
    assert not [output for output in searched if "[1/3]" in str(output)]
    assert "SearchResult(done=3, wanted=3, exhausted=False)" in str(searched[-1])
    assert "val_top1" in table[-1].data["text/html"]
