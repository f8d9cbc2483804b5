"""A study: its settings, what its trials share, and its part of the ledger."""
