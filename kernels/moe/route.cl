// moe_route: each token chooses topk experts from its logits.
//
//   logits [tokens, experts] --score--> score --+ bias--> biased --rank groups--> eligible --best topk--> topk_ids
//                                         |                                                                   |
//                                         +-----------------------(/ sum, * scale)----------------------> topk_weights
//
// Scores (softmax over all experts, or sigmoid) are computed once; the choice works on integer keys that order as the
// biased scores do, so that equality, -0 and infinities need no special case: a key that is taken or not eligible is
// the least integer. With softmax and no bias the keys are those of the logits, whose order no underflow blurs. Group-limited choice is DeepSeek-V3's
// (arXiv 2412.19437, section 2.1.2): a group ranks by the sum of its two best biased scores.
//
// moe_route        one work-item a token, float16 vectors over the experts, topk passes of arg-max over private memory:
//                  for CPUs.      keys  [ e0 .. e15 | e16 .. e31 | ... ]   pass i: lane-wise best, then best lane,
//                                                                          the lower index among equals; key = taken
// moe_route_group  one work-group a token, keys in local memory; an expert's place is the number of experts before it
//                  (greater key, or equal and lower index), so that topk costs nothing and barriers are few: for GPUs.
//
// A row whose scores hold NaN gets the ids 0 .. topk - 1 and NaN weights.
//
// Constants (the planner's)
//   LOGITS_DTYPE      0 f32, 1 f16, 2 bf16
//   SIGMOID           0 softmax, 1 sigmoid
//   HAS_BIAS          whether the choice adds a bias
//   EXPERTS_CAPACITY  at least the number of experts, a power of two of at least 16: sizes the arrays
// Tunables
//   ROUTE_GROUP       work-items that share a token in moe_route_group, a power of two
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

#if LOGITS_DTYPE == 0
typedef float logit_t;
#elif LOGITS_DTYPE == 1
typedef half logit_t;
#else
typedef ushort logit_t;
#endif

inline float logit_load(__global const logit_t* p, ulong i)
{
#if LOGITS_DTYPE == 0
  return p[i];
#elif LOGITS_DTYPE == 1
  return vload_half(i, p);
#else
  return as_float((uint)p[i] << 16);
#endif
}
inline float16 logit_load16(__global const logit_t* p)
{
#if LOGITS_DTYPE == 0
  return vload16(0, p);
#elif LOGITS_DTYPE == 1
  return vload_half16(0, p);
#else
  return as_float16(convert_uint16(vload16(0, p)) << 16);
#endif
}

// Floats in an order that signed integers share; -0 and +0 are one value. No number maps to INT_MIN, which therefore
// marks an expert that cannot be chosen (any more).
#define TAKEN INT_MIN
inline int order_key(float v)
{
  int b = as_int(v + 0.0f);
  return b ^ ((b >> 31) & 0x7fffffff);
}
inline int16 order_key16(float16 v)
{
  int16 b = as_int16(v + 0.0f);
  return b ^ ((b >> 31) & 0x7fffffff);
}
inline float sigmoid(float v)
{
  float e = exp(-fabs(v));
  return (v < 0.0f ? e : 1.0f) / (1.0f + e);
}
inline float16 sigmoid16(float16 v)
{
  float16 e = exp(-fabs(v));
  return select((float16)(1.0f), e, isless(v, (float16)(0.0f))) / (1.0f + e);
}
// Lane by lane, since oclgrind 21.10 takes the halves of a vector for uninitialised.
inline float max_lane(float16 v)
{
  float lanes[16];
  vstore16(v, 0, lanes);
  float greatest = lanes[0];
  for (uint i = 1; i < 16; i++) greatest = fmax(greatest, lanes[i]);
  return greatest;
}
inline int max_lane_int(int16 v)
{
  int lanes[16];
  vstore16(v, 0, lanes);
  int greatest = lanes[0];
  for (uint i = 1; i < 16; i++) greatest = max(greatest, lanes[i]);
  return greatest;
}
inline int min_lane_int(int16 v)
{
  int lanes[16];
  vstore16(v, 0, lanes);
  int least = lanes[0];
  for (uint i = 1; i < 16; i++) least = min(least, lanes[i]);
  return least;
}
// Lane by lane, in halves: oclgrind 21.10 takes the halves of a vector for uninitialised.
inline float sum_lanes(float16 v)
{
  float lanes[16];
  vstore16(v, 0, lanes);
  for (uint width = 8; width > 0; width /= 2)
    for (uint i = 0; i < width; i++) lanes[i] += lanes[i + width];
  return lanes[0];
}

#define LANES ((int16)(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15))

