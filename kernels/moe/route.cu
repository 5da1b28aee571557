// moe_route: each token chooses topk experts from its logits. The same steps and arguments as in route.cl, which draws them. Here is what
// the two kernels share.
//
//   logits [tokens, experts] --score--> score --+ bias--> biased --rank groups--> eligible --best topk--> topk_ids
//                                         |                                                                   |
//                                         +-----------------------(/ sum, * scale)----------------------> topk_weights
//
// The choice works on integer keys that order as the biased scores do; a key that is taken or not eligible is the least integer.
//
// route_warp.cu    moe_route_warp: one warp a token, scores and keys in registers, up to 512 experts and topk 32
// route_group.cu   moe_route_group: one block a token, scores and keys in shared memory, any topk
//
// A row whose scores hold NaN gets the ids 0 .. topk - 1 and NaN weights.
//
// Constants (the planner's)
//   LOGITS_DTYPE      0 f32, 1 f16, 2 bf16
//   SIGMOID           0 softmax, 1 sigmoid
//   HAS_BIAS          whether the choice adds a bias
//   EXPERTS_CAPACITY  at least the number of experts, a power of two of at least 16: sizes the arrays
// Tunables
//   ROUTE_GROUP       threads of a block: 32 a token in moe_route_warp, all of them one token's in moe_route_group
//
// Measured: README.md.

#ifndef LOGITS_DTYPE
#define LOGITS_DTYPE 0
#endif
#ifndef SIGMOID
#define SIGMOID 0
#endif
#ifndef HAS_BIAS
#define HAS_BIAS 0
#endif
#ifndef EXPERTS_CAPACITY
#define EXPERTS_CAPACITY 512
#endif
#ifndef ROUTE_GROUP
#define ROUTE_GROUP 64
#endif

#define WARPS (ROUTE_GROUP / 32)
#define WHOLE_WARP 0xffffffffu

#if LOGITS_DTYPE == 0
typedef float logit_t;
#else
typedef unsigned short logit_t;
#endif

static __device__ __forceinline__ float logit_load(const logit_t* p)
{
#if LOGITS_DTYPE == 0
  return *p;
#elif LOGITS_DTYPE == 1
  float v;
  asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(*p));
  return v;
#else
  return __uint_as_float((unsigned int)*p << 16);
#endif
}

#define NEGATIVE_INFINITY __int_as_float(0xff800000)
#define NOT_A_NUMBER __int_as_float(0x7fc00000)
// No number has this key.
#define TAKEN ((int)0x80000000)

// Floats in an order that signed integers share; -0 and +0 are one value.
static __device__ __forceinline__ int order_key(float v)
{
  const int bits = __float_as_int(v + 0.0f);
  return bits ^ (bits >> 31 & 0x7fffffff);
}
static __device__ __forceinline__ bool is_nan(float v) { return v != v; }
static __device__ __forceinline__ bool is_infinite(float v) { return (__float_as_int(v) & 0x7fffffff) == 0x7f800000; }
static __device__ __forceinline__ float sigmoid(float v)
{
  const float e = expf(-fabsf(v));
  return (v < 0.0f ? e : 1.0f) / (1.0f + e);
}

static __device__ __forceinline__ float warp_max_float(float v)
{
#pragma unroll
  for (unsigned int d = 16; d > 0; d /= 2) {
    const float other = __shfl_xor_sync(WHOLE_WARP, v, d);
    v = other > v ? other : v;
  }
  return v;
}
static __device__ __forceinline__ float warp_sum(float v)
{
#pragma unroll
  for (unsigned int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(WHOLE_WARP, v, d);
  return v;
}

// What group g of `size` experts ranks by: the sum of its two best biased scores, or its one.
static __device__ __forceinline__ int group_rank(const float* score, const float* bias, unsigned long long bias_stride,
                                                 unsigned int g, unsigned int size)
{
  float first = NEGATIVE_INFINITY, second = NEGATIVE_INFINITY;
  for (unsigned int e = g * size; e < (g + 1) * size; e++) {
    const float v = score[e] + (HAS_BIAS ? bias[e * bias_stride] : 0.0f);
    const float less = v < first ? v : first;
    second = less > second ? less : second;
    first = v > first ? v : first;
  }
  return order_key(size > 1 ? first + second : first);
}

// How many of the keys come before key `at`.
static __device__ __forceinline__ unsigned int place(const int* keys, unsigned int count, unsigned int at)
{
  const int key = keys[at];
  unsigned int before = 0;
  for (unsigned int o = 0; o < count; o++) before += keys[o] > key || (keys[o] == key && o < at);
  return before;
}
