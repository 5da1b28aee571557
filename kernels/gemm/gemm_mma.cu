/* Products on matrix units, in tiles of mma.cu; each block computes one tile, or, where d has too few tiles for the device, a part of its k:
 *
 *   grid   x: tiles of d, in bands of BAND tiles along m, so that what is in level 2 cache is used again
 *          y: parts of k, k_split each        z: batches
 *
 *          n ->
 *   m    1  3  5  7 ..        With several parts, each stores its plain sums, [part][batch][m][n] in f32 (i8: i32), and gemm_reduce adds
 *   |    2  4  6  8 ..        them up in order: the result is the same in each run.
 *
 * Tunables: see mma.cu.
 */
#define BAND 8

extern "C" __global__ void __launch_bounds__(THREADS, 1)
gemm_mma(const void* a, u64 a_offset, const void* b, u64 b_offset, const void* c, u64 c_offset, const void* bias, u64 bias_offset, void* d,
         u64 d_offset, sum_t* partial, u64 partial_offset, u32 m, u32 n, u32 k, u32 batch_inner, u32 k_split,
         float alpha, float beta, u32 has, u32 activation,
         u64 a_row, u64 a_col, u64 a_batch_outer, u64 a_batch_inner, u64 b_row, u64 b_col, u64 b_batch_outer, u64 b_batch_inner,
         u64 c_row, u64 c_col, u64 c_batch_outer, u64 c_batch_inner, u64 bias_col, u64 d_row, u64 d_col, u64 d_batch_outer, u64 d_batch_inner)
{
  extern __shared__ __align__(128) u8 shared[];
  u64 outer = blockIdx.z / batch_inner, inner = blockIdx.z % batch_inner;
  u32 columns = SWIGLU ? n / 2 : n, across = SWIGLU ? BLOCK_N / 2 : BLOCK_N;
  u32 tiles_m = (m + BLOCK_M - 1) / BLOCK_M, tiles_n = (columns + across - 1) / across;
  u32 band = blockIdx.x / (BAND * tiles_n), in_band = blockIdx.x % (BAND * tiles_n), height = min(BAND, tiles_m - band * BAND);
  u32 row0 = (band * BAND + in_band % height) * BLOCK_M;
  Lines rows = {row0, m, 0}, of_b = columns_of(in_band / height, n);
  u32 k0 = blockIdx.y * k_split, k_end = min(k, k0 + k_split);

  ShareOfA share_a;
  ShareOfB share_b;
  share_a.aim(element_at(a, a_offset + outer * a_batch_outer + inner * a_batch_inner, A_DTYPE), a_row, a_col, rows, k0);
  share_b.aim(element_at(b, b_offset + outer * b_batch_outer + inner * b_batch_inner, B_DTYPE), b_col, b_row, of_b, k0);
  sum_t sums[ROW_FRAGMENTS][COLUMN_FRAGMENTS][4];
  multiply_tile(share_a, share_b, k0, k_end, shared_address(shared), sums);

  if (gridDim.y > 1) {
    sum_t* to = partial + partial_offset + ((u64)blockIdx.y * gridDim.z + blockIdx.z) * m * n;
    store_tile(sums, shared, [&](u32 row, u32 column, const sum_t* sum, const sum_t* up) {
      row += row0, column += of_b.first;
      for (u32 i = 0; i < 2 && row < m && column + i < columns; i++) {
        to[(u64)row * n + column + i] = sum[i];
        if (SWIGLU) to[(u64)row * n + columns + column + i] = up[i];
      }
    });
    return;
  }
  Epilogue e = {alpha, beta, has, activation,
                element_at(c, c_offset + outer * c_batch_outer + inner * c_batch_inner, C_DTYPE), element_at(bias, bias_offset, C_DTYPE),
                c_row, c_col, 0, bias_col,
                (void*)element_at(d, d_offset + outer * d_batch_outer + inner * d_batch_inner, D_DTYPE), d_row, d_col, n / 2};
  bool at_once = stores_pairs(e);
  store_tile(sums, shared, [&](u32 row, u32 column, const sum_t* sum, const sum_t* up) {
    if (row0 + row < m) store_pair(e, at_once, row0 + row, of_b.first + column, columns, sum, up);
  });
}
