// The experts of moe_ffn on CPUs: y_e = w_down[e] (silu(gate) * up), with gate and up the halves of w_gate_up[e] x.
//
// Routing leaves few rows to each expert, so what counts is to read the weights once and in place. Neither operand
// order of a usual product does: here the *rows* lie in the vector lanes and the weights, which stay unpacked
// [experts, n, k], are broadcast one by one. An expert's rows are gathered from x into panels of 32 while they are
// packed, so expert_scatter's rows are never written.
//
//   panel [k][32]   k = 0:  row 0 | row 1 | ... | row 31        sums of eight weight rows times 32 rows: 16 float16
//                   k = 1:  row 0 | row 1 | ... | row 31        lo[i] += w[i][k] * panel[k][ 0..16]
//                   ...                                         hi[i] += w[i][k] * panel[k][16..32]   i = 0..8
//
// moe_pack      x, gathered by source  -> panels [k][32], one k block of one expert a work-item
// moe_gate_up   panels                 -> h panels [inter][32]: 4 gate and 4 up rows a tile; silu(gate) * up has the
//                                         very layout that moe_down reads as its panels
// moe_down      h panels               -> rows [tokens * topk, hidden]; f32, turned back to rows
//
// Panels of expert e begin at panel (first row of e) / 32 + e, which leaves room for its last, partly filled one.
// A panel with at most 16 rows works on its lower half only. An expert with at most DOT_ROWS rows is not packed: each
// row meets each weight row in a dot product along k, and its h rows are stored one after the other. With fewer
// (token, slot) pairs than experts a work-group is asked for each pair, and the first row of each expert answers, so
// that experts without tokens cost nothing.
//
// Weights in f16 or bf16 are widened K_CHUNK at a time into private memory, once for each panel.
//
// Constants (the planner's)
//   X_DTYPE      0 f32, 1 f16, 2 bf16: of x and of the weights
// Tunables
//   DOT_ROWS     the most rows of an expert that are multiplied as dot products
//   WEIGHT_ROWS  weight rows (of gate; of the output in moe_down) a work-item takes, a multiple of 8
//   K_CHUNK      k that are widened at once
//
// Measured: README.md.

#ifndef X_DTYPE
#define X_DTYPE 0
#endif
#ifndef DOT_ROWS
#define DOT_ROWS 4
#endif
#ifndef WEIGHT_ROWS
#define WEIGHT_ROWS 16
#endif
#ifndef K_CHUNK
#define K_CHUNK 512
#endif

#define PANEL_ROWS 32
#define PACK_K 64

#if X_DTYPE == 0
typedef float x_t;
#elif X_DTYPE == 1
typedef half x_t;
#else
typedef ushort x_t;
#endif

inline float x_load(__global const x_t* x, ulong i)
{
#if X_DTYPE == 0
  return x[i];
#elif X_DTYPE == 1
  return vload_half(i, x);
#else
  return as_float((uint)x[i] << 16);
#endif
}

inline float8 x_load8(__global const x_t* x)
{
#if X_DTYPE == 0
  return vload8(0, x);
#elif X_DTYPE == 1
  return vload_half8(0, x);
#else
  return as_float8(convert_uint8(vload8(0, x)) << 16);
#endif
}

inline float16 x_load16(__global const x_t* x)
{
#if X_DTYPE == 0
  return vload16(0, x);
#elif X_DTYPE == 1
  return vload_half16(0, x);
#else
  return as_float16(convert_uint16(vload16(0, x)) << 16);
#endif
}

// Lane by lane, in halves: oclgrind 21.10 takes the halves of a vector for uninitialised.
inline float sum_lanes(float16 v)
{
  float lanes[16];
  vstore16(v, 0, lanes);
  for (uint width = 8; width > 0; width /= 2)
    for (uint i = 0; i < width; i++) lanes[i] += lanes[i + width];
  return lanes[0];
}

inline float silu(float v) { return v / (1.0f + exp(-v)); }
inline float16 silu16(float16 v) { return v / (1.0f + exp(-v)); }

// Eight elements, `pitch` apart. A transpose by vector shuffles is no faster, and oclgrind 21.10 does not survive it.
inline float8 column8(const float* v, uint pitch)
{
  return (float8)(v[0], v[pitch], v[2 * pitch], v[3 * pitch], v[4 * pitch], v[5 * pitch], v[6 * pitch], v[7 * pitch]);
}

