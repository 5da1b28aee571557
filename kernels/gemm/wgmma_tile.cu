/* What the products by warpgroups have in common (sm_90a): the ring of stages between the copy engine and the warps that multiply, and the way of sums to d.
 * For wgmma.cu (f16, bf16) and gemm_wgmma_scaled.cu (e4m3), behind elements.cu and hopper.cu, before either.
 *
 *   stages    | a: BLOCK_M rows of 128 bytes | b: BLOCK_N rows of 128 bytes |   ..   full[s]: bytes arrived    empty[s]: warps done
 *   buffers   two of 16 rows x 128 bytes for each warp that multiplies
 *   barriers  full[STAGES], empty[STAGES]
 *
 *   A warp stores its 16 rows of d by panels of 128 bytes through two buffers of its own, with no barrier but the warp's: stmatrix, then the copy engine
 *   while the next panel is finished, or the next tile multiplied. What the engine cannot store goes straight from registers.
 *
 * Macro       default  meaning
 * BLOCK_M     128      rows of a tile: 64 for each consumer warpgroup
 * BLOCK_N     256      columns of a tile (e4m3: 128)
 * STAGES      4        stages of the ring (e4m3: 6)
 * GROUPED     0        1: a grouped product
 * CLUSTER     1        blocks that share b (grouped: a), 1 or 2
 * D_BY_MAP    1        1: d is stored by the copy engine
 * ACTIVATION  0        the activation's code (elements.cu)
 * HAS         0        bits of what the epilogue reads (elements.cu)
 */
/* The matrix units take no f32; compiled alone, bf16. */
#ifdef A_DTYPE_IS_DEFAULT
#undef A_DTYPE
#define A_DTYPE BF16
#endif
#ifndef BLOCK_M
#define BLOCK_M 128
#endif
#ifndef BLOCK_N
#define BLOCK_N (A_DTYPE == E4M3 ? 128 : 256)
#endif
#ifndef STAGES
#define STAGES (A_DTYPE == E4M3 ? 6 : 4)
#endif
#ifndef GROUPED
#define GROUPED 0
#endif
#ifndef CLUSTER
#define CLUSTER 1
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

#define SWIGLU (ACTIVATION == ACTIVATION_SWIGLU)
#define WARPGROUP 128
#define CONSUMERS (BLOCK_M / 64)
#define THREADS (WARPGROUP * (1 + CONSUMERS))
#define A_BYTES (BLOCK_M * 128)
#define STAGE_BYTES (A_BYTES + BLOCK_N * 128)
/* Sums of a thread. */
#define SUMS (BLOCK_N / 2)
/* What each block of a cluster loads its part of, for all of them: tiles one above the other share b, tiles of one expert side by side share a. */
#define SHARES_A (CLUSTER > 1 && GROUPED)
#define SHARES_B (CLUSTER > 1 && !GROUPED)
/* Columns of b that come together, columns of d that come of a tile, and of one panel of 128 bytes of d. */
#define HALF (BLOCK_N / 2)
#define OUTPUTS (SWIGLU ? HALF : BLOCK_N)
#define D_PANEL (128 / (int)BYTES_OF(D_DTYPE))
/* A warp's rows of a tile, and bytes of one of its two buffers. */
#define WARP_ROWS 16
#define BUFFER_BYTES (WARP_ROWS * 128)
/* Where things lie in shared memory. */
#define BUFFERS_AT (STAGES * STAGE_BYTES)
#define BARRIERS_AT (BUFFERS_AT + CONSUMERS * 4 * 2 * BUFFER_BYTES)
/* Axes of d's tensor map beside rows and columns. */
#define MATRIX_AXES (A_DTYPE == E4M3 ? 1 : 2)

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
  __syncwarp();
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
__device__ __forceinline__ float value_of(const Epilogue& e, const Target& t, const float (&sums)[SUMS], int i)
{
  u32 lane = threadIdx.x % 32, row = t.row + lane / 4 + i / 2 % 2 * 8, column = t.column + i / 4 * 8 + lane % 4 * 2 + i % 2;
  /* c and bias end where d does */
  if (row >= t.end || HAS && column >= t.columns) return 0.0f;
  return finish(e, sums[i], SWIGLU ? sums[(i + SUMS / 2) % SUMS] : 0.0f, row, column);
}

/* Stores a warp's rows by the copy engine, which leaves out columns past the last and rows past those of the tensor. */
__device__ __forceinline__ void store_by_map(const Epilogue& e, const Target& t, const TensorMap* d, Buffers& buffers, const float (&sums)[SUMS])
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
      if (MATRIX_AXES == 1) store_tile_of(to, d, t.column + panel * D_PANEL, t.map_row, t.inner);
      else store_tile_of(to, d, t.column + panel * D_PANEL, t.map_row, t.inner, t.outer);
      commit_stores();
    }
  }
}

/* Stores a warp's rows element by element. */
__device__ __forceinline__ void store_by_element(const Epilogue& e, const Target& t, const float (&sums)[SUMS])
{
  u32 lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < 2 * OUTPUTS / 4; i++) {
    u32 row = t.row + lane / 4 + i / 2 % 2 * 8, column = t.column + i / 4 * 8 + lane % 4 * 2 + i % 2;
    if (row < t.limit && column < t.columns) store_1(e.d, row * e.d_row + column * e.d_col, value_of(e, t, sums, i), D_DTYPE);
  }
}
