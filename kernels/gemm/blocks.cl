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

inline float half_at(__global const uchar* x) { return vload_half(0, (__global const half*)x); }

/* Scale and offset of one half of a group. */
inline float2 load_scale(__global const uchar* block, uint group, uint part)
{
#if B_DTYPE == Q4_0
  float d = half_at(block);
  return (float2)(d, -8.0f * d);
#elif B_DTYPE == Q4_1
  return (float2)(half_at(block), half_at(block + 2));
#elif B_DTYPE == Q8_0
  return (float2)(half_at(block), 0.0f);
#elif B_DTYPE == Q4_K
  __global const uchar* packed = block + 4;
  uint scale = group < 4 ? packed[group] & 63 : (packed[group + 4] & 15) | packed[group - 4] >> 6 << 4;
  uint least = group < 4 ? packed[group + 4] & 63 : packed[group + 4] >> 4 | packed[group] >> 6 << 4;
  return (float2)(half_at(block) * scale, -half_at(block + 2) * least);
#else
  float d = half_at(block + 208) * (float)as_char(block[192 + group * 2 + part]);
  return (float2)(d, -32.0f * d);
#endif
}

/* The quants of one half of a group: 16 bytes. */
inline uchar16 load_quants(__global const uchar* block, uint group, uint part)
{
#if B_DTYPE == Q4_0 || B_DTYPE == Q4_1
  uchar16 bytes = vload16(0, block + (B_DTYPE == Q4_0 ? 2 : 4));
  return part == 0 ? bytes & (uchar16)15 : bytes >> (uchar16)4;
#elif B_DTYPE == Q8_0
  return vload16(part, block + 2);
#elif B_DTYPE == Q4_K
  return vload16(0, block + 16 + group / 2 * 32 + part * 16) >> (uchar16)(group % 2 * 4) & (uchar16)15;
#else
  uchar16 low = vload16(0, block + group / 4 * 64 + group % 2 * 32 + part * 16) >> (uchar16)(group % 4 / 2 * 4) & (uchar16)15;
  uchar16 high = vload16(0, block + 128 + group / 4 * 32 + part * 16) >> (uchar16)(group % 4 * 2) & (uchar16)3;
  return low | high << (uchar16)4;
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

/* Sixteen weights: one half of a group. */
inline float16 load_weights(__global const uchar* block, uint group, uint part)
{
  float2 scale = load_scale(block, group, part);
  return fma(float_quants(load_quants(block, group, part)), (float16)scale.x, (float16)scale.y);
}

/* One weight of a row. */
inline float load_weight(__global const uchar* row, uint k)
{
  __global const uchar* block = BLOCK_AT(row, k);
  uint group = GROUP_AT(k), part = k % GROUP_WEIGHTS / 16;
  uchar quants[16];
  vstore16(load_quants(block, group, part), 0, quants);
  float2 scale = load_scale(block, group, part);
  return fma(B_DTYPE == Q8_0 ? (float)as_char(quants[k % 16]) : (float)quants[k % 16], scale.x, scale.y);
}
#endif
