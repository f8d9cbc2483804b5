"""Who asks, who runs, when to stop; the command line."""
