"""Threads: the interpreter is free while a device computes, and every thread gets its own results and its own errors."""

import multiprocessing
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import ropeway


def test_the_interpreter_is_free_meanwhile():
    a, b = np.ones((4096, 4096), np.float32), np.ones((4096, 6000), np.float32)
    ropeway.gemm(a[:8], b)
    span = []

    def compute():
        begin = time.perf_counter()
        ropeway.gemm(a, b)
        span.extend((begin, time.perf_counter()))

    worker = threading.Thread(target=compute)
    worker.start()
    ticks = []
    while worker.is_alive():
        ticks.append(time.perf_counter())
        time.sleep(0.001)
    worker.join()
    begin, end = span
    # Of a call that held the interpreter there would be one gap, as long as the call.
    gaps = np.diff([begin, *(tick for tick in ticks if begin < tick < end), end])
    assert gaps.max() < (end - begin) / 2


def product_of(seed, device):
    rng = np.random.default_rng(seed)
    m, k, n = rng.integers(1, 60, 3)
    a, b = rng.integers(-3, 4, (m, k)).astype(np.float32), rng.integers(-3, 4, (k, n)).astype(np.float32)
    return ropeway.gemm(a, b, device=device), a @ b


def test_threads_with_sessions_of_their_own(device):
    with ThreadPoolExecutor(8) as pool:
        for found, expected in pool.map(lambda seed: product_of(seed, device), range(200)):
            np.testing.assert_array_equal(found, expected)


def test_threads_that_share_a_session(device):
    session = ropeway.Session(device)
    with ThreadPoolExecutor(8) as pool:
        for found, expected in pool.map(lambda seed: product_of(seed, session), range(200)):
            np.testing.assert_array_equal(found, expected)


def test_threads_that_share_tensors(device):
    session = ropeway.Session(device)
    weight = np.arange(-50, 50, dtype=np.float32).reshape(10, 10)
    shared = session.tensor(weight)

    def chain(seed):
        x = np.random.default_rng(seed).integers(-2, 3, (4, 10)).astype(np.float32)
        # Enqueued by any thread, in one order.
        return ropeway.gemm(ropeway.gemm(session.tensor(x), shared), shared).numpy(), x @ weight @ weight

    with ThreadPoolExecutor(8) as pool:
        for found, expected in pool.map(chain, range(100)):
            np.testing.assert_array_equal(found, expected)


def test_an_error_reaches_the_thread_whose_it_is(device):
    """Ids that only the device sees, out of range in every other call."""

    session = ropeway.Session(device)
    ids = [session.tensor(np.array([[0], [id]], np.int32)) for id in (1, 7)]
    x = np.ones((2, 4), np.float32)

    def scatter(number):
        try:
            ropeway.expert_scatter(x, ids[number % 2], experts=2, device=session)
        except ropeway.DataOutOfRangeError:
            return True
        return False

    with ThreadPoolExecutor(8) as pool:
        failed = list(pool.map(scatter, range(100)))
    assert failed == [number % 2 == 1 for number in range(100)]


def after_fork(session, results):
    try:
        session.empty((4,)).copy_from(np.zeros(4, np.float32))
        results.put("a session of the parent works")
    except ropeway.InvalidArgumentError as error:
        results.put(str(error))
    x = np.full((2, 2), 2, np.float32)
    results.put(ropeway.gemm(x, x).tolist())


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_computes_and_refuses_what_is_the_parents():
    x = np.ones((2, 2), np.float32)
    ropeway.gemm(x, x)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    child = context.Process(target=after_fork, args=(ropeway.Session(), results))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert "made after the fork" in results.get()
    assert results.get() == [[8, 8], [8, 8]]
