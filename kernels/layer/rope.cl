// rope: each pair of columns of a token is rotated by an angle that its position and the pair's frequency give.
//
//   (a, b) -> (a cos t - b sin t, a sin t + b cos t)        pair i:  NORMAL columns 2i, 2i + 1;  NEOX columns i, n_dims / 2 + i
//   t = position * frequency[i] * freq_scale                frequency[i] = base^(-2i / n_dims) / freq_factors[i]
//   YaRN: t is mixed with the unscaled angle by a ramp over the pairs, 1 up to `low`, 0 from `high` on
//
// A group takes a token, VECTOR pairs at once. With one work-item it computes their angles once and turns the pairs in all heads; many share
// (head, pairs). sin and cos are written out, by Cody and Waite's reduction and Cephes' polynomials, since drivers bound theirs
// within a few turns only. d may be x: a pair is read before it is written. Columns from n_dims on are copied.
//
// Constants (the planner's): X_DTYPE, D_DTYPE  0 f32, 1 f16, 2 bf16
// Tunables: GROUP, VECTOR see layer.cl

#ifndef X_DTYPE
#define X_DTYPE F32
#endif
#ifndef D_DTYPE
#define D_DTYPE X_DTYPE
#endif

#define NEOX 1

#define TO_INTS JOIN(convert_int, VECTOR)
#define TO_FLOATS JOIN(convert_float, VECTOR)
#define AS_FLOATS JOIN(as_float, VECTOR)
#define AS_INTS JOIN(as_int, VECTOR)

// The first of each pair in two vectors of columns, and the lanes of two vectors by turns.
#if VECTOR == 16
#define EVEN (uint16)(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30)
#define BY_TURNS (uint16)(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#elif VECTOR == 8
#define EVEN (uint8)(0, 2, 4, 6, 8, 10, 12, 14)
#define BY_TURNS (uint8)(0, 8, 1, 9, 2, 10, 3, 11)
#else
#define EVEN (uint4)(0, 2, 4, 6)
#define BY_TURNS (uint4)(0, 4, 1, 5)
#endif

// 2^x for x <= 0 as whole + part, |part| <= 1/2 and a little; 0 where that is below the normal numbers
inline floats power_of_2(floats whole, floats part)
{
  floats p = 1.535336188319500e-4f;
  p = fma(p, part, (floats)1.339887440266574e-3f);
  p = fma(p, part, (floats)9.618437357674640e-3f);
  p = fma(p, part, (floats)5.550332471162809e-2f);
  p = fma(p, part, (floats)2.402264791363012e-1f);
  p = fma(p, part, (floats)6.931472028550421e-1f);
  p = fma(p, part, (floats)1.0f);
  // Bounds are vectors, since oclgrind 21.10 does not follow max of a vector and a number.
  return p * AS_FLOATS(min(max(TO_INTS(whole) + 127, (ints)0), (ints)254) << 23);
}

// (cos t, sin t) with an error of a few units of t's own rounding
inline void turn_of(floats t, floats* cosine, floats* sine)
{
  const floats quarters = rint(t * 0.636619772f);
  floats r = fma(quarters, (floats)-1.5703125f, t);
  r = fma(quarters, (floats)-4.837512969970703e-4f, r);
  r = fma(quarters, (floats)-7.549789948768648e-8f, r);
  // Beyond this a quarter is no whole number in f32 any more, and the angle means nothing.
  const ints is_whole = fabs(quarters) < 8388608.0f;
  const ints quarter = TO_INTS(select((floats)0.0f, quarters, is_whole));
  r = select((floats)0.0f, r, is_whole);
  const floats z = r * r;
  floats s = fma(fma((floats)-1.9515295891e-4f, z, (floats)8.3321608736e-3f), z, (floats)-1.6666654611e-1f);
  s = fma(s * z, r, r);
  floats c = fma(fma((floats)2.443315711809948e-5f, z, (floats)-1.388731625493765e-3f), z, (floats)4.166664568298827e-2f);
  c = fma(c * z, z, fma((floats)-0.5f, z, (floats)1.0f));
  const floats is_odd = AS_FLOATS(-(quarter & 1));
  *cosine = AS_FLOATS(AS_INTS(bitselect(c, s, is_odd)) ^ ((quarter + 1) & 2) << 30);
  *sine = AS_FLOATS(AS_INTS(bitselect(s, c, is_odd)) ^ (quarter & 2) << 30);
}

