/* Products with at most 8 rows (or columns) on one side: decoding. The large operand w is read once, as it lies, at memory
 * speed; the small one x stays in cache. w is b and x is a, or, SWAPPED, w is a and x is b: rows of w are columns of b then.
 *
 *   gemv_dot       w's rows lie along k (b stored [n, k]): DOT_ROWS rows of w times all rows of x at once, 16 k a step
 *
 *       w   row i     ----------------->      x  row 0  ----------------->      DOT_ROWS x X_ROWS float16 sums,
 *           row i+1   ----------------->         row 1  ----------------->      added up across lanes at the end
 *
 *   gemv_columns   w's columns lie side by side (b stored [k, n]): a group takes CHUNK columns and a range of k; K_STEP rows
 *                  of w are read side by side, each a forward stream, while the chunk's sums wait in cache
 *   gemv_finish    adds the ranges of k in their order, then the epilogue
 *
 * Blocks of weights (blocks.cl) are read by gemv_dot, a group of 32 k of each row at a time, and are never the small operand.
 *
 * Any strides are right; those above are fast. i8 sums leave f32 every K_BLOCK products of a row, while they are exact.
 *
 * Macro    default  meaning
 * X_ROWS   1        rows of x that are computed together: the power of two at or above their number (1, 2, 4, 8)
 * SWAPPED  0        1: w is a
 * PREFETCH 0        1: ask for rows of w ahead, where the compiler has a word for it; for CPUs
 * CHUNK    2048     columns whose sums one group of gemv_columns keeps in cache, a multiple of 64
 *
 * Measured against the device's own read bandwidth: README.md.
 */
#ifndef X_ROWS
#define X_ROWS 1
#endif
#ifndef SWAPPED
#define SWAPPED 0
#endif
#ifndef PREFETCH
#define PREFETCH 0
#endif
#ifndef CHUNK
#define CHUNK 2048
#endif
#define DOT_ROWS (X_ROWS <= 2 ? 8 : X_ROWS <= 4 ? 4 : 3)
#define VECTORS (X_ROWS <= 4 ? 4 : 2)
#define K_STEP 8
/* k of x that a group keeps in f32, 64 KiB, and that is added up in f32: 1024 i8 products a lane, which are exact */
#define K_BLOCK (16384 / X_ROWS)
#define UNROLL _Pragma("unroll")

#if SWAPPED
#define W_DTYPE A_DTYPE
#define X_DTYPE B_DTYPE
#else
#define W_DTYPE B_DTYPE
#define X_DTYPE A_DTYPE
#endif
#define W_BYTES (W_DTYPE == F32 ? 4 : W_DTYPE == I8 || W_DTYPE >= 10 ? 1 : 2)

/* A range of k of all rows of x in f32, [k / 16][X_ROWS] float16, zero past the end: one forward stream, whatever the strides of x. */
inline void pack_x(__global const void* x, ulong x_at, ulong x_row, ulong x_col, uint x_live, uint count, float16* xs)
{
  for (uint kk = 0; kk < count; kk += 16)
    UNROLL for (uint j = 0; j < X_ROWS; j++) *xs++ = gather_16(x, x_at + min(j, x_live - 1) * x_row + kk * x_col, x_col, count - kk, X_DTYPE);
}

/* Named sums stay in registers, which those of an array do not on every compiler. */
#define EACH_X_1(X, i) X(i, 0)
#define EACH_X_2(X, i) X(i, 0) X(i, 1)
#define EACH_X_4(X, i) EACH_X_2(X, i) X(i, 2) X(i, 3)
#define EACH_X_8(X, i) EACH_X_4(X, i) X(i, 4) X(i, 5) X(i, 6) X(i, 7)
#define EACH_W_3(X) X(0) X(1) X(2)
#define EACH_W_4(X) EACH_W_3(X) X(3)
#define EACH_W_8(X) EACH_W_4(X) X(4) X(5) X(6) X(7)
#if X_ROWS == 1
#define EACH_X EACH_X_1
#define EACH_W EACH_W_8
#elif X_ROWS == 2
#define EACH_X EACH_X_2
#define EACH_W EACH_W_8
#elif X_ROWS == 4
#define EACH_X EACH_X_4
#define EACH_W EACH_W_4
#else
#define EACH_X EACH_X_8
#define EACH_W EACH_W_3
#endif
/* Three rows of w are too few streams for a processor to run ahead of; the rows that come next are asked for while these are multiplied. */
#if PREFETCH && defined(__has_builtin)
#if __has_builtin(__builtin_prefetch)
#define ASK_NEXT(i) __builtin_prefetch((__global const char*)w + (row##i + ahead + kk) * W_BYTES, 0, 2);
#define ASK_NEXT_BLOCK(i) __builtin_prefetch(block##i + ahead, 0, 2);
#endif
#endif
#ifndef ASK_NEXT
#define ASK_NEXT(i)
#define ASK_NEXT_BLOCK(i)
#endif
#define W_ROW(i) ulong row##i = w_at + min((uint)i, live - 1) * w_row;
#define SUM_ZERO(i, j) float16 sum##i##_##j = 0.0f;
#define SUMS_ZERO(i) EACH_X(SUM_ZERO, i)
#define W_LOAD(i) float16 w##i = load_16(w, row##i + kk, W_DTYPE); ASK_NEXT(i)
#define W_GATHER(i) float16 w##i = gather_16(w, row##i + kk * w_col, w_col, count - kk, W_DTYPE);
#define SUM_STEP(i, j) sum##i##_##j = fma(w##i, xs[j], sum##i##_##j);
#define SUMS_STEP(i) EACH_X(SUM_STEP, i)
#define TOTAL_ADD(i, j) totals[i * X_ROWS + j] += AS_SUM(sum##i##_##j);
#define TOTALS_ADD(i) if (i < live) { EACH_X(TOTAL_ADD, i) }

