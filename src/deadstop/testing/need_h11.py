"""h11, or a sentence that says how to get it."""

from __future__ import annotations

try:
    import h11
except ModuleNotFoundError as error:
    message = 'The fake server needs h11, which is not installed: pip install "deadstop[testing]".'
    raise ModuleNotFoundError(message, name="h11") from error

__all__ = ["h11"]
