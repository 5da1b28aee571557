// expert_scatter and expert_gather: token rows into expert order, and their weighted sum back into token order. The same entries,
// arguments and steps as in rows.cl, which draws what they compute.
//
//   ids --expert_count (a tile a block)--> tile_rows [tiles, experts] --expert_scan (one block)--> first rows, expert_offsets
//   ids --expert_place (a tile a block)--> source, inverse;    few ids: expert_permute (one block) does all three
//   x   --expert_copy_rows--> rows;    source --expert_clear_inverse, expert_invert (or expert_invert_few)--> inverse
//   rows, inverse --expert_combine--> y
//
// A counting sort, stable because ids are placed in their order. The ids of a tile are cut into one run for each warp, and each warp
// has a row of counters in shared memory:
//
//   ids        [ run of warp 0         | run of warp 1         | ... ]     counted, 32 at a time: match.any finds equal ids,
//   counters   warp 0 [ e0 e1 e2 .. ]                                      and the last lane that has one writes its counter
//              warp 1 [ e0 e1 e2 .. ]   --scan over (expert, warp)--> first row of each warp's ids of each expert
//   placed     32 at a time: row = the counter + how many lower lanes have the same id
//
// No atomics decide an order: those there are take a maximum or set bits. Rows move in accesses of 16 bytes where their addresses allow
// it, several in flight; sums are in f32, in slot order, and each element has one thread.
//
// Ids and sources come from the device: one that is out of range is skipped and sets the status word.
//
// Constants (the planner's)
//   X_DTYPE           0 f32, 1 f16, 2 bf16: of x, rows and y
//   EXPERTS_CAPACITY  at least the number of experts: sizes the counters
// Tunables
//   PERMUTE_GROUP     threads that share a tile of ids
//   PERMUTE_TILE      ids of a tile
//   ROW_GROUP         threads that share a block of columns
//   ROW_VECTOR        accesses of 16 bytes that a thread has in flight,
//   ROW_UNROLL          times this
//   ROW_BLOCK         columns of a block
//
// Measured: README.md.

#ifndef X_DTYPE
#define X_DTYPE 0
#endif
#ifndef EXPERTS_CAPACITY
#define EXPERTS_CAPACITY 512
#endif
#ifndef PERMUTE_GROUP
#define PERMUTE_GROUP 64
#endif
#ifndef PERMUTE_TILE
#define PERMUTE_TILE 1024
#endif
#ifndef ROW_GROUP
#define ROW_GROUP 64
#endif
#ifndef ROW_VECTOR
#define ROW_VECTOR 4
#endif
#ifndef ROW_UNROLL
#define ROW_UNROLL 1
#endif
#ifndef ROW_BLOCK
#define ROW_BLOCK 2048
#endif
#if defined(ROWS_DTYPE) && ROWS_DTYPE != X_DTYPE
#error "rows and y have one dtype here"
#endif

#define STATUS_BAD_EXPERT 1u
#define STATUS_BAD_SOURCE 2u

#define WHOLE_WARP 0xffffffffu
#define WARPS (PERMUTE_GROUP / 32)
// Warps that count and place: as many as have counters in 32 KiB, at least one.
#define COUNTERS_MOST (8192 / EXPERTS_CAPACITY)
#define PLACERS (COUNTERS_MOST < 1 ? 1 : COUNTERS_MOST < WARPS ? COUNTERS_MOST : WARPS)

#define IN_FLIGHT (ROW_VECTOR * ROW_UNROLL)
#define PIECE (16 / (int)sizeof(x_t)) // elements of an access

#if X_DTYPE == 0
typedef unsigned int x_t;
#else
typedef unsigned short x_t;
#endif

static __device__ __forceinline__ float to_float(x_t bits)
{
#if X_DTYPE == 0
  return __uint_as_float(bits);
#elif X_DTYPE == 1
  float v;
  asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(bits));
  return v;
#else
  return __uint_as_float((unsigned int)bits << 16);
#endif
}
// Rounds to nearest even.
static __device__ __forceinline__ x_t from_float(float v)
{
#if X_DTYPE == 0
  return __float_as_uint(v);
#else
  x_t bits;
#if X_DTYPE == 1
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(v));
#else
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(v));
#endif
  return bits;
