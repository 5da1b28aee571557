/* Weights b in GGML's blocks, read as they lie. Included behind elements.glsl; the formats are drawn in blocks.cl. Blocks begin at even
 * addresses. A group of 32 weights is read as four pairs of words: the quants of weights 4 t to 4 t + 3, and of those 16 further.
 *
 *     w = quant * scale + offset            the product is exact in f32, so the weight is rounded once, fused or not
 */
#define Q4_0 10
#define Q4_1 11
#define Q8_0 12
#define Q4_K 13
#define Q6_K 14
#define GROUP_WEIGHTS 32

bool is_blocks(const uint dtype) { return dtype >= Q4_0; }

/* What strides and offsets of b count: elements, or the bytes of blocks. */
uint unit_of(const uint dtype) { return is_blocks(dtype) ? I8 : dtype; }

/* A group: the block that holds it, and its number there. */
struct Group { uvec2 block; uint number; };

Group group_at(uvec2 row, uint k, const uint dtype)
{
  uint weights = dtype >= Q4_K ? 256 : 32;
  uint bytes = dtype == Q4_0 ? 18 : dtype == Q4_1 ? 20 : dtype == Q8_0 ? 34 : dtype == Q4_K ? 144 : 210;
  return Group(address_add(row, k / weights * bytes), k % weights / GROUP_WEIGHTS);
}

uint load_byte(uvec2 address) { return Word(uvec2(address.x & ~3u, address.y)).value >> ((address.x & 3u) << 3) & 0xffu; }
uint load_even_word(uvec2 address) { return load_16_bits(address) | load_16_bits(address_add(address, 2)) << 16; }
float load_half(uvec2 address) { return value_of_bits(load_16_bits(address), F16); }

/* Scale and offset of one half of a group. */
vec2 load_scale(Group group, uint part, const uint dtype)
{
  uvec2 block = group.block;
  uint number = group.number;
  if (dtype == Q4_1) return vec2(load_half(block), load_half(address_add(block, 2)));
  if (dtype == Q4_K) {
    uvec2 packed = address_add(block, 4);
    uint middle = load_byte(address_add(packed, number)), lower = load_byte(address_add(packed, number < 4 ? number : number - 4));
    uint upper = load_byte(address_add(packed, number + 4));
    uint scale = number < 4 ? middle & 63 : (upper & 15) | lower >> 6 << 4;
    uint least = number < 4 ? upper & 63 : upper >> 4 | middle >> 6 << 4;
    return vec2(load_half(block) * float(scale), -load_half(address_add(block, 2)) * float(least));
  }
  if (dtype == Q6_K) {
    float d = load_half(address_add(block, 208)) * float(load_i8(address_add(block, 192 + number * 2 + part)));
    return vec2(d, -32.0 * d);
  }
  float d = load_half(block);
  return vec2(d, dtype == Q4_0 ? -8.0 * d : 0.0);
}

/* Pair `t` of a group's quants, four bytes each. */
uvec2 load_quants(Group group, uint t, const uint dtype)
{
  uint number = group.number;
  if (dtype == Q4_0 || dtype == Q4_1) {
    uint word = load_even_word(address_add(group.block, (dtype == Q4_0 ? 2 : 4) + t * 4));
    return uvec2(word, word >> 4) & 0x0f0f0f0fu;
  }
  uint first = dtype == Q8_0 ? 2 : dtype == Q4_K ? 16 + number / 2 * 32 : number / 4 * 64 + number % 2 * 32;
  uvec2 at = address_add(group.block, first + t * 4);
  uvec2 words = uvec2(load_even_word(at), load_even_word(address_add(at, 16)));
  if (dtype == Q8_0) return words;
  if (dtype == Q4_K) return words >> number % 2 * 4 & 0x0f0f0f0fu;
  at = address_add(group.block, 128 + number / 4 * 32 + t * 4);
  uvec2 high = uvec2(load_even_word(at), load_even_word(address_add(at, 16)));
  return words >> number % 4 / 2 * 4 & 0x0f0f0f0fu | (high >> number % 4 * 2 & 0x03030303u) << 4;
}

/* The weights of four quants. */
vec4 weights_of(uint quants, vec2 scale, const uint dtype)
{
  vec4 q = vec4(quants & 0xffu, quants >> 8 & 0xffu, quants >> 16 & 0xffu, quants >> 24);
  if (dtype == Q8_0) {
    int word = int(quants);
    q = vec4(bitfieldExtract(word, 0, 8), bitfieldExtract(word, 8, 8), bitfieldExtract(word, 16, 8), word >> 24);
  }
  return q * scale.x + scale.y;
}

/* Weights k to k + 3 of a row; k is a multiple of four. */
vec4 load_weights_4(uvec2 row, uint k, const uint dtype)
{
  Group group = group_at(row, k, dtype);
  uint part = k % GROUP_WEIGHTS / 16;
  uvec2 quants = load_quants(group, k % 16 / 4, dtype);
  return weights_of(part == 0 ? quants.x : quants.y, load_scale(group, part, dtype), dtype);
}
