/* What the CUDA kernels of this folder stand on: elements of each dtype, fours of them where they lie side by side, functions, reductions.
 *
 * Each source is compiled as this file followed by its own text, with no header. Dtypes are compile-time codes; f16 and bf16 are storage only,
 * arithmetic is f32. NaN must survive: no fmaxf or fminf on values that may be NaN.
 *
 *   row   | four | four | ...            GROUP threads take fours by turns
 *
 * Tunables (-D):
 *   GROUP   64  threads of a block
 */
#ifndef GROUP
#define GROUP 64
#endif

/* dtype codes */
#define F32 0
#define F16 1
#define BF16 2
#define I32 4

#define INFINITE __uint_as_float(0x7f800000u)

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

/* Where a row lies among the planes it is of, from its number. */
struct Place { u32 i1, i2, i3; };

__device__ __forceinline__ Place place_of(u32 row, u32 n1, u32 n2)
{
  Place p = {row, 0, 0};
  /* Divisions cost more than a few elements' work. */
  if (row < n1) return p;
  u32 plane = row / n1;
  p.i1 = row % n1, p.i2 = plane % n2, p.i3 = plane / n2;
  return p;
}

/* The block's number: they are asked for in two dimensions, of which devices bound each. */
__device__ __forceinline__ u32 group_number() { return blockIdx.y * gridDim.x + blockIdx.x; }

/* Repeats an axis of `extent` elements. */
__device__ __forceinline__ u32 wrapped(u32 index, u32 extent) { return index < extent ? index : index % extent; }

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

/* bf16 rounds to nearest even; NaN stays NaN (its upper half alone could be an infinity). */
__device__ __forceinline__ u16 bf16_of(float v)
{
  u32 bits = __float_as_uint(v), rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return (u16)(v != v ? (bits >> 16) | 0x40u : rounded);
}

__device__ __forceinline__ float value_of(u16 bits, int dtype) { return dtype == F16 ? f32_of_f16(bits) : __uint_as_float((u32)bits << 16); }
__device__ __forceinline__ u16 bits_of(float v, int dtype) { return dtype == F16 ? f16_of(v) : bf16_of(v); }

__device__ __forceinline__ float load_1(const void* x, u64 i, int dtype)
{
  if (dtype == F32) return ((const float*)x)[i];
  if (dtype == I32) return __int2float_rn(((const int*)x)[i]);
  return value_of(((const u16*)x)[i], dtype);
}

/* I32 is cut off towards zero, NaN becomes 0. */
__device__ __forceinline__ void store_1(void* d, u64 i, float v, int dtype)
{
  if (dtype == F32) ((float*)d)[i] = v;
  else if (dtype == I32) ((int*)d)[i] = __float2int_rz(v);
  else ((u16*)d)[i] = bits_of(v, dtype);
}

/* Whether four elements from element i on may be moved at once. */
__device__ __forceinline__ bool is_whole(const void* x, u64 i, u64 stride, u32 live, int dtype)
{
  u32 bytes = dtype == F32 || dtype == I32 ? 4 : 2;
  return live >= 4 && stride == 1 && ((u64)x + i * bytes) % (4 * bytes) == 0;
}

/* Four elements `stride` apart, of which the first `live` exist; the others are `rest`. */
__device__ __forceinline__ void load_four(const void* x, u64 i, u64 stride, u32 live, float rest, float v[4], int dtype)
{
  if (dtype == F32 && is_whole(x, i, stride, live, dtype)) {
    float4 four = *(const float4*)((const float*)x + i);
    v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
  } else if ((dtype == F16 || dtype == BF16) && is_whole(x, i, stride, live, dtype)) {
    uint2 pair = *(const uint2*)((const u16*)x + i);
    v[0] = value_of((u16)pair.x, dtype), v[1] = value_of((u16)(pair.x >> 16), dtype);
    v[2] = value_of((u16)pair.y, dtype), v[3] = value_of((u16)(pair.y >> 16), dtype);
  } else {
#pragma unroll
    for (u32 e = 0; e < 4; e++) v[e] = e < live ? load_1(x, i + e * stride, dtype) : rest;
  }
}

__device__ __forceinline__ void store_four(void* d, u64 i, u64 stride, u32 live, const float v[4], int dtype)
{
  if (dtype == F32 && is_whole(d, i, stride, live, dtype)) {
    *(float4*)((float*)d + i) = make_float4(v[0], v[1], v[2], v[3]);
  } else if ((dtype == F16 || dtype == BF16) && is_whole(d, i, stride, live, dtype)) {
    uint2 pair;
    pair.x = bits_of(v[0], dtype) | (u32)bits_of(v[1], dtype) << 16;
    pair.y = bits_of(v[2], dtype) | (u32)bits_of(v[3], dtype) << 16;
    *(uint2*)((u16*)d + i) = pair;
  } else {
#pragma unroll
    for (u32 e = 0; e < 4; e++)
      if (e < live) store_1(d, i + e * stride, v[e], dtype);
  }
}

__device__ __forceinline__ float sum_of(const float v[4]) { return (v[0] + v[2]) + (v[1] + v[3]); }

__device__ __forceinline__ float silu(float x) { return x / (1.0f + expf(-x)); }
__device__ __forceinline__ float gelu(float x) { return x / (1.0f + expf(-1.5957691216f * fmaf(0.044715f * x * x, x, x))); }
__device__ __forceinline__ float relu(float x) { return x < 0.0f ? 0.0f : x; }
__device__ __forceinline__ float gelu_erf(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678f)); }
__device__ __forceinline__ float gelu_quick(float x) { return x / (1.0f + expf(-1.702f * x)); }

/* The sum over the threads of a block, in all of them. Every thread comes here; `shared` has a place for each. */
__device__ __forceinline__ float group_sum(float v, float* shared)
{
  __syncthreads();
  shared[threadIdx.x] = v;
  for (u32 step = GROUP / 2; step > 0; step /= 2) {
    __syncthreads();
    if (threadIdx.x < step) shared[threadIdx.x] += shared[threadIdx.x + step];
  }
  __syncthreads();
  return shared[0];
}

__device__ __forceinline__ float group_max(float v, float* shared)
{
  __syncthreads();
  shared[threadIdx.x] = v;
  for (u32 step = GROUP / 2; step > 0; step /= 2) {
    __syncthreads();
    if (threadIdx.x < step && shared[threadIdx.x + step] > shared[threadIdx.x]) shared[threadIdx.x] = shared[threadIdx.x + step];
  }
  __syncthreads();
  return shared[0];
}
