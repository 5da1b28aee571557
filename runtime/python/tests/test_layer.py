"""The small ops of a layer, against NumPy's in float64."""

import ml_dtypes
import numpy as np
import pytest
import reference
from reference import QUOTIENT, SMALLEST_NORMAL, U, Bounded, rounded

import ropeway

FLOATS = [np.float32, np.float16, ml_dtypes.bfloat16]


def normal(rng, *shape, dtype=np.float32):
    return rng.standard_normal(shape).astype(dtype)


def exact(value, dtype):
    return np.asarray(value, np.float32).astype(dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("function", ["add", "sub", "mul", "div"])
def test_elementwise_repeats_b(device, rng, dtype, function):
    a, b = normal(rng, 3, 6, 40, dtype=dtype), normal(rng, 2, 40)
    spread = np.tile(b.astype(np.float64), (3, 1))
    numpy = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}[function]
    value = numpy(a.astype(np.float64), spread)
    error = (QUOTIENT if function == "div" else U) * np.abs(value) + SMALLEST_NORMAL
    found = ropeway.elementwise(a, b, function, device=device)
    assert found.dtype == dtype
    reference.expect(found, rounded(Bounded(value, error), dtype))


@pytest.mark.parametrize(
    ("function", "as_activation"), [("silu", "silu"), ("gelu", "gelu_tanh"), ("gelu_erf", "gelu"), ("relu", "relu")]
)
def test_activations(device, rng, function, as_activation):
    x = normal(rng, 5, 33)
    exactly = Bounded(x.astype(np.float64), np.zeros(x.shape))
    reference.expect(ropeway.unary(x, function, device=device), rounded(reference.activate(as_activation, exactly), x.dtype))
    gated = {"silu": "swiglu", "gelu": "geglu", "gelu_erf": "geglu_erf", "relu": "reglu"}[function]
    gate, up = reference.activate(as_activation, Bounded(exactly.value[:, :16], np.zeros((5, 16)))), exactly.value[:, 16:32]
    product = gate.value * up
    bound = Bounded(product, gate.error * np.abs(up) + U * np.abs(product) + SMALLEST_NORMAL)
    whole = np.ascontiguousarray(x[:, :32])
    reference.expect(ropeway.glu(whole, function=gated, device=device), rounded(bound, x.dtype))
    reference.expect(ropeway.glu(x[:, :16], x[:, 16:32], gated, device=device), rounded(bound, x.dtype))
    swapped = np.concatenate([whole[:, 16:], whole[:, :16]], axis=1)
    reference.expect(ropeway.glu(swapped, function=gated, swapped=True, device=device), rounded(bound, x.dtype))


def test_scale_clamp_neg(device, rng):
    x = normal(rng, 4, 50)
    scale = np.float64(np.float32(0.3))
    value = scale * x - 2
    bound = U * (np.abs(scale * x) + np.abs(value)) + SMALLEST_NORMAL
    found = ropeway.unary(x, "scale", scale=0.3, bias=-2, device=device)
    reference.expect(found, rounded(Bounded(value, bound), x.dtype))
    np.testing.assert_array_equal(ropeway.unary(x, "clamp", min=-0.5, device=device), np.maximum(x, np.float32(-0.5)))
    np.testing.assert_array_equal(ropeway.unary(x, "neg", device=device), -x)


@pytest.mark.parametrize("dtype", [*FLOATS, np.int32])
def test_copy_converts_reshapes_and_takes_strides(device, rng, dtype):
    x = (10 * normal(rng, 6, 8)).T
    expected = exact(x, dtype)
    np.testing.assert_array_equal(ropeway.copy(x, dtype=dtype, device=device), expected)
    np.testing.assert_array_equal(ropeway.copy(x, shape=(4, 12), dtype=dtype, device=device), expected.reshape(4, 12))
    out = np.zeros((3, 16), dtype)
    assert ropeway.copy(x, out=out, device=device) is out
    np.testing.assert_array_equal(out, expected.reshape(3, 16))


