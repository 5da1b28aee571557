/* softmax: of each row, scaled and masked. The same entry, arguments and passes as in softmax.cl, which says what they compute.
 *
 * Constants (the planner's), specialized
 *   X_DTYPE, M_DTYPE, D_DTYPE  0 f32, 1 f16, 2 bf16
 * Tunables
 *   GROUP  invocations that share a row
 */
#version 460
#extension GL_GOOGLE_include_directive : require
#include "layer.glsl"

layout(constant_id = 1) const uint X_DTYPE = F32;
layout(constant_id = 2) const uint M_DTYPE = F32;
layout(constant_id = 3) const uint D_DTYPE = F32;

layout(buffer_reference, scalar, buffer_reference_align = 4) restrict readonly buffer Arguments
{
  uvec2 x, mask, sinks, d;
  uint n0, n1, n2, n3;
  uvec2 x0, x1, x2, x3;
  uint m_n1, m_n2, m_n3;
  uvec2 m0, m1, m2, m3;
  uvec2 sinks0;
  uvec2 d0, d1, d2, d3;
  float scale, exponent, second_exponent;
  uint first_heads, rows_each;
};

layout(push_constant, scalar) uniform Push { Arguments arguments; };

shared float partial[GROUP];

#include "reduce.glsl"

/* Scores from column c on; those past the end are -inf. A mask of -inf hides even a NaN or an infinity. */
vec4 scores_at(uvec2 x_row, uvec2 mask_row, uvec2 x0, uvec2 m0, float scale, float slope, uint c, uint n0)
{
  const uint live = n0 - c;
  vec4 v = scale * load_four(element_at(x_row, c, x0, X_DTYPE), x0, live, 0.0, X_DTYPE);
  if (!is_absent(mask_row)) {
    const vec4 mask = load_four(element_at(mask_row, c, m0, M_DTYPE), m0, live, -INFINITY, M_DTYPE);
    for (uint e = 0; e < 4; e++) v[e] = mask[e] == -INFINITY ? -INFINITY : v[e] + slope * mask[e];
  }
  for (uint e = 0; e < 4; e++) v[e] = e < live ? v[e] : -INFINITY;
  return v;
}

/* e^s, and 0 of what is hidden. */
vec4 weights_of(vec4 s)
{
  for (uint e = 0; e < 4; e++) s[e] = s[e] == -INFINITY ? 0.0 : exp_of(s[e]);
  return s;
}

void main()
{
  const uint n0 = arguments.n0, n1 = arguments.n1, n2 = arguments.n2, lane = gl_LocalInvocationID.x;
  const uvec2 x0 = arguments.x0, m0 = arguments.m0, d0 = arguments.d0;
  const float scale = arguments.scale;
  const uint first = group_number() * arguments.rows_each, last = min(first + arguments.rows_each, n1 * n2 * arguments.n3);
  for (uint row = first; row < last; row++) {
    const Place r = place_of(row, n1, n2);
    const uint head = r.i2, past = head - arguments.first_heads;
    const float power = head < arguments.first_heads ? arguments.exponent * float(head + 1) : arguments.second_exponent * float(2 * past + 1);
    const float slope = exp_of(power * 0.693147181);
    const uvec2 x_row = row_at(arguments.x, r, arguments.x1, arguments.x2, arguments.x3, X_DTYPE);
    const uvec2 d_row = row_at(arguments.d, r, arguments.d1, arguments.d2, arguments.d3, D_DTYPE);
    uvec2 mask_row = uvec2(0);
    if (!is_absent(arguments.mask)) {
      const Place place = Place(wrapped(r.i1, arguments.m_n1), wrapped(r.i2, arguments.m_n2), wrapped(r.i3, arguments.m_n3));
      mask_row = row_at(arguments.mask, place, arguments.m1, arguments.m2, arguments.m3, M_DTYPE);
    }
    float sink = -INFINITY;
    if (!is_absent(arguments.sinks)) sink = load_1(element_at(arguments.sinks, head, arguments.sinks0, F32), F32);
    float most = -INFINITY;
    for (uint c = lane * 4; c < n0; c += GROUP * 4) {
      const vec4 v = scores_at(x_row, mask_row, x0, m0, scale, slope, c, n0);
      for (uint e = 0; e < 4; e++) most = v[e] > most ? v[e] : most;
    }
    float top = group_max(most, lane);
    top = sink > top ? sink : top;
    /* Where nothing is seen, all weights are 0. */
    const float subtracted = top == -INFINITY ? 0.0 : top;
    vec4 sum = vec4(0.0);
    for (uint c = lane * 4; c < n0; c += GROUP * 4)
      sum += weights_of(scores_at(x_row, mask_row, x0, m0, scale, slope, c, n0) - subtracted);
    const float total = group_sum(sum_of(sum), lane) + weights_of(vec4(sink - subtracted)).x;
    const float factor = total == 0.0 ? 0.0 : 1.0 / total;
    for (uint c = lane * 4; c < n0; c += GROUP * 4) {
      const vec4 v = weights_of(scores_at(x_row, mask_row, x0, m0, scale, slope, c, n0) - subtracted) * factor;
      store_four(element_at(d_row, c, d0, D_DTYPE), d0, n0 - c, v, D_DTYPE);
    }
  }
}
