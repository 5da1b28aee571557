"""Matrix products, against NumPy's in float64."""

import ml_dtypes
import numpy as np
import pytest
import reference

import ropeway

FLOATS = [np.float32, np.float16, ml_dtypes.bfloat16]


def normal(rng, *shape, dtype=np.float32):
    return rng.standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (1, 300, 257), (33, 65, 129), (200, 96, 512)])
def test_a_random_product_keeps_the_bound(device, rng, dtype, m, n, k):
    a, b = normal(rng, m, k, dtype=dtype), normal(rng, k, n, dtype=dtype)
    d = ropeway.gemm(a, b, device=device)
    assert isinstance(d, np.ndarray) and d.dtype == dtype
    reference.expect(d, reference.gemm(a, b))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int8])
def test_a_product_of_small_integers_is_exact(device, rng, dtype):
    a = rng.integers(-3, 4, (37, 20)).astype(dtype)
    b = rng.integers(-3, 4, (20, 41)).astype(dtype)
    d = ropeway.gemm(a, b, device=device)
    assert d.dtype == (np.int32 if dtype == np.int8 else dtype)
    np.testing.assert_array_equal(d.astype(np.int64), a.astype(np.int64) @ b.astype(np.int64))


@pytest.mark.parametrize(("a", "b"), [(np.float32, np.float16), (np.float32, ml_dtypes.bfloat16), (np.float16, np.float32)])
def test_operands_of_two_dtypes(device, rng, a, b):
    a, b = normal(rng, 17, 64, dtype=a), normal(rng, 64, 33, dtype=b)
    reference.expect(ropeway.gemm(a, b, device=device), reference.gemm(a, b))


@pytest.mark.parametrize("activation", ["none", "relu", "gelu", "gelu_tanh", "silu", "swiglu"])
def test_the_epilogue(device, rng, activation):
    a, b = normal(rng, 19, 64), normal(rng, 64, 34)
    c, bias = normal(rng, 19, 34), normal(rng, 34)
    found = ropeway.gemm(a, b, c=c, bias=bias, alpha=0.5, beta=-2, activation=activation, device=device)
    reference.expect(found, reference.gemm(a, b, c=c, bias=bias, alpha=0.5, beta=-2, activation=activation))


def test_a_factor_of_zero_leaves_its_operand_unread(device, rng):
    a, b = normal(rng, 4, 8), normal(rng, 8, 4)
    nan = np.full((4, 4), np.nan, np.float32)
    reference.expect(ropeway.gemm(a, b, c=nan, beta=0, device=device), reference.gemm(a, b))
    np.testing.assert_array_equal(ropeway.gemm(a * np.nan, b, alpha=0, device=device), np.zeros((4, 4)))


def test_transposes_are_strides_or_flags(device, rng):
    a, b = normal(rng, 64, 30), normal(rng, 50, 64)
    expected = reference.gemm(a.T, b.T)
    reference.expect(ropeway.gemm(a.T, b.T, device=device), expected)
    reference.expect(ropeway.gemm(a, b, trans_a=True, trans_b=True, device=device), expected)


@pytest.mark.parametrize(
    "window",
    [
        lambda x: x[::2, 1:],
        lambda x: x[3:, ::3],
        # Negative strides are no view's, so that these are copied.
        lambda x: x[::-1],
        lambda x: x[:, ::-2],
    ],
)
def test_any_window_of_an_array(device, rng, window):
    a, b = window(normal(rng, 40, 90)), normal(rng, 90, 7)
    b = b[: a.shape[1]]
    reference.expect(ropeway.gemm(a, b, device=device), reference.gemm(a, b))


def test_elements_that_are_not_aligned_are_copied(device, rng):
    stored = np.zeros(1 + 4 * 6 * 5, np.uint8)
    a = stored[1:].view(np.float32).reshape(6, 5)
    assert not a.flags.aligned
    a[...] = normal(rng, 6, 5)
    b = normal(rng, 5, 4)
    reference.expect(ropeway.gemm(a, b, device=device), reference.gemm(a, b))


