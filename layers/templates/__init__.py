"""Filters rebuilt from a few templates by cheap spatial transforms (Miles & Mikolajczyk)."""
