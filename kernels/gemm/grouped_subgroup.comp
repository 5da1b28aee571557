#version 460
#extension GL_GOOGLE_include_directive : require
#include "../elements.glsl"
#include "blocks.glsl"
#include "subgroup.glsl"
/* Grouped products on devices whose loads and shared memory are dear: a tile of d for each subgroup (subgroup.glsl), its rows those of
 * one expert, found on the device by every subgroup for itself. Weights are read as they lie, no workspace.
 *
 *   offsets:  expert e has the blocks from floor(offset[e] / ROWS) + e on, up to those of expert e + 1: enough for its rows wherever
 *             they begin, and found by bisection. The rows past the last offset are those of one more expert, which zeroes them.
 *   counts:   ceil(capacity / ROWS) blocks for each expert; rows past the count are zeroed, what a holds there is not read
 *
 *   grid (columns / (OUTPUTS * LANES), blocks, 1)       group (LANES, 1, 1)
 *
 * Offsets and counts that are out of range are clamped and set the status word.
 *
 * Constant  default  meaning
 * MASKED    0        1: counts, a [experts, capacity, k]
 * D_DTYPE            dtype code
 * (those of subgroup.glsl)
 *
 * Measured against ggml's Vulkan backend on lavapipe: README.md.
 */
layout(constant_id = 8) const uint MASKED = 0;
layout(constant_id = 9) const uint D_DTYPE = F32;

layout(buffer_reference, scalar, buffer_reference_align = 4) readonly buffer Arguments {
  uvec2 a, b, routing, d, status;
  uint rows, experts, capacity, n, k;
  uvec2 a_expert, a_row, a_k;
  uvec2 b_expert, b_column, b_k;
  uvec2 d_expert, d_row, d_column;
};
layout(push_constant, scalar) uniform Push { Arguments at; } arguments;

int routing_at(uint index) { return load_i32(element_at(arguments.at.routing, index, I32)); }

/* The first row of an expert, within bounds whatever the device holds. */
uint first_row(uint expert) { return uint(clamp(routing_at(expert), 0, int(arguments.at.rows))); }

/* Sets the status word if offsets or counts are not what they should be: a lane looks at every LANES-th. */
void check_routing()
{
  uint rows = arguments.at.rows, experts = arguments.at.experts, capacity = arguments.at.capacity;
  bool sound = MASKED != 0 || routing_at(0) == 0;
  for (uint e = gl_SubgroupInvocationID; e < experts; e += LANES) {
    int next = routing_at(MASKED != 0 ? e : e + 1), least = MASKED != 0 ? 0 : routing_at(e);
    sound = sound && next >= least && next >= 0 && next <= int(MASKED != 0 ? capacity : rows);
  }
  if (!sound) report(arguments.at.status, 1);
}

void main()
{
  uint rows = arguments.at.rows, experts = arguments.at.experts, n = arguments.at.n, columns = SWIGLU != 0 ? n / 2 : n;
  uint block = gl_WorkGroupID.y, tile = gl_WorkGroupID.x;
  if (tile == 0 && block == 0) check_routing();
  /* Rows from begin to end are multiplied, those from end to limit are zeroed; all count from row `base` of a and d. */
  uint expert, base, begin, end, limit;
  if (MASKED != 0) {
    uint capacity = arguments.at.capacity, blocks = (capacity + ROWS - 1) / ROWS;
    expert = block / blocks;
    base = 0;
    begin = (block - expert * blocks) * ROWS;
    limit = min(begin + ROWS, capacity);
    end = clamp(uint(clamp(routing_at(expert), 0, int(capacity))), begin, limit);
  } else {
    uint above = experts + 1;
    for (expert = 0; above - expert > 1;) {
      uint middle = (expert + above) / 2;
      if (first_row(middle) / ROWS + middle <= block) expert = middle;
      else above = middle;
    }
    base = first_row(expert);
    uint next = expert < experts ? max(first_row(min(expert + 1, experts)), base) : rows;
    uint from_start = block - min(block, base / ROWS + expert);
    begin = min(from_start * ROWS, next - base);
    limit = min(begin + ROWS, next - base);
    end = expert < experts ? limit : begin;
  }
  uvec2 a = MASKED != 0 ? element_at(arguments.at.a, expert, arguments.at.a_expert, A_DTYPE) : element_at(arguments.at.a, base, arguments.at.a_row, A_DTYPE);
  uvec2 d = MASKED != 0 ? element_at(arguments.at.d, expert, arguments.at.d_expert, D_DTYPE) : element_at(arguments.at.d, base, arguments.at.d_row, D_DTYPE);
  uvec2 b = element_at(arguments.at.b, min(expert, experts - 1), arguments.at.b_expert, unit_of(B_DTYPE));
  /* Without rows there is nothing to read: k is then 0. */
  multiply(a, arguments.at.a_row, arguments.at.a_k, begin, max(end, 1), b, arguments.at.b_k, arguments.at.b_column, tile, columns,
           begin < end ? arguments.at.k : 0);
  finish_sums();
  uvec2 d_row = arguments.at.d_row, d_column = arguments.at.d_column;
  uint live = (limit - begin) * OUTPUTS;
  for (uint i = 0; i < live; i++) {
    uint r = i / OUTPUTS, j = i % OUTPUTS, row = begin + r, column = column_of(tile, j, gl_SubgroupInvocationID);
    if (column >= columns) continue;
    float v = float(finished[r * VECTORS + j]);
    if (SWIGLU != 0) v = silu(v) * float(finished[r * VECTORS + OUTPUTS + j]);
    store_1(element_at(element_at(d, row, d_row, D_DTYPE), column, d_column, D_DTYPE), row < end ? v : 0.0, D_DTYPE);
  }
}
