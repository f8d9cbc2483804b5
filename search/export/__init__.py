"""Models handed over, and the proof that they are what the ledger says."""
