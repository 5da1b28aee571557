// attention_decode: at most FEW_ROWS rows against many keys, on a device whose work-item is a core with wide vectors. It reads each key and
// each value once and is bound by memory. A work-item takes one split of the keys of one sequence, for HEADS key heads.
//
//   scores:  16 accumulators of 16 lanes: 16 / FEW_ROWS keys by FEW_ROWS rows; lanes are the head's columns; a tree of
//            even-odd sums turns them into one vector, lane = key * FEW_ROWS + row
//   sums:    FEW_ROWS rows by COLUMNS vectors of 16 columns; p is a broadcast operand
//
//                  head 0       head 1      ...              a cache of [key, head, column]: a block's rows of all heads
//   key 0     | q.k ------> | q.k ------> |                  are asked for in the order in which they lie in memory, one
//   key 1     |             |             |   KEY_BLOCK      block ahead, while the work goes head by head
//   ...
//
//   private memory, f32:  queries, sums [HEADS][FEW_ROWS][HEAD_MAX]   scores [KEY_BLOCK][FEW_ROWS]
//
// Between the requests for a block and their use lies the work on the block before it: the memory is never idle while sums are computed. Nothing
// is copied: with a block's keys and values in flight for the next block, a level 1 cache holds no copy besides.
//
// Tunables (-D):
//   FEW_ROWS   8   1, 2, 4 or 8: at least the rows of any sequence that this kernel takes
//   HEADS      1   key heads of a work-group: more where the heads of a key lie behind each other
//   KEY_BLOCK  16  keys between two rescalings, a multiple of 16, at most 64; divides SPLIT_KEYS
//
// Global size (kv_heads / HEADS rounded up, works), local size (1, 1).

#ifndef FEW_ROWS
#define FEW_ROWS 8
#endif
#ifndef KEY_BLOCK
#define KEY_BLOCK 16
#endif
#ifndef HEADS
#define HEADS 1
#endif
#define KEYS (16 / FEW_ROWS)
#define SIDE (KEYS < 4 ? KEYS : 4)
#define HEAD_VECTORS (HEAD_MAX / 16)
#define COLUMNS (KEYS < 4 ? KEYS : KEYS > 4 && HEAD_VECTORS % 8 == 0 ? 8 : 4) // divides HEAD_VECTORS

// PoCL's prefetch() does nothing; what compiles for a processor itself knows the instruction.
#if defined(__has_builtin) && (defined(__x86_64__) || defined(__aarch64__))
#if __has_builtin(__builtin_prefetch)
#define FETCH(address) __builtin_prefetch((const void *)(uintptr_t)(address), 0, 2)
#endif
#endif
#ifndef FETCH
#define FETCH(address) prefetch(address, 1)
#endif

// Halves the lanes of two vectors: neighbours of four lanes, then pairs of such fours, then halves of the vector. The first two stay inside
// four lanes, which takes a processor one cycle where lanes that cross the vector take several.
float16 add_neighbours(float16 a, float16 b) {
  const uint16 even = (uint16)(0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30);
  return shuffle2(a, b, even) + shuffle2(a, b, even + 1u);
}

float16 add_fours(float16 a, float16 b) {
  const uint16 even = (uint16)(0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27);
  return shuffle2(a, b, even) + shuffle2(a, b, even + 4u);
}