#endif
}

// The elements of one access.
union piece_t {
  uint4 bits;
  x_t element[PIECE];
};

// Whether rows that begin at `base` and `stride` elements apart lie on 16 bytes.
static __device__ __forceinline__ bool on_pieces(const void* base, unsigned long long stride)
{
  return ((unsigned long long)base | stride * sizeof(x_t)) % 16 == 0;
}

static __device__ __forceinline__ int expert_of(const int* topk_ids, unsigned int i, unsigned int topk, unsigned int experts,
                                                unsigned long long token_stride, unsigned long long slot_stride,
                                                unsigned int* status)
{
  const int id = topk_ids[i / topk * token_stride + i % topk * slot_stride];
  if (id >= -1 && id < (int)experts) return id;
  atomicOr(status, STATUS_BAD_EXPERT);
  return -1;
}

// Ids of a warp's run: whole batches of 32.
static __device__ __forceinline__ unsigned int run_length(unsigned int ids)
{
  return (ids + 32 * PLACERS - 1) / (32 * PLACERS) * 32;
}

// counters[warp][e] = how many ids of the warp's run within begin..end name expert e.
static __device__ __forceinline__ void count_experts(unsigned int* counters, const int* topk_ids, unsigned int begin,
                                                     unsigned int end, unsigned int topk, unsigned int experts,
                                                     unsigned long long token_stride, unsigned long long slot_stride,
                                                     unsigned int* status)
{
  const unsigned int lane = threadIdx.x % 32, warp = threadIdx.x / 32, run = run_length(end - begin);
  if (warp < PLACERS) {
    unsigned int* const counts = counters + warp * EXPERTS_CAPACITY;
    for (unsigned int e = lane; e < experts; e += 32) counts[e] = 0;
    __syncwarp(); // the counters are zero
    const unsigned int first = begin + warp * run, last = min(first + run, end);
    for (unsigned int batch = first; batch < last; batch += 32) {
      const unsigned int i = batch + lane;
      const int e = i < last ? expert_of(topk_ids, i, topk, experts, token_stride, slot_stride, status) : -1;
      const unsigned int same = __match_any_sync(WHOLE_WARP, e);
      if (e >= 0 && same >> lane == 1) counts[e] += __popc(same); // the last lane that has it
      __syncwarp(); // before the next batch is counted
    }
  }
  __syncthreads();
}

// Turns the counts of `sets` rows of counters into first rows, by expert and then by row, and writes the experts' offsets.
// Returns the number of rows in all.
static __device__ __forceinline__ unsigned int scan_experts(unsigned int* counters, unsigned int sets, unsigned int* warp_sums,
                                                            int* expert_offsets, unsigned int experts)
{
  const unsigned int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  unsigned int rows = 0; // of the experts so far
  for (unsigned int first = 0; first < experts; first += PERMUTE_GROUP) {
    const unsigned int e = first + threadIdx.x;
    unsigned int count = 0;
    if (e < experts)
      for (unsigned int s = 0; s < sets; s++) count += counters[s * EXPERTS_CAPACITY + e];
    unsigned int sum = count; // of this lane and the lower ones
#pragma unroll
    for (unsigned int d = 1; d < 32; d *= 2) {
      const unsigned int lower = __shfl_up_sync(WHOLE_WARP, sum, d);
      if (lane >= d) sum += lower;
    }
    if (lane == 31) warp_sums[warp] = sum;
    __syncthreads(); // every warp's sum is there
    unsigned int row = rows + sum - count;
    for (unsigned int w = 0; w < WARPS; w++) {
      if (w < warp) row += warp_sums[w];
      rows += warp_sums[w];
    }
    if (e < experts) {
      expert_offsets[e] = row;
      for (unsigned int s = 0; s < sets; s++) {
        const unsigned int next = row + counters[s * EXPERTS_CAPACITY + e];
        counters[s * EXPERTS_CAPACITY + e] = row;
        row = next;
      }
    }
    __syncthreads(); // the sums are written anew, the counters read by others
  }
  if (threadIdx.x == 0) expert_offsets[experts] = rows;
  return rows;
}

