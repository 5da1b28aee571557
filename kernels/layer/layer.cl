// What the OpenCL kernels of this folder stand on: elements of each dtype, in vectors, and functions.
//
// Each source is compiled as this file followed by its own text. Dtypes are compile-time codes, so that each call folds to one load or
// store; f16 and bf16 are storage only, arithmetic is f32. NaN must survive: no fmax, fmin or clamp on values that may be NaN.
//
//   row   | vector | vector | ...            GROUP work-items take vectors by turns
//         VECTOR elements, side by side or `stride` apart
//
// Tunables (-D):
//   GROUP   1   work-items of a group: 1 where a work-item is a core with wide vectors
//   VECTOR  16  elements a work-item takes at once: 4, 8 or 16
//
// Measured: README.md.

#ifndef GROUP
#define GROUP 1
#endif
#ifndef VECTOR
#define VECTOR 16
#endif

// dtype codes
#define F32 0
#define F16 1
#define BF16 2
#define I32 4

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
typedef JOIN(float, VECTOR) floats;
typedef JOIN(uint, VECTOR) uints;
typedef JOIN(int, VECTOR) ints;
#define LOAD JOIN(vload, VECTOR)
#define STORE JOIN(vstore, VECTOR)

// index % extent, where `quotient` is index / extent. (LLVM would make it so, with an instruction that oclgrind does not know.)
inline uint remainder_of(uint index, uint extent, uint quotient) { return index - quotient * extent; }

// Where a row lies among the planes it is of, from its number.
typedef struct { uint i1, i2, i3; } place;

inline place place_of(uint row, uint n1, uint n2)
{
  place p = {row, 0, 0};
  // Divisions cost more than a vector's work.
  if (row < n1) return p;
  const uint plane = row / n1, batch = plane / n2;
  p.i1 = remainder_of(row, n1, plane);
  p.i2 = remainder_of(plane, n2, batch);
  p.i3 = batch;
  return p;
}

// The group's number: they are asked for in two dimensions, of which devices bound each.
inline uint group_number(void) { return get_group_id(1) * get_num_groups(0) + get_group_id(0); }

// Repeats an axis of `extent` elements.
inline uint wrapped(uint index, uint extent) { return index < extent ? index : remainder_of(index, extent, index / extent); }

inline float load_1(__global const void* x, ulong i, const int dtype)
{
  if (dtype == F32) return ((__global const float*)x)[i];
  if (dtype == F16) return vload_half(i, (__global const half*)x);
  if (dtype == BF16) return as_float((uint)((__global const ushort*)x)[i] << 16);
  return convert_float_rte(((__global const int*)x)[i]);
}

// VECTOR elements side by side.
inline floats load_side_by_side(__global const void* x, ulong i, const int dtype)
{
  if (dtype == F32) return LOAD(0, (__global const float*)x + i);
  if (dtype == F16) return JOIN(vload_half, VECTOR)(0, (__global const half*)x + i);
  if (dtype == BF16) return JOIN(as_float, VECTOR)(JOIN(convert_uint, VECTOR)(LOAD(0, (__global const ushort*)x + i)) << 16);
  return JOIN(JOIN(convert_float, VECTOR), _rte)(LOAD(0, (__global const int*)x + i));
}

// VECTOR elements `stride` apart, of which the first `live` exist; the others are `rest`.
inline floats load_vector(__global const void* x, ulong i, ulong stride, uint live, float rest, const int dtype)
{
  if (live >= VECTOR && stride == 1) return load_side_by_side(x, i, dtype);
  if (live >= VECTOR && stride == 0) return (floats)load_1(x, i, dtype);
  float v[VECTOR];
  for (uint e = 0; e < VECTOR; e++) v[e] = e < live ? load_1(x, i + e * stride, dtype) : rest;
  return LOAD(0, v);
}

