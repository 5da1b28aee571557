/* Tiles of d on matrix units, for gemm_mma.cu and grouped_mma.cu, made of what matrix.cu has: f16 and bf16 by mma.sync.m16n8k16, i8 by m16n8k32, summed in f32 and i32.
 *
 *   BLOCK_K of a and b at a time come to a ring of STAGES stages in shared memory by cp.async, while those before are multiplied:
 *
 *     stage   | a: BLOCK_M x BLOCK_K | b: BLOCK_N x BLOCK_K |      wait, barrier, ask for the stage after the last, multiply this one
 *
 *   An operand lies in a stage as it lies in memory, so that it comes in chunks of 16 bytes: along k, or (ACROSS) along its rows or columns.
 *   A chunk's place in its line is exclusive-ored with the line's number, so that eight lines of one chunk meet all banks once; ldmatrix hands them
 *   to the fragments, transposed where they lie across.
 *
 *     along k    line = row of the tile     | k 0..7 | k 8..15 | ...        across    line = k      | rows 0..7 | rows 8..15 | ...
 *
 *   A warp owns WARP_M x WARP_N of d. Under swiglu the left half of a warp's columns is gate, the right half up, of the same columns of d.
 *   What has no 16 bytes side by side, or does not begin on 16 bytes, is loaded element by element into the same places.
 *
 * Macro      default  meaning
 * BLOCK_M    128      rows of a tile
 * BLOCK_N    128      columns of a tile
 * BLOCK_K    32       k of a stage, in units of two bytes: i8 has twice as many
 * WARPS_M    2        warps along a tile's rows
 * WARPS_N    2        warps along its columns
 * STAGES     4        stages of the ring
 * A_ACROSS   0        1: a's rows lie side by side (not for i8: ldmatrix transposes 16 bits)
 * B_ACROSS   0        1: b's columns lie side by side (likewise)
 * SWIGLU     0        1: the activation is swiglu
 *
 * The structure is that of CUTLASS's multistage kernels for sm_80; no GPU has run it yet.
 */
#ifndef BLOCK_M
#define BLOCK_M 128
#endif
#ifndef BLOCK_N
#define BLOCK_N 128
#endif
#ifndef BLOCK_K
#define BLOCK_K 32
#endif
#ifndef WARPS_M
#define WARPS_M 2
#endif
#ifndef WARPS_N
#define WARPS_N 2
#endif
#ifndef STAGES
#define STAGES 4
#endif
#ifndef A_ACROSS
#define A_ACROSS 0
#endif
#ifndef B_ACROSS
#define B_ACROSS 0
#endif
#ifndef SWIGLU
#define SWIGLU 0
#endif
/* The matrix units take no f32; compiled alone, bf16. */
#ifdef A_DTYPE_IS_DEFAULT
#undef A_DTYPE
#define A_DTYPE BF16
#endif
#if A_DTYPE == F32
#error "A_DTYPE is f16, bf16 or i8"
#endif

#define THREADS (32 * WARPS_M * WARPS_N)
#define WARP_M (BLOCK_M / WARPS_M)
#define WARP_N (BLOCK_N / WARPS_N)
/* Fragments of a warp: 16 rows of a, 8 columns of b. */
#define ROW_FRAGMENTS (WARP_M / 16)
#define COLUMN_FRAGMENTS (WARP_N / 8)
/* Bytes of an element, elements of a chunk of 16 bytes, k of a stage. */
#define ELEMENT (A_DTYPE == I8 ? 1 : 2)
#define CHUNK (16 / ELEMENT)
#define SLICE (BLOCK_K * 2 / ELEMENT)
/* Bytes of the operands in a stage. */
#define A_BYTES (BLOCK_M * BLOCK_K * 2)
#define STAGE_BYTES ((BLOCK_M + BLOCK_N) * BLOCK_K * 2)
/* Columns of d that come of a warp. */
#define OUTPUTS (SWIGLU ? WARP_N / 2 : WARP_N)

#if A_DTYPE == I8
#define MMA "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32"
#define SUM "+r"
#elif A_DTYPE == F16
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
#define SUM "+f"
#else
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
#define SUM "+f"
#endif

