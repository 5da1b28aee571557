/* Products with at most 8 rows (or columns) on one side: decoding. The large operand w is read once, as it lies. w is b and x is a, or, where d has
 * few columns, the other way round: rows of w are columns of b, or rows of a.
 *
 *   ALONG_K 1    w's rows lie along k                         ALONG_K 0    w's rows lie side by side
 *
 *       k ->  lane 0   1   2 ..  0   1 ..                          row ROWS * lane ->  lane 0   1   2 ..
 *   row 0     [....][....][....][....] ..   team 0             k 0    team 0        [....][....][....]
 *   row 1     [....][....][....][....] ..                      k 1    team 1        [....][....][....]
 *   row ROWS  [....][....][....][....] ..   team 1             k 2    team 2        [....][....][....]
 *
 *   a lane takes 16 bytes of k at a time of ROWS rows         a lane takes ROWS rows at one k, teams take turns;
 *   (of blocks of weights a group of 32),
 *   a team's lanes are added up by shuffles                   the teams are added up in shared memory, in order
 *
 * Sums are added up in the same order in each run. Any strides are right; where elements do not lie side by side, or do not begin on 16 bytes (ROWS
 * elements), they are loaded one by one, still by neighbouring lanes.
 *
 *   grid (w's rows / rows of a block, 1, batches)       block (GROUP, 1, 1)
 *
 * Macro    default  meaning
 * GROUP    256      threads of a block
 * LANES    32       threads of a team: a warp or a half of one; any divisor of GROUP unless ALONG_K
 * ROWS     4        rows of w in one thread: 1, 2 or 4; unless ALONG_K, 4 or 8
 * X_ROWS   1        rows of x that are computed together, at least as many as there are
 * ALONG_K  1        see above
 * SWIGLU   0        1: a row of w in the first half is gate, the same one in the second half its value
 * A_DTYPE, B_DTYPE  dtypes of x and of w
 *
 * Bound by memory: it wants many bytes under way, so the loads of several rows and rounds stand before their arithmetic. No GPU has run it yet.
 */
#ifndef GROUP
#define GROUP 256
#endif
#ifndef LANES
#define LANES 32
#endif
#ifndef ROWS
#define ROWS 4
#endif
#ifndef X_ROWS
#define X_ROWS 1
#endif
#ifndef ALONG_K
#define ALONG_K 1
#endif
#ifndef SWIGLU
#define SWIGLU 0
#endif
#define TEAMS (GROUP / LANES)
#define PARTS (SWIGLU ? 2 : 1)
/* Rows of w in a thread, gate and up; rows of d in a block. */
#define W_ROWS (PARTS * ROWS)
#define OUTPUTS (ROWS * (ALONG_K ? TEAMS : LANES))
/* k that a lane takes at once: 16 bytes of w. */
#define STEP (16 / BYTES_OF(B_DTYPE))
/* Rounds whose loads are under way together. */
#define ROUNDS (W_ROWS <= 2 ? 4 : 2)
#define W_IS_BLOCKS (B_DTYPE >= 10)

/* Elements of one operand, from its matrix's first on. */
struct Matrix {
  const void* at;
  u64 row, k;
};

/* COUNT elements side by side, aligned to all of them (or to 16 bytes). */
template <int DTYPE, int COUNT>
struct Chunk {
  u32 words[COUNT * (DTYPE == I8 ? 1 : DTYPE == F32 ? 4 : 2) / 4];

  __device__ __forceinline__ void load(const void* from)
  {
    const int size = sizeof words / 4;
#pragma unroll
    for (int i = 0; i < size; i += 4) {
      if (size >= 4) {
        uint4 four = __ldg((const uint4*)from + i / 4);
        words[i] = four.x, words[(i + 1) % size] = four.y, words[(i + 2) % size] = four.z, words[(i + 3) % size] = four.w;
      } else if (size == 2) {
        uint2 two = __ldg((const uint2*)from);
        words[0] = two.x, words[1 % size] = two.y;
      } else
        words[0] = __ldg((const u32*)from);
    }
  }

  __device__ __forceinline__ sum_t element(int i) const
  {
#if A_DTYPE == I8
    return (int)(words[i / 4] << (24 - i % 4 * 8)) >> 24;
#else
    if (DTYPE == F32) return __uint_as_float(words[i]);
    u16 bits = (u16)(words[i / 2] >> (i % 2 * 16));
    return DTYPE == F16 ? f32_of_f16(bits) : f32_of_bf16(bits);
#endif
  }
};

