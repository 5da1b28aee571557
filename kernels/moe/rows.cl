// expert_scatter and expert_gather: token rows into expert order, and their weighted sum back into token order.
//
//   topk_ids [tokens, topk]      expert_offsets        source [tokens * topk]     inverse [tokens * topk]
//     token 0:  2  0              expert 0: rows 0..2    row 0: 1 (token 0, slot 1)   (0, 0): row 3
//     token 1:  0  1      ->      expert 1: rows 2..3    row 1: 2 (token 1, slot 0)   (0, 1): row 0
//     token 2: -1  2              expert 2: rows 3..5    row 2: 3 ...                 (2, 0): none, -1
//                                                        row 5: -1 (taken by no id)
//
// A counting sort, stable because ids are placed in their order: count the ids of each expert, add the counts up, give each id its expert's
// next row. Few ids take one launch (expert_permute); many are cut into tiles: expert_count (a tile each), expert_scan
// (first row of every tile and expert), expert_place (a tile each). Then expert_copy_rows moves each token's row to
// its topk places, reading it once from memory. On the way back expert_combine adds the rows of each token in slot order, in f32: with the
// inverse map at hand no two work-items write one element, so there are no atomics and the sum has one order.
// Counters live in local memory; with groups of one work-item a tile is counted and placed in a plain loop, with more
// an id finds its place among the equal ids of its batch by comparing with all of them.
//
// Ids and sources come from the device: one that is out of range is skipped and sets the status word.
//
// Constants (the planner's)
//   X_DTYPE           0 f32, 1 f16, 2 bf16: of x and y
//   ROWS_DTYPE        likewise, of the rows that are combined
//   EXPERTS_CAPACITY  at least the number of experts: sizes the counters
// Tunables
//   PERMUTE_GROUP     work-items that share a tile of ids
//   PERMUTE_TILE      ids of a tile
//   ROW_GROUP         work-items that share a block of columns
//   ROW_VECTOR        elements a work-item moves at once: 4, 8 or 16
//   ROW_UNROLL        vectors that a work-item moves or sums at once
//   ROW_BLOCK         columns of a block
//   STREAM_KIB        KiB of rows from which on they are stored past the caches; 0: never
//
// Measured: README.md.

#ifndef X_DTYPE
#define X_DTYPE 0
#endif
#ifndef ROWS_DTYPE
#define ROWS_DTYPE X_DTYPE
#endif
#ifndef EXPERTS_CAPACITY
#define EXPERTS_CAPACITY 512
#endif
#ifndef PERMUTE_GROUP
#define PERMUTE_GROUP 1
#endif
#ifndef PERMUTE_TILE
#define PERMUTE_TILE 4096
#endif
#ifndef ROW_GROUP
#define ROW_GROUP 1
#endif
#ifndef ROW_VECTOR
#define ROW_VECTOR 16
#endif
#ifndef ROW_UNROLL
#define ROW_UNROLL 8
#endif
#ifndef ROW_BLOCK
#define ROW_BLOCK 2048
#endif
#ifndef STREAM_KIB
#define STREAM_KIB 0
#endif

#define STATUS_BAD_EXPERT 1u
#define STATUS_BAD_SOURCE 2u

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
typedef JOIN(float, ROW_VECTOR) vector_t;
typedef JOIN(uint, ROW_VECTOR) vector_bits_t;

// x is only moved, so it is held as bits
#if X_DTYPE == 0
typedef uint x_t;
typedef JOIN(uint, ROW_VECTOR) x_vector_t;
#else
typedef ushort x_t;
typedef JOIN(ushort, ROW_VECTOR) x_vector_t;
#endif

#if ROWS_DTYPE == 0
typedef float row_t;
#elif ROWS_DTYPE == 1
typedef half row_t;
#else
typedef ushort row_t;
#endif

inline float row_load(__global const row_t* rows)
{
#if ROWS_DTYPE == 0
  return *rows;
#elif ROWS_DTYPE == 1
  return vload_half(0, rows);
#else
  return as_float((uint)*rows << 16);
#endif
}

inline vector_t row_load_vector(__global const row_t* rows)
{
#if ROWS_DTYPE == 0
  return JOIN(vload, ROW_VECTOR)(0, rows);
#elif ROWS_DTYPE == 1
  return JOIN(vload_half, ROW_VECTOR)(0, rows);
#else
  return JOIN(as_float, ROW_VECTOR)(JOIN(convert_uint, ROW_VECTOR)(JOIN(vload, ROW_VECTOR)(0, rows)) << 16);
#endif
}

