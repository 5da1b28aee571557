/* moe_route_lanes: each token chooses topk experts from its logits. The same steps and arguments as in route.cl, which draws them.
 *
 * One invocation a token, for CPUs: the lanes of a vector are tokens, and nothing is shared between them. Scores are computed anew
 * in each pass over the experts, which is cheaper there than to keep them.
 *
 *   pass   greatest logit      (softmax)
 *          sum of the powers   (softmax)
 *          best groups         (group-limited choice): the two best biased scores of each, then a set of the best groups
 *          best experts        in registers, sorted, best first:   [ k0 | k1 | ... | k(TOPK_CAPACITY - 1) ]
 *                              an expert's key moves in front of all smaller ones, and those behind it make room
 *
 * Keys are integers that order as the biased scores do. Experts come in ascending order and never pass an equal key: ties go to
 * the lower index. A row whose scores hold NaN gets the ids 0 .. topk - 1 and NaN weights.
 *
 * Constants (the planner's), specialized
 *   LOGITS_DTYPE    0 f32, 1 f16, 2 bf16
 *   SIGMOID         0 softmax, 1 sigmoid
 *   HAS_BIAS        whether the choice adds a bias
 *   TOPK_CAPACITY   at least topk and topk_groups; there are at most 32 groups
 * Tunables
 *   ROUTE_GROUP     tokens of a work-group
 *
 * Measured: README.md.
 */
#version 460
#extension GL_GOOGLE_include_directive : require
#include "../elements.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint ROUTE_GROUP = 8;
layout(constant_id = 1) const uint LOGITS_DTYPE = F32;
layout(constant_id = 2) const uint SIGMOID = 0;
layout(constant_id = 3) const uint HAS_BIAS = 0;
layout(constant_id = 4) const uint TOPK_CAPACITY = 8;

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

/* Less than the key of any number. */
const int NONE = int(0x80000000);
#define NEGATIVE_INFINITY uintBitsToFloat(0xff800000u)

/* The best so far, best first, and what they are. */
int best_key[TOPK_CAPACITY];
uint best[TOPK_CAPACITY];

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

void forget()
{
  [[unroll]] for (uint i = 0; i < TOPK_CAPACITY; i++) {
    best_key[i] = NONE;
    best[i] = 0;
  }
}

void insert(int key, uint index)
{
  bool before = false;
  [[unroll]] for (uint i = 0; i < TOPK_CAPACITY; i++) {
    before = before || key > best_key[i];
    int key_behind = before ? best_key[i] : key;
    uint index_behind = before ? best[i] : index;
    best_key[i] = before ? key : best_key[i];
    best[i] = before ? index : best[i];
    key = key_behind;
    index = index_behind;
  }
}

void main()
{
  const uint token = gl_GlobalInvocationID.x, experts = arguments.experts, topk = arguments.topk;
  if (token >= arguments.tokens) return;
  const uvec2 logits = element_at(arguments.logits, token, arguments.token_stride, LOGITS_DTYPE);
  const uvec2 expert_bytes = bytes_of(arguments.expert_stride, LOGITS_DTYPE);
  const uvec2 bias = arguments.bias, bias_bytes = bytes_of(arguments.bias_stride, F32);

  bool nan = false;
  float greatest = NEGATIVE_INFINITY, sum = 0.0;
  if (SIGMOID == 0) {
    uvec2 at = logits;
    for (uint e = 0; e < experts; e++) {
      const float v = load_1(at, LOGITS_DTYPE);
      greatest = v > greatest ? v : greatest;
      at = address_add(at, expert_bytes);
    }
    /* +inf, or nothing but -inf: the softmax is NaN */
    nan = (floatBitsToUint(greatest) & 0x7fffffffu) == 0x7f800000u;
    at = logits;
    for (uint e = 0; e < experts; e++) {
      sum += exp_of(load_1(at, LOGITS_DTYPE) - greatest);
      at = address_add(at, expert_bytes);
    }
  }

  const uint groups = arguments.groups, group_size = experts / groups;
  uint eligible = 0xffffffffu; /* a bit a group */
  if (groups > 1) {
    forget();
    uvec2 at = logits, bias_at = bias;
    for (uint g = 0; g < groups; g++) {
      float first = NEGATIVE_INFINITY, second = NEGATIVE_INFINITY;
      for (uint i = 0; i < group_size; i++) {
        float v = load_1(at, LOGITS_DTYPE);
        v = SIGMOID != 0 ? sigmoid_of_either_sign(v) : exp_of(v - greatest) / sum;
        if (HAS_BIAS != 0) {
          v += load_1(bias_at, F32);
          bias_at = address_add(bias_at, bias_bytes);
        }
        const float less = v < first ? v : first;
        second = less > second ? less : second;
        first = v > first ? v : first;
        at = address_add(at, expert_bytes);
      }
      insert(order_key(group_size > 1 ? first + second : first), g);
    }
    eligible = 0;
    [[unroll]] for (uint i = 0; i < TOPK_CAPACITY; i++) eligible |= i < arguments.topk_groups ? 1u << best[i] : 0u;
  }

  forget();
  uvec2 at = logits, bias_at = bias;
  uint e = 0;
  for (uint g = 0; g < groups; g++) {
    const bool may_be_chosen = (eligible >> (g & 31u) & 1u) != 0;
    for (uint i = 0; i < group_size; i++) {
      float v = load_1(at, LOGITS_DTYPE);
      /* With softmax and no bias the order is that of the logits, which no underflow blurs. */
      if (SIGMOID != 0) v = sigmoid_of_either_sign(v);
      else if (HAS_BIAS != 0) v = exp_of(v - greatest) / sum;
      if (HAS_BIAS != 0) {
        v += load_1(bias_at, F32);
        bias_at = address_add(bias_at, bias_bytes);
      }
      nan = nan || is_nan(v);
      insert(may_be_chosen ? order_key(v) : NONE, e);
      at = address_add(at, expert_bytes);
      e++;
    }
  }

  float weight[TOPK_CAPACITY];
  float weight_sum = 0.0;
  [[unroll]] for (uint i = 0; i < TOPK_CAPACITY; i++) {
    weight[i] = 0.0;
    if (i < topk) {
      const float v = load_1(address_add(logits, multiply_64(best[i], expert_bytes)), LOGITS_DTYPE);
      weight[i] = SIGMOID != 0 ? sigmoid_of_either_sign(v) : exp_of(v - greatest) / sum;
      weight_sum += weight[i];
    }
  }
  const float divisor = arguments.renormalize != 0 ? weight_sum + 1e-20 : 1.0;
  const uvec2 topk_ids = element_at(arguments.topk_ids, token, arguments.ids_stride, I32);
  const uvec2 topk_weights = element_at(arguments.topk_weights, token, arguments.weights_stride, F32);
  [[unroll]] for (uint i = 0; i < TOPK_CAPACITY; i++)
    if (i < topk) {
      store_word(element_at(topk_ids, i, I32), nan ? i : best[i]);
      store_word(element_at(topk_weights, i, F32), nan ? 0x7fc00000u : floatBitsToUint(weight[i] / divisor * arguments.scale));
    }
}
