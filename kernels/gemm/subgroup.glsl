/* A tile of a product that one subgroup keeps in its registers. Included by gemm_subgroup.comp and grouped_subgroup.comp, behind elements.glsl
 * and blocks.glsl.
 *
 *                    lanes along columns, VECTORS of them             Each lane loads other elements, four along a contiguous axis at
 *                  l0 l1 .. l7 | l0 l1 .. l7 | ...                    once; nothing is loaded twice. Elements of a then reach the
 *             k    b  b  ..  b | b ...                                other lanes by shuffles with constant indices, which are one or
 *        k +-----+----------------------------+                       two instructions where they are not free; shared memory takes
 *   row 0  | a l0|  sums[0][0] | sums[0][1]   |                       no part. Four k a step; what does not divide by four, is not
 *   row 1  | a l1|  sums[1][0] | sums[1][1]   |                       aligned, or lies at an edge, goes through a second loop, element
 *   ..     | ..  |                            |                       by element. Rows and columns past the edge repeat the last one.
 *
 * Elements of i8 are summed in i32.
 *
 * Constant  default  meaning
 * LANES     8        invocations of a work-group, which lie in one subgroup
 * ROWS      32       rows of a tile
 * VECTORS   4        columns of a tile, in units of LANES
 * A_ORDER   0        where four elements of a lie side by side: 0 along k, 1 along rows (ROWS is then a multiple of 4 LANES), 2 nowhere
 * B_ORDER   0        where four elements of b lie side by side: 0 along k, 1 along columns (OUTPUTS is then a multiple of 4), 2 nowhere
 * SWIGLU    0        1: the first half of the vectors are gate columns, the second half the values of the same columns of d
 * A_DTYPE, B_DTYPE   dtype codes
 * DOTS      0        1: for few rows, lanes lie along k (multiply_dots); both orders are then 0, SWIGLU takes two vectors
 *
 * Macro    default  meaning
 * INTEGER  0        1: a and b are i8
 */
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_shuffle : require

#ifndef INTEGER
#define INTEGER 0
#endif
#if INTEGER
#define sum_t int
#define sum4_t ivec4
#else
#define sum_t float
#define sum4_t vec4
#endif

layout(constant_id = 0) const uint LANES = 8;
layout(constant_id = 1) const uint ROWS = 32;
layout(constant_id = 2) const uint VECTORS = 4;
layout(constant_id = 3) const uint A_ORDER = 0;
layout(constant_id = 4) const uint B_ORDER = 0;
layout(constant_id = 5) const uint SWIGLU = 0;
layout(constant_id = 6) const uint A_DTYPE = F32;
layout(constant_id = 7) const uint B_DTYPE = F32;
layout(constant_id = 12) const uint DOTS = 0;
layout(local_size_x_id = 0) in;

#define ALONG_K 0
#define ACROSS 1

/* Loads of a for one k, a row in each lane, and vectors of d's columns. */
const uint ROW_VECTORS = (ROWS + LANES - 1) / LANES;
const uint OUTPUTS = SWIGLU != 0 ? VECTORS / 2 : VECTORS;

sum_t sums[ROWS * VECTORS];

const bool A_ACROSS = A_ORDER == ACROSS;
const bool B_ACROSS = B_ORDER == ACROSS;

/* The place in the tile of vector `i`'s element in a lane: side by side in the lane, or in the lanes. */
uint place_of(uint i, uint lane, bool across) { return across ? (i / 4 * LANES + lane) * 4 + i % 4 : i * LANES + lane; }

/* The tile's column in d. */
uint column_of(uint tile, uint output_vector, uint lane) { return tile * (OUTPUTS * LANES) + place_of(output_vector, lane, B_ACROSS); }

sum_t load_sum_1(uvec2 address, const uint dtype)
{
#if INTEGER
  return load_i8(address);
#else
  return load_1(address, dtype);
#endif
}

sum4_t load_sum_4(uvec2 address, const uint dtype)
{
#if INTEGER
  int word = load_i32(address);
  return ivec4(bitfieldExtract(word, 0, 8), bitfieldExtract(word, 8, 8), bitfieldExtract(word, 16, 8), word >> 24);
#else
  return load_4(address, dtype);
#endif
}

