/* What every GLSL kernel stands on: addresses, elements of each dtype, functions with known errors.
 *
 * A tensor argument is the address of its first element, two words (low, high); 64-bit sizes and strides are two words as well,
 * since not every device computes in 64 bits. Bytes are reached through the buffer references below and in no other way.
 *
 *     uvec2 at = element_at(arguments.x, row, arguments.x_row, X_DTYPE);     // x + row * stride, in bytes
 *     float v = load_1(at, X_DTYPE);
 *
 * Dtypes are compile-time codes, so each call folds to one load or store. f16 and bf16 are storage only: arithmetic is f32. They
 * are rounded here, by integer operations, because the rounding of packHalf2x16 is each driver's own choice.
 * exp, log and tanh are written out: drivers' own are off by thousands of ulp near 1 (log), or lose NaN, or make one of tanh(100).
 * NaN must survive: no max, min or clamp on values that may be NaN.
 *
 * Macro       default  meaning
 * STORAGE_16  0        1: the device loads and stores 16 bits (storageBuffer16BitAccess). 0: halves are picked out of
 *                      words, and written by atomics, since the other half may be another invocation's; a buffer must then
 *                      end at a whole word
 * INT_64      0        1: pairs of words are loaded as one 64-bit integer (shaderInt64). Drivers that run a load lane by lane
 *                      (lavapipe) then need half the time a byte; elsewhere it changes nothing
 */
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_scalar_block_layout : require
#extension GL_EXT_control_flow_attributes : require

#ifndef STORAGE_16
#define STORAGE_16 0
#endif
#ifndef INT_64
#define INT_64 0
#endif
#if STORAGE_16
#extension GL_EXT_shader_16bit_storage : require
#endif
#if INT_64
#extension GL_EXT_shader_explicit_arithmetic_types_int64 : require
#endif

/* dtype codes */
#define F32 0
#define F16 1
#define BF16 2
#define I8 3
#define I32 4

layout(buffer_reference, scalar, buffer_reference_align = 4) buffer Word { uint value; };
layout(buffer_reference, scalar, buffer_reference_align = 8) buffer WordPair { uvec2 value; };
#if STORAGE_16
layout(buffer_reference, scalar, buffer_reference_align = 2) buffer Half { uint16_t value; };
#endif
#if INT_64
layout(buffer_reference, scalar, buffer_reference_align = 8) buffer LongWord { uint64_t value; };
#endif

/* Addresses and 64-bit numbers, low word first. */

#if INT_64
/* One addition in place of an addition, a comparison and the weaving of two vectors into one of addresses. */
uvec2 address_add(uvec2 address, uint bytes) { return unpack32(pack64(address) + uint64_t(bytes)); }
uvec2 address_add(uvec2 address, uvec2 bytes) { return unpack32(pack64(address) + pack64(bytes)); }
uvec2 multiply_64(uint a, uvec2 b) { return unpack32(uint64_t(a) * pack64(b)); }
#else
uvec2 address_add(uvec2 address, uint bytes)
{
  uint carry;
  uint low = uaddCarry(address.x, bytes, carry);
  return uvec2(low, address.y + carry);
}

uvec2 address_add(uvec2 address, uvec2 bytes)
{
  uint carry;
  uint low = uaddCarry(address.x, bytes.x, carry);
  return uvec2(low, address.y + bytes.y + carry);
}

uvec2 multiply_64(uint a, uvec2 b)
{
  uint high, low;
  umulExtended(a, b.x, high, low);
  return uvec2(low, high + a * b.y);
}
#endif

/* log2 of the bytes of an element */
uint size_shift(const uint dtype) { return dtype == F32 || dtype == I32 ? 2u : dtype == I8 ? 0u : 1u; }

uvec2 bytes_of(uvec2 elements, const uint dtype)
{
  uint shift = size_shift(dtype);
  return shift == 0u ? elements : uvec2(elements.x << shift, elements.y << shift | elements.x >> (32u - shift));
}

