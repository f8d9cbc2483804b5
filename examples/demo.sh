#!/usr/bin/env bash
# All steps on real digits: a baseline, a search, its front, a report, an exported model. Everything goes to ./demo.
# Run again, it continues where it stopped.
set -euo pipefail

say() { printf '\n$ %s\n' "$*"; "$@"; }

mkdir -p demo
if [ ! -f demo/resnet8.safetensors ]; then
  say overtone train --model resnet8 --dataset digits --out demo/resnet8.safetensors
fi
say overtone search --model resnet8 --weights demo/resnet8.safetensors --dataset digits --study demo --store demo/runs \
  --trials "${TRIALS:-32}"
say overtone report --study demo --store demo/runs --out demo/report.html
if [ ! -d demo/knee ]; then
  say overtone export --study demo --store demo/runs --pick knee --out demo/knee
fi
say python "$(dirname "$0")/use_exported.py" demo/knee
