// attention_tiled: small tiles in shared memory, on CUDA cores. A block of 64 threads takes ROWS rows and goes through the keys KEYS at a time:
//
//   shared memory, f32:  q_part [ROWS][DEPTH + 1]   k_part [KEYS][DEPTH + 1]   p [KEYS][ROWS + 1]   (padded against bank conflicts)
//
//   scores:  thread i has key i % KEYS and ROWS * KEYS / 64 rows; columns pass through shared memory DEPTH at a time
//   softmax: thread i has row i % ROWS and a quarter of the keys
//   sums:    thread i has columns i, i + 64, ... in registers; values are read once, side by side, from where they lie
//
// Tunables (-D):
//   KEYS   32  keys at a time, 16 or 32
//   DEPTH  32  columns of q and k in shared memory at a time
//
// Grid (works, kv_heads), 64 threads. Measured nowhere yet: no GPU has run it.

#ifndef KEYS
#define KEYS 32
#endif
#ifndef DEPTH
#define DEPTH 32
#endif
#define GROUP 64
#define ROWS 16
#define ROWS_EACH (ROWS * KEYS / GROUP)
#define PARTS (GROUP / ROWS)
#define COLUMNS_EACH ((HEAD_MAX + GROUP - 1) / GROUP)
// Blocks of a multiprocessor that registers are shared out for: without a number the compiler wants more of them, and spills.
#define BLOCKS (HEAD_MAX <= 64 ? 8 : HEAD_MAX <= 128 ? 6 : 4)

