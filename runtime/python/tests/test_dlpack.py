"""DLPack: tensors of other libraries in, ours out."""

import gc
import sys

import ml_dtypes
import numpy as np
import pytest
import reference
import tvm_ffi

import ropeway


class Exporter:
    """A library that knows the protocol from before version 1."""

    def __init__(self, inner):
        self.inner = inner

    def __dlpack__(self):
        return self.inner.__dlpack__()

    def __dlpack_device__(self):
        return self.inner.__dlpack_device__()


def address(array):
    return array.__array_interface__["data"][0]


def test_an_array_and_back_is_the_same_memory(rng):
    x = rng.standard_normal((6, 10)).astype(np.float32)[1:, ::2]
    tensor = ropeway.from_dlpack(x)
    back = np.from_dlpack(tensor)
    assert address(back) == address(x)
    assert back.strides == x.strides
    back[2, 3] = 7
    assert x[2, 3] == 7


def test_a_read_only_array_stays_so():
    x = np.zeros(4, np.float32)
    x.flags.writeable = False
    tensor = ropeway.from_dlpack(x)
    assert not np.from_dlpack(tensor).flags.writeable
    assert not tensor.numpy().flags.writeable
    with pytest.raises(ropeway.InvalidArgumentError, match="read-only"):
        ropeway.gemm(np.ones((4, 1), np.float32), np.ones((1, 1), np.float32), out=tensor.reshape(4, 1))
    with pytest.raises(BufferError, match="read-only"):
        tensor.__dlpack__()


def test_the_memory_outlives_the_array_and_no_longer():
    x = np.arange(1000, dtype=np.float32)
    count = sys.getrefcount(x)
    tensor = ropeway.from_dlpack(x)
    assert sys.getrefcount(x) > count
    taken, dropped = np.from_dlpack(tensor), tensor.__dlpack__(max_version=(1, 0))
    old = tensor.__dlpack__()
    del tensor
    gc.collect()
    assert sys.getrefcount(x) > count and taken.sum() == x.sum()
    del taken, dropped, old
    gc.collect()
    assert sys.getrefcount(x) == count


def test_bfloat16_of_another_library(rng):
    a = rng.standard_normal((5, 8)).astype(ml_dtypes.bfloat16)
    # The other library has it from ours, as NumPy exports no bfloat16.
    theirs = tvm_ffi.from_dlpack(ropeway.from_dlpack(a))
    assert str(theirs.dtype) == "bfloat16"
    ours = ropeway.from_dlpack(theirs)
    assert ours.dtype == "bfloat16" and address(ours.numpy()) == address(a)
    product = ropeway.gemm(theirs, np.ascontiguousarray(a.T))
    assert isinstance(product, ropeway.Tensor)
    reference.expect(product.numpy(), reference.gemm(a, a.T))
    assert str(tvm_ffi.from_dlpack(product).dtype) == "bfloat16"


def test_results_go_into_another_library(rng):
    a = rng.standard_normal((5, 5)).astype(np.float32)
    stored = np.zeros((5, 5), np.float32)
    theirs = tvm_ffi.from_dlpack(stored)
    assert ropeway.gemm(a, a, out=theirs) is theirs
    reference.expect(stored, reference.gemm(a, a))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8, np.int32, np.uint8])
def test_the_protocol_from_before_version_1(dtype):
    x = np.arange(12).astype(dtype).reshape(3, 4).T
    tensor = ropeway.from_dlpack(Exporter(x))
    assert address(tensor.numpy()) == address(x)
    np.testing.assert_array_equal(np.from_dlpack(Exporter(tensor)), x)


def test_a_device_exports_copies_to_those_who_ask(other_device, rng):
    x = rng.standard_normal((3, 4)).astype(np.float32)
    tensor = ropeway.from_dlpack(x, device=other_device)
    assert tensor.device == other_device and tensor.__dlpack_device__()[0] != 1
    np.testing.assert_array_equal(np.from_dlpack(tensor.mT, device="cpu"), x.T)
    with pytest.raises(BufferError, match="dl_device"):
        tensor.__dlpack__()
    with pytest.raises(BufferError, match="dl_device"):
        tensor.__dlpack__(dl_device=(1, 0), copy=False)
    with pytest.raises(ropeway.UnsupportedError, match="host memory is"):
        ropeway.from_dlpack(tensor)
    with pytest.raises(ValueError, match="without a copy"):
        np.asarray(tensor, copy=False)


def test_a_copy_on_request():
    x = np.zeros(4, np.float32)
    tensor = ropeway.from_dlpack(x)
    assert address(np.from_dlpack(tensor, copy=True)) != address(x)
    assert address(np.array(tensor)) != address(x)
    assert address(np.asarray(tensor)) == address(x)
    assert np.asarray(tensor, dtype=np.float64).dtype == np.float64


@pytest.mark.parametrize("shape", [(), (0, 3), (1,)])
def test_shapes_at_the_edge(shape):
    x = np.ones(shape, np.float32)
    tensor = ropeway.from_dlpack(x)
    assert tensor.shape == shape
    np.testing.assert_array_equal(np.from_dlpack(tensor), x)
    np.testing.assert_array_equal(tensor.numpy(), x)


def test_what_no_tensor_can_be():
    with pytest.raises(ropeway.InvalidArgumentError, match="float64"):
        ropeway.from_dlpack(np.zeros(3))
    with pytest.raises(ropeway.InvalidArgumentError, match="64 bits"):
        ropeway.from_dlpack(Exporter(np.zeros(3)))
    with pytest.raises(ropeway.InvalidArgumentError, match="none of them negative"):
        ropeway.from_dlpack(np.zeros(3, np.float32)[::-1])
    with pytest.raises(TypeError, match="list"):
        ropeway.from_dlpack([1.0])