__device__ __forceinline__ void multiply(sum_t sum[4], const u32 a[4], const u32 b[2])
{
  asm volatile(MMA " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : SUM(sum[0]), SUM(sum[1]), SUM(sum[2]), SUM(sum[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* Lines of an operand that a tile covers: rows of a, or columns of b, whose gates and ups are `half` apart. */
struct Lines {
  u32 first, last, half;
};

/* The number of the tile's line x, and how many exist from there on. */
template <int IS_SWIGLU>
__device__ __forceinline__ u32 line_of(const Lines& lines, u32 x, u32* there)
{
  u32 in_half = lines.first + x, up = 0;
  if (IS_SWIGLU) {
    in_half = lines.first + x / WARP_N * (WARP_N / 2) + x % (WARP_N / 2);
    up = x % WARP_N / (WARP_N / 2) * lines.half;
  }
  u32 last = IS_SWIGLU ? lines.half : lines.last;
  *there = last > in_half ? last - in_half : 0;
  return in_half + up;
}

/* Columns of d where a tile begins. */
__device__ __forceinline__ Lines columns_of(u32 tile, u32 n)
{
  Lines lines = {tile * (SWIGLU ? BLOCK_N / 2 : BLOCK_N), n, n / 2};
  return lines;
}

/* Where a chunk stands in shared memory, in chunks. */
template <int CHUNKS>
__device__ __forceinline__ u32 place_of(u32 line, u32 chunk)
{
  /* Eight lines of a chunk shall meet 128 bytes once; a short line shares them with its neighbours. */
  const u32 shared_by = CHUNKS >= 8 ? 1 : 8 / CHUNKS, choices = CHUNKS >= 8 ? 8 : CHUNKS;
  return line * CHUNKS + (chunk ^ line / shared_by % choices);
}

/* A thread's share of an operand: the chunks that it brings to each stage. */
template <int BLOCK, int ACROSS, int IS_SWIGLU>
struct Share {
  static const int LINES = ACROSS ? SLICE : BLOCK, CHUNKS = ACROSS ? BLOCK / 8 : BLOCK_K / 8, ALL = LINES * CHUNKS, FETCHES = (ALL + THREADS - 1) / THREADS;
  /* Where the next chunk begins. */
  const u8* from[FETCHES];
  /* 16 bits: its place in the stage; 8 bits: its k within the slice; 8 bits: lines that exist, of those of the chunk. */
  u32 packed[FETCHES];
  /* Bytes from slice to slice, and between the elements of a chunk. */
  u64 slice, step;
  bool in_chunks;

  __device__ __forceinline__ void aim(const void* at, u64 line_stride, u64 k_stride, const Lines& lines, u32 k0)
  {
    u64 beside = ACROSS ? line_stride : k_stride, between = ACROSS ? k_stride : line_stride;
    slice = SLICE * k_stride * ELEMENT;
    step = beside * ELEMENT;
    in_chunks = beside == 1 && is_multiple(between, CHUNK) && is_multiple((u64)at, 16) && !(ACROSS && IS_SWIGLU && lines.half % CHUNK != 0);
    /* Neighbouring threads take neighbouring addresses. */
    bool by_line = !in_chunks && line_stride < k_stride && !ACROSS;
#pragma unroll
    for (int i = 0; i < FETCHES; i++) {
      u32 f = threadIdx.x + i * THREADS, line = by_line ? f % LINES : f / CHUNKS, chunk = by_line ? f / LINES : f % CHUNKS;
      u32 x = ACROSS ? chunk * CHUNK : line, kk = ACROSS ? line : chunk * CHUNK, there;
      u32 number = line_of<IS_SWIGLU>(lines, x, &there);
      from[i] = (const u8*)at + (number * line_stride + (k0 + kk) * k_stride) * ELEMENT;
      packed[i] = place_of<CHUNKS>(line, chunk) << 16 | kk << 8 | min(there, CHUNK);
    }
  }

  /* Elements of chunk i that exist, of those of the slice from k0 on. */
  __device__ __forceinline__ u32 there(int i, u32 k0, u32 k_end) const
  {
    u32 lines = packed[i] & 255, kk = k0 + (packed[i] >> 8 & 255), left = k_end > kk ? k_end - kk : 0;
    return ACROSS ? (left ? lines : 0) : (lines ? min(left, CHUNK) : 0);
  }

  /* Asks for the slice from k0 on, and moves on to the next. */
  __device__ __forceinline__ void fetch(u32 stage, u32 k0, u32 k_end)
  {
#pragma unroll
    for (int i = 0; i < FETCHES; i++) {
      if (ALL % THREADS != 0 && threadIdx.x + i * THREADS >= ALL) break;
      u32 to = stage + (packed[i] >> 16) * 16, count = there(i, k0, k_end);
      if (in_chunks) copy_chunk(to, from[i], count * ELEMENT);
      else gather(to, from[i], count);
      from[i] += slice;
    }
  }

  __device__ __forceinline__ void gather(u32 to, const u8* at, u32 count) const
  {
    u32 words[4] = {0, 0, 0, 0};
#pragma unroll
    for (u32 e = 0; e < CHUNK; e++)
      if (e < count) {
        u32 bits = ELEMENT == 1 ? at[e * step] : *(const u16*)(at + e * step);
        words[e * ELEMENT / 4] |= bits << (e * ELEMENT % 4 * 8);
      }
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3]) : "memory");
  }
};