// Rounds to nearest even; a NaN keeps its sign and stays one.
inline void y_store(float v, __global x_t* y)
{
#if X_DTYPE == 0
  *y = as_uint(v);
#elif X_DTYPE == 1
  vstore_half_rte(v, 0, (__global half*)y);
#else
  const uint u = as_uint(v);
  *y = isnan(v) ? (ushort)(u >> 16 | 0x40u) : (ushort)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
#endif
}

inline void y_store_vector(vector_t v, __global x_t* y)
{
#if X_DTYPE == 0
  JOIN(vstore, ROW_VECTOR)(v, 0, (__global float*)y);
#elif X_DTYPE == 1
  JOIN(JOIN(vstore_half, ROW_VECTOR), _rte)(v, 0, (__global half*)y);
#else
  const vector_bits_t u = JOIN(as_uint, ROW_VECTOR)(v);
  const vector_bits_t rounded = (u + 0x7fffu + (u >> 16 & 1u)) >> 16;
  JOIN(vstore, ROW_VECTOR)(JOIN(convert_ushort, ROW_VECTOR)(select(rounded, u >> 16 | 0x40u, isnan(v))), 0, y);
#endif
}

// Whether `elements` that are stored once should pass the caches by: an ordinary store first reads the line that it then
// overwrites whole. Not if they are few, since the next kernel may find those in a cache, nor if they lie across vectors. A compiler
// that knows no such stores makes ordinary ones.
inline bool streams(ulong elements, __global const x_t* to, ulong row_stride)
{
#if STREAM_KIB > 0
  return elements * sizeof(x_t) >= (ulong)STREAM_KIB * 1024 && (ulong)to % sizeof(x_vector_t) == 0 && row_stride % ROW_VECTOR == 0;
#else
  return false;
#endif
}

inline void row_store(x_vector_t v, __global x_t* to, bool stream)
{
#if STREAM_KIB > 0 && defined(__has_builtin)
#if __has_builtin(__builtin_nontemporal_store)
  if (stream) {
    __builtin_nontemporal_store(v, (__global x_vector_t*)to);
    return;
  }
#endif
#endif
  JOIN(vstore, ROW_VECTOR)(v, 0, to);
}

inline int expert_of(__global const int* topk_ids, ulong i, uint topk, uint experts, ulong token_stride,
                     ulong slot_stride, __global uint* status)
{
  const int id = topk_ids[i / topk * token_stride + i % topk * slot_stride];
  if (id < -1 || id >= (int)experts) {
    atomic_or(status, STATUS_BAD_EXPERT);
    return -1;
  }
  return id;
}

// counts[e] = how many of the ids begin..end name expert e.
inline void count_experts(__local uint* counts, __global const int* topk_ids, uint begin, uint end, uint topk,
                          uint experts, ulong token_stride, ulong slot_stride, __global uint* status)
{
  const uint lid = get_local_id(0);
  for (uint e = lid; e < experts; e += PERMUTE_GROUP) counts[e] = 0;
  barrier(CLK_LOCAL_MEM_FENCE);
  for (uint i = begin + lid; i < end; i += PERMUTE_GROUP) {
    const int e = expert_of(topk_ids, i, topk, experts, token_stride, slot_stride, status);
#if PERMUTE_GROUP == 1
    if (e >= 0) counts[e]++;
#else
    if (e >= 0) atomic_inc(&counts[e]); // a count does not depend on the order
#endif
  }
  barrier(CLK_LOCAL_MEM_FENCE);
}

// Gives each id its row: the next free one of its expert, in the order of the ids.
inline void place_ids(__local uint* next_row, __local int* tile, __global const int* topk_ids, __global int* source,
                      __global int* inverse, uint begin, uint end, uint topk, uint experts, ulong token_stride,
                      ulong slot_stride, __global uint* status)
{
#if PERMUTE_GROUP == 1
  for (uint i = begin; i < end; i++) {
    const int e = expert_of(topk_ids, i, topk, experts, token_stride, slot_stride, status);
    int row = -1;
    if (e >= 0) {
      row = next_row[e]++;
      source[row] = i;
    }
    inverse[i] = row;
  }
#else
  const uint lid = get_local_id(0);
  for (uint first = begin; first < end; first += PERMUTE_GROUP) {
    const uint i = first + lid;
    int e = -1;
    if (i < end) e = expert_of(topk_ids, i, topk, experts, token_stride, slot_stride, status);
    tile[lid] = e;
    barrier(CLK_LOCAL_MEM_FENCE);
    uint before = 0, after = 0;
    for (uint o = 0; o < PERMUTE_GROUP; o++) {
      const uint same = tile[o] == e;
      before += same && o < lid;
      after += same && o > lid;
    }
    int row = -1;
    if (e >= 0) {
      row = next_row[e] + before;
      source[row] = i;
    }
    if (i < end) inverse[i] = row;
    barrier(CLK_LOCAL_MEM_FENCE);
    if (e >= 0 && after == 0) next_row[e] = row + 1; // the last of its expert in this tile
    barrier(CLK_LOCAL_MEM_FENCE);
  }
#endif
}

