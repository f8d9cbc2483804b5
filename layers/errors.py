"""What a user may be told: errors, each one sentence that names what was given and what is allowed, and a warning."""

__all__ = ["OvertoneError", "OvertoneWarning", "UsageError"]


class OvertoneError(Exception):
    """Something outside the call went wrong (a file, a store, a trial); the command line exits with 1."""


class UsageError(OvertoneError, ValueError):
    """The call asked for what is not allowed; the command line exits with 2."""


class OvertoneWarning(UserWarning):
    """What a user should know and that stops nothing; the command line shows it, and no other warnings."""
