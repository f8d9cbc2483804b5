"""What one trial does: data, compress, fine-tune, measure, write the packed model; it runs without Ray and Optuna.

Each room imports only those after it: `train` (networks from scratch) and `__main__`, `trial`, `spec` and `estimate`,
`training` (the loop and its parts), `start` (weights before the first step) and `evaluation`, `data`, `runtime` (the
machine).
"""
