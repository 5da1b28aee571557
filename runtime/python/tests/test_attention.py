"""Attention, against NumPy's in float64."""

import ml_dtypes
import numpy as np
import pytest
import reference

import ropeway


def normal(rng, *shape, dtype=np.float32):
    return rng.standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
def test_a_batch(device, rng, dtype, causal):
    q, k, v = normal(rng, 2, 4, 9, 64, dtype=dtype), normal(rng, 2, 2, 33, 64, dtype=dtype), normal(rng, 2, 2, 33, 80, dtype=dtype)
    o, lse = ropeway.attention(q, k, v, causal=causal, return_lse=True, device=device)
    assert o.dtype == dtype and lse.dtype == np.float32
    for sequence in range(2):
        expected, expected_lse = reference.attention(q[sequence], k[sequence], v[sequence], causal=causal)
        reference.expect(o[sequence], expected)
        reference.expect(lse[sequence], expected_lse)


def test_a_mask_and_heads_within_tokens(device, rng):
    # As projections leave them, [batch, tokens, heads, d], and K and V in one array.
    q, kv = normal(rng, 1, 5, 4, 64), normal(rng, 1, 12, 2, 2, 64)
    q, k, v = q.transpose(0, 2, 1, 3), kv[:, :, 0].transpose(0, 2, 1, 3), kv[:, :, 1].transpose(0, 2, 1, 3)
    mask = normal(rng, 5, 12)
    mask[rng.random((5, 12)) < 0.3] = -np.inf
    o = ropeway.attention(q, k, v, mask=mask, scale=0.25, device=device)
    reference.expect(o[0], reference.attention(q[0], k[0], v[0], mask=mask, scale=0.25)[0])


def test_keys_past_the_length_are_not_read(device, rng):
    q, k, v = normal(rng, 2, 2, 3, 64), normal(rng, 2, 2, 10, 64), normal(rng, 2, 2, 10, 64)
    k[1, :, 4:] = v[1, :, 4:] = np.nan
    o = ropeway.attention(q, k, v, kv_lens=np.array([10, 4], np.int32), device=device)
    reference.expect(o[0], reference.attention(q[0], k[0], v[0])[0])
    reference.expect(o[1], reference.attention(q[1], k[1, :, :4], v[1, :, :4])[0])


def test_values_whose_innermost_stride_no_kernel_takes_are_copied(device, rng):
    q, k, v = normal(rng, 1, 2, 3, 128)[..., ::2], normal(rng, 1, 2, 7, 64), normal(rng, 1, 2, 7, 64)
    o = ropeway.attention(q, k, v, device=device)
    reference.expect(o[0], reference.attention(q[0], k[0], v[0])[0])


def test_sequences_of_different_lengths(device, rng):
    q, k, v = normal(rng, 11, 4, 64), normal(rng, 21, 2, 64), normal(rng, 21, 2, 64)
    cu_q, cu_kv = np.array([0, 4, 4, 11], np.int32), np.array([0, 9, 10, 21], np.int32)
    out = np.empty((11, 4, 64), np.float32), np.empty((11, 4), np.float32)
    o, lse = ropeway.attention_varlen(q, k, v, cu_q, cu_kv, causal=True, return_lse=True, out=out, device=device)
    assert o is out[0] and lse is out[1]
    for sequence in (0, 2):
        rows, keys = slice(*cu_q[sequence : sequence + 2]), slice(*cu_kv[sequence : sequence + 2])
        expected, expected_lse = reference.attention(*(x.swapaxes(0, 1) for x in (q[rows], k[keys], v[keys])), causal=True)
        reference.expect(o[rows].swapaxes(0, 1), expected)
        reference.expect(lse[rows].swapaxes(0, 1), expected_lse)


def test_a_paged_cache(device, rng):
    lengths = np.array([13, 5], np.int32)
    table = np.array([[5, 0, 3, 2], [1, 4, -1, -1]], np.int32)
    k_cache, v_cache = normal(rng, 6, 4, 2, 64), normal(rng, 6, 4, 2, 64)
    # A prefill of three queries beside a decode of one.
    q, cu_q = normal(rng, 4, 4, 64), np.array([0, 3, 4], np.int32)
    o = ropeway.attention_paged(q, cu_q, k_cache, v_cache, table, lengths, causal=True, device=device)
    for sequence, length in enumerate(lengths):
        rows = slice(*cu_q[sequence : sequence + 2])
        blocks = table[sequence, : -(-length // 4)]
        k, v = (cache[blocks].reshape(-1, 2, 64)[:length].swapaxes(0, 1) for cache in (k_cache, v_cache))
        reference.expect(o[rows].swapaxes(0, 1), reference.attention(q[rows].swapaxes(0, 1), k, v, causal=True)[0])
