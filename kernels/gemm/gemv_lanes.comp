#version 460
#extension GL_GOOGLE_include_directive : require
#include "../elements.glsl"
#include "epilogue.glsl"
#include "blocks.glsl"
/* Products with at most 8 rows (or columns) on one side, on devices with many narrow lanes: decoding. The large operand w is read once,
 * as it lies. w is b and x is a, or, where d has few columns, the other way round: rows of w are columns of b, or rows of a.
 *
 *   ALONG_K 1    w's rows lie along k                         ALONG_K 0    w's rows lie side by side
 *
 *       k ->  lane 0   1   2 ..  0   1 ..                          row 4 * lane ->  lane 0   1   2 ..
 *   row 0     [....][....][....][....] ..   team 0             k 0    team 0        [....][....][....]
 *   row 1     [....][....][....][....] ..                      k 1    team 1        [....][....][....]
 *   row ROWS  [....][....][....][....] ..   team 1             k 2    team 2        [....][....][....]
 *
 *   a lane takes four k at a time of ROWS rows,               a lane takes four rows at one k, teams take turns;
 *   a team's lanes are added up at the end                    the teams are added up at the end
 *
 * Sums are added up in shared memory, always in the same order. Neighbouring lanes read neighbouring bytes. Any strides are right; fours are
 * loaded at once where they are contiguous and aligned.
 *
 *   grid (w's rows / rows of a group, 1, batches)       group (GROUP, 1, 1)
 *
 * Constant  default  meaning
 * GROUP     256      invocations of a work-group
 * LANES     32       invocations of a team
 * ROWS      4        rows of w in one invocation (4 unless ALONG_K)
 * X_ROWS    1        rows of x that are computed together, at least as many as there are
 * ALONG_K   1        see above
 * SWIGLU    0        1: a row of w in the first half is gate, the same one in the second half its value
 * A_DTYPE, B_DTYPE   dtype codes of x and of w
 * C_DTYPE, D_DTYPE   dtype codes; C_DTYPE of bias too
 *
 * Macro    default  meaning
 * INTEGER  0        1: a and b are i8
 *
 * No GPU has run it yet: what it was measured on says README.md.
 */
layout(constant_id = 0) const uint GROUP = 256;
layout(constant_id = 1) const uint LANES = 32;
layout(constant_id = 2) const uint ROWS = 4;
layout(constant_id = 3) const uint X_ROWS = 1;
layout(constant_id = 4) const uint ALONG_K = 1;
layout(constant_id = 5) const uint SWIGLU = 0;
layout(constant_id = 6) const uint A_DTYPE = F32;
layout(constant_id = 7) const uint B_DTYPE = F32;
layout(constant_id = 8) const uint C_DTYPE = F32;
layout(constant_id = 9) const uint D_DTYPE = F32;
layout(local_size_x_id = 0) in;

const uint TEAMS = GROUP / LANES;
const uint PARTS = SWIGLU != 0 ? 2 : 1;
/* Rows of w in an invocation, gate and value; rows of d in a group. */
const uint W_ROWS = PARTS * ROWS;
const uint OUTPUTS = ROWS * (ALONG_K != 0 ? TEAMS : LANES);

layout(buffer_reference, scalar, buffer_reference_align = 4) readonly buffer Arguments {
  uvec2 w, x, c, bias, d;
  uint w_rows, x_rows, k, batch_inner;
  float alpha, beta;
  uint has, activation;
  uvec2 w_row, w_k, w_outer, w_inner;
  uvec2 x_row, x_k, x_outer, x_inner;
  uvec2 c_xrow, c_wrow, c_outer, c_inner;
  uvec2 bias_xrow, bias_wrow;
  uvec2 d_xrow, d_wrow, d_outer, d_inner;
};
layout(push_constant, scalar) uniform Push { Arguments at; } arguments;

#if INTEGER
#define four_t ivec4
#else
#define four_t vec4
#endif

/* Of row i of w and row j of x: [i][j] */
sum_t sums[W_ROWS * X_ROWS];
/* The same where an index may be anything. */
sum_t finished[W_ROWS * X_ROWS];
shared sum_t partial[W_ROWS * GROUP];

uvec2 batch_of(uvec2 address, uvec2 outer_stride, uvec2 inner_stride, const uint dtype)
{
  uint outer = gl_WorkGroupID.z / arguments.at.batch_inner, inner = gl_WorkGroupID.z - outer * arguments.at.batch_inner;
  return element_at(element_at(address, outer, outer_stride, dtype), inner, inner_stride, dtype);
}