bool is_multiple_of_4(uvec2 stride, const uint dtype) { return is_aligned_4(bytes_of(stride, dtype), dtype); }

/* Sums of the rows from row0 on (`rows` exist, at least one) with the columns of a tile (d has `columns`, at least one). */
void multiply_tile(uvec2 a, uvec2 a_row, uvec2 a_k, uint row0, uint rows, uvec2 b, uvec2 b_k, uvec2 b_column, uint tile, uint columns, uint k)
{
  uint lane = gl_SubgroupInvocationID;
  [[unroll]] for (uint i = 0; i < ROWS * VECTORS; i++) sums[i] = sum_t(0);
  uvec2 a_at[ROW_VECTORS], b_at[VECTORS];
  [[unroll]] for (uint i = 0; i < ROW_VECTORS; i++)
    a_at[i] = element_at(a, min(row0 + place_of(i, lane, A_ACROSS), rows - 1), a_row, A_DTYPE);
  [[unroll]] for (uint j = 0; j < VECTORS; j++)
    b_at[j] = element_at(b, min(column_of(tile, j % OUTPUTS, lane), columns - 1) + j / OUTPUTS * columns, b_column, B_DTYPE);
  uvec2 a_step = bytes_of(a_k, A_DTYPE), b_step = bytes_of(b_k, B_DTYPE);

  bool by_four = true;
  if (A_ORDER == ALONG_K) by_four = by_four && is_stride(a_k, 1) && is_aligned_4(a, A_DTYPE) && is_multiple_of_4(a_row, A_DTYPE);
  if (A_ACROSS) by_four = by_four && is_stride(a_row, 1) && is_aligned_4(element_at(a, row0, A_DTYPE), A_DTYPE) && is_multiple_of_4(a_k, A_DTYPE)
                          && row0 + ROW_VECTORS * LANES <= rows;
  if (B_ORDER == ALONG_K) by_four = by_four && is_stride(b_k, 1) && is_aligned_4(b, B_DTYPE) && is_multiple_of_4(b_column, B_DTYPE);
  if (B_ACROSS) by_four = by_four && is_stride(b_column, 1) && is_aligned_4(b, B_DTYPE) && is_multiple_of_4(b_k, B_DTYPE)
                          && (tile + 1) * (OUTPUTS * LANES) <= columns && (SWIGLU == 0 || is_aligned_4(element_at(b, columns, B_DTYPE), B_DTYPE));
  uint kk = 0;
  /* Addresses are computed anew in each round: what a round hands to the next costs more where lanes are masked. */
  for (; by_four && kk + 4 <= k; kk += 4) {
    uvec2 a_now = multiply_64(kk, a_step), b_now = multiply_64(kk, b_step);
    /* Of vector i, the elements of four k. */
    sum4_t av[ROW_VECTORS], bv[VECTORS];
    [[unroll]] for (uint i = 0; i < ROW_VECTORS; i++) {
      if (A_ORDER == ALONG_K) {
        av[i] = load_sum_4(address_add(a_at[i], a_now), A_DTYPE);
      } else if (A_ACROSS) {
        /* The vectors of a unit share their loads: k number i % 4, transposed below. */
        av[i] = load_sum_4(address_add(address_add(a_at[i / 4 * 4], a_now), multiply_64(i % 4, a_step)), A_DTYPE);
      } else {
        [[unroll]] for (uint u = 0; u < 4; u++) av[i][u] = load_sum_1(address_add(address_add(a_at[i], a_now), multiply_64(u, a_step)), A_DTYPE);
      }
    }
    [[unroll]] for (uint j = 0; j < VECTORS; j++) {
      if (B_ORDER == ALONG_K) {
        bv[j] = load_sum_4(address_add(b_at[j], b_now), B_DTYPE);
      } else if (B_ACROSS) {
        bv[j] = load_sum_4(address_add(address_add(b_at[j / 4 * 4], b_now), multiply_64(j % 4, b_step)), B_DTYPE);
      } else {
        [[unroll]] for (uint u = 0; u < 4; u++) bv[j][u] = load_sum_1(address_add(address_add(b_at[j], b_now), multiply_64(u, b_step)), B_DTYPE);
      }
    }
    [[unroll]] for (uint r = 0; r < ROWS; r++) {
      sum_t x[4];
      [[unroll]] for (uint u = 0; u < 4; u++)
        x[u] = A_ACROSS ? subgroupShuffle(av[r / (4 * LANES) * 4 + u][r % 4], r % (4 * LANES) / 4) : subgroupShuffle(av[r / LANES][u], r % LANES);
      [[unroll]] for (uint j = 0; j < VECTORS; j++)
        [[unroll]] for (uint u = 0; u < 4; u++) sums[r * VECTORS + j] += x[u] * (B_ACROSS ? bv[j / 4 * 4 + u][j % 4] : bv[j][u]);
    }
  }
  for (; kk < k; kk++) {
    uvec2 a_now = multiply_64(kk, a_step), b_now = multiply_64(kk, b_step);
    sum_t av[ROW_VECTORS], bv[VECTORS];
    [[unroll]] for (uint i = 0; i < ROW_VECTORS; i++) {
      av[i] = load_sum_1(address_add(a_at[i], a_now), A_DTYPE);
    }
    [[unroll]] for (uint j = 0; j < VECTORS; j++) {
      bv[j] = load_sum_1(address_add(b_at[j], b_now), B_DTYPE);
    }
    [[unroll]] for (uint r = 0; r < ROWS; r++) {
      sum_t x = A_ACROSS ? subgroupShuffle(av[r / (4 * LANES) * 4 + r % 4], r % (4 * LANES) / 4) : subgroupShuffle(av[r / LANES], r % LANES);
      [[unroll]] for (uint j = 0; j < VECTORS; j++) sums[r * VECTORS + j] += x * bv[j];
    }
  }
}