// bf16 rounds to nearest even; NaN stays NaN (its upper half alone could be an infinity).
inline ushort bf16_of(float v)
{
  const uint bits = as_uint(v);
  return (ushort)(isnan(v) ? (bits >> 16) | 0x40u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// I32 is cut off towards zero, NaN becomes 0.
inline void store_1(__global void* d, ulong i, float v, const int dtype)
{
  if (dtype == F32) ((__global float*)d)[i] = v;
  else if (dtype == F16) vstore_half_rte(v, i, (__global half*)d);
  else if (dtype == BF16) ((__global ushort*)d)[i] = bf16_of(v);
  else ((__global int*)d)[i] = isnan(v) ? 0 : convert_int_sat_rtz(v);
}

inline void store_vector(__global void* d, ulong i, ulong stride, uint live, floats v, const int dtype)
{
  if (live >= VECTOR && stride == 1 && dtype != I32) {
    if (dtype == F32) STORE(v, 0, (__global float*)d + i);
    else if (dtype == F16) JOIN(JOIN(vstore_half, VECTOR), _rte)(v, 0, (__global half*)d + i);
    else {
      const uints bits = JOIN(as_uint, VECTOR)(v), rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
      STORE(JOIN(convert_ushort, VECTOR)(select(rounded, (bits >> 16) | 0x40u, isnan(v))), 0, (__global ushort*)d + i);
    }
    return;
  }
  float x[VECTOR];
  STORE(v, 0, x);
  for (uint e = 0; e < min(live, (uint)VECTOR); e++) store_1(d, i + e * stride, x[e], dtype);
}

inline floats sigmoid(floats x) { return 1.0f / (1.0f + exp(-x)); }
inline floats silu(floats x) { return x / (1.0f + exp(-x)); }
inline floats relu(floats x) { return select(x, (floats)0.0f, x < 0.0f); }
inline floats gelu_quick(floats x) { return x / (1.0f + exp(-1.702f * x)); }

// 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) = x sigmoid(2 sqrt(2 / pi) (...)): no tanh, no cancellation
inline floats gelu(floats x) { return x / (1.0f + exp(-1.5957691216f * fma(0.044715f * x * x, x, x))); }

// x Phi(x) with Phi(-|x|) = erfc(|x| / sqrt 2) / 2 after Abramowitz and Stegun 7.1.26 (absolute error of erf 1.5e-7 < 2^-22)
inline floats gelu_erf(floats x)
{
  const floats z = fabs(x) * 0.70710678f, t = 1.0f / fma(z, (floats)0.3275911f, (floats)1.0f);
  floats p = fma(t, (floats)1.061405429f, (floats)-1.453152027f);
  p = fma(p, t, (floats)1.421413741f);
  p = fma(p, t, (floats)-0.284496736f);
  p = fma(p, t, (floats)0.254829592f);
  const floats tail = 0.5f * p * t * exp(-z * z);
  return x * select(tail, 1.0f - tail, x > 0.0f);
}

// Each element's partner, `distance` lanes away. In whole vectors to the end: oclgrind takes what is cut out of a
// vector's upper half for uninitialised.
#if VECTOR == 16
#define LANES (int16)(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
#elif VECTOR == 8
#define LANES (int8)(0, 1, 2, 3, 4, 5, 6, 7)
#else
#define LANES (int4)(0, 1, 2, 3)
#endif
#define PARTNERS(v, distance) shuffle(v, JOIN(as_uint, VECTOR)(LANES ^ distance))

// The sum of a vector's elements.
inline float sum_of(floats v)
{
#if VECTOR >= 16
  v += PARTNERS(v, 8);
#endif
#if VECTOR >= 8
  v += PARTNERS(v, 4);
#endif
  v += PARTNERS(v, 2);
  return v.s0 + v.s1;
}

#if GROUP > 1
// The sum over the group's work-items, in all of them. Every work-item comes here.
inline float group_sum(float v, __local float* shared)
{
  const uint lane = get_local_id(0);
  barrier(CLK_LOCAL_MEM_FENCE);
  shared[lane] = v;
  for (uint step = GROUP / 2; step > 0; step /= 2) {
    barrier(CLK_LOCAL_MEM_FENCE);
    if (lane < step) shared[lane] += shared[lane + step];
  }
  barrier(CLK_LOCAL_MEM_FENCE);
  return shared[0];
}

inline float group_max(float v, __local float* shared)
{
  const uint lane = get_local_id(0);
  barrier(CLK_LOCAL_MEM_FENCE);
  shared[lane] = v;
  for (uint step = GROUP / 2; step > 0; step /= 2) {
    barrier(CLK_LOCAL_MEM_FENCE);
    if (lane < step && shared[lane + step] > shared[lane]) shared[lane] = shared[lane + step];
  }
  barrier(CLK_LOCAL_MEM_FENCE);
  return shared[0];
}
#else
#define group_sum(v, shared) (v)
#define group_max(v, shared) (v)
#endif