#if W_DTYPE >= 10
#define W_AT(k, w_col) BLOCK_AT(0, k)
#define W_BLOCK(i) __global const uchar* block##i = BLOCK_AT((__global const uchar*)w + row##i, kk);
/* The blocks of all rows, and in place of those that there are not the first's. */
#if X_ROWS <= 2
#define BLOCKS block0, block1, block2, block3, block4, block5, block6, block7
#elif X_ROWS <= 4
#define BLOCKS block0, block1, block2, block3, block0, block0, block0, block0
#else
#define BLOCKS block0, block1, block2, block0, block0, block0, block0, block0
#endif
/* Groups whose scales are converted ahead. From memory a scale comes to all lanes as it is loaded; from a vector by two shuffles, of which
 * widening the quants leaves none to spare. */
#define SCALES_AHEAD 32
#define PARTS (B_DTYPE == Q6_K ? 2 : 1)
#define SCALE(i, part) (float16)scales[(i) + (part) * (PARTS - 1) * 16]
#define WEIGHTS(i, part) fma(float_quants(load_quants(block##i, GROUP_AT(kk), part)), SCALE(i, part), SCALE(8 + i, part))
#ifdef WHOLE_GROUPS
#define W_LOAD_GROUP(i) LOAD_GROUP(block##i, lo##i, hi##i)
#else
#define W_LOAD_GROUP(i) float16 lo##i = WEIGHTS(i, 0), hi##i = WEIGHTS(i, 1);
#endif
#define SUM_STEP_GROUP(i, j) sum##i##_##j = fma(hi##i, xs[X_ROWS + j], fma(lo##i, xs[j], sum##i##_##j));
#define SUMS_STEP_GROUP(i) EACH_X(SUM_STEP_GROUP, i)
#else
#define W_AT(k, w_col) ((k) * (w_col))
#endif

/* Adds the products of `count` k of DOT_ROWS consecutive rows of w with all rows of x to totals[w_row][x_row]; w rows past `live` repeat
 * the last one. `after`: rows of w from the first of these on, for this group or the next. */
inline void dot_rows(__global const void* w, ulong w_at, ulong w_row, ulong w_col, uint live, uint after, const float16* xs, uint count, sum16_t* totals)
{
  EACH_W(W_ROW)
  EACH_W(SUMS_ZERO)
  uint kk = 0;
  ulong ahead = after > DOT_ROWS ? DOT_ROWS * w_row : 0;
#if defined(WHOLE_GROUPS)
  for (; kk < count; kk += GROUP_WEIGHTS, xs += 2 * X_ROWS) {
    EACH_W(W_BLOCK)
    EACH_W(ASK_NEXT_BLOCK)
    EACH_W(W_LOAD_GROUP)
    EACH_W(SUMS_STEP_GROUP)
  }
#elif W_DTYPE >= 10
  while (kk < count) {
    uint begin = kk, end = min(count, kk + SCALES_AHEAD * GROUP_WEIGHTS);
    float converted[SCALES_AHEAD * PARTS * 16] __attribute__((aligned(64))), *scales = converted;
    Scales heads;
    for (; kk < end; kk += GROUP_WEIGHTS) {
      EACH_W(W_BLOCK)
      EACH_W(ASK_NEXT_BLOCK)
      if (GROUP_AT(kk) == 0) heads = load_heads(BLOCKS);
      for (uint part = 0; part < PARTS; part++, scales += 16) {
        Scales s = load_scales(heads, BLOCKS, GROUP_AT(kk), part);
        vstore8(s.scale, 0, scales), vstore8(s.offset, 1, scales);
      }
    }
    scales = converted;
    for (kk = begin; kk < end; kk += GROUP_WEIGHTS, xs += 2 * X_ROWS, scales += PARTS * 16) {
      EACH_W(W_BLOCK)
      EACH_W(W_LOAD_GROUP)
      EACH_W(SUMS_STEP_GROUP)
    }
  }
#else
  if (w_col == 1)
    for (; kk + 16 <= count; kk += 16, xs += X_ROWS) { EACH_W(W_LOAD) EACH_W(SUMS_STEP) }
  for (; kk < count; kk += 16, xs += X_ROWS) { EACH_W(W_GATHER) EACH_W(SUMS_STEP) }
#endif
  EACH_W(TOTALS_ADD)
}

