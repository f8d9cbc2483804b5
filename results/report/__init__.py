"""The report of a study as one HTML page, and its front as a still picture."""
