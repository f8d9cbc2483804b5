"""What a study asks, what its trials share, and what becomes of them in the ledger."""
