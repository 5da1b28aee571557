"""Mixture of experts, against NumPy's in float64."""

import ml_dtypes
import numpy as np
import pytest
import reference

import ropeway


def normal(rng, *shape, dtype=np.float32):
    return rng.standard_normal(shape).astype(dtype)


def test_routing(device, rng):
    logits = normal(rng, 40, 16)
    # A tie, which goes to the lower index.
    logits[:, 9] = logits[:, 2]
    ids, weights = ropeway.moe_route(logits, topk=4, renormalize=True, device=device)
    expected_ids, expected_weights = reference.route(logits, 4)
    np.testing.assert_array_equal(ids, expected_ids)
    reference.expect(weights, expected_weights)


def test_routing_within_groups(device, rng):
    logits = rng.permuted(np.broadcast_to(np.linspace(-3, 2, 16, dtype=np.float32), (10, 16)), axis=1)
    route = ropeway.moe_route(logits, topk=2, score="sigmoid", groups=4, topk_groups=1, scale=2.5, device=device)
    groups = logits.reshape(10, 4, 4)
    scores = 1 / (1 + np.exp(-groups.astype(np.float64)))
    ranks = np.sort(scores, axis=-1)[..., -2:].sum(-1)
    assert np.diff(np.sort(ranks, axis=-1)[:, -2:]).min() > 1e-4, "groups whose ranks no error of float32 exchanges"
    for token, group in enumerate(ranks.argmax(-1)):
        order = np.argsort(-groups[token, group])[:2]
        np.testing.assert_array_equal(route.topk_ids[token], group * 4 + order)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_rows_to_expert_order_and_back(device, rng, dtype):
    x = normal(rng, 9, 24, dtype=dtype)
    ids = np.stack([rng.permutation(5)[:3] for _ in range(9)]).astype(np.int32)
    ids[4, 1] = -1
    rows, offsets, source = ropeway.expert_scatter(x, ids, experts=5, device=device)
    flat = ids.ravel()
    order = np.argsort(np.where(flat < 0, 5, flat), kind="stable")[: (flat >= 0).sum()]
    np.testing.assert_array_equal(source[: len(order)], order)
    assert (source[len(order) :] == -1).all()
    np.testing.assert_array_equal(rows[: len(order)], x[order // 3])
    assert not rows[len(order) :].astype(np.float32).any()
    np.testing.assert_array_equal(offsets, [(flat[flat >= 0] < expert).sum() for expert in range(6)])

    weights = rng.random((9, 3)).astype(np.float32)
    y = ropeway.expert_gather(rows, source, weights, device=device)
    exact = reference.Bounded(weights.astype(np.float64) * (ids >= 0), np.zeros((9, 3)))
    slots = np.repeat(x.astype(np.float64)[:, None], 3, axis=1)
    reference.expect(y, reference.combine(exact, reference.Bounded(slots, np.zeros(slots.shape)), dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_whole_layer(device, rng, dtype):
    tokens, experts, hidden, inter = 12, 6, 48, 32
    x, logits = normal(rng, tokens, hidden, dtype=dtype), normal(rng, tokens, experts)
    logits[:, 3] = -20  # an expert without a token
    w_gate_up = (normal(rng, experts, 2 * inter, hidden) / np.sqrt(hidden)).astype(dtype)
    w_down = (normal(rng, experts, hidden, inter) / np.sqrt(inter)).astype(dtype)
    layer = ropeway.moe_ffn(x, logits, w_gate_up, w_down, topk=2, renormalize=True, device=device)
    expected, ids = reference.moe_ffn(x, logits, w_gate_up, w_down, 2)
    np.testing.assert_array_equal(layer.topk_ids, ids)
    reference.expect(layer.y, expected)


def test_a_layer_step_by_step_on_the_device(device, rng):
    session = ropeway.Session(device)
    x, logits = normal(rng, 10, 32), normal(rng, 10, 4)
    w_gate_up, w_down = normal(rng, 4, 48, 32), normal(rng, 4, 32, 24)
    route = ropeway.moe_route(session.tensor(logits), topk=2, renormalize=True)
    scatter = ropeway.expert_scatter(session.tensor(x), route.topk_ids, experts=4)
    between = ropeway.grouped_gemm(scatter.rows, session.tensor(w_gate_up), scatter.expert_offsets, activation="swiglu")
    down = ropeway.grouped_gemm(between, session.tensor(w_down), scatter.expert_offsets)
    y = ropeway.expert_gather(down, scatter.source, route.topk_weights)
    for tensor in (*route, *scatter, between, down, y):
        assert isinstance(tensor, ropeway.Tensor) and tensor.device == device
    # The steps' bounds composed, with rows of the same dtype between them, are the layer's.
    expected, ids = reference.moe_ffn(x, logits, w_gate_up, w_down, 2)
    np.testing.assert_array_equal(route.topk_ids.numpy(), ids)
    reference.expect(y.numpy(), expected)
