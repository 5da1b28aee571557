"""Matrix products."""

from typing import Literal

from numpy.typing import DTypeLike

from ropeway._call import Array, Device, Operand, dtype_name, result

Activation = Literal["none", "relu", "gelu", "gelu_tanh", "silu", "swiglu"]


def gemm(
    a: Array,
    b: Operand,
    *,
    c: Operand | None = None,
    bias: Operand | None = None,
    trans_a: bool = False,
    trans_b: bool = False,
    alpha: float = 1.0,
    beta: float | None = None,
    activation: Activation = "none",
    b_format: str | None = None,
    dtype: DTypeLike | str | None = None,
    out: Array | None = None,
    device: Device = None,
) -> Array:
    """``act(alpha · op(a) op(b) + beta · c + bias)``, accumulated in float32 (int8: int32).

    ``a`` is [..., m, k], ``b`` [..., k, n]; with ``trans_a``, ``trans_b`` the last two axes are exchanged, as with ``b.T``, which costs no copy
    either. Leading axes broadcast as in NumPy. ``c`` broadcasts to [..., m, n], ``bias`` is [n], both of the dtype of ``a`` (int8: int32).

    ``beta`` is 1 by default; at ``alpha`` = 0 ``a`` and ``b`` are not read, at ``beta`` = 0 ``c`` is not. ``"gelu"`` is by the error function,
    ``"gelu_tanh"`` its approximation; ``"swiglu"`` gives silu(gate) · up, n / 2 columns, of columns 0..n/2 for the gate and n/2..n.

    ``a`` and ``b`` have one dtype, or are float32 × float16, float32 × bfloat16 or float16 × float32. ``dtype`` is that of the result: by
    default that of ``out`` or ``a`` (int8: int32). ``b_format`` names the GGML blocks that a ``b`` of uint8 holds.
    """
    inputs = {"a": a, "b": b, "c": c, "bias": bias}
    attrs = {
        "trans_a": trans_a,
        "trans_b": trans_b,
        "alpha": alpha,
        "beta": beta,
        "activation": activation,
        "b_format": b_format,
        "out_dtype": dtype_name(dtype, out),
    }
    product: Array = result("gemm", inputs, attrs, out, device)
    return product


def grouped_gemm(
    a: Array,
    b: Operand,
    expert_offsets: Operand,
    *,
    activation: Literal["none", "swiglu"] = "none",
    b_format: str | None = None,
    dtype: DTypeLike | str | None = None,
    out: Array | None = None,
    device: Device = None,
) -> Array:
    """The rows of each expert times its matrix: ``a[r] · b[e].T`` for the rows r from ``expert_offsets[e]`` to ``expert_offsets[e + 1]``.

    ``a`` is [rows, k], ``b`` [experts, n, k], ``expert_offsets`` int32 [experts + 1], from 0 on and never descending; experts may have no row.
    The result is [rows, n], with ``"swiglu"`` [rows, n / 2]; rows past the last offset are zero.
    """
    inputs = {"a": a, "b": b, "expert_offsets": expert_offsets}
    attrs = {"activation": activation, "b_format": b_format, "out_dtype": dtype_name(dtype, out)}
    product: Array = result("grouped_gemm", inputs, attrs, out, device)
    return product


def grouped_gemm_masked(
    a: Array,
    b: Operand,
    counts: Operand,
    *,
    activation: Literal["none", "swiglu"] = "none",
    b_format: str | None = None,
    dtype: DTypeLike | str | None = None,
    out: Array | None = None,
    device: Device = None,
) -> Array:
    """As :func:`grouped_gemm`, with room for as many rows of each expert.

    ``a`` is [experts, capacity, k], ``b`` [experts, n, k], ``counts`` int32 [experts]: how many rows of ``a`` an expert has. What lies past them is
    not read. The result is [experts, capacity, n], zero past the counts.
    """
    inputs = {"a": a, "b": b, "counts": counts}
    attrs = {"activation": activation, "b_format": b_format, "out_dtype": dtype_name(dtype, out)}
    product: Array = result("grouped_gemm_masked", inputs, attrs, out, device)
    return product
