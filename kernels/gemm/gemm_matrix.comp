#version 460
#extension GL_GOOGLE_include_directive : require
#include "../elements.glsl"
#include "epilogue.glsl"
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_shader_subgroup_basic : require
/* d = act(alpha a b + beta c + bias) for f16 on matrix units (KHR_cooperative_matrix), summed in f32: a tile of d for each work-group. Any
 * strides, transposes and broadcasts; no workspace.
 *
 *              columns of b                   Tiles of a and b come to shared memory as lines along k, while the next ones are on
 *          +-------+-------+                  their way to registers. A part of the tile of d is MATRICES x MATRICES matrices of the
 *   TILE_K |  b    |       |                  device's shape, kept by one subgroup; four parts are a tile.
 *          +-------+-------+
 *   +----+ +-------+-------+                  Subgroups may be of any size: those that find no part help to load, and where there
 *   | a  | | part 0| part 1|                  are fewer than parts, the product is gone through again for the rest.
 *   +----+ +-------+-------+
 *   |    | | part 2| part 3|                  Under swiglu a part's columns alternate in strips of MATRIX_N: even strips are gate,
 *   +----+ +-------+-------+                  odd ones up.
 *
 *   grid (n / TILE_N, m / TILE_M, batches)       group (GROUP, 1, 1)
 *
 * Constant  default  meaning
 * GROUP     128      invocations of a work-group, a multiple of the largest subgroup
 * MATRICES  4        matrices of a part along each side, even
 * TILE_K    32       k that lie in shared memory at once, a multiple of MATRIX_K
 * MATRIX_M, MATRIX_N, MATRIX_K   the shape that the device multiplies
 * C_DTYPE, D_DTYPE   dtype codes; C_DTYPE of bias too
 *
 * No device has run it yet: it is compiled and validated.
 */
layout(constant_id = 0) const uint GROUP = 128;
layout(constant_id = 1) const uint MATRICES = 4;
layout(constant_id = 2) const uint TILE_K = 32;
layout(constant_id = 3) const uint MATRIX_M = 16;
layout(constant_id = 4) const uint MATRIX_N = 16;
layout(constant_id = 5) const uint MATRIX_K = 16;
layout(constant_id = 6) const uint D_DTYPE = F16;
layout(local_size_x_id = 0) in;

const uint PARTS = 4;
const uint PART_M = MATRICES * MATRIX_M;
const uint PART_N = MATRICES * MATRIX_N;
const uint TILE_M = 2 * PART_M;
const uint TILE_N = 2 * PART_N;
/* More than a line needs, so that lines begin in different banks. */
const uint PITCH = TILE_K + 8;
const uint A_LOADS = (TILE_M * TILE_K / 4 + GROUP - 1) / GROUP;
const uint B_LOADS = (TILE_N * TILE_K / 4 + GROUP - 1) / GROUP;

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

shared float16_t a_tile[TILE_M * PITCH];
shared float16_t b_tile[TILE_N * PITCH];
/* Two matrices of each part */
shared float finished[PARTS * 2 * MATRIX_M * MATRIX_N];

uvec2 batch_of(uvec2 address, uvec2 outer_stride, uvec2 inner_stride, const uint dtype)
{
  uint outer = gl_WorkGroupID.z / arguments.at.batch_inner, inner = gl_WorkGroupID.z - outer * arguments.at.batch_inner;
  return element_at(element_at(address, outer, outer_stride, dtype), inner, inner_stride, dtype);
}

/* An operand; its lines are rows of a or columns of b. */
struct Side { uvec2 at, line, k; bool along_k, by_four; };

Side side_of(uvec2 at, uvec2 line, uvec2 k)
{
  bool along_k = is_stride(k, 1);
  bool by_four = (along_k || is_stride(line, 1)) && is_aligned_4(at, F16) && is_aligned_4(bytes_of(along_k ? line : k, F16), F16);
  return Side(at, line, k, along_k, by_four);
}

/* The first line and k of a chunk, in the tile of so many lines. */
uvec2 place_of(uint chunk, bool along_k, uint lines)
{
  if (along_k) return uvec2(chunk / (TILE_K / 4), chunk % (TILE_K / 4) * 4);
  return uvec2(chunk % (lines / 4) * 4, chunk / (lines / 4));
}

