/* Elements of the gemm kernels in CUDA: storage dtypes, epilogue, activations.
 *
 * Every gemm source is compiled as this file followed by its own text, with no header. Dtypes are compile-time codes; the functions below take them
 * as constants, so that each call folds to one load or store. f16 and bf16 are storage only here: arithmetic is f32. NaN must survive: no fmaxf or
 * fminf on values that may be NaN.
 *
 *   sums of a row of d       gate | gate | ... | up | up | ...   (swiglu: `second` columns apart in c and bias)
 *            \                     \            /
 *   alpha sum + beta c + bias   ->  activation  ->  rounded once  ->  d
 *
 * Macro    default  meaning
 * A_DTYPE  0        dtype of a: 0 f32, 1 f16, 2 bf16, 3 i8, 5 e4m3
 * B_DTYPE  A_DTYPE  dtype of b; from 10 on blocks of weights (blocks.cu), whose places are bytes
 * C_DTYPE  A_DTYPE  dtype of c and bias (i8: 4, i32)
 * D_DTYPE  C_DTYPE  dtype of d (i8: 3, 4 i32, 0 f32)
 */
#define F32 0
#define F16 1
#define BF16 2
#define I8 3
#define I32 4
#define E4M3 5
#ifndef A_DTYPE
#define A_DTYPE F32
#define A_DTYPE_IS_DEFAULT
#endif
#ifndef B_DTYPE
#define B_DTYPE A_DTYPE
#endif
#ifndef C_DTYPE
#if A_DTYPE == I8
#define C_DTYPE I32
#else
#define C_DTYPE A_DTYPE
#endif
#endif
#ifndef D_DTYPE
#define D_DTYPE C_DTYPE
#endif

/* activation codes, a run-time scalar of every kernel */
#define ACTIVATION_RELU 1
#define ACTIVATION_GELU 2
#define ACTIVATION_GELU_TANH 3
#define ACTIVATION_SILU 4
#define ACTIVATION_SWIGLU 5

/* `has`: bits of what the epilogue reads and how. EXACT is in integers. */
#define HAS_C 1
#define HAS_BIAS 2
#define EXACT 4

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

/* The type of a sum, and of an element on its way to it. */
#if A_DTYPE == I8
typedef int sum_t;
#else
typedef float sum_t;
#endif

#define BYTES_OF(dtype) ((dtype) == I8 || (dtype) == E4M3 || (dtype) >= 10 ? 1u : (dtype) == F16 || (dtype) == BF16 ? 2u : 4u)

/* The address of element i. */
__device__ __forceinline__ const void* element_at(const void* x, u64 i, int dtype)
{
  return (const u8*)x + i * BYTES_OF(dtype);
}

__device__ __forceinline__ float f32_of_f16(u16 bits)
{
  float v;
  asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(bits));
  return v;
}

__device__ __forceinline__ u16 f16_of(float v)
{
  u16 bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(v));
  return bits;
}

__device__ __forceinline__ float f32_of_bf16(u16 bits) { return __uint_as_float((u32)bits << 16); }

/* bf16 rounds to nearest even; NaN stays NaN (its upper half alone could be an infinity). In integers, since devices before sm_80 convert no bf16. */
__device__ __forceinline__ u16 bf16_of(float v)
{
  u32 bits = __float_as_uint(v), rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return (u16)(v != v ? (bits >> 16) | 0x40u : rounded);
}

/* Shifted into place the bits are an f16 of exponents 8 less, subnormal numbers too. 0x7f is NaN, and there is no infinity. */
__device__ __forceinline__ float f32_of_e4m3(u32 bits)
{
  float v = 256.0f * f32_of_f16((u16)((bits & 0x80u) << 8 | (bits & 0x7fu) << 7));
  return (bits & 0x7fu) == 0x7fu ? __uint_as_float(0x7fffffffu) : v;
}

__device__ __forceinline__ float load_1(const void* x, u64 i, int dtype)
{
  if (dtype == F32) return ((const float*)x)[i];
  if (dtype == F16) return f32_of_f16(((const u16*)x)[i]);
  if (dtype == BF16) return f32_of_bf16(((const u16*)x)[i]);
  if (dtype == I8) return (float)((const signed char*)x)[i];
  if (dtype == E4M3) return f32_of_e4m3(((const u8*)x)[i]);
  return (float)((const int*)x)[i];
}

/* An element as it is multiplied. */
__device__ __forceinline__ sum_t load_factor(const void* x, u64 i, int dtype)
{
#if A_DTYPE == I8
  return ((const signed char*)x)[i];
#else
  return load_1(x, i, dtype);
#endif
}

