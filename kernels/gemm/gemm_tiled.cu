/* Products on CUDA cores: tiles of a and b in shared memory, a register tile for each thread. Any dtypes, any strides.
 *
 *            TILE columns of b                 a block of GROUP x GROUP threads computes a TILE x TILE tile of d:
 *          +----------------+                  TILE_K columns of a and rows of b at a time come to shared memory, in f32
 *   TILE_K |    b_tile      |                  (i8: summed in i32), while those before are multiplied; they wait in registers.
 *          +----------------+                  A thread keeps PER_ITEM x PER_ITEM sums, in strips of V = min(PER_ITEM, 4), so that
 *   +----+ +----------------+                  it reads V neighbours at once:
 *   |    | |                |                  rows     V y .. V y + V, GROUP V + V y .., ...
 *   | a  | |     d          |                  columns  V x .. V x + V, GROUP V + V x .., ...
 *   +----+ +----------------+                  Under swiglu the tile's columns alternate: even ones are gate, odd ones up.
 *
 * Four elements are loaded at once along k or across it, wherever strides and addresses allow; otherwise one by one. The sums go to d through
 * shared memory, so that neighbouring threads store neighbouring columns. Nothing is packed beforehand, there is no workspace. With GROUPED the
 * rows of a tile are those of one expert, found in the offsets or counts on the device.
 *
 * Macro     default  meaning
 * GROUP     16       threads along each side of a block
 * PER_ITEM  4        sums of one thread along each side: 2, 4 or 8
 * TILE_K    16       k that lie in shared memory at once, a multiple of 4
 * GROUPED   0        1: grouped product
 *
 * The structure is that of CUTLASS's SIMT sgemm; no GPU has run it yet.
 */
#ifndef GROUP
#define GROUP 16
#endif
#ifndef PER_ITEM
#define PER_ITEM 4
#endif
#ifndef TILE_K
#define TILE_K 16
#endif
#ifndef GROUPED
#define GROUPED 0
#endif
#define TILE (GROUP * PER_ITEM)
#define ITEMS (GROUP * GROUP)
#define V (PER_ITEM < 4 ? PER_ITEM : 4)
/* Rows of a tile in shared memory lie this far apart: aligned for four, and off each other's banks. */
#define PITCH (TILE + 4)
#define BUFFER (TILE_K * PITCH)
/* With 64 sums a thread ptxas finds 128 registers by itself, two blocks a multiprocessor, where they suffice: asked for them, it spills. */
#if PER_ITEM == 8 && !GROUPED && A_DTYPE != I8
#define BOUNDS __launch_bounds__(ITEMS)
#else
#define BOUNDS __launch_bounds__(ITEMS, 1)
#endif
/* Two of each where 48 KiB hold them: one is filled while the other is read. */
#define BUFFERS (2 * 2 * 4 * BUFFER <= 48 * 1024 ? 2 : 1)
/* Fours of a tile, and those of one thread. */
#define FOURS (TILE * TILE_K / 4)
#define FETCHES ((FOURS + ITEMS - 1) / ITEMS)

/* How an operand is read: element by element, or in fours along k or along the tile's side. */
#define SINGLE 0
#define ALONG_K 1
#define ACROSS 2

#if PER_ITEM == 2
#define vector_t(type) type##2
#else
#define vector_t(type) type##4
#endif
#if A_DTYPE == I8
typedef vector_t(int) strip_t;
#define MULTIPLY_ADD(a, b, sum) ((sum) + (a) * (b))
#else
typedef vector_t(float) strip_t;
#define MULTIPLY_ADD(a, b, sum) fmaf(a, b, sum)
#endif

/* One operand of a tile: lines are rows of a, or columns of b. */
struct Operand {
  const void* at;
  u64 line, k;
  u32 mode;
};

/* What a tile covers: lines `first` to `last` of a; of b, the tile's columns. */
struct Lines {
  u32 first, last, half, swiglu;
};

/* The number of the tile's line x, and whether it exists. Under swiglu even lines are gate, odd ones up. */
__device__ __forceinline__ bool line_of(const Lines& lines, u32 x, u32* line)
{
  if (!lines.swiglu) {
    *line = lines.first + x;
    return *line < lines.last;
  }
  u32 in_half = lines.first + x / 2;
  *line = (x % 2 ? lines.half : 0) + in_half;
  return in_half < lines.half;
}

