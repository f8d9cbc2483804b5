"""The ledger of trials and everything that is made from it: fronts, statistics, queries, reports, figures, exports."""
