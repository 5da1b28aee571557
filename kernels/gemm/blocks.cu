/* Weights b in GGML's blocks, read as they lie; the formats are drawn in blocks.cl. Blocks begin at even addresses, so that words are put together
 * from halves. A group of 32 weights is read as four pairs of words: the quants of weights 4 t to 4 t + 3, and of those 16 further.
 *
 *     w = quant * scale + offset            rounded once
 *
 * Nothing where B_DTYPE is none of their codes.
 */
#if B_DTYPE >= 10
#define Q4_0 10
#define Q4_1 11
#define Q8_0 12
#define Q4_K 13
#define Q6_K 14
#define BLOCK_WEIGHTS (B_DTYPE >= Q4_K ? 256u : 32u)
#define BLOCK_BYTES (B_DTYPE == Q4_0 ? 18u : B_DTYPE == Q4_1 ? 20u : B_DTYPE == Q8_0 ? 34u : B_DTYPE == Q4_K ? 144u : 210u)
#define GROUP_WEIGHTS 32u

/* A group: the block that holds it, and its number there. */
struct Group {
  const u8* block;
  u32 number;

  /* That of weight k of a row. */
  __device__ __forceinline__ Group(const u8* row, u32 k)
      : block(row + (u64)(k / BLOCK_WEIGHTS) * BLOCK_BYTES), number(k % BLOCK_WEIGHTS / GROUP_WEIGHTS)
  {
  }

  __device__ __forceinline__ float half_at(u32 at) const { return f32_of_f16(__ldg((const u16*)(block + at))); }

  __device__ __forceinline__ u32 word_at(u32 at) const
  {
    const u16* halves = (const u16*)(block + at);
    return (u32)__ldg(halves) | (u32)__ldg(halves + 1) << 16;
  }

  /* Scale and offset of one half of the group. */
  __device__ __forceinline__ float2 scale(u32 part) const
  {
#if B_DTYPE == Q4_1
    return make_float2(half_at(0), half_at(2));
#elif B_DTYPE == Q4_K
    const u8* packed = block + 4;
    u32 scale = number < 4 ? packed[number] & 63u : (packed[number + 4] & 15u) | (u32)packed[number - 4] >> 6 << 4;
    u32 least = number < 4 ? packed[number + 4] & 63u : (u32)packed[number + 4] >> 4 | (u32)packed[number] >> 6 << 4;
    return make_float2(half_at(0) * (float)scale, -half_at(2) * (float)least);
#elif B_DTYPE == Q6_K
    float d = half_at(208) * (float)(signed char)block[192 + number * 2 + part];
    return make_float2(d, -32.0f * d);
#else
    float d = half_at(0);
    return make_float2(d, B_DTYPE == Q4_0 ? -8.0f * d : 0.0f);
#endif
  }

  /* Pair t of the quants, four bytes each. */
  __device__ __forceinline__ uint2 quants(u32 t) const
  {
#if B_DTYPE == Q4_0 || B_DTYPE == Q4_1
    u32 word = word_at((B_DTYPE == Q4_0 ? 2 : 4) + t * 4);
    return make_uint2(word & 0x0f0f0f0fu, word >> 4 & 0x0f0f0f0fu);
#elif B_DTYPE == Q8_0
    return make_uint2(word_at(2 + t * 4), word_at(18 + t * 4));
#elif B_DTYPE == Q4_K
    u32 at = 16 + number / 2 * 32 + t * 4, shift = number % 2 * 4;
    return make_uint2(word_at(at) >> shift & 0x0f0f0f0fu, word_at(at + 16) >> shift & 0x0f0f0f0fu);
#else
    u32 at = number / 4 * 64 + number % 2 * 32 + t * 4, shift = number % 4 / 2 * 4;
    u32 above = 128 + number / 4 * 32 + t * 4, above_shift = number % 4 * 2;
    return make_uint2((word_at(at) >> shift & 0x0f0f0f0fu) | (word_at(above) >> above_shift & 0x03030303u) << 4,
                      (word_at(at + 16) >> shift & 0x0f0f0f0fu) | (word_at(above + 16) >> above_shift & 0x03030303u) << 4);
#endif
  }
};

/* The weight of one of four quants. */
__device__ __forceinline__ float weight_of(u32 quants, u32 i, float2 scale)
{
#if B_DTYPE == Q8_0
  float q = (float)((int)(quants << (24 - 8 * i)) >> 24);
#else
  float q = (float)(quants >> 8 * i & 0xffu);
#endif
  return fmaf(q, scale.x, scale.y);
}

/* Weights k to k + 3 of a row; k is a multiple of four. */
__device__ __forceinline__ void load_weights_4(const void* row, u32 k, float v[4])
{
  Group group((const u8*)row, k);
  u32 part = k % GROUP_WEIGHTS / 16;
  uint2 pair = group.quants(k % 16 / 4);
  float2 scale = group.scale(part);
#pragma unroll
  for (u32 i = 0; i < 4; i++) v[i] = weight_of(part == 0 ? pair.x : pair.y, i, scale);
}
#endif
