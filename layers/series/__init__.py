"""Filters as short series in y and x (Costain & Prisacariu): bases, coefficients, and how they are shared out."""
