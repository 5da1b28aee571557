"""What goes wrong is a typed exception that names the thing."""

import builtins
import pickle

import numpy as np
import pytest

import ropeway


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


def refused(text):
    return pytest.raises(ropeway.InvalidArgumentError, match=text)


def test_every_class_is_of_the_one_and_of_pythons():
    classes = [getattr(ropeway, name) for name in dir(ropeway.errors) if name.endswith("Error")]
    assert len(classes) == 12
    assert all(issubclass(error, ropeway.RopewayError) for error in classes)
    assert issubclass(ropeway.InvalidArgumentError, ValueError)
    assert issubclass(ropeway.UnsupportedError, NotImplementedError)
    assert issubclass(ropeway.OutOfMemoryError, MemoryError)
    assert issubclass(ropeway.TimeoutError, builtins.TimeoutError)
    assert issubclass(ropeway.DataOutOfRangeError, IndexError)


def test_an_error_tells_its_parts_and_travels():
    with refused("^invalid argument: b: found extent 5 on axis 0") as caught:
        ropeway.gemm(zeros(3, 4), zeros(5, 6))
    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.call, error.code) == ("", None)
    assert error.context == "b: found extent 5 on axis 0 of [5, 6], expected k = 4, as a has"
    assert str(error) == f"invalid argument: {error.context}"


def test_malformed_requests(device):
    a, b = zeros(3, 4), zeros(4, 5)
    with refused("activation: found \"tanh\""):
        ropeway.gemm(a, b, activation="tanh", device=device)
    with refused("alpha"):
        ropeway.gemm(a, b, alpha=float("nan"), device=device)
    with refused("bias: found shape"):
        ropeway.gemm(a, b, bias=zeros(4), device=device)
    with refused("a: found float64"):
        ropeway.gemm(a.astype(np.float64), b, device=device)
    with refused("a: found .*byte order"):
        ropeway.gemm(a.astype(">f4"), b, device=device)
    with refused("dtype: found complex64"):
        ropeway.gemm(a, b, dtype=np.complex64, device=device)
    with refused("b_format"):
        ropeway.gemm(a, zeros(5, 4, dtype=np.uint8), trans_b=True, b_format="q9", device=device)
    with refused("topk: found 9"):
        ropeway.moe_route(a, topk=9, device=device)
    with refused("topk: found -1"):
        ropeway.moe_route(a, topk=-1, device=device)
    with refused("heads"):
        ropeway.attention(zeros(1, 3, 2, 8), zeros(1, 2, 2, 8), zeros(1, 2, 2, 8), device=device)
    with pytest.raises(TypeError, match="b: found list"):
        ropeway.gemm(a, [[1.0]], device=device)
    with pytest.raises(TypeError, match="device"):
        ropeway.gemm(a, b, device=3)


def test_outputs_that_cannot_be(device):
    a, b = zeros(3, 4), zeros(4, 5)
    with refused("out .d.: found F32 .3, 4.* expected F32 .3, 5"):
        ropeway.gemm(a, b, out=a, device=device)
    with refused("found F16"):
        ropeway.moe_route(a, topk=1, out=(zeros(3, 1, dtype=np.int32), zeros(3, 1, dtype=np.float16)), device=device)
    read_only = zeros(3, 5)
    read_only.flags.writeable = False
    with refused("read-only"):
        ropeway.gemm(a, b, out=read_only, device=device)
    with refused("no two elements share memory"):
        ropeway.gemm(a, b, out=np.lib.stride_tricks.as_strided(zeros(7), (3, 5), (4, 4)), device=device)
    with refused("none of them negative"):
        ropeway.gemm(a, b, out=zeros(3, 5)[::-1], device=device)
    with refused("out: found 1 arrays, expected 2"):
        ropeway.moe_route(a, topk=1, out=(zeros(3, 1, dtype=np.int32),), device=device)
    # By address, as two views of one array are two arrays.
    stored = zeros(8, 8)
    with refused("out .d.: found memory that overlaps b"):
        ropeway.gemm(zeros(2, 4), stored[:4, :4], out=stored[3:5, :4], device=device)


def test_an_output_that_overlaps_an_input_tensor(device):
    tensor = ropeway.Session(device).tensor(zeros(4, 4))
    with refused("overlaps"):
        ropeway.gemm(tensor, tensor, out=tensor)


