"""The small ops of a transformer layer, between the products, attention and the experts: their formulas are in kernels/layer/README.md.

Tensors have one to four dimensions; a row lies along the last axis, n long. Floats are float32, float16 or bfloat16, each operand of its own dtype;
``dtype`` is that of the result, by default that of ``out`` or of the first operand.
"""

from collections.abc import Sequence
from typing import Any, Literal

from numpy.typing import DTypeLike

from ropeway._call import Array, Device, Operand, dtype_name, result
from ropeway.errors import InvalidArgumentError

Binary = Literal["add", "sub", "mul", "div"]
Unary = Literal[
    "silu", "gelu", "gelu_erf", "gelu_quick", "relu", "sigmoid", "tanh", "exp", "neg", "scale", "clamp"
]
GluFunction = Literal["swiglu", "geglu", "reglu", "geglu_erf", "geglu_quick"]


def elementwise(
    a: Array,
    b: Operand,
    function: Binary = "add",
    *,
    dtype: DTypeLike | str | None = None,
    out: Array | None = None,
    device: Device = None,
) -> Array:
    """``a`` ∘ ``b``. Each extent of ``b``, matched from the last axis, divides that of ``a``: ``b`` is repeated, not only along extents of 1."""
    attrs = {"function": function, "dtype": dtype_name(dtype, out)}
    combined: Array = result("elementwise", {"a": a, "b": b}, attrs, out, device)
    return combined


def unary(
    x: Array,
    function: Unary,
    *,
    scale: float | None = None,
    bias: float | None = None,
    min: float | None = None,
    max: float | None = None,
    dtype: DTypeLike | str | None = None,
    out: Array | None = None,
    device: Device = None,
) -> Array:
    """A function of each element. ``"scale"`` is ``scale · x + bias`` (1 and 0 by default), ``"clamp"`` keeps to ``min`` and ``max`` (by default no limit).

    ``"gelu"`` is by tanh here, as in ggml, ``"gelu_erf"`` by the error function.
    """
    attrs = {"function": function, "scale": scale, "bias": bias, "min": min, "max": max, "dtype": dtype_name(dtype, out)}
    image: Array = result("unary", {"x": x}, attrs, out, device)
    return image


def glu(
    x: Array,
    up: Operand | None = None,
    function: GluFunction = "swiglu",
    *,
    swapped: bool = False,
    dtype: DTypeLike | str | None = None,
    out: Array | None = None,
    device: Device = None,
) -> Array:
    """f(gate) · up: [..., n].

    ``x`` is [..., 2 n], the gate and then ``up`` (``swapped``: ``up`` first); or, with ``up`` [..., n] of its dtype, the gate alone.
    """
    attrs = {"function": function, "swapped": swapped, "dtype": dtype_name(dtype, out)}
    gated: Array = result("glu", {"x": x, "up": up}, attrs, out, device)
    return gated


def copy(
    x: Array,
    *,
    shape: Sequence[int] | None = None,
    dtype: DTypeLike | str | None = None,
    out: Array | None = None,
    device: Device = None,
) -> Array:
    """``x`` in another dtype, with other strides (those of ``out``), or as another ``shape`` of as many elements in row-major order. Also int32."""
    if shape is None and out is not None:
        shape = out.shape
    attrs = {"shape": None if shape is None else list(shape), "dtype": dtype_name(dtype, out)}
    copied: Array = result("copy", {"x": x}, attrs, out, device)
    return copied


def get_rows(
    x: Array,
    ids: Operand,
    *,
    dtype: DTypeLike | str | None = None,
    out: Array | None = None,
    device: Device = None,
) -> Array:
    """The rows of ``x`` [..., rows, n] that ``ids``, int32 [..., m], name: [..., m, n]."""
    attrs = {"dtype": dtype_name(dtype, out)}
    rows: Array = result("get_rows", {"x": x, "ids": ids}, attrs, out, device)
    return rows