/* Four elements from a line and k on, of which `lines` and `ks` exist; the rest are zero. */
f16vec4 load_chunk(Side x, uint line, uint lines, uint k, uint ks)
{
  uvec2 at = element_at(element_at(x.at, line, x.line, F16), k, x.k, F16);
  uint live = x.along_k ? lines == 0 ? 0 : min(ks, 4) : ks == 0 ? 0 : min(lines, 4);
  if (x.by_four && live == 4) {
    uvec2 pair = load_word_pair(at);
    return f16vec4(unpackFloat2x16(pair.x), unpackFloat2x16(pair.y));
  }
  uvec2 step = x.along_k ? x.k : x.line;
  f16vec4 v = f16vec4(0);
  [[unroll]] for (uint i = 0; i < 4; i++)
    if (i < live) v[i] = unpackFloat2x16(load_16_bits(element_at(at, i, step, F16))).x;
  return v;
}

/* The tile's column `x` in b, and how many exist from there on to the end of its strip. */
uint column_of(uint x, uint n, bool swiglu, out uint live)
{
  uint tile = gl_WorkGroupID.x;
  if (!swiglu) {
    uint column = tile * TILE_N + x;
    live = n - min(n, column);
    return column;
  }
  uint strip = x / MATRIX_N, in_half = tile * (TILE_N / 2) + strip / 2 * MATRIX_N + x % MATRIX_N;
  live = n / 2 - min(n / 2, in_half);
  return (strip % 2) * (n / 2) + in_half;
}

