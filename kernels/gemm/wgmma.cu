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
 *   b comes in two halves. Two blocks of a cluster compute tiles one above the other, which share b: each loads one half and sends it to both.
 *   A stage is therefore free when the consumers of both blocks have read it. Under swiglu the first half is gate, the second up, of the same columns of d.
 *
 *   A warp stores its 16 rows of d by panels of 128 bytes through two buffers of its own, with no barrier but the warp's: stmatrix, then the copy engine
 *   while the next panel is finished, or the next tile multiplied. What the engine cannot store goes straight from registers.
 *
 * Macro       default  meaning
 * BLOCK_M     128      rows of a tile: 64 for each consumer warpgroup
 * BLOCK_N     256      columns of a tile, 128 or 256
 * STAGES      4        stages of the ring
 * CLUSTER     1        blocks that share b, 1 or 2
 * A_ACROSS    0        1: a's rows lie side by side
 * B_ACROSS    0        1: b's columns lie side by side
 * D_BY_MAP    1        1: d is stored by the copy engine
 * ACTIVATION  0        the activation's code (elements.cu)
 * HAS         0        bits of what the epilogue reads (elements.cu)
 *
 * The structure is that of CUTLASS's cooperative kernels and of DeepGEMM; no GPU has run it yet.
 */
#ifndef BLOCK_M
#define BLOCK_M 128
#endif
#ifndef BLOCK_N
#define BLOCK_N 256
#endif
#ifndef STAGES
#define STAGES 4
#endif
#ifndef CLUSTER
#define CLUSTER 1
#endif
#ifndef A_ACROSS
#define A_ACROSS 0
#endif
#ifndef B_ACROSS
#define B_ACROSS 0
#endif
#ifndef D_BY_MAP
#define D_BY_MAP 1
#endif
#ifndef ACTIVATION
#define ACTIVATION 0
#endif
#ifndef HAS
#define HAS 0
#endif
/* The matrix units take no f32; compiled alone, bf16. */
#ifdef A_DTYPE_IS_DEFAULT
#undef A_DTYPE
#define A_DTYPE BF16
#endif
#if A_DTYPE != F16 && A_DTYPE != BF16
#error "A_DTYPE is f16 or bf16"
#endif

#define SWIGLU (ACTIVATION == ACTIVATION_SWIGLU)
#define WARPGROUP 128
#define CONSUMERS (BLOCK_M / 64)
#define THREADS (WARPGROUP * (1 + CONSUMERS))
/* k of a slice: 128 bytes. Bytes of 64 lines of a slice, which are a panel if they lie across. */
#define SLICE 64
#define PANEL_BYTES (64 * 128)
#define A_BYTES (BLOCK_M * 128)
#define B_BYTES (BLOCK_N * 128)
#define STAGE_BYTES (A_BYTES + B_BYTES)
#define HALF (BLOCK_N / 2)
/* Columns of d that come of a tile, and of one panel of 128 bytes of d. */
#define OUTPUTS (SWIGLU ? HALF : BLOCK_N)
#define D_PANEL (128 / (int)BYTES_OF(D_DTYPE))
/* A warp's rows of a tile, and bytes of one of its two buffers. */
#define WARP_ROWS 16
#define BUFFER_BYTES (WARP_ROWS * 128)
/* Where things lie in shared memory. */
#define BUFFERS_AT (STAGES * STAGE_BYTES)
#define BARRIERS_AT (BUFFERS_AT + CONSUMERS * 4 * 2 * BUFFER_BYTES)

/* The stages, their barriers, and the one whose turn it is. `parity` is that of the phase that fills it. */
struct Ring {
  u32 stages, full, empty, slot, parity;

  __device__ __forceinline__ u32 stage() const { return stages + slot * STAGE_BYTES; }

  __device__ __forceinline__ void advance()
  {
    if (++slot == STAGES) slot = 0, parity ^= 1;
  }
};

