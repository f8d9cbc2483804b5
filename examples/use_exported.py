"""Load an exported model and classify the test images: python examples/use_exported.py demo/knee [parquet:DIR]."""

import json
import sys
from pathlib import Path

import torch

from spaces import load_model
from trainers.data import DataSpec, load_data

folder = Path(sys.argv[1])
config = json.loads((folder / "config.json").read_text())
model = load_model(folder / "model.safetensors")

dataset = sys.argv[2] if len(sys.argv) > 2 else config["dataset"]
test = load_data(DataSpec(**{**config["spec"]["data"], "name": dataset})).test
mean = torch.tensor(config["mean"])[:, None, None]
std = torch.tensor(config["std"])[:, None, None]
with torch.no_grad():
    logits = model((test.images / 255 - mean) / std)

right = int((logits.argmax(1) == test.labels).sum())
top1 = right / len(test)
stated = config["test_metrics"]["test_top1"]
size = (folder / "model.safetensors").stat().st_size
print(f"{folder}/model.safetensors ({size:,} bytes) classifies {right} of {len(test)} test images correctly;", end=" ")
print(f"its model card states test_top1 = {stated:.4f}, this is {top1:.4f}")
sys.exit(abs(top1 - stated) > 1e-9)