// Where the panels of an expert begin, for panels of `width` elements a row.
inline ulong panels_of(uint first_row, uint expert, uint width)
{
  return (ulong)(first_row / PANEL_ROWS + expert) * PANEL_ROWS * width;
}

// The expert a work-group works on, or -1: its number, or with few (token, slot) pairs the expert that begins at row
// `group`.
inline int expert_of_group(uint group, uint pairs, uint topk, uint experts, __global const int* topk_ids,
                           ulong ids_stride, __global const int* expert_offsets, __global const int* source)
{
  if (pairs >= experts) return group;
  const int i = source[group];
  if (i < 0) return -1;
  const uint token = (uint)i / topk, slot = (uint)i - token * topk; // a % would be frozen, which oclgrind 21.10 lacks
  const int expert = topk_ids[token * ids_stride + slot];
  return expert_offsets[expert] == (int)group ? expert : -1;
}

__kernel __attribute__((reqd_work_group_size(1, 1, 1)))
void moe_pack(__global const x_t* x, ulong x_offset, __global const int* source, ulong source_offset,
              __global const int* expert_offsets, ulong expert_offsets_offset, __global float* panels,
              ulong panels_offset, uint topk, uint hidden, ulong token_stride, ulong column_stride)
{
  const uint expert = get_group_id(1), begin = get_group_id(0) * PACK_K, end = min(hidden, begin + PACK_K);
  expert_offsets += expert_offsets_offset;
  source += source_offset;
  x += x_offset;
  const uint first = expert_offsets[expert], last = expert_offsets[expert + 1];
  if (last - first <= DOT_ROWS) return;
  panels += panels_offset + panels_of(first, expert, hidden);
  for (uint p = first; p < last; p += PANEL_ROWS, panels += (ulong)PANEL_ROWS * hidden) {
    const uint lanes = last - p > 16 ? 32 : 16; // those past the last row repeat it
    for (uint r = 0; r < lanes; r += 8) {
      __global const x_t* from[8];
      for (uint i = 0; i < 8; i++) from[i] = x + source[min(p + r + i, last - 1)] / topk * token_stride;
      uint k = begin;
      if (column_stride == 1)
        for (; k + 8 <= end; k += 8) {
          float block[64];
          for (uint i = 0; i < 8; i++) vstore8(x_load8(from[i] + k), i, block);
          for (uint i = 0; i < 8; i++) vstore8(column8(block + i, 8), 0, panels + (k + i) * PANEL_ROWS + r);
        }
      for (; k < end; k++)
        for (uint i = 0; i < 8; i++) panels[k * PANEL_ROWS + r + i] = x_load(from[i], k * column_stride);
    }
  }
}

#define EACH_WEIGHT_ROW(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7)
#define SUM_ZERO(i) float16 lo##i = 0.0f, hi##i = 0.0f;
#define SUM_STEP_HALF(i) lo##i = fma((float16)(w##i[k]), a_lo, lo##i);
#define SUM_STEP(i) { const float16 w = w##i[k]; lo##i = fma(w, a_lo, lo##i); hi##i = fma(w, a_hi, hi##i); }
#define SUM_STORE(i) vstore16(lo##i, 2 * i, sums); vstore16(hi##i, 2 * i + 1, sums);
#if X_DTYPE == 0
#define WEIGHT_ROW(i) __global const float* w##i = weights[i];
#else
#define WEIGHT_ROW(i) const float* w##i = wide[i];
#endif

