/* Elements of the gemm kernels: storage dtypes, epilogue, activations.
 *
 * Every gemm source is compiled as this file followed by its own text. Dtypes are compile-time codes; the functions
 * below take them as constants, so that each call folds to one load or store. f16 and bf16 are storage only: arithmetic
 * is f32. erf is written out, because the vector erf of OpenCL libraries costs several times the
 * polynomial. NaN must survive: no fmax, fmin or clamp on values that may be NaN.
 *
 * Macro    default  meaning
 * A_DTYPE  0        dtype of a, c and bias: 0 f32, 1 f16, 2 bf16, 3 i8 (c and bias are then i32)
 * B_DTYPE  A_DTYPE  dtype of b; from 10 on blocks of weights (blocks.cl)
 * D_DTYPE  A_DTYPE  dtype of d (i8: 3, 4 i32, 0 f32)
 */
#define F32 0
#define F16 1
#define BF16 2
#define I8 3
#define I32 4
#ifndef A_DTYPE
#define A_DTYPE F32
#endif
#ifndef B_DTYPE
#define B_DTYPE A_DTYPE
#endif
#if A_DTYPE == I8
#define C_DTYPE I32
#ifndef D_DTYPE
#define D_DTYPE I32
#endif
#else
#define C_DTYPE A_DTYPE
#ifndef D_DTYPE
#define D_DTYPE A_DTYPE
#endif
#endif

/* activation codes, a run-time scalar of every kernel */
#define ACTIVATION_RELU 1
#define ACTIVATION_GELU 2
#define ACTIVATION_GELU_TANH 3
#define ACTIVATION_SILU 4
#define ACTIVATION_SWIGLU 5

/* index % extent, where `quotient` is index / extent. (LLVM would make it so, with an instruction that oclgrind does not know.) */
inline uint remainder_of(uint index, uint extent, uint quotient) { return index - quotient * extent; }

inline float load_1(__global const void* x, ulong i, const int dtype)
{
  if (dtype == F32) return ((__global const float*)x)[i];
  if (dtype == F16) return vload_half(i, (__global const half*)x);
  if (dtype == BF16) return as_float((uint)((__global const ushort*)x)[i] << 16);
  if (dtype == I8) return (float)((__global const char*)x)[i];
  return (float)((__global const int*)x)[i];
}

inline float8 load_8(__global const void* x, ulong i, const int dtype)
{
  if (dtype == F32) return vload8(0, (__global const float*)x + i);
  if (dtype == F16) return vload_half8(0, (__global const half*)x + i);
  if (dtype == BF16) return as_float8(convert_uint8(vload8(0, (__global const ushort*)x + i)) << 16);
  if (dtype == I8) return convert_float8(vload8(0, (__global const char*)x + i));
  return convert_float8(vload8(0, (__global const int*)x + i));
}

inline float16 load_16(__global const void* x, ulong i, const int dtype)
{
  if (dtype == F32) return vload16(0, (__global const float*)x + i);
  if (dtype == F16) return vload_half16(0, (__global const half*)x + i);
  if (dtype == BF16) return as_float16(convert_uint16(vload16(0, (__global const ushort*)x + i)) << 16);
  if (dtype == I8) return convert_float16(vload16(0, (__global const char*)x + i));
  return convert_float16(vload16(0, (__global const int*)x + i));
}

/* Sixteen elements, of which the first `live` exist, `stride` apart; the rest are zero. */
inline float16 gather_16(__global const void* x, ulong at, ulong stride, uint live, const int dtype)
{
  if (stride == 1 && live >= 16) return load_16(x, at, dtype);
  if (stride == 0 && live != 0) return (float16)load_1(x, at, dtype);
  float v[16];
  for (uint i = 0; i < 16; i++) v[i] = i < live ? load_1(x, at + i * stride, dtype) : 0.0f;
  return vload16(0, v);
}

/* bf16 rounds to nearest even; NaN stays NaN (its upper half alone could be an infinity). */
inline ushort16 bf16_of(float16 v)
{
  uint16 bits = as_uint16(v);
  uint16 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return convert_ushort16(select(rounded, (bits >> 16) | 0x40u, isnan(v)));
}

inline void store_1(__global void* d, ulong i, float v, const int dtype)
{
  if (dtype == F32) ((__global float*)d)[i] = v;
  else if (dtype == F16) vstore_half_rte(v, i, (__global half*)d);
  else if (dtype == BF16) ((__global ushort*)d)[i] = bf16_of((float16)v).s0;
  else if (dtype == I8) ((__global char*)d)[i] = convert_char_sat_rte(v);
  else ((__global int*)d)[i] = convert_int_sat_rte(v);
}

