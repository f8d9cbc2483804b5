"""The ledger: what is kept of all studies in a store."""