// sums [8][32] = weights [8] times the panel's rows, the upper sixteen of them if `upper`.
inline void multiply_panel(__global const float* panel, __global const x_t* const* weights, uint width, bool upper,
                           float* sums)
{
  EACH_WEIGHT_ROW(SUM_ZERO)
#if X_DTYPE == 0
  const uint count = width;
#else
  float wide[8][K_CHUNK];
  for (uint k0 = 0; k0 < width; k0 += K_CHUNK) {
    const uint count = min((uint)K_CHUNK, width - k0);
    for (uint i = 0; i < 8; i++) {
      uint k = 0;
      for (; k + 16 <= count; k += 16) vstore16(x_load16(weights[i] + k0 + k), 0, wide[i] + k);
      for (; k < count; k++) wide[i][k] = x_load(weights[i], k0 + k);
    }
#endif
    EACH_WEIGHT_ROW(WEIGHT_ROW)
    if (upper) {
      for (uint k = 0; k < count; k++, panel += PANEL_ROWS) {
        const float16 a_lo = vload16(0, panel), a_hi = vload16(1, panel);
        EACH_WEIGHT_ROW(SUM_STEP)
      }
    } else {
      for (uint k = 0; k < count; k++, panel += PANEL_ROWS) {
        const float16 a_lo = vload16(0, panel);
        EACH_WEIGHT_ROW(SUM_STEP_HALF)
      }
    }
#if X_DTYPE != 0
  }
#endif
  EACH_WEIGHT_ROW(SUM_STORE)
}

// DOT(name, type of the row, its two loads): the products of a row with four weight rows.
#define DOT(NAME, ROW_T, LOAD16, LOAD, STRIDE)                                                                         \
  inline float4 NAME(__global const ROW_T* row, ulong stride, __global const x_t* const* weights, uint width)         \
  {                                                                                                                    \
    float16 s0 = 0.0f, s1 = 0.0f, s2 = 0.0f, s3 = 0.0f;                                                                \
    uint k = 0;                                                                                                        \
    if (STRIDE == 1)                                                                                                   \
      for (; k + 16 <= width; k += 16) {                                                                               \
        const float16 v = LOAD16(row + k);                                                                             \
        s0 = fma(v, x_load16(weights[0] + k), s0);                                                                     \
        s1 = fma(v, x_load16(weights[1] + k), s1);                                                                     \
        s2 = fma(v, x_load16(weights[2] + k), s2);                                                                     \
        s3 = fma(v, x_load16(weights[3] + k), s3);                                                                     \
      }                                                                                                                \
    float4 sum = (float4)(sum_lanes(s0), sum_lanes(s1), sum_lanes(s2), sum_lanes(s3));                                 \
    for (; k < width; k++)                                                                                             \
      sum = fma((float4)(LOAD(row, k * STRIDE)), (float4)(x_load(weights[0], k), x_load(weights[1], k),                \
                x_load(weights[2], k), x_load(weights[3], k)), sum);                                                   \
    return sum;                                                                                                        \
  }
#define FLOAT_LOAD16(p) vload16(0, p)
#define FLOAT_LOAD(p, i) (p)[i]
DOT(dot_token, x_t, x_load16, x_load, stride)
DOT(dot_h, float, FLOAT_LOAD16, FLOAT_LOAD, 1)

__kernel __attribute__((reqd_work_group_size(1, 1, 1)))
void moe_gate_up(__global const float* panels, ulong panels_offset, __global const x_t* x, ulong x_offset,
                 __global const x_t* weights, ulong weights_offset, __global const int* topk_ids, ulong topk_ids_offset,
                 __global const int* expert_offsets, ulong expert_offsets_offset, __global const int* source,
                 ulong source_offset, __global float* h, ulong h_offset, uint pairs, uint topk, uint experts,
                 uint hidden, uint inter, ulong token_stride, ulong column_stride, ulong ids_stride,
                 ulong expert_stride, ulong weight_stride)
{
  expert_offsets += expert_offsets_offset;
  source += source_offset;
  x += x_offset;
  const int expert = expert_of_group(get_group_id(1), pairs, topk, experts, topk_ids + topk_ids_offset, ids_stride,
                                     expert_offsets, source);
  if (expert < 0) return;
  const uint first = expert_offsets[expert], last = expert_offsets[expert + 1];
  if (first == last) return;
  const uint begin = get_group_id(0) * WEIGHT_ROWS, end = min(inter, begin + WEIGHT_ROWS);
  __global const x_t* gate = weights + weights_offset + expert * expert_stride;
  __global const x_t* up = gate + inter * weight_stride;
  h += h_offset + panels_of(first, expert, inter);

  if (last - first <= DOT_ROWS) {
    for (uint j = begin; j < end; j += 2) {
      const uint next = min(j + 1, inter - 1);
      __global const x_t* pair[4] = {gate + j * weight_stride, up + j * weight_stride, gate + next * weight_stride,
                                     up + next * weight_stride};
      for (uint r = first; r < last; r++) {
        const float4 d = dot_token(x + source[r] / topk * token_stride, column_stride, pair, hidden);
        __global float* to = h + (ulong)(r - first) * inter;
        to[j] = silu(d.s0) * d.s1;
        if (next > j) to[next] = silu(d.s2) * d.s3;
      }
    }
    return;
  }

  panels += panels_offset + panels_of(first, expert, hidden);
  for (uint p = first; p < last; p += PANEL_ROWS) {
    const bool upper = last - p > 16;
    for (uint j = begin; j < end; j += 4) {
      __global const x_t* tile[8];
      for (uint i = 0; i < 4; i++) {
        const uint row = min(j + i, inter - 1); // the tile's rows past the last repeat it and are not stored
        tile[i] = gate + row * weight_stride;
        tile[4 + i] = up + row * weight_stride;
      }
      float s[8 * PANEL_ROWS];
      multiply_panel(panels, tile, hidden, upper, s);
      for (uint i = 0; i < min(4u, inter - j); i++) {
        __global float* to = h + (j + i) * PANEL_ROWS;
        vstore16(silu16(vload16(2 * i, s)) * vload16(2 * i + 8, s), 0, to);
        if (upper) vstore16(silu16(vload16(2 * i + 1, s)) * vload16(2 * i + 9, s), 1, to);
      }
    }
    panels += (ulong)PANEL_ROWS * hidden;
    h += (ulong)PANEL_ROWS * inter;
  }
}

