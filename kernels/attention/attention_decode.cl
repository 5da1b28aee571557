// attention_decode: at most FEW_ROWS rows against many keys, on a device whose work-item is a core with wide vectors. It reads each key and
// each value once and is bound by memory. A work-item takes one split of the keys of one (sequence, key head).
//
//   scores:  16 accumulators of 16 lanes: 16 / FEW_ROWS keys by FEW_ROWS rows; lanes are the head's columns; a tree of
//            even-odd sums turns them into one vector, lane = key * FEW_ROWS + row
//   sums:    FEW_ROWS rows by COLUMNS vectors of 16 columns; p is a broadcast operand
//
//   private memory, f32:  queries, sums [FEW_ROWS][HEAD_MAX]   values [KEY_BLOCK][HEAD_MAX]   scores [KEY_BLOCK][FEW_ROWS]
//
// Keys and values are read strictly in order, a whole row after the other, which is what hardware prefetchers follow: four rows side by
// side, or half of each row and then the other halves, run at half the bandwidth. So the values of a block are copied to private memory while
// its scores are computed, and the sums, which need more accumulators than there are registers, go over the copy.
//
// Tunables (-D):
//   FEW_ROWS   8   1, 2, 4 or 8: at least the rows of any sequence that this kernel takes
//   KEY_BLOCK  16  keys between two rescalings, a multiple of 16, at most 64; divides SPLIT_KEYS
//
// Global size (kv_heads, works), local size (1, 1): the heads of a paged cache, which share pages of memory, follow each other.

#ifndef FEW_ROWS
#define FEW_ROWS 8
#endif
#ifndef KEY_BLOCK
#define KEY_BLOCK 16
#endif
#define KEYS (16 / FEW_ROWS)
#define HEAD_VECTORS (HEAD_MAX / 16)
#define COLUMNS (HEAD_VECTORS % KEYS ? 4 : KEYS) // divides HEAD_VECTORS