/* The sums of multiply_tile for few rows, in another order: lanes lie along k, so that what a subgroup reads of a column of b is one piece
 * of memory, in order. Each lane sums its share of every column; shuffles then add the shares, and leave column i of a vector in lane i.
 * Loops are counted in steps of one: drivers that unroll no others (lavapipe) would keep the shares in memory, lane by lane.
 */
const uint DOT_COLUMNS = DOTS != 0 ? VECTORS * LANES : 1;

/* Of every row and column, what this lane has added up. */
sum_t shares[ROWS * DOT_COLUMNS];

/* Adds the shares of the lanes of every row and column, and leaves column i of a vector in lane i. */
void add_shares()
{
  uint lane = gl_SubgroupInvocationID;
  [[unroll]] for (uint r = 0; r < ROWS; r++)
    [[unroll]] for (uint j = 0; j < VECTORS; j++) {
      sum_t mine = sum_t(0);
      [[unroll]] for (uint i = 0; i < LANES; i++) {
        sum_t total = shares[r * DOT_COLUMNS + min(j * LANES + i, DOT_COLUMNS - 1)];
        [[unroll]] for (uint bit = 0; bit < 5; bit++)
          if (1u << bit < LANES) total += subgroupShuffle(total, lane ^ 1u << bit);
        mine = lane == i ? total : mine;
      }
      sums[r * VECTORS + j] = mine;
    }
}

