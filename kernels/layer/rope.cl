// rope: each pair of columns of a token is rotated by an angle that its position and the pair's frequency give.
//
//   (a, b) -> (a cos t - b sin t, a sin t + b cos t)        pair i:  NORMAL columns 2i, 2i + 1;  NEOX columns i, n_dims / 2 + i
//   t = position * frequency[i] * freq_scale                frequency[i] = base^(-2i / n_dims) / freq_factors[i]
//   YaRN: t is mixed with the unscaled angle by a ramp over the pairs, 1 up to `low`, 0 from `high` on
//
// A group takes a token. With one work-item it computes the angle of a pair once and turns the pair in all heads; many share (head, pair).
// sin and cos are written out, by Cody and Waite's reduction and Cephes' polynomials, since drivers bound theirs within a few turns
// only. d may be x: a pair is read before it is written. Columns from n_dims on are copied.
//
// Constants (the planner's): X_DTYPE, D_DTYPE  0 f32, 1 f16, 2 bf16
// Tunables: GROUP see layer.cl

#ifndef X_DTYPE
#define X_DTYPE F32
#endif
#ifndef D_DTYPE
#define D_DTYPE X_DTYPE
#endif

#define NEOX 1

// 2^x for x <= 0 as whole + part, |part| <= 1/2 and a little
inline float power_of_2(float whole, float part)
{
  float p = 1.535336188319500e-4f;
  p = fma(p, part, 1.339887440266574e-3f);
  p = fma(p, part, 9.618437357674640e-3f);
  p = fma(p, part, 5.550332471162809e-2f);
  p = fma(p, part, 2.402264791363012e-1f);
  p = fma(p, part, 6.931472028550421e-1f);
  p = fma(p, part, 1.0f);
  return ldexp(p, (int)whole);
}

// (cos t, sin t) with an error of a few units of t's own rounding
inline float2 turn_of(float t)
{
  const float quarters = rint(t * 0.636619772f);
  float r = fma(quarters, -1.5703125f, t);
  r = fma(quarters, -4.837512969970703e-4f, r);
  r = fma(quarters, -7.549789948768648e-8f, r);
  // Beyond this a quarter is no whole number in f32 any more, and the angle means nothing.
  const int quarter = fabs(quarters) < 8388608.0f ? (int)quarters : 0;
  r = fabs(quarters) < 8388608.0f ? r : 0.0f;
  const float z = r * r;
  float s = fma(fma(-1.9515295891e-4f, z, 8.3321608736e-3f), z, -1.6666654611e-1f);
  s = fma(s * z, r, r);
  float c = fma(fma(2.443315711809948e-5f, z, -1.388731625493765e-3f), z, 4.166664568298827e-2f);
  c = fma(c * z, z, fma(-0.5f, z, 1.0f));
  const float2 turned = quarter & 1 ? (float2)(s, c) : (float2)(c, s);
  return (float2)((quarter + 1) & 2 ? -turned.x : turned.x, quarter & 2 ? -turned.y : turned.y);
}

__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1)))
void rope(__global const void* x, ulong x_offset, __global const int* positions, ulong positions_offset,
          __global const float* freq_factors, ulong freq_factors_offset, __global void* d, ulong d_offset,
          uint n0, uint n1, uint n2, uint n3, ulong x0, ulong x1, ulong x2, ulong x3, ulong positions0, ulong freq_factors0,
          ulong d0, ulong d1, ulong d2, ulong d3, uint n_dims, uint mode, float log2_ratio, float log2_ratio_rest,
          float freq_scale, float ext_factor, float low, float ramp, float magnitude)
{
  const uint token = get_group_id(0), batch = token / n2, lane = get_local_id(0), pairs = n_dims / 2;
  const uint i2 = remainder_of(token, n2, batch);
  const ulong x_token = x_offset + i2 * x2 + batch * x3, d_token = d_offset + i2 * d2 + batch * d3;
  const float position = (float)positions[positions_offset + i2 * positions0];
  const ulong second = mode == NEOX ? pairs : 1, step = mode == NEOX ? 1 : 2;
  const uint works = GROUP == 1 ? pairs : pairs * n1;
  for (uint work = lane; work < works; work += GROUP) {
    const uint head = work / pairs, pair = remainder_of(work, pairs, head);
    const float exponent = pair * log2_ratio, whole = rint(exponent);
    float t = position * power_of_2(whole, fma((float)pair, log2_ratio_rest, exponent - whole));
    if (freq_factors) t /= freq_factors[freq_factors_offset + pair * freq_factors0];
    const float scaled = t * freq_scale;
    if (ext_factor != 0.0f) {
      const float mix = (1.0f - min(1.0f, max(0.0f, (pair - low) * ramp))) * ext_factor;
      t = scaled * (1.0f - mix) + t * mix;
    } else {
      t = scaled;
    }
    const float2 turn = turn_of(t) * magnitude;
    const uint from = GROUP == 1 ? 0 : head, to = GROUP == 1 ? n1 : head + 1;
    for (uint h = from; h < to; h++) {
      const ulong x_at = x_token + h * x1 + pair * step * x0, d_at = d_token + h * d1 + pair * step * d0;
      const float a = load_1(x, x_at, X_DTYPE), b = load_1(x, x_at + second * x0, X_DTYPE);
      store_1(d, d_at, a * turn.x - b * turn.y, D_DTYPE);
      store_1(d, d_at + second * d0, a * turn.y + b * turn.x, D_DTYPE);
    }
  }
  const uint rest = n0 - n_dims;
  for (uint work = lane; work < rest * n1; work += GROUP) {
    const uint head = work / rest, column = n_dims + remainder_of(work, rest, head);
    store_1(d, d_token + head * d1 + column * d0, load_1(x, x_token + head * x1 + column * x0, X_DTYPE), D_DTYPE);
  }
}