// Gives each id its row: the next free one of its expert in its warp's run, in the order of the ids.
static __device__ __forceinline__ void place_ids(unsigned int* counters, const int* topk_ids, int* source, int* inverse,
                                                 unsigned int begin, unsigned int end, unsigned int topk, unsigned int experts,
                                                 unsigned long long token_stride, unsigned long long slot_stride,
                                                 unsigned int* status)
{
  const unsigned int lane = threadIdx.x % 32, warp = threadIdx.x / 32, run = run_length(end - begin);
  if (warp >= PLACERS) return;
  unsigned int* const next_row = counters + warp * EXPERTS_CAPACITY;
  const unsigned int first = begin + warp * run, last = min(first + run, end);
  for (unsigned int batch = first; batch < last; batch += 32) {
    const unsigned int i = batch + lane;
    const int e = i < last ? expert_of(topk_ids, i, topk, experts, token_stride, slot_stride, status) : -1;
    const unsigned int same = __match_any_sync(WHOLE_WARP, e);
    int row = -1;
    if (e >= 0) {
      row = next_row[e] + __popc(same & ((1u << lane) - 1));
      source[row] = i;
    }
    if (i < last) inverse[i] = row;
    __syncwarp(); // all lanes have read their counters
    if (e >= 0 && same >> lane == 1) next_row[e] = row + 1;
    __syncwarp(); // before the next batch reads them
  }
}

// The whole permutation in one block, for few ids.
extern "C" __global__ void __launch_bounds__(PERMUTE_GROUP)
expert_permute(const int* topk_ids, unsigned long long topk_ids_offset, int* expert_offsets,
               unsigned long long expert_offsets_offset, int* source, unsigned long long source_offset, int* inverse,
               unsigned long long inverse_offset, unsigned int* status, unsigned long long status_offset, unsigned int tokens,
               unsigned int topk, unsigned int experts, unsigned long long token_stride, unsigned long long slot_stride)
{
  wait_for_previous_launch();
  __shared__ unsigned int counters[PLACERS * EXPERTS_CAPACITY];
  __shared__ unsigned int warp_sums[WARPS];
  topk_ids += topk_ids_offset;
  source += source_offset;
  status += status_offset;
  const unsigned int ids = tokens * topk;
  count_experts(counters, topk_ids, 0, ids, topk, experts, token_stride, slot_stride, status);
  const unsigned int rows = scan_experts(counters, PLACERS, warp_sums, expert_offsets + expert_offsets_offset, experts);
  place_ids(counters, topk_ids, source, inverse + inverse_offset, 0, ids, topk, experts, token_stride, slot_stride, status);
  for (unsigned int r = rows + threadIdx.x; r < ids; r += PERMUTE_GROUP) source[r] = -1;
}

// For many ids: tiles of PERMUTE_TILE. tile_rows [tiles, experts] holds counts, then first rows.
extern "C" __global__ void __launch_bounds__(PERMUTE_GROUP)
expert_count(const int* topk_ids, unsigned long long topk_ids_offset, unsigned int* tile_rows, unsigned long long tile_rows_offset,
             unsigned int* status, unsigned long long status_offset, unsigned int tokens, unsigned int topk, unsigned int experts,
             unsigned long long token_stride, unsigned long long slot_stride)
{
  wait_for_previous_launch();
  __shared__ unsigned int counters[PLACERS * EXPERTS_CAPACITY];
  const unsigned int tile = blockIdx.x, begin = tile * PERMUTE_TILE, end = min(begin + PERMUTE_TILE, tokens * topk);
  count_experts(counters, topk_ids + topk_ids_offset, begin, end, topk, experts, token_stride, slot_stride,
                status + status_offset);
  tile_rows += tile_rows_offset + (unsigned long long)tile * experts;
  for (unsigned int e = threadIdx.x; e < experts; e += PERMUTE_GROUP) {
    unsigned int count = 0;
    for (unsigned int w = 0; w < PLACERS; w++) count += counters[w * EXPERTS_CAPACITY + e];
    tile_rows[e] = count;
  }
}

