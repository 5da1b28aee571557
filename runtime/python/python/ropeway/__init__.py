"""Matrix products, attention and mixture-of-experts routing on whatever chip there is.

Operands are NumPy arrays, tensors on a device (:class:`Tensor`) and whatever exports DLPack; the result is of the first operand's kind. An op
runs on the device that ``device`` names (``"opencl"``, ``"vulkan:1"``), on the session that it is, or where its tensors lie; without any of these on
the cpu device, which reads and writes arrays where they lie.

A call returns when its result is there, but for one whose operands are all tensors: that is only enqueued, and waited for by
:meth:`Tensor.numpy`, :meth:`Session.synchronize` or any call on arrays of the same session. The interpreter is free meanwhile; as with
NumPy, nobody may write to the arrays of a call under way.

What goes wrong is an exception of :mod:`ropeway.errors`, all of them :class:`RopewayError`.
"""

from ropeway._attention import attention, attention_paged, attention_varlen
from ropeway._devices import Devices, devices
from ropeway._gemm import gemm, grouped_gemm, grouped_gemm_masked
from ropeway._layer import (
    argsort,
    copy,
    elementwise,
    get_rows,
    glu,
    norm,
    rope,
    set_rows,
    softmax,
    sum_rows,
    unary,
)
from ropeway._moe import Ffn, Route, Scatter, expert_gather, expert_scatter, moe_ffn, moe_route
from ropeway._native import DeviceInfo, MissingBackend, Session, Tensor, from_dlpack
from ropeway._version import __version__
from ropeway.errors import (
    CompileFailedError,
    DataOutOfRangeError,
    DeviceLostError,
    DriverError,
    FileError,
    InvalidArgumentError,
    LaunchFailedError,
    OutOfMemoryError,
    RopewayError,
    TimeoutError,
    UnavailableError,
    UnsupportedError,
)

__all__ = [
    "CompileFailedError",
    "DataOutOfRangeError",
    "DeviceInfo",
    "DeviceLostError",
    "Devices",
    "DriverError",
    "Ffn",
    "FileError",
    "InvalidArgumentError",
    "LaunchFailedError",
    "MissingBackend",
    "OutOfMemoryError",
    "RopewayError",
    "Route",
    "Scatter",
    "Session",
    "Tensor",
    "TimeoutError",
    "UnavailableError",
    "UnsupportedError",
    "__version__",
    "argsort",
    "attention",
    "attention_paged",
    "attention_varlen",
    "copy",
    "devices",
    "elementwise",
    "expert_gather",
    "expert_scatter",
    "from_dlpack",
    "gemm",
    "get_rows",
    "glu",
    "grouped_gemm",
    "grouped_gemm_masked",
    "moe_ffn",
    "moe_route",
    "norm",
    "rope",
    "set_rows",
    "softmax",
    "sum_rows",
    "unary",
]
