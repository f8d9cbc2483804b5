"""What a network is given of a set's images, in a line that people read before anything is trained."""

from trainers.data.dataset import Data
from trainers.data.spec import DataSpec

__all__ = ["describe_images"]


def describe_images(spec: DataSpec, data: Data) -> str:
    """Return shape, resizing and normalization of the images, and where the normalization comes from."""
    channels, height, width = data.val.image_shape
    spec = spec.resolved()
    parts = [f"images of {spec.label!r}: {channels}x{height}x{width}"]
    if spec.image_size is not None:
        length = f" to {spec.resize_size} at the shorter side" if spec.resize_size else ""  # else the images decide
        parts.append(f"(resized{length}, {spec.interpolation or 'bilinear'}, and center-cropped)")
    unit = "of floats as they are" if str(data.train.dtype) == "torch.float32" else "of pixels in [0, 1]"
    parts.append(f"normalized by mean {_numbers(data.mean)} and std {_numbers(data.std)} {unit}")
    if spec.mean is None and not spec.is_object:
        own = "the digits' own" if spec.kind == "digits" else "ImageNet's"
        parts.append(f"({own}, as none were given: --mean and --std)")
    return " ".join(parts)


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
