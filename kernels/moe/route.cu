// moe_route: each token chooses topk experts from its logits. The same steps and arguments as in route.cl, which draws them.
//
//   logits [tokens, experts] --score--> score --+ bias--> biased --rank groups--> eligible --best topk--> topk_ids
//                                         |                                                                   |
//                                         +-----------------------(/ sum, * scale)----------------------> topk_weights
//
// The choice works on integer keys that order as the biased scores do; a key that is taken or not eligible is the least integer.
//
// moe_route_warp   one warp a token, scores and keys in registers, up to 512 experts and topk 32: each pass takes the greatest key of
//                  the warp and the least index that has it, by redux.sync; no barrier of the block. Expert e lies in lane e % 32:
//                     lane 0: [ e0 e32 e64 .. ]   lane 1: [ e1 e33 e65 .. ]   ...   pass i: id and score stay in lane i
// moe_route_group  one block a token, scores and keys in shared memory, any topk; an expert's place is the number of experts before it
//                  (greater key, or equal and lower index).
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
#define PER_LANE ((EXPERTS_CAPACITY + 31) / 32)
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
#define GREATEST_INT 0x7fffffff
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

static __device__ __forceinline__ int warp_max(int v)
{
  int greatest;
  asm volatile("redux.sync.max.s32 %0, %1, 0xffffffff;" : "=r"(greatest) : "r"(v));
  return greatest;
}
static __device__ __forceinline__ int warp_min(int v)
{
  int least;
  asm volatile("redux.sync.min.s32 %0, %1, 0xffffffff;" : "=r"(least) : "r"(v));
  return least;
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

// One warp per token.
extern "C" __global__ void __launch_bounds__(ROUTE_GROUP)
moe_route_warp(const logit_t* logits, unsigned long long logits_offset, const float* bias, unsigned long long bias_offset,
               int* topk_ids, unsigned long long topk_ids_offset, float* topk_weights, unsigned long long topk_weights_offset,
               unsigned int tokens, unsigned int experts, unsigned int topk, unsigned int groups, unsigned int topk_groups,
               unsigned int renormalize, float scale, unsigned long long token_stride, unsigned long long expert_stride,
               unsigned long long bias_stride, unsigned long long ids_stride, unsigned long long weights_stride)
{
  __shared__ float scores_of_warps[WARPS * EXPERTS_CAPACITY];
  __shared__ int group_keys_of_warps[WARPS * EXPERTS_CAPACITY];
  const unsigned int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const unsigned int token = blockIdx.x * WARPS + warp;
  if (token >= tokens) return;
  logits += logits_offset + token * token_stride;
  bias += bias_offset;
  topk_ids += topk_ids_offset + token * ids_stride;
  topk_weights += topk_weights_offset + token * weights_stride;

  float score[PER_LANE];
  int key[PER_LANE];
  bool nan = false;
  float greatest = NEGATIVE_INFINITY;
#pragma unroll
  for (unsigned int i = 0; i < PER_LANE; i++) {
    const unsigned int e = i * 32 + lane;
    score[i] = e < experts ? logit_load(logits + e * expert_stride) : NEGATIVE_INFINITY;
  }
#pragma unroll
  for (unsigned int i = 0; i < PER_LANE; i++) {
    nan = nan || is_nan(score[i]);
    greatest = score[i] > greatest ? score[i] : greatest;
    if (SIGMOID) score[i] = sigmoid(score[i]);
    else if (!HAS_BIAS) key[i] = order_key(score[i]);
  }
#if !SIGMOID
  greatest = warp_max_float(greatest);
  nan = nan || is_infinite(greatest); // +inf, or nothing but -inf: the softmax is NaN
  float sum = 0.0f;
#pragma unroll
  for (unsigned int i = 0; i < PER_LANE; i++) {
    score[i] = expf(score[i] - greatest);
    sum += i * 32 + lane < experts ? score[i] : 0.0f;
  }
  sum = warp_sum(sum);
#pragma unroll
  for (unsigned int i = 0; i < PER_LANE; i++) score[i] /= sum;
#endif
  float* const scores = scores_of_warps + warp * EXPERTS_CAPACITY;
#pragma unroll
  for (unsigned int i = 0; i < PER_LANE; i++) {
    const unsigned int e = i * 32 + lane;
    if (e < experts) {
      const float v = score[i] + (HAS_BIAS ? bias[e * bias_stride] : 0.0f);
      nan = nan || is_nan(v);
      if (SIGMOID || HAS_BIAS) key[i] = order_key(v);
      if (groups > 1) scores[e] = score[i];
    } else {
      key[i] = TAKEN;
    }
  }
  if (__any_sync(WHOLE_WARP, nan)) {
    if (lane < topk) {
      topk_ids[lane] = lane;
      topk_weights[lane] = NOT_A_NUMBER;
    }
    return;
  }

  if (groups > 1) {
    const unsigned int size = experts / groups;
    int* const group_keys = group_keys_of_warps + warp * EXPERTS_CAPACITY;
    __syncwarp();
    for (unsigned int g = lane; g < groups; g += 32) group_keys[g] = group_rank(scores, bias, bias_stride, g, size);
    __syncwarp();
#pragma unroll
    for (unsigned int i = 0; i < PER_LANE; i++) {
      const unsigned int e = i * 32 + lane;
      if (e < experts && place(group_keys, groups, e / size) >= topk_groups) key[i] = TAKEN;
    }
  }

  int id = 0; // that of pass `lane`
  float weight = 0.0f, weight_sum = 0.0f;
  for (unsigned int pass = 0; pass < topk; pass++) {
    int best = TAKEN, at = GREATEST_INT;
#pragma unroll
    for (unsigned int i = 0; i < PER_LANE; i++)
      if (key[i] > best) { // equal keys: the first, which has the lower index
        best = key[i];
        at = i * 32 + lane;
      }
    const int winner = warp_min(best == warp_max(best) ? at : GREATEST_INT);
    float mine = 0.0f;
#pragma unroll
    for (unsigned int i = 0; i < PER_LANE; i++)
      if (winner == i * 32 + lane) {
        mine = score[i];
        key[i] = TAKEN;
      }
    const float chosen = __shfl_sync(WHOLE_WARP, mine, winner % 32);
    weight_sum += chosen;
    if (lane == pass) {
      id = winner;
      weight = chosen;
    }
  }
  if (lane < topk) {
    topk_ids[lane] = id;
    topk_weights[lane] = weight / (renormalize ? weight_sum + 1e-20f : 1.0f) * scale;
  }
}

// The greatest number of all threads, in each of them. `partial` has room for each warp, and is free again on return.
static __device__ __forceinline__ float block_max(float v, float* partial)
{
  v = warp_max_float(v);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = v;
  __syncthreads();
  v = partial[0];
  for (unsigned int w = 1; w < WARPS; w++) v = partial[w] > v ? partial[w] : v;
  __syncthreads();
  return v;
}
// Their sum, likewise.
static __device__ __forceinline__ float block_sum(float v, float* partial)
{
  v = warp_sum(v);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = v;
  __syncthreads();
  v = partial[0];
  for (unsigned int w = 1; w < WARPS; w++) v += partial[w];
  __syncthreads();
  return v;
}

// One block per token.
extern "C" __global__ void __launch_bounds__(ROUTE_GROUP)
moe_route_group(const logit_t* logits, unsigned long long logits_offset, const float* bias, unsigned long long bias_offset,
                int* topk_ids, unsigned long long topk_ids_offset, float* topk_weights, unsigned long long topk_weights_offset,
                unsigned int tokens, unsigned int experts, unsigned int topk, unsigned int groups, unsigned int topk_groups,
                unsigned int renormalize, float scale, unsigned long long token_stride, unsigned long long expert_stride,
                unsigned long long bias_stride, unsigned long long ids_stride, unsigned long long weights_stride)
{
  __shared__ float score[EXPERTS_CAPACITY];
  __shared__ int key[EXPERTS_CAPACITY];
  __shared__ int chosen[EXPERTS_CAPACITY]; // first what the groups rank by; then the chosen experts, best first
  __shared__ float partial[WARPS];
  const unsigned int token = blockIdx.x, lid = threadIdx.x;
  logits += logits_offset + token * token_stride;
  bias += bias_offset;
  topk_ids += topk_ids_offset + token * ids_stride;
  topk_weights += topk_weights_offset + token * weights_stride;

  // Until the groups are ranked each thread keeps to its own experts.
  bool nan = false;
  float greatest = NEGATIVE_INFINITY;
  for (unsigned int e = lid; e < experts; e += ROUTE_GROUP) {
    const float v = logit_load(logits + e * expert_stride);
    nan = nan || is_nan(v);
    greatest = v > greatest ? v : greatest;
    score[e] = SIGMOID ? sigmoid(v) : v;
  }
#if !SIGMOID
  greatest = block_max(greatest, partial);
  nan = nan || is_infinite(greatest);
  float sum = 0.0f;
  for (unsigned int e = lid; e < experts; e += ROUTE_GROUP) {
    if (!HAS_BIAS) key[e] = order_key(score[e]);
    const float power = expf(score[e] - greatest);
    score[e] = power;
    sum += power;
  }
  sum = block_sum(sum, partial);
  for (unsigned int e = lid; e < experts; e += ROUTE_GROUP) score[e] /= sum;
#endif
#if SIGMOID || HAS_BIAS
  for (unsigned int e = lid; e < experts; e += ROUTE_GROUP) {
    const float v = score[e] + (HAS_BIAS ? bias[e * bias_stride] : 0.0f);
    nan = nan || is_nan(v);
    key[e] = order_key(v);
  }
#endif
  if (__syncthreads_or(nan)) {
    for (unsigned int i = lid; i < topk; i += ROUTE_GROUP) {
      topk_ids[i] = i;
      topk_weights[i] = NOT_A_NUMBER;
    }
    return;
  }

  if (groups > 1) {
    const unsigned int size = experts / groups;
    for (unsigned int g = lid; g < groups; g += ROUTE_GROUP) chosen[g] = group_rank(score, bias, bias_stride, g, size);
    __syncthreads();
    for (unsigned int g = lid; g < groups; g += ROUTE_GROUP)
      if (place(chosen, groups, g) >= topk_groups)
        for (unsigned int e = g * size; e < (g + 1) * size; e++) key[e] = TAKEN;
    __syncthreads();
  }
  for (unsigned int e = lid; e < experts; e += ROUTE_GROUP) {
    const unsigned int before = place(key, experts, e);
    if (before < topk) chosen[before] = e;
  }
  __syncthreads();
  // Added by place, in one order.
  float divisor = 1.0f;
  if (renormalize) {
    float weight_sum = 0.0f;
    for (unsigned int i = 0; i < topk; i++) weight_sum += score[chosen[i]];
    divisor = weight_sum + 1e-20f;
  }
  for (unsigned int i = lid; i < topk; i += ROUTE_GROUP) {
    const int id = chosen[i];
    topk_ids[i] = id;
    topk_weights[i] = score[id] / divisor * scale;
  }
}
