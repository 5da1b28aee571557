/* rope: each pair of columns of a token is rotated by an angle that its position and the pair's frequency give. The same entry, arguments
 * and arithmetic as in rope.cl, which says what they compute; the threads of a block share the (head, pair)s of a token.
 *
 * Constants (the planner's)
 *   X_DTYPE, D_DTYPE  0 f32, 1 f16, 2 bf16
 * Tunables: GROUP 64 see layer.cu; VECTOR 4 (not used: a thread takes a pair)
 */
#ifndef X_DTYPE
#define X_DTYPE F32
#endif
#ifndef D_DTYPE
#define D_DTYPE X_DTYPE
#endif

#define NEOX 1

/* 2^x for x <= 0 as whole + part, |part| <= 1/2 and a little; 0 where that is below the normal numbers */
static __device__ __forceinline__ float power_of_2(float whole, float part)
{
  float p = 1.535336188319500e-4f;
  p = fmaf(p, part, 1.339887440266574e-3f);
  p = fmaf(p, part, 9.618437357674640e-3f);
  p = fmaf(p, part, 5.550332471162809e-2f);
  p = fmaf(p, part, 2.402264791363012e-1f);
  p = fmaf(p, part, 6.931472028550421e-1f);
  p = fmaf(p, part, 1.0f);
  const int e = (int)whole + 127;
  return e <= 0 ? 0.0f : p * __uint_as_float((u32)(e < 254 ? e : 254) << 23);
}

/* (cos t, sin t) with an error of a few units of t's own rounding */
static __device__ __forceinline__ float2 turn_of(float t)
{
  const float quarters = rintf(t * 0.636619772f);
  /* Beyond this a quarter is no whole number in f32 any more, and the angle means nothing. */
  const bool is_whole = fabsf(quarters) < 8388608.0f;
  const int quarter = is_whole ? (int)quarters : 0;
  float r = fmaf(quarters, -1.5703125f, t);
  r = fmaf(quarters, -4.837512969970703e-4f, r);
  r = fmaf(quarters, -7.549789948768648e-8f, r);
  r = is_whole ? r : 0.0f;
  const float z = r * r;
  float s = fmaf(fmaf(-1.9515295891e-4f, z, 8.3321608736e-3f), z, -1.6666654611e-1f);
  s = fmaf(s * z, r, r);
  float c = fmaf(fmaf(2.443315711809948e-5f, z, -1.388731625493765e-3f), z, 4.166664568298827e-2f);
  c = fmaf(c * z, z, fmaf(-0.5f, z, 1.0f));
  const float x = quarter & 1 ? s : c, y = quarter & 1 ? c : s;
  return make_float2((quarter + 1) & 2 ? -x : x, quarter & 2 ? -y : y);
}

extern "C" __global__ void __launch_bounds__(GROUP)
rope(const void* x, u64 x_offset, const int* positions, u64 positions_offset, const float* freq_factors, u64 freq_factors_offset, void* d,
     u64 d_offset, u32 n0, u32 n1, u32 n2, u32 n3, u64 x0, u64 x1, u64 x2, u64 x3, u64 positions0, u64 freq_factors0,
     u64 d0, u64 d1, u64 d2, u64 d3, u32 n_dims, u32 mode, float log2_ratio, float log2_ratio_rest, float freq_scale, float ext_factor,
     float low, float ramp, float magnitude)
{
  const u32 token = group_number(), i2 = token % n2, batch = token / n2, pairs = n_dims / 2;
  if (batch >= n3) return;
  const u64 x_token = x_offset + i2 * x2 + batch * x3, d_token = d_offset + i2 * d2 + batch * d3;
  const float position = __int2float_rn(positions[positions_offset + i2 * positions0]);
  const u64 second = mode == NEOX ? pairs : 1, step = mode == NEOX ? 1 : 2;
  for (u32 work = threadIdx.x; work < pairs * n1; work += GROUP) {
    const u32 head = work / pairs, pair = work % pairs;
    const float exponent = (float)pair * log2_ratio, whole = rintf(exponent);
    float t = position * power_of_2(whole, fmaf((float)pair, log2_ratio_rest, exponent - whole));
    if (freq_factors) t /= freq_factors[freq_factors_offset + pair * freq_factors0];
    const float scaled = t * freq_scale;
    if (ext_factor != 0.0f) {
      const float mix = (1.0f - fminf(1.0f, fmaxf(0.0f, ((float)pair - low) * ramp))) * ext_factor;
      t = scaled * (1.0f - mix) + t * mix;
    } else {
      t = scaled;
    }
    const float2 turn = turn_of(t);
    const float cosine = turn.x * magnitude, sine = turn.y * magnitude;
    const u64 x_at = x_token + head * x1 + pair * step * x0, d_at = d_token + head * d1 + pair * step * d0;
    const float a = load_1(x, x_at, X_DTYPE), b = load_1(x, x_at + second * x0, X_DTYPE);
    store_1(d, d_at, a * cosine - b * sine, D_DTYPE);
    store_1(d, d_at + second * d0, a * sine + b * cosine, D_DTYPE);
  }
  const u32 rest = n0 - n_dims;
  for (u32 work = threadIdx.x; work < rest * n1; work += GROUP) {
    const u32 head = work / rest, column = n_dims + work % rest;
    store_1(d, d_token + head * d1 + column * d0, load_1(x, x_token + head * x1 + column * x0, X_DTYPE), D_DTYPE);
  }
}
