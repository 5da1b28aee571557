"""What the ops have in common: their operands, and the way to the native half."""

from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from ropeway._native import Session, Tensor, run


class SupportsDLPack(Protocol):
    """A tensor of another library, in host memory."""

    def __dlpack__(self) -> Any: ...

    def __dlpack_device__(self) -> Any: ...


Operand: TypeAlias = NDArray[Any] | Tensor | SupportsDLPack
"""What an op reads: an array of NumPy's or another library's, or a tensor."""

Array = TypeVar("Array", NDArray[Any], Tensor)
"""The kind of the first operand, which is the kind of the results."""

Device: TypeAlias = str | Session | None
"""Where an op runs: a device's name, a session, or, for ``None``, where its tensors lie or else the cpu device."""


def dtype_name(dtype: Any, out: Any) -> str | None:
    """The name of the dtype that is asked for, or that ``out`` has; ``None`` leaves it to the op."""
    if dtype is None and isinstance(out, np.ndarray | Tensor):
        dtype = out.dtype
    if dtype is None or isinstance(dtype, str):
        return dtype
    name: str = np.dtype(dtype).name
    return name


def results(
    op: str, inputs: dict[str, Any], attrs: dict[str, Any], out: tuple[Any, ...] | None, device: Device
) -> tuple[Any, ...]:
    """Runs an op; inputs and attributes that are ``None`` are left out."""
    return run(op, inputs, attrs, None if out is None else list(out), device)


def result(op: str, inputs: dict[str, Any], attrs: dict[str, Any], out: Any, device: Device) -> Any:
    """Runs an op that has one result."""
    return results(op, inputs, attrs, None if out is None else (out,), device)[0]