def test_rows_are_read_and_set(device, rng):
    x, rows = normal(rng, 20, 24), normal(rng, 3, 24)
    ids = np.array([19, 0, 7], np.int32)
    np.testing.assert_array_equal(ropeway.get_rows(x, ids, device=device), x[ids])
    expected = x.copy()
    expected[ids] = rows
    np.testing.assert_array_equal(ropeway.set_rows(rows, ids, x, device=device), expected)
    # A cache that stays on the device, in another dtype.
    session = ropeway.Session(device)
    cache = session.tensor(x.astype(np.float16))
    assert ropeway.set_rows(session.tensor(rows), session.tensor(ids), out=cache) is cache
    np.testing.assert_array_equal(cache.numpy(), expected.astype(np.float16))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_norm(device, rng, dtype, kind):
    x, weight = normal(rng, 7, 300, dtype=dtype), normal(rng, 300)
    found = ropeway.norm(x, weight, kind, eps=1e-6, device=device)
    reference.expect(found, reference.norm(x, weight, kind, 1e-6))


def test_sum_rows(device, rng):
    x = normal(rng, 7, 300)
    value = x.astype(np.float64)
    squares = np.square(value).sum(-1, keepdims=True)
    bound = Bounded(value.sum(-1, keepdims=True), reference.LAMBDA * np.sqrt(300 * squares) * reference.ULP)
    reference.expect(ropeway.sum_rows(x, device=device), rounded(bound, x.dtype))


def test_softmax_is_of_what_the_mask_leaves(device, rng):
    x = normal(rng, 2, 5, 40)
    reference.expect(ropeway.softmax(x, device=device), rounded(reference.softmax_scores(x), x.dtype))
    mask = np.where(np.arange(40) < 17, 0, -np.inf).astype(np.float32).reshape(1, 40)
    found = ropeway.softmax(x, mask, device=device)
    reference.expect(found[..., :17], rounded(reference.softmax_scores(x[..., :17]), x.dtype))
    assert not found[..., 17:].any()
    assert not ropeway.softmax(x, np.full((1, 40), -np.inf, np.float32), device=device).any()


@pytest.mark.parametrize("mode", ["normal", "neox"])
def test_rope(device, rng, mode):
    x = normal(rng, 6, 3, 32)
    positions = np.array([0, 1, 2, 100, 7, 4000], np.int32)
    found = ropeway.rope(x, positions, mode=mode, n_dims=16, device=device)
    reference.expect(found, reference.rope(x, positions, mode, 16))
    np.testing.assert_array_equal(found[..., 16:], x[..., 16:])


def test_argsort(device, rng):
    x = normal(rng, 6, 70)
    found = ropeway.argsort(x, "desc", k=9, device=device)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, np.argsort(-x, axis=-1)[:, :9])
    np.testing.assert_array_equal(ropeway.argsort(x, device=device), np.argsort(x, axis=-1))


def test_tensors_stay_on_the_device(device, rng):
    session = ropeway.Session(device)
    x = session.tensor(normal(rng, 4, 64))
    y = ropeway.elementwise(ropeway.norm(x), x, "mul")
    assert isinstance(y, ropeway.Tensor) and y.shape == (4, 64)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x, ids: ropeway.elementwise(x, x, "pow"), "function: found"),
        (lambda x, ids: ropeway.elementwise(x, x[:, :3]), "b: found"),
        (lambda x, ids: ropeway.unary(x, "sqrt"), "function: found"),
        (lambda x, ids: ropeway.unary(x, "scale", scale=float("nan")), "scale: found NaN"),
        (lambda x, ids: ropeway.unary(x, "silu", scale=2.0), "scale: found"),
        (lambda x, ids: ropeway.copy(x, shape=(-1,)), "shape: found"),
        (lambda x, ids: ropeway.copy(x, shape=(7, 3)), "found"),
        (lambda x, ids: ropeway.copy(x, dtype="float64"), "dtype: found float64"),
        (lambda x, ids: ropeway.glu(x[:, :7]), "x: found"),
        (lambda x, ids: ropeway.set_rows(x, ids), "data: found nothing"),
        (lambda x, ids: ropeway.set_rows(x, ids, out=x.copy()), "data: found nothing"),
        (lambda x, ids: ropeway.norm(x, x[0, :5]), "weight: found"),
        (lambda x, ids: ropeway.argsort(x, k=9), "k"),
        (lambda x, ids: ropeway.rope(x, ids), "x: found"),
    ],
)
def test_what_does_not_fit_is_named(rng, call, words):
    with pytest.raises(ropeway.InvalidArgumentError, match=words):
        call(normal(rng, 4, 8), np.zeros(4, np.int32))


def test_ids_out_of_range_are_an_error(device, rng):
    with pytest.raises((ropeway.DataOutOfRangeError, ropeway.InvalidArgumentError), match="ids"):
        ropeway.get_rows(normal(rng, 4, 8), np.array([4], np.int32), device=device)
