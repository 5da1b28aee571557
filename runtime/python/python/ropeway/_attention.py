"""Attention: ``softmax(scale · q kᵀ + mask) v`` in one pass."""

from typing import Any, Literal, overload

from ropeway._call import Array, Device, Operand, result, results


def _attend(
    op: str,
    inputs: dict[str, Any],
    *,
    scale: float | None,
    causal: bool,
    window: int,
    softcap: float,
    return_lse: bool,
    out: Any,
    device: Device,
) -> Any:
    attrs = {"scale": scale, "causal": causal, "window": window, "softcap": softcap, "return_lse": return_lse}
    run = results if return_lse else result
    return run(op, inputs, attrs, out, device)


@overload
def attention(
    q: Array,
    k: Operand,
    v: Operand,
    *,
    mask: Operand | None = None,
    kv_lens: Operand | None = None,
    sinks: Operand | None = None,
    alibi_slopes: Operand | None = None,
    scale: float | None = None,
    causal: bool = False,
    window: int = 0,
    softcap: float = 0.0,
    return_lse: Literal[False] = False,
    out: Array | None = None,
    device: Device = None,
) -> Array: ...
@overload
def attention(
    q: Array,
    k: Operand,
    v: Operand,
    *,
    mask: Operand | None = None,
    kv_lens: Operand | None = None,
    sinks: Operand | None = None,
    alibi_slopes: Operand | None = None,
    scale: float | None = None,
    causal: bool = False,
    window: int = 0,
    softcap: float = 0.0,
    return_lse: Literal[True],
    out: tuple[Array, Array] | None = None,
    device: Device = None,
) -> tuple[Array, Array]: ...
def attention(
    q: Any,
    k: Operand,
    v: Operand,
    *,
    mask: Operand | None = None,
    kv_lens: Operand | None = None,
    sinks: Operand | None = None,
    alibi_slopes: Operand | None = None,
    scale: float | None = None,
    causal: bool = False,
    window: int = 0,
    softcap: float = 0.0,
    return_lse: bool = False,
    out: Any = None,
    device: Device = None,
) -> Any:
    """Attention over a rectangular batch.

    ``q`` is [batch, heads, q_len, d], ``k`` [batch, kv_heads, kv_len, d], ``v`` [batch, kv_heads, kv_len, dv], of one float dtype and with any
    strides but the innermost; ``heads`` is a multiple of ``kv_heads``. The result is [batch, heads, q_len, dv], and with ``return_lse`` the pair of it
    and the logarithm of each query's sum of exponentials, float32 [batch, heads, q_len].

    ``mask``, float32, broadcasts to the scores and is added; of each sequence only the first ``kv_lens`` keys (int32 [batch]) are read. ``sinks``,
    float32 [heads], is one more score of value zero; ``alibi_slopes``, float32 [heads], adds slope · (key position − query position).

    ``scale`` is 1/√d by default. ``causal``: the last query sees the last key; ``window`` w > 0 (with ``causal``): a query sees its last w keys;
    ``softcap`` c > 0: scores become c · tanh(score / c). A query that sees no key gives zeros.
    """
    inputs = {"q": q, "k": k, "v": v, "mask": mask, "kv_lens": kv_lens, "sinks": sinks, "alibi_slopes": alibi_slopes}
    return _attend(
        "attention",
        inputs,
        scale=scale,
        causal=causal,
        window=window,
        softcap=softcap,
        return_lse=return_lse,
        out=out,
        device=device,
    )


