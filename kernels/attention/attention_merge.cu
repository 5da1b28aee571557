// attention_merge: joins the splits of each split row, in their order, and applies the sink:
//
//   top = max over splits (and the sink);  o = sum_s exp(most_s - top) sums_s / (sum_s exp(most_s - top) sum_s + exp(sink - top))
//
// Grid (sequences * split_rows, kv_heads), any number of whole warps: their threads share a row's columns, and each takes the splits' weights by itself.
// Rows that were not split are left alone.

extern "C" __global__ void attention_merge(OPERANDS)
{
  APPLY_OFFSETS;
  const int group = heads / kv_heads, kv_head = blockIdx.y, index = blockIdx.x / split_rows, row = blockIdx.x % split_rows;
  const Sequence s = find_sequence(index, LENGTHS);
  if (s.splits == 1 || row >= s.queries * group) return;
  const int query = row / group, head = row + (kv_head - query) * group;
  const i64 step = (i64)kv_heads * split_rows * (dv + 2);
  const float* from = partial + s.slot * step + ((i64)kv_head * split_rows + row) * (dv + 2);
  float top = -infinity(), sum = 0.0f;
  for (int i = 0; i < s.splits; i++) top = from[i * step + dv] > top ? from[i * step + dv] : top;
  const float base = top == -infinity() ? 0.0f : top;
  for (int i = 0; i < s.splits; i++) sum += exp_nonpositive(from[i * step + dv] - base) * from[i * step + dv + 1];
  const Finish last = finish_row(top, sum, flags & SINKS, flags & SINKS ? sinks[head * sinks_stride] : 0.0f);
  const i64 to = row_of_query(s, query, head, o_batch_stride, o_head_stride, o_row_stride);
  for (int c = threadIdx.x; c < dv; c += blockDim.x) {
    float acc = 0.0f;
    for (int i = 0; i < s.splits; i++) acc = fmaf(exp_nonpositive(from[i * step + dv] - base), from[i * step + c], acc);
    store1(o, to + c * o_stride, acc * last.factor);
  }
  if ((flags & LSE) && threadIdx.x == 0) lse[row_of_query(s, query, head, lse_batch_stride, lse_head_stride, lse_row_stride)] = last.lse;
}