typedef Share<BLOCK_M, A_ACROSS, 0> ShareOfA;
typedef Share<BLOCK_N, B_ACROSS, SWIGLU> ShareOfB;

/* Adds the products of one stage. Fragments are 32 bytes of k: 16 rows of a are four matrices of 8 x 16 bytes, 16 columns of b as many. */
__device__ __forceinline__ void multiply_stage(u32 stage, sum_t sums[ROW_FRAGMENTS][COLUMN_FRAGMENTS][4])
{
  u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, eighth = lane % 8, row0 = warp / WARPS_N * WARP_M, column0 = warp % WARPS_N * WARP_N;
#pragma unroll
  for (u32 step = 0; step < BLOCK_K / 16; step++) {
    u32 a[ROW_FRAGMENTS][4], b[COLUMN_FRAGMENTS / 2][4];
#pragma unroll
    for (u32 i = 0; i < ROW_FRAGMENTS; i++) {
      /* in order: rows 0-7, rows 8-15, and both of the second half of k */
      u32 row = row0 + i * 16, line = A_ACROSS ? step * 16 + lane / 16 * 8 + eighth : row + lane % 16;
      u32 chunk = A_ACROSS ? row / 8 + lane / 8 % 2 : step * 2 + lane / 16;
      load_matrices<A_ACROSS>(a[i], stage + place_of<ShareOfA::CHUNKS>(line, chunk) * 16);
    }
#pragma unroll
    for (u32 j = 0; j < COLUMN_FRAGMENTS / 2; j++) {
      /* in order: both halves of k of columns 0-7, then of columns 8-15 */
      u32 column = column0 + j * 16, line = B_ACROSS ? step * 16 + lane / 8 % 2 * 8 + eighth : column + lane / 16 * 8 + eighth;
      u32 chunk = B_ACROSS ? column / 8 + lane / 16 : step * 2 + lane / 8 % 2;
      load_matrices<B_ACROSS>(b[j], stage + A_BYTES + place_of<ShareOfB::CHUNKS>(line, chunk) * 16);
    }
#pragma unroll
    for (u32 i = 0; i < ROW_FRAGMENTS; i++)
#pragma unroll
      for (u32 j = 0; j < COLUMN_FRAGMENTS; j++) multiply(sums[i][j], a[i], b[j / 2] + j % 2 * 2);
  }
}