__device__ __forceinline__ Lines columns_of(u32 tile, u32 n, u32 swiglu)
{
  Lines lines = {tile * (swiglu ? TILE / 2 : TILE), n, n / 2, swiglu};
  return lines;
}

__device__ __forceinline__ u32 mode_of(const void* at, u64 line, u64 k, u32 swiglu, int dtype)
{
  if (dtype >= 10) return ALONG_K;
  bool aligned = is_multiple((u64)at, 4 * BYTES_OF(dtype));
  if (aligned && k == 1 && is_multiple(line, 4)) return ALONG_K;
  return aligned && line == 1 && is_multiple(k, 4) && !swiglu ? ACROSS : SINGLE;
}

/* Where four f of a tile stand: its first line and k, the step from one to the next. */
__device__ __forceinline__ void place_of(u32 f, u32 mode, u32* x, u32* kk)
{
  if (mode == ALONG_K) *x = f / (TILE_K / 4), *kk = f % (TILE_K / 4) * 4;
  else *x = f % (TILE / 4) * 4, *kk = f / (TILE / 4);
}

/* This thread's share of a tile, from k0 on, to registers; what does not exist is zero. */
template <int DTYPE>
__device__ __forceinline__ void fetch(const Operand& from, const Lines& lines, u32 k0, u32 k, u32 item, sum_t fetched[FETCHES][4])
{
#pragma unroll
  for (int i = 0; i < FETCHES; i++) {
    u32 f = item + i * ITEMS, x, kk, line;
#pragma unroll
    for (int j = 0; j < 4; j++) fetched[i][j] = 0;
    if (FOURS % ITEMS != 0 && f >= FOURS) continue;
    place_of(f, from.mode, &x, &kk);
    kk += k0;
    if (from.mode == ALONG_K) {
      if (!line_of(lines, x, &line)) continue;
#if B_DTYPE >= 10
      if (DTYPE >= 10) {
        if (kk < k) load_weights_4(element_at(from.at, line * from.line, DTYPE), kk, fetched[i]);
        continue;
      }
#endif
      u64 at = line * from.line + kk;
      if (kk + 4 <= k) {
        load_factors_4(element_at(from.at, at, DTYPE), fetched[i], DTYPE);
        continue;
      }
#pragma unroll
      for (int j = 0; j < 4; j++)
        if (kk + j < k) fetched[i][j] = load_factor(from.at, at + j, DTYPE);
      continue;
    }
    if (kk >= k) continue;
    if (from.mode == ACROSS && lines.first + x + 4 <= lines.last) {
      load_factors_4(element_at(from.at, lines.first + x + kk * from.k, DTYPE), fetched[i], DTYPE);
      continue;
    }
#pragma unroll
    for (int j = 0; j < 4; j++)
      if (line_of(lines, x + j, &line)) fetched[i][j] = load_factor(from.at, line * from.line + kk * from.k, DTYPE);
  }
}

/* And from there to shared memory, [k][line]. */
__device__ __forceinline__ void put(sum_t* tile, u32 mode, u32 item, sum_t fetched[FETCHES][4])
{
#pragma unroll
  for (int i = 0; i < FETCHES; i++) {
    u32 f = item + i * ITEMS, x, kk;
    if (FOURS % ITEMS != 0 && f >= FOURS) continue;
    place_of(f, mode, &x, &kk);
    sum_t* at = tile + kk * PITCH + x;
    u32 step = mode == ALONG_K ? PITCH : 1;
#pragma unroll
    for (int j = 0; j < 4; j++) at[j * step] = fetched[i][j];
  }
}

__device__ __forceinline__ void take_strips(const sum_t* line, u32 place, sum_t v[PER_ITEM])
{
#pragma unroll
  for (int strip = 0; strip < PER_ITEM / V; strip++) {
    strip_t four = *(const strip_t*)(line + strip * GROUP * V + place * V);
    v[strip * V] = four.x, v[strip * V + 1] = four.y;
#if PER_ITEM > 2
    v[strip * V + 2] = four.z, v[strip * V + 3] = four.w;
#endif
  }
}

