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
 * Any strides are right; those above are fast. i8 sums leave f32 every FLUSH products of a row, while they are exact.
 *
 * Macro    default  meaning
 * X_ROWS   1        rows of x that are computed together: the power of two at or above their number (1, 2, 4, 8)
 * SWAPPED  0        1: w is a
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
#ifndef CHUNK
#define CHUNK 2048
#endif
#define DOT_ROWS (X_ROWS <= 2 ? 8 : X_ROWS <= 4 ? 4 : 3)
#define VECTORS (X_ROWS <= 4 ? 4 : 2)
#define K_STEP 8
/* k after which sums are flushed to the tile: 512 products of 2^14 a lane, exact in f32 */
#define FLUSH 8192
#define UNROLL _Pragma("unroll")

#if SWAPPED
#define W_DTYPE A_DTYPE
#define X_DTYPE B_DTYPE
#else
#define W_DTYPE B_DTYPE
#define X_DTYPE A_DTYPE
#endif

inline sum_t sum_lanes(sum16_t v)
{
  sum_t lanes[16];
  vstore16(v, 0, lanes);
  for (uint step = 8; step != 0; step /= 2)
    for (uint i = 0; i < step; i++) lanes[i] += lanes[i + step];
  return lanes[0];
}

/* Sums of DOT_ROWS consecutive rows of w with all rows of x, to tile[x_row][first + i]; w rows past `live` repeat the last one. */
inline void dot_rows(__global const void* w, ulong w_at, ulong w_row, ulong w_col, uint live, __global const void* x, ulong x_at,
                     ulong x_row, ulong x_col, uint x_live, uint k, sum_t* tile)
{
  ulong w_rows[DOT_ROWS], x_rows[X_ROWS];
  UNROLL for (uint i = 0; i < DOT_ROWS; i++) w_rows[i] = w_at + min(i, live - 1) * w_row;
  UNROLL for (uint j = 0; j < X_ROWS; j++) x_rows[j] = x_at + min(j, x_live - 1) * x_row;
  for (uint k0 = 0; k0 < k; k0 += FLUSH) {
    uint end = min(k, k0 + FLUSH), kk = k0;
    float16 sums[DOT_ROWS * X_ROWS];
    UNROLL for (uint i = 0; i < DOT_ROWS * X_ROWS; i++) sums[i] = 0.0f;
    if (w_col == 1 && x_col == 1)
      for (; kk + 16 <= end; kk += 16) {
        float16 wv[DOT_ROWS];
        UNROLL for (uint i = 0; i < DOT_ROWS; i++) wv[i] = load_16(w, w_rows[i] + kk, W_DTYPE);
        UNROLL for (uint j = 0; j < X_ROWS; j++) {
          float16 xv = load_16(x, x_rows[j] + kk, X_DTYPE);
          UNROLL for (uint i = 0; i < DOT_ROWS; i++) sums[i * X_ROWS + j] = fma(wv[i], xv, sums[i * X_ROWS + j]);
        }
      }
    for (; kk < end; kk += 16)
      UNROLL for (uint j = 0; j < X_ROWS; j++) {
        float16 xv = gather_16(x, x_rows[j] + kk * x_col, x_col, end - kk, X_DTYPE);
        UNROLL for (uint i = 0; i < DOT_ROWS; i++)
          sums[i * X_ROWS + j] = fma(gather_16(w, w_rows[i] + kk * w_col, w_col, end - kk, W_DTYPE), xv, sums[i * X_ROWS + j]);
      }
    for (uint i = 0; i < min((uint)DOT_ROWS, live); i++)
      for (uint j = 0; j < X_ROWS; j++) tile[j * 32 + i] += sum_lanes(AS_SUM(sums[i * X_ROWS + j]));
  }
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
  sum_t tile[X_ROWS * 32];
  for (uint i = 0; i < 2 * X_ROWS; i++) vstore16((sum16_t)0, i, tile);
  for (uint part = 0; part < (swiglu ? 2 : 1); part++)
    for (uint i = 0; i < live; i += DOT_ROWS)
      dot_rows(w, w_at + (part * second + i) * w_row, w_row, w_col, live - i, x, x_at, x_row, x_col, x_rows, k, tile + part * 16 + i);
  c_offset += outer * c_batch_outer + inner * c_batch_inner + first * c_wrow;
  d_offset += outer * d_batch_outer + inner * d_batch_inner + first * d_wrow;
  for (uint j = 0; j < min(x_rows, (uint)X_ROWS); j++)
    store_row(vload16(2 * j, tile), vload16(2 * j + 1, tile), alpha, beta, c, c_offset + j * c_xrow, c_wrow,
              bias, bias_offset + j * bias_xrow + first * bias_wrow, bias_wrow, has, activation, second, d, d_offset + j * d_xrow, d_wrow, live);
}

#if A_DTYPE != I8
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
