#version 460
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_shuffle : require
/* attention_keys: at most FEW_ROWS rows against many keys, one subgroup a group. Keys and values are read once and strictly in order, which
 * is what hardware prefetchers follow: eight bytes a lane (or 16 of f32), a row's columns side by side.
 *
 *   lanes are columns, four each, CHUNKS times:   q, o [row][chunk] in registers
 *   scores  of SUBGROUP keys, one after the other: the lanes' products are summed by shuffles, and the lane of the key keeps the sum
 *   softmax lanes are keys
 *   sums    o[row] += p[row][key] (handed around) * v[key]
 *
 * Specialization constants beside those of attention.glsl:
 *   SUBGROUP     8    invocations in a subgroup, the device's, which is the group
 *   FEW_ROWS     1    1, 2, 4 or 8: at least the rows of any sequence that this kernel takes
 *   VECTOR       1    rows of q, k and v begin at 8 bytes, lie side by side and have whole fours of columns
 *   OPTIONS      1    0 if there is no soft cap, no ALiBi and no mask: some drivers run what an `if` skips
 *
 * Groups (kv_heads, works).
 */
#include "attention.glsl"

layout(constant_id = 4) const uint SUBGROUP = 8;
layout(constant_id = 6) const uint FEW_ROWS = 1;
layout(constant_id = 7) const bool VECTOR = true;
layout(constant_id = 8) const bool OPTIONS = true;
const uint CHUNKS = (HEAD_MAX + 4 * SUBGROUP - 1) / (4 * SUBGROUP);

layout(local_size_x_id = 4) in;

shared float sums[FEW_ROWS * CHUNKS * 4 * SUBGROUP], maxima[FEW_ROWS * SUBGROUP], totals[FEW_ROWS * SUBGROUP];

