#version 460
#extension GL_GOOGLE_include_directive : require
#include "../elements.glsl"
#include "blocks.glsl"
#include "tiled.glsl"
#include "epilogue.glsl"
/* d = act(alpha a b + beta c + bias) on devices with many narrow lanes: a tile of d for each work-group (tiled.glsl). Any strides,
 * transposes and broadcasts; nothing is packed beforehand, so it needs no workspace. Entry, arguments and tunables are those of gemm_tiled.cl.
 *
 *   grid (n / TILE, m / TILE, batches)       group (GROUP, GROUP, 1)
 *
 * No GPU has run it yet: what it was measured on says README.md.
 */
layout(buffer_reference, scalar, buffer_reference_align = 4) readonly buffer Arguments {
  uvec2 a, b, c, bias, d;
  uint m, n, k, batch_inner;
  float alpha, beta;
  uint has, activation;
  uvec2 a_row, a_k, a_outer, a_inner;
  uvec2 b_k, b_column, b_outer, b_inner;
  uvec2 c_row, c_column, c_outer, c_inner;
  uvec2 bias_column;
  uvec2 d_row, d_column, d_outer, d_inner;
};
layout(push_constant, scalar) uniform Push { Arguments at; } arguments;

const uint C_DTYPE = A_DTYPE == I8 ? I32 : A_DTYPE;

uvec2 batch_of(uvec2 address, uvec2 outer_stride, uvec2 inner_stride, const uint dtype)
{
  uint outer = gl_WorkGroupID.z / arguments.at.batch_inner, inner = gl_WorkGroupID.z - outer * arguments.at.batch_inner;
  return element_at(element_at(address, outer, outer_stride, dtype), inner, inner_stride, dtype);
}

void main()
{
  uint m = arguments.at.m, n = arguments.at.n, row0 = gl_WorkGroupID.y * TILE, tile = gl_WorkGroupID.x, activation = arguments.at.activation;
  bool swiglu = activation == ACTIVATION_SWIGLU;
  uvec2 a = batch_of(arguments.at.a, arguments.at.a_outer, arguments.at.a_inner, A_DTYPE);
  uvec2 b = batch_of(arguments.at.b, arguments.at.b_outer, arguments.at.b_inner, unit_of(B_DTYPE));
  multiply_tile(a, arguments.at.a_row, arguments.at.a_k, row0, m, b, arguments.at.b_k, arguments.at.b_column, tile, n, arguments.at.k, swiglu);
  finish_sums();
  float alpha = arguments.at.alpha, beta = arguments.at.beta;
  uint has = arguments.at.has;
  uvec2 c_row = arguments.at.c_row, c_column = arguments.at.c_column, bias_column = arguments.at.bias_column;
  uvec2 d_row = arguments.at.d_row, d_column = arguments.at.d_column;
  uvec2 c = batch_of(arguments.at.c, arguments.at.c_outer, arguments.at.c_inner, C_DTYPE);
  uvec2 d = batch_of(arguments.at.d, arguments.at.d_outer, arguments.at.d_inner, D_DTYPE);
  uvec2 bias = arguments.at.bias, c_up = bytes_of(multiply_64(n / 2, c_column), C_DTYPE), bias_up = bytes_of(multiply_64(n / 2, bias_column), C_DTYPE);
  uint step = swiglu ? 2 : 1;
  for (uint i = 0; i < PER_ITEM; i++) {
    uint row = row0 + i * GROUP + gl_LocalInvocationID.y;
    for (uint j = 0; j < PER_ITEM; j += step) {
      uint live, column = column_of(j * GROUP + gl_LocalInvocationID.x, tile, n, swiglu, live);
      if (row >= m || live == 0) continue;
      uvec2 c_at = element_at(element_at(c, row, c_row, C_DTYPE), column, c_column, C_DTYPE);
      uvec2 d_at = element_at(element_at(d, row, d_row, D_DTYPE), column, d_column, D_DTYPE);
      store_sum(finished[i * PER_ITEM + j], finished[i * PER_ITEM + min(j + 1, PER_ITEM - 1)], alpha, beta, has, activation, c_at, c_up,
                element_at(bias, column, bias_column, C_DTYPE), bias_up, d_at, C_DTYPE, D_DTYPE);
    }
  }
}
