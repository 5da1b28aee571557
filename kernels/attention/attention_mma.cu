// attention_mma: both products on matrix units (mma.sync.m16n8k16), for f16 and bf16; the blocking of FlashAttention-2 (Dao 2023). A block
// takes ROWS rows, whose queries stay in shared memory or registers, and goes through the keys KEYS at a time:
//
//   shared memory   | queries: ROWS x d | tile | tile | ..   a ring of RING tiles, in the order they are needed: keys 0, values 0, keys 1, ..
//                                                            each tile KEYS x d (or dv), filled by cp.async while those before are multiplied
//
//   s = q k^T    a warp: WARP_ROWS rows by WARP_KEYS keys, in registers; a key's d columns are the second factor as they lie
//   softmax      a row of s is in four lanes: maximum by two shuffles; sums stay apart in the lanes until the end
//   o += p v     s, rounded to 16 bits, is in the registers where the first factor of the next product belongs; ldmatrix transposes v
//
// Lines are an odd number of chunks of 16 bytes apart, so that eight lines of one chunk meet all banks once.
// Keys beyond the block's sight are not loaded; tiles that all rows see whole are not masked. Under `causal`, long tiles come first.
//
// Few rows (decoding): WARPS_ROWS 1, and the warps share the keys of a tile instead; each has its own maxima and sums, which are joined in
// the order of the warps at the end. The memory is read once whatever the heads that share a key head: they are rows of the same fragment.
//
// Tunables (-D):
//   D_MAX          128  bound of d, a multiple of 16 up to 256; d, dv and all strides are multiples of 8
//   DV_MAX         128  likewise of dv
//   KEYS           64   keys in a tile
//   ROW_FRAGMENTS  1    16 rows each of a warp: a fragment of keys or values that is loaded meets so many rows
//   WARPS_ROWS     4    warps along the rows
//   WARPS_KEYS     1    warps along the keys
//   RING           2    tiles in shared memory: all but one are on their way
//
// Grid (works, kv_heads), 32 * WARPS_ROWS * WARPS_KEYS threads. Measured nowhere yet: no GPU has run it.

#ifndef D_MAX
#define D_MAX 128
#endif
#ifndef DV_MAX
#define DV_MAX 128
#endif
#ifndef KEYS
#define KEYS 64
#endif
#ifndef ROW_FRAGMENTS
#define ROW_FRAGMENTS 1
#endif
#ifndef WARPS_ROWS
#define WARPS_ROWS 4
#endif
#ifndef WARPS_KEYS
#define WARPS_KEYS 1
#endif
#ifndef RING
#define RING 2
#endif

#define THREADS (32 * WARPS_ROWS * WARPS_KEYS)
#define WARP_ROWS (16 * ROW_FRAGMENTS)
#define ROWS (WARPS_ROWS * WARP_ROWS)
#define WARP_KEYS (KEYS / WARPS_KEYS)
// Bytes of a line of so many columns, of the queries, and of a tile.
#define PITCH(columns) (((columns) / 8 | 1) * 16)
#define Q_BYTES (ROWS * PITCH(D_MAX))
#define TILE_BYTES (KEYS * (D_MAX > DV_MAX ? PITCH(D_MAX) : PITCH(DV_MAX)))
// Fragments of queries are kept where the sums leave registers for them.
#define KEEP_QUERIES (ROW_FRAGMENTS * D_MAX <= 128)
// Blocks of a multiprocessor that registers are shared out for.
#define BLOCKS (ROW_FRAGMENTS * (D_MAX > DV_MAX ? D_MAX : DV_MAX) > 64 ? 2 : 3)
// Floats of a row that a warp leaves to be joined: sums, maximum, sum of exponentials, and two for the sake of the banks.
#define JOIN_PITCH (DV_MAX + 4)

#if DTYPE == 1
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
#else
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
#endif

