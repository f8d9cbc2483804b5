"""What the trials of a study say, with how sure that is."""