/* The element `index` times `stride` elements behind another. */
uvec2 element_at(uvec2 address, uint index, uvec2 stride, const uint dtype)
{
  return address_add(address, bytes_of(multiply_64(index, stride), dtype));
}

uvec2 element_at(uvec2 address, uint index, const uint dtype) { return address_add(address, bytes_of(uvec2(index, 0), dtype)); }

bool is_stride(uvec2 stride, uint value) { return stride == uvec2(value, 0); }
bool is_absent(uvec2 address) { return address == uvec2(0); }

/* Bits of f16 and bf16 */

bool is_nan(float v) { return (floatBitsToUint(v) & 0x7fffffffu) > 0x7f800000u; }

/* Rounded to nearest even; too large becomes infinity, NaN stays NaN. */
uint f16_bits(float v)
{
  uint bits = floatBitsToUint(v), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  uint normal = (magnitude + 0xfffu + (magnitude >> 13 & 1u) - 0x38000000u) >> 13;
  /* Below 2^-14: in the sum with 1/2 a unit in the last place is the smallest f16, and the addition rounds. */
  uint subnormal = floatBitsToUint(uintBitsToFloat(magnitude) + 0.5) - 0x3f000000u;
  uint half_bits = magnitude < 0x38800000u ? subnormal : normal;
  half_bits = magnitude >= 0x477ff000u ? 0x7c00u : half_bits;
  return sign | (magnitude > 0x7f800000u ? 0x7e00u : half_bits);
}

uint bf16_bits(float v)
{
  uint bits = floatBitsToUint(v);
  /* The upper half of a NaN could be an infinity. */
  return is_nan(v) ? bits >> 16 | 0x40u : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}

/* The value of the lower 16 bits. */
float value_of_bits(uint bits, const uint dtype) { return dtype == F16 ? unpackHalf2x16(bits & 0xffffu).x : uintBitsToFloat(bits << 16); }

/* Words */

uint load_word(uvec2 address) { return Word(address).value; }
int load_i32(uvec2 address) { return int(Word(address).value); }
void store_word(uvec2 address, uint value) { Word(address).value = value; }

/* Two words, aligned to both. */
uvec2 load_word_pair(uvec2 address)
{
#if INT_64
  return unpack32(LongWord(address).value);
#else
  return WordPair(address).value;
#endif
}

void store_word_pair(uvec2 address, uvec2 value)
{
#if INT_64
  LongWord(address).value = pack64(value);
#else
  WordPair(address).value = value;
#endif
}

/* Tells the host that values on the device were not what they should be. */
void report(uvec2 status, uint code) { Word(status).value = code; }

/* One element, aligned to its own size */

uint load_16_bits(uvec2 address)
{
#if STORAGE_16
  return uint(Half(address).value);
#else
  return Word(uvec2(address.x & ~3u, address.y)).value >> ((address.x & 2u) << 3) & 0xffffu;
#endif
}

void store_16_bits(uvec2 address, uint bits)
{
#if STORAGE_16
  Half(address).value = uint16_t(bits);
#else
  Word word = Word(uvec2(address.x & ~3u, address.y));
  uint shift = (address.x & 2u) << 3;
  atomicAnd(word.value, ~(0xffffu << shift));
  atomicOr(word.value, bits << shift);
#endif
}

int load_i8(uvec2 address) { return bitfieldExtract(int(Word(uvec2(address.x & ~3u, address.y)).value), int(address.x & 3u) << 3, 8); }

void store_i8(uvec2 address, int value)
{
  Word word = Word(uvec2(address.x & ~3u, address.y));
  uint shift = (address.x & 3u) << 3;
  atomicAnd(word.value, ~(0xffu << shift));
  atomicOr(word.value, (uint(value) & 0xffu) << shift);
}

float load_1(uvec2 address, const uint dtype)
{
  if (dtype == F32) return uintBitsToFloat(load_word(address));
  if (dtype == I32) return float(load_i32(address));
  if (dtype == I8) return float(load_i8(address));
  return value_of_bits(load_16_bits(address), dtype);
}