void main()
{
  int group = arguments.heads / arguments.kv_heads, kv_head = int(gl_WorkGroupID.x);
  Work w;
  if (!find_work(int(gl_WorkGroupID.y), 1 << 30, w)) return;
  Sequence s = w.s;
  int rows = s.queries * group;
  if (rows > arguments.few_rows || rows > FEW_ROWS || rows == 0) return;
  Rows keys = key_rows(s, kv_head), values = value_rows(s, kv_head);
  uint lane = gl_SubgroupInvocationID;
  int d = arguments.d, dv = arguments.dv, window = arguments.window, flags = arguments.flags;
  int options = OPTIONS ? flags : 0;
  float scale = arguments.scale, softcap = arguments.softcap;
  uvec2 q_stride = arguments.q_stride, k_stride = arguments.k_stride, v_stride = arguments.v_stride;
  uvec2 mask_stride = arguments.mask_stride;

  vec4 q[FEW_ROWS * CHUNKS], acc[FEW_ROWS * CHUNKS];
  uvec2 mask_at[FEW_ROWS];
  int first_seen[FEW_ROWS], last_seen[FEW_ROWS], position[FEW_ROWS];
  float slope[FEW_ROWS], most[FEW_ROWS], sum[FEW_ROWS];
  [[unroll]] for (uint r = 0; r < FEW_ROWS; r++) {
    int row = min(int(r), rows - 1), query = row / group, head = row + (kv_head - query) * group;
    ivec2 sight = sight_of(query, s, window, flags);
    uvec2 from = q_row(s, query, head);
    [[unroll]] for (uint c = 0; c < CHUNKS; c++) {
      q[r * CHUNKS + c] = columns_of(from, q_stride, int((c * SUBGROUP + lane) * 4), d, VECTOR) * scale;
      acc[r * CHUNKS + c] = vec4(0.0);
    }
    first_seen[r] = sight.x;
    last_seen[r] = sight.y;
    position[r] = s.keys - s.queries + query;
    slope[r] = 0.0;
    if ((options & ALIBI) != 0) slope[r] = of_head(arguments.alibi_slopes, head, arguments.alibi_slopes_stride);
    mask_at[r] = uvec2(0);
    if ((options & MASK) != 0) mask_at[r] = mask_row(s, query, head);
    most[r] = -INFINITY;
    sum[r] = 0.0;
  }

  int first = sight_of(0, s, window, flags).x / int(SUBGROUP) * int(SUBGROUP);
  int end = sight_of((rows - 1) / group, s, window, flags).y + 1;
  if (s.splits > 1) {
    first = max(first, w.split * SPLIT_KEYS);
    end = min(end, (w.split + 1) * SPLIT_KEYS);
  }
  for (int first_key = first; first_key < end; first_key += int(SUBGROUP)) {
    int key = first_key + int(lane);
    uvec2 k_at = uvec2(0), v_at = uvec2(0);
    if (key < end) {
      k_at = row_of(keys, key);
      v_at = row_of(values, key);
    }
    float scores[FEW_ROWS];
    [[unroll]] for (uint r = 0; r < FEW_ROWS; r++) scores[r] = 0.0;
    for (uint t = 0; t < SUBGROUP; t += 2)
      [[unroll]] for (uint e = 0; e < 2; e++) {
        uvec2 from = uvec2(subgroupShuffle(k_at.x, t + e), subgroupShuffle(k_at.y, t + e));
        float total[FEW_ROWS];
        [[unroll]] for (uint r = 0; r < FEW_ROWS; r++) total[r] = 0.0;
        [[unroll]] for (uint c = 0; c < CHUNKS; c++) {
          vec4 k = vec4(0.0);
          if (!is_absent(from)) k = columns_of(from, k_stride, int((c * SUBGROUP + lane) * 4), d, VECTOR);
          [[unroll]] for (uint r = 0; r < FEW_ROWS; r++)
            [[unroll]] for (uint u = 0; u < 4; u++) total[r] += q[r * CHUNKS + c][u] * k[u];
        }
        [[unroll]] for (uint r = 0; r < FEW_ROWS; r++) {
          [[unroll]] for (uint bit = 0; bit < 4; bit++)
            if (1u << bit < SUBGROUP) total[r] += subgroupShuffle(total[r], lane ^ 1u << bit);
          scores[r] = lane == t + e ? total[r] : scores[r];
        }
      }
    float probability[FEW_ROWS];
    [[unroll]] for (uint r = 0; r < FEW_ROWS; r++) {
      bool seen = !is_absent(k_at) && key >= first_seen[r] && key <= last_seen[r];
      float bias = 0.0;
      if ((options & MASK) != 0 && seen) bias = load_1(element_at(mask_at[r], uint(key), mask_stride, F32), F32);
      float score = finish_score(scores[r], bias, slope[r], key - position[r], softcap, options);
      score = seen ? score : -INFINITY;
      float top = score > most[r] ? score : most[r];
      [[unroll]] for (uint bit = 0; bit < 4; bit++)
        if (1u << bit < SUBGROUP) {
          float other = subgroupShuffle(top, lane ^ 1u << bit);
          top = other > top ? other : top;
        }
      /* Where nothing was seen yet the maximum is -inf, and -inf - -inf would be NaN. */
      float base = top == -INFINITY ? 0.0 : top, rescale = exp_nonpositive(most[r] - base);
      most[r] = top;
      probability[r] = exp_nonpositive(score - base);
      sum[r] = sum[r] * rescale + probability[r];
      [[unroll]] for (uint c = 0; c < CHUNKS; c++) acc[r * CHUNKS + c] *= rescale;
    }
    for (uint t = 0; t < SUBGROUP; t += 2)
      [[unroll]] for (uint e = 0; e < 2; e++) {
        uvec2 from = uvec2(subgroupShuffle(v_at.x, t + e), subgroupShuffle(v_at.y, t + e));
        float of_key[FEW_ROWS];
        [[unroll]] for (uint r = 0; r < FEW_ROWS; r++) of_key[r] = subgroupShuffle(probability[r], t + e);
        [[unroll]] for (uint c = 0; c < CHUNKS; c++) {
          vec4 v = vec4(0.0);
          if (!is_absent(from)) v = columns_of(from, v_stride, int((c * SUBGROUP + lane) * 4), dv, VECTOR);
          [[unroll]] for (uint r = 0; r < FEW_ROWS; r++) acc[r * CHUNKS + c] += of_key[r] * v;
        }
      }
  }

  /* The sums pass through shared memory, each lane's own part of it, so that a loop can store them. */
  [[unroll]] for (uint r = 0; r < FEW_ROWS; r++) {
    float total = sum[r];
    [[unroll]] for (uint bit = 0; bit < 4; bit++)
      if (1u << bit < SUBGROUP) total += subgroupShuffle(total, lane ^ 1u << bit);
    [[unroll]] for (uint i = 0; i < CHUNKS * 4; i++) sums[(r * CHUNKS * 4 + i) * SUBGROUP + lane] = acc[r * CHUNKS + i / 4][i % 4];
    maxima[r * SUBGROUP + lane] = most[r];
    totals[r * SUBGROUP + lane] = total;
  }
  uvec2 o_stride = arguments.o_stride;
  bool split = s.splits > 1, has_sink = (flags & SINKS) != 0;
  for (int row = 0; row < rows; row++) {
    int query = row / group, head = row + (kv_head - query) * group;
    float top = maxima[row * SUBGROUP + lane], total = totals[row * SUBGROUP + lane], sink = 0.0;
    if (has_sink) sink = of_head(arguments.sinks, head, arguments.sinks_stride);
    vec2 last = finish_row(top, total, has_sink, sink);
    uvec2 to = o_row(s, query, head);
    if (split) to = partial_row(s.slot + w.split, kv_head, row);
    for (uint i = 0; i < CHUNKS * 4; i++) {
      uint column = (i / 4 * SUBGROUP + lane) * 4 + i % 4;
      float value = sums[(row * CHUNKS * 4 + i) * SUBGROUP + lane];
      if (column < dv && split) store_1(element_at(to, column, F32), value, F32);
      if (column < dv && !split) store_1(element_at(to, column, o_stride, DTYPE), value * last.x, DTYPE);
    }
    if (lane == 0 && split) {
      store_1(element_at(to, uint(dv), F32), top, F32);
      store_1(element_at(to, uint(dv) + 1, F32), total, F32);
    }
    if (lane == 0 && !split && (flags & LSE) != 0) store_1(lse_row(s, query, head), last.y, F32);
  }
}
