"""Figures of a layer's filters and of pruning rates, and how figures are saved; knows no ledger."""