def test_ids_on_the_host_are_checked_by_element(device):
    x, ids = zeros(2, 4), np.array([[0, 1], [9, 2]], np.int32)
    with refused(r"topk_ids\[1, 0\]: found 9"):
        ropeway.expert_scatter(x, ids, experts=4, device=device)
    with refused("topk_ids: found int64"):
        ropeway.expert_scatter(x, ids.astype(np.int64), experts=4, device=device)
    q = zeros(3, 2, 8)
    with refused(r"cu_q\[1\]: found 2"):
        ropeway.attention_varlen(q, q, q, np.array([0, 2], np.int32), np.array([0, 3], np.int32), device=device)


def test_ids_on_the_device_are_reported_when_waited_for(device):
    session = ropeway.Session(device)
    x, ids = session.tensor(zeros(2, 4)), session.tensor(np.array([[0, 1], [9, 2]], np.int32))
    scatter = ropeway.expert_scatter(x, ids, experts=4)
    with pytest.raises(ropeway.DataOutOfRangeError, match="out of range"):
        session.synchronize()
    session.synchronize()
    np.testing.assert_array_equal(scatter.expert_offsets.numpy(), [0, 1, 2, 3, 3])


def test_devices_that_are_not_there():
    with refused("one of .*cpu"):
        ropeway.Session("abacus")
    with refused("ordinal|device"):
        ropeway.Session("cpu:7")
    with refused("a number after the colon"):
        ropeway.Session("cpu:first")
    with pytest.raises(ropeway.UnsupportedError, match="computes nothing"):
        ropeway.Session("null")


def test_missing_backends_say_why_and_what_to_do():
    found = ropeway.devices()
    backends = {info.device.split(":")[0] for info in found} | {missing.backend for missing in found.missing}
    assert backends >= {"cpu", "null", "cuda", "opencl", "vulkan"}
    for missing in found.missing:
        assert missing.reason and missing.remedy and missing.reason in str(found)
        with pytest.raises(ropeway.UnavailableError) as caught:
            ropeway.Session(missing.backend)
        assert missing.remedy in str(caught.value)


def test_devices_are_labelled(device):
    info = ropeway.Session(device).info
    assert info.device == device and info.name
    backend = device.split(":")[0]
    expected = {"cpu": {"hardware"}, "opencl": {"hardware", "software"}, "vulkan": {"hardware", "software"}}
    assert info.execution in expected.get(backend, {"hardware", "emulated"})
    if info.kind == "cpu" and backend != "cpu":
        assert info.execution == "software"
    assert info.dtypes["float32"] == "arithmetic"
    assert f"{device:<10} {info.execution}" in str(ropeway.devices())


def test_tensors_of_another_device(other_device):
    there = ropeway.Session(other_device).tensor(zeros(4, 4))
    here = ropeway.Session().tensor(zeros(4, 4))
    with refused(f"b: found a tensor on {other_device}, expected .* on cpu:0"):
        ropeway.gemm(here, there)
    with refused(f"a: found a tensor on {other_device}"):
        ropeway.gemm(there, there, device="cpu")


def test_memory_that_is_not_there(device):
    session = ropeway.Session(device)
    with pytest.raises(MemoryError) as caught:
        session.empty((1 << 44,), "int8")
    assert isinstance(caught.value, ropeway.OutOfMemoryError)
    with refused("shape"):
        session.empty((1 << 40, 1 << 40))
    assert session.tensor(zeros(3)).numpy().sum() == 0


def test_an_array_that_is_longer_than_any_memory():
    endless = np.broadcast_to(np.int32(0), (1 << 45,))
    q = zeros(3, 2, 8)
    with pytest.raises(ropeway.OutOfMemoryError):
        ropeway.attention_varlen(q, q, q, endless, endless)


def test_a_wait_that_passes_its_limit():
    session = ropeway.Session()
    x = session.tensor(np.ones((2048, 2048), np.float32))
    y = ropeway.gemm(x, x)
    with pytest.raises(ropeway.TimeoutError):
        session.synchronize(timeout=0)
    session.synchronize(timeout=60)
    assert y.numpy()[5, 5] == 2048
    with refused("timeout"):
        session.synchronize(timeout=-1)