// First rows of the experts from their counts; both in `counts`, in place. Few experts: one work-item adds them up.
inline void scan_experts(__local uint* counts, __global int* expert_offsets, uint experts)
{
  if (get_local_id(0) == 0) {
    uint row = 0;
    for (uint e = 0; e < experts; e++) {
      const uint count = counts[e];
      counts[e] = row;
      expert_offsets[e] = row;
      row += count;
    }
    expert_offsets[experts] = row;
  }
  barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE);
}

// The whole permutation in one work-group, for few ids.
__kernel __attribute__((reqd_work_group_size(PERMUTE_GROUP, 1, 1)))
void expert_permute(__global const int* topk_ids, ulong topk_ids_offset, __global int* expert_offsets,
                    ulong expert_offsets_offset, __global int* source, ulong source_offset, __global int* inverse,
                    ulong inverse_offset, __global uint* status, ulong status_offset, uint tokens, uint topk,
                    uint experts, ulong token_stride, ulong slot_stride)
{
  __local uint counts[EXPERTS_CAPACITY];
  __local int tile[PERMUTE_GROUP];
  topk_ids += topk_ids_offset;
  expert_offsets += expert_offsets_offset;
  source += source_offset;
  inverse += inverse_offset;
  status += status_offset;
  const uint ids = tokens * topk;
  count_experts(counts, topk_ids, 0, ids, topk, experts, token_stride, slot_stride, status);
  scan_experts(counts, expert_offsets, experts);
  place_ids(counts, tile, topk_ids, source, inverse, 0, ids, topk, experts, token_stride, slot_stride, status);
  for (uint r = expert_offsets[experts] + get_local_id(0); r < ids; r += PERMUTE_GROUP) source[r] = -1;
}

// For many ids: tiles of PERMUTE_TILE. tile_rows [tiles, experts] holds counts, then first rows.
__kernel __attribute__((reqd_work_group_size(PERMUTE_GROUP, 1, 1)))
void expert_count(__global const int* topk_ids, ulong topk_ids_offset, __global uint* tile_rows, ulong tile_rows_offset,
                  __global uint* status, ulong status_offset, uint tokens, uint topk, uint experts, ulong token_stride,
                  ulong slot_stride)
{
  __local uint counts[EXPERTS_CAPACITY];
  const uint tile = get_group_id(0), begin = tile * PERMUTE_TILE;
  const uint end = min(begin + PERMUTE_TILE, tokens * topk);
  count_experts(counts, topk_ids + topk_ids_offset, begin, end, topk, experts, token_stride, slot_stride,
                status + status_offset);
  tile_rows += tile_rows_offset + (ulong)tile * experts;
  for (uint e = get_local_id(0); e < experts; e += PERMUTE_GROUP) tile_rows[e] = counts[e];
}

__kernel __attribute__((reqd_work_group_size(PERMUTE_GROUP, 1, 1)))
void expert_scan(__global uint* tile_rows, ulong tile_rows_offset, __global int* expert_offsets,
                 ulong expert_offsets_offset, uint tiles, uint experts)
{
  __local uint counts[EXPERTS_CAPACITY];
  tile_rows += tile_rows_offset;
  const uint lid = get_local_id(0);
  for (uint e = lid; e < experts; e += PERMUTE_GROUP) {
    uint count = 0;
    for (uint t = 0; t < tiles; t++) count += tile_rows[(ulong)t * experts + e];
    counts[e] = count;
  }
  barrier(CLK_LOCAL_MEM_FENCE);
  scan_experts(counts, expert_offsets + expert_offsets_offset, experts);
  for (uint e = lid; e < experts; e += PERMUTE_GROUP) {
    uint row = counts[e];
    for (uint t = 0; t < tiles; t++) {
      const uint count = tile_rows[(ulong)t * experts + e];
      tile_rows[(ulong)t * experts + e] = row;
      row += count;
    }
  }
}

