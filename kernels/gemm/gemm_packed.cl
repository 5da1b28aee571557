/* Large products on devices with few wide cores: both operands packed into panels (panels.cl), then one work-item a group
 * computes tiles of MR x 32 in registers.
 *
 *   gemm_pack      a -> strips of MR rows, b -> strips of 32 columns, f32, k-major, zero-padded; one launch for both.
 *                  b's half may have been made beforehand (a prepared weight).
 *   gemm_packed    work-group (j, i, batch): b's strip j stays in cache while `strips_per_group` strips of a pass by
 *
 *                        strip j of b
 *                        k x 32, in L2                the tile's sums leave the registers every KC products, so that a long k
 *       strips of a    +--------------+               loses no more than a short one, and i8 stays exact; the epilogue (alpha,
 *       k x MR, each   |  MR x 32 d   |               c, bias, activation, rounding) reads the finished tile from L1
 *       from L2/L3     +--------------+
 *
 * Blocks of weights (blocks.cl) are not packed beforehand, unless as a prepared weight. They pass through memory once, as they lie:
 *
 *   gemm_blocks    work-group (j, i, batch): packs b's strip j into its own memory, KC of k at a time, and multiplies BLOCK_M rows of a with it
 *
 * Under swiglu a strip of b is 16 columns of the gate beside the same 16 of the value. A batch axis along which an operand
 * broadcasts is packed once. Tunables: MR, KC (panels.cl); strips_per_group comes from the planner (STRIPS at most).
 *
 * Macro                default  meaning
 * B_PANEL_IS_PRIVATE            gemm_blocks in place of gemm_packed
 * BLOCK_M              240      rows of a that share a strip of b in gemm_blocks, a multiple of MR
 *
 * Measured against the kernel without packing, CLBlast and the cpu device: README.md.
 */

__kernel __attribute__((reqd_work_group_size(1, 1, 1)))
void gemm_pack(__global const void* a, ulong a_offset, __global const void* b, ulong b_offset,
               __global float* a_panels, ulong a_panels_offset, __global uchar* b_panels, ulong b_panels_offset,
               uint m, uint n, uint k, uint swiglu, uint a_strips, uint b_strips, uint a_batches, uint a_inner, uint b_inner, uint k_block,
               ulong a_row, ulong a_col, ulong a_batch_outer, ulong a_batch_inner,
               ulong b_row, ulong b_col, ulong b_batch_outer, ulong b_batch_inner)
{
  uint strip = get_group_id(0);
  uint k_begin = get_group_id(1) * k_block, k_end = min(k, k_begin + k_block);
  bool is_a = strip < a_strips * a_batches;
  if (!is_a) strip -= a_strips * a_batches;
  uint strips = is_a ? a_strips : b_strips, batch = strip / strips, s = remainder_of(strip, strips, batch);
  uint outer = batch / (is_a ? a_inner : b_inner), inner = remainder_of(batch, is_a ? a_inner : b_inner, outer);
  float block[PACK_K * NR];
  for (uint k0 = k_begin; k0 < k_end; k0 += PACK_K) {
    uint count = min((uint)PACK_K, k_end - k0);
    __global float* panel;
    uint size;
    if (is_a) {
      ulong at = a_offset + outer * a_batch_outer + inner * a_batch_inner;
      pack_strip(a, at + (ulong)s * MR * a_row + k0 * a_col, min((uint)MR, m - s * MR), MR, a_row, a_col, count, block, MR, A_DTYPE);
      panel = a_panels + a_panels_offset + ((ulong)strip * k + k0) * MR;
      size = count * MR;
    } else {
      ulong at = b_offset + outer * b_batch_outer + inner * b_batch_inner;
      pack_b_panel(b, at, s, n, swiglu, b_row, b_col, k0, count, block);
      panel = (__global float*)(b_panels + b_panels_offset) + ((ulong)strip * k + k0) * NR;
      size = count * NR;
    }
    uint i = 0;
    for (; i + 16 <= size; i += 16) vstore16(vload16(0, block + i), 0, panel + i);
    for (; i < size; i++) panel[i] = block[i];
  }
}

#ifdef B_PANEL_IS_PRIVATE
#ifndef BLOCK_M
#define BLOCK_M 240
#endif

