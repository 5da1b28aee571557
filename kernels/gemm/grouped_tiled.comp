#version 460
#extension GL_GOOGLE_include_directive : require
#include "../elements.glsl"
#include "blocks.glsl"
#include "tiled.glsl"
#include "routing.glsl"
/* Grouped products on devices with many narrow lanes: a tile of d for each work-group (tiled.glsl), its rows those of one expert,
 * found on the device (routing.glsl). Weights are read as they lie, no workspace. Entry, arguments and tunables are those of gemm_tiled.cl.
 *
 *   grid (n / TILE, blocks, 1)       group (GROUP, GROUP, 1)
 *
 * No GPU has run it yet: what it was measured on says README.md.
 */
layout(buffer_reference, scalar, buffer_reference_align = 4) readonly buffer Arguments {
  uvec2 a, b, routing, d, status;
  uint rows, experts, capacity, masked, n, k, activation;
  uvec2 a_expert, a_row, a_k;
  uvec2 b_expert, b_column, b_k;
  uvec2 d_expert, d_row, d_column;
};
layout(push_constant, scalar) uniform Push { Arguments at; } arguments;

void main()
{
  uint n = arguments.at.n, experts = arguments.at.experts, tile = gl_WorkGroupID.x, block = gl_WorkGroupID.y;
  uint rows = arguments.at.rows, capacity = arguments.at.capacity;
  bool masked = arguments.at.masked != 0, swiglu = arguments.at.activation == ACTIVATION_SWIGLU;
  uvec2 routing = arguments.at.routing;
  if (tile == 0 && block == 0) check_routing(routing, rows, experts, capacity, masked, arguments.at.status, gl_LocalInvocationIndex, ITEMS);
  Rows r = find_rows(routing, rows, experts, capacity, masked, block, TILE);
  uvec2 a = masked ? element_at(arguments.at.a, r.expert, arguments.at.a_expert, A_DTYPE) : element_at(arguments.at.a, r.base, arguments.at.a_row, A_DTYPE);
  uvec2 d = masked ? element_at(arguments.at.d, r.expert, arguments.at.d_expert, D_DTYPE) : element_at(arguments.at.d, r.base, arguments.at.d_row, D_DTYPE);
  uvec2 b = element_at(arguments.at.b, min(r.expert, experts - 1), arguments.at.b_expert, unit_of(B_DTYPE));
  /* Without rows there is nothing to read: k is then 0. */
  multiply_tile(a, arguments.at.a_row, arguments.at.a_k, r.begin, r.end, b, arguments.at.b_k, arguments.at.b_column, tile, n,
                r.begin < r.end ? arguments.at.k : 0, swiglu);
  finish_sums();
  uvec2 d_row = arguments.at.d_row, d_column = arguments.at.d_column;
  uint step = swiglu ? 2 : 1;
  for (uint i = 0; i < PER_ITEM; i++) {
    uint row = r.begin + i * GROUP + gl_LocalInvocationID.y;
    for (uint j = 0; j < PER_ITEM; j += step) {
      uint live, column = column_of(j * GROUP + gl_LocalInvocationID.x, tile, n, swiglu, live);
      if (row >= r.limit || live == 0) continue;
      float v = finished[i * PER_ITEM + j];
      if (swiglu) v = silu(v) * finished[i * PER_ITEM + min(j + 1, PER_ITEM - 1)];
      store_1(element_at(element_at(d, row, d_row, D_DTYPE), column, d_column, D_DTYPE), row < r.end ? v : 0.0, D_DTYPE);
    }
  }
}