/* Four elements at an address aligned to all four. */
__device__ __forceinline__ void load_factors_4(const void* x, sum_t v[4], int dtype)
{
#if A_DTYPE == I8
  u32 word = *(const u32*)x;
  for (int i = 0; i < 4; i++) v[i] = (int)(word << (24 - 8 * i)) >> 24;
#else
  if (dtype == F32) {
    float4 four = *(const float4*)x;
    v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
    return;
  }
  if (dtype == E4M3) {
    u32 bytes = *(const u32*)x;
    for (int i = 0; i < 4; i++) v[i] = f32_of_e4m3(bytes >> 8 * i & 0xffu);
    return;
  }
  uint2 words = *(const uint2*)x;
  u32 word[2] = {words.x, words.y};
  for (int i = 0; i < 4; i++) {
    u16 bits = (u16)(word[i / 2] >> (i % 2 * 16));
    v[i] = dtype == F16 ? f32_of_f16(bits) : f32_of_bf16(bits);
  }
#endif
}

__device__ __forceinline__ bool is_multiple(u64 x, u64 of) { return x % of == 0; }

/* Whole numbers saturate; rounded to nearest even, NaN to 0. */
__device__ __forceinline__ int saturated_i8(int v) { return v < -128 ? -128 : v > 127 ? 127 : v; }

__device__ __forceinline__ void store_1(void* d, u64 i, float v, int dtype)
{
  if (dtype == F32) ((float*)d)[i] = v;
  else if (dtype == F16) ((u16*)d)[i] = f16_of(v);
  else if (dtype == BF16) ((u16*)d)[i] = bf16_of(v);
  else if (dtype == I8) ((signed char*)d)[i] = (signed char)saturated_i8(__float2int_rn(v));
  else ((int*)d)[i] = __float2int_rn(v);
}

__device__ __forceinline__ float silu(float x) { return x / (1.0f + expf(-x)); }

__device__ __forceinline__ float activate(float x, u32 activation)
{
  switch (activation) {
    case ACTIVATION_RELU: return x < 0.0f ? 0.0f : x;
    case ACTIVATION_GELU: return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    /* 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) = x sigmoid(2 sqrt(2 / pi) (...)): no tanh, no cancellation */
    case ACTIVATION_GELU_TANH: return x / (1.0f + expf(-1.5957691216f * fmaf(0.044715f * x * x, x, x)));
    case ACTIVATION_SILU: return silu(x);
    default: return x;
  }
}

/* What becomes of the sums of one matrix of d. */
struct Epilogue {
  float alpha, beta;
  u32 has, activation;
  /* From the matrix's first element on. */
  const void *c, *bias;
  u64 c_row, c_col, bias_row, bias_col;
  void* d;
  u64 d_row, d_col;
  /* Columns from a gate to what it multiplies. */
  u32 second;
};

__device__ __forceinline__ float affine(const Epilogue& e, sum_t sum, u64 row, u64 column)
{
  float v = e.alpha * (float)sum;
  if (e.has & HAS_C) v = fmaf(e.beta, load_1(e.c, row * e.c_row + column * e.c_col, C_DTYPE), v);
  if (e.has & HAS_BIAS) v += load_1(e.bias, row * e.bias_row + column * e.bias_col, C_DTYPE);
  return v;
}

/* The element of d at (row, column), before it is rounded; `up` counts only under swiglu. */
__device__ __forceinline__ float finish(const Epilogue& e, sum_t sum, sum_t up, u64 row, u64 column)
{
  float v = affine(e, sum, row, column);
  if (e.activation == ACTIVATION_SWIGLU) return silu(v) * affine(e, up, row, column + e.second);
  return activate(v, e.activation);
}

#if A_DTYPE == I8
/* sum + c + bias in integers, which f32 could not hold: alpha is 1, beta is 1 or c is absent, activation is none or relu. */
__device__ __forceinline__ void store_exact(const Epilogue& e, int sum, u64 row, u64 column, u64 at)
{
  long long v = sum;
  if (e.has & HAS_C) v += ((const int*)e.c)[row * e.c_row + column * e.c_col];
  if (e.has & HAS_BIAS) v += ((const int*)e.bias)[row * e.bias_row + column * e.bias_col];
  if (e.activation == ACTIVATION_RELU && v < 0) v = 0;
  if (D_DTYPE == F32) {
    ((float*)e.d)[at] = __ll2float_rn(v);
    return;
  }
  int word = v < -0x80000000LL ? (int)0x80000000 : v > 0x7fffffffLL ? 0x7fffffff : (int)v;
  if (D_DTYPE == I32) ((int*)e.d)[at] = word;
  else ((signed char*)e.d)[at] = (signed char)saturated_i8(word);
}
#endif

/* One element of d, from its sum. */
__device__ __forceinline__ void store_sum(const Epilogue& e, sum_t sum, sum_t up, u64 row, u64 column)
{
  u64 at = row * e.d_row + column * e.d_col;
#if A_DTYPE == I8
  if (e.has & EXACT) {
    store_exact(e, sum, row, column, at);
    return;
  }
#endif
  store_1(e.d, at, finish(e, sum, up, row, column), D_DTYPE);
}

/* The epilogue of a grouped product: nothing is added, rows of d begin at `d`. */
__device__ __forceinline__ Epilogue grouped_epilogue(u32 activation, void* d, u64 d_row, u64 d_col, u32 second)
{
  Epilogue e = {1.0f, 0.0f, 0, activation, nullptr, nullptr, 0, 0, 0, 0, d, d_row, d_col, second};
  return e;
}
