/* Panels: a matrix cut into strips of `width` rows (of a) or columns (of b), each strip stored k-major and converted to
 * f32, so that the inner loop of the product reads both operands forwards:
 *
 *     source x, strip of 8         panel, pitch 8
 *       k0 k1 k2 ...                 x0k0 x1k0 ... x7k0
 *   x0   .  .  .                     x0k1 x1k1 ... x7k1
 *   ..                               ...
 *   x7   .  .  .                     (strips past the edge are zero)
 *
 * Macro  default  meaning
 * MR     8        rows of one tile of d, the width of a's panels: 4, 6, 8 or 12
 * NR     32       columns of one tile, fixed: two float16
 * KC     512      products summed in registers before they are added to the tile: keeps the rounding error of a long k
 *                 down, and i8 exact (1024 products of 2^14 are exact in f32)
 */
#ifndef MR
#define MR 8
#endif
#ifndef KC
#define KC 512
#endif
#define NR 32
#define PACK_K 64
#if KC > 1024
#error "KC may not exceed 1024: sums of i8 products must be exact in f32"
#endif

#define UNPACK_LO(a, b) shuffle2(a, b, (uint8)(0, 8, 1, 9, 4, 12, 5, 13))
#define UNPACK_HI(a, b) shuffle2(a, b, (uint8)(2, 10, 3, 11, 6, 14, 7, 15))
#define HALVES_LO(a, b) shuffle2(a, b, (uint8)(0, 1, 2, 3, 8, 9, 10, 11))
#define HALVES_HI(a, b) shuffle2(a, b, (uint8)(4, 5, 6, 7, 12, 13, 14, 15))
#define PAIRS_LO(a, b) shuffle2(a, b, (uint8)(0, 1, 8, 9, 4, 5, 12, 13))
#define PAIRS_HI(a, b) shuffle2(a, b, (uint8)(2, 3, 10, 11, 6, 7, 14, 15))

/* eight rows of eight consecutive k become eight k of eight consecutive rows */
inline void transpose_8x8(__global const void* x, ulong at, ulong x_stride, float* panel, const uint pitch, const int dtype)
{
  float8 r0 = load_8(x, at, dtype), r1 = load_8(x, at + x_stride, dtype);
  float8 r2 = load_8(x, at + 2 * x_stride, dtype), r3 = load_8(x, at + 3 * x_stride, dtype);
  float8 r4 = load_8(x, at + 4 * x_stride, dtype), r5 = load_8(x, at + 5 * x_stride, dtype);
  float8 r6 = load_8(x, at + 6 * x_stride, dtype), r7 = load_8(x, at + 7 * x_stride, dtype);
  float8 t0 = UNPACK_LO(r0, r1), t1 = UNPACK_HI(r0, r1), t2 = UNPACK_LO(r2, r3), t3 = UNPACK_HI(r2, r3);
  float8 t4 = UNPACK_LO(r4, r5), t5 = UNPACK_HI(r4, r5), t6 = UNPACK_LO(r6, r7), t7 = UNPACK_HI(r6, r7);
  r0 = PAIRS_LO(t0, t2), r1 = PAIRS_HI(t0, t2), r2 = PAIRS_LO(t1, t3), r3 = PAIRS_HI(t1, t3);
  r4 = PAIRS_LO(t4, t6), r5 = PAIRS_HI(t4, t6), r6 = PAIRS_LO(t5, t7), r7 = PAIRS_HI(t5, t7);
  vstore8(HALVES_LO(r0, r4), 0, panel);
  vstore8(HALVES_LO(r1, r5), 0, panel + pitch);
  vstore8(HALVES_LO(r2, r6), 0, panel + 2 * pitch);
  vstore8(HALVES_LO(r3, r7), 0, panel + 3 * pitch);
  vstore8(HALVES_HI(r0, r4), 0, panel + 4 * pitch);
  vstore8(HALVES_HI(r1, r5), 0, panel + 5 * pitch);
  vstore8(HALVES_HI(r2, r6), 0, panel + 6 * pitch);
  vstore8(HALVES_HI(r3, r7), 0, panel + 7 * pitch);
}