@overload
def attention_varlen(
    q: Array,
    k: Operand,
    v: Operand,
    cu_q: Operand,
    cu_kv: Operand,
    *,
    sinks: Operand | None = None,
    alibi_slopes: Operand | None = None,
    scale: float | None = None,
    causal: bool = False,
    window: int = 0,
    softcap: float = 0.0,
    return_lse: Literal[False] = False,
    out: Array | None = None,
    device: Device = None,
) -> Array: ...
@overload
def attention_varlen(
    q: Array,
    k: Operand,
    v: Operand,
    cu_q: Operand,
    cu_kv: Operand,
    *,
    sinks: Operand | None = None,
    alibi_slopes: Operand | None = None,
    scale: float | None = None,
    causal: bool = False,
    window: int = 0,
    softcap: float = 0.0,
    return_lse: Literal[True],
    out: tuple[Array, Array] | None = None,
    device: Device = None,
) -> tuple[Array, Array]: ...
def attention_varlen(
    q: Any,
    k: Operand,
    v: Operand,
    cu_q: Operand,
    cu_kv: Operand,
    *,
    sinks: Operand | None = None,
    alibi_slopes: Operand | None = None,
    scale: float | None = None,
    causal: bool = False,
    window: int = 0,
    softcap: float = 0.0,
    return_lse: bool = False,
    out: Any = None,
    device: Device = None,
) -> Any:
    """Attention over sequences of different lengths, laid end to end.

    ``q`` is [tokens, heads, d], ``k`` [kv_tokens, kv_heads, d], ``v`` [kv_tokens, kv_heads, dv]; ``cu_q`` and ``cu_kv``, int32 [batch + 1], go from 0 to
    tokens and kv_tokens: where each sequence begins. The result is [tokens, heads, dv], the ``lse`` [tokens, heads]. The rest as in
    :func:`attention`.
    """
    inputs = {"q": q, "k": k, "v": v, "cu_q": cu_q, "cu_kv": cu_kv, "sinks": sinks, "alibi_slopes": alibi_slopes}
    return _attend(
        "attention_varlen",
        inputs,
        scale=scale,
        causal=causal,
        window=window,
        softcap=softcap,
        return_lse=return_lse,
        out=out,
        device=device,
    )


@overload
def attention_paged(
    q: Array,
    cu_q: Operand,
    k_cache: Operand,
    v_cache: Operand,
    block_table: Operand,
    kv_lens: Operand,
    *,
    sinks: Operand | None = None,
    alibi_slopes: Operand | None = None,
    scale: float | None = None,
    causal: bool = False,
    window: int = 0,
    softcap: float = 0.0,
    return_lse: Literal[False] = False,
    out: Array | None = None,
    device: Device = None,
) -> Array: ...
@overload
def attention_paged(
    q: Array,
    cu_q: Operand,
    k_cache: Operand,
    v_cache: Operand,
    block_table: Operand,
    kv_lens: Operand,
    *,
    sinks: Operand | None = None,
    alibi_slopes: Operand | None = None,
    scale: float | None = None,
    causal: bool = False,
    window: int = 0,
    softcap: float = 0.0,
    return_lse: Literal[True],
    out: tuple[Array, Array] | None = None,
    device: Device = None,
) -> tuple[Array, Array]: ...
def attention_paged(
    q: Any,
    cu_q: Operand,
    k_cache: Operand,
    v_cache: Operand,
    block_table: Operand,
    kv_lens: Operand,
    *,
    sinks: Operand | None = None,
    alibi_slopes: Operand | None = None,
    scale: float | None = None,
    causal: bool = False,
    window: int = 0,
    softcap: float = 0.0,
    return_lse: bool = False,
    out: Any = None,
    device: Device = None,
) -> Any:
    """Attention over a paged cache of keys and values; prefill and decode mix freely.

    ``q`` is [tokens, heads, d], ``cu_q`` int32 [batch + 1]: where the queries of each sequence begin. ``k_cache`` is [blocks, block_size, kv_heads, d],
    ``v_cache`` [blocks, block_size, kv_heads, dv]; ``block_table``, int32 [batch, max_blocks], names the blocks of each sequence, of which ``kv_lens``,
    int32 [batch], keys are there. The result is [tokens, heads, dv], the ``lse`` [tokens, heads]. The rest as in :func:`attention`.
    """
    inputs = {
        "q": q,
        "cu_q": cu_q,
        "k_cache": k_cache,
        "v_cache": v_cache,
        "block_table": block_table,
        "kv_lens": kv_lens,
        "sinks": sinks,
        "alibi_slopes": alibi_slopes,
    }
    return _attend(
        "attention_paged",
        inputs,
        scale=scale,
        causal=causal,
        window=window,
        softcap=softcap,
        return_lse=return_lse,
        out=out,
        device=device,
    )