__kernel __attribute__((reqd_work_group_size(1, 1, 1)))
void gemv_dot(__global const void* w, ulong w_offset, __global const void* x, ulong x_offset,
              __global const void* c, ulong c_offset, __global const void* bias, ulong bias_offset, __global void* d, ulong d_offset,
              uint w_rows, uint x_rows, uint k, uint batch_inner, float alpha, float beta, uint has, uint activation,
              ulong w_row, ulong w_col, ulong w_batch_outer, ulong w_batch_inner,
              ulong x_row, ulong x_col, ulong x_batch_outer, ulong x_batch_inner,
              ulong c_xrow, ulong c_wrow, ulong c_batch_outer, ulong c_batch_inner, ulong bias_xrow, ulong bias_wrow,
              ulong d_xrow, ulong d_wrow, ulong d_batch_outer, ulong d_batch_inner)
{
  uint outer = get_group_id(2) / batch_inner, inner = remainder_of(get_group_id(2), batch_inner, outer);
  bool swiglu = activation == ACTIVATION_SWIGLU;
  uint columns = swiglu ? w_rows / 2 : w_rows, first = get_group_id(0) * (swiglu ? 16 : 32), live = min(swiglu ? 16u : 32u, columns - first);
  uint second = swiglu ? w_rows / 2 : 16;
  ulong w_at = w_offset + outer * w_batch_outer + inner * w_batch_inner + first * w_row;
  ulong x_at = x_offset + outer * x_batch_outer + inner * x_batch_inner;
  float16 xs[X_ROWS * (K_BLOCK / 16)];
  sum16_t totals[32 * X_ROWS];
  for (uint i = 0; i < 32 * X_ROWS; i++) totals[i] = 0;
  for (uint k0 = 0; k0 < k; k0 += K_BLOCK) {
    uint count = min((uint)K_BLOCK, k - k0);
    pack_x(x, x_at + k0 * x_col, x_row, x_col, x_rows, count, xs);
    for (uint part = 0; part < (swiglu ? 2 : 1); part++)
      for (uint i = 0; i < live; i += DOT_ROWS)
        dot_rows(w, w_at + (part * second + i) * w_row + W_AT(k0, w_col), w_row, w_col, live - i, columns - first - i, xs, count, totals + (part * 16 + i) * X_ROWS);
  }
  sum_t tile[X_ROWS * 32];
  for (uint i = 0; i < 32; i++)
    for (uint j = 0; j < X_ROWS; j++) tile[j * 32 + i] = sum_lanes(totals[i * X_ROWS + j]);
  c_offset += outer * c_batch_outer + inner * c_batch_inner + first * c_wrow;
  d_offset += outer * d_batch_outer + inner * d_batch_inner + first * d_wrow;
  for (uint j = 0; j < min(x_rows, (uint)X_ROWS); j++)
    store_row(vload16(2 * j, tile), vload16(2 * j + 1, tile), alpha, beta, c, c_offset + j * c_xrow, c_wrow,
              bias, bias_offset + j * bias_xrow + first * bias_wrow, bias_wrow, has, activation, second, d, d_offset + j * d_xrow, d_wrow, live);
}

#if A_DTYPE != I8 && W_DTYPE < 10
/* One k range of a chunk of columns of w [k, n]: K_STEP rows of w are read side by side, each a forward stream, while the chunk's
 * sums wait in cache. */
