"""The formats that images come in."""
