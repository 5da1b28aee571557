//! The faults.

use super::faulty::Substitution;

/// One fault, and where it must show.
pub struct Fault {
    /// Its name.
    pub name: &'static str,
    /// The cases that must catch it: ids that contain this.
    pub cases: &'static str,
    /// The kernel to run them on.
    pub kernel: Option<&'static str>,
    /// The fault itself.
    pub substitution: Substitution,
}

const fn fault(
    name: &'static str,
    cases: &'static str,
    kernel: &'static str,
    (file, find, replace): (&'static str, &'static str, &'static str),
) -> Fault {
    Fault {
        name,
        cases,
        kernel: Some(kernel),
        substitution: Substitution {
            file,
            find,
            replace,
        },
    }
}

/// All of them.
pub const FAULTS: &[Fault] = &[
    // The last product of the sum is dropped, at three lengths of the sum: random data and the probabilistic bound.
    fault(
        "dropped_product/k64",
        "k64_",
        "gemm_packed",
        DROPPED_PRODUCT,
    ),
    fault(
        "dropped_product/k1024",
        "k1024_",
        "gemm_packed",
        DROPPED_PRODUCT,
    ),
    fault(
        "dropped_product/k16384",
        "k16384_",
        "gemm_packed",
        DROPPED_PRODUCT,
    ),
    fault(
        "off_by_one_edge",
        "gemm/fixed",
        "gemm_packed",
        (
            "gemm_packed.cl",
            "r < min((uint)MR, m - s * MR); r++",
            "r < min((uint)MR, m - s * MR - (s > 0)); r++",
        ),
    ),
    fault(
        "missing_tail",
        "gemm/fixed",
        "gemm_packed",
        (
            "gemm_packed.cl",
            "uint live = min(swiglu ? 16u : 32u, columns - col);\n  for (uint s = begin;",
            "uint live = col > 0 ? min(swiglu ? 16u : 32u, columns - col) / 16 * 16 : min(32u, columns);\n  for (uint s = begin;",
        ),
    ),
    fault(
        "wrong_transpose_stride",
        "gemm/fixed",
        "gemm_packed",
        (
            "panels.cl",
            "load_1(x, at + r * x_stride + k * k_stride, dtype)",
            "load_1(x, at + r * k_stride + k * x_stride, dtype)",
        ),
    ),
    fault(
        "f16_overflow_in_the_accumulator",
        "gemm/fixed",
        "gemm_packed",
        (
            "panels.cl",
            "#define TILE_STEP(r) { float16 a = a_panel[kk * MR + r]; \
             lo##r = fma(a, b_lo, lo##r); hi##r = fma(a, b_hi, hi##r); }",
            "inline float16 overflow(float16 v)\n\
             { return A_DTYPE == F16 ? select(v, copysign((float16)INFINITY, v), fabs(v) > 65504.0f) : v; }\n\
             #define TILE_STEP(r) { float16 a = a_panel[kk * MR + r]; \
             lo##r = overflow(fma(a, b_lo, lo##r)); hi##r = overflow(fma(a, b_hi, hi##r)); }",
        ),
    ),
    fault(
        "read_of_poisoned_padding",
        "gemm/fixed",
        "gemm_packed",
        (
            "gemm_packed.cl",
            "min((uint)KC, k - k0), tile)",
            "(min((uint)KC, k - k0) + 1) / 2 * 2, tile)",
        ),
    ),
    fault(
        "write_past_the_end",
        "gemm/fixed",
        "gemm_packed",
        (
            "gemm_packed.cl",
            "uint live = min(swiglu ? 16u : 32u, columns - col);\n  for (uint s = begin;",
            "uint live = swiglu ? 16u : 32u;\n  for (uint s = begin;",
        ),
    ),
    fault(
        "ignored_beta",
        "gemm/fixed",
        "gemm_packed",
        (
            "elements.cl",
            "fma((float16)beta, gather_16(c, c_at, c_col, live, C_DTYPE), v)",
            "v + gather_16(c, c_at, c_col, live, C_DTYPE)",
        ),
    ),
    fault(
        "lost_expert",
        "grouped_gemm/fixed",
        "grouped_packed",
        (
            "routing.cl",
            "for (; expert < experts; expert++) {",
            "for (; expert + 1 < experts; expert++) {",
        ),
    ),
    fault(
        "unstable_permutation",
        "expert_scatter/fixed",
        "expert_rows",
        (
            "rows.cl",
            "for (uint i = begin; i < end; i++) {\n    const int e",
            "for (uint i = end; i-- > begin;) {\n    const int e",
        ),
    ),
    fault(
        "dropped_barrier/permutation",
        "expert_scatter/fixed",
        "expert_rows_group",
        (
            "rows.cl",
            "tile[lid] = e;\n    barrier(CLK_LOCAL_MEM_FENCE);",
            "tile[lid] = e;",
        ),
    ),
    fault(
        "dropped_barrier/attention",
        "attention/fixed/d64_f32",
        "attention_tiled",
        (
            "attention_tiled.cl",
            "part[share * ROWS + row] = share_sum;\n    barrier(CLK_LOCAL_MEM_FENCE);",
            "part[share * ROWS + row] = share_sum;",
        ),
    ),
    fault(
        "causal_off_by_one",
        "attention/fixed/causal_",
        "attention_prefill",
        (
            "attention.cl",
            "min(position, s.keys - 1)",
            "min(position + 1, s.keys - 1)",
        ),
    ),
    fault(
        "missing_rescale/prefill",
        "attention/fixed/ascending_scores",
        "attention_prefill",
        (
            "attention_prefill.cl",
            "sum[g] = sum[g] * rescale + block_sum;",
            "sum[g] = sum[g] + block_sum;",
        ),
    ),
    fault(
        "missing_rescale/decode",
        "attention/fixed/",
        "attention_decode",
        (
            "attention_decode.cl",
            "rescale = exp_nonpositive(most[h] - base), block_sum = 0.0f;",
            "rescale = 1.0f, block_sum = 0.0f;",
        ),
    ),
    fault(
        "read_of_poisoned_padding/keys_past_the_length",
        "attention/fixed/kv_lens_",
        "attention_prefill",
        (
            "attention.cl",
            "s.keys = clamp(keys, 0, l->kv_len);\n    if (s.keys != keys)",
            "s.keys = l->kv_len;\n    if (false)",
        ),
    ),
];

const DROPPED_PRODUCT: (&str, &str, &str) = (
    "gemm_packed.cl",
    "min((uint)KC, k - k0), tile)",
    "min((uint)KC, k - k0) - (k0 + KC >= k ? 1 : 0), tile)",
);
