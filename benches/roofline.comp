// What a device can do at most: fused multiply-adds from registers, and bytes from and to memory. roofline.cl says it for OpenCL.
//
// ENTRY 0  peak_fma  every work-item runs 12 independent chains x = x * m + c, once for each of the WIDTH lanes that its share of
//                    the output has: one lane after the other, since drivers that keep a subgroup in vector registers
//                    have no room for 12 chains of vectors. Eight steps a round, since some drivers blend whatever a round changes
// ENTRY 1  read_all  every work-item adds up its share of a buffer far beyond the caches, four vectors at a time
// ENTRY 2  copy_all  every work-item copies its share, four vectors at a time
//
// INT_64 1: words of 64 bits. lavapipe runs a load as a loop over the lanes, one for each word of a vector whatever its width, so
// that 32-bit words show half of what a kernel can read there.
//
//   INTERLEAVED 1   item 0: | 0 . . . 4 . . . |, item 1: | . 1 . . . 5 ... |   all items side by side, as GPUs like them
//   INTERLEAVED 0   group 0: | 0 1 0 1 |, group 1: | 2 3 2 3 |   each group its own stream, as CPUs like them
#version 460
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_scalar_block_layout : require
#extension GL_EXT_control_flow_attributes : require

#ifndef ENTRY
#define ENTRY 0
#endif
#ifndef INT_64
#define INT_64 0
#endif
#if INT_64
#extension GL_EXT_shader_explicit_arithmetic_types_int64 : require
#define vector_t u64vec2
#else
#define vector_t vec4
#endif

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint GROUP = 256;
layout(constant_id = 1) const bool INTERLEAVED = true;

layout(buffer_reference, scalar, buffer_reference_align = 16) buffer Vector { vec4 value[]; };
layout(buffer_reference, scalar, buffer_reference_align = 16) buffer Stream { vector_t value[]; };

#if ENTRY == 0
layout(push_constant, scalar) uniform Arguments { uvec2 to; uint iterations; float m; } arguments;
#else
layout(push_constant, scalar) uniform Arguments { uvec2 from; uvec2 to; uvec2 share; } arguments;
#endif

void main()
{
  const uint item = gl_GlobalInvocationID.x, items = gl_NumWorkGroups.x * GROUP;
#if ENTRY == 0
  Vector to = Vector(arguments.to);
  vec4 sums;
  for (uint lane = 0u; lane < 4u; ++lane) {
    const float m = arguments.m, c = float(item + lane) + 1.0;
    float x0 = 0.0, x1 = 1.0, x2 = 2.0, x3 = 3.0, x4 = 4.0, x5 = 5.0, x6 = 6.0, x7 = 7.0, x8 = 8.0, x9 = 9.0, xa = 10.0, xb = 11.0;
    for (uint i = 0u; i < arguments.iterations; i += 8u) {
      [[unroll]] for (uint step = 0u; step < 8u; ++step) {
        x0 = fma(x0, m, c); x1 = fma(x1, m, c); x2 = fma(x2, m, c); x3 = fma(x3, m, c);
        x4 = fma(x4, m, c); x5 = fma(x5, m, c); x6 = fma(x6, m, c); x7 = fma(x7, m, c);
        x8 = fma(x8, m, c); x9 = fma(x9, m, c); xa = fma(xa, m, c); xb = fma(xb, m, c);
      }
    }
    sums[lane] = x0 + x1 + x2 + x3 + x4 + x5 + x6 + x7 + x8 + x9 + xa + xb;
  }
  to.value[item] = sums;
#else
  // A vector for each item and step: 2^32 of them are more than any stream here has.
  const uint share = arguments.share.x;
  Stream from = Stream(arguments.from), to = Stream(arguments.to);
  const uint first = INTERLEAVED ? item : gl_WorkGroupID.x * GROUP * share + gl_LocalInvocationID.x;
  const uint next = INTERLEAVED ? items : GROUP;
#if ENTRY == 1
  vector_t s0 = vector_t(0), s1 = s0, s2 = s0, s3 = s0;
  for (uint i = 0u; i < share; i += 4u) {
    s0 += from.value[first + i * next];
    s1 += from.value[first + (i + 1u) * next];
    s2 += from.value[first + (i + 2u) * next];
    s3 += from.value[first + (i + 3u) * next];
  }
  to.value[item] = s0 + s1 + s2 + s3;
#else
  for (uint i = 0u; i < share; i += 4u) {
    vector_t v[4];
    [[unroll]] for (uint step = 0u; step < 4u; ++step) v[step] = from.value[first + (i + step) * next];
    [[unroll]] for (uint step = 0u; step < 4u; ++step) to.value[first + (i + step) * next] = v[step];
  }
#endif
#endif
}