__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1)))
void rope(__global const void* x, ulong x_offset, __global const int* positions, ulong positions_offset,
          __global const float* freq_factors, ulong freq_factors_offset, __global void* d, ulong d_offset,
          uint n0, uint n1, uint n2, uint n3, ulong x0, ulong x1, ulong x2, ulong x3, ulong positions0, ulong freq_factors0,
          ulong d0, ulong d1, ulong d2, ulong d3, uint n_dims, uint mode, float log2_ratio, float log2_ratio_rest,
          float freq_scale, float ext_factor, float low, float ramp, float magnitude)
{
  const uint token = group_number(), batch = token / n2, lane = get_local_id(0), pairs = n_dims / 2;
  const uint i2 = remainder_of(token, n2, batch), vectors = (pairs + VECTOR - 1) / VECTOR;
  if (batch >= n3) return;
  const ulong x_token = x_offset + i2 * x2 + batch * x3, d_token = d_offset + i2 * d2 + batch * d3;
  const float position = (float)positions[positions_offset + i2 * positions0];
  const uint works = GROUP == 1 ? vectors : vectors * n1;
  for (uint work = lane; work < works; work += GROUP) {
    const uint head = work / vectors, pair = remainder_of(work, vectors, head) * VECTOR, live = pairs - pair;
    const floats number = TO_FLOATS(LANES + (int)pair), exponent = number * log2_ratio, whole = rint(exponent);
    floats t = position * power_of_2(whole, fma(number, (floats)log2_ratio_rest, exponent - whole));
    if (freq_factors) t /= load_vector(freq_factors, freq_factors_offset + pair * freq_factors0, freq_factors0, live, 1.0f, F32);
    const floats scaled = t * freq_scale;
    if (ext_factor != 0.0f) {
      const floats mix = (1.0f - min(max((number - low) * ramp, (floats)0.0f), (floats)1.0f)) * ext_factor;
      t = scaled * (1.0f - mix) + t * mix;
    } else {
      t = scaled;
    }
    floats cosine, sine;
    turn_of(t, &cosine, &sine);
    cosine *= magnitude;
    sine *= magnitude;
    const uint from = GROUP == 1 ? 0 : head, to = GROUP == 1 ? n1 : head + 1;
    for (uint h = from; h < to; h++) {
      const ulong x_head = x_token + h * x1, d_head = d_token + h * d1;
      if (mode == NEOX) {
        const floats a = load_vector(x, x_head + pair * x0, x0, live, 0.0f, X_DTYPE);
        const floats b = load_vector(x, x_head + (pairs + pair) * x0, x0, live, 0.0f, X_DTYPE);
        store_vector(d, d_head + pair * d0, d0, live, a * cosine - b * sine, D_DTYPE);
        store_vector(d, d_head + (pairs + pair) * d0, d0, live, a * sine + b * cosine, D_DTYPE);
        continue;
      }
      // Two vectors of columns hold the pairs.
      const uint columns = 2 * live;
      const int has_second = columns > VECTOR;
      const ulong x_at = x_head + 2 * pair * x0, d_at = d_head + 2 * pair * d0;
      const floats v = load_vector(x, x_at, x0, columns, 0.0f, X_DTYPE);
      floats w = 0.0f;
      if (has_second) w = load_vector(x, x_at + VECTOR * x0, x0, columns - VECTOR, 0.0f, X_DTYPE);
      const floats a = shuffle2(v, w, EVEN), b = shuffle2(v, w, EVEN + 1u);
      const floats a_turned = a * cosine - b * sine, b_turned = a * sine + b * cosine;
      const floats v_turned = shuffle2(a_turned, b_turned, BY_TURNS), w_turned = shuffle2(a_turned, b_turned, BY_TURNS + VECTOR / 2u);
      store_vector(d, d_at, d0, columns, v_turned, D_DTYPE);
      if (has_second) store_vector(d, d_at + VECTOR * d0, d0, columns - VECTOR, w_turned, D_DTYPE);
    }
  }
  const uint rest = n0 - n_dims, rest_vectors = (rest + VECTOR - 1) / VECTOR;
  for (uint work = lane; work < rest_vectors * n1; work += GROUP) {
    const uint head = work / rest_vectors, passed = remainder_of(work, rest_vectors, head) * VECTOR, live = rest - passed;
    const ulong column = n_dims + passed;
    store_vector(d, d_token + head * d1 + column * d0, d0, live,
                 load_vector(x, x_token + head * x1 + column * x0, x0, live, 0.0f, X_DTYPE), D_DTYPE);
  }
}