__device__ __forceinline__ void multiply(float sum[4], const u32 a[4], const u32 b[2])
{
  asm volatile(MMA " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Asks for the lines of keys first_key .. end of a tile; what is beyond is zero. `hidden`, where it is asked for, gets keys of no block.
template <int COLUMNS>
__device__ __forceinline__ void fetch(u32 tile, u8* hidden, const T* x, const Rows& rows, int columns, int first_key, int end)
{
#pragma unroll(LAYOUT == 2 ? 1 : KEYS)
  for (int line = threadIdx.x / 8; line < KEYS; line += THREADS / 8) {
    const int key = first_key + line, lane = threadIdx.x % 8;
    const i64 from = key < end ? row_of(rows, key) : -1;
    if (LAYOUT == 2 && hidden && lane == 0) hidden[line] = from < 0;
    const T* at = x + (from < 0 ? 0 : from);
#pragma unroll
    for (int chunk = lane; chunk < COLUMNS / 8; chunk += 8)
      copy_chunk(tile + line * PITCH(COLUMNS) + chunk * 16, at + chunk * 8, from >= 0 && chunk * 8 < columns ? 16 : 0);
  }
}

// What the options make of a scaled score, by its row and key.
struct Scores {
  const float *mask, *slopes;
  float softcap, inverse_softcap;
  i64 mask_stride;
  int position, flags;

  __device__ __forceinline__ float finish(float score, int key) const
  {
    if (flags & SOFTCAP) score = softcap * tanh_by_exp(score * inverse_softcap);
    if (flags & ALIBI) score += *slopes * (float)(key - position);
    if (flags & MASK) {
      // A mask of -inf hides a key even from a NaN query.
      const float bias = mask[key * mask_stride];
      score = bias == -infinity() ? -infinity() : score + bias;
    }
    return score;
  }
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) attention_mma(OPERANDS)
{
  extern __shared__ __align__(128) u8 shared[];
  __shared__ u8 hidden[LAYOUT == 2 ? RING : 1][KEYS];
  APPLY_OFFSETS;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = heads / kv_heads, kv_head = blockIdx.y;
  const int warp_row = warp % WARPS_ROWS * WARP_ROWS, warp_key = warp / WARPS_ROWS * WARP_KEYS;
  Lengths lengths = LENGTHS;
  // Of a batch with both, each of two launches takes the sequences that suit it.
  if (WARPS_KEYS == 1) lengths.few_rows = few_rows;
  Work w;
  if (!find_work(blockIdx.x, w, WARPS_KEYS == 1 ? ROWS : 1 << 30, lengths)) return;
  const Sequence s = w.s;
  const int rows = s.queries * group;
  if (WARPS_KEYS != 1 && rows > few_rows) return;
  if (flags & CAUSAL) w.tile = s.tiles - 1 - w.tile;
  const Rows k_rows = ROWS_OF(k), v_rows = ROWS_OF(v);
  const int first_row = w.tile * ROWS, tile_rows = min(ROWS, rows - first_row);

  const Pair first_sight = sight_of(first_row / group, s, window, flags), last_sight = sight_of((first_row + tile_rows - 1) / group, s, window, flags);
  int first = first_sight.x / KEYS * KEYS, end = last_sight.y + 1;
  if (s.splits > 1) {
    first = max(first, w.split * SPLIT_KEYS);
    end = min(end, (w.split + 1) * SPLIT_KEYS);
  }
  const int tiles = end > first ? 2 * ((end - first + KEYS - 1) / KEYS) : 0;

  const u32 q_tile = shared_address(shared), ring = q_tile + Q_BYTES;
  for (int line = threadIdx.x / 8; line < ROWS; line += THREADS / 8) {
    const int row = first_row + line, query = row / group, head = row + (kv_head - query) * group;
    const T* from = q + (line < tile_rows ? row_of_query(s, query, head, q_batch_stride, q_head_stride, q_row_stride) : 0);
#pragma unroll
    for (int chunk = threadIdx.x % 8; chunk < D_MAX / 8; chunk += 8)
      copy_chunk(q_tile + line * PITCH(D_MAX) + chunk * 16, from + chunk * 8, line < tile_rows && chunk * 8 < d ? 16 : 0);
  }
  int asked = 0, filled = 0, read = 0;
  auto ask = [&]() {
    if (asked < tiles) {
      const int first_key = first + asked / 2 * KEYS;
      if (asked % 2 == 0) fetch<D_MAX>(ring + filled * TILE_BYTES, LAYOUT == 2 ? hidden[filled] : 0, k, k_rows, d, first_key, end);
      else fetch<DV_MAX>(ring + filled * TILE_BYTES, 0, v, v_rows, dv, first_key, end);
    }
    commit_copies();
    asked++;
    filled = filled + 1 == RING ? 0 : filled + 1;
  };
  // The next tile in order: all of it is there, and all have read the one before, in whose place a new one is asked for.
  auto next = [&]() {
    wait_for_copies<RING - 2>();
    __syncthreads();
    ask();
    const int tile = read;
    read = read + 1 == RING ? 0 : read + 1;
    return tile;
  };
#pragma unroll 1
  for (int i = 0; i < RING - 1; i++) ask();

  // Of each fragment, a lane has rows lane / 4 and lane / 4 + 8, and of each eight columns two.
  float acc[ROW_FRAGMENTS][DV_MAX / 8][4], most[ROW_FRAGMENTS][2], sum[ROW_FRAGMENTS][2];
#pragma unroll
  for (int i = 0; i < ROW_FRAGMENTS; i++) {
#pragma unroll
    for (int c = 0; c < DV_MAX / 8; c++)
#pragma unroll
      for (int e = 0; e < 4; e++) acc[i][c][e] = 0.0f;
    most[i][0] = most[i][1] = -infinity();
    sum[i][0] = sum[i][1] = 0.0f;
  }
  u32 queries[ROW_FRAGMENTS][KEEP_QUERIES ? D_MAX / 16 : 1][4];
  auto load_queries = [&](u32 to[4], int i, int x) {
    load_matrices<0>(to, q_tile + (warp_row + i * 16 + lane % 16) * PITCH(D_MAX) + (x * 2 + lane / 16) * 16);
  };
  const float inverse_softcap = __fdiv_rn(1.0f, softcap);

#pragma unroll 1
  for (int first_key = first; first_key < end; first_key += KEYS) {
    float p[ROW_FRAGMENTS][WARP_KEYS / 8][4];
#pragma unroll
    for (int i = 0; i < ROW_FRAGMENTS; i++)
#pragma unroll
      for (int j = 0; j < WARP_KEYS / 8; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) p[i][j][e] = 0.0f;
    const int k_tile = next();
    if (KEEP_QUERIES && first_key == first) {
#pragma unroll
      for (int i = 0; i < ROW_FRAGMENTS; i++)
#pragma unroll
        for (int x = 0; x < D_MAX / 16; x++) load_queries(queries[i][KEEP_QUERIES ? x : 0], i, x);
    }
    const u32 keys = ring + k_tile * TILE_BYTES + (warp_key + lane / 16 * 8 + lane % 8) * PITCH(D_MAX) + lane / 8 % 2 * 16;
#pragma unroll
    for (int x = 0; x < D_MAX / 16; x++) {
      if (!KEEP_QUERIES)
#pragma unroll
        for (int i = 0; i < ROW_FRAGMENTS; i++) load_queries(queries[i][0], i, x);
#pragma unroll
      for (int j = 0; j < WARP_KEYS / 16; j++) {
        // in order: both halves of 16 columns of keys 0-7, then of keys 8-15
        u32 b[4];
        load_matrices<0>(b, keys + j * 16 * PITCH(D_MAX) + x * 32);
#pragma unroll
        for (int i = 0; i < ROW_FRAGMENTS; i++) {
          multiply(p[i][2 * j], queries[i][KEEP_QUERIES ? x : 0], b);
          multiply(p[i][2 * j + 1], queries[i][KEEP_QUERIES ? x : 0], b + 2);
        }
      }
    }

    const int lane_key = warp_key + lane % 4 * 2;
    const bool whole = LAYOUT != 2 && !(flags & (SOFTCAP | ALIBI | MASK)) && first_key >= last_sight.x && first_key + KEYS <= min(end, first_sight.y + 1);
#pragma unroll
    for (int i = 0; i < ROW_FRAGMENTS; i++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
#pragma unroll
        for (int j = 0; j < WARP_KEYS / 8; j++)
#pragma unroll
          for (int e = 0; e < 2; e++) p[i][j][2 * h + e] *= scale;
        if (!whole) {
          const int row = min(first_row + warp_row + i * 16 + h * 8 + lane / 4, rows - 1), query = row / group, head = row + (kv_head - query) * group;
          const Pair sight = sight_of(query, s, window, flags);
          const Scores scores = {mask + s.index * mask_batch_stride + head * mask_head_stride + query * mask_row_stride,
                                 alibi_slopes + head * alibi_slopes_stride, softcap, inverse_softcap, mask_stride, s.keys - s.queries + query, flags};
#pragma unroll
          for (int j = 0; j < WARP_KEYS / 8; j++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
              const int key = first_key + lane_key + j * 8 + e;
              const bool seen = key >= sight.x && key <= sight.y && key < end && (LAYOUT != 2 || !hidden[k_tile][lane_key + j * 8 + e]);
              p[i][j][2 * h + e] = seen ? scores.finish(p[i][j][2 * h + e], key) : -infinity();
            }
        }
        // A NaN score never becomes the maximum: it reaches the result through its exponential.
        float top = most[i][h];
#pragma unroll
        for (int j = 0; j < WARP_KEYS / 8; j++) top = greater(greater(top, p[i][j][2 * h]), p[i][j][2 * h + 1]);
        top = greater(top, in_lane(top, 1));
        top = greater(top, in_lane(top, 2));
        // Where nothing was seen yet the maximum is -inf, and -inf - -inf would be NaN.
        const float base = top == -infinity() ? 0.0f : top, rescale = exp_nonpositive(most[i][h] - base);
        most[i][h] = top;
        float share = 0.0f;
#pragma unroll
        for (int j = 0; j < WARP_KEYS / 8; j++)
#pragma unroll
          for (int e = 0; e < 2; e++) {
            p[i][j][2 * h + e] = exp_nonpositive(p[i][j][2 * h + e] - base);
            share += p[i][j][2 * h + e];
          }
        sum[i][h] = sum[i][h] * rescale + share;
#pragma unroll
        for (int c = 0; c < DV_MAX / 8; c++) {
          acc[i][c][2 * h] *= rescale;
          acc[i][c][2 * h + 1] *= rescale;
        }
      }

    const u32 values = ring + next() * TILE_BYTES + (warp_key + lane % 16) * PITCH(DV_MAX) + lane / 16 * 16;
#pragma unroll
    for (int j = 0; j < WARP_KEYS / 16; j++) {
      u32 a[ROW_FRAGMENTS][4];
#pragma unroll
      for (int i = 0; i < ROW_FRAGMENTS; i++)
#pragma unroll
        for (int e = 0; e < 4; e++) a[i][e] = pack(p[i][2 * j + e / 2][e % 2 * 2], p[i][2 * j + e / 2][e % 2 * 2 + 1]);
#pragma unroll
      for (int c = 0; c < DV_MAX / 16; c++) {
        // in order: both halves of 16 keys of columns 0-7, then of columns 8-15
        u32 b[4];
        load_matrices<1>(b, values + j * 16 * PITCH(DV_MAX) + c * 32);
#pragma unroll
        for (int i = 0; i < ROW_FRAGMENTS; i++) {
          multiply(acc[i][2 * c], a[i], b);
          multiply(acc[i][2 * c + 1], a[i], b + 2);
        }
      }
    }
  }
  wait_for_copies<0>();
#pragma unroll
  for (int i = 0; i < ROW_FRAGMENTS; i++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      sum[i][h] += in_lane(sum[i][h], 1);
      sum[i][h] += in_lane(sum[i][h], 2);
    }

  // Where a row's result goes, which is set once for all its columns: to `partial` if its keys were split.
  float* to_partial = 0;
  T* to = 0;
  float factor = 0.0f;
  bool at_once = false;
  auto open_row = [&](int row, float row_most, float row_sum, bool first_lane) {
    const int query = row / group, head = row + (kv_head - query) * group;
    if (s.splits > 1) {
      to_partial = partial + (((i64)(s.slot + w.split) * kv_heads + kv_head) * split_rows + row) * (dv + 2);
      if (first_lane) store_two(to_partial + dv, row_most, row_sum);
      return;
    }
    const Finish last = finish_row(row_most, row_sum, flags & SINKS, flags & SINKS ? sinks[head * sinks_stride] : 0.0f);
    factor = last.factor;
    to = o + row_of_query(s, query, head, o_batch_stride, o_head_stride, o_row_stride);
    at_once = o_stride == 1 && (u64)to % 4 == 0;
    if ((flags & LSE) && first_lane) lse[row_of_query(s, query, head, lse_batch_stride, lse_head_stride, lse_row_stride)] = last.lse;
  };
  auto put = [&](int column, float x, float y) {
    if (column >= dv) return;
    if (s.splits > 1) {
      store_two(to_partial + column, x, y);
    } else if (at_once) {
      *(u32*)(to + column) = pack(x * factor, y * factor);
    } else {
      store1(to, column * o_stride, x * factor);
      store1(to, (column + 1) * o_stride, y * factor);
    }
  };

  if (WARPS_KEYS == 1) {
#pragma unroll
    for (int i = 0; i < ROW_FRAGMENTS; i++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int row = warp_row + i * 16 + h * 8 + lane / 4;
        if (row >= tile_rows) continue;
        open_row(first_row + row, most[i][h], sum[i][h], lane % 4 == 0);
#pragma unroll
        for (int c = 0; c < DV_MAX / 8; c++) put(c * 8 + lane % 4 * 2, acc[i][c][2 * h], acc[i][c][2 * h + 1]);
      }
    return;
  }

  // [warp along the keys][row][columns, maximum, sum of exponentials], where queries and tiles were
  float* parts = (float*)shared;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < ROW_FRAGMENTS; i++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float* part = parts + (warp / WARPS_ROWS * ROWS + warp_row + i * 16 + h * 8 + lane / 4) * JOIN_PITCH;
#pragma unroll
      for (int c = 0; c < DV_MAX / 8; c++) *(float2*)(part + c * 8 + lane % 4 * 2) = make_float2(acc[i][c][2 * h], acc[i][c][2 * h + 1]);
      if (lane % 4 == 0) *(float2*)(part + DV_MAX) = make_float2(most[i][h], sum[i][h]);
    }
  __syncthreads();
#pragma unroll 1
  for (int row = warp; row < tile_rows; row += WARPS_ROWS * WARPS_KEYS) {
    const float* part = parts + row * JOIN_PITCH;
    float top = -infinity(), all = 0.0f, weight[WARPS_KEYS];
#pragma unroll
    for (int i = 0; i < WARPS_KEYS; i++) top = greater(top, part[i * ROWS * JOIN_PITCH + DV_MAX]);
    const float base = top == -infinity() ? 0.0f : top;
#pragma unroll
    for (int i = 0; i < WARPS_KEYS; i++) {
      weight[i] = exp_nonpositive(part[i * ROWS * JOIN_PITCH + DV_MAX] - base);
      all += weight[i] * part[i * ROWS * JOIN_PITCH + DV_MAX + 1];
    }
    open_row(first_row + row, top, all, lane == 0);
#pragma unroll
    for (int column = lane * 2; column < DV_MAX; column += 64) {
      float x = 0.0f, y = 0.0f;
#pragma unroll
      for (int i = 0; i < WARPS_KEYS; i++) {
        const float2 both = *(const float2*)(part + i * ROWS * JOIN_PITCH + column);
        x = fmaf(weight[i], both.x, x);
        y = fmaf(weight[i], both.y, y);
      }
      put(column, x, y);
    }
  }
}
