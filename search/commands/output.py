"""Standard output and standard error: whatever their encoding, and when nothing more can be written to them."""

from __future__ import annotations

import codecs
import errno
import io
import sys

__all__ = ["LOST", "encodable", "prepare_output"]

LOST = frozenset([errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF, errno.EPIPE])
"""Numbers of errors that say that nothing more can be written."""

_PLAIN = str.maketrans({"±": "+-", "·": "-", "…": "...", "—": "-"})
_HANDLER = "overtone.plain"


def prepare_output() -> None:
    """Make every text printable: what an encoding lacks is written in ASCII. Where there is no output, drop it."""
    sys.stdout = sys.stdout or io.TextIOWrapper(io.BytesIO())
    sys.stderr = sys.stderr or io.TextIOWrapper(io.BytesIO())
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", None) in ("strict", "backslashreplace") and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_HANDLER)


def encodable(text: str, encoding: str) -> str:
    """Return the text as an encoding can show it, which may make it longer."""
    return text.encode(encoding, _HANDLER).decode(encoding)


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """Return what stands for characters that an encoding lacks: an ASCII spelling, or an escape such as `\\xe9`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_PLAIN)
    return text.encode("ascii", "backslashreplace").decode(), error.end


codecs.register_error(_HANDLER, _in_ascii)