__device__ __forceinline__ sum_t multiply_add(sum_t a, sum_t b, sum_t sum)
{
#if A_DTYPE == I8
  return sum + a * b;
#else
  return fmaf(a, b, sum);
#endif
}

/* Whether chunks of `count` elements may be loaded at once: `beside` lies between the elements, `other` between the chunks' lines. */
__device__ __forceinline__ bool lies_in_chunks(const void* at, u64 beside, u64 other, u32 count, int dtype)
{
  return beside == 1 && is_multiple(other, count) && is_multiple((u64)at, min(count * BYTES_OF(dtype), 16));
}

#if ALONG_K
/* sum + w x, over the k of one chunk */
__device__ __forceinline__ sum_t add_products(const Chunk<B_DTYPE, STEP>& w, const Chunk<A_DTYPE, STEP>& x, sum_t sum)
{
#if A_DTYPE == I8
#pragma unroll
  for (u32 e = 0; e < STEP / 4; e++) sum = __dp4a((int)w.words[e], (int)x.words[e], sum);
#else
#pragma unroll
  for (u32 e = 0; e < STEP; e++) sum = fmaf(w.element(e), x.element(e), sum);
#endif
  return sum;
}

#if W_IS_BLOCKS
/* The products of a lane's groups of 32 k, in rows of blocks. */
__device__ __forceinline__ void add_groups(const Matrix& w, const u64 w_at[W_ROWS], const Matrix& x, const u64 x_at[X_ROWS], u32 k, u32 lane,
                                           sum_t sums[W_ROWS][X_ROWS])
{
#pragma unroll 1
  for (u32 kk = lane * GROUP_WEIGHTS; kk < k; kk += LANES * GROUP_WEIGHTS) {
#pragma unroll
    for (u32 i = 0; i < W_ROWS; i++) {
      Group group((const u8*)w.at + w_at[i], kk);
      float2 scales[2] = {group.scale(0), group.scale(1)};
#pragma unroll
      for (u32 t = 0; t < 4; t++) {
        uint2 pair = group.quants(t);
#pragma unroll
        for (u32 e = 0; e < 8; e++) {
          float v = weight_of(e < 4 ? pair.x : pair.y, e % 4, scales[e / 4]);
          u32 at = kk + e / 4 * 16 + t * 4 + e % 4;
#pragma unroll
          for (u32 j = 0; j < X_ROWS; j++) sums[i][j] = fmaf(v, load_factor(x.at, x_at[j] + at * x.k, A_DTYPE), sums[i][j]);
        }
      }
    }
  }
}
#else
/* The products of `COUNT` rounds, whose loads are all asked for before the first is used. */
template <int COUNT>
__device__ __forceinline__ void add_rounds(const Matrix& w, const u64 w_at[W_ROWS], const Matrix& x, const u64 x_at[X_ROWS], u32 kk,
                                           sum_t sums[W_ROWS][X_ROWS])
{
  Chunk<B_DTYPE, STEP> ws[COUNT][W_ROWS];
#pragma unroll
  for (u32 r = 0; r < COUNT; r++)
#pragma unroll
    for (u32 i = 0; i < W_ROWS; i++) ws[r][i].load(element_at(w.at, w_at[i] + kk + r * LANES * STEP, B_DTYPE));
#pragma unroll
  for (u32 r = 0; r < COUNT; r++) {
    Chunk<A_DTYPE, STEP> xs[X_ROWS];
#pragma unroll
    for (u32 j = 0; j < X_ROWS; j++) xs[j].load(element_at(x.at, x_at[j] + kk + r * LANES * STEP, A_DTYPE));
#pragma unroll
    for (u32 i = 0; i < W_ROWS; i++)
#pragma unroll
      for (u32 j = 0; j < X_ROWS; j++) sums[i][j] = add_products(ws[r][i], xs[j], sums[i][j]);
  }
}

#endif

