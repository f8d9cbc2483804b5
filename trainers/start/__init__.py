"""What happens to the weights of a compressed network before its first training step."""