extern "C" __global__ void __launch_bounds__(PERMUTE_GROUP)
expert_scan(unsigned int* tile_rows, unsigned long long tile_rows_offset, int* expert_offsets,
            unsigned long long expert_offsets_offset, unsigned int tiles, unsigned int experts)
{
  wait_for_previous_launch();
  __shared__ unsigned int counts[EXPERTS_CAPACITY];
  __shared__ unsigned int warp_sums[WARPS];
  tile_rows += tile_rows_offset;
  for (unsigned int e = threadIdx.x; e < experts; e += PERMUTE_GROUP) {
    unsigned int count = 0;
#pragma unroll 8
    for (unsigned int t = 0; t < tiles; t++) count += tile_rows[(unsigned long long)t * experts + e];
    counts[e] = count;
  }
  __syncthreads();
  scan_experts(counts, 1, warp_sums, expert_offsets + expert_offsets_offset, experts);
  for (unsigned int e = threadIdx.x; e < experts; e += PERMUTE_GROUP) {
    unsigned int row = counts[e];
    for (unsigned int first = 0; first < tiles; first += 8) {
      unsigned int count[8];
#pragma unroll
      for (unsigned int t = 0; t < 8; t++)
        count[t] = first + t < tiles ? tile_rows[(unsigned long long)(first + t) * experts + e] : 0;
#pragma unroll
      for (unsigned int t = 0; t < 8; t++)
        if (first + t < tiles) {
          tile_rows[(unsigned long long)(first + t) * experts + e] = row;
          row += count[t];
        }
    }
  }
}

extern "C" __global__ void __launch_bounds__(PERMUTE_GROUP)
expert_place(const int* topk_ids, unsigned long long topk_ids_offset, const unsigned int* tile_rows,
             unsigned long long tile_rows_offset, const int* expert_offsets, unsigned long long expert_offsets_offset, int* source,
             unsigned long long source_offset, int* inverse, unsigned long long inverse_offset, unsigned int* status,
             unsigned long long status_offset, unsigned int tokens, unsigned int topk, unsigned int experts,
             unsigned long long token_stride, unsigned long long slot_stride)
{
  wait_for_previous_launch();
  __shared__ unsigned int counters[PLACERS * EXPERTS_CAPACITY];
  const unsigned int tile = blockIdx.x, begin = tile * PERMUTE_TILE, end = min(begin + PERMUTE_TILE, tokens * topk);
  topk_ids += topk_ids_offset;
  tile_rows += tile_rows_offset + (unsigned long long)tile * experts;
  source += source_offset;
  status += status_offset;
  count_experts(counters, topk_ids, begin, end, topk, experts, token_stride, slot_stride, status);
  for (unsigned int e = threadIdx.x; e < experts; e += PERMUTE_GROUP) {
    unsigned int row = tile_rows[e];
    for (unsigned int w = 0; w < PLACERS; w++) {
      const unsigned int next = row + counters[w * EXPERTS_CAPACITY + e];
      counters[w * EXPERTS_CAPACITY + e] = row;
      row = next;
    }
  }
  __syncthreads();
  place_ids(counters, topk_ids, source, inverse + inverse_offset, begin, end, topk, experts, token_stride, slot_stride, status);
  const unsigned int rows = expert_offsets[expert_offsets_offset + experts];
  for (unsigned int r = max(begin, rows) + threadIdx.x; r < end; r += PERMUTE_GROUP) source[r] = -1;
}

// The block's token and columns. The grid may have any shape: blocks are counted through, columns first.
struct share_t {
  unsigned int token, begin, end;
};
static __device__ __forceinline__ share_t share_of_block(unsigned int hidden)
{
  const unsigned int blocks = (hidden + ROW_BLOCK - 1) / ROW_BLOCK, block = blockIdx.y * gridDim.x + blockIdx.x;
  const unsigned int begin = block % blocks * ROW_BLOCK;
  return {block / blocks, begin, min(begin + ROW_BLOCK, hidden)};
}

