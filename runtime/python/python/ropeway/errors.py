"""The exceptions of Ropeway, one for each kind of error.

Where Python has a class for the same, they are of that, too: ``except ValueError`` catches :class:`InvalidArgumentError`.
"""

import builtins

__all__ = [
    "CompileFailedError",
    "DataOutOfRangeError",
    "DeviceLostError",
    "DriverError",
    "FileError",
    "InvalidArgumentError",
    "LaunchFailedError",
    "OutOfMemoryError",
    "RopewayError",
    "TimeoutError",
    "UnavailableError",
    "UnsupportedError",
]


class RopewayError(Exception):
    """What every error of Ropeway is."""

    call: str
    """The vendor's call that failed, empty where none did."""
    code: int | None
    """The vendor's code."""
    context: str
    """The explanation, without kind and call."""

    def __init__(self, message: str = "", call: str = "", code: int | None = None, context: str = "") -> None:
        super().__init__(message)
        self.call = call
        self.code = code
        self.context = context


class InvalidArgumentError(RopewayError, ValueError):
    """The request is malformed: the text names the operand or attribute, what was found, what was expected."""


class UnsupportedError(RopewayError, NotImplementedError):
    """The request is sound, but this device cannot do it; the text says what it lacks."""


class UnavailableError(RopewayError):
    """A vendor's library, driver or device is not there; the text says what to install."""


class OutOfMemoryError(RopewayError, MemoryError):
    """The device or the host has no room for an allocation. The device stays usable."""


class DeviceLostError(RopewayError):
    """The device is gone, with everything on it."""


class TimeoutError(RopewayError, builtins.TimeoutError):
    """A wait passed its time limit. The work may still be running."""


class CompileFailedError(RopewayError):
    """A kernel did not compile; the text holds the compiler's log."""


class LaunchFailedError(RopewayError):
    """The driver refused or aborted a launch."""


class DataOutOfRangeError(RopewayError, IndexError):
    """A kernel met a value in device memory (an id, an offset, a length) that is out of range and skipped it."""


class FileError(RopewayError):
    """A file could not be read, written or trusted."""


class DriverError(RopewayError):
    """The driver reported something that no other kind covers."""
