"""The ops in NumPy's float64, and how far a right answer in float32 arithmetic may lie from them.

No tolerance is chosen here: each bound follows from the op, the dtypes and the length of the sums, by the formulas of ``kernels/*/reference.rs`` and
``kernels/gemm/bound.rs`` for random zero-mean data (Higham and Mary 2019), which the conformance suite judges every device by.
"""

import math
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

U = 2.0**-24  # unit roundoff of the accumulator
ULP = 2 * U
LAMBDA = 8.0  # standard deviations, roughly
FLUSHED = 2.0**-120  # what flushing subnormal numbers can lose
ERF_ERROR, TANH_ERROR, LOG_ERROR = 2.0**-20, 2.0**-17, 2.0**-21
SMALLEST_NORMAL = 2.0**-126
QUOTIENT = 2.5 * ULP  # of division and square root


class Bounded(NamedTuple):
    """A value and how far a right answer may lie from it."""

    value: Doubles
    error: Doubles


def roundoff(dtype: Any) -> float:
    """Half the distance from 1 to the next number."""
    return float(ml_dtypes.finfo(dtype).eps) / 2


def subnormal(dtype: Any) -> float:
    return float(ml_dtypes.finfo(dtype).smallest_subnormal)


def gamma(n: float) -> float:
    return n * U / (1 - n * U)


def expect(found: NDArray[Any], expected: Bounded) -> None:
    """Fails where an element lies outside its bound, or is not a number where the reference is one."""
    assert found.shape == expected.value.shape
    excess = np.abs(found.astype(np.float64) - expected.value) - expected.error
    # A comparison with NaN is false, so that NaN fails.
    right = excess <= 0
    assert right.all(), f"{(~right).sum()} of {right.size} outside the bound, the worst by {np.nanmax(excess):.3e}"


def product(a: Doubles, b: Doubles) -> Bounded:
    """a @ b, before anything is rounded to the output."""
    k = a.shape[-1]
    squares = np.square(a) @ np.square(b)
    return Bounded(a @ b, LAMBDA * math.sqrt(k) * ULP * np.sqrt(squares))


def rounded(x: Bounded, dtype: Any) -> Bounded:
    """x in the output's dtype."""
    return Bounded(x.value, x.error + roundoff(dtype) * np.abs(x.value) + subnormal(dtype) + FLUSHED)


def silu(x: Bounded, lipschitz: float) -> Bounded:
    sigmoid = 1 / (1 + np.exp(-x.value))
    exponential = (3 + 2 * np.abs(x.value)) * ULP
    own = np.abs(x.value * sigmoid) * ((1 - sigmoid) * exponential + U + 2.5 * ULP + U) + np.abs(x.value) * SMALLEST_NORMAL
    return Bounded(x.value * sigmoid, lipschitz * x.error + own)


def activate(activation: str, x: Bounded) -> Bounded:
    reach = np.abs(x.value) + x.error
    match activation:
        case "none":
            return x
        case "relu":
            return Bounded(np.maximum(x.value, 0), x.error)
        case "gelu":
            value = x.value * 0.5 * (1 + np.vectorize(math.erf)(x.value / math.sqrt(2)))
            return Bounded(value, 1.13 * x.error + reach / 2 * (ERF_ERROR + 8 * U))
        case "gelu_tanh":
            inner = math.sqrt(2 / math.pi) * (x.value + 0.044715 * x.value**3)
            return Bounded(x.value / (1 + np.exp(-2 * inner)), 1.13 * x.error + reach / 2 * (TANH_ERROR + 8 * U))
        case "silu":
            return silu(x, 1.13)
        case "swiglu":
            n = x.value.shape[-1] // 2
            gate = silu(Bounded(x.value[..., :n], x.error[..., :n]), 1.1)
            up = Bounded(x.value[..., n:], x.error[..., n:])
            value = gate.value * up.value
            error = gate.error * (np.abs(up.value) + up.error) + np.abs(gate.value) * up.error + U * np.abs(value)
            return Bounded(value, error)
    raise ValueError(activation)


def gemm(
    a: NDArray[Any],
    b: NDArray[Any],
    *,
    c: NDArray[Any] | None = None,
    bias: NDArray[Any] | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    activation: str = "none",
    dtype: Any = None,
) -> Bounded:
    plain = product(a.astype(np.float64), b.astype(np.float64))
    c_term = 0.0 if c is None else beta * c.astype(np.float64)
    bias_term = 0.0 if bias is None else bias.astype(np.float64)
    value = alpha * plain.value + c_term + bias_term
    magnitude = np.abs(alpha * plain.value) + np.abs(c_term) + np.abs(bias_term)
    linear = Bounded(value, abs(alpha) * plain.error + gamma(3) * magnitude)
    return rounded(activate(activation, linear), a.dtype if dtype is None else dtype)


