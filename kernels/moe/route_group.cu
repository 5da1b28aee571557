// moe_route_group: routing with one block a token; after route.cu. Scores and keys lie in shared memory, and an expert's place is the number of
// experts before it (greater key, or equal and lower index), so that topk costs nothing and barriers are few.

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

extern "C" __global__ void __launch_bounds__(ROUTE_GROUP)
moe_route_group(const logit_t* logits, unsigned long long logits_offset, const float* bias, unsigned long long bias_offset,
                int* topk_ids, unsigned long long topk_ids_offset, float* topk_weights, unsigned long long topk_weights_offset,
                unsigned int tokens, unsigned int experts, unsigned int topk, unsigned int groups, unsigned int topk_groups,
                unsigned int renormalize, float scale, unsigned long long token_stride, unsigned long long expert_stride,
                unsigned long long bias_stride, unsigned long long ids_stride, unsigned long long weights_stride)
{
  wait_for_previous_launch();
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
  const float share = 1.0f / block_sum(sum, partial);
  for (unsigned int e = lid; e < experts; e += ROUTE_GROUP) score[e] *= share;
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
