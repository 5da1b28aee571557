// Scaled dot-product attention, o = softmax(softcap(scale * q k^T) + bias) v, in one pass over the keys (online softmax:
// Milakov and Gimelshein 2018; the blocking of FlashAttention, Dao et al. 2022). This file holds what the kernels share: operands, the
// division of the work, and the last step. A kernel's file is appended to it before compiling:
//
//   attention_tiled.cu    tiles in shared memory on CUDA cores: every dtype, option and head size
//   attention_mma.cu      the products on matrix units (behind matrix.cu): f16, bf16, heads of up to 256 columns
//   attention_merge.cu    joins the splits of the others
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
//   HEAD_MAX    bound of d and dv, a multiple of 16: sizes registers
//   SPLIT_KEYS  keys in a split, a multiple of 64

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

// Flags, a scalar argument.
#define CAUSAL 1
#define SOFTCAP 2
#define MASK 4
#define ALIBI 8
#define SINKS 16
#define LSE 32
#define KV_LENS 64

// Codes left in the status word when the device's own data is out of range.
#define STATUS_LENGTH 1u
#define STATUS_BLOCK 2u

typedef unsigned int u32;
typedef unsigned short u16;
typedef long long i64;
typedef unsigned long long u64;

#if DTYPE == 0
typedef float T;
#else
typedef u16 T;
#endif

__device__ inline float infinity() { return __uint_as_float(0x7f800000u); }

__device__ inline float load1(const T* x, i64 i)
{
#if DTYPE == 0
  return x[i];
#elif DTYPE == 1
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x[i]));
  return value;
#else
  return __uint_as_float((u32)x[i] << 16);
#endif
}

// Rounds to nearest even; NaN stays NaN (its upper half alone could be an infinity).
__device__ inline void store1(T* x, i64 i, float value)
{
#if DTYPE == 0
  x[i] = value;
#elif DTYPE == 1
  u16 rounded;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(rounded) : "f"(value));
  x[i] = rounded;
#else
  const u32 bits = __float_as_uint(value);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  x[i] = (u16)((nan ? bits | 0x400000u : bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
#endif
}

// exp of x <= 0: 2^(x log2 e), whose argument is off by at most 1.5 |x| 2^-24 and whose approximation by 2^-22; 0 below the least
// normal result. NaN stays NaN.
__device__ inline float exp_nonpositive(float x)
{
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.44269504f));
  return y;
}

__device__ inline float tanh_by_exp(float x)
{
  const float t = exp_nonpositive(-2.0f * fabsf(x));
  return copysignf(__fdiv_rn(1.0f - t, 1.0f + t), x);
}

// What every kernel of this op takes. Lengths are in rows, strides in elements.
#define OPERANDS                                                                                                                       \
  const T *q, u64 q_offset, const T *k, u64 k_offset, const T *v, u64 v_offset, const float *mask, u64 mask_offset, const int *kv_lens, \
      u64 kv_lens_offset, const int *cu_q, u64 cu_q_offset, const int *cu_kv, u64 cu_kv_offset, const int *block_table,                \
      u64 block_table_offset, const float *sinks, u64 sinks_offset, const float *alibi_slopes, u64 alibi_slopes_offset, T *o,          \
      u64 o_offset, float *lse, u64 lse_offset, float *partial, u64 partial_offset, u32 *status, u64 status_offset, int sequences,     \
      int heads, int kv_heads, int q_len, int kv_len, int d, int dv, i64 q_batch_stride, i64 q_head_stride, i64 q_row_stride,          \
      i64 q_stride, i64 k_batch_stride, i64 k_head_stride, i64 k_row_stride, i64 k_stride, i64 v_batch_stride, i64 v_head_stride,      \
      i64 v_row_stride, i64 v_stride, i64 o_batch_stride, i64 o_head_stride, i64 o_row_stride, i64 o_stride, i64 lse_batch_stride,     \
      i64 lse_head_stride, i64 lse_row_stride, i64 mask_batch_stride, i64 mask_head_stride, i64 mask_row_stride, i64 mask_stride,      \
      int blocks, int block_size, i64 block_table_stride, i64 block_table_column_stride, i64 kv_lens_stride, i64 cu_q_stride,          \
      i64 cu_kv_stride, i64 sinks_stride, i64 alibi_slopes_stride, int few_rows, int split_rows, int slots, float scale,               \
      float softcap, int window, int flags

#define APPLY_OFFSETS                                                                                                 \
  q += q_offset; k += k_offset; v += v_offset; mask += mask_offset; kv_lens += kv_lens_offset; cu_q += cu_q_offset;   \
  cu_kv += cu_kv_offset; block_table += block_table_offset; sinks += sinks_offset; alibi_slopes += alibi_slopes_offset; \
  o += o_offset; lse += lse_offset; partial += partial_offset; status += status_offset