/* Sums of one tile of d. `tiles` holds BUFFERS tiles of a, then as many of b. */
__device__ __forceinline__ void multiply_tile(const Operand& a, const Lines& rows, const Operand& b, const Lines& columns, u32 k, sum_t* tiles,
                                              sum_t sums[PER_ITEM][PER_ITEM])
{
  u32 x = threadIdx.x, y = threadIdx.y, item = y * GROUP + x;
  sum_t *a_tiles = tiles, *b_tiles = tiles + BUFFERS * BUFFER;
  sum_t a_fetched[FETCHES][4], b_fetched[FETCHES][4];
#pragma unroll
  for (int i = 0; i < PER_ITEM; i++)
#pragma unroll
    for (int j = 0; j < PER_ITEM; j++) sums[i][j] = 0;
  fetch<A_DTYPE>(a, rows, 0, k, item, a_fetched);
  fetch<B_DTYPE>(b, columns, 0, k, item, b_fetched);
  u32 buffer = 0;
  for (u32 k0 = 0; k0 < k; k0 += TILE_K) {
    sum_t *a_tile = a_tiles + buffer * BUFFER, *b_tile = b_tiles + buffer * BUFFER;
    put(a_tile, a.mode, item, a_fetched);
    put(b_tile, b.mode, item, b_fetched);
    __syncthreads();
    if (k0 + TILE_K < k) {
      fetch<A_DTYPE>(a, rows, k0 + TILE_K, k, item, a_fetched);
      fetch<B_DTYPE>(b, columns, k0 + TILE_K, k, item, b_fetched);
    }
#pragma unroll
    for (int kk = 0; kk < TILE_K; kk++) {
      sum_t as[PER_ITEM], bs[PER_ITEM];
      take_strips(a_tile + kk * PITCH, y, as);
      take_strips(b_tile + kk * PITCH, x, bs);
#pragma unroll
      for (int i = 0; i < PER_ITEM; i++)
#pragma unroll
        for (int j = 0; j < PER_ITEM; j++) sums[i][j] = MULTIPLY_ADD(as[i], bs[j], sums[i][j]);
    }
    /* With two buffers, whoever fills this one again has passed the barrier of the other. */
    if (BUFFERS == 2) buffer ^= 1;
    else __syncthreads();
  }
}

/* Hands the tile's sums to `store(sum, up, row of the tile, column)`: GROUP of its rows at a time through shared memory, which neighbouring threads
 * read side by side. All threads call it. */
template <typename Store>
__device__ __forceinline__ void store_tile(sum_t sums[PER_ITEM][PER_ITEM], sum_t* tiles, const Lines& columns, Store store)
{
  u32 x = threadIdx.x, y = threadIdx.y, item = y * GROUP + x, swiglu = columns.swiglu != 0, width = TILE >> swiglu;
#pragma unroll 1
  for (u32 i = 0; i < PER_ITEM; i++) {
    __syncthreads();
    /* An array in registers has constant indices only. */
#pragma unroll
    for (u32 r = 0; r < PER_ITEM; r++)
      if (r == i)
#pragma unroll
        for (u32 j = 0; j < PER_ITEM; j++) tiles[y * TILE + j / V * (GROUP * V) + x * V + j % V] = sums[r][j];
    __syncthreads();
#pragma unroll 1
    for (u32 e = item; e < GROUP * width; e += ITEMS) {
      u32 row = i / V * (GROUP * V) + e / width * V + i % V, place = e % width << swiglu, column;
      const sum_t* sum = tiles + e / width * TILE + place;
      if (line_of(columns, place, &column)) store(sum[0], sum[swiglu], row, column);
    }
  }
}

