"""Whose memory is whose: no copies on the cpu device, tensors that stay on a device, windows into them."""

import gc
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import reference

import ropeway
from ropeway import _native


def address(array):
    return array.__array_interface__["data"][0]


def test_the_cpu_device_reads_and_writes_arrays_where_they_lie(rng):
    stored = rng.standard_normal((40, 70)).astype(np.float32)
    # Windows of any alignment, a transpose among them.
    operands = {"a": stored[1:31, 3:43], "b": stored[:33, 1:41].T, "bias": stored[35, 2:35]}
    out = np.empty((31, 34), np.float32)[1:, 1:]
    addresses: dict[str, int | None] = {}
    (d,) = _native.run("gemm", operands, {}, [out], "cpu", addresses)
    assert addresses == {name: address(array) for name, array in (*operands.items(), ("d", out))}
    assert d is out
    reference.expect(out, reference.gemm(operands["a"], operands["b"], bias=operands["bias"]))


def test_a_new_result_is_written_in_place_too(rng):
    q = rng.standard_normal((1, 2, 5, 64)).astype(np.float32)
    addresses: dict[str, int | None] = {}
    (o,) = _native.run("attention", {"q": q, "k": q, "v": q}, {}, None, "cpu", addresses)
    assert addresses == {"q": address(q), "k": address(q), "v": address(q), "o": address(o)}


def test_other_devices_get_copies(other_device, rng):
    a = rng.standard_normal((4, 4)).astype(np.float32)
    addresses: dict[str, int | None] = {}
    _native.run("gemm", {"a": a, "b": a}, {}, None, other_device, addresses)
    assert addresses == {"a": None, "b": None, "d": None}