__kernel __attribute__((reqd_work_group_size(1, 1, 1)))
void gemv_columns(__global const void* w, ulong w_offset, __global const void* x, ulong x_offset, __global float* partial, ulong partial_offset,
                  uint w_rows, uint x_rows, uint k, uint k_range, uint batch_inner,
                  ulong w_row, ulong w_col, ulong w_batch_outer, ulong w_batch_inner,
                  ulong x_row, ulong x_col, ulong x_batch_outer, ulong x_batch_inner)
{
  uint outer = get_group_id(2) / batch_inner, inner = remainder_of(get_group_id(2), batch_inner, outer);
  uint first = get_group_id(0) * CHUNK, columns = min((uint)CHUNK, w_rows - first);
  uint begin = get_group_id(1) * k_range, end = min(k, begin + k_range);
  ulong w_at = w_offset + outer * w_batch_outer + inner * w_batch_inner + first * w_row;
  ulong x_at = x_offset + outer * x_batch_outer + inner * x_batch_inner;
  float sums[X_ROWS * CHUNK], xs[K_STEP * X_ROWS];
  for (uint i = 0; i < X_ROWS * CHUNK / 16; i++) vstore16((float16)0.0f, i, sums);
  for (uint kk = begin; kk < end; kk += K_STEP) {
    uint count = min((uint)K_STEP, end - kk);
    for (uint i = 0; i < count; i++)
      for (uint j = 0; j < X_ROWS; j++) xs[i * X_ROWS + j] = load_1(x, x_at + min(j, x_rows - 1) * x_row + (kk + i) * x_col, X_DTYPE);
    uint c = 0;
    for (; w_row == 1 && c + VECTORS * 16 <= columns; c += VECTORS * 16) {
      float16 acc[X_ROWS * VECTORS];
      UNROLL for (uint j = 0; j < X_ROWS * VECTORS; j++) acc[j] = vload16(0, sums + j / VECTORS * CHUNK + c + j % VECTORS * 16);
      for (uint i = 0; i < count; i++) {
        float16 wv[VECTORS];
        UNROLL for (uint v = 0; v < VECTORS; v++) wv[v] = load_16(w, w_at + (kk + i) * w_col + c + v * 16, W_DTYPE);
        UNROLL for (uint j = 0; j < X_ROWS * VECTORS; j++) acc[j] = fma(wv[j % VECTORS], (float16)xs[i * X_ROWS + j / VECTORS], acc[j]);
      }
      UNROLL for (uint j = 0; j < X_ROWS * VECTORS; j++) vstore16(acc[j], 0, sums + j / VECTORS * CHUNK + c + j % VECTORS * 16);
    }
    for (; c < columns; c += 16)
      for (uint i = 0; i < count; i++) {
        float16 wv = gather_16(w, w_at + (kk + i) * w_col + c * w_row, w_row, columns - c, W_DTYPE);
        for (uint j = 0; j < X_ROWS; j++)
          vstore16(fma(wv, (float16)xs[i * X_ROWS + j], vload16(0, sums + j * CHUNK + c)), 0, sums + j * CHUNK + c);
      }
  }
  partial += partial_offset + ((ulong)get_group_id(2) * get_num_groups(1) + get_group_id(1)) * x_rows * w_rows + first;
  for (uint j = 0; j < min(x_rows, (uint)X_ROWS); j++)
    for (uint c = 0; c < columns; c += 16) scatter_16(partial, j * w_rows + c, 1, columns - c, vload16(0, sums + j * CHUNK + c), F32);
}

/* Adds the k ranges in their order, and finishes. */
__kernel __attribute__((reqd_work_group_size(1, 1, 1)))
void gemv_finish(__global const float* partial, ulong partial_offset,
                 __global const void* c, ulong c_offset, __global const void* bias, ulong bias_offset, __global void* d, ulong d_offset,
                 uint w_rows, uint x_rows, uint ranges, uint batch_inner, float alpha, float beta, uint has, uint activation,
                 ulong c_xrow, ulong c_wrow, ulong c_batch_outer, ulong c_batch_inner, ulong bias_xrow, ulong bias_wrow,
                 ulong d_xrow, ulong d_wrow, ulong d_batch_outer, ulong d_batch_inner)
{
  uint outer = get_group_id(2) / batch_inner, inner = remainder_of(get_group_id(2), batch_inner, outer);
  bool swiglu = activation == ACTIVATION_SWIGLU;
  uint columns = swiglu ? w_rows / 2 : w_rows, first = get_group_id(0) * (swiglu ? 16 : 32), live = min(swiglu ? 16u : 32u, columns - first);
  uint second = swiglu ? w_rows / 2 : 16, rest = swiglu ? live : live - min(live, 16u), j = get_group_id(1);
  partial += partial_offset + ((ulong)get_group_id(2) * ranges * x_rows + j) * w_rows;
  float16 lo = 0.0f, hi = 0.0f;
  for (uint r = 0; r < ranges; r++, partial += (ulong)x_rows * w_rows) {
    lo += gather_16(partial, first, 1, live, F32);
    hi += gather_16(partial, first + second, 1, rest, F32);
  }
  c_offset += outer * c_batch_outer + inner * c_batch_inner + j * c_xrow + first * c_wrow;
  d_offset += outer * d_batch_outer + inner * d_batch_inner + j * d_xrow + first * d_wrow;
  store_row(lo, hi, alpha, beta, c, c_offset, c_wrow, bias, bias_offset + j * bias_xrow + first * bias_wrow, bias_wrow, has, activation, second,
            d, d_offset, d_wrow, live);
}
#endif