/* Sums of ROWS rows of w, gates and ups, by the rows of x; each lane of a team gets all. */
__device__ __forceinline__ void multiply_rows(const Matrix& w, const Matrix& x, u32 row, u32 rows, u32 half, u32 x_rows, u32 k, u32 lane,
                                              sum_t sums[W_ROWS][X_ROWS])
{
  /* Rows that do not exist are computed as others that do, and not stored. */
  u64 w_at[W_ROWS], x_at[X_ROWS];
#pragma unroll
  for (u32 i = 0; i < W_ROWS; i++) w_at[i] = (min(row + i % ROWS, rows - 1) + i / ROWS * half) * w.row;
#pragma unroll
  for (u32 j = 0; j < X_ROWS; j++) x_at[j] = min(j, x_rows - 1) * x.row;
#if W_IS_BLOCKS
  add_groups(w, w_at, x, x_at, k, lane, sums);
#else
  bool in_chunks = lies_in_chunks(w.at, w.k, w.row, STEP, B_DTYPE) && lies_in_chunks(x.at, x.k, x.row, STEP, A_DTYPE);
  u32 whole = in_chunks ? k / STEP * STEP : 0;
  const u32 round = LANES * STEP;
  u32 next = lane * STEP;
#pragma unroll 1
  for (; next + (ROUNDS - 1) * round < whole; next += ROUNDS * round) add_rounds<ROUNDS>(w, w_at, x, x_at, next, sums);
#pragma unroll 1
  for (; next < whole; next += round) add_rounds<1>(w, w_at, x, x_at, next, sums);
#pragma unroll 1
  for (u32 kk = whole + lane; kk < k; kk += LANES) {
    sum_t xs[X_ROWS];
#pragma unroll
    for (u32 j = 0; j < X_ROWS; j++) xs[j] = load_factor(x.at, x_at[j] + kk * x.k, A_DTYPE);
#pragma unroll
    for (u32 i = 0; i < W_ROWS; i++) {
      sum_t v = load_factor(w.at, w_at[i] + kk * w.k, B_DTYPE);
#pragma unroll
      for (u32 j = 0; j < X_ROWS; j++) sums[i][j] = multiply_add(v, xs[j], sums[i][j]);
    }
  }
#endif
#pragma unroll
  for (u32 i = 0; i < W_ROWS; i++)
#pragma unroll
    for (u32 j = 0; j < X_ROWS; j++)
#pragma unroll
      for (u32 step = LANES / 2; step != 0; step /= 2) sums[i][j] += __shfl_xor_sync(0xffffffffu, sums[i][j], step);
}
#else
/* The products of `COUNT` k that stand TEAMS apart, whose loads are all asked for before the first is used. */
template <int COUNT>
__device__ __forceinline__ void add_rounds(const Matrix& w, u32 row, u32 half, const Matrix& x, const u64 x_at[X_ROWS], u32 kk, sum_t sums[W_ROWS][X_ROWS])
{
  Chunk<B_DTYPE, ROWS> ws[COUNT][PARTS];
  sum_t xs[COUNT][X_ROWS];
#pragma unroll
  for (u32 r = 0; r < COUNT; r++) {
#pragma unroll
    for (u32 p = 0; p < PARTS; p++) ws[r][p].load(element_at(w.at, row + p * half + (kk + r * TEAMS) * w.k, B_DTYPE));
#pragma unroll
    for (u32 j = 0; j < X_ROWS; j++) xs[r][j] = load_factor(x.at, x_at[j] + (kk + r * TEAMS) * x.k, A_DTYPE);
  }
#pragma unroll
  for (u32 r = 0; r < COUNT; r++)
#pragma unroll
    for (u32 i = 0; i < W_ROWS; i++)
#pragma unroll
      for (u32 j = 0; j < X_ROWS; j++) sums[i][j] = multiply_add(ws[r][i / ROWS].element(i % ROWS), xs[r][j], sums[i][j]);
}

/* Sums of ROWS neighbouring rows of w over the k of one team. */
__device__ __forceinline__ void multiply_across(const Matrix& w, const Matrix& x, u32 row, u32 rows, u32 half, u32 x_rows, u32 k, u32 team,
                                                sum_t sums[W_ROWS][X_ROWS])
{
  bool in_chunks = lies_in_chunks(w.at, w.row, w.k, ROWS, B_DTYPE) && row + ROWS <= rows && half % ROWS == 0;
  u64 x_at[X_ROWS];
#pragma unroll
  for (u32 j = 0; j < X_ROWS; j++) x_at[j] = min(j, x_rows - 1) * x.row;
  u32 kk = team;
  if (in_chunks) {
#pragma unroll 1
    for (; kk + (ROUNDS - 1) * TEAMS < k; kk += ROUNDS * TEAMS) add_rounds<ROUNDS>(w, row, half, x, x_at, kk, sums);
#pragma unroll 1
    for (; kk < k; kk += TEAMS) add_rounds<1>(w, row, half, x, x_at, kk, sums);
    return;
  }
#pragma unroll 1
  for (; kk < k; kk += TEAMS) {
    sum_t xs[X_ROWS];
#pragma unroll
    for (u32 j = 0; j < X_ROWS; j++) xs[j] = load_factor(x.at, x_at[j] + kk * x.k, A_DTYPE);
#pragma unroll
    for (u32 i = 0; i < W_ROWS; i++) {
      if (row + i % ROWS >= rows) continue;
      sum_t v = load_factor(w.at, (row + i % ROWS + i / ROWS * half) * w.row + kk * w.k, B_DTYPE);
#pragma unroll
      for (u32 j = 0; j < X_ROWS; j++) sums[i][j] = multiply_add(v, xs[j], sums[i][j]);
    }
  }
}
#endif

