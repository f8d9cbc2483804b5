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

data = DataSpec(**{**config["spec"]["data"], "name": sys.argv[2] if len(sys.argv) > 2 else config["dataset"]})
images, labels = (split := load_data(data).test).images, split.labels
mean, std = (torch.tensor(config[name])[:, None, None] for name in ("mean", "std"))
with torch.no_grad():
    logits = model((images / 255 - mean) / std)

right = int((logits.argmax(1) == labels).sum())
size = (folder / "model.safetensors").stat().st_size
print(f"{folder}/model.safetensors ({size:,} bytes) names {right} of {len(labels)} test images right;", end=" ")
print(f"its model card says test_top1 = {config['test_top1']:.4f}, this is {right / len(labels):.4f}")
sys.exit(abs(right / len(labels) - config["test_top1"]) > 1e-9)