// A block copies ROW_BLOCK columns of x[token] to the token's rows, and zeroes those of its share of the rows that no id took.
extern "C" __global__ void __launch_bounds__(ROW_GROUP)
expert_copy_rows(const x_t* x, unsigned long long x_offset, const int* inverse, unsigned long long inverse_offset,
                 const int* expert_offsets, unsigned long long expert_offsets_offset, x_t* rows, unsigned long long rows_offset,
                 unsigned int tokens, unsigned int topk, unsigned int experts, unsigned int hidden,
                 unsigned long long token_stride, unsigned long long column_stride, unsigned long long row_stride)
{
  wait_for_previous_launch();
  const share_t share = share_of_block(hidden);
  const unsigned int token = share.token, end = share.end;
  if (token >= tokens) return;
  x += x_offset;
  rows += rows_offset;
  const bool stores = on_pieces(rows, row_stride), loads = stores && column_stride == 1 && on_pieces(x, token_stride);
  x += token * token_stride;
  inverse += inverse_offset + (unsigned long long)token * topk;
  const unsigned int whole = share.begin + (end - share.begin) / PIECE * PIECE; // the end of the last whole piece
  unsigned int tail = share.begin;
  if (loads) {
    for (unsigned int j = share.begin + threadIdx.x * PIECE; j < whole; j += IN_FLIGHT * ROW_GROUP * PIECE) {
      uint4 piece[IN_FLIGHT];
#pragma unroll
      for (unsigned int u = 0; u < IN_FLIGHT; u++)
        if (j + u * ROW_GROUP * PIECE < whole) piece[u] = *(const uint4*)(x + j + u * ROW_GROUP * PIECE);
      for (unsigned int slot = 0; slot < topk; slot++) {
        const int row = inverse[slot];
        if (row < 0) continue;
        x_t* const to = rows + row * row_stride + j;
#pragma unroll
        for (unsigned int u = 0; u < IN_FLIGHT; u++)
          if (j + u * ROW_GROUP * PIECE < whole) *(uint4*)(to + u * ROW_GROUP * PIECE) = piece[u];
      }
    }
    tail = whole;
  }
  for (unsigned int j = tail + threadIdx.x; j < end; j += ROW_GROUP) {
    const x_t v = x[j * column_stride];
    for (unsigned int slot = 0; slot < topk; slot++) {
      const int row = inverse[slot];
      if (row >= 0) rows[row * row_stride + j] = v;
    }
  }
  const unsigned int used = expert_offsets[expert_offsets_offset + experts];
  for (unsigned int row = max(token * topk, used); row < (token + 1) * topk; row++) {
    x_t* const to = rows + row * row_stride;
    if (stores)
      for (unsigned int j = share.begin + threadIdx.x * PIECE; j < whole; j += ROW_GROUP * PIECE)
        *(uint4*)(to + j) = make_uint4(0, 0, 0, 0);
    for (unsigned int j = (stores ? whole : share.begin) + threadIdx.x; j < end; j += ROW_GROUP) to[j] = 0;
  }
}

extern "C" __global__ void __launch_bounds__(PERMUTE_GROUP)
expert_clear_inverse(int* inverse, unsigned long long inverse_offset, unsigned int ids)
{
  wait_for_previous_launch();
  const unsigned int begin = blockIdx.x * PERMUTE_TILE, end = min(begin + PERMUTE_TILE, ids);
  for (unsigned int i = begin + threadIdx.x; i < end; i += PERMUTE_GROUP) inverse[inverse_offset + i] = -1;
}

static __device__ __forceinline__ void invert(const int* source, int* inverse, unsigned int* status, unsigned int begin,
                                              unsigned int end, unsigned int ids, unsigned long long source_stride)
{
  for (unsigned int r = begin + threadIdx.x; r < end; r += PERMUTE_GROUP) {
    const int i = source[r * source_stride];
    if (i == -1) continue;
    // the row of the highest number wins where two claim one slot, whatever the order
    if (i < 0 || i >= (int)ids || atomicMax(&inverse[i], (int)r) != -1) atomicOr(status, STATUS_BAD_SOURCE);
  }
}

