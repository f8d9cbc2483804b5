"""The machine that a trial runs on: device, threads, memory, cache, latency, determinism."""
