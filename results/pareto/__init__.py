"""Pareto dominance among the trials of a table: fronts, ranks and hypervolume."""
