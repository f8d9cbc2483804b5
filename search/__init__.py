"""Searching: which config to try next, trials on Ray, exports, and the command line."""