__kernel __attribute__((reqd_work_group_size(1, 1, 1)))
void gemm_blocks(__global const float* a_panels, ulong a_panels_offset, __global const void* b, ulong b_offset,
                 __global const void* c, ulong c_offset, __global const void* bias, ulong bias_offset,
                 __global void* d, ulong d_offset,
                 uint m, uint n, uint k, uint batch_inner, float alpha, float beta, uint has, uint activation,
                 ulong a_batch_outer, ulong a_batch_inner, ulong b_row, ulong b_col, ulong b_batch_outer, ulong b_batch_inner,
                 ulong c_row, ulong c_col, ulong c_batch_outer, ulong c_batch_inner, ulong bias_col,
                 ulong d_row, ulong d_col, ulong d_batch_outer, ulong d_batch_inner)
{
  uint j = get_group_id(0), outer = get_group_id(2) / batch_inner, inner = remainder_of(get_group_id(2), batch_inner, outer);
  uint first = get_group_id(1) * BLOCK_M, rows = min((uint)BLOCK_M, m - first), strips = (rows + MR - 1) / MR;
  __global const float* a_block = a_panels + a_panels_offset + outer * a_batch_outer + inner * a_batch_inner + (ulong)first * k;
  ulong b_at = b_offset + outer * b_batch_outer + inner * b_batch_inner;
  ulong c_at = c_offset + outer * c_batch_outer + inner * c_batch_inner;
  ulong d_at = d_offset + outer * d_batch_outer + inner * d_batch_inner;
  bool swiglu = activation == ACTIVATION_SWIGLU;
  uint columns = swiglu ? n / 2 : n, col = j * (swiglu ? 16 : 32);
  uint live = min(swiglu ? 16u : 32u, columns - col);
  float b_panel[KC * NR];
  sum_t tiles[BLOCK_M * NR];
  for (uint i = 0; i < strips * MR * 2; i++) vstore16((sum16_t)0, i, tiles);
  for (uint k0 = 0; k0 < k; k0 += KC) {
    uint count = min((uint)KC, k - k0);
    pack_b_panel(b, b_at, j, n, swiglu, b_row, b_col, k0, count, b_panel);
    for (uint s = 0; s < strips; s++) multiply_panels(a_block + ((ulong)s * k + k0) * MR, b_panel, count, tiles + s * MR * NR);
  }
  for (uint r = 0; r < rows; r++) {
    uint row = first + r;
    store_row(vload16(2 * r, tiles), vload16(2 * r + 1, tiles), alpha, beta, c, c_at + row * c_row + col * c_col, c_col,
              bias, bias_offset + col * bias_col, bias_col, has, activation, swiglu ? n / 2 : 16, d, d_at + row * d_row + col * d_col, d_col, live);
  }
}
#else
__kernel __attribute__((reqd_work_group_size(1, 1, 1)))
void gemm_packed(__global const float* a_panels, ulong a_panels_offset, __global const uchar* b_panels, ulong b_panels_offset,
                 __global const void* c, ulong c_offset, __global const void* bias, ulong bias_offset,
                 __global void* d, ulong d_offset,
                 uint m, uint n, uint k, uint strips_per_group, uint batch_inner, float alpha, float beta, uint has, uint activation,
                 ulong a_batch_outer, ulong a_batch_inner, ulong b_batch_outer, ulong b_batch_inner,
                 ulong c_row, ulong c_col, ulong c_batch_outer, ulong c_batch_inner, ulong bias_col,
                 ulong d_row, ulong d_col, ulong d_batch_outer, ulong d_batch_inner)
{
  uint j = get_group_id(0), outer = get_group_id(2) / batch_inner, inner = remainder_of(get_group_id(2), batch_inner, outer);
  uint strips = (m + MR - 1) / MR, begin = get_group_id(1) * strips_per_group, end = min(begin + strips_per_group, strips);
  __global const float* a_batch = a_panels + a_panels_offset + outer * a_batch_outer + inner * a_batch_inner;
  __global const float* b_panel = (__global const float*)(b_panels + b_panels_offset) + outer * b_batch_outer + inner * b_batch_inner + (ulong)j * k * NR;
  ulong c_at = c_offset + outer * c_batch_outer + inner * c_batch_inner;
  ulong d_at = d_offset + outer * d_batch_outer + inner * d_batch_inner;
  bool swiglu = activation == ACTIVATION_SWIGLU;
  uint columns = swiglu ? n / 2 : n, col = j * (swiglu ? 16 : 32);
  uint live = min(swiglu ? 16u : 32u, columns - col);
  for (uint s = begin; s < end; s++) {
    sum_t tile[MR * NR];
    for (uint r = 0; r < 2 * MR; r++) vstore16((sum16_t)0, r, tile);
    for (uint k0 = 0; k0 < k; k0 += KC)
      multiply_panels(a_batch + ((ulong)s * k + k0) * MR, b_panel + (ulong)k0 * NR, min((uint)KC, k - k0), tile);
    for (uint r = 0; r < min((uint)MR, m - s * MR); r++) {
      uint row = s * MR + r;
      store_row(vload16(2 * r, tile), vload16(2 * r + 1, tile), alpha, beta, c, c_at + row * c_row + col * c_col, c_col,
                bias, bias_offset + col * bias_col, bias_col, has, activation, swiglu ? n / 2 : 16, d, d_at + row * d_row + col * d_col, d_col, live);
    }
  }
}
#endif
