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
 * MR     8        rows of one tile of d, the width of a's panels: 8 or 12
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

/* Packs one panel of b, NR columns: two strips of 16, which are neighbours or, for swiglu, gate and up of the same 16
 * columns of d. `columns` is the number of columns of one strip's half of b (n, or n / 2). */
inline void pack_b_panel(__global const void* b, ulong at, uint panel_index, uint n, uint swiglu, ulong k_stride, ulong n_stride,
                         uint count, float* panel, const int dtype)
{
  uint end = swiglu ? n / 2 : n;
  uint first = panel_index * (swiglu ? 16 : 32), second = swiglu ? first : first + 16;
  uint live = min(16u, end - first), more = second < end ? min(16u, end - second) : 0;
  pack_strip(b, at + first * n_stride, live, 16, n_stride, k_stride, count, panel, NR, dtype);
  pack_strip(b, at + (swiglu ? second + n / 2 : second) * n_stride, more, 16, n_stride, k_stride, count, panel + 16, NR, dtype);
}

#define EACH_ROW_8(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
#if MR == 8
#define EACH_ROW(X) EACH_ROW_8(X)
#elif MR == 12
#define EACH_ROW(X) EACH_ROW_8(X) X(8) X(9) X(10) X(11)
#else
#error "MR is 8 or 12"
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
