// attention_prefill: many rows on a device whose work-item is a core with wide vectors. One work-item takes ROW_GROUPS * 16 rows; a lane
// of a float16 is a row, so that the softmax needs no reduction across lanes and each key element is a broadcast operand of one FMA:
//
//   scores[key]      += q[x][16 rows] * k[key][x]       16 keys at a time in registers
//   sum[column]      += p[key][16 rows] * v[key][column]  16 columns at a time in registers
//
//   private memory, f32:  queries [group][d][16 rows]   sums [group][dv][16 rows]   scores [KEY_BLOCK][16 rows]
//                         keys [KEY_BLOCK][HEAD_MAX]    values [KEY_BLOCK][HEAD_MAX]
//
// A block of keys and values is converted to f32 once and used by all row groups; any strides, any dtype, any paging end there.
//
// Tunables (-D):
//   ROW_GROUPS  4   vectors of 16 rows in a work-item: more reuse of a packed block of keys, fewer work-items
//   KEY_BLOCK   64  keys packed at once, a multiple of 16, at most 64; divides SPLIT_KEYS
//
// Global size (works, kv_heads), local size (1, 1): the tiles of a head, which share its keys, follow each other.

#ifndef ROW_GROUPS
#define ROW_GROUPS 4
#endif
#ifndef KEY_BLOCK
#define KEY_BLOCK 64
#endif
#define ROWS (16 * ROW_GROUPS)
#define TILE 16

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void attention_prefill(OPERANDS) {
  APPLY_OFFSETS;
  int group = heads / kv_heads, kv_head = get_group_id(1);
  const struct lengths lengths = LENGTHS;
  struct work w;
  if (!find_work(get_group_id(0), &w, ROWS, &lengths))
    return;
  struct sequence s = w.s;
  const struct rows k_rows = K_ROWS, v_rows = V_ROWS;
  int rows = s.queries * group, first_row = w.tile * ROWS;
  if (rows <= few_rows)
    return;
  int row_groups = min(ROW_GROUPS, (rows - first_row + 15) / 16), tile_rows = min(ROWS, rows - first_row);

  float16 queries[ROW_GROUPS * HEAD_MAX], sums[ROW_GROUPS * HEAD_MAX], scores[KEY_BLOCK], most[ROW_GROUPS], sum[ROW_GROUPS];
  float keys[KEY_BLOCK * HEAD_MAX], values[KEY_BLOCK * HEAD_MAX];
  struct lanes lanes[ROW_GROUPS];
  for (int g = 0; g < row_groups; g++) {
    lanes[g] = lanes_of(s, first_row + g * 16, 16, rows, group, kv_head, alibi_slopes, alibi_slopes_stride, mask_batch_stride, mask_head_stride,
                        mask_row_stride, window, flags);
    most[g] = -INFINITY;
    sum[g] = 0.0f;
    for (int c = 0; c < HEAD_MAX; c++)
      sums[g * HEAD_MAX + c] = 0.0f;
  }
  for (int r = 0; r < row_groups * 16; r++) {
    int row = first_row + min(r, tile_rows - 1), query = row / group, head = row + (kv_head - query) * group;
    long from = row_of_query(s, query, head, q_batch_stride, q_head_stride, q_row_stride);
    for (int x = 0; x < d; x++)
      ((float *)queries)[((r / 16) * HEAD_MAX + x) * 16 + r % 16] = load1(q, from + x * q_stride) * scale;
  }

  int2 sight = sight_of(first_row / group, s, window, flags);
  int first = sight.x / KEY_BLOCK * KEY_BLOCK;
  int end = sight_of((first_row + tile_rows - 1) / group, s, window, flags).y + 1;
  if (s.splits > 1) {
    first = max(first, w.split * SPLIT_KEYS);
    end = min(end, (w.split + 1) * SPLIT_KEYS);
  }
  for (int first_key = first; first_key < end; first_key += KEY_BLOCK) {
    int block = min(KEY_BLOCK, end - first_key);
    ulong missing = 0;
    for (int j = 0; j < block; j++) {
      // A row that is not there is not read: what lies elsewhere cannot reach the sums.
      long k_row = row_of(&k_rows, first_key + j), v_row = row_of(&v_rows, first_key + j);
      int k_columns = k_row < 0 ? 0 : d, v_columns = v_row < 0 ? 0 : dv;
      if (k_row < 0)
        missing |= 1UL << j;
      for (int x = 0; x < d; x += 16)
        vstore16(load_columns(k, k_row, k_stride, x, k_columns), 0, keys + j * HEAD_MAX + x);
      for (int c = 0; c < dv; c += 16)
        vstore16(load_columns(v, v_row, v_stride, c, v_columns), 0, values + j * HEAD_MAX + c);
    }
    for (int i = block * HEAD_MAX; i < (block + TILE - 1) / TILE * TILE * HEAD_MAX; i++)
      keys[i] = 0.0f;

    for (int g = 0; g < row_groups; g++) {
      for (int j = 0; j < block; j += TILE) {
        float16 acc[TILE];
        UNROLL for (int t = 0; t < TILE; t++) acc[t] = 0.0f;
        for (int x = 0; x < d; x++) {
          float16 query = queries[g * HEAD_MAX + x];
          UNROLL for (int t = 0; t < TILE; t++) acc[t] = FMA((float16)(keys[(j + t) * HEAD_MAX + x]), query, acc[t]);
        }
        UNROLL for (int t = 0; t < TILE; t++) scores[j + t] = acc[t];
      }
      float16 block_most =
          finish_scores(scores, first_key, block, 1, missing, &lanes[g], mask, mask_stride, softcap, flags);
      float16 top = select(most[g], block_most, block_most > most[g]);
      // Where nothing was seen yet the maximum is -inf, and -inf - -inf would be NaN.
      float16 base = select(top, (float16)(0.0f), top == -INFINITY);
      float16 rescale = exp_nonpositive(most[g] - base), block_sum = 0.0f;
      for (int j = 0; j < block; j++) {
        float16 p = exp_nonpositive(scores[j] - base);
        scores[j] = p;
        block_sum += p;
      }
      most[g] = top;
      sum[g] = sum[g] * rescale + block_sum;
      for (int c = 0; c < dv; c += TILE) {
        float16 acc[TILE];
        UNROLL for (int t = 0; t < TILE; t++) acc[t] = sums[g * HEAD_MAX + c + t] * rescale;
        for (int j = 0; j < block; j++) {
          float16 p = scores[j];
          UNROLL for (int t = 0; t < TILE; t++) acc[t] = FMA((float16)(values[j * HEAD_MAX + c + t]), p, acc[t]);
        }
        UNROLL for (int t = 0; t < TILE; t++) sums[g * HEAD_MAX + c + t] = acc[t];
      }
    }
  }

  for (int r = 0; r < tile_rows; r++) {
    float row_most = ((float *)most)[r], row_sum = ((float *)sum)[r];
    float *from = (float *)sums + r / 16 * HEAD_MAX * 16 + r % 16;
    int row = first_row + r, query = row / group, head = row + (kv_head - query) * group;
    if (s.splits > 1) {
      __global float *to = partial + (((long)(s.slot + w.split) * kv_heads + kv_head) * split_rows + row) * (dv + 2);
      for (int c = 0; c < dv; c++)
        to[c] = from[c * 16];
      to[dv] = row_most;
      to[dv + 1] = row_sum;
      continue;
    }
    float2 last = finish_row(row_most, row_sum, flags & SINKS, flags & SINKS ? sinks[head * sinks_stride] : 0.0f);
    long to = row_of_query(s, query, head, o_batch_stride, o_head_stride, o_row_stride);
    for (int c = 0; c < dv; c++)
      store1(o, to + c * o_stride, from[c * 16] * last.x);
    if (flags & LSE)
      lse[row_of_query(s, query, head, lse_batch_stride, lse_head_stride, lse_row_stride)] = last.y;
  }
}
