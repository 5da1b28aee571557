/* argsort: the indices of each row's elements in order, or of its first `keep`. The same entries, arguments and steps as in argsort.cl, which
 * draws them. One entry a binary, by the macro of its name.
 *
 * Constants (the planner's), specialized
 *   X_DTYPE  0 f32, 1 f16, 2 bf16
 * Tunables
 *   GROUP  invocations of a group
 *   RUN    elements that are put in order by counting
 *   BLOCK  elements that a group merges
 */
#version 460
#extension GL_GOOGLE_include_directive : require
#include "layer.glsl"

layout(constant_id = 1) const uint X_DTYPE = F32;
layout(constant_id = 2) const uint RUN = 256;
layout(constant_id = 3) const uint BLOCK = 1024;

layout(push_constant, scalar) uniform Arguments
{
#ifdef ARGSORT_MERGE
  uvec2 x, from, to;
#else
  uvec2 x, to;
#endif
  uint n0, n1, n2, n3;
  uvec2 x0, x1, x2, x3;
  uvec2 to0, to1, to2, to3;
  uint keep, descending;
#ifdef ARGSORT_MERGE
  uint width, blocks;
#else
  uint runs;
#endif
} arguments;

/* Orders as the number does. -0 is 0. */
uint key_of(uvec2 address, uint descending)
{
  uint bits;
  if (X_DTYPE == F32) {
    bits = load_word(address);
  } else if (X_DTYPE == F16) {
    const uint half_bits = load_16_bits(address), magnitude = half_bits & 0x7fffu;
    /* Moved to where f32 has exponent and mantissa; a NaN stays one. */
    bits = (half_bits & 0x8000u) << 16 | magnitude << 13 | (magnitude > 0x7c00u ? 0x7f800000u : 0u);
  } else {
    bits = load_16_bits(address) << 16;
  }
  const uint size = bits & 0x7fffffffu;
  const uint ascending = size == 0u ? 0x80000000u : bits == size ? bits | 0x80000000u : ~bits;
  return size > 0x7f800000u ? 0xffffffffu : descending != 0u ? ~ascending : ascending;
}

#ifdef ARGSORT_MERGE
void main()
{
  const uint n0 = arguments.n0, keep = arguments.keep, width = arguments.width, descending = arguments.descending;
  const uint group = group_number(), row = group / arguments.blocks, block = group % arguments.blocks;
  if (row >= arguments.n1 * arguments.n2 * arguments.n3) return;
  const Place r = place_of(row, arguments.n1, arguments.n2);
  const uvec2 x = row_at(arguments.x, r, arguments.x1, arguments.x2, arguments.x3, X_DTYPE), x0 = arguments.x0;
  const uvec2 from = element_at(arguments.from, row, uvec2(n0, 0), I32);
  const uvec2 to = row_at(arguments.to, r, arguments.to1, arguments.to2, arguments.to3, I32);
  const uint end = min((block + 1) * BLOCK, n0);
  for (uint i = block * BLOCK + gl_LocalInvocationID.x; i < end; i += GROUP) {
    const uint run = i / width, own = i - run * width;
    if (own < keep) {
      const uint index = load_word(element_at(from, i, I32)), key = key_of(element_at(x, index, x0, X_DTYPE), descending);
      /* The other run of the pair, as far as there is one and it was kept. Equal elements of the first run come first. */
      const uint second = run & 1u, other = (run + 1u - 2u * second) * width;
      uint low = 0, high = other < n0 ? min(min(width, n0 - other), keep) : 0;
      while (low < high) {
        const uint middle = (low + high) / 2;
        const uint found = key_of(element_at(x, load_word(element_at(from, other + middle, I32)), x0, X_DTYPE), descending);
        if (found < key || (second == 1u && found == key)) low = middle + 1;
        else high = middle;
      }
      const uint before = own + low;
      if (before < keep) store_word(element_at(to, (run - second) * width + before, arguments.to0, I32), index);
    }
  }
}
#else
shared uint keys[RUN];

void main()
{
  const uint n0 = arguments.n0, lane = gl_LocalInvocationID.x, descending = arguments.descending;
  const uint group = group_number(), row = group / arguments.runs, begin = group % arguments.runs * RUN;
  if (row >= arguments.n1 * arguments.n2 * arguments.n3) return;
  const uint length = min(RUN, n0 - begin);
  const Place r = place_of(row, arguments.n1, arguments.n2);
  const uvec2 x = row_at(arguments.x, r, arguments.x1, arguments.x2, arguments.x3, X_DTYPE), x0 = arguments.x0;
  const uvec2 to = row_at(arguments.to, r, arguments.to1, arguments.to2, arguments.to3, I32);
  for (uint i = lane; i < length; i += GROUP) keys[i] = key_of(element_at(x, begin + i, x0, X_DTYPE), descending);
  barrier();
  for (uint i = lane; i < length; i += GROUP) {
    const uint key = keys[i];
    uint before = 0;
    for (uint j = 0; j < length; j++) before += keys[j] < key || (keys[j] == key && j < i) ? 1u : 0u;
    if (before < arguments.keep) store_word(element_at(to, begin + before, arguments.to0, I32), begin + i);
  }
}
#endif