// The first `live` of eight elements, or all if there are more.
inline void store_part(float8 v, uint live, __global float* to)
{
  if (live >= 8) {
    vstore8(v, 0, to);
    return;
  }
  float elements[8];
  vstore8(v, 0, elements);
  for (uint i = 0; i < live; i++) to[i] = elements[i];
}

__kernel __attribute__((reqd_work_group_size(1, 1, 1)))
void moe_down(__global const float* h, ulong h_offset, __global const x_t* weights, ulong weights_offset,
              __global const int* topk_ids, ulong topk_ids_offset, __global const int* expert_offsets,
              ulong expert_offsets_offset, __global const int* source, ulong source_offset, __global float* rows,
              ulong rows_offset, uint pairs, uint topk, uint experts, uint hidden, uint inter, ulong ids_stride,
              ulong expert_stride, ulong weight_stride)
{
  expert_offsets += expert_offsets_offset;
  const int expert = expert_of_group(get_group_id(1), pairs, topk, experts, topk_ids + topk_ids_offset, ids_stride,
                                     expert_offsets, source + source_offset);
  if (expert < 0) return;
  const uint first = expert_offsets[expert], last = expert_offsets[expert + 1];
  if (first == last) return;
  const uint begin = get_group_id(0) * WEIGHT_ROWS, end = min(hidden, begin + WEIGHT_ROWS);
  weights += weights_offset + expert * expert_stride;
  h += h_offset + panels_of(first, expert, inter);
  rows += rows_offset + (ulong)first * hidden;

  if (last - first <= DOT_ROWS) {
    for (uint j = begin; j < end; j += 4) {
      __global const x_t* tile[4];
      for (uint i = 0; i < 4; i++) tile[i] = weights + min(j + i, hidden - 1) * weight_stride;
      for (uint r = 0; r < last - first; r++) {
        const float4 d = dot_h(h + (ulong)r * inter, 1, tile, inter);
        store_part((float8)(d, d), min(4u, hidden - j), rows + (ulong)r * hidden + j);
      }
    }
    return;
  }

  for (uint p = first; p < last; p += PANEL_ROWS) {
    const uint live = min((uint)PANEL_ROWS, last - p);
    for (uint j = begin; j < end; j += 8) {
      __global const x_t* tile[8];
      for (uint i = 0; i < 8; i++) tile[i] = weights + min(j + i, hidden - 1) * weight_stride;
      float s[8 * PANEL_ROWS];
      multiply_panel(h, tile, inter, live > 16, s);
      for (uint r = 0; r < live; r++) {
        const float8 v = column8(s + r, PANEL_ROWS);
        store_part(v, hidden - j, rows + (ulong)r * hidden + j);
      }
    }
    h += (ulong)PANEL_ROWS * inter;
    rows += (ulong)PANEL_ROWS * hidden;
  }
}
