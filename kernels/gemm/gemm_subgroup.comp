#version 460
#extension GL_GOOGLE_include_directive : require
#include "../elements.glsl"
#include "blocks.glsl"
#include "subgroup.glsl"
/* d = act(alpha a b + beta c + bias), a tile of d for each subgroup: products of any shape on devices whose loads and shared memory
 * are dear and whose registers are cheap, as those that run on a CPU. The tile is multiplied in subgroup.glsl; nothing is packed, so there
 * is no workspace. With few rows ROWS is their number and b is read once: this is the matrix-vector product too (with few columns, the
 * planner hands over the transposed problem).
 *
 *   grid (columns / (OUTPUTS * LANES), m / ROWS, batches)       group (LANES, 1, 1)
 *
 * Constant    default  meaning
 * HAS         0        bits of what the epilogue reads and how: 1 c, 2 bias, 4 exact in integers
 * ACTIVATION  0        activation code
 * C_DTYPE, D_DTYPE     dtype codes, C_DTYPE of bias too
 * (those of subgroup.glsl)
 *
 * Measured against ggml's and burn's Vulkan backends on lavapipe: README.md.
 */
layout(constant_id = 8) const uint HAS = 0;
layout(constant_id = 9) const uint ACTIVATION = 0;
layout(constant_id = 10) const uint C_DTYPE = F32;
layout(constant_id = 11) const uint D_DTYPE = F32;

#define HAS_C 1u
#define HAS_BIAS 2u
#define EXACT 4u

layout(buffer_reference, scalar, buffer_reference_align = 4) readonly buffer Arguments {
  uvec2 a, b, c, bias, d;
  uint m, n, k, batch_inner;
  float alpha, beta;
  uvec2 a_row, a_k, a_outer, a_inner;
  uvec2 b_k, b_column, b_outer, b_inner;
  uvec2 c_row, c_column, c_outer, c_inner;
  uvec2 bias_row, bias_column;
  uvec2 d_row, d_column, d_outer, d_inner;
};
layout(push_constant, scalar) uniform Push { Arguments at; } arguments;

uvec2 batch_of(uvec2 address, uvec2 outer_stride, uvec2 inner_stride, const uint dtype)
{
  uint outer = gl_WorkGroupID.z / arguments.at.batch_inner, inner = gl_WorkGroupID.z - outer * arguments.at.batch_inner;
  return element_at(element_at(address, outer, outer_stride, dtype), inner, inner_stride, dtype);
}

#if INTEGER
/* A whole number of 64 bits, since three of 32 may not fit in 32. */
struct Wide { uint low; int high; };

Wide add(Wide v, int x)
{
  uint carry;
  v.low = uaddCarry(v.low, uint(x), carry);
  v.high += (x >> 31) + int(carry);
  return v;
}

void store_wide(uvec2 address, Wide v)
{
  if (ACTIVATION == ACTIVATION_RELU && v.high < 0) v = Wide(0, 0);
  bool fits = v.high == int(v.low) >> 31;
  int word = fits ? int(v.low) : v.high < 0 ? int(0x80000000u) : 0x7fffffff;
  if (D_DTYPE == I32) store_word(address, uint(word));
  else if (D_DTYPE == I8) store_i8(address, clamp(word, -128, 127));
  else {
    /* Both parts are exact in f32, so that their sum is rounded once. */
    int upper = int(uint(v.high) << 23 | v.low >> 9);
    store_word(address, floatBitsToUint(float(upper) * 512.0 + float(v.low & 511u)));
  }
}
#endif

/* alpha * sum + beta * c + bias at one place */
float affine(sum_t sum, float alpha, float beta, uvec2 c_at, uvec2 bias_at)
{
  float v = alpha * float(sum);
  if ((HAS & HAS_C) != 0) v = beta * load_1(c_at, C_DTYPE) + v;
  if ((HAS & HAS_BIAS) != 0) v += load_1(bias_at, C_DTYPE);
  return v;
}

/* Tiles are taken in bands of this many rows of tiles, column after column: what the band reads of a, and a column of tiles of b, stay in
 * a level 2 cache while they are read again. */
const uint BAND = 4;

uvec2 place_of_tile()
{
  uint index = gl_WorkGroupID.y * gl_NumWorkGroups.x + gl_WorkGroupID.x, band = index / (gl_NumWorkGroups.x * BAND);
  uint within = index - band * (gl_NumWorkGroups.x * BAND), height = min(BAND, gl_NumWorkGroups.y - band * BAND);
  return uvec2(within / height, band * BAND + within % height);
}

void main()
{
  uvec2 place = place_of_tile();
  uint m = arguments.at.m, n = arguments.at.n, columns = SWIGLU != 0 ? n / 2 : n, row0 = place.y * ROWS, tile = place.x;
  uvec2 a = batch_of(arguments.at.a, arguments.at.a_outer, arguments.at.a_inner, A_DTYPE);
  uvec2 b = batch_of(arguments.at.b, arguments.at.b_outer, arguments.at.b_inner, unit_of(B_DTYPE));
  multiply(a, arguments.at.a_row, arguments.at.a_k, row0, m, b, arguments.at.b_k, arguments.at.b_column, tile, columns, arguments.at.k);
  finish_sums();
  float alpha = arguments.at.alpha, beta = arguments.at.beta;
  uvec2 c_row = arguments.at.c_row, c_column = arguments.at.c_column, d_row = arguments.at.d_row, d_column = arguments.at.d_column;
  uvec2 bias_row = arguments.at.bias_row, bias_column = arguments.at.bias_column;
  uvec2 c = batch_of(arguments.at.c, arguments.at.c_outer, arguments.at.c_inner, C_DTYPE);
  uvec2 d = batch_of(arguments.at.d, arguments.at.d_outer, arguments.at.d_inner, D_DTYPE);
  uvec2 bias = arguments.at.bias;
  uint live = min(ROWS, m - row0) * OUTPUTS;
  for (uint i = 0; i < live; i++) {
    uint r = i / OUTPUTS, j = i % OUTPUTS, row = row0 + r, column = column_of(tile, j, gl_SubgroupInvocationID);
    if (column >= columns) continue;
    uvec2 c_at = element_at(element_at(c, row, c_row, C_DTYPE), column, c_column, C_DTYPE);
    uvec2 bias_at = element_at(element_at(bias, row, bias_row, C_DTYPE), column, bias_column, C_DTYPE);
    uvec2 d_at = element_at(element_at(d, row, d_row, D_DTYPE), column, d_column, D_DTYPE);
    sum_t sum = finished[r * VECTORS + j];
#if INTEGER
    if ((HAS & EXACT) != 0) {
      Wide v = add(Wide(0, 0), sum);
      if ((HAS & HAS_C) != 0) v = add(v, load_i32(c_at));
      if ((HAS & HAS_BIAS) != 0) v = add(v, load_i32(bias_at));
      store_wide(d_at, v);
      continue;
    }
#endif
    float v = affine(sum, alpha, beta, c_at, bias_at);
    if (SWIGLU != 0) {
      v = silu(v) * affine(finished[r * VECTORS + OUTPUTS + j], alpha, beta, element_at(c_at, columns, c_column, C_DTYPE),
                           element_at(bias_at, columns, bias_column, C_DTYPE));
      store_1(d_at, v, D_DTYPE);
    } else {
      store_1(d_at, activate(v, ACTIVATION), D_DTYPE);
    }
  }
}
