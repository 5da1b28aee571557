/* A tile of a product that a work-group multiplies through shared memory. Included by gemm_tiled.comp and grouped_tiled.comp, behind
 * elements.glsl and blocks.glsl.
 *
 *             TILE columns of b                a work-group of GROUP x GROUP invocations computes a TILE x TILE tile of d:
 *          +----------------+                  TILE_K columns of a and rows of b at a time come to shared memory, in f32,
 *   TILE_K |    b_tile      |                  while the next ones are on their way to registers. Each invocation keeps
 *          +----------------+                  PER_ITEM x PER_ITEM sums:
 *   +----+ +----------------+                  rows   y, y + GROUP, y + 2 GROUP, ...
 *   |    | |                |                  columns x, x + GROUP, ..., so that neighbours touch neighbours.
 *   | a  | |     d          |
 *   +----+ +----------------+                  Under swiglu the tile's columns alternate in strips of GROUP: even strips are gate,
 *                                              odd ones up, and an invocation finds both in its own sums.
 *
 * Elements are loaded by fours along the axis that is contiguous, where it is aligned. Elements of i8 lie in shared memory as words of four
 * k, and are summed in i32. Blocks of weights (blocks.glsl) may be b, loaded by fours along k.
 *
 * Constant  default  meaning
 * GROUP     16       invocations along each side of a work-group
 * PER_ITEM  4        sums of one invocation along each side, even
 * TILE_K    16       k that lie in shared memory at once
 * A_DTYPE, B_DTYPE, D_DTYPE   dtype codes
 *
 * Macro        default  meaning
 * INTEGER      0        1: a and b are i8
 * INTEGER_DOT  0        1: four products of i8 are one instruction (shaderIntegerDotProduct)
 */
#ifndef INTEGER
#define INTEGER 0
#endif
#ifndef INTEGER_DOT
#define INTEGER_DOT 0
#endif
#if INTEGER && INTEGER_DOT
/* OpSDot of words of four i8 each: GLSL's own name for it (GL_EXT_integer_dot_product) came later than compilers in use. */
#extension GL_EXT_spirv_intrinsics : require
spirv_instruction(extensions = ["SPV_KHR_integer_dot_product"], capabilities = [6018, 6019], id = 4450)
int dot_packed(int a, int b, spirv_literal int format);
#define FOUR_BYTES 0
#endif

layout(constant_id = 0) const uint GROUP = 16;
layout(constant_id = 1) const uint PER_ITEM = 4;
layout(constant_id = 2) const uint TILE_K = 16;
layout(constant_id = 3) const uint A_DTYPE = F32;
layout(constant_id = 4) const uint B_DTYPE = F32;
layout(constant_id = 5) const uint D_DTYPE = F32;
layout(local_size_x_id = 0, local_size_y_id = 0) in;

const uint TILE = GROUP * PER_ITEM;
const uint ITEMS = GROUP * GROUP;
/* Chunks of four elements that an invocation loads of each operand */
const uint LOADS = (TILE * TILE_K / 4 + ITEMS - 1) / ITEMS;

#if INTEGER
#define sum_t int
#define chunk_t int
/* Entries of a line in shared memory, and how many of them are multiplied in a row */
const uint DEPTH = TILE_K / 4;
#define UNROLL 2
#else
#define sum_t float
#define chunk_t vec4
const uint DEPTH = TILE_K;
#define UNROLL 4
#endif
/* One more than a line needs, so that columns fall into different banks. */
const uint PITCH = TILE + 1;

shared sum_t a_tile[DEPTH * PITCH];
shared sum_t b_tile[DEPTH * PITCH];

sum_t sums[PER_ITEM * PER_ITEM];

/* An operand; its lines are rows of a or columns of b. */
struct Side { uvec2 at, line, k; bool along_k, by_four; };

Side side_of(uvec2 at, uvec2 line, uvec2 k, const uint dtype)
{
  bool along_k = is_stride(k, 1);
  uvec2 other = along_k ? line : k;
  bool by_four = (along_k || is_stride(line, 1)) && is_aligned_4(at, dtype) && is_aligned_4(bytes_of(other, dtype), dtype);
  return Side(at, line, k, along_k, by_four);
}

/* The first line and k of a chunk, in the tile. */
uvec2 place_of(uint chunk, bool along_k)
{
  if (along_k) return uvec2(chunk / (TILE_K / 4), chunk % (TILE_K / 4) * 4);
#if INTEGER
  return uvec2(chunk % TILE, chunk / TILE * 4);
#else
  return uvec2(chunk % (TILE / 4) * 4, chunk / (TILE / 4));
#endif
}

/* Four elements from a line and k on, of which `lines` and `ks` exist; the rest are zero. */
chunk_t load_chunk(Side x, uint line, uint lines, uint k, uint ks, const uint dtype)
{
  uvec2 at = element_at(element_at(x.at, line, x.line, dtype), k, x.k, dtype);
#if INTEGER
  uint live = lines == 0 ? 0 : min(ks, 4);
  if (x.along_k && x.by_four && live == 4) return load_i32(at);
  int word = 0;
  [[unroll]] for (uint i = 0; i < 4; i++)
    if (i < live) word |= (load_i8(element_at(at, i, x.k, dtype)) & 0xff) << 8 * i;
  return word;
#else
  /* k ends at a whole block. */
  if (is_blocks(dtype)) return lines == 0 || ks == 0 ? vec4(0) : load_weights_4(element_at(x.at, line, x.line, I8), k, dtype);
  uint live = x.along_k ? lines == 0 ? 0 : min(ks, 4) : ks == 0 ? 0 : min(lines, 4);
  if (x.by_four && live == 4) return load_4(at, dtype);
  uvec2 step = x.along_k ? x.k : x.line;
  vec4 v = vec4(0);
  [[unroll]] for (uint i = 0; i < 4; i++)
    if (i < live) v[i] = load_1(element_at(at, i, step, dtype), dtype);
  return v;
#endif
}