void multiply_dots(uvec2 a, uvec2 a_row, uvec2 a_k, uint row0, uint rows, uvec2 b, uvec2 b_k, uvec2 b_column, uint tile, uint columns, uint k)
{
  uint lane = gl_SubgroupInvocationID;
  uvec2 a_at[ROWS], b_at[DOT_COLUMNS];
  [[unroll]] for (uint r = 0; r < ROWS; r++) a_at[r] = element_at(a, min(row0 + r, rows - 1), a_row, A_DTYPE);
  [[unroll]] for (uint i = 0; i < DOT_COLUMNS; i++)
    b_at[i] = element_at(b, min(column_of(tile, i / LANES % OUTPUTS, i % LANES), columns - 1) + i / LANES / OUTPUTS * columns, b_column, B_DTYPE);
  [[unroll]] for (uint i = 0; i < ROWS * DOT_COLUMNS; i++) shares[i] = sum_t(0);
  bool by_four = is_stride(a_k, 1) && is_aligned_4(a, A_DTYPE) && is_multiple_of_4(a_row, A_DTYPE) && is_stride(b_k, 1) && is_aligned_4(b, B_DTYPE)
                 && is_multiple_of_4(b_column, B_DTYPE);
  uint whole = by_four ? k / (4 * LANES) * (4 * LANES) : 0;
  for (uint kk = lane * 4; kk < whole; kk += 4 * LANES) {
    sum4_t av[ROWS];
    [[unroll]] for (uint r = 0; r < ROWS; r++) av[r] = load_sum_4(element_at(a_at[r], kk, A_DTYPE), A_DTYPE);
    [[unroll]] for (uint i = 0; i < DOT_COLUMNS; i++) {
      sum4_t bv = load_sum_4(element_at(b_at[i], kk, B_DTYPE), B_DTYPE);
      [[unroll]] for (uint r = 0; r < ROWS; r++) {
        sum4_t products = av[r] * bv;
        shares[r * DOT_COLUMNS + i] += (products.x + products.y) + (products.z + products.w);
      }
    }
  }
  for (uint kk = whole + lane; kk < k; kk += LANES) {
    sum_t av[ROWS];
    [[unroll]] for (uint r = 0; r < ROWS; r++) av[r] = load_sum_1(element_at(a_at[r], kk, a_k, A_DTYPE), A_DTYPE);
    [[unroll]] for (uint i = 0; i < DOT_COLUMNS; i++) {
      sum_t bv = load_sum_1(element_at(b_at[i], kk, b_k, B_DTYPE), B_DTYPE);
      [[unroll]] for (uint r = 0; r < ROWS; r++) shares[r * DOT_COLUMNS + i] += av[r] * bv;
    }
  }
  add_shares();
}

#if !INTEGER
/* Four elements of a row of a. */
vec4 load_a_4(uvec2 row, uint k, uvec2 a_k, bool by_four)
{
  if (by_four) return load_4(element_at(row, k, A_DTYPE), A_DTYPE);
  vec4 v;
  [[unroll]] for (uint u = 0; u < 4; u++) v[u] = load_1(element_at(row, k + u, a_k, A_DTYPE), A_DTYPE);
  return v;
}

/* As multiply_tile, where b holds blocks of weights: a group of each column at a time, whose scales are loaded once. */
void multiply_tile_of_blocks(uvec2 a, uvec2 a_row, uvec2 a_k, uint row0, uint rows, uvec2 b, uvec2 b_column, uint tile, uint columns, uint k)
{
  uint lane = gl_SubgroupInvocationID;
  [[unroll]] for (uint i = 0; i < ROWS * VECTORS; i++) sums[i] = 0.0;
  uvec2 a_at[ROW_VECTORS], b_at[VECTORS];
  [[unroll]] for (uint i = 0; i < ROW_VECTORS; i++) a_at[i] = element_at(a, min(row0 + i * LANES + lane, rows - 1), a_row, A_DTYPE);
  [[unroll]] for (uint j = 0; j < VECTORS; j++)
    b_at[j] = element_at(b, min(column_of(tile, j % OUTPUTS, lane), columns - 1) + j / OUTPUTS * columns, b_column, I8);
  bool by_four = is_stride(a_k, 1) && is_aligned_4(a, A_DTYPE) && is_multiple_of_4(a_row, A_DTYPE);
  for (uint kk = 0; kk < k; kk += GROUP_WEIGHTS) {
    Group groups[VECTORS];
    vec2 scales[VECTORS * 2];
    [[unroll]] for (uint j = 0; j < VECTORS; j++) {
      groups[j] = group_at(b_at[j], kk, B_DTYPE);
      [[unroll]] for (uint part = 0; part < 2; part++)
        scales[j * 2 + part] = part == 0 || B_DTYPE == Q6_K ? load_scale(groups[j], part, B_DTYPE) : scales[j * 2];
    }
    for (uint t = 0; t < 4; t++) {
      uvec2 quants[VECTORS];
      [[unroll]] for (uint j = 0; j < VECTORS; j++) quants[j] = load_quants(groups[j], t, B_DTYPE);
      [[unroll]] for (uint part = 0; part < 2; part++) {
        vec4 av[ROW_VECTORS], bv[VECTORS];
        [[unroll]] for (uint i = 0; i < ROW_VECTORS; i++) av[i] = load_a_4(a_at[i], kk + part * 16 + t * 4, a_k, by_four);
        [[unroll]] for (uint j = 0; j < VECTORS; j++) bv[j] = weights_of(part == 0 ? quants[j].x : quants[j].y, scales[j * 2 + part], B_DTYPE);
        [[unroll]] for (uint r = 0; r < ROWS; r++) {
          float x[4];
          [[unroll]] for (uint u = 0; u < 4; u++) x[u] = subgroupShuffle(av[r / LANES][u], r % LANES);
          [[unroll]] for (uint j = 0; j < VECTORS; j++)
            [[unroll]] for (uint u = 0; u < 4; u++) sums[r * VECTORS + j] += x[u] * bv[j][u];
        }
      }
    }
  }
}
#endif