// Where the lengths of the sequences are found, and what divides the work.
struct Lengths {
  const int *kv_lens, *cu_q, *cu_kv;
  u32* status;
  i64 kv_lens_stride, cu_q_stride, cu_kv_stride;
  int sequences, q_len, kv_len, group, split_rows, slots, flags;
  int few_rows;  // sequences of at most so many rows are another launch's
};

#define LENGTHS                                                                                                                       \
  Lengths{kv_lens, cu_q, cu_kv, status, kv_lens_stride, cu_q_stride, cu_kv_stride, sequences, q_len, kv_len, heads / kv_heads, split_rows, \
          slots, flags, 0}

// One sequence, its lengths held inside the operands whatever the device's data says.
struct Sequence {
  int index;
  int first_query;
  int queries;
  int first_key;
  int keys;
  int tiles;   // blocks of rows
  int splits;  // blocks of keys
  int slot;    // of the first split in `partial`
};

struct Pair {
  int x, y;
};

// A range of cu_seqlens: its begin and length.
__device__ inline Pair range_of(const int* cu, i64 stride, int i, int end, u32* status)
{
  const int from = cu[i * stride], to = cu[(i + 1) * stride];
  const int first = min(max(from, 0), end), last = min(max(to, first), end);
  if (first != from || last != to) atomicOr(status, STATUS_LENGTH);
  return Pair{first, last - first};
}

__device__ inline int splits_of(int rows, int keys, int split_rows)
{
  return rows <= split_rows ? max(1, (keys + SPLIT_KEYS - 1) / SPLIT_KEYS) : 1;
}

// Sequence i by itself. Its slot is that of a batch without lengths, where every sequence has as many splits.
__device__ inline Sequence sequence_at(int i, int tile_rows, const Lengths& l)
{
  Sequence s = {i, 0, l.q_len, 0, l.kv_len, 0, 0, 0};
#if LAYOUT != 0
  const Pair queries = range_of(l.cu_q, l.cu_q_stride, i, l.q_len, l.status);
  s.first_query = queries.x;
  s.queries = queries.y;
#endif
#if LAYOUT == 1
  const Pair range = range_of(l.cu_kv, l.cu_kv_stride, i, l.kv_len, l.status);
  s.first_key = range.x;
  s.keys = range.y;
#endif
  if (l.flags & KV_LENS) {
    const int keys = l.kv_lens[i * l.kv_lens_stride];
    s.keys = min(max(keys, 0), l.kv_len);
    if (s.keys != keys) atomicOr(l.status, STATUS_LENGTH);
  }
  const int rows = s.queries * l.group;
  s.tiles = rows <= l.few_rows ? 0 : (rows + tile_rows - 1) / tile_rows;
  s.splits = splits_of(rows, s.keys, l.split_rows);
  s.slot = i * splits_of(rows, l.kv_len, l.split_rows);
  return s;
}

#if LAYOUT != 0
// The sum over the lanes up to this one.
__device__ inline int running_sum(int x)
{
  for (int step = 1; step < 32; step *= 2) {
    const int before = __shfl_up_sync(0xffffffffu, x, step);
    if (threadIdx.x % 32 >= step) x += before;
  }
  return x;
}

// Each lane's of 32 sequences: number `first` and those behind it, empty past the last. `slot` is the first one's, and becomes that of the next 32.
__device__ inline Sequence sequence_of_lane(int first, int& slot, int tile_rows, const Lengths& l)
{
  const int i = first + threadIdx.x % 32;
  Sequence s = {};
  if (i < l.sequences) s = sequence_at(i, tile_rows, l);
  const int wanted = s.splits > 1 ? s.splits : 0, through = slot + running_sum(wanted);
  s.slot = through - wanted;
  // lengths that the plan was not told of
  if (through > l.slots) s.splits = min(s.splits, 1);
  slot = __shfl_sync(0xffffffffu, through, 31);
  return s;
}

__device__ inline Sequence sequence_from(const Sequence& s, int lane)
{
  const u32 all = 0xffffffffu;
  return Sequence{__shfl_sync(all, s.index, lane),     __shfl_sync(all, s.first_query, lane), __shfl_sync(all, s.queries, lane),
                  __shfl_sync(all, s.first_key, lane), __shfl_sync(all, s.keys, lane),        __shfl_sync(all, s.tiles, lane),
                  __shfl_sync(all, s.splits, lane),    __shfl_sync(all, s.slot, lane)};
}
#endif

