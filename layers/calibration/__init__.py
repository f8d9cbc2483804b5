"""Compressed layers fitted in closed form to the outputs of the original layers."""