/* To the nearest integer within bounds, ties to even; NaN is 0. `high` must be exact in f32. */
int saturate(float v, float low, float high)
{
  float whole = roundEven(v);
  return is_nan(v) ? 0 : whole <= low ? int(low) : whole >= high ? int(high) : int(whole);
}

int to_i8(float v) { return saturate(v, -128.0, 127.0); }
int to_i32(float v) { return v >= 2147483648.0 ? 0x7fffffff : saturate(v, -2147483648.0, 2147483520.0); }

void store_1(uvec2 address, float v, const uint dtype)
{
  if (dtype == F32) store_word(address, floatBitsToUint(v));
  else if (dtype == I32) store_word(address, uint(to_i32(v)));
  else if (dtype == I8) store_i8(address, to_i8(v));
  else store_16_bits(address, dtype == F16 ? f16_bits(v) : bf16_bits(v));
}

/* Four elements side by side, aligned to the four of them, or to 8 bytes if they are more */

vec4 load_4(uvec2 address, const uint dtype)
{
  if (dtype == F32) return uintBitsToFloat(uvec4(load_word_pair(address), load_word_pair(address_add(address, 8))));
  if (dtype == I32) return vec4(ivec4(load_word_pair(address), load_word_pair(address_add(address, 8))));
  if (dtype == I8) {
    int word = load_i32(address);
    return vec4(bitfieldExtract(word, 0, 8), bitfieldExtract(word, 8, 8), bitfieldExtract(word, 16, 8), word >> 24);
  }
#if INT_64
  if (dtype == F16) {
    /* Each is shifted down and cut off, which drivers that compute in wide vectors do best: a shuffle of odd words costs more. */
    uint64_t halves = LongWord(address).value;
    vec2 middle = unpackHalf2x16(uint(halves >> 16));
    return vec4(unpackHalf2x16(uint(halves)).x, middle, unpackHalf2x16(uint(halves >> 48)).x);
  }
#endif
  uvec2 pair = load_word_pair(address);
  if (dtype == F16) return vec4(unpackHalf2x16(pair.x), unpackHalf2x16(pair.y));
  return uintBitsToFloat(uvec4(pair.x << 16, pair.x & 0xffff0000u, pair.y << 16, pair.y & 0xffff0000u));
}

void store_4(uvec2 address, vec4 v, const uint dtype)
{
  if (dtype == F32) {
    store_word_pair(address, floatBitsToUint(v.xy));
    store_word_pair(address_add(address, 8), floatBitsToUint(v.zw));
  } else if (dtype == I32) {
    store_word_pair(address, uvec2(to_i32(v.x), to_i32(v.y)));
    store_word_pair(address_add(address, 8), uvec2(to_i32(v.z), to_i32(v.w)));
  } else if (dtype == I8) {
    uvec4 bytes = uvec4(to_i8(v.x), to_i8(v.y), to_i8(v.z), to_i8(v.w)) & 0xffu;
    store_word(address, bytes.x | bytes.y << 8 | bytes.z << 16 | bytes.w << 24);
  } else if (dtype == F16) {
    store_word_pair(address, uvec2(f16_bits(v.x) | f16_bits(v.y) << 16, f16_bits(v.z) | f16_bits(v.w) << 16));
  } else {
    store_word_pair(address, uvec2(bf16_bits(v.x) | bf16_bits(v.y) << 16, bf16_bits(v.z) | bf16_bits(v.w) << 16));
  }
}

/* True if load_4 and store_4 may be used from here on, in steps of four. */
bool is_aligned_4(uvec2 address, const uint dtype) { return (address.x & (dtype == I8 ? 3u : 7u)) == 0u; }

/* Functions */