__kernel __attribute__((reqd_work_group_size(PERMUTE_GROUP, 1, 1)))
void expert_place(__global const int* topk_ids, ulong topk_ids_offset, __global const uint* tile_rows,
                  ulong tile_rows_offset, __global const int* expert_offsets, ulong expert_offsets_offset,
                  __global int* source, ulong source_offset, __global int* inverse, ulong inverse_offset,
                  __global uint* status, ulong status_offset, uint tokens, uint topk, uint experts, ulong token_stride,
                  ulong slot_stride)
{
  __local uint next_row[EXPERTS_CAPACITY];
  __local int ids_of_tile[PERMUTE_GROUP];
  const uint tile = get_group_id(0), begin = tile * PERMUTE_TILE;
  const uint end = min(begin + PERMUTE_TILE, tokens * topk);
  tile_rows += tile_rows_offset + (ulong)tile * experts;
  source += source_offset;
  for (uint e = get_local_id(0); e < experts; e += PERMUTE_GROUP) next_row[e] = tile_rows[e];
  barrier(CLK_LOCAL_MEM_FENCE);
  place_ids(next_row, ids_of_tile, topk_ids + topk_ids_offset, source, inverse + inverse_offset, begin, end, topk,
            experts, token_stride, slot_stride, status + status_offset);
  const uint rows = expert_offsets[expert_offsets_offset + experts];
  for (uint r = max(begin, rows) + get_local_id(0); r < end; r += PERMUTE_GROUP) source[r] = -1;
}

// Work-group (block, token) copies ROW_BLOCK columns of x[token] to the token's rows, and zeroes those of its share
// of the rows that no id took. A few vectors of the token go to all its rows before the next few are read: as many
// streams of stores as there are slots.
__kernel __attribute__((reqd_work_group_size(ROW_GROUP, 1, 1)))
void expert_copy_rows(__global const x_t* x, ulong x_offset, __global const int* inverse, ulong inverse_offset,
                      __global const int* expert_offsets, ulong expert_offsets_offset, __global x_t* rows,
                      ulong rows_offset, uint tokens, uint topk, uint experts, uint hidden, ulong token_stride,
                      ulong column_stride, ulong row_stride)
{
  const uint token = get_group_id(1), lid = get_local_id(0), step = ROW_VECTOR * ROW_UNROLL;
  const uint begin = get_group_id(0) * ROW_BLOCK, end = min(begin + ROW_BLOCK, hidden);
  const uint whole = begin + (end - begin) / ROW_VECTOR * ROW_VECTOR;
  x += x_offset + token * token_stride;
  rows += rows_offset;
  inverse += inverse_offset + (ulong)token * topk;
  const bool stream = streams((ulong)tokens * topk * hidden, rows, row_stride);
  uint tail = begin;
  if (column_stride == 1) {
    const uint unrolled = begin + (end - begin) / step * step;
    for (uint j = begin + lid * step; j < unrolled; j += ROW_GROUP * step) {
      x_vector_t v[ROW_UNROLL];
#pragma unroll
      for (uint u = 0; u < ROW_UNROLL; u++) v[u] = JOIN(vload, ROW_VECTOR)(0, x + j + u * ROW_VECTOR);
      for (uint slot = 0; slot < topk; slot++) {
        const int row = inverse[slot];
        if (row < 0) continue;
        __global x_t* to = rows + row * row_stride + j;
#pragma unroll
        for (uint u = 0; u < ROW_UNROLL; u++) row_store(v[u], to + u * ROW_VECTOR, stream);
      }
    }
    for (uint j = unrolled + lid * ROW_VECTOR; j < whole; j += ROW_GROUP * ROW_VECTOR) {
      const x_vector_t v = JOIN(vload, ROW_VECTOR)(0, x + j);
      for (uint slot = 0; slot < topk; slot++) {
        const int row = inverse[slot];
        if (row >= 0) row_store(v, rows + row * row_stride + j, stream);
      }
    }
    tail = whole;
  }
  for (uint j = tail + lid; j < end; j += ROW_GROUP) {
    const x_t v = x[j * column_stride];
    for (uint slot = 0; slot < topk; slot++) {
      const int row = inverse[slot];
      if (row >= 0) rows[row * row_stride + j] = v;
    }
  }
  const uint used = expert_offsets[expert_offsets_offset + experts];
  for (uint row = max(token * topk, used); row < (token + 1) * topk; row++) {
    __global x_t* to = rows + row * row_stride;
    for (uint j = begin + lid * ROW_VECTOR; j < whole; j += ROW_GROUP * ROW_VECTOR) row_store((x_vector_t)(0), to + j, stream);
    for (uint j = whole + lid; j < end; j += ROW_GROUP) to[j] = 0;
  }
}

