/* softmax: of each row, scaled and masked. The same entry, arguments and passes as in softmax.cl, which says what they compute.
 *
 * Constants (the planner's)
 *   X_DTYPE, M_DTYPE (of the mask), D_DTYPE  0 f32, 1 f16, 2 bf16
 * Tunables: GROUP 64 see layer.cu; VECTOR 4 elements a thread takes at once; BLOCK 1024 (the planner's, sizes rows_each)
 */
#ifndef X_DTYPE
#define X_DTYPE F32
#endif
#ifndef M_DTYPE
#define M_DTYPE F32
#endif
#ifndef D_DTYPE
#define D_DTYPE X_DTYPE
#endif

struct Scores {
  const void *x, *mask;
  u64 x_row, x0, m_row, m0;
  float scale, slope;
  u32 n0;
};

/* Scores from column c on; those past the end are -inf. A mask of -inf hides even a NaN or an infinity. */
static __device__ __forceinline__ void scores_at(const Scores& s, u32 c, float v[4])
{
  const u32 live = s.n0 - c;
  load_four(s.x, s.x_row + c * s.x0, s.x0, live, 0.0f, v, X_DTYPE);
  float m[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  if (s.mask) load_four(s.mask, s.m_row + c * s.m0, s.m0, live, 0.0f, m, M_DTYPE);
#pragma unroll
  for (u32 e = 0; e < 4; e++) v[e] = e >= live || m[e] == -INFINITE ? -INFINITE : s.mask ? s.scale * v[e] + s.slope * m[e] : s.scale * v[e];
}

extern "C" __global__ void __launch_bounds__(GROUP, 1024 / GROUP)
softmax(const void* x, u64 x_offset, const void* mask, u64 mask_offset, const float* sinks, u64 sinks_offset, void* d, u64 d_offset,
        u32 n0, u32 n1, u32 n2, u32 n3, u64 x0, u64 x1, u64 x2, u64 x3, u32 m_n1, u32 m_n2, u32 m_n3, u64 m0, u64 m1, u64 m2, u64 m3,
        u64 sinks0, u64 d0, u64 d1, u64 d2, u64 d3, float scale, float exponent, float second_exponent, u32 first_heads, u32 rows_each)
{
  __shared__ float shared[GROUP];
  const u32 lane = threadIdx.x, rows = n1 * n2 * n3, first = group_number() * rows_each;
  const u32 last = first + rows_each < rows ? first + rows_each : rows;
  for (u32 row = first; row < last; row++) {
    const Place r = place_of(row, n1, n2);
    const u64 d_row = d_offset + r.i1 * d1 + r.i2 * d2 + r.i3 * d3;
    const float power = r.i2 < first_heads ? exponent * (float)(r.i2 + 1) : second_exponent * (float)(2 * (r.i2 - first_heads) + 1);
    Scores s;
    s.x = x, s.mask = mask, s.x0 = x0, s.m0 = m0, s.scale = scale, s.slope = exp2f(power), s.n0 = n0;
    s.x_row = x_offset + r.i1 * x1 + r.i2 * x2 + r.i3 * x3;
    s.m_row = mask_offset + wrapped(r.i1, m_n1) * m1 + wrapped(r.i2, m_n2) * m2 + wrapped(r.i3, m_n3) * m3;
    const float sink = sinks ? sinks[sinks_offset + r.i2 * sinks0] : -INFINITE;
    float v[4], most = -INFINITE;
    for (u32 c = lane * 4; c < n0; c += GROUP * 4) {
      scores_at(s, c, v);
#pragma unroll
      for (u32 e = 0; e < 4; e++) most = v[e] > most ? v[e] : most;
    }
    float top = group_max(most, shared);
    top = sink > top ? sink : top;
    /* Where nothing is seen, exp(-inf - 0) is 0 for all. */
    const float subtracted = top == -INFINITE ? 0.0f : top;
    float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (u32 c = lane * 4; c < n0; c += GROUP * 4) {
      scores_at(s, c, v);
#pragma unroll
      for (u32 e = 0; e < 4; e++) sum[e] += expf(v[e] - subtracted);
    }
    const float total = group_sum(sum_of(sum), shared) + expf(sink - subtracted);
    const float factor = total == 0.0f ? 0.0f : 1.0f / total;
    for (u32 c = lane * 4; c < n0; c += GROUP * 4) {
      scores_at(s, c, v);
#pragma unroll
      for (u32 e = 0; e < 4; e++) v[e] = expf(v[e] - subtracted) * factor;
      store_four(d, d_row + c * d0, d0, n0 - c, v, D_DTYPE);
    }
  }
}