def test_leading_axes_broadcast(device, rng):
    a, b = normal(rng, 3, 1, 10, 20), normal(rng, 4, 20, 6)
    reference.expect(ropeway.gemm(a, b, device=device), reference.gemm(a, b))
    a = np.broadcast_to(normal(rng, 10, 20), (5, 10, 20))
    reference.expect(ropeway.gemm(a, b[:1], device=device), reference.gemm(a, b[:1]))


@pytest.mark.parametrize(("m", "n", "k"), [(0, 3, 2), (3, 0, 2), (3, 2, 0)])
def test_extents_of_zero(device, m, n, k):
    a, b = np.zeros((m, k), np.float32), np.zeros((k, n), np.float32)
    np.testing.assert_array_equal(ropeway.gemm(a, b, device=device), np.zeros((m, n)))


def test_the_result_in_another_dtype(device, rng):
    a, b = normal(rng, 20, 30, dtype=np.float16), normal(rng, 30, 10, dtype=np.float16)
    for dtype in [np.float32, "float32", np.dtype("float32")]:
        d = ropeway.gemm(a, b, dtype=dtype, device=device)
        assert d.dtype == np.float32
        reference.expect(d, reference.gemm(a, b, dtype=np.float32))
    out = np.empty((20, 10), np.float32)
    assert ropeway.gemm(a, b, out=out, device=device) is out
    reference.expect(out, reference.gemm(a, b, dtype=np.float32))


def test_results_go_into_windows(device, rng):
    a, b = normal(rng, 6, 9), normal(rng, 9, 5)
    stored = np.full((8, 20), 7, np.float32)
    out = stored[1:7, 2:12:2]
    assert ropeway.gemm(a, b, out=out, device=device) is out
    reference.expect(out, reference.gemm(a, b))
    stored[1:7, 2:12:2] = 7
    assert (stored == 7).all(), "what lies between the elements is left alone"


@pytest.mark.parametrize("activation", ["none", "swiglu"])
def test_a_product_for_each_expert(device, rng, activation):
    a, b = normal(rng, 20, 32), normal(rng, 4, 24, 32)
    offsets = np.array([0, 7, 7, 18, 18], np.int32)
    found = ropeway.grouped_gemm(a, b, offsets, activation=activation, device=device)
    for expert in range(4):
        rows = slice(offsets[expert], offsets[expert + 1])
        reference.expect(found[rows], reference.gemm(a[rows], b[expert].T, activation=activation))
    assert not found[18:].any()


def test_a_product_for_each_expert_with_room(device, rng):
    a, b = normal(rng, 3, 6, 32), normal(rng, 3, 8, 32)
    counts = np.array([6, 0, 2], np.int32)
    a[2, 2:] = np.nan
    found = ropeway.grouped_gemm_masked(a, b, counts, device=device)
    for expert, count in enumerate(counts):
        reference.expect(found[expert, :count], reference.gemm(a[expert, :count], b[expert].T))
        assert not found[expert, count:].any()


def test_weights_in_blocks_of_ggml(device, rng):
    # q8_0: a float16 scale and 32 int8 weights.
    n, k = 6, 64
    blocks = np.empty((n, k // 32), np.dtype([("scale", np.float16), ("weights", np.int8, 32)]))
    blocks["scale"] = rng.random((n, k // 32)) / 64
    blocks["weights"] = rng.integers(-127, 128, (n, k // 32, 32))
    weight = (blocks["scale"].astype(np.float64)[..., None] * blocks["weights"]).reshape(n, k)
    a, b = normal(rng, 5, k), blocks.view(np.uint8).reshape(n, -1)
    found = ropeway.gemm(a, b, trans_b=True, b_format="q8_0", device=device)
    reference.expect(found, reference.gemm(a, weight.T))