// One work-item per token; the row's scores stay in registers and private memory.
__kernel __attribute__((reqd_work_group_size(1, 1, 1)))
void moe_route(__global const logit_t* logits, ulong logits_offset, __global const float* bias, ulong bias_offset,
               __global int* topk_ids, ulong topk_ids_offset, __global float* topk_weights, ulong topk_weights_offset,
               uint tokens, uint experts, uint topk, uint groups, uint topk_groups, uint renormalize, float scale,
               ulong token_stride, ulong expert_stride, ulong bias_stride, ulong ids_stride, ulong weights_stride)
{
  const uint token = get_global_id(0);
  if (token >= tokens) return;
  logits += logits_offset + token * token_stride;
  bias += bias_offset;
  topk_ids += topk_ids_offset + token * ids_stride;
  topk_weights += topk_weights_offset + token * weights_stride;

  float score[EXPERTS_CAPACITY];
  int key[EXPERTS_CAPACITY];
  const uint chunks = (experts + 15) / 16;
  const uint whole = expert_stride == 1 ? experts / 16 : 0;
  for (uint c = 0; c < whole; c++) vstore16(logit_load16(logits + c * 16), c, score);
  for (uint e = whole * 16; e < experts; e++) score[e] = logit_load(logits, e * expert_stride);
  for (uint e = experts; e < chunks * 16; e++) score[e] = -INFINITY;

  int16 nan = 0;
  float16 top = -INFINITY;
  for (uint c = 0; c < chunks; c++) {
    const float16 v = vload16(c, score);
    nan |= isnan(v);
    top = fmax(top, v);
#if SIGMOID
    vstore16(sigmoid16(v), c, score);
#elif !HAS_BIAS
    vstore16(order_key16(v), c, key);
#endif
  }
#if !SIGMOID
  const float greatest = max_lane(top);
  if (isinf(greatest)) nan = -1; // +inf, or nothing but -inf: the softmax is NaN
  float16 sums = 0.0f;
  for (uint c = 0; c < chunks; c++) {
    const float16 e = exp(vload16(c, score) - greatest);
    sums += e;
    vstore16(e, c, score);
  }
  const float total = sum_lanes(sums);
  for (uint c = 0; c < chunks; c++) vstore16(vload16(c, score) / total, c, score);
#endif

#if HAS_BIAS
  for (uint e = 0; e < experts; e++) {
    const float v = score[e] + bias[e * bias_stride];
    nan |= (int16)(isnan(v) ? -1 : 0);
    key[e] = order_key(v);
  }
#elif SIGMOID
  for (uint c = 0; c < chunks; c++) vstore16(order_key16(vload16(c, score)), c, key);
#endif
  for (uint e = experts; e < chunks * 16; e++) key[e] = TAKEN;

  if (any(nan)) {
    for (uint i = 0; i < topk; i++) {
      topk_ids[i] = i;
      topk_weights[i] = NAN;
    }
    return;
  }

  if (groups > 1) {
    const uint size = experts / groups;
    int group_key[EXPERTS_CAPACITY];
    for (uint g = 0; g < groups; g++) {
      float first = -INFINITY, second = -INFINITY;
      for (uint e = g * size; e < (g + 1) * size; e++) {
#if HAS_BIAS
        const float v = score[e] + bias[e * bias_stride];
#else
        const float v = score[e];
#endif
        second = fmax(second, fmin(first, v));
        first = fmax(first, v);
      }
      group_key[g] = order_key(size > 1 ? first + second : first);
    }
    for (uint i = 0; i < groups - topk_groups; i++) { // drop the worst, the higher index among equals
      uint worst = 0;
      int least = INT_MAX;
      for (uint g = 0; g < groups; g++)
        if (group_key[g] != TAKEN && group_key[g] <= least) {
          least = group_key[g];
          worst = g;
        }
      group_key[worst] = TAKEN;
      for (uint e = worst * size; e < (worst + 1) * size; e++) key[e] = TAKEN;
    }
  }

  float weight_sum = 0.0f;
  for (uint i = 0; i < topk; i++) {
    int16 best = vload16(0, key), at = LANES;
    for (uint c = 1; c < chunks; c++) {
      const int16 keys = vload16(c, key);
      const int16 better = keys > best;
      best = select(best, keys, better);
      at = select(at, LANES + (int)(c * 16), better);
    }
    const int winner = max_lane_int(best);
    const int id = min_lane_int(select((int16)(INT_MAX), at, best == winner));
    key[id] = TAKEN;
    topk_ids[i] = id;
    topk_weights[i] = score[id];
    weight_sum += score[id];
  }
  const float divisor = renormalize ? weight_sum + 1e-20f : 1.0f;
  for (uint i = 0; i < topk; i++) topk_weights[i] = topk_weights[i] / divisor * scale;
}

