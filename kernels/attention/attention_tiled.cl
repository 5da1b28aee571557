// attention_tiled: many small work-items that share local memory. A work-group of 64 takes ROWS rows and goes through the keys KEYS at a time:
//
//   local memory, f32:  q_part [ROWS][DEPTH + 1]   k_part [KEYS][DEPTH + 1]   p [KEYS][ROWS + 1]   (padded against bank conflicts)
//
//   scores:  work-item i has key i % KEYS and ROWS * KEYS / 64 rows; columns pass through local memory DEPTH at a time
//   softmax: work-item i has row i % ROWS and a quarter of the keys
//   sums:    work-item i has columns i, i + 64, ...; values are read once, side by side, from where they lie
//
// Tunables (-D):
//   KEYS   32  keys at a time, 16 or 32
//   DEPTH  32  columns of q and k in local memory at a time
//
// Global size (kv_heads * 64, works), local size (64, 1).

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

__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void attention_tiled(OPERANDS) {
  __local float q_part[ROWS * (DEPTH + 1)], k_part[KEYS * (DEPTH + 1)], p[KEYS * (ROWS + 1)];
  __local float part[PARTS * ROWS], most[ROWS], sum[ROWS], rescale[ROWS];
  __local long k_row[KEYS], v_row[KEYS];
  APPLY_OFFSETS;
  // Unsigned, so that dividing by a power of two is a shift.
  uint lid = get_local_id(0);
  int group = heads / kv_heads, kv_head = get_group_id(0);
  const struct lengths lengths = LENGTHS;
  struct work w;
  if (!find_work(get_group_id(1), &w, ROWS, &lengths))
    return;
  struct sequence s = w.s;
  const struct rows k_rows = K_ROWS, v_rows = V_ROWS;
  int rows = s.queries * group, first_row = w.tile * ROWS, tile_rows = min(ROWS, rows - first_row);

  float acc[COLUMNS_EACH * ROWS];
  for (int i = 0; i < COLUMNS_EACH * ROWS; i++)
    acc[i] = 0.0f;
  if (lid < ROWS) {
    most[lid] = -INFINITY;
    sum[lid] = 0.0f;
  }
  int first = sight_of(first_row / group, s, window, flags).x / KEYS * KEYS;
  int end = sight_of((first_row + tile_rows - 1) / group, s, window, flags).y + 1;
  if (s.splits > 1) {
    first = max(first, w.split * SPLIT_KEYS);
    end = min(end, (w.split + 1) * SPLIT_KEYS);
  }
  for (int first_key = first; first_key < end; first_key += KEYS) {
    int block = min(KEYS, end - first_key);
    barrier(CLK_LOCAL_MEM_FENCE);
    if ((int)lid < block) {
      k_row[lid] = row_of(&k_rows, first_key + lid);
      v_row[lid] = row_of(&v_rows, first_key + lid);
    }

    float scores[ROWS_EACH];
    for (int i = 0; i < ROWS_EACH; i++)
      scores[i] = 0.0f;
    uint key = lid % KEYS;
    int row0 = lid / KEYS * ROWS_EACH;
    for (int x0 = 0; x0 < d; x0 += DEPTH) {
      barrier(CLK_LOCAL_MEM_FENCE);
      for (uint i = lid; i < ROWS * DEPTH; i += GROUP) {
        int row = first_row + i / DEPTH, x = x0 + i % DEPTH, query = row / group, head = row + (kv_head - query) * group;
        long from = row_of_query(s, query, head, q_batch_stride, q_head_stride, q_row_stride);
        q_part[i / DEPTH * (DEPTH + 1) + i % DEPTH] = row < rows && x < d ? load1(q, from + x * q_stride) * scale : 0.0f;
      }
      for (uint i = lid; i < KEYS * DEPTH; i += GROUP) {
        int j = i / DEPTH, x = x0 + i % DEPTH;
        k_part[j * (DEPTH + 1) + i % DEPTH] = j < block && x < d && k_row[j] >= 0 ? load1(k, k_row[j] + x * k_stride) : 0.0f;
      }
      barrier(CLK_LOCAL_MEM_FENCE);
      for (int x = 0; x < DEPTH; x++) {
        float k_element = k_part[key * (DEPTH + 1) + x];
        for (int i = 0; i < ROWS_EACH; i++)
          scores[i] = FMA(q_part[(row0 + i) * (DEPTH + 1) + x], k_element, scores[i]);
      }
    }
    for (int i = 0; i < ROWS_EACH; i++) {
      int row = min(first_row + row0 + i, rows - 1), query = row / group, head = row + (kv_head - query) * group;
      int2 sight = sight_of(query, s, window, flags);
      int at = first_key + key;
      float score = -INFINITY;
      if ((int)key < block && k_row[key] >= 0 && at >= sight.x && at <= sight.y) {
        score = scores[i];
        if (flags & SOFTCAP)
          score = softcap * tanh(score * (1.0f / softcap));
        if (flags & ALIBI)
          score += alibi_slopes[head * alibi_slopes_stride] * (float)(at - (s.keys - s.queries + query));
        if (flags & MASK) {
          // A mask of -inf hides a key even from a NaN query.
          float bias = mask[s.index * mask_batch_stride + head * mask_head_stride + query * mask_row_stride + at * mask_stride];
          score = bias == -INFINITY ? -INFINITY : score + bias;
        }
      }
      p[key * (ROWS + 1) + row0 + i] = score;
    }
    barrier(CLK_LOCAL_MEM_FENCE);

    uint row = lid % ROWS, share = lid / ROWS;
    float top = -INFINITY;
    for (uint j = share; j < KEYS; j += PARTS)
      top = p[j * (ROWS + 1) + row] > top ? p[j * (ROWS + 1) + row] : top;
    part[share * ROWS + row] = top;
    barrier(CLK_LOCAL_MEM_FENCE);
    float before = most[row];
    top = before;
    for (int i = 0; i < PARTS; i++)
      top = part[i * ROWS + row] > top ? part[i * ROWS + row] : top;
    // Where nothing was seen yet the maximum is -inf, and -inf - -inf would be NaN.
    float base = top == -INFINITY ? 0.0f : top, share_sum = 0.0f;
    for (uint j = share; j < KEYS; j += PARTS) {
      float value = exp(p[j * (ROWS + 1) + row] - base);
      p[j * (ROWS + 1) + row] = value;
      share_sum += value;
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    part[share * ROWS + row] = share_sum;
    barrier(CLK_LOCAL_MEM_FENCE);
    if (lid < ROWS) {
      float total = 0.0f;
      for (int i = 0; i < PARTS; i++)
        total += part[i * ROWS + row];
      rescale[row] = exp(before - base);
      sum[row] = sum[row] * rescale[row] + total;
      most[row] = top;
    }
    barrier(CLK_LOCAL_MEM_FENCE);

    for (int i = 0; i < COLUMNS_EACH; i++) {
      int c = (int)lid + i * GROUP;
      if (c >= dv)
        break;
      for (int r = 0; r < ROWS; r++)
        acc[i * ROWS + r] *= rescale[r];
      for (int j = 0; j < block; j++) {
        if (v_row[j] < 0)
          continue;
        float value = load1(v, v_row[j] + c * v_stride);
        for (int r = 0; r < ROWS; r++)
          acc[i * ROWS + r] = FMA(p[j * (ROWS + 1) + r], value, acc[i * ROWS + r]);
      }
    }
  }

  barrier(CLK_LOCAL_MEM_FENCE);
  for (int r = 0; r < tile_rows; r++) {
    int row = first_row + r, query = row / group, head = row + (kv_head - query) * group;
    if (s.splits > 1) {
      __global float *to = partial + (((long)(s.slot + w.split) * kv_heads + kv_head) * split_rows + row) * (dv + 2);
      for (int i = 0; i < COLUMNS_EACH; i++)
        if ((int)lid + i * GROUP < dv)
          to[lid + i * GROUP] = acc[i * ROWS + r];
      if (lid == 0) {
        to[dv] = most[r];
        to[dv + 1] = sum[r];
      }
      continue;
    }
    float2 last = finish_row(most[r], sum[r], flags & SINKS, flags & SINKS ? sinks[head * sinks_stride] : 0.0f);
    long to = row_of_query(s, query, head, o_batch_stride, o_head_stride, o_row_stride);
    for (int i = 0; i < COLUMNS_EACH; i++)
      if ((int)lid + i * GROUP < dv)
        store1(o, to + (lid + i * GROUP) * o_stride, acc[i * ROWS + r] * last.x);
    if (flags & LSE && lid == 0)
      lse[row_of_query(s, query, head, lse_batch_stride, lse_head_stride, lse_row_stride)] = last.y;
  }
}