extern "C" __global__ void __launch_bounds__(GROUP, 1)
gemv_lanes(const void* w, u64 w_offset, const void* x, u64 x_offset, const void* c, u64 c_offset, const void* bias, u64 bias_offset, void* d,
           u64 d_offset, u32 w_rows, u32 x_rows, u32 k, u32 batch_inner, float alpha, float beta, u32 has, u32 activation,
           u64 w_row, u64 w_k, u64 w_outer, u64 w_inner, u64 x_row, u64 x_k, u64 x_outer, u64 x_inner,
           u64 c_xrow, u64 c_wrow, u64 c_outer, u64 c_inner, u64 bias_xrow, u64 bias_wrow, u64 d_xrow, u64 d_wrow, u64 d_outer, u64 d_inner)
{
  u64 outer = blockIdx.z / batch_inner, inner = blockIdx.z % batch_inner;
  u32 team = threadIdx.x / LANES, lane = threadIdx.x % LANES, first = blockIdx.x * OUTPUTS, rows = w_rows / PARTS, half = SWIGLU ? rows : 0;
  Matrix of_w = {element_at(w, w_offset + outer * w_outer + inner * w_inner, B_DTYPE), w_row, w_k};
  Matrix of_x = {element_at(x, x_offset + outer * x_outer + inner * x_inner, A_DTYPE), x_row, x_k};
  /* Rows of d are those of x here, columns those of w. */
  Epilogue e = {alpha, beta, has, activation, element_at(c, c_offset + outer * c_outer + inner * c_inner, C_DTYPE), element_at(bias, bias_offset, C_DTYPE),
                c_xrow, c_wrow, bias_xrow, bias_wrow,
                (void*)element_at(d, d_offset + outer * d_outer + inner * d_inner, D_DTYPE), d_xrow, d_wrow, half};
  sum_t sums[W_ROWS][X_ROWS];
#pragma unroll
  for (u32 i = 0; i < W_ROWS; i++)
#pragma unroll
    for (u32 j = 0; j < X_ROWS; j++) sums[i][j] = 0;
#if ALONG_K
  u32 row = first + team * ROWS;
  multiply_rows(of_w, of_x, row, rows, half, x_rows, k, lane, sums);
  /* Each lane stores its share of the ROWS x X_ROWS sums. */
#pragma unroll
  for (u32 from = 0; from < ROWS * X_ROWS; from += LANES) {
    u32 mine = from + lane, j = mine % X_ROWS, at = row + mine / X_ROWS;
    sum_t sum = 0, up = 0;
#pragma unroll
    for (u32 i = from; i < from + LANES && i < ROWS * X_ROWS; i++)
      if (i == mine) sum = sums[i / X_ROWS][i % X_ROWS], up = sums[(PARTS - 1) * ROWS + i / X_ROWS][i % X_ROWS];
    if (mine < ROWS * X_ROWS && j < x_rows && at < rows) store_sum(e, sum, up, j, at);
  }
#else
  __shared__ sum_t partial[W_ROWS * GROUP];
  multiply_across(of_w, of_x, first + lane * ROWS, rows, half, x_rows, k, team, sums);
#pragma unroll 1
  for (u32 j = 0; j < x_rows; j++) {
    /* An array in registers has constant indices only. */
#pragma unroll
    for (u32 i = 0; i < W_ROWS; i++)
#pragma unroll
      for (u32 jj = 0; jj < X_ROWS; jj++)
        if (jj == j) partial[i * GROUP + threadIdx.x] = sums[i][jj];
    __syncthreads();
    for (u32 output = threadIdx.x; output < OUTPUTS; output += GROUP) {
      const sum_t* at = partial + output % ROWS * GROUP + output / ROWS;
      sum_t sum = 0, up = 0;
      for (u32 t = 0; t < TEAMS; t++) {
        sum += at[t * LANES];
        if (SWIGLU) up += at[(PARTS - 1) * ROWS * GROUP + t * LANES];
      }
      if (first + output < rows) store_sum(e, sum, up, j, first + output);
    }
    __syncthreads();
  }
#endif
}
