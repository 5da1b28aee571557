#version 460
#extension GL_GOOGLE_include_directive : require
/* attention_tiled: many small invocations that share memory, for GPUs. A group of 64 takes ROWS rows and goes through the keys KEYS at a
 * time:
 *
 *   shared memory, f32:  q_part [ROWS][DEPTH + 1]   k_part [KEYS][DEPTH + 1]   p [KEYS][ROWS + 1]
 *                        o_part [ROWS][64]         (padded against bank conflicts)
 *
 *   scores:  invocation i has key i % KEYS and ROWS * KEYS / 64 rows; columns pass through shared memory DEPTH at a time
 *   softmax: invocation i has row i % ROWS and a quarter of the keys
 *   sums:    invocation i has columns i, i + 64, ...; values are read once, side by side, from where they lie
 *
 * Specialization constants beside those of attention.glsl:
 *   KEYS   32  keys at a time, 16 or 32
 *   DEPTH  32  columns of q and k in shared memory at a time
 *
 * Groups (kv_heads, works).
 */
#include "attention.glsl"

layout(constant_id = 4) const uint KEYS = 32;
layout(constant_id = 5) const uint DEPTH = 32;
#define GROUP 64
#define ROWS 16
const uint ROWS_EACH = ROWS * KEYS / GROUP;
#define PARTS (GROUP / ROWS)
const uint COLUMNS_EACH = (HEAD_MAX + GROUP - 1) / GROUP;

layout(local_size_x = GROUP) in;

const uint PITCH = DEPTH + 1, ROW_PITCH = ROWS + 1;
shared float q_part[ROWS * PITCH], k_part[KEYS * PITCH], p[KEYS * ROW_PITCH];
shared float o_part[ROWS * GROUP], part[PARTS * ROWS], most[ROWS], sum[ROWS], rescale[ROWS];
shared uvec2 k_row[KEYS], v_row[KEYS], q_rows[ROWS];

