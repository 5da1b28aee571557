/* moe_route_group: each token chooses topk experts from its logits. The same algorithm, entry and arguments as moe_route_group of
 * route.cl, which says what the steps are.
 *
 *   logits [tokens, experts] --score--> score --+ bias--> biased --rank groups--> eligible --best topk--> topk_ids
 *                                         |                                                                   |
 *                                         +-----------------------(/ sum, * scale)----------------------> topk_weights
 *
 * One work-group a token. Keys order as the biased scores do; an expert's place is the number of experts before it (greater key, or
 * equal and lower index). All invocations read the same key at once, which drivers turn into one load, and each compares it with
 * EXPERTS_AT_ONCE keys that it holds in registers.
 *
 *   shared keys   [ e0 | e1 | e2 | ... ]            read by all, one after the other
 *   registers       lane l: e(l), e(l + ROUTE_GROUP), ...     before[] += key(o) is before key(e)
 *
 * A row whose scores hold NaN gets the ids 0 .. topk - 1 and NaN weights.
 *
 * Constants (the planner's), specialized
 *   LOGITS_DTYPE      0 f32, 1 f16, 2 bf16
 *   SIGMOID           0 softmax, 1 sigmoid
 *   HAS_BIAS          whether the choice adds a bias
 *   EXPERTS_CAPACITY  at least the number of experts, a power of two of at least 16: sizes the arrays
 * Tunables
 *   ROUTE_GROUP       invocations that share a token, a power of two
 *
 * Measured: README.md.
 */
#version 460
#extension GL_GOOGLE_include_directive : require
#include "../elements.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint ROUTE_GROUP = 64;
layout(constant_id = 1) const uint LOGITS_DTYPE = F32;
layout(constant_id = 2) const uint SIGMOID = 0;
layout(constant_id = 3) const uint HAS_BIAS = 0;
layout(constant_id = 4) const uint EXPERTS_CAPACITY = 512;

layout(push_constant, scalar) uniform Arguments {
  uvec2 logits;
  uvec2 bias;
  uvec2 topk_ids;
  uvec2 topk_weights;
  uint tokens;
  uint experts;
  uint topk;
  uint groups;
  uint topk_groups;
  uint renormalize;
  float scale;
  uvec2 token_stride;
  uvec2 expert_stride;
  uvec2 bias_stride;
  uvec2 ids_stride;
  uvec2 weights_stride;
} arguments;

/* Marks an expert that cannot be chosen: no number has this key. */
const int TAKEN = int(0x80000000);

const uint EXPERTS_AT_ONCE = 4;

shared float score[EXPERTS_CAPACITY];
shared int key[EXPERTS_CAPACITY];
shared int chosen[EXPERTS_CAPACITY]; /* keys of the groups, then the chosen experts, best first */
shared float partial[ROUTE_GROUP];
shared uint flags[ROUTE_GROUP];

/* Floats in an order that signed integers share; -0 and +0 are one value. */
int order_key(float v)
{
  int bits = floatBitsToInt(v);
  bits = (bits & 0x7fffffff) == 0 ? 0 : bits;
  return bits ^ ((bits >> 31) & 0x7fffffff);
}

float sigmoid_of_either_sign(float v)
{
  float e = exp_of(-abs(v));
  return (v < 0.0 ? e : 1.0) / (1.0 + e);
}

float biased(uint e)
{
  float v = score[e];
  if (HAS_BIAS != 0) v += uintBitsToFloat(load_word(element_at(arguments.bias, e, arguments.bias_stride, F32)));
  return v;
}

float greatest_of_all(float v)
{
  const uint lane = gl_LocalInvocationID.x;
  partial[lane] = v;
  for (uint width = ROUTE_GROUP / 2; width > 0; width /= 2) {
    barrier();
    if (lane < width && partial[lane + width] > partial[lane]) partial[lane] = partial[lane + width];
  }
  barrier();
  float result = partial[0];
  barrier();
  return result;
}

float sum_of_all(float v)
{
  const uint lane = gl_LocalInvocationID.x;
  partial[lane] = v;
  for (uint width = ROUTE_GROUP / 2; width > 0; width /= 2) {
    barrier();
    if (lane < width) partial[lane] += partial[lane + width];
  }
  barrier();
  return partial[0];
}

/* True in every invocation if it is in one. */
bool any_of_all(bool v)
{
  const uint lane = gl_LocalInvocationID.x;
  flags[lane] = uint(v);
  for (uint width = ROUTE_GROUP / 2; width > 0; width /= 2) {
    barrier();
    if (lane < width) flags[lane] |= flags[lane + width];
  }
  barrier();
  return flags[0] != 0;
}

