// Scaled dot-product attention, o = softmax(softcap(scale * q k^T) + bias) v, in one pass over the keys (online softmax:
// Milakov and Gimelshein 2018; the blocking of FlashAttention, Dao et al. 2022). This file holds what the kernels share: operands, the
// division of the work, scores and the last step. A kernel's file is appended to it before compiling:
//
//   attention_prefill.cl  many rows, few fat work-items: a CPU
//   attention_decode.cl   at most 8 rows against long keys, few fat work-items: a CPU
//   attention_tiled.cl    many small work-items and local memory: a GPU
//   attention_merge.cl    joins the splits of the other three
//
// Rows. The query heads that share a key head are done together, so that a key is read once for all of them. What the kernels call a row
// is a (query, head) pair of one sequence and one key head:
//
//   row = query * group + head_in_group          group = heads / kv_heads
//
//                    keys of the sequence, in splits of SPLIT_KEYS
//            +-----------------+-----------------+--------+
//   rows     |  work 0         |  work 1         | work 2 |   <- tile 0 (ROWS rows)
//   of one   +-----------------+-----------------+--------+
//   key head |  work 3         |  work 4         | work 5 |   <- tile 1
//            +-----------------+-----------------+--------+
//
// Work ids count through the sequences in order; a sequence has tiles * splits of them. Its keys are split only if it has at most
// split_rows rows; a split ends at a multiple of SPLIT_KEYS, whatever the batch holds, so that a row's result never depends on its
// neighbours. A split row leaves its unnormalised sum and its (maximum, sum of exponentials) in `partial`, for attention_merge:
//
//   partial[slot][key head][row][0..dv] sum, [dv] maximum, [dv + 1] sum of exponentials
//
// Tunables (-D):
//   LAYOUT      0 dense [batch, heads, rows, d] by strides, 1 varlen (cu_q, cu_kv), 2 paged (cu_q, block_table, kv_lens)
//   DTYPE       of q, k, v and o: 0 f32, 1 f16, 2 bf16
//   HEAD_MAX    bound of d and dv, a multiple of 16: sizes private and local memory
//   SPLIT_KEYS  keys in a split, a multiple of 64
//   UNIT        1 if the innermost stride of k and v is 1 (vector loads)

#ifndef LAYOUT
#define LAYOUT 0
#endif
#ifndef DTYPE
#define DTYPE 0
#endif
#ifndef HEAD_MAX
#define HEAD_MAX 128
#endif
#ifndef SPLIT_KEYS
#define SPLIT_KEYS 512
#endif
#ifndef UNIT
#define UNIT 1
#endif

// Flags, a scalar argument.
#define CAUSAL 1
#define SOFTCAP 2
#define MASK 4
#define ALIBI 8
#define SINKS 16
#define LSE 32
#define KV_LENS 64

// Codes left in the status word when the device's own data is out of range.
#define STATUS_LENGTH 1
#define STATUS_BLOCK 2

#define FMA fma
#define UNROLL _Pragma("unroll")

#if DTYPE == 0
typedef float T;
#else
typedef ushort T;
#endif

float load1(__global const T *x, long i) {
#if DTYPE == 0
  return x[i];
#elif DTYPE == 1
  return vload_half(i, (__global const half *)x);
#else
  return as_float((uint)x[i] << 16);
#endif
}

float16 load16(__global const T *x, long i) {
#if DTYPE == 0
  return vload16(0, x + i);
#elif DTYPE == 1
  return vload_half16(0, (__global const half *)(x + i));
#else
  return as_float16(convert_uint16(vload16(0, x + i)) << 16);
#endif
}