// Sums of even and odd neighbours, a's then b's.
float16 add_neighbours(float16 a, float16 b) {
  const uint16 even = (uint16)(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  return shuffle2(a, b, even) + shuffle2(a, b, even + 1);
}

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void attention_decode(OPERANDS) {
  APPLY_OFFSETS;
  int group = heads / kv_heads, kv_head = get_group_id(0);
  const struct lengths lengths = LENGTHS;
  struct work w;
  if (!find_work(get_group_id(1), &w, 1 << 30, &lengths))
    return;
  struct sequence s = w.s;
  const struct rows k_rows = K_ROWS, v_rows = V_ROWS;
  int rows = s.queries * group;
  if (rows > few_rows || rows > FEW_ROWS)
    return;

  float16 queries[FEW_ROWS * HEAD_VECTORS], sums[FEW_ROWS * HEAD_VECTORS], scores[KEY_BLOCK / KEYS];
  float16 values[KEY_BLOCK * HEAD_VECTORS];
  for (int r = 0; r < FEW_ROWS; r++) {
    int row = min(r, rows - 1), query = row / group, head = row + (kv_head - query) * group;
    long from = row_of_query(s, query, head, q_batch_stride, q_head_stride, q_row_stride);
    for (int x = 0; x < HEAD_MAX; x++) {
      ((float *)queries)[r * HEAD_MAX + x] = x < d ? load1(q, from + x * q_stride) * scale : 0.0f;
      ((float *)sums)[r * HEAD_MAX + x] = 0.0f;
    }
  }
  struct lanes lanes = lanes_of(s, 0, FEW_ROWS, rows, group, kv_head, alibi_slopes, alibi_slopes_stride, mask_batch_stride, mask_head_stride, mask_row_stride,
                                window, flags);
  // Columns that are loaded as whole vectors: few instructions a load leave room for many loads in flight.
  int whole_d = UNIT ? d & ~15 : 0, whole_dv = UNIT ? dv & ~15 : 0;
  // Columns are worked on COLUMNS vectors at a time: what lies past the head's last is zero.
  int vectors = ((dv + 15) / 16 + COLUMNS - 1) / COLUMNS * COLUMNS;
  for (int i = 0; i < KEY_BLOCK * HEAD_VECTORS; i++)
    values[i] = 0.0f;
  float most[FEW_ROWS], rescale[FEW_ROWS];
  for (int r = 0; r < FEW_ROWS; r++)
    most[r] = -INFINITY;
  float16 sum = 0.0f;

  int first = sight_of(0, s, window, flags).x / KEY_BLOCK * KEY_BLOCK;
  int end = sight_of((rows - 1) / group, s, window, flags).y + 1;
  if (s.splits > 1) {
    first = max(first, w.split * SPLIT_KEYS);
    end = min(end, (w.split + 1) * SPLIT_KEYS);
  }
  for (int first_key = first; first_key < end; first_key += KEY_BLOCK) {
    int block = min(KEY_BLOCK, end - first_key);
    ulong missing = 0;
    for (int j = 0; j < block; j += KEYS) {
      float16 acc[16];
      UNROLL for (int i = 0; i < 16; i++) acc[i] = 0.0f;
      UNROLL for (int t = 0; t < KEYS; t++) {
        int key = min(j + t, block - 1);
        long row = row_of(&k_rows, first_key + key);
        if (row < 0) {
          missing |= 1UL << (j + t);
          row = 0;
        }
        int x = 0, c = 0;
        for (; x < whole_d; x += 16) {
          float16 element = load16(k, row + x);
          UNROLL for (int r = 0; r < FEW_ROWS; r++)
            acc[t * FEW_ROWS + r] = FMA(element, queries[r * HEAD_VECTORS + x / 16], acc[t * FEW_ROWS + r]);
        }
        for (; x < d; x += 16) {
          float16 element = load_columns(k, row, k_stride, x, d);
          UNROLL for (int r = 0; r < FEW_ROWS; r++)
            acc[t * FEW_ROWS + r] = FMA(element, queries[r * HEAD_VECTORS + x / 16], acc[t * FEW_ROWS + r]);
        }
        row = max(row_of(&v_rows, first_key + key), 0L);
        for (; c < whole_dv; c += 16)
          values[key * HEAD_VECTORS + c / 16] = load16(v, row + c);
        for (; c < dv; c += 16)
          values[key * HEAD_VECTORS + c / 16] = load_columns(v, row, v_stride, c, dv);
      }
      UNROLL for (int i = 0; i < 8; i++) acc[i] = add_neighbours(acc[2 * i], acc[2 * i + 1]);
      UNROLL for (int i = 0; i < 4; i++) acc[i] = add_neighbours(acc[2 * i], acc[2 * i + 1]);
      UNROLL for (int i = 0; i < 2; i++) acc[i] = add_neighbours(acc[2 * i], acc[2 * i + 1]);
      scores[j / KEYS] = add_neighbours(acc[0], acc[1]);
    }
    float16 block_most = finish_scores(scores, first_key, block, KEYS, missing, &lanes, mask, mask_stride, softcap, flags);
    float16 base;
    for (int r = 0; r < FEW_ROWS; r++) {
      float top = most[r];
      for (int t = 0; t < KEYS; t++) {
        float lane = ((float *)&block_most)[t * FEW_ROWS + r];
        top = lane > top ? lane : top;
      }
      float row_base = top == -INFINITY ? 0.0f : top;
      for (int t = 0; t < KEYS; t++)
        ((float *)&base)[t * FEW_ROWS + r] = row_base;
      rescale[r] = exp(most[r] - row_base);
      for (int t = 0; t < KEYS; t++)
        ((float *)&sum)[t * FEW_ROWS + r] *= rescale[r];
      most[r] = top;
    }
    for (int i = 0; i < (block + KEYS - 1) / KEYS; i++) {
      float16 p = exp_nonpositive(scores[i] - base);
      scores[i] = p;
      sum += p;
    }
    const float *p = (const float *)scores;
    for (int c = 0; c < vectors; c += COLUMNS) {
      float16 acc[FEW_ROWS][COLUMNS];
      UNROLL for (int r = 0; r < FEW_ROWS; r++) UNROLL for (int t = 0; t < COLUMNS; t++)
        acc[r][t] = sums[r * HEAD_VECTORS + c + t] * rescale[r];
      for (int j = 0; j < block; j++) {
        float16 value[COLUMNS];
        UNROLL for (int t = 0; t < COLUMNS; t++) value[t] = values[j * HEAD_VECTORS + c + t];
        UNROLL for (int r = 0; r < FEW_ROWS; r++) UNROLL for (int t = 0; t < COLUMNS; t++)
          acc[r][t] = FMA((float16)(p[j * FEW_ROWS + r]), value[t], acc[r][t]);
      }
      UNROLL for (int r = 0; r < FEW_ROWS; r++) UNROLL for (int t = 0; t < COLUMNS; t++)
        sums[r * HEAD_VECTORS + c + t] = acc[r][t];
    }
  }

  for (int row = 0; row < rows; row++) {
    float row_sum = 0.0f;
    for (int t = 0; t < KEYS; t++)
      row_sum += ((float *)&sum)[t * FEW_ROWS + row];
    const float *from = (const float *)sums + row * HEAD_MAX;
    int query = row / group, head = row + (kv_head - query) * group;
    if (s.splits > 1) {
      __global float *to = partial + (((long)(s.slot + w.split) * kv_heads + kv_head) * split_rows + row) * (dv + 2);
      for (int c = 0; c < dv; c++)
        to[c] = from[c];
      to[dv] = most[row];
      to[dv + 1] = row_sum;
      continue;
    }
    float2 last = finish_row(most[row], row_sum, flags & SINKS, flags & SINKS ? sinks[head * sinks_stride] : 0.0f);
    long to = row_of_query(s, query, head, o_batch_stride, o_head_stride, o_row_stride);
    for (int c = 0; c < dv; c++)
      store1(o, to + c * o_stride, from[c] * last.x);
    if (flags & LSE)
      lse[row_of_query(s, query, head, lse_batch_stride, lse_head_stride, lse_row_stride)] = last.y;
  }
}
