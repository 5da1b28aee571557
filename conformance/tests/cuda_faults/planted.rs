//! The faults.

use super::faulty::Substitution;

/// One fault, where it must show, and who must report it.
pub struct Fault {
    /// Its name.
    pub name: &'static str,
    /// The cases that must catch it: ids that contain this.
    pub cases: &'static str,
    /// The kernel to run them on.
    pub kernel: &'static str,
    /// The fault itself.
    pub substitution: Substitution,
    /// What one of the findings or one of the sanitizer's reports must say.
    pub says: &'static [&'static str],
}

const RACE: &[&str] = &["emulated: race"];
/// Shared memory read with nothing to order it after its write. Warps run in random order: that finds a write without order, a copy that
/// is under way, or what nobody has written yet.
const NO_ORDER: &[&str] = &[
    "emulated: race",
    "emulated: asynchronous copy",
    "emulated: uninitialised shared memory",
];
const COPY: &[&str] = &["emulated: asynchronous copy not waited for"];
/// The suite's own comparison: an element beyond its bound, or not finite.
const VALUES: &[&str] = &["bound", "NaN"];

const fn fault(
    name: &'static str,
    cases: &'static str,
    kernel: &'static str,
    (file, find, replace): (&'static str, &'static str, &'static str),
    says: &'static [&'static str],
) -> Fault {
    Fault {
        name,
        cases,
        kernel,
        substitution: Substitution {
            file,
            find,
            replace,
        },
        says,
    }
}

/// All of them.
pub const FAULTS: &[Fault] = &[
    // A stage is filled anew while others still read it.
    fault(
        "dropped_barrier",
        "gemm/fixed",
        "gemm_mma",
        ("mma.cu", "    __syncthreads();\n    ask();", "    ask();"),
        &["emulated: race", "emulated: asynchronous copy"],
    ),
    fault(
        "dropped_wait_for_copies",
        "gemm/fixed",
        "gemm_mma",
        ("mma.cu", "    wait_for_copies<STAGES - 2>();\n", ""),
        COPY,
    ),
    fault(
        "swapped_fragment_registers",
        "gemm/fixed",
        "gemm_mma",
        (
            "mma.cu",
            "\"r\"(a[0]), \"r\"(a[1]), \"r\"(a[2]), \"r\"(a[3])",
            "\"r\"(a[0]), \"r\"(a[2]), \"r\"(a[1]), \"r\"(a[3])",
        ),
        VALUES,
    ),
    fault(
        "wrong_transposition",
        "gemm/fixed",
        "gemm_mma",
        (
            "mma.cu",
            "load_matrices<B_ACROSS>(b[j]",
            "load_matrices<!B_ACROSS>(b[j]",
        ),
        VALUES,
    ),
    // Lanes read what others of their warp have stored, with nothing between.
    fault(
        "missing_fence",
        "gemm/fixed",
        "gemm_mma",
        (
            "mma.cu",
            "    __syncwarp();\n#pragma unroll 1\n    for (u32 pair",
            "#pragma unroll 1\n    for (u32 pair",
        ),
        RACE,
    ),
    fault(
        "off_by_one_guard",
        "attention/fixed",
        "attention_tiled",
        (
            "attention_tiled.cu",
            "if (lid + i * GROUP < dv) store1(",
            "if (lid + i * GROUP <= dv) store1(",
        ),
        &["bound", "canary", "changed", "emulated: out of bounds"],
    ),
    fault(
        "missing_rescale",
        "attention/fixed",
        "attention_tiled",
        (
            "attention_tiled.cu",
            "acc[i][r] *= rescale[r];",
            "acc[i][r] *= 1.0f;",
        ),
        VALUES,
    ),
    fault(
        "causal_off_by_one",
        "attention/fixed",
        "attention_tiled",
        (
            "attention.cu",
            "flags & CAUSAL ? min(position, s.keys - 1)",
            "flags & CAUSAL ? min(position + 1, s.keys - 1)",
        ),
        VALUES,
    ),
    // A tile is filled anew while others still read it.
    fault(
        "dropped_barrier_of_attention",
        "attention/fixed",
        "attention_mma",
        (
            "attention_mma.cu",
            "    wait_for_copies<RING - 2>();\n    __syncthreads();\n",
            "    wait_for_copies<RING - 2>();\n",
        ),
        NO_ORDER,
    ),
    fault(
        "dropped_wait_of_attention",
        "attention/fixed",
        "attention_mma",
        ("attention_mma.cu", "    wait_for_copies<RING - 2>();\n", ""),
        COPY,
    ),
    fault(
        "values_not_transposed",
        "attention/fixed",
        "attention_mma",
        (
            "attention_mma.cu",
            "load_matrices<1>(b, values",
            "load_matrices<0>(b, values",
        ),
        VALUES,
    ),
    // Warps join what others of their block have not yet left.
    fault(
        "warps_joined_too_early",
        "attention/fixed/decode",
        "attention_mma_few",
        (
            "attention_mma.cu",
            "  __syncthreads();\n#pragma unroll 1\n  for (int row = warp;",
            "#pragma unroll 1\n  for (int row = warp;",
        ),
        &["emulated: race", "emulated: uninitialised shared memory"],
    ),
    fault(
        "race_in_the_scan",
        "expert_scatter/fixed",
        "expert_rows_group",
        (
            "rows.cu",
            "warp_sums[warp] = sum;\n    __syncthreads();",
            "warp_sums[warp] = sum;",
        ),
        &["emulated: race", "emulated: uninitialised shared memory"],
    ),
    fault(
        "unstable_permutation",
        "expert_scatter/fixed",
        "expert_rows_group",
        (
            "rows.cu",
            "__popc(same & ((1u << lane) - 1))",
            "__popc(same >> lane >> 1)",
        ),
        &["expected", "differs", "bound"],
    ),
];
