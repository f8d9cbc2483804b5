"""What one trial does: data, compress, fine-tune, measure, write the packed model; it runs without Ray and Optuna."""
