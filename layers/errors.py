"""The two errors a user may see: one sentence that names what was given and what is allowed."""

__all__ = ["OvertoneError", "UsageError"]


class OvertoneError(Exception):
    """Something outside the call went wrong (a file, a store, a trial); the command line exits with 1."""


class UsageError(OvertoneError, ValueError):
    """The call asked for what is not allowed; the command line exits with 2."""
