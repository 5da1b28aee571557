// moe_route_warp: routing with one warp a token; after route.cu. Scores and keys stay in registers: expert e lies in lane e % 32.
//
//   lane 0: [ e0 e32 e64 .. ]   lane 1: [ e1 e33 e65 .. ]   ...
//   pass i: the greatest key of the warp, and the least index that has it, by redux.sync; id and score stay in lane i
//
// No barrier of the block, and shared memory only where experts lie in groups: there a group's experts are those of several lanes.

#define PER_LANE ((EXPERTS_CAPACITY + 31) / 32)
#define GREATEST_INT 0x7fffffff

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
// The 1 leaves ptxas as many registers as it likes: it spilled a few otherwise.
extern "C" __global__ void __launch_bounds__(ROUTE_GROUP, 1)
moe_route_warp(const logit_t* logits, unsigned long long logits_offset, const float* bias, unsigned long long bias_offset,
               int* topk_ids, unsigned long long topk_ids_offset, float* topk_weights, unsigned long long topk_weights_offset,
               unsigned int tokens, unsigned int experts, unsigned int topk, unsigned int groups, unsigned int topk_groups,
               unsigned int renormalize, float scale, unsigned long long token_stride, unsigned long long expert_stride,
               unsigned long long bias_stride, unsigned long long ids_stride, unsigned long long weights_stride)
{
  wait_for_previous_launch();
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
  // One division: each has a slow path that is a call.
  const float share = 1.0f / warp_sum(sum);
#pragma unroll
  for (unsigned int i = 0; i < PER_LANE; i++) score[i] *= share;
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
    __syncwarp(); // the scores of all lanes are there
    for (unsigned int g = lane; g < groups; g += 32) group_keys[g] = group_rank(scores, bias, bias_stride, g, size);
    __syncwarp(); // and what the groups rank by
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
