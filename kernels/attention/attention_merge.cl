// attention_merge: joins the splits of each split row, in their order, and applies the sink:
//
//   top = max over splits (and the sink);  o = sum_s exp(most_s - top) sums_s / (sum_s exp(most_s - top) sum_s + exp(sink - top))
//
// Global size (kv_heads * local, sequences * split_rows), local size (any, 1): the work-items of a group share a row's columns.
// Rows that were not split are left alone.

__kernel void attention_merge(OPERANDS) {
  APPLY_OFFSETS;
  int group = heads / kv_heads, kv_head = get_group_id(0);
  int index = (int)get_group_id(1) / split_rows, row = mad_sat(-index, split_rows, (int)get_group_id(1));
  const struct lengths lengths = LENGTHS;
  struct sequence s;
  int slot = 0;
  for (int i = LAYOUT == 0 ? index : 0; i <= index; i++) {
    s = sequence_at(i, slot, 1 << 30, &lengths);
    if (s.splits > 1)
      slot += s.splits;
  }
  if (s.splits == 1 || row >= s.queries * group)
    return;
  int query = row / group, head = row + (kv_head - query) * group;
  long step = (long)kv_heads * split_rows * (dv + 2);
  __global float *from = partial + s.slot * step + ((long)kv_head * split_rows + row) * (dv + 2);
  float top = -INFINITY, sum = 0.0f;
  for (int i = 0; i < s.splits; i++)
    top = from[i * step + dv] > top ? from[i * step + dv] : top;
  float base = top == -INFINITY ? 0.0f : top;
  // Each split's weight takes the place of its maximum once everybody has read that.
  barrier(CLK_GLOBAL_MEM_FENCE);
  for (int i = get_local_id(0); i < s.splits; i += get_local_size(0))
    from[i * step + dv] = exp(from[i * step + dv] - base);
  barrier(CLK_GLOBAL_MEM_FENCE);
  for (int i = 0; i < s.splits; i++)
    sum += from[i * step + dv] * from[i * step + dv + 1];
  float2 last = finish_row(top, sum, flags & SINKS, flags & SINKS ? sinks[head * sinks_stride] : 0.0f);
  long to = row_of_query(s, query, head, o_batch_stride, o_head_stride, o_row_stride);
  for (int c = get_local_id(0); c < dv; c += get_local_size(0)) {
    float acc = 0.0f;
    for (int i = 0; i < s.splits; i++)
      acc = FMA(from[i * step + dv], from[i * step + c], acc);
    store1(o, to + c * o_stride, acc * last.x);
  }
  if (flags & LSE && get_local_id(0) == 0)
    lse[row_of_query(s, query, head, lse_batch_stride, lse_head_stride, lse_row_stride)] = last.y;
}