sum_t load_sum(uvec2 address, const uint dtype)
{
#if INTEGER
  return load_i8(address);
#else
  return load_1(address, dtype);
#endif
}

/* Four elements `step` apart, of which the first `live` exist; the rest are zero. */
four_t load_four(uvec2 at, uvec2 step, uint live, bool by_four, const uint dtype)
{
  if (by_four && live >= 4) {
#if INTEGER
    int word = load_i32(at);
    return ivec4(bitfieldExtract(word, 0, 8), bitfieldExtract(word, 8, 8), bitfieldExtract(word, 16, 8), word >> 24);
#else
    return load_4(at, dtype);
#endif
  }
  four_t v = four_t(0);
  [[unroll]] for (uint i = 0; i < 4; i++)
    if (i < live) v[i] = load_sum(element_at(at, i, step, dtype), dtype);
  return v;
}

/* Whether fours may be loaded at once: `step` lies between the elements, `other` between the fours. */
bool lies_by_four(uvec2 at, uvec2 step, uvec2 other, const uint dtype)
{
  return is_stride(step, 1) && is_aligned_4(at, dtype) && is_aligned_4(bytes_of(other, dtype), dtype);
}

/* Lanes along k */
void multiply_along_k(uvec2 w, uvec2 x, uint first, uint half_rows, uint lane, uint team)
{
  uint k = arguments.at.k, w_last = arguments.at.w_rows / PARTS - 1, x_last = arguments.at.x_rows - 1;
  uvec2 w_k = arguments.at.w_k, x_k = arguments.at.x_k;
  uvec2 w_at[W_ROWS], x_at[X_ROWS];
  [[unroll]] for (uint i = 0; i < W_ROWS; i++)
    w_at[i] = element_at(w, min(first + team * ROWS + i % ROWS, w_last) + i / ROWS * half_rows, arguments.at.w_row, unit_of(B_DTYPE));
  [[unroll]] for (uint j = 0; j < X_ROWS; j++) x_at[j] = element_at(x, min(j, x_last), arguments.at.x_row, A_DTYPE);
  bool w_by_four = lies_by_four(w, w_k, arguments.at.w_row, B_DTYPE), x_by_four = lies_by_four(x, x_k, arguments.at.x_row, A_DTYPE);
  for (uint kk = lane * 4; kk < k; kk += LANES * 4) {
    uint live = min(k - kk, 4);
    four_t xs[X_ROWS];
    [[unroll]] for (uint j = 0; j < X_ROWS; j++) xs[j] = load_four(element_at(x_at[j], kk, x_k, A_DTYPE), x_k, live, x_by_four, A_DTYPE);
    [[unroll]] for (uint i = 0; i < W_ROWS; i++) {
#if INTEGER
      four_t v = load_four(element_at(w_at[i], kk, w_k, B_DTYPE), w_k, live, w_by_four, B_DTYPE);
#else
      four_t v = is_blocks(B_DTYPE) ? load_weights_4(w_at[i], kk, B_DTYPE)
                                    : load_four(element_at(w_at[i], kk, w_k, B_DTYPE), w_k, live, w_by_four, B_DTYPE);
#endif
      [[unroll]] for (uint j = 0; j < X_ROWS; j++)
        sums[i * X_ROWS + j] += v.x * xs[j].x + v.y * xs[j].y + (v.z * xs[j].z + v.w * xs[j].w);
    }
  }
}