inline void scatter_16(__global void* d, ulong at, ulong stride, uint live, float16 v, const int dtype)
{
  if (stride == 1 && live >= 16) {
    if (dtype == F32) vstore16(v, 0, (__global float*)d + at);
    else if (dtype == F16) vstore_half16_rte(v, 0, (__global half*)d + at);
    else if (dtype == BF16) vstore16(bf16_of(v), 0, (__global ushort*)d + at);
    else if (dtype == I8) vstore16(convert_char16_sat_rte(v), 0, (__global char*)d + at);
    else vstore16(convert_int16_sat_rte(v), 0, (__global int*)d + at);
    return;
  }
  float x[16];
  vstore16(v, 0, x);
  for (uint i = 0; i < min(live, 16u); i++) store_1(d, at + i * stride, x[i], dtype);
}

inline float16 silu_16(float16 x) { return x / (1.0f + exp(-x)); }

/* x Phi(x) with Phi(-|x|) = erfc(|x| / sqrt 2) / 2 after Abramowitz and Stegun 7.1.26 (absolute error of erf 1.5e-7 < 2^-22). */
inline float16 gelu_16(float16 x)
{
  float16 z = fabs(x) * 0.70710678f;
  float16 t = 1.0f / fma(z, (float16)0.3275911f, (float16)1.0f);
  float16 p = fma(t, (float16)1.061405429f, (float16)-1.453152027f);
  p = fma(p, t, (float16)1.421413741f);
  p = fma(p, t, (float16)-0.284496736f);
  p = fma(p, t, (float16)0.254829592f);
  float16 tail = 0.5f * p * t * exp(-z * z);
  return x * select(tail, 1.0f - tail, x > 0.0f);
}

/* 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) = x sigmoid(2 sqrt(2 / pi) (...)): no tanh, no cancellation */
inline float16 gelu_tanh_16(float16 x)
{
  float16 z = 1.5957691216f * fma(0.044715f * x * x, x, x);
  return x / (1.0f + exp(-z));
}

inline float16 activate_16(float16 x, uint activation)
{
  switch (activation) {
    case ACTIVATION_RELU: return select(x, (float16)0.0f, x < 0.0f);
    case ACTIVATION_GELU: return gelu_16(x);
    case ACTIVATION_GELU_TANH: return gelu_tanh_16(x);
    case ACTIVATION_SILU: return silu_16(x);
    default: return x;
  }
}

/* The type of a finished sum: i8 products are summed in f32 while that is exact, then in i32. */
#if A_DTYPE == I8
typedef int sum_t;
typedef int16 sum16_t;
#define AS_SUM(v) convert_int16(v)
#else
typedef float sum_t;
typedef float16 sum16_t;
#define AS_SUM(v) (v)
#endif