def set_rows(
    x: Array,
    ids: Operand,
    data: Operand | None = None,
    *,
    dtype: DTypeLike | str | None = None,
    out: Array | None = None,
    device: Device = None,
) -> Array:
    """[..., rows, n]: where ``ids``, int32 [..., m], name a row, that row of ``x`` [..., m, n]; the others are those of ``data`` [..., rows, n].

    Without ``data`` only the rows that ``ids`` name are written, into ``out``, a :class:`Tensor`: that is how a cache on a device is appended to.
    """
    attrs: dict[str, Any] = {"dtype": dtype_name(dtype, out)}
    if data is None:
        # The result of a call on arrays comes back as a whole.
        if out is None or not hasattr(out, "session"):
            context = "data: found nothing, expected a tensor, or a session's tensor as out"
            raise InvalidArgumentError(f"invalid argument: {context}", context=context)
        attrs["rows"] = out.shape[-2] if len(out.shape) > 1 else 0
    rows: Array = result("set_rows", {"x": x, "ids": ids, "data": data}, attrs, out, device)
    return rows


def norm(
    x: Array,
    weight: Operand | None = None,
    kind: Literal["rms", "layer"] = "rms",
    *,
    eps: float = 1e-5,
    dtype: DTypeLike | str | None = None,
    out: Array | None = None,
    device: Device = None,
) -> Array:
    """(x − m) / √(mean (x − m)² + ``eps``) · ``weight`` of each row, where m is 0 (``"rms"``) or the row's mean (``"layer"``); ``weight`` is [n]."""
    attrs = {"kind": kind, "eps": eps, "dtype": dtype_name(dtype, out)}
    normed: Array = result("norm", {"x": x, "weight": weight}, attrs, out, device)
    return normed


def sum_rows(
    x: Array,
    *,
    dtype: DTypeLike | str | None = None,
    out: Array | None = None,
    device: Device = None,
) -> Array:
    """The sum of each row: [..., 1]."""
    sums: Array = result("sum_rows", {"x": x}, {"dtype": dtype_name(dtype, out)}, out, device)
    return sums


def softmax(
    x: Array,
    mask: Operand | None = None,
    sinks: Operand | None = None,
    *,
    scale: float = 1.0,
    max_bias: float = 0.0,
    dtype: DTypeLike | str | None = None,
    out: Array | None = None,
    device: Device = None,
) -> Array:
    """softmax(``scale`` · x + slope · ``mask``) of each row of ``x`` [..., heads, rows, n].

    The extents of ``mask`` but the last divide those of ``x``. ``sinks``, float32 [heads], are one more term of each sum. The slope is 1, with ``max_bias`` ALiBi's of the
    head. A row that sees nothing gives zeros.
    """
    attrs = {"scale": scale, "max_bias": max_bias, "dtype": dtype_name(dtype, out)}
    shares: Array = result("softmax", {"x": x, "mask": mask, "sinks": sinks}, attrs, out, device)
    return shares


def rope(
    x: Array,
    positions: Operand,
    freq_factors: Operand | None = None,
    *,
    mode: Literal["normal", "neox"] = "normal",
    n_dims: int | None = None,
    freq_base: float = 10000.0,
    freq_scale: float = 1.0,
    attn_factor: float = 1.0,
    ext_factor: float = 0.0,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    n_ctx_orig: int = 0,
    dtype: DTypeLike | str | None = None,
    out: Array | None = None,
    device: Device = None,
) -> Array:
    """Rotary position embedding of ``x`` [..., tokens, heads, head_dim] at ``positions``, int32 [tokens].

    The first ``n_dims`` dimensions (by default all) turn in pairs: 2 i and 2 i + 1 (``"normal"``), or i and i + n_dims / 2 (``"neox"``). ``freq_factors``, float32
    [n_dims / 2], divide the frequencies. ``ext_factor`` above 0 is YaRN, with the rest of its parameters.
    """
    attrs = {
        "mode": mode,
        "n_dims": n_dims,
        "freq_base": freq_base,
        "freq_scale": freq_scale,
        "attn_factor": attn_factor,
        "ext_factor": ext_factor,
        "beta_fast": beta_fast,
        "beta_slow": beta_slow,
        "n_ctx_orig": n_ctx_orig,
        "dtype": dtype_name(dtype, out),
    }
    inputs = {"x": x, "positions": positions, "freq_factors": freq_factors}
    turned: Array = result("rope", inputs, attrs, out, device)
    return turned


def argsort(
    x: Array,
    order: Literal["asc", "desc"] = "asc",
    *,
    k: int | None = None,
    out: Array | None = None,
    device: Device = None,
) -> Array:
    """The order of each row's elements, int32 [..., n], or of its first ``k``."""
    ids: Array = result("argsort", {"x": x}, {"order": order, "k": k}, out, device)
    return ids
