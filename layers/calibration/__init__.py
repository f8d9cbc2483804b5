"""Compressed layers fitted, in closed form, to the outputs that they should give."""
