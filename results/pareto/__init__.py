"""Which trials dominate which: fronts and hypervolume of a table."""