#if !INTEGER
/* As multiply_dots, where b holds blocks of weights: a lane takes whole groups. */
void multiply_dots_of_blocks(uvec2 a, uvec2 a_row, uvec2 a_k, uint row0, uint rows, uvec2 b, uvec2 b_column, uint tile, uint columns, uint k)
{
  uint lane = gl_SubgroupInvocationID;
  uvec2 a_at[ROWS], b_at[DOT_COLUMNS];
  [[unroll]] for (uint r = 0; r < ROWS; r++) a_at[r] = element_at(a, min(row0 + r, rows - 1), a_row, A_DTYPE);
  [[unroll]] for (uint i = 0; i < DOT_COLUMNS; i++)
    b_at[i] = element_at(b, min(column_of(tile, i / LANES % OUTPUTS, i % LANES), columns - 1) + i / LANES / OUTPUTS * columns, b_column, I8);
  [[unroll]] for (uint i = 0; i < ROWS * DOT_COLUMNS; i++) shares[i] = 0.0;
  bool by_four = is_stride(a_k, 1) && is_aligned_4(a, A_DTYPE) && is_multiple_of_4(a_row, A_DTYPE);
  for (uint kk = lane * GROUP_WEIGHTS; kk < k; kk += LANES * GROUP_WEIGHTS) {
    vec4 av[ROWS * 8];
    [[unroll]] for (uint i = 0; i < ROWS * 8; i++) av[i] = load_a_4(a_at[i / 8], kk + i % 8 * 4, a_k, by_four);
    [[unroll]] for (uint i = 0; i < DOT_COLUMNS; i++) {
      Group group = group_at(b_at[i], kk, B_DTYPE);
      vec2 lower = load_scale(group, 0, B_DTYPE), upper = lower;
      if (B_DTYPE == Q6_K) upper = load_scale(group, 1, B_DTYPE);
      [[unroll]] for (uint t = 0; t < 4; t++) {
        uvec2 quants = load_quants(group, t, B_DTYPE);
        vec4 first = weights_of(quants.x, lower, B_DTYPE), second = weights_of(quants.y, upper, B_DTYPE);
        [[unroll]] for (uint r = 0; r < ROWS; r++) {
          vec4 products = av[r * 8 + t] * first + av[r * 8 + 4 + t] * second;
          shares[r * DOT_COLUMNS + i] += (products.x + products.y) + (products.z + products.w);
        }
      }
    }
  }
  add_shares();
}
#endif

void multiply(uvec2 a, uvec2 a_row, uvec2 a_k, uint row0, uint rows, uvec2 b, uvec2 b_k, uvec2 b_column, uint tile, uint columns, uint k)
{
#if !INTEGER
  if (is_blocks(B_DTYPE)) {
    if (DOTS != 0) multiply_dots_of_blocks(a, a_row, a_k, row0, rows, b, b_column, tile, columns, k);
    else multiply_tile_of_blocks(a, a_row, a_k, row0, rows, b, b_column, tile, columns, k);
    return;
  }
#endif
  if (DOTS != 0) multiply_dots(a, a_row, a_k, row0, rows, b, b_k, b_column, tile, columns, k);
  else multiply_tile(a, a_row, a_k, row0, rows, b, b_k, b_column, tile, columns, k);
}

/* The same sums where an index may be anything: only the epilogue pays for the look-up. */
sum_t finished[ROWS * VECTORS];

void finish_sums()
{
  [[unroll]] for (uint i = 0; i < ROWS * VECTORS; i++) finished[i] = sums[i];
}
