/* Weights b in GGML's blocks: rows of bytes along k, read as they lie. Every format is taken as groups of 32 weights, each half of which has
 * one scale and one offset:
 *
 *     w = quant * scale + offset                  one rounding, in the last sum (the products that make scale and offset are exact)
 *
 *   code format  weights  bytes of a block                               scale           offset
 *   10   Q4_0    32       d:2 quants:16                                  d               -8 d
 *   11   Q4_1    32       d:2 m:2 quants:16                              d               m
 *   12   Q8_0    32       d:2 quants:32, signed                          d               0
 *   13   Q4_K    256      d:2 e:2 scales and minima, 6 bits each:12      d s[group]      -e m[group]
 *                         quants:128, two groups in each 32
 *   14   Q6_K    256      low:128 high:64 scales:16 d:2                  d s[half]       -32 d s[half]
 *
 * d, e and m are f16 at even addresses; a nibble's low half comes first, 16 bytes (Q4_K: 32) apart from its high one.
 * Nothing where B_DTYPE is none of these codes.
 */
#if B_DTYPE >= 10
#define Q4_0 10
#define Q4_1 11
#define Q8_0 12
#define Q4_K 13
#define Q6_K 14
#define BLOCK_WEIGHTS (B_DTYPE >= Q4_K ? 256 : 32)
#define BLOCK_BYTES (B_DTYPE == Q4_0 ? 18 : B_DTYPE == Q4_1 ? 20 : B_DTYPE == Q8_0 ? 34 : B_DTYPE == Q4_K ? 144 : 210)
#define GROUP_WEIGHTS 32

/* The block in which weight k of a row lies, and k's group in it. */
#define BLOCK_AT(row, k) ((row) + (ulong)((k) / BLOCK_WEIGHTS) * BLOCK_BYTES)
#define GROUP_AT(k) ((k) % BLOCK_WEIGHTS / GROUP_WEIGHTS)

/* F16 to f32, every value; by integers, since compilers for CPUs convert a single one in two dozen instructions. */
inline float8 halves_8(ushort8 bits)
{
  int8 wide = convert_int8(as_short8(bits)) << 13;
  float8 value = as_float8(wide & (int8)0x8fffe000) * 0x1p112f;
  return select(value, as_float8(wide | (int8)0x7f800000), (wide & (int8)0x0f800000) == (int8)0x0f800000);
}

/* What is the same for all groups of a block, in eight rows of blocks: for all at once, which costs little more than for one. */
typedef struct { float8 scale, offset; } Scales;

#define EIGHT_BLOCKS \
  __global const uchar* block0, __global const uchar* block1, __global const uchar* block2, __global const uchar* block3, \
  __global const uchar* block4, __global const uchar* block5, __global const uchar* block6, __global const uchar* block7
#define BITS_OF(at) (ushort8)(BITS(0, at), BITS(1, at), BITS(2, at), BITS(3, at), BITS(4, at), BITS(5, at), BITS(6, at), BITS(7, at))
#define BITS(i, at) *(__global const ushort*)(block##i + (at))
#define BYTES_OF(at) (uchar8)(block0[at], block1[at], block2[at], block3[at], block4[at], block5[at], block6[at], block7[at])

inline Scales load_heads(EIGHT_BLOCKS)
{
  Scales s;
  s.scale = halves_8(BITS_OF(B_DTYPE == Q6_K ? 208 : 0));
#if B_DTYPE == Q4_1
  s.offset = halves_8(BITS_OF(2));
#elif B_DTYPE == Q4_K
  s.offset = -halves_8(BITS_OF(2));
#else
  s.offset = (B_DTYPE == Q4_0 ? -8.0f : B_DTYPE == Q6_K ? -32.0f : 0.0f) * s.scale;
#endif
  return s;
}

/* Scales and offsets of one half of a group, in the same rows. */
inline Scales load_scales(Scales heads, EIGHT_BLOCKS, uint group, uint part)
{
#if B_DTYPE == Q4_K
  /* Six bits each of 4 scales, then of 4 minima; the two bits above belong to the other four. */
  uchar8 scale, least;
  if (group < 4) {
    scale = BYTES_OF(4 + group) & (uchar8)63, least = BYTES_OF(8 + group) & (uchar8)63;
  } else {
    uchar8 both = BYTES_OF(8 + group);
    scale = (both & (uchar8)15) | BYTES_OF(group) >> (uchar8)6 << (uchar8)4;
    least = both >> (uchar8)4 | BYTES_OF(4 + group) >> (uchar8)6 << (uchar8)4;
  }
  heads.scale *= convert_float8(scale);
  heads.offset *= convert_float8(least);
#elif B_DTYPE == Q6_K
  float8 scale = convert_float8(as_char8(BYTES_OF(192 + group * 2 + part)));
  heads.scale *= scale;
  heads.offset *= scale;
#endif
  return heads;
}