/* Sums of one tile over k0 .. k_end. When it returns, no copy is under way and every thread has read all it needs of shared memory. */
__device__ __forceinline__ void multiply_tile(ShareOfA& a, ShareOfB& b, u32 k0, u32 k_end, u32 stages, sum_t sums[ROW_FRAGMENTS][COLUMN_FRAGMENTS][4])
{
#pragma unroll
  for (int i = 0; i < ROW_FRAGMENTS; i++)
#pragma unroll
    for (int j = 0; j < COLUMN_FRAGMENTS; j++)
#pragma unroll
      for (int e = 0; e < 4; e++) sums[i][j][e] = 0;
  u32 asked = k0, filled = 0, read = 0;
  auto ask = [&]() {
    if (asked < k_end) {
      a.fetch(stages + filled * STAGE_BYTES, asked, k_end);
      b.fetch(stages + filled * STAGE_BYTES + A_BYTES, asked, k_end);
    }
    commit_copies();
    asked += SLICE;
    filled = filled + 1 == STAGES ? 0 : filled + 1;
  };
#pragma unroll 1
  for (int stage = 0; stage < STAGES - 1; stage++) ask();
#pragma unroll 1
  for (u32 k = k0; k < k_end; k += SLICE) {
    wait_for_copies<STAGES - 2>();
    /* All copies into this stage are there, and all have read the stage that is filled next. */
    __syncthreads();
    ask();
    multiply_stage(stages + read * STAGE_BYTES, sums);
    read = read + 1 == STAGES ? 0 : read + 1;
  }
  wait_for_copies<0>();
  __syncthreads();
}

/* Hands two neighbouring columns of d at a time to `store(row of the tile, column of the tile, sums, ups)`; 16 rows of a warp go through its part of
 * shared memory, so that neighbouring lanes store side by side. */
template <typename Store>
__device__ __forceinline__ void store_tile(sum_t sums[ROW_FRAGMENTS][COLUMN_FRAGMENTS][4], u8* shared, Store store)
{
  const u32 pitch = WARP_N + 8;
  u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, row0 = warp / WARPS_N * WARP_M, column0 = warp % WARPS_N * OUTPUTS;
  sum_t* part = (sum_t*)shared + warp * 16 * pitch;
#pragma unroll 1
  for (u32 i = 0; i < ROW_FRAGMENTS; i++) {
    __syncwarp();
    /* An array in registers has constant indices only. */
#pragma unroll
    for (u32 r = 0; r < ROW_FRAGMENTS; r++)
      if (r == i)
#pragma unroll
        for (u32 j = 0; j < COLUMN_FRAGMENTS; j++)
#pragma unroll
          for (u32 e = 0; e < 4; e++) part[(lane / 4 + e / 2 * 8) * pitch + j * 8 + lane % 4 * 2 + e % 2] = sums[r][j][e];
    __syncwarp();
#pragma unroll 1
    for (u32 pair = lane; pair < 16 * OUTPUTS / 2; pair += 32) {
      u32 row = pair / (OUTPUTS / 2), column = pair % (OUTPUTS / 2) * 2;
      const sum_t* at = part + row * pitch + column;
      store(row0 + i * 16 + row, column0 + column, at, SWIGLU ? at + WARP_N / 2 : at);
    }
  }
}

/* Whether two neighbouring columns of d, the first of even number, may be stored at once. */
__device__ __forceinline__ bool stores_pairs(const Epilogue& e)
{
  return D_DTYPE <= BF16 && !(e.has & EXACT) && e.d_col == 1 && e.d_row % 2 == 0 && is_multiple((u64)e.d, 2 * BYTES_OF(D_DTYPE));
}

__device__ __forceinline__ void store_pair(const Epilogue& e, bool at_once, u64 row, u32 column, u32 columns, const sum_t* sums, const sum_t* ups)
{
  if (column >= columns) return;
  if (!at_once || column + 1 >= columns) {
#pragma unroll 1
    for (u32 i = 0; i < min(columns - column, 2); i++) store_sum(e, sums[i], ups[i], row, column + i);
    return;
  }
  float v = finish(e, sums[0], ups[0], row, column), w = finish(e, sums[1], ups[1], row, column + 1);
  u8* at = (u8*)e.d + (row * e.d_row + column) * BYTES_OF(D_DTYPE);
  if (D_DTYPE == F32) *(float2*)at = make_float2(v, w);
  else if (D_DTYPE == F16) *(u32*)at = (u32)f16_of(w) << 16 | f16_of(v);
  else *(u32*)at = (u32)bf16_of(w) << 16 | bf16_of(v);
}
