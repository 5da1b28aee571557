/* norm_rows: each row divided by the root of its mean square, or centred and divided by its standard deviation; or its sum. The same entry,
 * arguments and steps as in norm.cl.
 *
 * Constants (the planner's)
 *   KIND                       0 RMS, 1 LAYER, 2 SUM
 *   X_DTYPE, W_DTYPE, D_DTYPE  0 f32, 1 f16, 2 bf16
 * Tunables: GROUP 64 see layer.cu; VECTOR 4 elements a thread takes at once; BLOCK 1024 (the planner's, sizes rows_each)
 */
#define RMS 0
#define LAYER 1
#define SUM 2

#ifndef KIND
#define KIND RMS
#endif
#ifndef X_DTYPE
#define X_DTYPE F32
#endif
#ifndef W_DTYPE
#define W_DTYPE F32
#endif
#ifndef D_DTYPE
#define D_DTYPE X_DTYPE
#endif

extern "C" __global__ void __launch_bounds__(GROUP, 1024 / GROUP)
norm_rows(const void* x, u64 x_offset, const void* weight, u64 weight_offset, void* d, u64 d_offset, u32 n0, u32 n1, u32 n2, u32 n3,
          u64 x0, u64 x1, u64 x2, u64 x3, u64 weight0, u64 d0, u64 d1, u64 d2, u64 d3, float eps, u32 rows_each)
{
  __shared__ float shared[GROUP];
  const u32 lane = threadIdx.x, rows = n1 * n2 * n3, first = group_number() * rows_each;
  const u32 last = first + rows_each < rows ? first + rows_each : rows;
  for (u32 row = first; row < last; row++) {
    const Place r = place_of(row, n1, n2);
    const u64 x_row = x_offset + r.i1 * x1 + r.i2 * x2 + r.i3 * x3, d_row = d_offset + r.i1 * d1 + r.i2 * d2 + r.i3 * d3;
    float v[4];
#if KIND != RMS
    float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (u32 c = lane * 4; c < n0; c += GROUP * 4) {
      load_four(x, x_row + c * x0, x0, n0 - c, 0.0f, v, X_DTYPE);
#pragma unroll
      for (u32 e = 0; e < 4; e++) sum[e] += v[e];
    }
    const float total = group_sum(sum_of(sum), shared);
#endif
#if KIND == SUM
    if (lane == 0) store_1(d, d_row, total, D_DTYPE);
#else
#if KIND == RMS
    const float mean = 0.0f;
#else
    const float mean = total / (float)n0;
#endif
    float squares[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (u32 c = lane * 4; c < n0; c += GROUP * 4) {
      load_four(x, x_row + c * x0, x0, n0 - c, mean, v, X_DTYPE);
#pragma unroll
      for (u32 e = 0; e < 4; e++) squares[e] = fmaf(v[e] - mean, v[e] - mean, squares[e]);
    }
    const float scale = 1.0f / sqrtf(group_sum(sum_of(squares), shared) / (float)n0 + eps);
    for (u32 c = lane * 4; c < n0; c += GROUP * 4) {
      load_four(x, x_row + c * x0, x0, n0 - c, 0.0f, v, X_DTYPE);
      float w[4] = {1.0f, 1.0f, 1.0f, 1.0f};
      if (weight) load_four(weight, weight_offset + c * weight0, weight0, n0 - c, 1.0f, w, W_DTYPE);
#pragma unroll
      for (u32 e = 0; e < 4; e++) v[e] = (v[e] - mean) * scale * w[e];
      store_four(d, d_row + c * d0, d0, n0 - c, v, D_DTYPE);
    }
#endif
  }
}
