"""Names of the ways to initialize a compressed network, and to choose the filters that stay as its templates."""

__all__ = ["INITS", "SALIENCIES"]

INITS = ("calibrated", "least_squares", "gradient_descent")
"""`calibrated`: fitted to the uncompressed network's outputs on training images without their labels, norms
re-estimated (`trainers.start.calibration`); `least_squares`: nearest to the trained filters, in closed form;
`gradient_descent`: the same answer, found as Costain & Prisacariu do (eq. 5)."""

SALIENCIES = ("magnitude", "gradient")
"""Measures of how much a filter matters (`trainers.start.saliency`)."""
