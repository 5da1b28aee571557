/* rope: each pair of columns of a token is rotated by an angle that its position and the pair's frequency give. The same entry, arguments
 * and arithmetic as in rope.cl, which says what they compute; the invocations of a group share the (head, pair)s of a token.
 *
 * Constants (the planner's), specialized
 *   X_DTYPE, D_DTYPE  0 f32, 1 f16, 2 bf16
 * Tunables
 *   GROUP  invocations that share a token
 */
#version 460
#extension GL_GOOGLE_include_directive : require
#include "layer.glsl"

layout(constant_id = 1) const uint X_DTYPE = F32;
layout(constant_id = 2) const uint D_DTYPE = F32;

#define NEOX 1

layout(buffer_reference, scalar, buffer_reference_align = 4) restrict readonly buffer Arguments
{
  uvec2 x, positions, freq_factors, d;
  uint n0, n1, n2, n3;
  uvec2 x0, x1, x2, x3, positions0, freq_factors0;
  uvec2 d0, d1, d2, d3;
  uint n_dims, mode;
  float log2_ratio, log2_ratio_rest, freq_scale, ext_factor, low, ramp, magnitude;
};

layout(push_constant, scalar) uniform Push { Arguments arguments; };

/* 2^x for x <= 0 as whole + part, |part| <= 1/2 and a little; 0 where that is below the normal numbers */
float power_of_2(float whole, float part)
{
  float p = 1.535336188319500e-4;
  p = p * part + 1.339887440266574e-3;
  p = p * part + 9.618437357674640e-3;
  p = p * part + 5.550332471162809e-2;
  p = p * part + 2.402264791363012e-1;
  p = p * part + 6.931472028550421e-1;
  p = p * part + 1.0;
  const int e = int(whole) + 127;
  return e <= 0 ? 0.0 : p * uintBitsToFloat(uint(min(e, 254)) << 23);
}

/* (cos t, sin t) with an error of a few units of t's own rounding */
vec2 turn_of(float t)
{
  const float quarters = roundEven(t * 0.636619772);
  /* Beyond this a quarter is no whole number in f32 any more, and the angle means nothing. */
  const bool is_whole = abs(quarters) < 8388608.0;
  const int quarter = is_whole ? int(quarters) : 0;
  precise float r = t - quarters * 1.5703125;
  r = r - quarters * 4.837512969970703e-4;
  r = r - quarters * 7.549789948768648e-8;
  r = is_whole ? r : 0.0;
  const float z = r * r;
  const float s = ((-1.9515295891e-4 * z + 8.3321608736e-3) * z - 1.6666654611e-1) * z * r + r;
  const float c = ((2.443315711809948e-5 * z - 1.388731625493765e-3) * z + 4.166664568298827e-2) * z * z + (1.0 - 0.5 * z);
  const vec2 turned = (quarter & 1) != 0 ? vec2(s, c) : vec2(c, s);
  return vec2((quarter + 1 & 2) != 0 ? -turned.x : turned.x, (quarter & 2) != 0 ? -turned.y : turned.y);
}

void main()
{
  const uint n1 = arguments.n1, n2 = arguments.n2, n_dims = arguments.n_dims, pairs = n_dims / 2, lane = gl_LocalInvocationID.x;
  const uint group = group_number(), token = group % n2, batch = group / n2;
  if (batch >= arguments.n3) return;
  const uvec2 x_token = element_at(element_at(arguments.x, token, arguments.x2, X_DTYPE), batch, arguments.x3, X_DTYPE);
  const uvec2 d_token = element_at(element_at(arguments.d, token, arguments.d2, D_DTYPE), batch, arguments.d3, D_DTYPE);
  const uvec2 x0 = arguments.x0, x1 = arguments.x1, d0 = arguments.d0, d1 = arguments.d1;
  const float position = float(load_i32(element_at(arguments.positions, token, arguments.positions0, I32)));
  const uint second = arguments.mode == NEOX ? pairs : 1, step = arguments.mode == NEOX ? 1 : 2;
  for (uint work = lane; work < pairs * n1; work += GROUP) {
    const uint head = work / pairs, pair = work % pairs;
    const float exponent = float(pair) * arguments.log2_ratio, whole = roundEven(exponent);
    float t = position * power_of_2(whole, exponent - whole + float(pair) * arguments.log2_ratio_rest);
    if (!is_absent(arguments.freq_factors)) t /= load_1(element_at(arguments.freq_factors, pair, arguments.freq_factors0, F32), F32);
    const float scaled = t * arguments.freq_scale;
    if (arguments.ext_factor != 0.0) {
      const float mix = (1.0 - clamp((float(pair) - arguments.low) * arguments.ramp, 0.0, 1.0)) * arguments.ext_factor;
      t = scaled * (1.0 - mix) + t * mix;
    } else {
      t = scaled;
    }
    const vec2 turn = turn_of(t) * arguments.magnitude;
    const uvec2 x_at = element_at(element_at(x_token, head, x1, X_DTYPE), pair * step, x0, X_DTYPE);
    const uvec2 d_at = element_at(element_at(d_token, head, d1, D_DTYPE), pair * step, d0, D_DTYPE);
    const float a = load_1(x_at, X_DTYPE), b = load_1(element_at(x_at, second, x0, X_DTYPE), X_DTYPE);
    store_1(d_at, a * turn.x - b * turn.y, D_DTYPE);
    store_1(element_at(d_at, second, d0, D_DTYPE), a * turn.y + b * turn.x, D_DTYPE);
  }
  const uint rest = arguments.n0 - n_dims;
  for (uint work = lane; work < rest * n1; work += GROUP) {
    const uint head = work / rest, column = n_dims + work % rest;
    const float v = load_1(element_at(element_at(x_token, head, x1, X_DTYPE), column, x0, X_DTYPE), X_DTYPE);
    store_1(element_at(element_at(d_token, head, d1, D_DTYPE), column, d0, D_DTYPE), v, D_DTYPE);
  }
}