__kernel __attribute__((reqd_work_group_size(PERMUTE_GROUP, 1, 1)))
void expert_clear_inverse(__global int* inverse, ulong inverse_offset, uint ids)
{
  const uint begin = get_group_id(0) * PERMUTE_TILE, end = min(begin + PERMUTE_TILE, ids);
  for (uint i = begin + get_local_id(0); i < end; i += PERMUTE_GROUP) inverse[inverse_offset + i] = -1;
}

inline void invert(__global const int* source, __global int* inverse, __global uint* status, uint begin, uint end,
                   uint ids, ulong source_stride)
{
  for (uint r = begin + get_local_id(0); r < end; r += PERMUTE_GROUP) {
    const int i = source[r * source_stride];
    if (i == -1) continue;
    // a row of the highest number wins where two claim one slot, whatever the order
    if (i < 0 || i >= (int)ids || atomic_max(&inverse[i], (int)r) != -1) atomic_or(status, STATUS_BAD_SOURCE);
  }
}

__kernel __attribute__((reqd_work_group_size(PERMUTE_GROUP, 1, 1)))
void expert_invert(__global const int* source, ulong source_offset, __global int* inverse, ulong inverse_offset,
                   __global uint* status, ulong status_offset, uint ids, ulong source_stride)
{
  const uint begin = get_group_id(0) * PERMUTE_TILE;
  invert(source + source_offset, inverse + inverse_offset, status + status_offset, begin,
         min(begin + PERMUTE_TILE, ids), ids, source_stride);
}

// Clears and inverts in one work-group, for few ids.
__kernel __attribute__((reqd_work_group_size(PERMUTE_GROUP, 1, 1)))
void expert_invert_few(__global const int* source, ulong source_offset, __global int* inverse, ulong inverse_offset,
                       __global uint* status, ulong status_offset, uint ids, ulong source_stride)
{
  for (uint i = get_local_id(0); i < ids; i += PERMUTE_GROUP) inverse[inverse_offset + i] = -1;
  barrier(CLK_GLOBAL_MEM_FENCE);
  invert(source + source_offset, inverse + inverse_offset, status + status_offset, 0, ids, ids, source_stride);
}

// Work-group (block, token): ROW_BLOCK columns of y[token] = sum over the slots, in their order, of weight * row.
__kernel __attribute__((reqd_work_group_size(ROW_GROUP, 1, 1)))
void expert_combine(__global const row_t* rows, ulong rows_offset, __global const int* inverse, ulong inverse_offset,
                    __global const float* topk_weights, ulong topk_weights_offset, __global x_t* y, ulong y_offset,
                    uint tokens, uint topk, uint hidden, ulong row_stride, ulong column_stride, ulong token_stride,
                    ulong slot_stride, ulong y_stride)
{
  const uint token = get_group_id(1), lid = get_local_id(0);
  const uint begin = get_group_id(0) * ROW_BLOCK, end = min(begin + ROW_BLOCK, hidden);
  rows += rows_offset;
  inverse += inverse_offset + (ulong)token * topk;
  topk_weights += topk_weights_offset + token * token_stride;
  y += y_offset + token * y_stride;
  uint tail = begin;
  if (column_stride == 1) {
    const uint step = ROW_VECTOR * ROW_UNROLL;
    tail = begin + (end - begin) / step * step;
    for (uint j = begin + lid * step; j < tail; j += ROW_GROUP * step) {
      vector_t acc[ROW_UNROLL];
#pragma unroll
      for (uint u = 0; u < ROW_UNROLL; u++) acc[u] = 0.0f;
      for (uint slot = 0; slot < topk; slot++) {
        const int row = inverse[slot];
        if (row < 0) continue;
        const float weight = topk_weights[slot * slot_stride];
        __global const row_t* from = rows + row * row_stride + j;
#pragma unroll
        for (uint u = 0; u < ROW_UNROLL; u++) acc[u] += weight * row_load_vector(from + u * ROW_VECTOR);
      }
#pragma unroll
      for (uint u = 0; u < ROW_UNROLL; u++) y_store_vector(acc[u], y + j + u * ROW_VECTOR);
    }
  }
  for (uint j = tail + lid; j < end; j += ROW_GROUP) {
    float acc = 0.0f;
    for (uint slot = 0; slot < topk; slot++) {
      const int row = inverse[slot];
      if (row >= 0) acc += topk_weights[slot * slot_stride] * row_load(rows + row * row_stride + j * column_stride);
    }
    y_store(acc, y + j);
  }
}
