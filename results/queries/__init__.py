"""Questions to a study, and their answers in other formats."""