/* Whole vectors to the end: oclgrind takes what is cut out of a vector's upper half for uninitialised. */
inline sum_t sum_lanes(sum16_t v)
{
  const uint16 lane = (uint16)(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  v += shuffle(v, lane ^ 8u);
  v += shuffle(v, lane ^ 4u);
  v += shuffle(v, lane ^ 2u);
  return v.s0 + v.s1;
}

/* `has`: bits of what the epilogue reads and how */
#define HAS_C 1
#define HAS_BIAS 2
#define EXACT 4

/* alpha * sum + beta * c + bias for 16 elements of a row, of which `live` exist */
inline float16 affine_16(sum16_t sum, float alpha, float beta, __global const void* c, ulong c_at, ulong c_col,
                         __global const void* bias, ulong bias_at, ulong bias_col, uint has, uint live)
{
  float16 v = alpha * convert_float16(sum);
  if (has & HAS_C) v = fma((float16)beta, gather_16(c, c_at, c_col, live, C_DTYPE), v);
  if (has & HAS_BIAS) v += gather_16(bias, bias_at, bias_col, live, C_DTYPE);
  return v;
}

#if A_DTYPE == I8
/* sum + c + bias in integers, which f32 could not hold: alpha is 1, beta is 1 or c is absent, activation is none or relu. */
inline void store_exact_16(sum16_t sum, __global const int* c, ulong c_at, ulong c_col, __global const int* bias, ulong bias_at, ulong bias_col,
                           uint has, uint activation, __global void* d, ulong d_at, ulong d_col, uint live)
{
  int sums[16];
  vstore16(sum, 0, sums);
  for (uint i = 0; i < min(live, 16u); i++) {
    long v = sums[i];
    if (has & HAS_C) v += c[c_at + i * c_col];
    if (has & HAS_BIAS) v += bias[bias_at + i * bias_col];
    if (activation == ACTIVATION_RELU) v = max(v, 0L);
    if (D_DTYPE == I32) ((__global int*)d)[d_at + i * d_col] = convert_int_sat(v);
    else if (D_DTYPE == I8) ((__global char*)d)[d_at + i * d_col] = convert_char_sat(v);
    else ((__global float*)d)[d_at + i * d_col] = convert_float_rte(v);
  }
}
#endif

/* One row of a tile, to d: `lo` and `hi` are columns 0..16 and 16..32, or gate and up of the same 16 columns. */
inline void store_row(sum16_t lo, sum16_t hi, float alpha, float beta, __global const void* c, ulong c_at, ulong c_col,
                      __global const void* bias, ulong bias_at, ulong bias_col, uint has, uint activation, uint second,
                      __global void* d, ulong d_at, ulong d_col, uint live)
{
#if A_DTYPE == I8
  if (has & EXACT) {
    store_exact_16(lo, c, c_at, c_col, bias, bias_at, bias_col, has, activation, d, d_at, d_col, live);
    if (live > 16) store_exact_16(hi, c, c_at + 16 * c_col, c_col, bias, bias_at + 16 * bias_col, bias_col, has, activation, d, d_at + 16 * d_col, d_col, live - 16);
    return;
  }
#endif
  float16 v = affine_16(lo, alpha, beta, c, c_at, c_col, bias, bias_at, bias_col, has, live);
  uint rest = activation == ACTIVATION_SWIGLU ? live : live - min(live, 16u);
  if (rest == 0) { scatter_16(d, d_at, d_col, live, activate_16(v, activation), D_DTYPE); return; }
  float16 w = affine_16(hi, alpha, beta, c, c_at + second * c_col, c_col, bias, bias_at + second * bias_col, bias_col, has, rest);
  if (activation == ACTIVATION_SWIGLU) { scatter_16(d, d_at, d_col, live, silu_16(v) * w, D_DTYPE); return; }
  scatter_16(d, d_at, d_col, live, activate_16(v, activation), D_DTYPE);
  scatter_16(d, d_at + 16 * d_col, d_col, rest, activate_16(w, activation), D_DTYPE);
}

/* x after its activation, for kernels with one element a work-item */
inline float activate_1(float x, uint activation)
{
  switch (activation) {
    case ACTIVATION_RELU: return x < 0.0f ? 0.0f : x;
    case ACTIVATION_GELU: return 0.5f * x * (1.0f + erf(x * 0.70710678f));
    case ACTIVATION_GELU_TANH: return x / (1.0f + exp(-1.5957691216f * fma(0.044715f * x * x, x, x)));
    case ACTIVATION_SILU: return x / (1.0f + exp(-x));
    default: return x;
  }
}

/* As store_row, for one element; `up` counts only under swiglu, its column is `second` further. */
inline void store_sum(sum_t sum, sum_t up, float alpha, float beta, __global const void* c, ulong c_at, ulong c_col,
                      __global const void* bias, ulong bias_at, ulong bias_col, uint has, uint activation, uint second,
                      __global void* d, ulong d_at)
{
#if A_DTYPE == I8
  if (has & EXACT) {
    store_exact_16((sum16_t)sum, c, c_at, c_col, bias, bias_at, bias_col, has, activation, d, d_at, 1, 1);
    return;
  }
#endif
  float v = alpha * (float)sum;
  if (has & HAS_C) v = fma(beta, load_1(c, c_at, C_DTYPE), v);
  if (has & HAS_BIAS) v += load_1(bias, bias_at, C_DTYPE);
  if (activation == ACTIVATION_SWIGLU) {
    float w = alpha * (float)up;
    if (has & HAS_C) w = fma(beta, load_1(c, c_at + second * c_col, C_DTYPE), w);
    if (has & HAS_BIAS) w += load_1(bias, bias_at + second * bias_col, C_DTYPE);
    v = activate_1(v, ACTIVATION_SILU) * w;
  }
  store_1(d, d_at, activate_1(v, activation), D_DTYPE);
}