/* Begins the block: barriers are initialised once for all blocks of the cluster. Every thread calls it. */
__device__ __forceinline__ Ring begin_ring(u32 shared)
{
  Ring ring = {shared, shared + BARRIERS_AT, shared + BARRIERS_AT + 8 * STAGES, 0, 0};
  if (threadIdx.x == 0) {
    for (u32 stage = 0; stage < STAGES; stage++) {
      barrier_init(ring.full + 8 * stage, 1);
      /* a warp of consumers, of every block that reads what is loaded */
      barrier_init(ring.empty + 8 * stage, 4 * CONSUMERS * CLUSTER);
    }
    barriers_are_initialised();
  }
#if CLUSTER > 1
  cluster_sync();
#else
  __syncthreads();
#endif
  return ring;
}

/* No block of a cluster ends while another may still send to it. */
__device__ __forceinline__ void end_ring()
{
#if CLUSTER > 1
  cluster_sync();
#endif
}

__device__ __forceinline__ u32 rank_in_cluster()
{
#if CLUSTER > 1
  return cluster_rank();
#else
  return 0;
#endif
}

/* What a tile is made of: its first row of a, the first columns of both halves of b, its matrices and its k. */
struct Operands {
  int row, column, up, a_inner, a_outer, b_inner, b_outer;
  u32 k0, k_end;
};

/* ---- producer ---- */

/* Half a tile's b, to every block of the cluster. */
__device__ __forceinline__ void load_half_of_b(const TensorMap* b, u32 to, u32 full, const Operands& o, u32 half, int k)
{
  to += half * HALF * 128;
  int column = half ? o.up : o.column;
#pragma unroll
  for (int panel = 0; panel < (B_ACROSS ? HALF / 64 : 1); panel++) {
    int x = B_ACROSS ? column + panel * 64 : k, y = B_ACROSS ? k : column;
#if CLUSTER > 1
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
#pragma unroll
    for (int panel = 0; panel < (A_ACROSS ? CONSUMERS : 1); panel++)
      load_tile(to + panel * PANEL_BYTES, a, full, A_ACROSS ? o.row + panel * 64 : (int)k, A_ACROSS ? (int)k : o.row, o.a_inner, o.a_outer);
#if CLUSTER > 1
    load_half_of_b(b, to + A_BYTES, full, o, rank, k);
#else
    load_half_of_b(b, to + A_BYTES, full, o, 0, k);
    load_half_of_b(b, to + A_BYTES, full, o, 1, k);
#endif
    ring.advance();
  }
}

/* ---- consumers ---- */

/* A warp has read a stage: tells every block that fills it. */
__device__ __forceinline__ void release(u32 empty)
{
  if (threadIdx.x % 32 == 0) {
#if CLUSTER > 1
#pragma unroll
    for (u32 rank = 0; rank < CLUSTER; rank++) barrier_arrive_at(empty, rank);
#else
    barrier_arrive(empty);
#endif
  }
}

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
  release(former);
}

/* Rows of d that a warp owns of a tile, and the matrix that they are of. Rows from `end` on to `limit` are zeroed. */
struct Target {
  u32 row, end, limit, column, columns;
  /* Where the matrix lies in the tensor map. */
  int map_row, inner, outer;
};

/* A warp's two buffers, used in turn. */
struct Buffers {
  u32 at, turn;
};

__device__ __forceinline__ Buffers begin_buffers(u32 shared)
{
  Buffers buffers = {shared + BUFFERS_AT + (threadIdx.x / 32 - 4) * 2 * BUFFER_BYTES, 0};
  return buffers;
}

/* The engine has read all that it was asked to store. */
__device__ __forceinline__ void end_buffers()
{
  if (threadIdx.x % 32 == 0) wait_for_stores<0>();
}

/* Two elements of d in one word, the first below. */
__device__ __forceinline__ u32 pair_of(float v, float w)
{
  u32 pair;
#if D_DTYPE == F16
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(w), "f"(v));
#else
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(w), "f"(v));
#endif
  return pair;
}