/* Takes the experts of all but the best groups out of the choice. */
void limit_groups()
{
  const uint lane = gl_LocalInvocationID.x, groups = arguments.groups, size = arguments.experts / groups;
  for (uint g = lane; g < groups; g += ROUTE_GROUP) {
    float first = uintBitsToFloat(0xff800000u), second = first;
    for (uint e = g * size; e < (g + 1) * size; e++) {
      float v = biased(e), less = v < first ? v : first;
      second = less > second ? less : second;
      first = v > first ? v : first;
    }
    chosen[g] = order_key(size > 1 ? first + second : first);
  }
  barrier();
  for (uint g = lane; g < groups; g += ROUTE_GROUP) {
    int mine = chosen[g];
    uint before = 0;
    for (uint o = 0; o < groups; o++) before += uint(chosen[o] > mine || (chosen[o] == mine && o < g));
    if (before >= arguments.topk_groups)
      for (uint e = g * size; e < (g + 1) * size; e++) key[e] = TAKEN;
  }
  barrier();
}

void main()
{
  const uint token = gl_WorkGroupID.x, lane = gl_LocalInvocationID.x, experts = arguments.experts, topk = arguments.topk;
  const uvec2 logits = element_at(arguments.logits, token, arguments.token_stride, LOGITS_DTYPE);
  const uvec2 topk_ids = element_at(arguments.topk_ids, token, arguments.ids_stride, I32);
  const uvec2 topk_weights = element_at(arguments.topk_weights, token, arguments.weights_stride, F32);

  bool nan = false;
  float greatest = uintBitsToFloat(0xff800000u);
  for (uint e = lane; e < experts; e += ROUTE_GROUP) {
    float v = load_1(element_at(logits, e, arguments.expert_stride, LOGITS_DTYPE), LOGITS_DTYPE);
    nan = nan || is_nan(v);
    greatest = v > greatest ? v : greatest;
    score[e] = SIGMOID != 0 ? sigmoid_of_either_sign(v) : v;
  }
  if (SIGMOID == 0) {
    greatest = greatest_of_all(greatest);
    /* +inf, or nothing but -inf: the softmax is NaN */
    nan = nan || (floatBitsToUint(greatest) & 0x7fffffffu) == 0x7f800000u;
    float sum = 0.0;
    for (uint e = lane; e < experts; e += ROUTE_GROUP) {
      float v = score[e], power = exp_of(v - greatest);
      if (HAS_BIAS == 0) key[e] = order_key(v);
      score[e] = power;
      sum += power;
    }
    sum = sum_of_all(sum);
    for (uint e = lane; e < experts; e += ROUTE_GROUP) score[e] /= sum;
  }
  if (SIGMOID != 0 || HAS_BIAS != 0)
    for (uint e = lane; e < experts; e += ROUTE_GROUP) {
      float v = biased(e);
      nan = nan || is_nan(v);
      key[e] = order_key(v);
    }
  if (any_of_all(nan)) {
    for (uint i = lane; i < topk; i += ROUTE_GROUP) {
      store_word(element_at(topk_ids, i, I32), i);
      store_word(element_at(topk_weights, i, F32), 0x7fc00000u);
    }
    return;
  }
  if (arguments.groups > 1) limit_groups();

  for (uint first = 0; first < experts; first += ROUTE_GROUP * EXPERTS_AT_ONCE) {
    int mine[EXPERTS_AT_ONCE];
    uint before[EXPERTS_AT_ONCE];
    [[unroll]] for (uint i = 0; i < EXPERTS_AT_ONCE; i++) {
      const uint e = first + i * ROUTE_GROUP + lane;
      mine[i] = e < experts ? key[e] : TAKEN;
      before[i] = 0;
    }
    for (uint o = 0; o < experts; o++) {
      const int other = key[o];
      [[unroll]] for (uint i = 0; i < EXPERTS_AT_ONCE; i++)
        before[i] += uint(other > mine[i] || (other == mine[i] && o < first + i * ROUTE_GROUP + lane));
    }
    [[unroll]] for (uint i = 0; i < EXPERTS_AT_ONCE; i++) {
      const uint e = first + i * ROUTE_GROUP + lane;
      if (e < experts && before[i] < topk) chosen[before[i]] = int(e);
    }
  }
  barrier();
  /* in the order of the places, so that the sum is always the same */
  float divisor = 1.0;
  if (arguments.renormalize != 0) {
    float weight_sum = 0.0;
    for (uint i = 0; i < topk; i++) weight_sum += score[chosen[i]];
    divisor = weight_sum + 1e-20;
  }
  for (uint i = lane; i < topk; i += ROUTE_GROUP) {
    const int e = chosen[i];
    store_word(element_at(topk_ids, i, I32), uint(e));
    store_word(element_at(topk_weights, i, F32), floatBitsToUint(score[e] / divisor * arguments.scale));
  }
}
