"""Statistics of a study's trials, and how sure they are."""
