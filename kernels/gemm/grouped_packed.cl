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
 * Up to FEW_ROWS rows of an expert take blocks of weights (blocks.cl) as dot products, eight columns at a time: packing costs more.
 *
 * The grid covers the worst case (ceil(rows / BLOCK_M) + experts blocks); blocks without rows end at once, those past the last
 * offset write zeros. Under swiglu a panel is 16 columns of the gate beside the same 16 of the value.
 *
 * Macro    default  meaning
 * BLOCK_M  128      rows of one expert that share a packed panel of b, a multiple of MR
 * FEW_ROWS 4        most rows that are multiplied by dot products
 * (MR, KC: panels.cl; B_PANEL_IS_PRIVATE must be defined)
 *
 * Measured against the cpu device and the FMA peak: README.md.
 */
#ifndef BLOCK_M
#define BLOCK_M 128
#endif
#ifndef FEW_ROWS
#define FEW_ROWS 4
#endif

#if B_DTYPE >= 10
/* k of one row of a that lie side by side at once */
#define ROW_K 4096
#define EACH_8(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
#define SUM_ZERO(i) float16 sum##i = 0.0f;
#define BLOCK_OF_COLUMN(i) __global const uchar* block##i = BLOCK_AT(b + min((uint)i, live - 1) * stride, k);
#define WEIGHTS(i, of, part) fma(float_quants(load_quants(block##i, group, part)), (float16)of.scale.s##i, (float16)of.offset.s##i)
#ifdef WHOLE_GROUPS
#define SUM_STEP(i) LOAD_GROUP(block##i, lo##i, hi##i) sum##i = fma(hi##i, x[1], fma(lo##i, x[0], sum##i));
#else
#define SUM_STEP(i) sum##i = fma(WEIGHTS(i, upper, 1), x[1], fma(WEIGHTS(i, lower, 0), x[0], sum##i));
#endif
#define SUM_STORE(i) sums[i] += sum_lanes(sum##i);

/* Adds the products of `count` k from k0 on of eight columns, of which `live` exist (the rest repeat the last), with a row of a. */
inline void dot_columns(__global const uchar* b, ulong stride, uint live, uint k0, uint count, const float16* x, float* sums)
{
  EACH_8(SUM_ZERO)
  for (uint k = k0; k < k0 + count; k += GROUP_WEIGHTS, x += 2) {
    EACH_8(BLOCK_OF_COLUMN)
#ifndef WHOLE_GROUPS
    uint group = GROUP_AT(k);
    Scales heads = load_heads(block0, block1, block2, block3, block4, block5, block6, block7);
    Scales lower = load_scales(heads, block0, block1, block2, block3, block4, block5, block6, block7, group, 0), upper = lower;
    if (B_DTYPE == Q6_K) upper = load_scales(heads, block0, block1, block2, block3, block4, block5, block6, block7, group, 1);
#endif
    EACH_8(SUM_STEP)
  }
  EACH_8(SUM_STORE)
}

/* The sums of a panel's columns (two strips of 16, of which `live` and `more` exist) with `rows` rows of the a panel, to tiles of zeros. */
inline void dot_panel(__global const uchar* b, __global const uchar* b_second, ulong stride, uint live, uint more, uint k,
                      __global const float* a_panel, uint rows, float* tiles)
{
  for (uint k0 = 0; k0 < k; k0 += ROW_K) {
    uint count = min((uint)ROW_K, k - k0);
    for (uint row = 0; row < rows; row++, tiles += NR) {
      float x[ROW_K] __attribute__((aligned(64)));
      for (uint kk = 0; kk < count; kk++) x[kk] = a_panel[(ulong)(k0 + kk) * MR + row];
      for (uint column = 0; column < live; column += 8)
        dot_columns(b + column * stride, stride, live - column, k0, count, (const float16*)x, tiles + column);
      for (uint column = 0; column < more; column += 8)
        dot_columns(b_second + column * stride, stride, more - column, k0, count, (const float16*)x, tiles + 16 + column);
    }
    tiles -= rows * NR;
  }
}
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
#if B_DTYPE >= 10
  if (r.end - r.begin <= FEW_ROWS && strips != 0) {
    __global const uchar* expert = (__global const uchar*)b + b_offset + r.expert * b_expert;
    uint more = swiglu ? live : live - min(live, 16u);
    dot_panel(expert + col * b_row, expert + (swiglu ? col + n / 2 : col + 16) * b_row, b_row, min(live, 16u), more, k,
              a_panels + a_panels_offset + (ulong)r.strip * k * MR, r.end - r.begin, tiles);
    strips = 0;
  }
#endif
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