extern "C" __global__ void __launch_bounds__(GROUP, BLOCKS) attention_tiled(OPERANDS)
{
  __shared__ float q_part[ROWS][DEPTH + 1], k_part[KEYS][DEPTH + 1], p[KEYS][ROWS + 1];
  __shared__ float part[PARTS][ROWS], most[ROWS], sum[ROWS], rescale[ROWS];
  __shared__ i64 k_row[KEYS], v_row[KEYS];
  APPLY_OFFSETS;
  const int lid = threadIdx.x, group = heads / kv_heads, kv_head = blockIdx.y;
  const Lengths lengths = LENGTHS;
  Work w;
  if (!find_work(blockIdx.x, w, ROWS, lengths)) return;
  const Sequence s = w.s;
  const Rows k_rows = ROWS_OF(k), v_rows = ROWS_OF(v);
  const int rows = s.queries * group, first_row = w.tile * ROWS, tile_rows = min(ROWS, rows - first_row);

  float acc[COLUMNS_EACH][ROWS];
#pragma unroll
  for (int i = 0; i < COLUMNS_EACH; i++)
#pragma unroll
    for (int r = 0; r < ROWS; r++) acc[i][r] = 0.0f;
  if (lid < ROWS) {
    most[lid] = -infinity();
    sum[lid] = 0.0f;
  }
  int first = sight_of(first_row / group, s, window, flags).x / KEYS * KEYS;
  int end = sight_of((first_row + tile_rows - 1) / group, s, window, flags).y + 1;
  if (s.splits > 1) {
    first = max(first, w.split * SPLIT_KEYS);
    end = min(end, (w.split + 1) * SPLIT_KEYS);
  }
  for (int first_key = first; first_key < end; first_key += KEYS) {
    const int block = min(KEYS, end - first_key);
    __syncthreads();
    if (lid < block) {
      k_row[lid] = row_of(k_rows, first_key + lid);
      v_row[lid] = row_of(v_rows, first_key + lid);
    }

    float scores[ROWS_EACH];
#pragma unroll
    for (int i = 0; i < ROWS_EACH; i++) scores[i] = 0.0f;
    const int key = lid % KEYS, row0 = lid / KEYS * ROWS_EACH;
    for (int x0 = 0; x0 < d; x0 += DEPTH) {
      __syncthreads();
      for (int i = lid; i < ROWS * DEPTH; i += GROUP) {
        const int r = i / DEPTH, x = x0 + i % DEPTH, row = first_row + r, query = row / group, head = row + (kv_head - query) * group;
        const i64 from = row_of_query(s, query, head, q_batch_stride, q_head_stride, q_row_stride);
        q_part[r][i % DEPTH] = row < rows && x < d ? load1(q, from + x * q_stride) * scale : 0.0f;
      }
      for (int i = lid; i < KEYS * DEPTH; i += GROUP) {
        const int j = i / DEPTH, x = x0 + i % DEPTH;
        k_part[j][i % DEPTH] = j < block && x < d && k_row[j] >= 0 ? load1(k, k_row[j] + x * k_stride) : 0.0f;
      }
      __syncthreads();
#pragma unroll 8
      for (int x = 0; x < DEPTH; x++) {
        const float k_element = k_part[key][x];
#pragma unroll
        for (int i = 0; i < ROWS_EACH; i++) scores[i] = fmaf(q_part[row0 + i][x], k_element, scores[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < ROWS_EACH; i++) {
      const int row = min(first_row + row0 + i, rows - 1), query = row / group, head = row + (kv_head - query) * group;
      const Pair sight = sight_of(query, s, window, flags);
      const int at = first_key + key;
      float score = -infinity();
      if (key < block && k_row[key] >= 0 && at >= sight.x && at <= sight.y) {
        score = scores[i];
        if (flags & SOFTCAP) score = softcap * tanh_by_exp(score * __fdiv_rn(1.0f, softcap));
        if (flags & ALIBI) score += alibi_slopes[head * alibi_slopes_stride] * (float)(at - (s.keys - s.queries + query));
        if (flags & MASK) {
          // A mask of -inf hides a key even from a NaN query.
          const float bias = mask[s.index * mask_batch_stride + head * mask_head_stride + query * mask_row_stride + at * mask_stride];
          score = bias == -infinity() ? -infinity() : score + bias;
        }
      }
      p[key][row0 + i] = score;
    }
    __syncthreads();

    const int row = lid % ROWS, share = lid / ROWS;
    // A NaN score never becomes the maximum: it reaches the result through its exponential.
    float top = -infinity();
    for (int j = share; j < KEYS; j += PARTS) top = p[j][row] > top ? p[j][row] : top;
    part[share][row] = top;
    __syncthreads();
    const float before = most[row];
    top = before;
    for (int i = 0; i < PARTS; i++) top = part[i][row] > top ? part[i][row] : top;
    // Where nothing was seen yet the maximum is -inf, and -inf - -inf would be NaN.
    const float base = top == -infinity() ? 0.0f : top;
    float share_sum = 0.0f;
    for (int j = share; j < KEYS; j += PARTS) {
      const float value = exp_nonpositive(p[j][row] - base);
      p[j][row] = value;
      share_sum += value;
    }
    __syncthreads();
    part[share][row] = share_sum;
    __syncthreads();
    if (lid < ROWS) {
      float total = 0.0f;
      for (int i = 0; i < PARTS; i++) total += part[i][row];
      rescale[row] = exp_nonpositive(before - base);
      sum[row] = sum[row] * rescale[row] + total;
      most[row] = top;
    }
    __syncthreads();

#pragma unroll
    for (int i = 0; i < COLUMNS_EACH; i++) {
      const int c = lid + i * GROUP;
      if (c < dv) {
#pragma unroll
        for (int r = 0; r < ROWS; r++) acc[i][r] *= rescale[r];
        for (int j = 0; j < block; j++) {
          if (v_row[j] < 0) continue;
          const float value = load1(v, v_row[j] + c * v_stride);
#pragma unroll
          for (int r = 0; r < ROWS; r++) acc[i][r] = fmaf(p[j][r], value, acc[i][r]);
        }
      }
    }
  }

  __syncthreads();
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    if (r >= tile_rows) continue;
    const int row = first_row + r, query = row / group, head = row + (kv_head - query) * group;
    if (s.splits > 1) {
      float* to = partial + (((i64)(s.slot + w.split) * kv_heads + kv_head) * split_rows + row) * (dv + 2);
#pragma unroll
      for (int i = 0; i < COLUMNS_EACH; i++)
        if (lid + i * GROUP < dv) to[lid + i * GROUP] = acc[i][r];
      if (lid == 0) {
        to[dv] = most[r];
        to[dv + 1] = sum[r];
      }
      continue;
    }
    const Finish last = finish_row(most[r], sum[r], flags & SINKS, flags & SINKS ? sinks[head * sinks_stride] : 0.0f);
    const i64 to = row_of_query(s, query, head, o_batch_stride, o_head_stride, o_row_stride);
#pragma unroll
    for (int i = 0; i < COLUMNS_EACH; i++)
      if (lid + i * GROUP < dv) store1(o, to + (lid + i * GROUP) * o_stride, acc[i][r] * last.factor);
    if ((flags & LSE) && lid == 0) lse[row_of_query(s, query, head, lse_batch_stride, lse_head_stride, lse_row_stride)] = last.lse;
  }
}
