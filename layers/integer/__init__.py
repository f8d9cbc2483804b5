"""Layers that compute in int8: how filters and activations are rounded, and where in a network."""