/* Four matrices of 8 x 8 elements, a row of them at the address of each lane. */
__device__ __forceinline__ void store_matrices(u32 to, const u32 (&matrices)[4])
{
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared::cta.b16 [%0], {%1, %2, %3, %4};"
               ::"r"(to), "r"(matrices[0]), "r"(matrices[1]), "r"(matrices[2]), "r"(matrices[3]) : "memory");
}

__device__ __forceinline__ void store_two_words(u32 to, float v, float w)
{
  asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(to), "f"(v), "f"(w) : "memory");
}

/* The element of d that sum i of this lane gives; 0 where the tile has no more rows. */
__device__ __forceinline__ float value_of(const Epilogue& e, const Target& t, const float (&sums)[BLOCK_N / 2], int i)
{
  u32 lane = threadIdx.x % 32, row = t.row + lane / 4 + i / 2 % 2 * 8, column = t.column + i / 4 * 8 + lane % 4 * 2 + i % 2;
  /* c and bias end where d does */
  if (row >= t.end || HAS && column >= t.columns) return 0.0f;
  return finish(e, sums[i], SWIGLU ? sums[(i + BLOCK_N / 4) % (BLOCK_N / 2)] : 0.0f, row, column);
}

/* Stores a warp's rows by the copy engine, which leaves out columns past the last and rows past those of the tensor. */
__device__ __forceinline__ void store_by_map(const Epilogue& e, const Target& t, const TensorMap* d, Buffers& buffers, const float (&sums)[BLOCK_N / 2])
{
  const int groups = D_PANEL / 8;
  u32 lane = threadIdx.x % 32;
#pragma unroll
  for (int panel = 0; panel < OUTPUTS / D_PANEL; panel++) {
    if (t.column + panel * D_PANEL >= t.columns) break;
    u32 to = buffers.at + buffers.turn * BUFFER_BYTES;
    buffers.turn ^= 1;
    if (lane == 0) wait_for_stores<1>();
    __syncwarp();
#if D_DTYPE == F32
#pragma unroll
    for (int i = panel * groups * 4; i < (panel + 1) * groups * 4; i += 2) {
      u32 row = lane / 4 + i / 2 % 2 * 8, chunk = i / 4 % groups * 2 + lane % 4 / 2;
      store_two_words(to + row * 128 + (chunk ^ row % 8) * 16 + lane % 2 * 8, value_of(e, t, sums, i), value_of(e, t, sums, i + 1));
    }
#else
#pragma unroll
    for (int pair = 0; pair < groups / 2; pair++) {
      /* in order: rows 0-7 and 8-15 of 8 columns, then of the next 8 */
      u32 matrices[4], row = lane % 16, chunk = pair * 2 + lane / 16;
#pragma unroll
      for (int i = 0; i < 4; i++) {
        int sum = (panel * groups + pair * 2) * 4 + i * 2;
        matrices[i] = pair_of(value_of(e, t, sums, sum), value_of(e, t, sums, sum + 1));
      }
      store_matrices(to + row * 128 + (chunk ^ row % 8) * 16, matrices);
    }
#endif
    fence_for_engines();
    __syncwarp();
    if (lane == 0) {
      store_tile_of(to, d, t.column + panel * D_PANEL, t.map_row, t.inner, t.outer);
      commit_stores();
    }
  }
}

/* Stores a warp's rows element by element. */
__device__ __forceinline__ void store_by_element(const Epilogue& e, const Target& t, const float (&sums)[BLOCK_N / 2])
{
  u32 lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < 2 * OUTPUTS / 4; i++) {
    u32 row = t.row + lane / 4 + i / 2 % 2 * 8, column = t.column + i / 4 * 8 + lane % 4 * 2 + i % 2;
    if (row < t.limit && column < t.columns) store_1(e.d, row * e.d_row + column * e.d_col, value_of(e, t, sums, i), D_DTYPE);
  }
}
