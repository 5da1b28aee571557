/* norm_rows: each row divided by the root of its mean square, or centred and divided by its standard deviation; or its sum. The same entry,
 * arguments and steps as in norm.cl.
 *
 * Constants (the planner's), specialized
 *   KIND                       0 RMS, 1 LAYER, 2 SUM
 *   X_DTYPE, W_DTYPE, D_DTYPE  0 f32, 1 f16, 2 bf16
 * Tunables
 *   GROUP  invocations that share a row
 */
#version 460
#extension GL_GOOGLE_include_directive : require
#include "layer.glsl"

layout(constant_id = 1) const uint KIND = 0;
layout(constant_id = 2) const uint X_DTYPE = F32;
layout(constant_id = 3) const uint W_DTYPE = F32;
layout(constant_id = 4) const uint D_DTYPE = F32;

#define RMS 0
#define SUM 2

layout(push_constant, scalar) uniform Arguments
{
  uvec2 x, weight, d;
  uint n0, n1, n2, n3;
  uvec2 x0, x1, x2, x3, weight0;
  uvec2 d0, d1, d2, d3;
  float eps;
  uint rows_each;
} arguments;

shared float partial[GROUP];

#include "reduce.glsl"

void main()
{
  const uint n0 = arguments.n0, n1 = arguments.n1, n2 = arguments.n2, lane = gl_LocalInvocationID.x;
  const uvec2 x0 = arguments.x0, d0 = arguments.d0, weight = arguments.weight, weight0 = arguments.weight0;
  const uint first = group_number() * arguments.rows_each, last = min(first + arguments.rows_each, n1 * n2 * arguments.n3);
  for (uint row = first; row < last; row++) {
    const Place r = place_of(row, n1, n2);
    const uvec2 x_row = row_at(arguments.x, r, arguments.x1, arguments.x2, arguments.x3, X_DTYPE);
    const uvec2 d_row = row_at(arguments.d, r, arguments.d1, arguments.d2, arguments.d3, D_DTYPE);
    float mean = 0.0;
    if (KIND != RMS) {
      vec4 sum = vec4(0.0);
      for (uint c = lane * 4; c < n0; c += GROUP * 4) sum += load_four(element_at(x_row, c, x0, X_DTYPE), x0, n0 - c, 0.0, X_DTYPE);
      const float total = group_sum(sum_of(sum), lane);
      mean = total / float(n0);
      if (KIND == SUM && lane == 0) store_1(d_row, total, D_DTYPE);
    }
    if (KIND != SUM) {
      vec4 squares = vec4(0.0);
      for (uint c = lane * 4; c < n0; c += GROUP * 4) {
        const vec4 v = load_four(element_at(x_row, c, x0, X_DTYPE), x0, n0 - c, mean, X_DTYPE) - mean;
        squares += v * v;
      }
      const float scale = 1.0 / sqrt(group_sum(sum_of(squares), lane) / float(n0) + arguments.eps);
      for (uint c = lane * 4; c < n0; c += GROUP * 4) {
        vec4 v = (load_four(element_at(x_row, c, x0, X_DTYPE), x0, n0 - c, 0.0, X_DTYPE) - mean) * scale;
        if (!is_absent(weight)) v *= load_four(element_at(weight, c, weight0, W_DTYPE), weight0, n0 - c, 0.0, W_DTYPE);
        store_four(element_at(d_row, c, d0, D_DTYPE), d0, n0 - c, v, D_DTYPE);
      }
    }
  }
}
