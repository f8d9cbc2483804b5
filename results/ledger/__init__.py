"""The ledger: the studies of a store with their trials, fronts and packed models."""