void store1(__global T *x, long i, float value) {
#if DTYPE == 0
  x[i] = value;
#elif DTYPE == 1
  vstore_half_rte(value, i, (__global half *)x);
#else
  uint bits = as_uint(value);
  uint nan = (bits & 0x7fffffffu) > 0x7f800000u;
  x[i] = (ushort)((nan ? (bits | 0x400000u) : bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
#endif
}

// 16 elements of a row from column c on; those at or past `columns` are zero and not read.
float16 load_columns(__global const T *x, long i, long stride, int c, int columns) {
#if UNIT
  if (c + 16 <= columns)
    return load16(x, i + c);
#endif
  float16 value = 0.0f;
  for (int lane = 0; lane < 16 && c + lane < columns; lane++)
    ((float *)&value)[lane] = load1(x, i + (c + lane) * stride);
  return value;
}

// What every kernel of this op takes. Lengths are in rows, strides in elements.
#define OPERANDS                                                                                                                          \
  __global const T *q, ulong q_offset, __global const T *k, ulong k_offset, __global const T *v, ulong v_offset,                          \
      __global const float *mask, ulong mask_offset, __global const int *kv_lens, ulong kv_lens_offset, __global const int *cu_q,         \
      ulong cu_q_offset, __global const int *cu_kv, ulong cu_kv_offset, __global const int *block_table, ulong block_table_offset,        \
      __global const float *sinks, ulong sinks_offset, __global const float *alibi_slopes, ulong alibi_slopes_offset, __global T *o,      \
      ulong o_offset, __global float *lse, ulong lse_offset, __global float *partial, ulong partial_offset, __global uint *status,        \
      ulong status_offset, int sequences, int heads, int kv_heads, int q_len, int kv_len, int d, int dv, long q_batch_stride,             \
      long q_head_stride, long q_row_stride, long q_stride, long k_batch_stride, long k_head_stride, long k_row_stride, long k_stride,    \
      long v_batch_stride, long v_head_stride, long v_row_stride, long v_stride, long o_batch_stride, long o_head_stride,                 \
      long o_row_stride, long o_stride, long lse_batch_stride, long lse_head_stride, long lse_row_stride, long mask_batch_stride,         \
      long mask_head_stride, long mask_row_stride, long mask_stride, int blocks, int block_size, long block_table_stride, \
      long block_table_column_stride, long kv_lens_stride, long cu_q_stride, long cu_kv_stride, long sinks_stride, \
      long alibi_slopes_stride, int few_rows, int split_rows, int slots, float scale, float softcap, int window, int flags

#define APPLY_OFFSETS                                                                                                                     \
  q += q_offset; k += k_offset; v += v_offset; mask += mask_offset; kv_lens += kv_lens_offset; cu_q += cu_q_offset;                       \
  cu_kv += cu_kv_offset; block_table += block_table_offset; sinks += sinks_offset; alibi_slopes += alibi_slopes_offset;                   \
  o += o_offset; lse += lse_offset; partial += partial_offset; status += status_offset

// Where the lengths of the sequences are found, and what divides the work.
struct lengths {
  __global const int *kv_lens, *cu_q, *cu_kv;
  __global uint *status;
  long kv_lens_stride, cu_q_stride, cu_kv_stride;
  int sequences, q_len, kv_len, group, split_rows, slots, flags;
};

#define LENGTHS                                                                                                                            \
  {kv_lens, cu_q,   cu_kv,            status,     kv_lens_stride, cu_q_stride, cu_kv_stride, sequences,                                    \
   q_len,   kv_len, heads / kv_heads, split_rows, slots,          flags}

// One sequence, its lengths held inside the operands whatever the device's data says.
struct sequence {
  int index;
  int first_query;
  int queries;
  int first_key;
  int keys;
  int tiles;  // blocks of rows
  int splits; // blocks of keys
  int slot;   // of the first split in `partial`
};

// A range of cu_seqlens: its begin and length.
int2 range_of(__global const int *cu, long stride, int i, int end, __global uint *status) {
  int from = cu[i * stride], to = cu[(i + 1) * stride];
  int first = clamp(from, 0, end), last = clamp(to, first, end);
  if (first != from || last != to)
    atomic_or(status, STATUS_LENGTH);
  return (int2)(first, last - first);
}

int splits_of(int rows, int keys, int split_rows) {
  return rows <= split_rows ? max(1, (keys + SPLIT_KEYS - 1) / SPLIT_KEYS) : 1;
}

struct sequence sequence_at(int i, int first_slot, int tile_rows, const struct lengths *l) {
  struct sequence s = {i, 0, l->q_len, 0, l->kv_len, 0, 0, first_slot};
#if LAYOUT != 0
  int2 queries = range_of(l->cu_q, l->cu_q_stride, i, l->q_len, l->status);
  s.first_query = queries.x;
  s.queries = queries.y;
#endif
#if LAYOUT == 1
  int2 keys = range_of(l->cu_kv, l->cu_kv_stride, i, l->kv_len, l->status);
  s.first_key = keys.x;
  s.keys = keys.y;
#endif
  if (l->flags & KV_LENS) {
    int keys = l->kv_lens[i * l->kv_lens_stride];
    s.keys = clamp(keys, 0, l->kv_len);
    if (s.keys != keys)
      atomic_or(l->status, STATUS_LENGTH);
  }
  int rows = s.queries * l->group;
  s.tiles = (rows + tile_rows - 1) / tile_rows;
  s.splits = splits_of(rows, s.keys, l->split_rows);
#if LAYOUT == 0
  s.slot = i * splits_of(rows, l->kv_len, l->split_rows);
#else
  if (s.splits > l->slots - first_slot)
    s.splits = 1;
#endif
  return s;
}

// The place of one work-group.
struct work {
  struct sequence s;
  int tile;
  int split;
};

// Finds a work id's place; false if there is none. A dense batch has ids for kv_len keys, those past kv_lens are idle. (Remainders are
// made by mad_sat: a quotient beside a remainder compiles to an instruction that oclgrind does not know.)
bool find_work(int id, struct work *w, int tile_rows, const struct lengths *l) {
#if LAYOUT == 0
  int rows = l->q_len * l->group, tiles = (rows + tile_rows - 1) / tile_rows, splits = splits_of(rows, l->kv_len, l->split_rows);
  if (rows == 0)
    return false;
  int block = id / tiles, index = block / splits;
  if (index >= l->sequences)
    return false;
  w->s = sequence_at(index, 0, tile_rows, l);
  w->split = mad_sat(-index, splits, block);
  w->tile = mad_sat(-block, tiles, id);
  return w->split < w->s.splits;
#else
  int slot = 0;
  for (int i = 0; i < l->sequences; i++) {
    w->s = sequence_at(i, slot, tile_rows, l);
    int works = w->s.tiles * w->s.splits;
    if (id < works) {
      w->split = id / w->s.tiles;
      w->tile = mad_sat(-w->split, w->s.tiles, id);
      return true;
    }
    id -= works;
    if (w->s.splits > 1)
      slot += w->s.splits;
  }
  return false;
#endif
}

// Where the keys or the values of a sequence lie.
struct rows {
  __global const int *block_table; // of the sequence
  __global uint *status;
  long batch_stride, row_stride, block_table_stride;
  long first; // offset of key 0 of key head `kv_head`
  int blocks, block_size;
};

struct rows rows_of(struct sequence s, int kv_head, long batch_stride, long head_stride, long row_stride, __global const int *block_table,
                    long block_table_stride, long block_table_column_stride, int blocks, int block_size, __global uint *status) {
  struct rows r = {block_table, status, batch_stride, row_stride, block_table_column_stride, kv_head * head_stride, blocks, block_size};
#if LAYOUT == 2
  r.block_table += s.index * block_table_stride;
#else
  r.first += (LAYOUT == 0 ? s.index * batch_stride : 0) + s.first_key * row_stride;
#endif
  return r;
}

#define K_ROWS                                                                                                                             \
  rows_of(s, kv_head, k_batch_stride, k_head_stride, k_row_stride, block_table, block_table_stride, block_table_column_stride, blocks,     \
          block_size, status)
#define V_ROWS                                                                                                                             \
  rows_of(s, kv_head, v_batch_stride, v_head_stride, v_row_stride, block_table, block_table_stride, block_table_column_stride, blocks,     \
          block_size, status)

// The offset of a key's row; negative if the block table names no block.
long row_of(const struct rows *r, int key) {
#if LAYOUT == 2
  int page = key / r->block_size, block = r->block_table[page * r->block_table_stride];
  if (block < 0 || block >= r->blocks) {
    atomic_or(r->status, STATUS_BLOCK);
    return -1;
  }
  return r->first + key * r->row_stride + (block * r->batch_stride - page * (r->block_size * r->row_stride));
#else
  return r->first + key * r->row_stride;
#endif
}

// Offset of a query's row in an operand that is addressed as q is.
long row_of_query(struct sequence s, int query, int head, long batch_stride, long head_stride, long row_stride) {
  return (LAYOUT == 0 ? s.index * batch_stride : 0) + (s.first_query + query) * row_stride + head * head_stride;
}

// exp of x <= 0 within 2 + |x| units in the last place; 0 below the least normal result. NaN stays NaN.
float16 exp_nonpositive(float16 x) {
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
  float16 t = FMA(x, (float16)(1.44269504f), (float16)(12582912.0f));
  float16 n = t - 12582912.0f;
  float16 f = FMA(n, (float16)(-0.69314718056f), x);
  float16 y = (float16)(1.9875691500e-4f);
  y = FMA(y, f, (float16)(1.3981999507e-3f));
  y = FMA(y, f, (float16)(8.3334519073e-3f));
  y = FMA(y, f, (float16)(4.1665795894e-2f));
  y = FMA(y, f, (float16)(1.6666665459e-1f));
  y = FMA(y, f, (float16)(5.0000001201e-1f));
  y = FMA(y, f * f, f + 1.0f);
  float16 power = as_float16((as_int16(t) << 23) + 0x3f800000);
  return select(y * power, (float16)(0.0f), x < -87.33f);
}

float16 tanh_by_exp(float16 x) {
  float16 t = exp_nonpositive(-2.0f * fabs(x));
  return copysign((1.0f - t) / (1.0f + t), x);
}

// How far a row sees: keys first..last, both included.
int2 sight_of(int query, struct sequence s, int window, int flags) {
  int position = s.keys - s.queries + query;
  int last = flags & CAUSAL ? min(position, s.keys - 1) : s.keys - 1;
  return (int2)(window > 0 ? max(position - window + 1, 0) : 0, last);
}

// 16 lanes of scores: each has its row, and its key relative to the first key of the vector.
struct lanes {
  int16 first;     // the keys that the lane's row sees
  int16 last;
  int16 position;  // of the query among the keys
  int16 key;
  float16 slope;
  int all_first;   // every lane sees all_first..all_last
  int all_last;
  bool one_mask;   // all lanes read the same mask element
  long mask[16];   // offset of the row's mask
};

// Lane `lane` holds row row_of(lane) and key lane / rows.
struct lanes lanes_of(struct sequence s, int first_row, int rows_per_vector, int rows, int group, int kv_head,
                      __global const float *alibi_slopes, long alibi_slopes_stride, long mask_batch_stride, long mask_head_stride,
                      long mask_row_stride, int window, int flags) {
  struct lanes l;
  l.all_first = 0;
  l.all_last = s.keys - 1;
  l.one_mask = rows_per_vector == 16;
  l.slope = 0.0f;
  for (int lane = 0; lane < 16; lane++) {
    int key = lane / rows_per_vector, row = min(first_row + lane - key * rows_per_vector, rows - 1);
    int query = row / group, head = row + (kv_head - query) * group;
    int2 sight = sight_of(query, s, window, flags);
    ((int *)&l.first)[lane] = sight.x;
    ((int *)&l.last)[lane] = sight.y;
    ((int *)&l.position)[lane] = s.keys - s.queries + query;
    ((int *)&l.key)[lane] = key;
    if (flags & ALIBI)
      ((float *)&l.slope)[lane] = alibi_slopes[head * alibi_slopes_stride];
    l.all_first = max(l.all_first, sight.x);
    l.all_last = min(l.all_last, sight.y);
    l.mask[lane] = s.index * mask_batch_stride + head * mask_head_stride + query * mask_row_stride;
    l.one_mask = l.one_mask && l.mask[lane] == l.mask[0];
  }
  return l;
}

// Turns products of keys first_key..first_key + keys into scores, -inf where a row does not see a key; returns each lane's maximum,
// -inf if it sees none. Bit j of `missing` says that key first_key + j is not there. A NaN score never becomes the maximum: it reaches the result through its exponential.
float16 finish_scores(float16 *scores, int first_key, int keys, int keys_per_vector, ulong missing, struct lanes *l,
                      __global const float *mask, long mask_stride, float softcap, int flags) {
  int vectors = (keys + keys_per_vector - 1) / keys_per_vector;
  if (flags & SOFTCAP)
    for (int i = 0; i < vectors; i++)
      scores[i] = softcap * tanh_by_exp(scores[i] * (1.0f / softcap));
  if (flags & ALIBI)
    for (int i = 0; i < vectors; i++)
      scores[i] += l->slope * convert_float16(l->key + (first_key + i * keys_per_vector) - l->position);
  if (flags & MASK) {
    // A mask of -inf hides a key even from a NaN query.
    if (l->one_mask)
      for (int i = 0; i < vectors; i++) {
        float bias = mask[l->mask[0] + (first_key + i) * mask_stride];
        scores[i] = bias == -INFINITY ? (float16)(-INFINITY) : scores[i] + bias;
      }
    else
      for (int lane = 0; lane < 16; lane++)
        for (int i = 0; i < vectors; i++) {
          int key = min(i * keys_per_vector + ((int *)&l->key)[lane], keys - 1);
          float bias = mask[l->mask[lane] + (first_key + key) * mask_stride];
          float *score = (float *)scores + i * 16 + lane;
          *score = bias == -INFINITY ? -INFINITY : *score + bias;
        }
  }
  if (first_key < l->all_first || first_key + vectors * keys_per_vector - 1 > l->all_last)
    for (int i = 0; i < vectors; i++) {
      int16 key = l->key + (first_key + i * keys_per_vector);
      scores[i] = select((float16)(-INFINITY), scores[i], key >= l->first && key <= l->last);
    }
  if (missing)
    for (int i = 0; i < vectors * 16; i++)
      if (missing >> (i / 16 * keys_per_vector + ((int *)&l->key)[i % 16]) & 1)
        ((float *)scores)[i] = -INFINITY;
  float16 most = -INFINITY;
  for (int i = 0; i < vectors; i++)
    most = select(most, scores[i], scores[i] > most);
  return most;
}

// What scales a row's sum, and its log-sum-exp, from its maximum, its sum of exponentials and its sink. A row that sees no key is zero.
float2 finish_row(float most, float sum, bool has_sink, float sink) {
  float top = has_sink && sink > most ? sink : most;
  if (top == -INFINITY && sum == 0.0f)
    return (float2)(0.0f, -INFINITY);
  float rescale = exp(most - top);
  sum = sum * rescale + (has_sink ? exp(sink - top) : 0.0f);
  return (float2)(rescale / sum, top + log(sum));
}
