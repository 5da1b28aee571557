// norm_rows: each row divided by the root of its mean square, or centred and divided by its standard deviation; or its sum.
//
//   RMS    d = x / sqrt(mean x^2 + eps) * weight
//   LAYER  d = (x - m) / sqrt(mean (x - m)^2 + eps) * weight, m = mean x
//   SUM    d = sum x, one element a row
//
//   row  | 0 .. VECTOR | .. | ..      work-item i of GROUP adds up vectors i, i + GROUP, ..; their sums are added as a tree
//
// A row is read from memory once and from the caches afterwards. d may be x: all of a row is read before any of it is written.
//
// Constants (the planner's)
//   KIND                       0 RMS, 1 LAYER, 2 SUM
//   X_DTYPE, W_DTYPE, D_DTYPE  0 f32, 1 f16, 2 bf16
// Tunables: GROUP, VECTOR see layer.cl; BLOCK (the planner's, sizes rows_each)

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

__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1)))
void norm_rows(__global const void* x, ulong x_offset, __global const void* weight, ulong weight_offset, __global void* d, ulong d_offset,
               uint n0, uint n1, uint n2, uint n3, ulong x0, ulong x1, ulong x2, ulong x3, ulong weight0,
               ulong d0, ulong d1, ulong d2, ulong d3, float eps, uint rows_each)
{
#if GROUP > 1
  __local float shared[GROUP];
#endif
  const uint lane = get_local_id(0), first = group_number() * rows_each, last = min(first + rows_each, n1 * n2 * n3);
  for (uint row = first; row < last; row++) {
    const place r = place_of(row, n1, n2);
    const ulong x_row = x_offset + r.i1 * x1 + r.i2 * x2 + r.i3 * x3, d_row = d_offset + r.i1 * d1 + r.i2 * d2 + r.i3 * d3;
#if KIND != RMS
    floats sum = 0.0f;
    for (uint c = lane * VECTOR; c < n0; c += GROUP * VECTOR) sum += load_vector(x, x_row + c * x0, x0, n0 - c, 0.0f, X_DTYPE);
    const float total = group_sum(sum_of(sum), shared);
#endif
#if KIND == SUM
    if (lane == 0) store_1(d, d_row, total, D_DTYPE);
#else
#if KIND == RMS
    const float mean = 0.0f;
#else
    const float mean = total / n0;
#endif
    floats squares = 0.0f;
    for (uint c = lane * VECTOR; c < n0; c += GROUP * VECTOR) {
      const floats v = load_vector(x, x_row + c * x0, x0, n0 - c, mean, X_DTYPE) - mean;
      squares = fma(v, v, squares);
    }
    const float scale = 1.0f / sqrt(group_sum(sum_of(squares), shared) / n0 + eps);
    for (uint c = lane * VECTOR; c < n0; c += GROUP * VECTOR) {
      floats v = (load_vector(x, x_row + c * x0, x0, n0 - c, 0.0f, X_DTYPE) - mean) * scale;
      if (weight) v *= load_vector(weight, weight_offset + c * weight0, weight0, n0 - c, 0.0f, W_DTYPE);
      store_vector(d, d_row + c * d0, d0, n0 - c, v, D_DTYPE);
    }
#endif
  }
}