/* Packs `count` k of one strip of `width` rows, of which `live` exist, starting at element `at`. */
inline void pack_strip(__global const void* x, ulong at, uint live, const uint width, ulong x_stride, ulong k_stride,
                       uint count, float* panel, const uint pitch, const int dtype)
{
  uint k = 0;
  if (live == width && k_stride == 1 && width % 8 == 0) {
    for (; k + 8 <= count; k += 8)
      for (uint r = 0; r < width; r += 8) transpose_8x8(x, at + r * x_stride + k, x_stride, panel + k * pitch + r, pitch, dtype);
  } else if (live == width && x_stride == 1 && width == 16) {
    for (; k < count; k++) vstore16(load_16(x, at + k * k_stride, dtype), 0, panel + k * pitch);
  } else if (live == width && x_stride == 1 && width == 8) {
    for (; k < count; k++) vstore8(load_8(x, at + k * k_stride, dtype), 0, panel + k * pitch);
  }
  for (; k < count; k++)
    for (uint r = 0; r < width; r++)
      panel[k * pitch + r] = r < live ? load_1(x, at + r * x_stride + k * k_stride, dtype) : 0.0f;
}

#if B_DTYPE >= 10
/* Blocks: the bytes of 16 rows of 16 quants turned, by four rounds that interleave rows i and i + 8, into 16 k of 16 rows. */
#define BYTES_LO(a, b) (uchar16)(a.s0, b.s0, a.s1, b.s1, a.s2, b.s2, a.s3, b.s3, a.s4, b.s4, a.s5, b.s5, a.s6, b.s6, a.s7, b.s7)
#define BYTES_HI(a, b) (uchar16)(a.s8, b.s8, a.s9, b.s9, a.sa, b.sa, a.sb, b.sb, a.sc, b.sc, a.sd, b.sd, a.se, b.se, a.sf, b.sf)
#define TURN_PAIR(x, y, i, j, to_lo, to_hi) y##to_lo = BYTES_LO(x##i, x##j), y##to_hi = BYTES_HI(x##i, x##j)
#define TURN(x, y)                                                                                                        \
  uchar16 TURN_PAIR(x, y, 0, 8, 0, 1), TURN_PAIR(x, y, 1, 9, 2, 3), TURN_PAIR(x, y, 2, a, 4, 5), TURN_PAIR(x, y, 3, b, 6, 7), \
          TURN_PAIR(x, y, 4, c, 8, 9), TURN_PAIR(x, y, 5, d, a, b), TURN_PAIR(x, y, 6, e, c, d), TURN_PAIR(x, y, 7, f, e, f);
#define BLOCK_OF_ROW(x, i, number) __global const uchar* block##i = BLOCK_AT(b + min(number##u, live - 1) * stride, k);
#define LOAD_ROW(x, i, number) uchar16 x##i = load_quants(block##i, group, part);
#define STORE_TURNED(x, i, number) vstore16(fma(float_quants(x##i), scale, offset), 0, panel + number * pitch);
#define EACH_16(X, x)                                                                                                     \
  X(x, 0, 0) X(x, 1, 1) X(x, 2, 2) X(x, 3, 3) X(x, 4, 4) X(x, 5, 5) X(x, 6, 6) X(x, 7, 7) X(x, 8, 8) X(x, 9, 9)             \
  X(x, a, 10) X(x, b, 11) X(x, c, 12) X(x, d, 13) X(x, e, 14) X(x, f, 15)

/* Packs sixteen k, from k on, of 16 rows of blocks, of which the first `live` (at least one) exist; the rest repeat the last. */
inline void pack_weights_16(__global const uchar* b, ulong stride, uint live, uint k, uint part, float* panel, const uint pitch)
{
  EACH_16(BLOCK_OF_ROW, x)
  uint group = GROUP_AT(k);
#define LOWER block0, block1, block2, block3, block4, block5, block6, block7
#define UPPER block8, block9, blocka, blockb, blockc, blockd, blocke, blockf
  Scales lo = load_scales(load_heads(LOWER), LOWER, group, part), hi = load_scales(load_heads(UPPER), UPPER, group, part);
  float16 scale = (float16)(lo.scale, hi.scale), offset = (float16)(lo.offset, hi.offset);
  EACH_16(LOAD_ROW, r)
  TURN(r, s) TURN(s, t) TURN(t, u) TURN(u, v)
  EACH_16(STORE_TURNED, v)
}