void main()
{
  uint lid = gl_LocalInvocationID.x;
  int group = arguments.heads / arguments.kv_heads, kv_head = int(gl_WorkGroupID.x);
  Work w;
  if (!find_work(int(gl_WorkGroupID.y), ROWS, w)) return;
  Sequence s = w.s;
  Rows keys = key_rows(s, kv_head), values = value_rows(s, kv_head);
  int rows = s.queries * group, first_row = w.tile * ROWS, tile_rows = min(ROWS, rows - first_row);
  int d = arguments.d, dv = arguments.dv, window = arguments.window, flags = arguments.flags;
  float scale = arguments.scale, softcap = arguments.softcap;
  uvec2 q_stride = arguments.q_stride, k_stride = arguments.k_stride, v_stride = arguments.v_stride;

  float acc[COLUMNS_EACH * ROWS];
  [[unroll]] for (int i = 0; i < COLUMNS_EACH * ROWS; i++) acc[i] = 0.0;
  if (lid < ROWS) {
    int row = min(first_row + int(lid), rows - 1), query = row / group;
    q_rows[lid] = q_row(s, query, row + (kv_head - query) * group);
    most[lid] = -INFINITY;
    sum[lid] = 0.0;
  }
  int first = sight_of(first_row / group, s, window, flags).x / int(KEYS) * int(KEYS);
  int end = sight_of((first_row + tile_rows - 1) / group, s, window, flags).y + 1;
  if (s.splits > 1) {
    first = max(first, w.split * SPLIT_KEYS);
    end = min(end, (w.split + 1) * SPLIT_KEYS);
  }
  for (int first_key = first; first_key < end; first_key += int(KEYS)) {
    int block = min(int(KEYS), end - first_key);
    barrier();
    if (lid < KEYS) {
      k_row[lid] = uvec2(0);
      v_row[lid] = uvec2(0);
      if (int(lid) < block) {
        k_row[lid] = row_of(keys, first_key + int(lid));
        v_row[lid] = row_of(values, first_key + int(lid));
      }
    }

    float scores[ROWS_EACH];
    [[unroll]] for (int i = 0; i < ROWS_EACH; i++) scores[i] = 0.0;
    uint key = lid % KEYS, row0 = lid / KEYS * ROWS_EACH;
    for (uint x0 = 0; x0 < d; x0 += DEPTH) {
      barrier();
      for (uint i = 0; i < ROWS * DEPTH; i += GROUP) {
        uint at = (lid + i) / DEPTH, x = (lid + i) % DEPTH;
        float element = 0.0;
        if (at < tile_rows && x0 + x < d) element = load_1(element_at(q_rows[at], x0 + x, q_stride, DTYPE), DTYPE) * scale;
        q_part[at * PITCH + x] = element;
      }
      for (uint i = 0; i < KEYS * DEPTH; i += GROUP) {
        uint at = (lid + i) / DEPTH, x = (lid + i) % DEPTH;
        float element = 0.0;
        if (!is_absent(k_row[at]) && x0 + x < d) element = load_1(element_at(k_row[at], x0 + x, k_stride, DTYPE), DTYPE);
        k_part[at * PITCH + x] = element;
      }
      barrier();
      for (uint x = 0; x < DEPTH; x += 2)
        [[unroll]] for (uint u = 0; u < 2; u++) {
          float k_element = k_part[key * PITCH + x + u];
          [[unroll]] for (uint i = 0; i < ROWS_EACH; i++) scores[i] += q_part[(row0 + i) * PITCH + x + u] * k_element;
        }
    }
    [[unroll]] for (uint i = 0; i < ROWS_EACH; i++) p[key * ROW_PITCH + row0 + i] = scores[i];
    for (uint i = 0; i < ROWS_EACH; i++) {
      int row = min(first_row + int(row0 + i), rows - 1), query = row / group, head = row + (kv_head - query) * group;
      ivec2 sight = sight_of(query, s, window, flags);
      int at = first_key + int(key);
      float score = -INFINITY;
      if (!is_absent(k_row[key]) && at >= sight.x && at <= sight.y) {
        float slope = 0.0, bias = 0.0;
        if ((flags & ALIBI) != 0) slope = of_head(arguments.alibi_slopes, head, arguments.alibi_slopes_stride);
        if ((flags & MASK) != 0) bias = load_1(element_at(mask_row(s, query, head), uint(at), arguments.mask_stride, F32), F32);
        score = finish_score(p[key * ROW_PITCH + row0 + i], bias, slope, at - (s.keys - s.queries + query), softcap, flags);
      }
      p[key * ROW_PITCH + row0 + i] = score;
    }
    barrier();

    uint row = lid % ROWS, share = lid / ROWS;
    float top = -INFINITY;
    [[unroll]] for (uint j = 0; j < KEYS; j += PARTS) {
      float score = p[(j + share) * ROW_PITCH + row];
      top = score > top ? score : top;
    }
    part[share * ROWS + row] = top;
    barrier();
    float before = most[row];
    top = before;
    [[unroll]] for (uint i = 0; i < PARTS; i++) {
      float score = part[i * ROWS + row];
      top = score > top ? score : top;
    }
    /* Where nothing was seen yet the maximum is -inf, and -inf - -inf would be NaN. */
    float base = top == -INFINITY ? 0.0 : top, share_sum = 0.0;
    [[unroll]] for (uint j = 0; j < KEYS; j += PARTS) {
      float value = exp_nonpositive(p[(j + share) * ROW_PITCH + row] - base);
      p[(j + share) * ROW_PITCH + row] = value;
      share_sum += value;
    }
    barrier();
    part[share * ROWS + row] = share_sum;
    barrier();
    if (lid < ROWS) {
      float total = 0.0;
      [[unroll]] for (uint i = 0; i < PARTS; i++) total += part[i * ROWS + row];
      rescale[row] = exp_nonpositive(before - base);
      sum[row] = sum[row] * rescale[row] + total;
      most[row] = top;
    }
    barrier();

    [[unroll]] for (uint i = 0; i < COLUMNS_EACH; i++)
      [[unroll]] for (uint r = 0; r < ROWS; r++) acc[i * ROWS + r] *= rescale[r];
    for (uint j = 0; j < block; j++) {
      uvec2 from = v_row[j];
      [[unroll]] for (uint i = 0; i < COLUMNS_EACH; i++) {
        uint c = lid + i * GROUP;
        float value = 0.0;
        if (!is_absent(from) && c < dv) value = load_1(element_at(from, c, v_stride, DTYPE), DTYPE);
        [[unroll]] for (uint r = 0; r < ROWS; r++) acc[i * ROWS + r] += p[j * ROW_PITCH + r] * value;
      }
    }
  }

  barrier();
  bool split = s.splits > 1;
  if (lid < tile_rows) {
    int row = first_row + int(lid), query = row / group, head = row + (kv_head - query) * group;
    bool has_sink = (flags & SINKS) != 0;
    float sink = 0.0;
    if (has_sink) sink = of_head(arguments.sinks, head, arguments.sinks_stride);
    vec2 last = finish_row(most[lid], sum[lid], has_sink, sink);
    rescale[lid] = last.x;
    if (split) {
      q_rows[lid] = partial_row(s.slot + w.split, kv_head, row);
      store_1(element_at(q_rows[lid], uint(dv), F32), most[lid], F32);
      store_1(element_at(q_rows[lid], uint(dv) + 1, F32), sum[lid], F32);
    } else {
      q_rows[lid] = o_row(s, query, head);
      if ((flags & LSE) != 0) store_1(lse_row(s, query, head), last.y, F32);
    }
  }
  barrier();
  /* The sums pass through shared memory, each invocation's own part of it, so that a loop can store them. */
  uvec2 o_stride = arguments.o_stride;
  [[unroll]] for (uint i = 0; i < COLUMNS_EACH; i++) {
    [[unroll]] for (uint r = 0; r < ROWS; r++) o_part[r * GROUP + lid] = acc[i * ROWS + r];
    uint c = lid + i * GROUP;
    for (uint r = 0; r < tile_rows; r++) {
      float value = o_part[r * GROUP + lid];
      if (c < dv && split) store_1(element_at(q_rows[r], c, F32), value, F32);
      if (c < dv && !split) store_1(element_at(q_rows[r], c, o_stride, DTYPE), value * rescale[r], DTYPE);
    }
  }
}