// One work-group per token: scores and keys in local memory, an expert's place is the number of experts before it.
__kernel __attribute__((reqd_work_group_size(ROUTE_GROUP, 1, 1)))
void moe_route_group(__global const logit_t* logits, ulong logits_offset, __global const float* bias, ulong bias_offset,
                     __global int* topk_ids, ulong topk_ids_offset, __global float* topk_weights,
                     ulong topk_weights_offset, uint tokens, uint experts, uint topk, uint groups, uint topk_groups,
                     uint renormalize, float scale, ulong token_stride, ulong expert_stride, ulong bias_stride,
                     ulong ids_stride, ulong weights_stride)
{
  __local float score[EXPERTS_CAPACITY];
  __local int key[EXPERTS_CAPACITY];
  __local int group_key[EXPERTS_CAPACITY]; // then the chosen experts, best first
  __local float partial[ROUTE_GROUP];
  __local int nans[ROUTE_GROUP];
  const uint token = get_group_id(0), lid = get_local_id(0);
  logits += logits_offset + token * token_stride;
  bias += bias_offset;
  topk_ids += topk_ids_offset + token * ids_stride;
  topk_weights += topk_weights_offset + token * weights_stride;

  int nan = 0;
  float greatest = -INFINITY;
  for (uint e = lid; e < experts; e += ROUTE_GROUP) {
    const float v = logit_load(logits, e * expert_stride);
    nan |= isnan(v);
    greatest = fmax(greatest, v);
    score[e] = SIGMOID ? sigmoid(v) : v;
  }
#if !SIGMOID
  partial[lid] = greatest;
  for (uint half_size = ROUTE_GROUP / 2; half_size > 0; half_size /= 2) {
    barrier(CLK_LOCAL_MEM_FENCE);
    if (lid < half_size) partial[lid] = fmax(partial[lid], partial[lid + half_size]);
  }
  barrier(CLK_LOCAL_MEM_FENCE);
  greatest = partial[0];
  barrier(CLK_LOCAL_MEM_FENCE);
  nan |= isinf(greatest);
  float sum = 0.0f;
  for (uint e = lid; e < experts; e += ROUTE_GROUP) {
#if !HAS_BIAS
    key[e] = order_key(score[e]);
#endif
    score[e] = exp(score[e] - greatest);
    sum += score[e];
  }
  partial[lid] = sum;
  for (uint half_size = ROUTE_GROUP / 2; half_size > 0; half_size /= 2) {
    barrier(CLK_LOCAL_MEM_FENCE);
    if (lid < half_size) partial[lid] += partial[lid + half_size];
  }
  barrier(CLK_LOCAL_MEM_FENCE);
  sum = partial[0];
  for (uint e = lid; e < experts; e += ROUTE_GROUP) score[e] /= sum;
#endif
#if SIGMOID || HAS_BIAS
  for (uint e = lid; e < experts; e += ROUTE_GROUP) {
    const float v = score[e] + (HAS_BIAS ? bias[e * bias_stride] : 0.0f);
    nan |= isnan(v);
    key[e] = order_key(v);
  }
#endif
  nans[lid] = nan;
  for (uint half_size = ROUTE_GROUP / 2; half_size > 0; half_size /= 2) {
    barrier(CLK_LOCAL_MEM_FENCE);
    if (lid < half_size) nans[lid] |= nans[lid + half_size];
  }
  barrier(CLK_LOCAL_MEM_FENCE);
  if (nans[0]) { // the same in every work-item
    for (uint i = lid; i < topk; i += ROUTE_GROUP) {
      topk_ids[i] = i;
      topk_weights[i] = NAN;
    }
    return;
  }

  if (groups > 1) {
    const uint size = experts / groups;
    for (uint g = lid; g < groups; g += ROUTE_GROUP) {
      float first = -INFINITY, second = -INFINITY;
      for (uint e = g * size; e < (g + 1) * size; e++) {
        const float v = score[e] + (HAS_BIAS ? bias[e * bias_stride] : 0.0f);
        second = fmax(second, fmin(first, v));
        first = fmax(first, v);
      }
      group_key[g] = order_key(size > 1 ? first + second : first);
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    for (uint g = lid; g < groups; g += ROUTE_GROUP) {
      uint before = 0;
      for (uint o = 0; o < groups; o++) before += group_key[o] > group_key[g] || (group_key[o] == group_key[g] && o < g);
      if (before >= topk_groups)
        for (uint e = g * size; e < (g + 1) * size; e++) key[e] = TAKEN;
    }
  }
  barrier(CLK_LOCAL_MEM_FENCE);
  // chosen scores by place, so that their sum is taken in one order
  for (uint e = lid; e < experts; e += ROUTE_GROUP) {
    uint before = 0;
    for (uint o = 0; o < experts; o++) before += key[o] > key[e] || (key[o] == key[e] && o < e);
    if (before < topk) group_key[before] = e;
  }
  barrier(CLK_LOCAL_MEM_FENCE);
  float divisor = 1.0f;
  if (renormalize) {
    float weight_sum = 0.0f;
    for (uint i = 0; i < topk; i++) weight_sum += score[group_key[i]];
    divisor = weight_sum + 1e-20f;
  }
  for (uint i = lid; i < topk; i += ROUTE_GROUP) {
    topk_ids[i] = group_key[i];
    topk_weights[i] = score[group_key[i]] / divisor * scale;
  }
}
