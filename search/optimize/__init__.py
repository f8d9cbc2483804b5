"""Which config to try next, and which trial need not be finished."""
