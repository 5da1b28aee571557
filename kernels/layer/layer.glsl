/* What the GLSL kernels of this folder share: rows of strided tensors, in fours where they lie side by side.
 *
 * Specialization constant:
 *   GROUP  64  invocations of a group
 */
#extension GL_GOOGLE_include_directive : require
#include "../elements.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint GROUP = 64;

#define INFINITY uintBitsToFloat(0x7f800000u)

/* Where a row lies among the planes it is of, from its number. */
struct Place { uint i1, i2, i3; };

Place place_of(uint row, uint n1, uint n2)
{
  /* Divisions cost more than a few elements' work. */
  if (row < n1) return Place(row, 0, 0);
  const uint plane = row / n1;
  return Place(row % n1, plane % n2, plane / n2);
}

uvec2 row_at(uvec2 address, Place r, uvec2 s1, uvec2 s2, uvec2 s3, const uint dtype)
{
  return element_at(element_at(element_at(address, r.i1, s1, dtype), r.i2, s2, dtype), r.i3, s3, dtype);
}

/* The group's number: they are asked for in two dimensions, of which devices bound each. */
uint group_number() { return gl_WorkGroupID.y * gl_NumWorkGroups.x + gl_WorkGroupID.x; }

/* Repeats an axis of `extent` elements. */
uint wrapped(uint index, uint extent) { return index < extent ? index : index % extent; }

/* Four elements `stride` apart, of which the first `live` exist; the others are `rest`. They are aligned as each of them is. */
vec4 load_four(uvec2 address, uvec2 stride, uint live, float rest, const uint dtype)
{
  if (live >= 4u && is_stride(stride, 1) && is_aligned_4(address, dtype)) return load_4(address, dtype);
  vec4 v = vec4(rest);
  for (uint e = 0; e < min(live, 4u); e++) v[e] = load_1(element_at(address, e, stride, dtype), dtype);
  return v;
}

/* I32 is cut off towards zero, NaN becomes 0. */
void store_four(uvec2 address, uvec2 stride, uint live, vec4 v, const uint dtype)
{
  if (dtype == I32) v = trunc(v);
  if (live >= 4u && is_stride(stride, 1) && is_aligned_4(address, dtype)) {
    store_4(address, v, dtype);
    return;
  }
  for (uint e = 0; e < min(live, 4u); e++) store_1(element_at(address, e, stride, dtype), v[e], dtype);
}

float sum_of(vec4 v) { return (v.x + v.z) + (v.y + v.w); }