float16 add_halves(float16 a, float16 b) {
  const uint16 low = (uint16)(0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
  return shuffle2(a, b, low) + shuffle2(a, b, low + 8u);
}

// Each row's greatest lane, in all lanes of the row.
float16 most_of_rows(float16 x) {
  const uint16 lane = (uint16)(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  UNROLL for (int step = FEW_ROWS; step < 16; step *= 2) {
    float16 other = shuffle(x, (lane + (uint)step) & 15u);
    x = select(x, other, other > x);
  }
  return x;
}

// Where the rows of a block of keys lie, of the work-group's first head; keys past the end repeat the last. Bit j of `missing` says that
// key j is not there: its row is not read.
struct block {
  long k[KEY_BLOCK], v[KEY_BLOCK];
  ulong missing;
  int keys;
};

void find_block(struct block *b, const struct rows *k, const struct rows *v, int first_key, int end) {
  b->keys = clamp(end - first_key, 0, KEY_BLOCK);
  b->missing = 0;
  for (int j = 0, after; j < b->keys; j = after) { // runs of keys in regular distances
    after = b->keys;
    if (LAYOUT == 2)
      after = min(after, ((first_key + j) / k->block_size + 1) * k->block_size - first_key);
    int filled = after < b->keys ? after : KEY_BLOCK;
    long k_row = row_of(k, first_key + j), v_row = row_of(v, first_key + j);
    if (k_row < 0)
      b->missing |= ~0UL >> (64 - (filled - j)) << j;
    for (int i = j; i < filled; i++) {
      int key = min(i, after - 1) - j;
      b->k[i] = max(k_row, 0L) + key * k->row_stride;
      b->v[i] = max(v_row, 0L) + key * v->row_stride;
    }
  }
}

void fetch_columns(__global const T *x, int columns) {
  for (int c = 0; c < columns; c += 64 / (int)sizeof(T))
    FETCH(x + c);
}

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void attention_decode(OPERANDS) {
  APPLY_OFFSETS;
  int group = heads / kv_heads, first_head = get_group_id(0) * HEADS, head_count = min(HEADS, kv_heads - first_head);
  const struct lengths lengths = LENGTHS;
  struct work w;
  if (!find_work(get_group_id(1), &w, 1 << 30, &lengths))
    return;
  struct sequence s = w.s;
  int kv_head = first_head;
  const struct rows k_rows = K_ROWS, v_rows = V_ROWS;
  int rows = s.queries * group;
  if (rows > few_rows || rows > FEW_ROWS)
    return;

  float16 queries[HEADS * FEW_ROWS * HEAD_VECTORS], sums[HEADS * FEW_ROWS * HEAD_VECTORS], scores[KEY_BLOCK / KEYS];
  float16 most[HEADS], sum[HEADS];
  struct lanes lanes[HEADS];
  for (int h = 0; h < head_count; h++) {
    kv_head = first_head + h;
    for (int r = 0; r < FEW_ROWS; r++) {
      int row = min(r, rows - 1), query = row / group, head = row + (kv_head - query) * group;
      long from = row_of_query(s, query, head, q_batch_stride, q_head_stride, q_row_stride);
      for (int x = 0; x < HEAD_MAX; x++) {
        ((float *)queries)[(h * FEW_ROWS + r) * HEAD_MAX + x] = x < d ? load1(q, from + x * q_stride) * scale : 0.0f;
        ((float *)sums)[(h * FEW_ROWS + r) * HEAD_MAX + x] = 0.0f;
      }
    }
    lanes[h] = lanes_of(s, 0, FEW_ROWS, rows, group, kv_head, alibi_slopes, alibi_slopes_stride, mask_batch_stride, mask_head_stride, mask_row_stride,
                        window, flags);
    most[h] = -INFINITY;
    sum[h] = 0.0f;
  }
  // Columns that are loaded as whole vectors: few instructions a load leave room for many loads in flight.
  int whole_d = UNIT ? d & ~15 : 0, whole_dv = UNIT ? dv & ~15 : 0;

  int first = sight_of(0, s, window, flags).x / KEY_BLOCK * KEY_BLOCK;
  int end = sight_of((rows - 1) / group, s, window, flags).y + 1;
  if (s.splits > 1) {
    first = max(first, w.split * SPLIT_KEYS);
    end = min(end, (w.split + 1) * SPLIT_KEYS);
  }
  struct block blocks_of_keys[2];
  int now = 0;
  find_block(&blocks_of_keys[0], &k_rows, &v_rows, first, end);
  for (int first_key = first; first_key < end; first_key += KEY_BLOCK, now ^= 1) {
    const struct block *b = &blocks_of_keys[now], *next = &blocks_of_keys[now ^ 1];
    find_block(&blocks_of_keys[now ^ 1], &k_rows, &v_rows, first_key + KEY_BLOCK, end);
    int block = b->keys;
    // Rows that are not there have no columns: they are not read, so that what lies elsewhere cannot reach the sums.
    int block_d = b->missing ? 0 : whole_d, block_dv = b->missing ? 0 : whole_dv;
    for (int h = 0; h < head_count; h++) {
      __global const T *k_head = k + h * k_head_stride, *v_head = v + h * v_head_stride;
      const float16 *head_queries = queries + h * FEW_ROWS * HEAD_VECTORS;
      for (int j = 0; j < block; j += KEYS) {
        float16 acc[16];
        UNROLL for (int i = 0; i < 16; i++) acc[i] = 0.0f;
        UNROLL for (int t = 0; t < KEYS; t += SIDE) {
          if (next->keys > 0)
            UNROLL for (int i = 0; i < SIDE; i++) {
              int at = h * KEY_BLOCK + j + t + i;
              fetch_columns(k + next->k[at / HEADS] + at % HEADS * k_head_stride, d);
            }
          __global const T *row[SIDE];
          UNROLL for (int i = 0; i < SIDE; i++) row[i] = k_head + b->k[j + t + i];
          int x = 0;
          for (; x < block_d; x += 16) {
            float16 element[SIDE];
            UNROLL for (int i = 0; i < SIDE; i++) element[i] = load16(row[i], x);
            UNROLL for (int r = 0; r < FEW_ROWS; r++) {
              float16 query = head_queries[r * HEAD_VECTORS + x / 16];
              UNROLL for (int i = 0; i < SIDE; i++)
                acc[(t + i) * FEW_ROWS + r] = FMA(element[i], query, acc[(t + i) * FEW_ROWS + r]);
            }
          }
          for (; x < d; x += 16)
            UNROLL for (int i = 0; i < SIDE; i++) {
              float16 element = load_columns(row[i], 0, k_stride, x, b->missing >> (j + t + i) & 1 ? 0 : d);
              UNROLL for (int r = 0; r < FEW_ROWS; r++)
                acc[(t + i) * FEW_ROWS + r] = FMA(element, head_queries[r * HEAD_VECTORS + x / 16], acc[(t + i) * FEW_ROWS + r]);
            }
        }
        UNROLL for (int i = 0; i < 8; i++) acc[i] = add_neighbours(acc[2 * i], acc[2 * i + 1]);
        UNROLL for (int i = 0; i < 4; i++) acc[i] = add_neighbours(acc[2 * i], acc[2 * i + 1]);
        UNROLL for (int i = 0; i < 2; i++) acc[i] = add_fours(acc[2 * i], acc[2 * i + 1]);
        scores[j / KEYS] = add_halves(acc[0], acc[1]);
      }
      float16 top = most_of_rows(finish_scores(scores, first_key, block, KEYS, b->missing, &lanes[h], mask, mask_stride, softcap, flags));
      top = select(most[h], top, top > most[h]);
      float16 base = select(top, (float16)(0.0f), top == (float16)(-INFINITY));
      float16 rescale = exp_nonpositive(most[h] - base), block_sum = 0.0f;
      most[h] = top;
      for (int i = 0; i < (block + KEYS - 1) / KEYS; i++) {
        float16 p = exp_nonpositive(scores[i] - base);
        scores[i] = p;
        block_sum += p;
      }
      sum[h] = sum[h] * rescale + block_sum;
      const float *p = (const float *)scores;
      float16 *head_sums = sums + h * FEW_ROWS * HEAD_VECTORS;
      for (int c = 0; c < dv; c += 16 * COLUMNS) {
        float16 acc[FEW_ROWS][COLUMNS];
        UNROLL for (int r = 0; r < FEW_ROWS; r++) UNROLL for (int t = 0; t < COLUMNS; t++)
          acc[r][t] = head_sums[r * HEAD_VECTORS + c / 16 + t] * ((const float *)&rescale)[r];
        bool whole = c + 16 * COLUMNS <= block_dv;
        for (int j = 0; j < block; j += 4) {
          if (next->keys > 0)
            UNROLL for (int i = 0; i < 4; i++) {
              int at = h * KEY_BLOCK + j + i;
              fetch_columns(v + next->v[at / HEADS] + at % HEADS * v_head_stride + c, 16 * COLUMNS);
            }
          if (whole && j + 4 <= block)
            UNROLL for (int i = 0; i < 4; i++) {
              __global const T *row = v_head + b->v[j + i];
              float16 value[COLUMNS];
              UNROLL for (int t = 0; t < COLUMNS; t++) value[t] = load16(row, c + 16 * t);
              UNROLL for (int r = 0; r < FEW_ROWS; r++) UNROLL for (int t = 0; t < COLUMNS; t++)
                acc[r][t] = FMA((float16)(p[(j + i) * FEW_ROWS + r]), value[t], acc[r][t]);
            }
          else
            for (int i = j; i < min(j + 4, block); i++) {
              int columns = b->missing >> i & 1 ? 0 : dv;
              float16 value[COLUMNS];
              UNROLL for (int t = 0; t < COLUMNS; t++) value[t] = load_columns(v_head + b->v[i], 0, v_stride, c + 16 * t, columns);
              UNROLL for (int r = 0; r < FEW_ROWS; r++) UNROLL for (int t = 0; t < COLUMNS; t++)
                acc[r][t] = FMA((float16)(p[i * FEW_ROWS + r]), value[t], acc[r][t]);
            }
        }
        UNROLL for (int r = 0; r < FEW_ROWS; r++) UNROLL for (int t = 0; t < COLUMNS; t++)
          head_sums[r * HEAD_VECTORS + c / 16 + t] = acc[r][t];
      }
    }
  }

  for (int h = 0; h < head_count; h++) {
    kv_head = first_head + h;
    for (int row = 0; row < rows; row++) {
      float row_sum = 0.0f, row_most = ((float *)&most[h])[row];
      for (int t = 0; t < KEYS; t++)
        row_sum += ((float *)&sum[h])[t * FEW_ROWS + row];
      const float *from = (const float *)sums + (h * FEW_ROWS + row) * HEAD_MAX;
      int query = row / group, head = row + (kv_head - query) * group;
      if (s.splits > 1) {
        __global float *to = partial + (((long)(s.slot + w.split) * kv_heads + kv_head) * split_rows + row) * (dv + 2);
        for (int c = 0; c < dv; c++)
          to[c] = from[c];
        to[dv] = row_most;
        to[dv + 1] = row_sum;
        continue;
      }
      float2 last = finish_row(row_most, row_sum, flags & SINKS, flags & SINKS ? sinks[head * sinks_stride] : 0.0f);
      long to = row_of_query(s, query, head, o_batch_stride, o_head_stride, o_row_stride);
      for (int c = 0; c < dv; c++)
        store1(o, to + c * o_stride, from[c] * last.x);
      if (flags & LSE)
        lse[row_of_query(s, query, head, lse_batch_stride, lse_head_stride, lse_row_stride)] = last.y;
    }
  }
}
