/* What the GLSL kernels of attention share: arguments, the division of the work, scores and the last step. The algorithm, rows, works,
 * splits and `partial` are those of attention.cl; functions have its names.
 *
 * Specialization constants:
 *   LAYOUT      0 dense [batch, heads, rows, d] by strides, 1 varlen (cu_q, cu_kv), 2 paged (cu_q, block_table, kv_lens)
 *   DTYPE       of q, k, v and o: 0 f32, 1 f16, 2 bf16
 *   HEAD_MAX    bound of d and dv, a multiple of 64: sizes arrays
 *   SPLIT_KEYS  keys in a split
 */
#include "../elements.glsl"

layout(constant_id = 0) const uint LAYOUT = 0;
layout(constant_id = 1) const uint DTYPE = F32;
layout(constant_id = 2) const uint HEAD_MAX = 128;
layout(constant_id = 3) const int SPLIT_KEYS = 512;

/* flags */
#define CAUSAL 1
#define SOFTCAP 2
#define MASK 4
#define ALIBI 8
#define SINKS 16
#define LSE 32
#define KV_LENS 64

/* Codes left in the status word when the device's own data is out of range. */
#define STATUS_LENGTH 1
#define STATUS_BLOCK 2

#define INFINITY uintBitsToFloat(0x7f800000u)

/* Lengths are in rows, strides in elements. */
layout(buffer_reference, scalar, buffer_reference_align = 4) restrict readonly buffer Arguments
{
  uvec2 q, k, v, mask, kv_lens, cu_q, cu_kv, block_table, sinks, alibi_slopes, o, lse, partial, status;
  int sequences, heads, kv_heads, q_len, kv_len, d, dv;
  uvec2 q_batch_stride, q_head_stride, q_row_stride, q_stride;
  uvec2 k_batch_stride, k_head_stride, k_row_stride, k_stride;
  uvec2 v_batch_stride, v_head_stride, v_row_stride, v_stride;
  uvec2 o_batch_stride, o_head_stride, o_row_stride, o_stride;
  uvec2 lse_batch_stride, lse_head_stride, lse_row_stride;
  uvec2 mask_batch_stride, mask_head_stride, mask_row_stride, mask_stride;
  int blocks, block_size;
  uvec2 block_table_stride, block_table_column_stride, kv_lens_stride, cu_q_stride, cu_kv_stride, sinks_stride, alibi_slopes_stride;
  int few_rows, split_rows, slots;
  float scale, softcap;
  int window, flags;
};

layout(push_constant, scalar) uniform Push { Arguments arguments; };

/* One sequence, its lengths held inside the operands whatever the device's data says. */
struct Sequence {
  int index;
  int first_query;
  int queries;
  int first_key;
  int keys;
  int tiles;  /* blocks of rows */
  int splits; /* blocks of keys */
  int slot;   /* of the first split in `partial` */
};

/* A range of cu_seqlens: its begin and length. */
ivec2 range_of(uvec2 cu, uvec2 stride, int i, int end)
{
  int from = load_i32(element_at(cu, uint(i), stride, I32)), to = load_i32(element_at(cu, uint(i) + 1u, stride, I32));
  int first = clamp(from, 0, end), last = clamp(to, first, end);
  if (first != from || last != to) report(arguments.status, STATUS_LENGTH);
  return ivec2(first, last - first);
}

int splits_of(int rows, int keys) { return rows <= arguments.split_rows ? max(1, (keys + SPLIT_KEYS - 1) / SPLIT_KEYS) : 1; }

Sequence sequence_at(int i, int first_slot, int tile_rows)
{
  Sequence s = Sequence(i, 0, arguments.q_len, 0, arguments.kv_len, 0, 0, first_slot);
  if (LAYOUT != 0) {
    ivec2 queries = range_of(arguments.cu_q, arguments.cu_q_stride, i, arguments.q_len);
    s.first_query = queries.x;
    s.queries = queries.y;
  }
  if (LAYOUT == 1) {
    ivec2 keys = range_of(arguments.cu_kv, arguments.cu_kv_stride, i, arguments.kv_len);
    s.first_key = keys.x;
    s.keys = keys.y;
  }
  if ((arguments.flags & KV_LENS) != 0) {
    int keys = load_i32(element_at(arguments.kv_lens, uint(i), arguments.kv_lens_stride, I32));
    s.keys = clamp(keys, 0, arguments.kv_len);
    if (s.keys != keys) report(arguments.status, STATUS_LENGTH);
  }
  int rows = s.queries * (arguments.heads / arguments.kv_heads);
  s.tiles = (rows + tile_rows - 1) / tile_rows;
  s.splits = splits_of(rows, s.keys);
  if (LAYOUT == 0) s.slot = i * splits_of(rows, arguments.kv_len);
  else if (s.splits > arguments.slots - first_slot) s.splits = 1;
  return s;
}

