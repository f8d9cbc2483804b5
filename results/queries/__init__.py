"""Queries of a study, and their answers in other formats."""
