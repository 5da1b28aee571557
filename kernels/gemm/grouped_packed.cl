#ifndef BLOCK_M
#define BLOCK_M 64
#endif

/* A block of rows of one expert. `begin` and `end` count from the expert's first row in a and d, which is row `base`; rows from
 * `end` on to `limit` belong to no product and are zeroed. `strip` is the number of the block's first panel of a. */
typedef struct {
  uint expert, base, begin, end, limit, strip;
} Rows;

/* Finds the block of this number, `size` rows each (a multiple of MR, or MR), by walking the experts; works for whatever the
 * device holds: offsets that descend or pass the end are clamped.
 *
 *   offsets: blocks of expert 0, blocks of expert 1, ..., blocks of the rows past the last offset (expert == experts)
 *   counts:  ceil(capacity / size) blocks for each expert
 *
 * Panels of an expert begin at strip base / MR + expert: experts never share one. */
inline Rows find_rows(__global const int* routing, uint rows, uint experts, uint capacity, uint masked, uint block, uint size)
{
  Rows found;
  if (masked) {
    uint blocks = (capacity + size - 1) / size;
    found.expert = block / blocks;
    found.base = found.expert * capacity;
    found.begin = block % blocks * size;
    uint count = (uint)clamp(routing[found.expert], 0, (int)capacity);
    found.limit = min(found.begin + size, capacity);
    found.end = clamp(count, found.begin, found.limit);
    found.strip = found.expert * ((capacity + MR - 1) / MR) + found.begin / MR;
    return found;
  }
  uint base = 0, expert = 0;
  for (; expert < experts; expert++) {
    uint next = (uint)clamp(routing[expert + 1], (int)base, (int)rows), blocks = (next - base + size - 1) / size;
    if (block < blocks) {
      found.expert = expert;
      found.base = base;
      found.begin = block * size;
      found.end = found.limit = min(found.begin + size, next - base);
      found.strip = base / MR + expert + found.begin / MR;
      return found;
    }
    block -= blocks;
    base = next;
  }
  found.expert = experts;
  found.base = base;
  found.begin = found.end = min(block * size, rows - base);
  found.limit = min(found.begin + size, rows - base);
  found.strip = 0;
  return found;
}

__kernel __attribute__((reqd_work_group_size(1, 1, 1)))
void grouped_pack(__global const void* a, ulong a_offset, __global const int* routing, ulong routing_offset,
                  __global float* a_panels, ulong a_panels_offset, __global uint* status, ulong status_offset,
                  uint rows, uint experts, uint capacity, uint masked, uint k,
                  ulong a_expert, ulong a_row, ulong a_col)
{
  routing += routing_offset;
  if (get_group_id(0) == 0) {
    bool wrong = !masked && routing[0] != 0;
    for (uint e = 0; e < experts; e++)
      wrong |= masked ? routing[e] < 0 || routing[e] > (int)capacity : routing[e + 1] < routing[e] || routing[e + 1] > (int)rows;
    if (wrong) status[status_offset] = 1;
  }
  Rows r = find_rows(routing, rows, experts, capacity, masked, get_group_id(0), MR);
  if (r.begin == r.end) return;
  ulong at = a_offset + (masked ? r.expert * a_expert : r.base * a_row) + r.begin * a_row;
  float block[PACK_K * MR];
  __global float* panel = a_panels + a_panels_offset + (ulong)r.strip * k * MR;
  for (uint k0 = 0; k0 < k; k0 += PACK_K) {
    uint count = min((uint)PACK_K, k - k0);
    pack_strip(a, at + k0 * a_col, r.end - r.begin, MR, a_row, a_col, count, block, MR, A_DTYPE);
    for (uint i = 0; i < count * MR; i += 4) vstore4(vload4(0, block + i), 0, panel + k0 * MR + i);
  }
}

__kernel __attribute__((reqd_work_group_size(1, 1, 1)))
void grouped_gemm(__global const float* a_panels, ulong a_panels_offset, __global const void* b, ulong b_offset,
                  __global const int* routing, ulong routing_offset, __global void* d, ulong d_offset,
                  uint rows, uint experts, uint capacity, uint masked, uint n, uint k, uint activation,
                  ulong b_expert, ulong b_row, ulong b_col, ulong d_expert, ulong d_row, ulong d_col)
{
  Rows r = find_rows(routing + routing_offset, rows, experts, capacity, masked, get_group_id(1), BLOCK_M);
  bool swiglu = activation == ACTIVATION_SWIGLU;
  uint columns = swiglu ? n / 2 : n, col = get_group_id(0) * (swiglu ? 16 : 32), live = min(swiglu ? 16u : 32u, columns - col);
  ulong d_at = d_offset + (masked ? r.expert * d_expert : r.base * d_row) + col * d_col;
  uint strips = (r.end - r.begin + MR - 1) / MR;
  float b_panel[KC * NR];
  sum_t tiles[BLOCK_M * NR];
  for (uint i = 0; i < strips * MR * 2; i++) vstore16((sum16_t)0, i, tiles);
  for (uint k0 = 0; k0 < k && strips != 0; k0 += KC) {
    uint count = min((uint)KC, k - k0);
    pack_b_panel(b, b_offset + r.expert * b_expert + k0 * b_col, get_group_id(0), n, swiglu, b_col, b_row, count, b_panel, B_DTYPE);
    for (uint s = 0; s < strips; s++)
      multiply_panels(a_panels + a_panels_offset + ((ulong)(r.strip + s) * k + k0) * MR, b_panel, count, tiles + s * MR * NR);
  }
  for (uint row = r.begin; row < r.end; row++) {
    uint i = row - r.begin;
    store_row(vload16(2 * i, tiles), vload16(2 * i + 1, tiles), 1.0f, 0.0f, 0, 0, 0, 0, 0, 0, 0, activation, 16,
              d, d_at + row * d_row, d_col, live);
  }
  for (uint row = r.end; row < r.limit; row++) {
    scatter_16(d, d_at + row * d_row, d_col, min(live, 16u), (float16)0.0f, D_DTYPE);
    if (live > 16) scatter_16(d, d_at + row * d_row + 16 * d_col, d_col, live - 16, (float16)0.0f, D_DTYPE);
  }
}
