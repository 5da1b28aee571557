/* Products on devices with many narrow lanes: tiles of a and b in local memory, a register tile for each work-item.
 *
 *            TILE_N columns of b               a work-group of GROUP x GROUP work-items computes a TILE x TILE tile of d:
 *          +----------------+                  TILE_K columns of a and rows of b at a time come to local memory, in f32
 *   TILE_K |    b_tile      |                  (i8: as they are, summed in i32), each work-item keeps PER_ITEM x PER_ITEM sums:
 *          +----------------+                  rows   y, y + GROUP, y + 2 GROUP, ...
 *   +----+ +----------------+                  columns x, x + GROUP, ..., so that neighbours touch neighbours.
 *   |    | |                |
 *   | a  | |     d          |                  Under swiglu the tile's columns alternate in strips of GROUP: even strips are gate,
 *   +----+ +----------------+                  odd ones up, and a work-item finds both in its own sums.
 *
 * Any strides, transposes and broadcasts; nothing is packed beforehand, so it needs no workspace. With GROUPED the rows
 * of a tile are those of one expert, found in the offsets or counts on the device.
 *
 * Macro     default  meaning
 * GROUP     16       work-items along each side of a work-group
 * PER_ITEM  4        sums of one work-item along each side, even
 * TILE_K    16       k that lie in local memory at once
 * GROUPED   0        1: grouped product
 *
 * Measured against CLBlast's tuned Xgemm in structure only; this repository has no GPU figures yet.
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

#if A_DTYPE == I8
typedef int item_t;
#define LOAD_ITEM(x, i, dtype) ((int)((__global const char*)x)[i])
#define MULTIPLY_ADD(a, b, sum) ((sum) + (a) * (b))
#define LOAD_WEIGHT(b, at, k, stride) LOAD_ITEM(b, (at) + (k) * (stride), B_DTYPE)
#else
typedef float item_t;
#if B_DTYPE >= 10
#define LOAD_WEIGHT(b, at, k, stride) load_weight((__global const uchar*)b + (at), k)
#else
#define LOAD_WEIGHT(b, at, k, stride) load_1(b, (at) + (k) * (stride), B_DTYPE)
#endif
#define LOAD_ITEM(x, i, dtype) load_1(x, i, dtype)
#define MULTIPLY_ADD(a, b, sum) fma(a, b, sum)
#endif

/* The tile's column `x` in b, and whether it exists. */
inline bool column_of(uint x, uint tile, uint n, uint swiglu, uint* column)
{
  if (!swiglu) {
    *column = tile * TILE + x;
    return *column < n;
  }
  uint strip = x / GROUP, in_half = tile * (TILE / 2) + strip / 2 * GROUP + x % GROUP;
  *column = (strip % 2 ? n / 2 : 0) + in_half;
  return in_half < n / 2;
}