// The sequence of this number. All lanes of the warp call it, with the same arguments, as they do find_work: they take 32 sequences at a time.
__device__ inline Sequence find_sequence(int index, const Lengths& l)
{
#if LAYOUT == 0
  return sequence_at(index, 1, l);
#else
  int slot = 0, first = 0;
  Sequence s = sequence_of_lane(first, slot, 1, l);
  for (; index >= first + 32; s = sequence_of_lane(first, slot, 1, l)) first += 32;
  return sequence_from(s, index - first);
#endif
}

// The place of one block.
struct Work {
  Sequence s;
  int tile;
  int split;
};

// Finds a work id's place; false if there is none. A dense batch has ids for kv_len keys, those past kv_lens are idle.
__device__ inline bool find_work(int id, Work& w, int tile_rows, const Lengths& l)
{
#if LAYOUT == 0
  const int rows = l.q_len * l.group, tiles = (rows + tile_rows - 1) / tile_rows, splits = splits_of(rows, l.kv_len, l.split_rows);
  if (rows == 0) return false;
  const int block = id / tiles, index = block / splits;
  if (index >= l.sequences) return false;
  w.s = sequence_at(index, tile_rows, l);
  w.split = block % splits;
  w.tile = id % tiles;
  return w.split < w.s.splits;
#else
  int slot = 0;
  for (int first = 0; first < l.sequences; first += 32) {
    const Sequence s = sequence_of_lane(first, slot, tile_rows, l);
    const int works = s.tiles * s.splits, through = running_sum(works);
    const u32 reached = __ballot_sync(0xffffffffu, id < through);
    if (reached != 0) {
      const int owner = __ffs(reached) - 1;
      w.s = sequence_from(s, owner);
      id -= __shfl_sync(0xffffffffu, through - works, owner);
      w.split = id / w.s.tiles;
      w.tile = id % w.s.tiles;
      return true;
    }
    id -= __shfl_sync(0xffffffffu, through, 31);
  }
  return false;
#endif
}

// Where the keys or the values of a sequence lie.
struct Rows {
  const int* block_table;  // of the sequence
  u32* status;
  i64 batch_stride, row_stride, block_table_stride;
  i64 first;  // offset of key 0 of the key head
  int blocks, block_size;
};

__device__ inline Rows rows_of(const Sequence& s, int kv_head, i64 batch_stride, i64 head_stride, i64 row_stride, const int* block_table,
                               i64 block_table_stride, i64 block_table_column_stride, int blocks, int block_size, u32* status)
{
  Rows r = {block_table, status, batch_stride, row_stride, block_table_column_stride, kv_head * head_stride, blocks, block_size};
#if LAYOUT == 2
  r.block_table += s.index * block_table_stride;
#else
  r.first += (LAYOUT == 0 ? s.index * batch_stride : 0) + s.first_key * row_stride;
#endif
  return r;
}

#define ROWS_OF(x) \
  rows_of(s, kv_head, x##_batch_stride, x##_head_stride, x##_row_stride, block_table, block_table_stride, block_table_column_stride, blocks, block_size, status)

// The offset of a key's row; negative if the block table names no block.
__device__ inline i64 row_of(const Rows& r, int key)
{
#if LAYOUT == 2
  const int page = key / r.block_size, block = r.block_table[page * r.block_table_stride];
  if (block < 0 || block >= r.blocks) {
    atomicOr(r.status, STATUS_BLOCK);
    return -1;
  }
  return r.first + block * r.batch_stride + (key - page * r.block_size) * r.row_stride;
#else
  return r.first + key * r.row_stride;
#endif
}

// Offset of a query's row in an operand that is addressed as q is.
__device__ inline i64 row_of_query(const Sequence& s, int query, int head, i64 batch_stride, i64 head_stride, i64 row_stride)
{
  return (LAYOUT == 0 ? s.index * batch_stride : 0) + (s.first_query + query) * row_stride + head * head_stride;
}

// How far a row sees: keys first..last, both included.
__device__ inline Pair sight_of(int query, const Sequence& s, int window, int flags)
{
  const int position = s.keys - s.queries + query;
  return Pair{window > 0 ? max(position - window + 1, 0) : 0, flags & CAUSAL ? min(position, s.keys - 1) : s.keys - 1};
}

// What scales a row's sum, and its log-sum-exp, from its maximum, its sum of exponentials and its sink. A row that sees no key is zero.
struct Finish {
  float factor, lse;
};

__device__ inline Finish finish_row(float most, float sum, bool has_sink, float sink)
{
  const float top = has_sink && sink > most ? sink : most;
  if (top == -infinity() && sum == 0.0f) return Finish{0.0f, -infinity()};
  const float rescale = exp_nonpositive(most - top);
  const float all = sum * rescale + (has_sink ? exp_nonpositive(sink - top) : 0.0f);
  return Finish{__fdiv_rn(rescale, all), top + logf(all)};
}
