"""The tables that queries of a study see, by name."""

__all__ = ["TABLE_NAMES"]

TABLE_NAMES = ("trials", "front", "epochs", "blocks", "confirmations", "sketches", "baseline")
