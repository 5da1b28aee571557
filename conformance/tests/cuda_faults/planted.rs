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
/// What an engine reads or brings, touched too early: found by the engine's own rules, or as accesses without order.
const ENGINE: &[&str] = &[
    "emulated: product or bulk store not waited for",
    "emulated: asynchronous copy",
    "emulated: uninitialised shared memory",
    "emulated: race",
];
const PROXY: &[&str] = &["emulated: no fence of the proxy"];
/// What one warpgroup writes and another's products read.
const ENGINE_OR_PROXY: &[&str] = &[
    "emulated: no fence of the proxy",
    "emulated: product or bulk store not waited for",
    "emulated: uninitialised shared memory",
    "emulated: race",
];
const NOT_WAITED_FOR: &[&str] = &["emulated: product or bulk store not waited for"];
/// Bytes or arrivals that do not add up: a phase that never completes, or one that completes before its bytes are there.
const COUNTS: &[&str] = &[
    "emulated: deadlock",
    "emulated: mbarrier",
    "emulated: asynchronous copy",
    "emulated: uninitialised shared memory",
    "emulated: race",
];
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
    // Hopper: sums are stored while products are under way.
    fault(
        "dropped_wait_for_products",
        "gemm/fixed",
        "gemm_wgmma",
        (
            "wgmma.cu",
            "  products_wait<0>();\n  hold_registers(sums);\n  release(former);",
            "  release(former);",
        ),
        NOT_WAITED_FOR,
    ),
    // A stage is given back while the products of the one before are under way, and the next while they are, too.
    fault(
        "stage_released_too_early",
        "gemm/fixed",
        "gemm_wgmma",
        ("wgmma.cu", "    products_wait<1>();\n", ""),
        ENGINE,
    ),
    fault(
        "dropped_fence_of_registers",
        "gemm/fixed",
        "gemm_wgmma",
        ("wgmma.cu", "    products_begin();\n", ""),
        NOT_WAITED_FOR,
    ),
    fault(
        "dropped_fence_of_the_proxy",
        "gemm/fixed",
        "gemm_wgmma",
        (
            "wgmma_tile.cu",
            "    fence_for_engines();\n    __syncwarp();",
            "    __syncwarp();",
        ),
        PROXY,
    ),
    fault(
        "wrong_parity_of_consumers",
        "gemm/fixed",
        "gemm_wgmma",
        (
            "wgmma.cu",
            "barrier_wait(ring.full + 8 * ring.slot, ring.parity)",
            "barrier_wait(ring.full + 8 * ring.slot, ring.parity ^ 1)",
        ),
        ENGINE,
    ),
    fault(
        "wrong_parity_of_the_producer",
        "gemm/fixed",
        "gemm_wgmma",
        (
            "wgmma.cu",
            "barrier_wait_cluster(ring.empty + 8 * ring.slot, ring.parity ^ 1)",
            "barrier_wait_cluster(ring.empty + 8 * ring.slot, ring.parity)",
        ),
        &["emulated: deadlock"],
    ),
    fault(
        "short_transaction_count",
        "gemm/fixed",
        "gemm_wgmma",
        (
            "wgmma.cu",
            "barrier_expect(full, STAGE_BYTES)",
            "barrier_expect(full, STAGE_BYTES - HALF * 128)",
        ),
        COUNTS,
    ),
    fault(
        "long_transaction_count",
        "gemm/fixed",
        "gemm_wgmma",
        (
            "wgmma.cu",
            "barrier_expect(full, STAGE_BYTES)",
            "barrier_expect(full, STAGE_BYTES + 16)",
        ),
        &["emulated: deadlock"],
    ),
    // The copy engine swizzles by 128 bytes, the products by 64.
    fault(
        "wrong_swizzle",
        "gemm/fixed",
        "gemm_wgmma",
        ("hopper.cu", "(u64)1 << 62", "(u64)2 << 62"),
        VALUES,
    ),
    fault(
        "panel_written_while_it_is_stored",
        "gemm/fixed",
        "gemm_wgmma",
        (
            "wgmma_tile.cu",
            "    if (lane == 0) wait_for_stores<1>();\n",
            "",
        ),
        NOT_WAITED_FOR,
    ),
    fault(
        "block_ends_while_it_stores",
        "gemm/fixed",
        "gemm_wgmma",
        (
            "wgmma_tile.cu",
            "  if (threadIdx.x % 32 == 0) wait_for_stores<0>();",
            "",
        ),
        NOT_WAITED_FOR,
    ),
    // Attention by warpgroups.
    fault(
        "attention_reads_hidden_values",
        "attention/fixed",
        "attention_wgmma",
        (
            "attention_wgmma.cu",
            "const bool tail = there < KEYS",
            "const bool tail = false && there < KEYS",
        ),
        VALUES,
    ),
    fault(
        "dropped_fence_of_queries",
        "attention/fixed",
        "attention_wgmma",
        (
            "attention_wgmma.cu",
            "  fence_for_engines();\n  barrier_of(AMONG",
            "  barrier_of(AMONG",
        ),
        PROXY,
    ),
    fault(
        "dropped_barrier_of_queries",
        "attention/fixed",
        "attention_wgmma",
        (
            "attention_wgmma.cu",
            "  barrier_of(AMONG + warpgroup, 128);\n\n",
            "\n",
        ),
        &[
            "emulated: no fence of the proxy",
            "emulated: race",
            "emulated: uninitialised shared memory",
        ],
    ),
    fault(
        "wrong_parity_of_keys",
        "attention/fixed",
        "attention_wgmma",
        (
            "attention_wgmma.cu",
            "barrier_wait(k_full + 8 * k_place.index, k_place.parity)",
            "barrier_wait(k_full + 8 * k_place.index, k_place.parity ^ 1)",
        ),
        COUNTS,
    ),
    fault(
        "values_not_waited_for",
        "attention/fixed",
        "attention_wgmma",
        (
            "attention_wgmma.cu",
            "      barrier_wait(v_full + 8 * v_place.index, v_place.parity);\n      products_begin",
            "      products_begin",
        ),
        ENGINE,
    ),
    fault(
        "values_copied_too_early",
        "attention/fixed",
        "attention_wgmma",
        (
            "attention_wgmma.cu",
            "barrier_wait(v_empty + 8 * v_place.index, v_place.parity ^ 1);",
            "",
        ),
        ENGINE,
    ),
    fault(
        "dropped_wait_for_scores",
        "attention/fixed",
        "attention_wgmma",
        ("attention_wgmma.cu", "      products_wait<1>();\n", ""),
        NOT_WAITED_FOR,
    ),
    fault(
        "short_count_of_keys",
        "attention/fixed",
        "attention_wgmma",
        (
            "attention_wgmma.cu",
            "barrier_expect(full, values ? V_BYTES : K_BYTES);\n      __syncwarp",
            "barrier_expect(full, values ? V_BYTES : K_BYTES - 128);\n      __syncwarp",
        ),
        COUNTS,
    ),
    fault(
        "rows_rescaled_crosswise",
        "attention/fixed",
        "attention_wgmma",
        (
            "attention_wgmma.cu",
            "acc[c] *= rescale[c / 2 % 2]",
            "acc[c] *= rescale[c % 2]",
        ),
        VALUES,
    ),
    // Latent attention.
    fault(
        "latent_reads_hidden_values",
        "attention/fixed/latent",
        "attention_latent",
        (
            "attention_latent.cu",
            "const bool tail = there < KEYS",
            "const bool tail = false && there < KEYS",
        ),
        VALUES,
    ),
    fault(
        "dropped_fence_of_probabilities",
        "attention/fixed/latent",
        "attention_latent",
        (
            "attention_latent.cu",
            "    fence_for_engines();\n  };",
            "  };",
        ),
        PROXY,
    ),
    fault(
        "dropped_barrier_of_probabilities",
        "attention/fixed/latent",
        "attention_latent",
        (
            "attention_latent.cu",
            "      barrier_of(BOTH, 256);\n      if (!inside)",
            "      if (!inside)",
        ),
        ENGINE_OR_PROXY,
    ),
    fault(
        "dropped_barrier_of_maxima",
        "attention/fixed/latent",
        "attention_latent",
        (
            "attention_latent.cu",
            "    barrier_of(BOTH, 256);\n#pragma unroll\n    for (int h",
            "#pragma unroll\n    for (int h",
        ),
        NO_ORDER,
    ),
    fault(
        "tile_released_too_early",
        "attention/fixed/latent",
        "attention_latent",
        (
            "attention_latent.cu",
            "        products_wait<1>();\n        release(at.values);",
            "        release(at.values);\n        products_wait<1>();",
        ),
        ENGINE,
    ),
    fault(
        "apart_values_not_waited_for",
        "attention/fixed/latent",
        "attention_latent",
        (
            "attention_latent.cu",
            "      if (!inside) barrier_wait(full + 8 * at.values, at.parity);\n",
            "",
        ),
        ENGINE,
    ),
    fault(
        "maximum_of_half_the_keys",
        "attention/fixed/latent",
        "attention_latent",
        (
            "attention_latent.cu",
            "      top[h] = greater(top[h], exchanged[1 - warpgroup][my_line + 8 * h]);\n",
            "",
        ),
        VALUES,
    ),
    // Launches of moe_ffn begin before those before them have ended.
    fault(
        "dropped_wait_for_the_launch_before",
        "moe_ffn/fixed",
        "expert_rows_group",
        (
            "dependent.cu",
            "  asm volatile(\"griddepcontrol.wait;\" ::: \"memory\");\n",
            "",
        ),
        &["emulated: dependency not waited for"],
    ),
    // Blocks that share a: one's half lands where the other's does.
    fault(
        "half_of_a_in_the_place_of_the_other",
        "grouped_gemm/fixed",
        "grouped_wgmma",
        (
            "wgmma.cu",
            "to + rank * (A_BYTES / CLUSTER), a, full",
            "to, a, full",
        ),
        ENGINE,
    ),
    // Parts of k are added up before they are there.
    fault(
        "sum_of_parts_that_does_not_wait",
        "gemm/fixed",
        "gemm_wgmma_small",
        (
            "reduce.cu",
            "  wait_for_previous_launch();\n",
            "#if DEPENDENT_LAUNCH\n  asm volatile(\"griddepcontrol.launch_dependents;\");\n#endif\n",
        ),
        &["emulated: dependency not waited for"],
    ),
    // 8-bit floats: sums of a block are scaled while its products are under way.
    fault(
        "dropped_wait_for_scaled_products",
        "gemm/fixed/exact",
        "gemm_wgmma_scaled",
        ("gemm_wgmma_scaled.cu", "    products_wait<0>();\n", ""),
        NOT_WAITED_FOR,
    ),
    fault(
        "scales_of_the_block_before",
        "gemm/fixed",
        "gemm_wgmma_scaled",
        (
            "gemm_wgmma_scaled.cu",
            "    if (block + 1 < blocks) {",
            "    if (block > 0 && block + 1 < blocks) {",
        ),
        &["expected", "differs", "bound"],
    ),
    fault(
        "block_of_k_that_is_not_scaled",
        "gemm/fixed/exact",
        "gemm_scaled",
        (
            "gemm_scaled.cu",
            "a_scale[i] * b_scale[j]",
            "(k0 == 0 ? a_scale[i] * b_scale[j] : 1.0f)",
        ),
        &["expected", "differs", "bound"],
    ),
];