/* Packs `count` k from k0 on, whole groups, of one strip of 16 rows of blocks. */
inline void pack_weights(__global const uchar* b, ulong stride, uint live, uint k0, uint count, float* panel, const uint pitch)
{
  for (uint k = 0; k < count; k += 16) {
    if (live != 0) pack_weights_16(b, stride, live, k0 + k, k % GROUP_WEIGHTS / 16, panel + k * pitch, pitch);
    else for (uint i = 0; i < 16; i++) vstore16((float16)0.0f, 0, panel + (k + i) * pitch);
  }
}
#endif

/* Packs one panel of b, NR columns: two strips of 16, which are neighbours or, for swiglu, gate and up of the same 16
 * columns of d: `count` k from k0 on. `at` is where column 0 begins. */
inline void pack_b_panel(__global const void* b, ulong at, uint panel_index, uint n, uint swiglu, ulong k_stride, ulong n_stride,
                         uint k0, uint count, float* panel)
{
  uint end = swiglu ? n / 2 : n;
  uint first = panel_index * (swiglu ? 16 : 32), second = swiglu ? first : first + 16;
  uint live = min(16u, end - first), more = second < end ? min(16u, end - second) : 0;
  uint column = swiglu ? second + n / 2 : second;
#if B_DTYPE >= 10
  pack_weights((__global const uchar*)b + at + first * n_stride, n_stride, live, k0, count, panel, NR);
  pack_weights((__global const uchar*)b + at + column * n_stride, n_stride, more, k0, count, panel + 16, NR);
#else
  at += k0 * k_stride;
  pack_strip(b, at + first * n_stride, live, 16, n_stride, k_stride, count, panel, NR, B_DTYPE);
  pack_strip(b, at + column * n_stride, more, 16, n_stride, k_stride, count, panel + 16, NR, B_DTYPE);
#endif
}

#define EACH_ROW_4(X) X(0) X(1) X(2) X(3)
#define EACH_ROW_8(X) EACH_ROW_4(X) X(4) X(5) X(6) X(7)
#if MR == 4
#define EACH_ROW(X) EACH_ROW_4(X)
#elif MR == 6
#define EACH_ROW(X) EACH_ROW_4(X) X(4) X(5)
#elif MR == 8
#define EACH_ROW(X) EACH_ROW_8(X)
#elif MR == 12
#define EACH_ROW(X) EACH_ROW_8(X) X(8) X(9) X(10) X(11)
#else
#error "MR is 4, 6, 8 or 12"
#endif


/* Where b's panels lie: in global memory, packed by a launch before, or in the work-item's own memory. */
#ifdef B_PANEL_IS_PRIVATE
#define B_PANEL
#else
#define B_PANEL __global
#endif

#define TILE_ZERO(r) float16 lo##r = 0.0f, hi##r = 0.0f;
#define TILE_STEP(r) { float16 a = a_panel[kk * MR + r]; lo##r = fma(a, b_lo, lo##r); hi##r = fma(a, b_hi, hi##r); }
#define TILE_ADD(r) vstore16(vload16(2 * r, tile) + AS_SUM(lo##r), 2 * r, tile); vstore16(vload16(2 * r + 1, tile) + AS_SUM(hi##r), 2 * r + 1, tile);

/* Adds the products of `count` k of an a panel and a b panel to `tile`: 2 MR float16 sums stay in registers. */
inline void multiply_panels(__global const float* a_panel, B_PANEL const float* b_panel, uint count, sum_t* tile)
{
  EACH_ROW(TILE_ZERO)
  for (uint kk = 0; kk < count; kk++) {
    float16 b_lo = vload16(2 * kk, b_panel), b_hi = vload16(2 * kk + 1, b_panel);
    EACH_ROW(TILE_STEP)
  }
  EACH_ROW(TILE_ADD)
}
