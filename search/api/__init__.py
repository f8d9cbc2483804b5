"""The Python interface: studies, their trials, and the compression of a single network."""
