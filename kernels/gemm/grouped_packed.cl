/* Grouped products on devices with few wide cores: rows of a sorted by expert, b [experts, n, k].
 *
 *   grouped_pack   a -> strips of MR rows (panels.cl), which never mix two experts; checks the offsets
 *   grouped_gemm   work-group (j, block): finds the block's expert (routing.cl), packs 32 columns of its weights into its own
 *                  memory, KC of k at a time, and multiplies all strips of the block with them
 *
 *         b[e], 32 rows of k                      Weights pass through memory once and are never stored packed: with 64 rows an
 *         | pack KC at a time                     expert, writing packed weights would cost as much as the product.
 *         v
 *       b_panel  (work-item's own, L2)
 *         x  strips of a, up to BLOCK_M rows  ->  tiles (L1)  ->  epilogue, d
 *
 * The grid covers the worst case (ceil(rows / BLOCK_M) + experts blocks); blocks without rows end at once, those past the last
 * offset write zeros. Under swiglu a panel is 16 columns of the gate beside the same 16 of the value.
 *
 * Macro    default  meaning
 * BLOCK_M  128      rows of one expert that share a packed panel of b, a multiple of MR
 * (MR, KC: panels.cl; B_PANEL_IS_PRIVATE must be defined)
 *
 * Measured against the cpu device and the FMA peak: README.md.
 */
#ifndef BLOCK_M
#define BLOCK_M 128
#endif

__kernel __attribute__((reqd_work_group_size(1, 1, 1)))
void grouped_pack(__global const void* a, ulong a_offset, __global const int* routing, ulong routing_offset,
                  __global float* a_panels, ulong a_panels_offset, __global uint* status, ulong status_offset,
                  uint rows, uint experts, uint capacity, uint masked, uint k,
                  ulong a_expert, ulong a_row, ulong a_col)
{
  routing += routing_offset;
  if (get_group_id(0) == 0) check_routing(routing, rows, experts, capacity, masked, status + status_offset);
  Rows r;
  find_rows(routing, rows, experts, capacity, masked, get_group_id(0), MR, &r);
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
  Rows r;
  find_rows(routing + routing_offset, rows, experts, capacity, masked, get_group_id(1), BLOCK_M, &r);
  bool swiglu = activation == ACTIVATION_SWIGLU;
  uint columns = swiglu ? n / 2 : n, col = get_group_id(0) * (swiglu ? 16 : 32), live = min(swiglu ? 16u : 32u, columns - col);
  ulong d_at = d_offset + (masked ? r.expert * d_expert : r.base * d_row) + col * d_col;
  uint strips = (r.end - r.begin + MR - 1) / MR;
  float b_panel[KC * NR];
  sum_t tiles[BLOCK_M * NR];
  for (uint i = 0; i < strips * MR * 2; i++) vstore16((sum16_t)0, i, tiles);
  for (uint k0 = 0; k0 < k && strips != 0; k0 += KC) {
    uint count = min((uint)KC, k - k0);
    pack_b_panel(b, b_offset + r.expert * b_expert, get_group_id(0), n, swiglu, b_col, b_row, k0, count, b_panel);
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
