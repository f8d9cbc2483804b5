"""Filters as short series in y and x (Costain & Prisacariu): bases, coefficients, and their allocation to filters."""