def attention(
    q: NDArray[Any],
    k: NDArray[Any],
    v: NDArray[Any],
    *,
    scale: float | None = None,
    causal: bool = False,
    mask: NDArray[Any] | None = None,
) -> tuple[Bounded, Bounded]:
    """One sequence: q [heads, q_len, d], k [kv_heads, kv_len, d], v [kv_heads, kv_len, dv]. The answer and the log-sum-exp."""
    dtype = q.dtype
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    group = q.shape[0] // k.shape[0]
    k, v = np.repeat(k, group, axis=0), np.repeat(v, group, axis=0)
    q_len, d, n = q.shape[1], q.shape[2], k.shape[1]
    scale = float(np.float32(1 / math.sqrt(d))) if scale is None else scale
    scores = product(q, k.swapaxes(-1, -2))
    error = scale * (scores.error + FLUSHED)
    s = scale * scores.value
    if mask is not None:
        visible = np.where(np.isfinite(mask), mask, 0)
        error = error + 4 * U * np.abs(visible) + np.where(visible == 0, 0, U * np.abs(s))
        s = s + mask
    if causal:
        s = np.where(np.arange(n) <= np.arange(q_len)[:, None] + n - q_len, s, -np.inf)
    error = np.where(np.isfinite(s), error, 0)
    seen = np.isfinite(s).sum(-1, keepdims=True)
    greatest = s.max(-1, keepdims=True)
    x = np.where(np.isfinite(s), s - greatest, 0)
    p = np.where(np.isfinite(s), np.exp(x), 0)
    rescales = np.log2(seen) + 4
    own = (3 * (rescales + 1) + 2 * np.minimum(np.abs(x), 1000)) * ULP
    above = np.exp(x + error)
    dp = np.where(np.isfinite(s), np.maximum(above - p, p * error) + above * own + SMALLEST_NORMAL, 0)
    total = p.sum(-1, keepdims=True)
    drift = dp.sum(-1, keepdims=True) / total
    assert (drift < 0.5).all()
    summing = np.minimum(LAMBDA * np.sqrt(seen), seen + 3) * ULP
    w = p / total
    o = w @ v
    magnitude, squares = w @ np.abs(v), np.square(w) @ np.square(v)
    visible_v = np.where(np.isfinite(s)[..., None], np.abs(v)[:, None], 0)
    distance = np.abs(v[:, None] - o[:, :, None])
    shift = (dp[..., None] * distance).sum(2)
    u, smallest = roundoff(dtype), subnormal(dtype)
    bound = (
        shift / total / (1 - drift)
        + u * np.minimum(magnitude, LAMBDA * np.sqrt(squares))
        + smallest * visible_v.sum(2) / total
        + LAMBDA * np.sqrt(seen) * ULP * np.sqrt(squares)
        + (summing + 2.5 * ULP) * np.abs(o)
        + u * (np.abs(o) + visible_v.max(2))
        + smallest
        + SMALLEST_NORMAL * visible_v.sum(2)
    )
    log = np.log(total)
    exponentials = (3 * (rescales + 1) + seen) * ULP
    lse = greatest + log
    lse_bound = (
        np.minimum(-np.log1p(-drift), error.max(-1, keepdims=True) + exponentials)
        + summing
        + LOG_ERROR
        + 3 * ULP * np.abs(log)
        + 4 * U * (np.abs(greatest) + np.abs(log))
        + U * np.abs(lse)
    )
    return Bounded(o, bound), Bounded(lse[..., 0], lse_bound[..., 0])


def softmax_scores(logits: NDArray[Any]) -> Bounded:
    logits = logits.astype(np.float64)
    x = logits - logits.max(-1, keepdims=True)
    p = np.exp(x)
    of_term = (3 + 2 * np.abs(x)) * ULP + 2 * U * np.abs(x)
    total = p.sum(-1, keepdims=True)
    of_sum = (p * of_term).sum(-1, keepdims=True) / total + (x.shape[-1] + 3) * U
    return Bounded(p / total, p / total * (of_term + of_sum + 2.5 * ULP) + SMALLEST_NORMAL)


def route(logits: NDArray[Any], topk: int) -> tuple[NDArray[np.int32], Bounded]:
    """The experts of the greatest logits, ties to the lower index, and their renormalised weights."""
    ids = np.argsort(-logits.astype(np.float64), axis=-1, kind="stable")[:, :topk]
    scores = softmax_scores(logits)
    value, error = (np.take_along_axis(x, ids, -1) for x in scores)
    total = value.sum(-1, keepdims=True)
    total_error = error.sum(-1, keepdims=True) + (topk + 1) * U * total
    share = value / total
    share_error = (error + share * total_error) / (total - total_error) + 2.5 * ULP * share
    return ids.astype(np.int32), Bounded(share, share_error + 2 * U * share + SMALLEST_NORMAL)


