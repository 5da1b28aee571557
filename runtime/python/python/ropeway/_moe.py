"""Mixture of experts."""

from typing import Generic, Literal, NamedTuple

from ropeway._call import Array, Device, Operand, result, results

Score = Literal["softmax", "sigmoid"]


class Route(NamedTuple, Generic[Array]):
    """The experts of each token, best first, and their weights."""

    topk_ids: Array
    """int32 [tokens, topk]"""
    topk_weights: Array
    """float32 [tokens, topk]"""


class Scatter(NamedTuple, Generic[Array]):
    """Token rows in expert order."""

    rows: Array
    """[tokens · topk, hidden]"""
    expert_offsets: Array
    """int32 [experts + 1]: where the rows of each expert begin."""
    source: Array
    """int32 [tokens · topk]: token · topk + slot of each row, −1 where there is none."""


class Ffn(NamedTuple, Generic[Array]):
    """What a mixture-of-experts layer gives."""

    y: Array
    """[tokens, hidden]"""
    topk_ids: Array
    """int32 [tokens, topk]"""


def moe_route(
    logits: Array,
    *,
    topk: int,
    bias: Operand | None = None,
    score: Score = "softmax",
    groups: int = 1,
    topk_groups: int = 1,
    renormalize: bool = False,
    scale: float = 1.0,
    out: tuple[Array, Array] | None = None,
    device: Device = None,
) -> Route[Array]:
    """Chooses ``topk`` experts for each token.

    ``logits`` is [tokens, experts]; ``bias``, float32 [experts], counts for the choice only. With ``groups`` > 1 only the experts of the ``topk_groups`` best
    groups are eligible, ranked by the sum of their two best biased scores. Ties go to the lower index. Weights are the scores, divided by their
    sum if ``renormalize``, times ``scale``.
    """
    attrs = {
        "topk": topk,
        "score": score,
        "groups": groups,
        "topk_groups": topk_groups,
        "renormalize": renormalize,
        "scale": scale,
    }
    return Route(*results("moe_route", {"logits": logits, "bias": bias}, attrs, out, device))


def expert_scatter(
    x: Array,
    topk_ids: Operand,
    *,
    experts: int,
    out: tuple[Array, Array, Array] | None = None,
    device: Device = None,
) -> Scatter[Array]:
    """Brings token rows into expert order, stable in (token, slot).

    ``x`` is [tokens, hidden], ``topk_ids`` int32 [tokens, topk], where −1 is no expert and takes no row. Rows past the last are zero.
    """
    inputs = {"x": x, "topk_ids": topk_ids}
    return Scatter(*results("expert_scatter", inputs, {"experts": experts}, out, device))


def expert_gather(
    rows: Array,
    source: Operand,
    topk_weights: Operand,
    *,
    out: Array | None = None,
    device: Device = None,
) -> Array:
    """The weighted sum of each token's rows, in slot order: [tokens, hidden].

    ``rows`` is [tokens · topk, hidden] and ``source`` int32 [tokens · topk], as :func:`expert_scatter` gives them; ``topk_weights`` is float32 [tokens, topk].
    """
    inputs = {"rows": rows, "source": source, "topk_weights": topk_weights}
    combined: Array = result("expert_gather", inputs, {}, out, device)
    return combined


def moe_ffn(
    x: Array,
    logits: Operand,
    w_gate_up: Operand,
    w_down: Operand,
    *,
    topk: int,
    bias: Operand | None = None,
    score: Score = "softmax",
    groups: int = 1,
    topk_groups: int = 1,
    renormalize: bool = False,
    scale: float = 1.0,
    out: tuple[Array, Array] | None = None,
    device: Device = None,
) -> Ffn[Array]:
    """A whole layer on the device: route, scatter, product with swiglu, product, gather.

    ``x`` is [tokens, hidden], ``logits`` [tokens, experts], ``w_gate_up`` [experts, 2 · inter, hidden], ``w_down`` [experts, hidden, inter]. The rest as in
    :func:`moe_route`.
    """
    inputs = {"x": x, "logits": logits, "bias": bias, "w_gate_up": w_gate_up, "w_down": w_down}
    attrs = {
        "topk": topk,
        "score": score,
        "groups": groups,
        "topk_groups": topk_groups,
        "renormalize": renormalize,
        "scale": scale,
    }
    return Ffn(*results("moe_ffn", inputs, attrs, out, device))