GROWTH = r"""
import re
import numpy as np
import ropeway

def greatest_size():
    return int(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1]) << 10

b = np.ones((8192, 8192), np.float32)
x = np.ones((1, 8192), np.float32)
ropeway.gemm(x[:, :64], b[:64, :64])
for weight in (b, b[::-1]):
    before = greatest_size()
    assert (ropeway.gemm(x, weight) == 8192).all()
    print(greatest_size() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a process's greatest size there")
def test_a_large_operand_takes_no_second_room():
    # In a process of its own, whose greatest size is this test's.
    done = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True, check=True)
    in_place, copied = map(int, done.stdout.split())
    bytes_of_b = 8192 * 8192 * 4
    assert in_place < bytes_of_b // 4
    assert copied > bytes_of_b // 4 * 3, "negative strides are copied, which shows that a copy would be seen"


def test_arrays_are_let_go(device):
    a = np.ones((8, 8), np.float32)
    count = sys.getrefcount(a)
    for _ in range(10):
        ropeway.gemm(a, a, device=device)
    with pytest.raises(ropeway.InvalidArgumentError):
        ropeway.gemm(a, a, out=a, device=device)
    gc.collect()
    assert sys.getrefcount(a) == count


def test_tensors_stay_on_their_device(device, rng):
    session = ropeway.Session(device)
    a, b = rng.standard_normal((20, 30)).astype(np.float32), rng.standard_normal((30, 10)).astype(np.float32)
    on_device = session.tensor(b)
    assert (on_device.shape, on_device.dtype, on_device.device, on_device.strides) == ((30, 10), "float32", device, (10, 1))
    # The result is of the first operand's kind, and a tensor says where to run.
    product = ropeway.gemm(a, on_device)
    assert isinstance(product, np.ndarray)
    reference.expect(product, reference.gemm(a, b))
    out = session.empty((20, 10))
    product = ropeway.gemm(session.tensor(a), on_device, out=out)
    assert product is out
    reference.expect(product.numpy(), reference.gemm(a, b))
    # Arrays go where the result is to be.
    product = ropeway.gemm(a, b, alpha=2, out=out)
    assert product is out
    reference.expect(out.numpy(), reference.gemm(a, b, alpha=2))


def test_a_tensor_is_a_copy_of_the_array(device):
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensor = ropeway.Session(device).tensor(a)
    a.fill(0)
    np.testing.assert_array_equal(tensor.numpy(), [[0, 1, 2], [3, 4, 5]])
    tensor.copy_from(a.T.copy().T)
    np.testing.assert_array_equal(np.asarray(tensor), a)


def test_windows_into_a_tensor(device, rng):
    x = rng.standard_normal((4, 6, 10)).astype(np.float32)
    tensor = ropeway.Session(device).tensor(x)
    for index in [1, -1, (0, 2), slice(1, 3), (..., 3), (slice(None), slice(0, 6, 2)), (2, ..., slice(4, 4)), (slice(5, 2), 1)]:
        np.testing.assert_array_equal(tensor[index].numpy(), x[index])
    np.testing.assert_array_equal(tensor.transpose(2, 0, 1).numpy(), x.transpose(2, 0, 1))
    np.testing.assert_array_equal(tensor.mT.numpy(), x.swapaxes(-1, -2))
    np.testing.assert_array_equal(tensor.reshape(8, 30).numpy(), x.reshape(8, 30))
    assert len(tensor) == 4
    product = ropeway.gemm(tensor[1].mT, tensor[2, :, 3:7])
    reference.expect(product.numpy(), reference.gemm(x[1].T, x[2, :, 3:7]))
    tensor[3, 2].copy_from(np.zeros(10, np.float32))
    x[3, 2] = 0
    np.testing.assert_array_equal(tensor.numpy(), x)
    with pytest.raises(IndexError):
        tensor[4]
    with pytest.raises(IndexError):
        tensor[0, 0, 0, 0]
    with pytest.raises(ropeway.InvalidArgumentError, match="step forward"):
        tensor[::-1]
    with pytest.raises(ropeway.InvalidArgumentError, match="without gaps"):
        tensor[:, 0].copy_from(np.zeros((4, 10), np.float32))
    with pytest.raises(ropeway.InvalidArgumentError, match="no gaps"):
        tensor.mT.reshape(240)


def test_a_tensor_of_the_cpu_device_is_the_hosts_memory():
    session = ropeway.Session()
    tensor = session.tensor(np.zeros((3, 4), np.float32))
    array = tensor.numpy()
    array[1, 2] = 5
    assert tensor.numpy()[1, 2] == 5
    assert address(tensor[1].numpy()) == address(array[1])
    del tensor, session
    gc.collect()
    array += 1
    assert array[1, 2] == 6, "the array keeps the memory alive"


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8", "int32", "uint8"])
def test_every_dtype_comes_back(device, dtype):
    x = np.arange(12).reshape(3, 4).astype(getattr(ml_dtypes, dtype) if dtype == "bfloat16" else dtype)
    tensor = ropeway.Session(device).tensor(x)
    assert tensor.dtype == dtype
    assert tensor.numpy().dtype == x.dtype
    np.testing.assert_array_equal(tensor.numpy(), x)


def test_tensors_of_two_sessions_wait_for_each_other(device, rng):
    a = rng.integers(-2, 3, (200, 200)).astype(np.float32)
    first, second = ropeway.Session(device), ropeway.Session(device)
    x = first.tensor(a)
    for _ in range(5):
        y = ropeway.gemm(x, x, device=first)
        z = ropeway.gemm(y, x, device=second)
        # Written anew only when the other session has read it.
        ropeway.gemm(x, x, alpha=0, out=y, device=first)
        np.testing.assert_array_equal(z.numpy(), a @ a @ a)
        assert not y.numpy().any()


def test_memory_in_use_is_counted(other_device):
    session = ropeway.Session(other_device)
    before, total = session.memory()
    tensor = session.empty((1 << 20,))
    session.synchronize()
    used, _ = session.memory()
    assert before + (4 << 20) <= used <= total
    del tensor