/* e^x within 2 ulp (subnormal results aside); NaN stays NaN. Cody and Waite's reduction, Cephes' polynomial. */
float exp_of(float x)
{
  float within = x < -104.0 ? -104.0 : x > 89.0 ? 89.0 : x;
  float n = floor(within * 1.44269504 + 0.5);
  precise float r = within - n * 0.693359375;
  r = r + n * 2.12194440e-4;
  float p = ((((1.9875691500e-4 * r + 1.3981999507e-3) * r + 8.3334519073e-3) * r + 4.1665795894e-2) * r + 1.6666665459e-1) * r + 5.0000001201e-1;
  float y = p * (r * r) + r + 1.0;
  /* 2^n in two steps: it may lie outside f32 while the result does not. */
  int e = int(n), half_e = e >> 1;
  return y * uintBitsToFloat(uint(half_e + 127) << 23) * uintBitsToFloat(uint(e - half_e + 127) << 23);
}

/* The natural logarithm within 2 ulp, near 1 too; of 0 it is -inf, of negative numbers NaN. Cephes' polynomial. */
float log_of(float x)
{
  bool small = x < 1.17549435e-38;
  uint bits = floatBitsToUint(small ? x * 8388608.0 : x);
  /* x = 2^e m with m in [1/sqrt 2, sqrt 2) */
  int e = int(bits - 0x3f3504f3u) >> 23;
  float f = uintBitsToFloat(bits - (uint(e) << 23)) - 1.0, z = f * f;
  float p = ((((((((7.0376836292e-2 * f - 1.1514610310e-1) * f + 1.1676998740e-1) * f - 1.2420140846e-1) * f + 1.4249322787e-1) * f
            - 1.6668057665e-1) * f + 2.0000714765e-1) * f - 2.4999993993e-1) * f + 3.3333331174e-1);
  float exponent = float(small ? e - 23 : e);
  float y = f * z * p + exponent * -2.12194440e-4 - 0.5 * z;
  float result = f + y + exponent * 0.693359375;
  uint magnitude = floatBitsToUint(x) & 0x7fffffffu;
  if (magnitude >= 0x7f800000u || x < 0.0) return magnitude == 0x7f800000u && x > 0.0 ? x : uintBitsToFloat(0x7fc00000u);
  return floatBitsToUint(small ? x * 8388608.0 : x) << 1 == 0u ? uintBitsToFloat(0xff800000u) : result;
}

/* tanh within 2 ulp for any x; NaN stays NaN */
float tanh_of(float x)
{
  float z = x * x;
  float near = x + x * z * ((((-5.70498872745e-3 * z + 2.06390887954e-2) * z - 5.37397155531e-2) * z + 1.33314422036e-1) * z - 3.33332819422e-1);
  float far = 1.0 - 2.0 / (exp_of(2.0 * abs(x)) + 1.0);
  return abs(x) < 0.625 ? near : x < 0.0 ? -far : far;
}

float sigmoid(float x) { return 1.0 / (1.0 + exp_of(-x)); }
float silu(float x) { return x / (1.0 + exp_of(-x)); }

/* x Phi(x) with Phi(-|x|) = erfc(|x| / sqrt 2) / 2 after Abramowitz and Stegun 7.1.26 (absolute error of erf 1.5e-7 < 2^-22) */
float gelu(float x)
{
  float z = abs(x) * 0.70710678;
  float t = 1.0 / (z * 0.3275911 + 1.0);
  float p = (((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592;
  float tail = 0.5 * p * t * exp_of(-z * z);
  return x * (x > 0.0 ? 1.0 - tail : tail);
}

/* 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) = x sigmoid(2 sqrt(2 / pi) (...)): no tanh, no cancellation */
float gelu_tanh(float x) { return x / (1.0 + exp_of(-1.5957691216 * (0.044715 * x * x * x + x))); }

/* activation codes, a run-time scalar of the kernels that have an epilogue */
#define ACTIVATION_RELU 1
#define ACTIVATION_GELU 2
#define ACTIVATION_GELU_TANH 3
#define ACTIVATION_SILU 4
#define ACTIVATION_SWIGLU 5

float activate(float x, uint activation)
{
  switch (activation) {
    case ACTIVATION_RELU: return x < 0.0 ? 0.0 : x;
    case ACTIVATION_GELU: return gelu(x);
    case ACTIVATION_GELU_TANH: return gelu_tanh(x);
    case ACTIVATION_SILU: return silu(x);
    default: return x;
  }
}