/* The place of one work-group. */
struct Work {
  Sequence s;
  int tile;
  int split;
};

/* Finds a work id's place; false if there is none. A dense batch has ids for kv_len keys, those past kv_lens are idle. */
bool find_work(int id, int tile_rows, out Work w)
{
  w = Work(Sequence(0, 0, 0, 0, 0, 0, 0, 0), 0, 0);
  if (LAYOUT == 0) {
    int rows = arguments.q_len * (arguments.heads / arguments.kv_heads), tiles = max((rows + tile_rows - 1) / tile_rows, 1);
    int splits = splits_of(rows, arguments.kv_len), block = id / tiles, index = block / splits;
    bool found = rows > 0 && index < arguments.sequences;
    if (found) {
      w.s = sequence_at(index, 0, tile_rows);
      w.split = block - index * splits;
      w.tile = id - block * tiles;
    }
    return found && w.split < w.s.splits;
  }
  int slot = 0;
  bool found = false;
  for (int i = 0; i < arguments.sequences && !found; i++) {
    w.s = sequence_at(i, slot, tile_rows);
    int works = w.s.tiles * w.s.splits;
    if (id < works) {
      w.split = id / w.s.tiles;
      w.tile = id - w.split * w.s.tiles;
      found = true;
    }
    id -= works;
    if (w.s.splits > 1) slot += w.s.splits;
  }
  return found;
}

/* Where the keys or the values of a sequence lie. */
struct Rows {
  uvec2 first; /* address of key 0 of the key head */
  uvec2 batch_stride, row_stride;
  uvec2 block_table; /* of the sequence */
};

Rows rows_of(Sequence s, int kv_head, uvec2 address, uvec2 batch_stride, uvec2 head_stride, uvec2 row_stride)
{
  Rows r = Rows(element_at(address, uint(kv_head), head_stride, DTYPE), batch_stride, row_stride, uvec2(0));
  if (LAYOUT == 2) r.block_table = element_at(arguments.block_table, uint(s.index), arguments.block_table_stride, I32);
  if (LAYOUT == 1) r.first = element_at(r.first, uint(s.first_key), row_stride, DTYPE);
  if (LAYOUT == 0) r.first = element_at(r.first, uint(s.index), batch_stride, DTYPE);
  return r;
}

Rows key_rows(Sequence s, int kv_head)
{
  return rows_of(s, kv_head, arguments.k, arguments.k_batch_stride, arguments.k_head_stride, arguments.k_row_stride);
}

Rows value_rows(Sequence s, int kv_head)
{
  return rows_of(s, kv_head, arguments.v, arguments.v_batch_stride, arguments.v_head_stride, arguments.v_row_stride);
}

/* The address of a key's row; none (0) if the block table names no block. */
uvec2 row_of(Rows r, int key)
{
  if (LAYOUT != 2) return element_at(r.first, uint(key), r.row_stride, DTYPE);
  int page = key / arguments.block_size;
  int block = load_i32(element_at(r.block_table, uint(page), arguments.block_table_column_stride, I32));
  bool there = block >= 0 && block < arguments.blocks;
  if (!there) report(arguments.status, STATUS_BLOCK);
  uvec2 at = element_at(r.first, uint(block), r.batch_stride, DTYPE);
  return there ? element_at(at, uint(key - page * arguments.block_size), r.row_stride, DTYPE) : uvec2(0);
}

/* The address of a query's row in an operand that is addressed as q is. */
uvec2 row_of_query(Sequence s, int query, int head, uvec2 address, uvec2 batch_stride, uvec2 head_stride, uvec2 row_stride, const uint dtype)
{
  uvec2 at = element_at(address, uint(s.first_query + query), row_stride, dtype);
  if (LAYOUT == 0) at = element_at(at, uint(s.index), batch_stride, dtype);
  return element_at(at, uint(head), head_stride, dtype);
}

