#version 460
#extension GL_GOOGLE_include_directive : require
/* attention_merge: joins the splits of each split row, in their order, and applies the sink:
 *
 *   top = max over splits (and the sink);  o = sum_s exp(most_s - top) sums_s / (sum_s exp(most_s - top) sum_s + exp(sink - top))
 *
 * Groups (kv_heads, sequences * split_rows) of 64 invocations, which share a row's columns; every one computes the splits' weights for
 * itself. Rows that were not split are left alone.
 */
#include "attention.glsl"

#define GROUP 64
layout(local_size_x = GROUP) in;

void main()
{
  int group = arguments.heads / arguments.kv_heads, kv_head = int(gl_WorkGroupID.x);
  int index = int(gl_WorkGroupID.y) / arguments.split_rows, row = int(gl_WorkGroupID.y) - index * arguments.split_rows;
  Sequence s = Sequence(0, 0, 0, 0, 0, 0, 0, 0);
  int slot = 0;
  for (int i = LAYOUT == 0 ? index : 0; i <= index; i++) {
    s = sequence_at(i, slot, 1 << 30);
    if (s.splits > 1) slot += s.splits;
  }
  if (s.splits == 1 || row >= s.queries * group) return;
  int query = row / group, head = row + (kv_head - query) * group;
  uvec2 from = partial_row(s.slot, kv_head, row);
  uvec2 step = multiply_64(uint(arguments.kv_heads * arguments.split_rows), uvec2(arguments.dv + 2, 0));
  float top = -INFINITY, sum = 0.0;
  for (int i = 0; i < s.splits; i++) {
    float most = load_1(element_at(element_at(from, uint(i), step, F32), uint(arguments.dv), F32), F32);
    top = most > top ? most : top;
  }
  float base = top == -INFINITY ? 0.0 : top;
  int columns = (arguments.dv + GROUP - 1) / GROUP;
  float sink = 0.0;
  bool has_sink = (arguments.flags & SINKS) != 0;
  if (has_sink) sink = of_head(arguments.sinks, head, arguments.sinks_stride);
  uvec2 to = o_row(s, query, head);
  for (int i = 0; i < columns; i++) {
    int c = int(gl_LocalInvocationID.x) + i * GROUP;
    float acc = 0.0;
    sum = 0.0;
    for (int j = 0; j < s.splits; j++) {
      uvec2 at = element_at(from, uint(j), step, F32), last = element_at(at, uint(arguments.dv), F32);
      float weight = exp_of(load_1(last, F32) - base);
      sum += weight * load_1(address_add(last, 4), F32);
      if (c < arguments.dv) acc += weight * load_1(element_at(at, uint(c), F32), F32);
    }
    vec2 last = finish_row(top, sum, has_sink, sink);
    if (c < arguments.dv) store_1(element_at(to, uint(c), arguments.o_stride, DTYPE), acc * last.x, DTYPE);
    if ((arguments.flags & LSE) != 0 && c == 0) store_1(lse_row(s, query, head), last.y, F32);
  }
}