#if A_DTYPE == E4M3
/* gemm_scaled.cu has the entries. */
#elif !GROUPED
extern "C" __global__ void BOUNDS
gemm_tiled(const void* a, u64 a_offset, const void* b, u64 b_offset, const void* c, u64 c_offset, const void* bias, u64 bias_offset, void* d,
           u64 d_offset, u32 m, u32 n, u32 k, u32 batch_inner, float alpha, float beta, u32 has, u32 activation,
           u64 a_row, u64 a_col, u64 a_batch_outer, u64 a_batch_inner, u64 b_row, u64 b_col, u64 b_batch_outer, u64 b_batch_inner,
           u64 c_row, u64 c_col, u64 c_batch_outer, u64 c_batch_inner, u64 bias_col, u64 d_row, u64 d_col, u64 d_batch_outer, u64 d_batch_inner)
{
  __shared__ __align__(16) sum_t tiles[2 * BUFFERS * BUFFER];
  sum_t sums[PER_ITEM][PER_ITEM];
  u64 outer = blockIdx.z / batch_inner, inner = blockIdx.z % batch_inner;
  u32 swiglu = activation == ACTIVATION_SWIGLU, row0 = blockIdx.y * TILE;
  Lines rows = {row0, m, 0, 0}, columns = columns_of(blockIdx.x, n, swiglu);
  Operand from_a = {element_at(a, a_offset + outer * a_batch_outer + inner * a_batch_inner, A_DTYPE), a_row, a_col, SINGLE};
  Operand from_b = {element_at(b, b_offset + outer * b_batch_outer + inner * b_batch_inner, B_DTYPE), b_col, b_row, SINGLE};
  from_a.mode = mode_of(from_a.at, a_row, a_col, 0, A_DTYPE);
  from_b.mode = mode_of(from_b.at, b_col, b_row, swiglu, B_DTYPE);
  multiply_tile(from_a, rows, from_b, columns, k, tiles, sums);
  Epilogue e = {alpha, beta, has, activation,
                element_at(c, c_offset + outer * c_batch_outer + inner * c_batch_inner, C_DTYPE), element_at(bias, bias_offset, C_DTYPE),
                c_row, c_col, 0, bias_col,
                (void*)element_at(d, d_offset + outer * d_batch_outer + inner * d_batch_inner, D_DTYPE), d_row, d_col, n / 2};
  store_tile(sums, tiles, columns, [&](sum_t sum, sum_t up, u32 row, u32 column) {
    if (row0 + row < m) store_sum(e, sum, up, row0 + row, column);
  });
}
#else
extern "C" __global__ void BOUNDS
grouped_tiled(const void* a, u64 a_offset, const void* b, u64 b_offset, const int* routing, u64 routing_offset, void* d, u64 d_offset,
              u32* status, u64 status_offset, u32 rows, u32 experts, u32 capacity, u32 masked, u32 n, u32 k, u32 activation,
              u64 a_expert, u64 a_row, u64 a_col, u64 b_expert, u64 b_row, u64 b_col, u64 d_expert, u64 d_row, u64 d_col)
{
  wait_for_previous_launch();
  __shared__ __align__(16) sum_t tiles[2 * BUFFERS * BUFFER];
  sum_t sums[PER_ITEM][PER_ITEM];
  routing += routing_offset;
  u32 swiglu = activation == ACTIVATION_SWIGLU;
  if (blockIdx.x == 0 && blockIdx.y == 0)
    check_routing(routing, rows, experts, capacity, masked, status + status_offset, threadIdx.y * GROUP + threadIdx.x, ITEMS);
  Rows r = find_rows(routing, rows, experts, capacity, masked, blockIdx.y, TILE);
  if (r.begin >= r.limit) return;
  Lines lines = {r.begin, r.end, 0, 0}, columns = columns_of(blockIdx.x, n, swiglu);
  /* b's rows of the op are columns of the product. */
  Operand from_a = {element_at(a, a_offset + (masked ? r.expert * a_expert : r.base * a_row), A_DTYPE), a_row, a_col, SINGLE};
  Operand from_b = {element_at(b, b_offset + r.expert * b_expert, B_DTYPE), b_row, b_col, SINGLE};
  from_a.mode = mode_of(from_a.at, a_row, a_col, 0, A_DTYPE);
  from_b.mode = mode_of(from_b.at, b_row, b_col, swiglu, B_DTYPE);
  multiply_tile(from_a, lines, from_b, columns, r.begin < r.end ? k : 0, tiles, sums);
  void* to = (void*)element_at(d, d_offset + (masked ? r.expert * d_expert : r.base * d_row), D_DTYPE);
  Epilogue e = grouped_epilogue(activation, to, d_row, d_col, n / 2);
  store_tile(sums, tiles, columns, [&](sum_t sum, sum_t up, u32 row, u32 column) {
    row += r.begin;
    if (row >= r.limit) return;
    if (row < r.end) store_sum(e, sum, up, row, column);
    else store_1(to, row * d_row + column * d_col, 0.0f, D_DTYPE);
  });
}
#endif