uvec2 q_row(Sequence s, int query, int head)
{
  return row_of_query(s, query, head, arguments.q, arguments.q_batch_stride, arguments.q_head_stride, arguments.q_row_stride, DTYPE);
}

uvec2 o_row(Sequence s, int query, int head)
{
  return row_of_query(s, query, head, arguments.o, arguments.o_batch_stride, arguments.o_head_stride, arguments.o_row_stride, DTYPE);
}

uvec2 lse_row(Sequence s, int query, int head)
{
  return row_of_query(s, query, head, arguments.lse, arguments.lse_batch_stride, arguments.lse_head_stride, arguments.lse_row_stride, F32);
}

uvec2 mask_row(Sequence s, int query, int head)
{
  uvec2 at = element_at(arguments.mask, uint(query), arguments.mask_row_stride, F32);
  at = element_at(at, uint(s.index), arguments.mask_batch_stride, F32);
  return element_at(at, uint(head), arguments.mask_head_stride, F32);
}

float of_head(uvec2 address, int head, uvec2 stride) { return load_1(element_at(address, uint(head), stride, F32), F32); }

/* The address of a split row's sum in `partial`. */
uvec2 partial_row(int slot, int kv_head, int row)
{
  uint index = (uint(slot) * uint(arguments.kv_heads) + uint(kv_head)) * uint(arguments.split_rows) + uint(row);
  return element_at(arguments.partial, index, uvec2(arguments.dv + 2, 0), F32);
}

/* How far a row sees: keys first..last, both included. */
ivec2 sight_of(int query, Sequence s, int window, int flags)
{
  int position = s.keys - s.queries + query;
  int last = (flags & CAUSAL) != 0 ? min(position, s.keys - 1) : s.keys - 1;
  return ivec2(window > 0 ? max(position - window + 1, 0) : 0, last);
}

/* A visible key's score from its product, scaled already. A mask of -inf hides a key even from a NaN query. */
float finish_score(float score, float bias, float slope, int distance, float softcap, int flags)
{
  if ((flags & SOFTCAP) != 0) score = softcap * tanh_of(score * (1.0 / softcap));
  if ((flags & ALIBI) != 0) score += slope * float(distance);
  if ((flags & MASK) != 0) score = bias == -INFINITY ? -INFINITY : score + bias;
  return score;
}

/* exp of x <= 0 within 2 + |x| units in the last place; 0 below the least normal result. NaN stays NaN. */
float exp_nonpositive(float x)
{
  /* Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits. */
  precise float t = x * 1.44269504 + 12582912.0;
  precise float n = t - 12582912.0;
  precise float f = x - n * 0.693359375;
  f = f + n * 2.12194440e-4;
  float p = ((((1.9875691500e-4 * f + 1.3981999507e-3) * f + 8.3334519073e-3) * f + 4.1665795894e-2) * f + 1.6666665459e-1) * f + 5.0000001201e-1;
  float y = p * (f * f) + f + 1.0;
  float power = uintBitsToFloat((floatBitsToUint(t) << 23) + 0x3f800000u);
  return x < -87.33 ? 0.0 : y * power;
}

/* What scales a row's sum, and its log-sum-exp, from its maximum, its sum of exponentials and its sink. A row that sees no key is zero. */
vec2 finish_row(float most, float sum, bool has_sink, float sink)
{
  float top = has_sink && sink > most ? sink : most;
  float rescale = exp_of(most - top);
  float total = sum * rescale + (has_sink ? exp_of(sink - top) : 0.0);
  bool nothing = top == -INFINITY && sum == 0.0;
  return nothing ? vec2(0.0, -INFINITY) : vec2(rescale / total, top + log_of(total));
}

/* Four elements of a row from column c on; those at or past `columns` are zero and not read. VECTOR says that rows begin at whole vectors,
 * lie side by side and have columns in whole vectors. */
vec4 columns_of(uvec2 row, uvec2 stride, int c, int columns, const bool vector)
{
  vec4 value = vec4(0.0);
  if (vector) {
    if (c < columns) value = load_4(element_at(row, uint(c), DTYPE), DTYPE);
  } else {
    [[unroll]] for (int i = 0; i < 4; i++)
      if (c + i < columns) value[i] = load_1(element_at(row, uint(c + i), stride, DTYPE), DTYPE);
  }
  return value;
}
