"""Exporting models, and verifying that they are what the ledger says."""
