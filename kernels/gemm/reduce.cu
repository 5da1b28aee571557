/* The second launch of products whose k was split, by gemm_mma.cu and gemm_wgmma.cu: plain sums of parts, [part][batch][m][n] in f32 (i8: i32), are added up in order and finished.
 *
 *   part 0   g g g g | u u u u        n columns: under swiglu (SWIGLU 1) gates, then ups of the same columns of d
 *   part 1   g g g g | u u u u   ->   d
 *   ..
 */
/* d of the sums of all parts of k: one element a thread.   grid (columns of d / 256, rows, batches)   block 256 */
extern "C" __global__ void __launch_bounds__(256)
gemm_reduce(const sum_t* partial, u64 partial_offset, const void* c, u64 c_offset, const void* bias, u64 bias_offset, void* d, u64 d_offset,
            u32 m, u32 n, u32 parts, u32 batch_inner, float alpha, float beta, u32 has, u32 activation,
            u64 c_row, u64 c_col, u64 c_batch_outer, u64 c_batch_inner, u64 bias_col, u64 d_row, u64 d_col, u64 d_batch_outer, u64 d_batch_inner)
{
  wait_for_previous_launch();
  u64 outer = blockIdx.z / batch_inner, inner = blockIdx.z % batch_inner;
  u32 columns = SWIGLU ? n / 2 : n, column = blockIdx.x * 256 + threadIdx.x, row = blockIdx.y;
  if (column >= columns) return;
  const sum_t* from = partial + partial_offset + ((u64)blockIdx.z * m + row) * n + column;
  u64 part = (u64)gridDim.z * m * n;
  sum_t sum = 0, up = 0;
  for (u32 i = 0; i < parts; i++) {
    sum += from[i * part];
    if (SWIGLU) up += from[i * part + columns];
  }
  Epilogue e = {alpha, beta, has, activation,
                element_at(c, c_offset + outer * c_batch_outer + inner * c_batch_inner, C_DTYPE), element_at(bias, bias_offset, C_DTYPE),
                c_row, c_col, 0, bias_col,
                (void*)element_at(d, d_offset + outer * d_batch_outer + inner * d_batch_inner, D_DTYPE), d_row, d_col, n / 2};
  store_sum(e, sum, up, row, column);
}
