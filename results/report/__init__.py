"""The report of a study: one HTML page, or a still picture of its front."""
