"""Types that a user relies on; read by mypy, never run."""

from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

import ropeway

array: NDArray[Any] = np.zeros((2, 2), np.float32)
session = ropeway.Session("opencl")
tensor = session.tensor(array)

# The result is of the first operand's kind.
assert_type(ropeway.gemm(array, tensor, bias=array, activation="gelu"), NDArray[Any])
assert_type(ropeway.gemm(tensor, array, out=tensor, dtype=np.float16, device=session), ropeway.Tensor)
assert_type(ropeway.attention(array, array, array), NDArray[Any])
assert_type(ropeway.attention(tensor, array, array, return_lse=True), tuple[ropeway.Tensor, ropeway.Tensor])
assert_type(ropeway.moe_route(tensor, topk=2).topk_ids, ropeway.Tensor)
assert_type(ropeway.expert_scatter(array, array, experts=3).rows, NDArray[Any])
assert_type(ropeway.norm(tensor, array, "layer", out=tensor), ropeway.Tensor)
assert_type(ropeway.copy(array, shape=(4,), dtype="bfloat16"), NDArray[Any])
assert_type(tensor.mT[0].numpy(), NDArray[Any])
assert_type([info.execution for info in ropeway.devices()], list[str])

ropeway.gemm(array, array, activation="tanh")  # type: ignore[arg-type]
ropeway.gemm(array, array, out=tensor)  # type: ignore[type-var]
ropeway.elementwise(array, array, "pow")  # type: ignore[arg-type]
ropeway.moe_route(array)  # type: ignore[call-arg]
ropeway.gemm(3, array)  # type: ignore[type-var]
