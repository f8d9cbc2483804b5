"""What is kept, asked, shown and shipped: the ledger of trials, its fronts, queries, reports and exports."""
