/* Tiles of d by warpgroups on Hopper (sm_90a), for gemm_wgmma.cu and grouped_wgmma.cu, made of what hopper.cu has: f16 and bf16, summed in f32.
 *
 *   A block stays on its multiprocessor and walks tiles of BLOCK_M x BLOCK_N. Its first warpgroup has one thread at work, which asks the copy engine for
 *   slices of 64 k; the others multiply 64 rows of a by the whole width of b each, and keep their sums in registers.
 *
 *     producer     wait empty[s]    expect bytes    load a, b -> stage s                       | the next slice, the next tile, ...
 *     consumers    wait full[s]     4 products of 16 k    wait for the slice before    release its stage     ... finish, store
 *
 *     stage   | a: BLOCK_M rows of 128 bytes | b: BLOCK_N rows of 128 bytes |      STAGES of them, filled while d of the tile before is stored
 *
 *   Along k a row of shared memory is 64 k of one row of a (column of b); across (A_ACROSS, B_ACROSS) it is 64 rows (columns) of one k, panel behind panel, and
 *   the descriptor of the product transposes. Chunks of 16 bytes are swizzled by the copy engine.
 *
 *   b comes in two halves. Two blocks of a cluster compute tiles one above the other, which share b: each loads one half and sends it to both. Grouped, they
 *   compute tiles side by side, which share a, and send each other its upper and lower rows. A stage is therefore free when the consumers of both blocks
 *   have read it. Under swiglu the first half of b is gate, the second up, of the same columns of d.
 *
 * Macro       default  meaning
 * A_ACROSS    0        1: a's rows lie side by side
 * B_ACROSS    0        1: b's columns lie side by side
 * The others: wgmma_tile.cu, which has ring and stores.
 *
 * The structure is that of CUTLASS's cooperative kernels and of DeepGEMM; no GPU has run it yet.
 */
#ifndef A_ACROSS
#define A_ACROSS 0
#endif
#ifndef B_ACROSS
#define B_ACROSS 0
#endif
#if A_DTYPE != F16 && A_DTYPE != BF16
#error "A_DTYPE is f16 or bf16"
#endif

/* k of a slice: 128 bytes. Bytes of 64 lines of a slice, which are a panel if they lie across. */
#define SLICE 64
#define PANEL_BYTES (64 * 128)

/* What a tile is made of: its first row of a, the first columns of both halves of b, its matrices and its k. */
struct Operands {
  int row, column, up, a_inner, a_outer, b_inner, b_outer;
  u32 k0, k_end;
};

/* ---- producer ---- */

/* Half a tile's b, to every block that shares it. */
__device__ __forceinline__ void load_half_of_b(const TensorMap* b, u32 to, u32 full, const Operands& o, u32 half, int k)
{
  to += half * HALF * 128;
  int column = half ? o.up : o.column;
#pragma unroll
  for (int panel = 0; panel < (B_ACROSS ? HALF / 64 : 1); panel++) {
    int x = B_ACROSS ? column + panel * 64 : k, y = B_ACROSS ? k : column;
#if SHARES_B
    load_tile_to((1 << CLUSTER) - 1, to + panel * PANEL_BYTES, b, full, x, y, o.b_inner, o.b_outer);
#else
    load_tile(to + panel * PANEL_BYTES, b, full, x, y, o.b_inner, o.b_outer);
#endif
  }
}

/* Asks for all slices of a tile, each as soon as its stage is free. By one thread. */
__device__ __forceinline__ void load_slices(Ring& ring, const TensorMap* a, const TensorMap* b, const Operands& o, u32 rank)
{
#pragma unroll 1
  for (u32 k = o.k0; k < o.k_end; k += SLICE) {
    u32 full = ring.full + 8 * ring.slot, to = ring.stage();
    barrier_wait_cluster(ring.empty + 8 * ring.slot, ring.parity ^ 1);
    /* what the other block sends counts too */
    barrier_expect(full, STAGE_BYTES);
#if SHARES_A
    load_tile_to((1 << CLUSTER) - 1, to + rank * (A_BYTES / CLUSTER), a, full, k, o.row + rank * (BLOCK_M / CLUSTER), o.a_inner, o.a_outer);
#else
#pragma unroll
    for (int panel = 0; panel < (A_ACROSS ? CONSUMERS : 1); panel++)
      load_tile(to + panel * PANEL_BYTES, a, full, A_ACROSS ? o.row + panel * 64 : (int)k, A_ACROSS ? (int)k : o.row, o.a_inner, o.a_outer);
#endif
#if SHARES_B
    load_half_of_b(b, to + A_BYTES, full, o, rank, k);
#else
    load_half_of_b(b, to + A_BYTES, full, o, 0, k);
    load_half_of_b(b, to + A_BYTES, full, o, 1, k);
#endif
    ring.advance();
  }
}

/* ---- consumers ---- */

/* Sums of a tile over so many slices, at least one. One group of products stays under way while the stage of the one before is released. */
__device__ __forceinline__ void multiply_slices(Ring& ring, u32 slices, u32 consumer, float (&sums)[BLOCK_N / 2])
{
  const u32 a_step = A_ACROSS ? 16 * 128 : 32, b_step = B_ACROSS ? 16 * 128 : 32;
  u32 former = 0;
#pragma unroll 1
  for (u32 slice = 0; slice < slices; slice++) {
    u32 a = ring.stage() + consumer * PANEL_BYTES, b = ring.stage() + A_BYTES;
    barrier_wait(ring.full + 8 * ring.slot, ring.parity);
    products_begin();
#pragma unroll
    for (u32 step = 0; step < SLICE / 16; step++)
      Product<BLOCK_N>::of_shared<A_ACROSS, B_ACROSS>(sums, operand_at(a + step * a_step, PANEL_BYTES), operand_at(b + step * b_step, PANEL_BYTES), slice | step);
    products_commit();
    products_wait<1>();
    if (slice > 0) release(former);
    former = ring.empty + 8 * ring.slot;
    ring.advance();
  }
  products_wait<0>();
  hold_registers(sums);
  release(former);
}