void main()
{
  uint m = arguments.at.m, n = arguments.at.n, k = arguments.at.k, row0 = gl_WorkGroupID.y * TILE_M, item = gl_LocalInvocationID.x;
  uint activation = arguments.at.activation, has = arguments.at.has;
  bool swiglu = activation == ACTIVATION_SWIGLU;
  Side a = side_of(batch_of(arguments.at.a, arguments.at.a_outer, arguments.at.a_inner, F16), arguments.at.a_row, arguments.at.a_k);
  Side b = side_of(batch_of(arguments.at.b, arguments.at.b_outer, arguments.at.b_inner, F16), arguments.at.b_column, arguments.at.b_k);
  if (swiglu && !b.along_k) b.by_four = b.by_four && is_aligned_4(element_at(b.at, n / 2, F16), F16);
  uvec2 c = batch_of(arguments.at.c, arguments.at.c_outer, arguments.at.c_inner, F16);
  uvec2 d = batch_of(arguments.at.d, arguments.at.d_outer, arguments.at.d_inner, D_DTYPE);
  uvec2 c_row = arguments.at.c_row, c_column = arguments.at.c_column, d_row = arguments.at.d_row, d_column = arguments.at.d_column;
  uvec2 bias = arguments.at.bias, bias_column = arguments.at.bias_column;
  uvec2 c_up = bytes_of(multiply_64(n / 2, c_column), F16), bias_up = bytes_of(multiply_64(n / 2, bias_column), F16);

  for (uint first = 0; first < PARTS; first += gl_NumSubgroups) {
    uint part = first + gl_SubgroupID;
    bool works = part < PARTS;
    uint part_row = part / 2 * PART_M, part_column = part % 2 * PART_N;
    coopmat<float, gl_ScopeSubgroup, MATRIX_M, MATRIX_N, gl_MatrixUseAccumulator> sums[MATRICES * MATRICES];
    [[unroll]] for (uint i = 0; i < MATRICES * MATRICES; i++)
      sums[i] = coopmat<float, gl_ScopeSubgroup, MATRIX_M, MATRIX_N, gl_MatrixUseAccumulator>(0.0);
    f16vec4 a_chunks[A_LOADS], b_chunks[B_LOADS];
    /* The round before the first only loads. */
    for (uint next = 0; next < k + TILE_K; next += TILE_K) {
      if (next != 0) {
        barrier();
        [[unroll]] for (uint i = 0; i < A_LOADS; i++) {
          uvec2 at = place_of(i * GROUP + item, a.along_k, TILE_M);
          uint step = a.along_k ? 1 : PITCH;
          if (i * GROUP + item < TILE_M * TILE_K / 4)
            [[unroll]] for (uint u = 0; u < 4; u++) a_tile[at.x * PITCH + at.y + u * step] = a_chunks[i][u];
        }
        [[unroll]] for (uint i = 0; i < B_LOADS; i++) {
          uvec2 at = place_of(i * GROUP + item, b.along_k, TILE_N);
          uint step = b.along_k ? 1 : PITCH;
          if (i * GROUP + item < TILE_N * TILE_K / 4)
            [[unroll]] for (uint u = 0; u < 4; u++) b_tile[at.x * PITCH + at.y + u * step] = b_chunks[i][u];
        }
        barrier();
      }
      if (next < k) {
        [[unroll]] for (uint i = 0; i < A_LOADS; i++) {
          uvec2 at = place_of(i * GROUP + item, a.along_k, TILE_M);
          uint row = row0 + at.x, k_at = next + at.y;
          if (i * GROUP + item < TILE_M * TILE_K / 4) a_chunks[i] = load_chunk(a, row, m - min(m, row), k_at, k - min(k, k_at));
        }
        [[unroll]] for (uint i = 0; i < B_LOADS; i++) {
          uvec2 at = place_of(i * GROUP + item, b.along_k, TILE_N);
          uint live, column = column_of(at.x, n, swiglu, live), k_at = next + at.y;
          if (i * GROUP + item < TILE_N * TILE_K / 4) b_chunks[i] = load_chunk(b, column, live, k_at, k - min(k, k_at));
        }
      }
      if (next == 0 || !works) continue;
      for (uint kk = 0; kk < TILE_K; kk += MATRIX_K) {
        coopmat<float16_t, gl_ScopeSubgroup, MATRIX_K, MATRIX_N, gl_MatrixUseB> bs[MATRICES];
        [[unroll]] for (uint j = 0; j < MATRICES; j++)
          coopMatLoad(bs[j], b_tile, (part_column + j * MATRIX_N) * PITCH + kk, PITCH, gl_CooperativeMatrixLayoutColumnMajor);
        [[unroll]] for (uint i = 0; i < MATRICES; i++) {
          coopmat<float16_t, gl_ScopeSubgroup, MATRIX_M, MATRIX_K, gl_MatrixUseA> as;
          coopMatLoad(as, a_tile, (part_row + i * MATRIX_M) * PITCH + kk, PITCH, gl_CooperativeMatrixLayoutRowMajor);
          [[unroll]] for (uint j = 0; j < MATRICES; j++) sums[i * MATRICES + j] = coopMatMulAdd(as, bs[j], sums[i * MATRICES + j]);
        }
      }
    }

    /* Two matrices at a time: gate and value lie side by side. */
    uint shelf = part * 2 * MATRIX_M * MATRIX_N, strips = swiglu ? 1 : 2;
    [[unroll]] for (uint i = 0; i < MATRICES; i++) {
      [[unroll]] for (uint j = 0; j < MATRICES; j += 2) {
        barrier();
        if (works) {
          coopMatStore(sums[i * MATRICES + j], finished, shelf, 2 * MATRIX_N, gl_CooperativeMatrixLayoutRowMajor);
          coopMatStore(sums[i * MATRICES + j + 1], finished, shelf + MATRIX_N, 2 * MATRIX_N, gl_CooperativeMatrixLayoutRowMajor);
        }
        barrier();
        for (uint e = gl_SubgroupInvocationID; works && e < strips * MATRIX_M * MATRIX_N; e += gl_SubgroupSize) {
          uint r = e / (strips * MATRIX_N), x = e % (strips * MATRIX_N), row = row0 + part_row + i * MATRIX_M + r;
          uint live, column = column_of(part_column + j * MATRIX_N + x, n, swiglu, live), at = shelf + r * 2 * MATRIX_N + x;
          if (row >= m || live == 0) continue;
          store_sum(finished[at], finished[shelf + r * 2 * MATRIX_N + x % MATRIX_N + MATRIX_N], arguments.at.alpha, arguments.at.beta, has, activation,
                    element_at(element_at(c, row, c_row, F16), column, c_column, F16), c_up, element_at(bias, column, bias_column, F16), bias_up,
                    element_at(element_at(d, row, d_row, D_DTYPE), column, d_column, D_DTYPE), F16, D_DTYPE);
        }
      }
    }
  }
}
