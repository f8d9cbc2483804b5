"""Trials on the workers of a Ray cluster, and a study from its start to its end."""