/* Lanes along w's rows */
void multiply_across(uvec2 w, uvec2 x, uint first, uint half_rows, uint lane, uint team)
{
  uint k = arguments.at.k, rows = arguments.at.w_rows / PARTS, row = first + lane * 4, there = rows - min(rows, row), x_last = arguments.at.x_rows - 1;
  uvec2 w_row = arguments.at.w_row, w_k = arguments.at.w_k, x_k = arguments.at.x_k;
  uvec2 w_at[PARTS], x_at[X_ROWS];
  bool by_four = lies_by_four(w, w_row, w_k, B_DTYPE);
  [[unroll]] for (uint p = 0; p < PARTS; p++) {
    w_at[p] = element_at(w, min(row, rows - 1) + p * half_rows, w_row, B_DTYPE);
    by_four = by_four && is_aligned_4(w_at[p], B_DTYPE);
  }
  [[unroll]] for (uint j = 0; j < X_ROWS; j++) x_at[j] = element_at(x, min(j, x_last), arguments.at.x_row, A_DTYPE);
  for (uint k0 = team; k0 < k; k0 += TEAMS * 4) {
    [[unroll]] for (uint u = 0; u < 4; u++) {
      uint kk = k0 + u * TEAMS, live = kk < k ? there : 0;
      sum_t xs[X_ROWS];
      [[unroll]] for (uint j = 0; j < X_ROWS; j++) xs[j] = kk < k ? load_sum(element_at(x_at[j], kk, x_k, A_DTYPE), A_DTYPE) : sum_t(0);
      [[unroll]] for (uint p = 0; p < PARTS; p++) {
        four_t v = load_four(element_at(w_at[p], kk, w_k, B_DTYPE), w_row, live, by_four, B_DTYPE);
        [[unroll]] for (uint r = 0; r < 4; r++)
          [[unroll]] for (uint j = 0; j < X_ROWS; j++) sums[(p * ROWS + r) * X_ROWS + j] += v[r] * xs[j];
      }
    }
  }
}

void main()
{
  uint item = gl_LocalInvocationID.x, team = item / LANES, lane = item % LANES;
  uint first = gl_WorkGroupID.x * OUTPUTS, rows = arguments.at.w_rows / PARTS, half_rows = SWIGLU != 0 ? rows : 0;
  uvec2 w = batch_of(arguments.at.w, arguments.at.w_outer, arguments.at.w_inner, unit_of(B_DTYPE));
  uvec2 x = batch_of(arguments.at.x, arguments.at.x_outer, arguments.at.x_inner, A_DTYPE);
  [[unroll]] for (uint i = 0; i < W_ROWS * X_ROWS; i++) sums[i] = sum_t(0);
  if (ALONG_K != 0) multiply_along_k(w, x, first, half_rows, lane, team);
  else multiply_across(w, x, first, half_rows, lane, team);
  [[unroll]] for (uint i = 0; i < W_ROWS * X_ROWS; i++) finished[i] = sums[i];

  uvec2 c = batch_of(arguments.at.c, arguments.at.c_outer, arguments.at.c_inner, C_DTYPE);
  uvec2 d = batch_of(arguments.at.d, arguments.at.d_outer, arguments.at.d_inner, D_DTYPE);
  uvec2 c_wrow = arguments.at.c_wrow, bias_wrow = arguments.at.bias_wrow;
  uvec2 c_up = bytes_of(multiply_64(half_rows, c_wrow), C_DTYPE), bias_up = bytes_of(multiply_64(half_rows, bias_wrow), C_DTYPE);
  /* What is added up lies `apart` from one another. */
  uint many = ALONG_K != 0 ? LANES : TEAMS, place = ALONG_K != 0 ? lane : team, apart = ALONG_K != 0 ? 1 : LANES;
  for (uint j = 0; j < arguments.at.x_rows; j++) {
    [[unroll]] for (uint i = 0; i < W_ROWS; i++) partial[i * GROUP + item] = finished[i * X_ROWS + j];
    barrier();
    for (uint step = many / 2; step != 0; step /= 2) {
      if (place < step)
        [[unroll]] for (uint i = 0; i < W_ROWS; i++) partial[i * GROUP + item] += partial[i * GROUP + item + step * apart];
      barrier();
    }
    for (uint output_row = item; output_row < OUTPUTS; output_row += GROUP) {
      uint row = first + output_row, at = output_row % ROWS * GROUP + output_row / ROWS * (ALONG_K != 0 ? LANES : 1);
      if (row >= rows) continue;
      uvec2 c_at = element_at(element_at(c, j, arguments.at.c_xrow, C_DTYPE), row, c_wrow, C_DTYPE);
      uvec2 bias_at = element_at(element_at(arguments.at.bias, j, arguments.at.bias_xrow, C_DTYPE), row, bias_wrow, C_DTYPE);
      uvec2 d_at = element_at(element_at(d, j, arguments.at.d_xrow, D_DTYPE), row, arguments.at.d_wrow, D_DTYPE);
      store_sum(partial[at], partial[at + (PARTS - 1) * ROWS * GROUP], arguments.at.alpha, arguments.at.beta, arguments.at.has,
                arguments.at.activation, c_at, c_up, bias_at, bias_up, d_at, C_DTYPE, D_DTYPE);
    }
    barrier();
  }
}