/* Some bits of each byte. Shifted in pairs of bytes, as no processor shifts single ones; the mask takes what came from the neighbour. */
inline uchar16 bits_of(uchar16 bytes, uint shift, uchar mask) { return as_uchar16(as_ushort8(bytes) >> (ushort8)(ushort)shift) & (uchar16)mask; }

/* The quants of one half of a group: 16 bytes. */
inline uchar16 load_quants(__global const uchar* block, uint group, uint part)
{
#if B_DTYPE == Q4_0 || B_DTYPE == Q4_1
  uchar16 bytes = vload16(0, block + (B_DTYPE == Q4_0 ? 2 : 4));
  return bits_of(bytes, part * 4, 15);
#elif B_DTYPE == Q8_0
  return vload16(part, block + 2);
#elif B_DTYPE == Q4_K
  return bits_of(vload16(0, block + 16 + group / 2 * 32 + part * 16), group % 2 * 4, 15);
#else
  uchar16 low = bits_of(vload16(0, block + group / 4 * 64 + group % 2 * 32 + part * 16), group % 4 / 2 * 4, 15);
  uchar16 high = bits_of(vload16(0, block + 128 + group / 4 * 32 + part * 16), group % 4 * 2, 3);
  return low | as_uchar16(as_ushort8(high) << (ushort8)4);
#endif
}

inline float16 float_quants(uchar16 quants)
{
#if B_DTYPE == Q8_0
  return convert_float16(as_char16(quants));
#else
  return convert_float16(quants);
#endif
}

/* Where the compiler has AVX-512's words (PoCL): the 16 weights that quants of a group can mean are one vector, in which they are looked up, and the
 * halves of a block are converted by one instruction. The same numbers as above, in half the time. */
#if defined(__AVX512F__) && defined(__F16C__) && B_DTYPE <= Q8_0
#define WHOLE_GROUPS
typedef short short8_of_x86 __attribute__((vector_size(16)));
#define HALVES(bits) __builtin_ia32_vcvtph2ps((short8_of_x86){(bits).x, (bits).y, 0, 0, 0, 0, 0, 0})
#define LOOK_UP(table, i) __builtin_ia32_permvarsf512(table, as_int16(i))
#define EACH_QUANT (float16)(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
#if B_DTYPE == Q8_0
#define LOAD_GROUP(block, lo, hi) \
  float16 lo##_scale = HALVES(vload2(0, (__global const short*)(block)))[0]; \
  float16 lo = float_quants(load_quants(block, 0, 0)) * lo##_scale, hi = float_quants(load_quants(block, 0, 1)) * lo##_scale;
#else
#define OFFSET_OF(heads) (B_DTYPE == Q4_1 ? heads[1] : -8.0f * heads[0])
#define LOAD_GROUP(block, lo, hi) \
  __auto_type lo##_heads = HALVES(vload2(0, (__global const short*)(block))); \
  float16 lo##_table = fma(EACH_QUANT, (float16)lo##_heads[0], (float16)OFFSET_OF(lo##_heads)); \
  uint16 lo##_quants = convert_uint16(vload16(0, (block) + (B_DTYPE == Q4_0 ? 2 : 4))); \
  float16 lo = LOOK_UP(lo##_table, lo##_quants), hi = LOOK_UP(lo##_table, lo##_quants >> 4);
#endif
#endif

/* One weight of a row. */
inline float load_weight(__global const uchar* row, uint k)
{
  __global const uchar* block = BLOCK_AT(row, k);
  uint group = GROUP_AT(k), part = k % GROUP_WEIGHTS / 16;
  uchar quants[16];
  vstore16(load_quants(block, group, part), 0, quants);
  Scales heads = load_heads(block, block, block, block, block, block, block, block);
  Scales s = load_scales(heads, block, block, block, block, block, block, block, block, group, part);
  return fma(B_DTYPE == Q8_0 ? (float)as_char(quants[k % 16]) : (float)quants[k % 16], s.scale.s0, s.offset.s0);
}
#endif