def combine(weights: Bounded, rows: Bounded, dtype: Any) -> Bounded:
    """The weighted sum over the slots of each token: weights [tokens, topk], rows [tokens, topk, hidden]."""
    w, dw = weights.value[..., None], weights.error[..., None]
    terms = w * rows.value
    own = LAMBDA * math.sqrt(terms.shape[1]) * ULP * np.sqrt(np.square(terms).sum(1)) + gamma(3) * np.abs(terms.sum(1))
    carried = ((np.abs(w) + dw) * rows.error + dw * np.abs(rows.value)).sum(1)
    return rounded(Bounded(terms.sum(1), own + carried), dtype)


def moe_ffn(
    x: NDArray[Any], logits: NDArray[Any], w_gate_up: NDArray[Any], w_down: NDArray[Any], topk: int
) -> tuple[Bounded, NDArray[np.int32]]:
    ids, weights = route(logits, topk)
    rows, errors = [], []
    for token, experts in enumerate(ids):
        for expert in experts:
            between = gemm(x[token : token + 1], w_gate_up[expert].T, activation="swiglu")
            down = w_down[expert].T.astype(np.float64)
            value = product(between.value, down)
            hard = between.error @ np.abs(down)
            carried = np.minimum(hard, LAMBDA * np.sqrt(np.square(between.error) @ np.square(down)))
            last = rounded(Bounded(value.value, value.error + gamma(3) * np.abs(value.value)), x.dtype)
            rows.append(last.value)
            errors.append(last.error + carried)
    shape = (*ids.shape, w_down.shape[1])
    answers = Bounded(np.concatenate(rows).reshape(shape), np.concatenate(errors).reshape(shape))
    return combine(weights, answers, x.dtype), ids


def norm(x: NDArray[Any], weight: NDArray[Any], kind: str, eps: float) -> Bounded:
    """Each row over its root mean square (``"rms"``) or, less its mean, over its deviation (``"layer"``)."""
    dtype, n = x.dtype, x.shape[-1]
    x, weight, eps = x.astype(np.float64), weight.astype(np.float64), float(np.float32(eps))
    mean, mean_error = np.zeros((*x.shape[:-1], 1)), 0.0
    if kind == "layer":
        mean = x.mean(-1, keepdims=True)
        root = np.sqrt(np.square(x).sum(-1, keepdims=True))
        summing = np.minimum(LAMBDA * math.sqrt(n) * ULP * root, (n + 2) * U * np.abs(x).sum(-1, keepdims=True))
        mean_error = summing / n + QUOTIENT * np.abs(mean)
    variance = np.square(x - mean).mean(-1, keepdims=True)
    variance_error = mean_error**2 + variance * (min(LAMBDA * math.sqrt(n + 2) * U, gamma(n + 2)) + 4 * U + QUOTIENT)
    scale = 1 / np.sqrt(variance + eps)
    relative = 1 / np.sqrt(variance + eps - variance_error) / scale - 1 + 3 * U + 2 * QUOTIENT
    centred = x - mean
    centred_error = mean_error + (U * np.abs(centred) if kind == "layer" else 0.0)
    value = centred * scale * weight
    error = np.abs(value) * (relative + U) + centred_error * scale * (1 + relative) * np.abs(weight)
    return rounded(Bounded(value, error + SMALLEST_NORMAL * (1 + np.abs(weight))), dtype)


def rope(x: NDArray[Any], positions: NDArray[Any], mode: str, n_dims: int) -> Bounded:
    """Pairs of the first ``n_dims`` dimensions turned by their angles: x [tokens, heads, head_dim]."""
    pairs = np.arange(n_dims // 2)
    first, second = (2 * pairs, 2 * pairs + 1) if mode == "normal" else (pairs, pairs + n_dims // 2)
    doubles = x.astype(np.float64)
    a, b = doubles[..., first], doubles[..., second]
    angle = (positions[:, None] * 10000.0 ** (-2 * pairs / n_dims))[:, None]
    turned, error = doubles.copy(), np.zeros(x.shape)
    turned[..., first] = a * np.cos(angle) - b * np.sin(angle)
    turned[..., second] = a * np.sin(angle) + b * np.cos(angle)
    own = (np.abs(a) + np.abs(b)) * (np.minimum(12 * U * np.abs(angle) + 6 * U, 2) + 4 * U) + SMALLEST_NORMAL
    error[..., first] = error[..., second] = own
    return rounded(Bounded(turned, error), x.dtype)
