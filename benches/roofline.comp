// What a device can do at most: fused multiply-adds from registers, and bytes from and to memory. roofline.cl says it for OpenCL.
//
// ENTRY 0  peak_fma  every work-item runs 12 independent chains x = x * m + c, once for each of the WIDTH lanes that its share of
//                    the output has: one lane after the other, since drivers that keep a subgroup in vector registers
//                    have no room for 12 chains of vectors
// ENTRY 1  read_all  every work-item adds up its share of a buffer far beyond the caches, four vectors at a time
// ENTRY 2  copy_all  every work-item copies its share
//
//   INTERLEAVED 1   item 0: | 0 . . . 4 . . . |, item 1: | . 1 . . . 5 ... |   all items side by side, as GPUs like them
//   INTERLEAVED 0   group 0: | 0 1 0 1 |, group 1: | 2 3 2 3 |   each group its own stream, as CPUs like them
#version 460
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_scalar_block_layout : require

#ifndef ENTRY
#define ENTRY 0
#endif

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint GROUP = 256;
layout(constant_id = 1) const bool INTERLEAVED = true;

layout(buffer_reference, scalar, buffer_reference_align = 16) buffer Vector { vec4 value[]; };

#if ENTRY == 0
layout(push_constant, scalar) uniform Arguments { uvec2 to; uint iterations; float m; } arguments;
#else
layout(push_constant, scalar) uniform Arguments { uvec2 from; uvec2 to; uvec2 share; } arguments;
#endif

void main()
{
  const uint item = gl_GlobalInvocationID.x, items = gl_NumWorkGroups.x * GROUP;
  Vector to = Vector(arguments.to);
#if ENTRY == 0
  vec4 sums;
  for (uint lane = 0u; lane < 4u; ++lane) {
    const float m = arguments.m, c = float(item + lane) + 1.0;
    float x0 = 0.0, x1 = 1.0, x2 = 2.0, x3 = 3.0, x4 = 4.0, x5 = 5.0, x6 = 6.0, x7 = 7.0, x8 = 8.0, x9 = 9.0, xa = 10.0, xb = 11.0;
    for (uint i = 0u; i < arguments.iterations; ++i) {
      x0 = fma(x0, m, c); x1 = fma(x1, m, c); x2 = fma(x2, m, c); x3 = fma(x3, m, c);
      x4 = fma(x4, m, c); x5 = fma(x5, m, c); x6 = fma(x6, m, c); x7 = fma(x7, m, c);
      x8 = fma(x8, m, c); x9 = fma(x9, m, c); xa = fma(xa, m, c); xb = fma(xb, m, c);
    }
    sums[lane] = x0 + x1 + x2 + x3 + x4 + x5 + x6 + x7 + x8 + x9 + xa + xb;
  }
  to.value[item] = sums;
#else
  // A vector for each item and step: 2^32 of them are more than any stream here has.
  const uint share = arguments.share.x;
  Vector from = Vector(arguments.from);
  const uint first = INTERLEAVED ? item : gl_WorkGroupID.x * GROUP * share + gl_LocalInvocationID.x;
  const uint next = INTERLEAVED ? items : GROUP;
#if ENTRY == 1
  vec4 s0 = vec4(0.0), s1 = s0, s2 = s0, s3 = s0;
  for (uint i = 0u; i < share; i += 4u) {
    s0 += from.value[first + i * next];
    s1 += from.value[first + (i + 1u) * next];
    s2 += from.value[first + (i + 2u) * next];
    s3 += from.value[first + (i + 3u) * next];
  }
  to.value[item] = s0 + s1 + s2 + s3;
#else
  for (uint i = 0u; i < share; ++i)
    to.value[first + i * next] = from.value[first + i * next];
#endif
#endif
}