/* Sums of one tile: rows `row0` to `rows` of the a that begins at a_at, by columns of the b that begins at b_at. */
inline void multiply_tile(__global const void* a, ulong a_at, ulong a_row, ulong a_col, __global const void* b, ulong b_at, ulong b_row,
                          ulong b_col, uint row0, uint rows, uint tile, uint n, uint k, uint swiglu,
                          __local item_t (*a_tile)[TILE + 1], __local item_t (*b_tile)[TILE + 1], item_t (*sums)[PER_ITEM])
{
  uint x = get_local_id(0), y = get_local_id(1), item = y * GROUP + x;
  for (uint i = 0; i < PER_ITEM; i++)
    for (uint j = 0; j < PER_ITEM; j++) sums[i][j] = 0;
  for (uint k0 = 0; k0 < k; k0 += TILE_K) {
    /* Neighbouring work-items load along the dimension that is contiguous. */
    for (uint e = item; e < TILE * TILE_K; e += ITEMS) {
      uint r = a_col == 1 ? e / TILE_K : e % TILE, kk = a_col == 1 ? e % TILE_K : e / TILE;
      bool exists = row0 + r < rows && k0 + kk < k;
      a_tile[kk][r] = exists ? LOAD_ITEM(a, a_at + (row0 + r) * a_row + (k0 + kk) * a_col, A_DTYPE) : 0;
    }
    for (uint e = item; e < TILE * TILE_K; e += ITEMS) {
      uint c = b_row == 1 ? e / TILE_K : e % TILE, kk = b_row == 1 ? e % TILE_K : e / TILE, column;
      bool exists = column_of(c, tile, n, swiglu, &column) && k0 + kk < k;
      b_tile[kk][c] = exists ? LOAD_WEIGHT(b, b_at + column * b_col, k0 + kk, b_row) : 0;
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    for (uint kk = 0; kk < TILE_K; kk++) {
      item_t bs[PER_ITEM];
      for (uint j = 0; j < PER_ITEM; j++) bs[j] = b_tile[kk][j * GROUP + x];
      for (uint i = 0; i < PER_ITEM; i++) {
        item_t av = a_tile[kk][i * GROUP + y];
        for (uint j = 0; j < PER_ITEM; j++) sums[i][j] = MULTIPLY_ADD(av, bs[j], sums[i][j]);
      }
    }
    barrier(CLK_LOCAL_MEM_FENCE);
  }
}

#if !GROUPED
__kernel __attribute__((reqd_work_group_size(GROUP, GROUP, 1)))
void gemm_tiled(__global const void* a, ulong a_offset, __global const void* b, ulong b_offset,
                __global const void* c, ulong c_offset, __global const void* bias, ulong bias_offset, __global void* d, ulong d_offset,
                uint m, uint n, uint k, uint batch_inner, float alpha, float beta, uint has, uint activation,
                ulong a_row, ulong a_col, ulong a_batch_outer, ulong a_batch_inner,
                ulong b_row, ulong b_col, ulong b_batch_outer, ulong b_batch_inner,
                ulong c_row, ulong c_col, ulong c_batch_outer, ulong c_batch_inner, ulong bias_col,
                ulong d_row, ulong d_col, ulong d_batch_outer, ulong d_batch_inner)
{
  __local item_t a_tile[TILE_K][TILE + 1], b_tile[TILE_K][TILE + 1];
  item_t sums[PER_ITEM][PER_ITEM];
  uint outer = get_group_id(2) / batch_inner, inner = remainder_of(get_group_id(2), batch_inner, outer);
  bool swiglu = activation == ACTIVATION_SWIGLU;
  uint row0 = get_group_id(1) * TILE, tile = get_group_id(0);
  multiply_tile(a, a_offset + outer * a_batch_outer + inner * a_batch_inner, a_row, a_col,
                b, b_offset + outer * b_batch_outer + inner * b_batch_inner, b_row, b_col, row0, m, tile, n, k, swiglu, a_tile, b_tile, sums);
  c_offset += outer * c_batch_outer + inner * c_batch_inner;
  d_offset += outer * d_batch_outer + inner * d_batch_inner;
  for (uint i = 0; i < PER_ITEM; i++) {
    uint row = row0 + i * GROUP + get_local_id(1);
    if (row >= m) continue;
    for (uint j = 0; j < PER_ITEM; j += swiglu ? 2 : 1) {
      uint column;
      if (!column_of(j * GROUP + get_local_id(0), tile, n, swiglu, &column)) continue;
      store_sum(sums[i][j], sums[i][min(j + 1, PER_ITEM - 1u)], alpha, beta, c, c_offset + row * c_row + column * c_col, c_col,
                bias, bias_offset + column * bias_col, bias_col, has, activation, n / 2, d, d_offset + row * d_row + column * d_col);
    }
  }
}
#else
__kernel __attribute__((reqd_work_group_size(GROUP, GROUP, 1)))
void grouped_tiled(__global const void* a, ulong a_offset, __global const void* b, ulong b_offset,
                   __global const int* routing, ulong routing_offset, __global void* d, ulong d_offset,
                   __global uint* status, ulong status_offset,
                   uint rows, uint experts, uint capacity, uint masked, uint n, uint k, uint activation,
                   ulong a_expert, ulong a_row, ulong a_col, ulong b_expert, ulong b_row, ulong b_col,
                   ulong d_expert, ulong d_row, ulong d_col)
{
  __local item_t a_tile[TILE_K][TILE + 1], b_tile[TILE_K][TILE + 1];
  item_t sums[PER_ITEM][PER_ITEM];
  routing += routing_offset;
  bool swiglu = activation == ACTIVATION_SWIGLU;
  uint tile = get_group_id(0);
  if (get_group_id(0) == 0 && get_group_id(1) == 0 && get_local_id(0) == 0 && get_local_id(1) == 0)
    check_routing(routing, rows, experts, capacity, masked, status + status_offset);
  /* One item walks the experts for all. */
  __local Rows found;
  Rows r;
  if (get_local_id(0) == 0 && get_local_id(1) == 0) {
    find_rows(routing, rows, experts, capacity, masked, get_group_id(1), TILE, &r);
    found = r;
  }
  barrier(CLK_LOCAL_MEM_FENCE);
  r = found;
  ulong a_at = a_offset + (masked ? r.expert * a_expert : r.base * a_row);
  ulong d_at = d_offset + (masked ? r.expert * d_expert : r.base * d_row);
  if (r.begin < r.end)
    multiply_tile(a, a_at, a_row, a_col, b, b_offset + r.expert * b_expert, b_col, b_row, r.begin, r.end, tile, n, k, swiglu, a_tile, b_tile, sums);
  for (uint i = 0; i < PER_ITEM; i++) {
    uint row = r.begin + i * GROUP + get_local_id(1);
    if (row >= r.limit) continue;
    for (uint j = 0; j < PER_ITEM; j += swiglu ? 2 : 1) {
      uint column;
      if (!column_of(j * GROUP + get_local_id(0), tile, n, swiglu, &column)) continue;
      ulong at = d_at + row * d_row + column * d_col;
      if (row >= r.end) store_1(d, at, 0.0f, D_DTYPE);
      else store_sum(sums[i][j], sums[i][min(j + 1, PER_ITEM - 1u)], 1.0f, 0.0f, 0, 0, 0, 0, 0, 0, 0, activation, n / 2, d, at);
    }
  }
}
#endif