/* The tile's column `x` in b, and how many exist from there on to the end of its strip. */
uint column_of(uint x, uint tile, uint n, bool swiglu, out uint live)
{
  if (!swiglu) {
    uint column = tile * TILE + x;
    live = n - min(n, column);
    return column;
  }
  uint strip = x / GROUP, in_half = tile * (TILE / 2) + strip / 2 * GROUP + x % GROUP;
  live = n / 2 - min(n / 2, in_half);
  return (strip % 2) * (n / 2) + in_half;
}

/* Sums of one tile: rows from `row0` on, of which there are `rows` in all, by the columns of a tile. */
void multiply_tile(uvec2 a_at, uvec2 a_row, uvec2 a_k, uint row0, uint rows, uvec2 b_at, uvec2 b_k, uvec2 b_column, uint tile, uint n, uint k, bool swiglu)
{
  uint x = gl_LocalInvocationID.x, y = gl_LocalInvocationID.y, item = y * GROUP + x;
  [[unroll]] for (uint i = 0; i < PER_ITEM * PER_ITEM; i++) sums[i] = sum_t(0);
  Side a = side_of(a_at, a_row, a_k, A_DTYPE), b = side_of(b_at, b_column, b_k, B_DTYPE);
  if (swiglu && !b.along_k) b.by_four = b.by_four && is_aligned_4(element_at(b_at, n / 2, B_DTYPE), B_DTYPE);
  chunk_t a_chunks[LOADS], b_chunks[LOADS];
  /* The round before the first only loads. */
  for (uint next = 0; next < k + TILE_K; next += TILE_K) {
    if (next != 0) {
      barrier();
      [[unroll]] for (uint i = 0; i < LOADS; i++) {
        uint chunk = i * ITEMS + item;
        if (chunk >= TILE * TILE_K / 4) continue;
        uvec2 at_a = place_of(chunk, a.along_k), at_b = place_of(chunk, b.along_k);
#if INTEGER
        a_tile[at_a.y / 4 * PITCH + at_a.x] = a_chunks[i];
        b_tile[at_b.y / 4 * PITCH + at_b.x] = b_chunks[i];
#else
        uint a_step = a.along_k ? PITCH : 1, b_step = b.along_k ? PITCH : 1;
        [[unroll]] for (uint u = 0; u < 4; u++) {
          a_tile[at_a.y * PITCH + at_a.x + u * a_step] = a_chunks[i][u];
          b_tile[at_b.y * PITCH + at_b.x + u * b_step] = b_chunks[i][u];
        }
#endif
      }
      barrier();
    }
    [[unroll]] for (uint i = 0; i < LOADS; i++) {
      uint chunk = i * ITEMS + item;
      if (chunk >= TILE * TILE_K / 4 || next >= k) continue;
      uvec2 at_a = place_of(chunk, a.along_k), at_b = place_of(chunk, b.along_k);
      uint row = row0 + at_a.x, k_a = next + at_a.y, k_b = next + at_b.y, columns, column = column_of(at_b.x, tile, n, swiglu, columns);
      a_chunks[i] = load_chunk(a, row, rows - min(rows, row), k_a, k - min(k, k_a), A_DTYPE);
      b_chunks[i] = load_chunk(b, column, columns, k_b, k - min(k, k_b), B_DTYPE);
    }
    if (next == 0) continue;
    for (uint kk = 0; kk < DEPTH; kk += UNROLL) {
      [[unroll]] for (uint u = 0; u < UNROLL; u++) {
        sum_t bs[PER_ITEM];
        [[unroll]] for (uint j = 0; j < PER_ITEM; j++) bs[j] = b_tile[(kk + u) * PITCH + j * GROUP + x];
        [[unroll]] for (uint i = 0; i < PER_ITEM; i++) {
          sum_t v = a_tile[(kk + u) * PITCH + i * GROUP + y];
          [[unroll]] for (uint j = 0; j < PER_ITEM; j++) {
#if INTEGER && INTEGER_DOT
            sums[i * PER_ITEM + j] += dot_packed(v, bs[j], FOUR_BYTES);
#elif INTEGER
            [[unroll]] for (int byte = 0; byte < 32; byte += 8)
              sums[i * PER_ITEM + j] += bitfieldExtract(v, byte, 8) * bitfieldExtract(bs[j], byte, 8);
#else
            sums[i * PER_ITEM + j] += v * bs[j];
#endif
          }
        }
      }
    }
  }
}

/* The same sums where an index may be anything: only the epilogue pays for the look-up. */
sum_t finished[PER_ITEM * PER_ITEM];

void finish_sums()
{
  [[unroll]] for (uint i = 0; i < PER_ITEM * PER_ITEM; i++) finished[i] = sums[i];
}