extern "C" __global__ void __launch_bounds__(PERMUTE_GROUP)
expert_invert(const int* source, unsigned long long source_offset, int* inverse, unsigned long long inverse_offset,
              unsigned int* status, unsigned long long status_offset, unsigned int ids, unsigned long long source_stride)
{
  wait_for_previous_launch();
  const unsigned int begin = blockIdx.x * PERMUTE_TILE;
  invert(source + source_offset, inverse + inverse_offset, status + status_offset, begin, min(begin + PERMUTE_TILE, ids), ids,
         source_stride);
}

// Clears and inverts in one block, for few ids.
extern "C" __global__ void __launch_bounds__(PERMUTE_GROUP)
expert_invert_few(const int* source, unsigned long long source_offset, int* inverse, unsigned long long inverse_offset,
                  unsigned int* status, unsigned long long status_offset, unsigned int ids, unsigned long long source_stride)
{
  wait_for_previous_launch();
  for (unsigned int i = threadIdx.x; i < ids; i += PERMUTE_GROUP) inverse[inverse_offset + i] = -1;
  __syncthreads(); // cleared before one is claimed
  invert(source + source_offset, inverse + inverse_offset, status + status_offset, 0, ids, ids, source_stride);
}

// A block sums ROW_BLOCK columns of y[token]: over the slots, in their order, weight * row.
extern "C" __global__ void __launch_bounds__(ROW_GROUP)
expert_combine(const x_t* rows, unsigned long long rows_offset, const int* inverse, unsigned long long inverse_offset,
               const float* topk_weights, unsigned long long topk_weights_offset, x_t* y, unsigned long long y_offset,
               unsigned int tokens, unsigned int topk, unsigned int hidden, unsigned long long row_stride,
               unsigned long long column_stride, unsigned long long token_stride, unsigned long long slot_stride,
               unsigned long long y_stride)
{
  wait_for_previous_launch();
  const share_t share = share_of_block(hidden);
  const unsigned int token = share.token, end = share.end;
  if (token >= tokens) return;
  rows += rows_offset;
  y += y_offset;
  const bool pieces = column_stride == 1 && on_pieces(rows, row_stride) && on_pieces(y, y_stride);
  inverse += inverse_offset + (unsigned long long)token * topk;
  topk_weights += topk_weights_offset + token * token_stride;
  y += token * y_stride;
  unsigned int tail = share.begin;
  if (pieces) {
    tail = share.begin + (end - share.begin) / PIECE * PIECE;
    for (unsigned int j = share.begin + threadIdx.x * PIECE; j < tail; j += ROW_GROUP * PIECE) {
      float acc[PIECE] = {};
      for (unsigned int first = 0; first < topk; first += IN_FLIGHT) {
        piece_t piece[IN_FLIGHT];
        float weight[IN_FLIGHT];
        bool there[IN_FLIGHT];
#pragma unroll
        for (unsigned int u = 0; u < IN_FLIGHT; u++) {
          const int row = first + u < topk ? inverse[first + u] : -1;
          there[u] = row >= 0;
          if (there[u]) {
            piece[u].bits = *(const uint4*)(rows + row * row_stride + j);
            weight[u] = topk_weights[(first + u) * slot_stride];
          }
        }
#pragma unroll
        for (unsigned int u = 0; u < IN_FLIGHT; u++)
          if (there[u]) {
#pragma unroll
            for (unsigned int i = 0; i < PIECE; i++) acc[i] += weight[u] * to_float(piece[u].element[i]);
          }
      }
      piece_t sums;
#pragma unroll
      for (unsigned int i = 0; i < PIECE; i++) sums.element[i] = from_float(acc[i]);
      *(uint4*)(y + j) = sums.bits;
    }
  }
  for (unsigned int j = tail + threadIdx.x; j < end; j += ROW_GROUP) {
    float acc = 0.0f;
    for (unsigned int slot = 0; slot < topk; slot++) {
      const int row = inverse[slot];
      if (row >= 0) acc += topk_weights[slot * slot_stride] * to_float(rows[row * row_stride + j * column_stride]);
    }
    y[j] = from_float(acc);
  }
}
