/* expert_copy_rows: token rows to their places in expert order. The same entry and arguments as in rows.cl.
 *
 *   x [tokens, hidden]        inverse [tokens, topk]          rows [tokens * topk, hidden]
 *     token 0  ------------->   3   0   ------------------>     row 3, row 0
 *     token 1  ------------->   2  -1   ------------------>     row 2
 *
 * Work-group (block, token) moves ROW_BLOCK columns of x[token] to the token's rows, and zeroes those of its share of the rows that
 * no id took. A few bytes go to all rows before the next are read. Rows are moved as bits, in the widest units that all addresses
 * allow: 8 bytes, 4, or an element. What an invocation moves at once is its share of the block, up to PAIRS_MOST pairs of words, of
 * which neighbours take neighbouring ones:
 *
 *   run of 8 invocations   | i0 i0 | i1 i1 | ... | i7 i7 |  i0 i0 | ... | i7 i7 |  ...      a chunk: 128 bytes PAIRS / 2 times
 *
 * so that 128 bytes are written together on GPUs, and a vector of lanes writes one piece of memory from its begin to its end on CPUs.
 *
 * Constant (the planner's), specialized
 *   X_DTYPE     0 f32, 1 f16, 2 bf16
 * Tunables
 *   ROW_GROUP   invocations that share a block of columns
 *   ROW_BLOCK   columns of a block
 *
 * Measured: README.md.
 */
#version 460
#extension GL_GOOGLE_include_directive : require
#include "../elements.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint ROW_GROUP = 64;
layout(constant_id = 1) const uint X_DTYPE = F32;
layout(constant_id = 2) const uint ROW_BLOCK = 2048;

layout(push_constant, scalar) uniform Arguments {
  uvec2 x;
  uvec2 inverse;
  uvec2 expert_offsets;
  uvec2 rows;
  uint tokens;
  uint topk;
  uint experts;
  uint hidden;
  uvec2 token_stride;
  uvec2 column_stride;
  uvec2 row_stride;
} arguments;

const uint BYTES = X_DTYPE == F32 ? 4 : 2;
const uint PAIRS_MOST = 16;
const uint RUN = 8; /* divides ROW_GROUP */
const uint SHARE = ROW_BLOCK * BYTES / 8 / ROW_GROUP;
const uint PAIRS = SHARE > PAIRS_MOST ? PAIRS_MOST : SHARE > 2 ? SHARE : 2;
const uint CHUNK = RUN * PAIRS * 8;

uint load_element(uvec2 at) { return X_DTYPE == F32 ? load_word(at) : load_16_bits(at); }

void store_element(uvec2 at, uint bits)
{
  if (X_DTYPE == F32) store_word(at, bits);
  else store_16_bits(at, bits);
}

void main()
{
  /* Copied, since some drivers read push constants anew wherever they are named. */
  const uvec2 rows = arguments.rows, row_bytes = bytes_of(arguments.row_stride, X_DTYPE);
  const uvec2 column_stride = arguments.column_stride;
  const uint token = gl_WorkGroupID.y, lane = gl_LocalInvocationID.x, topk = arguments.topk;
  const uint begin = gl_WorkGroupID.x * ROW_BLOCK, end = min(begin + ROW_BLOCK, arguments.hidden);
  const uvec2 x = element_at(arguments.x, token, arguments.token_stride, X_DTYPE);
  const uvec2 inverse = element_at(arguments.inverse, token, uvec2(topk, 0), I32);
  const uint used = load_word(element_at(arguments.expert_offsets, arguments.experts, I32));
  const uint unaligned_rows = rows.x | row_bytes.x, unaligned = unaligned_rows | x.x;
  const bool dense = is_stride(column_stride, 1);
  const uint end_byte = end * BYTES;

  /* Up to here the token's columns are moved, in bytes. */
  uint moved = begin * BYTES;
  if (dense && (unaligned & 7u) == 0) {
    const uint whole = moved + (end_byte - moved) / CHUNK * CHUNK;
    for (uint at = moved + lane / RUN * CHUNK; at < whole; at += ROW_GROUP / RUN * CHUNK) {
      const uint mine = at + lane % RUN * 16;
      const uvec2 from = address_add(x, mine);
      uvec2 v[PAIRS];
      [[unroll]] for (uint i = 0; i < PAIRS; i++) v[i] = load_word_pair(address_add(from, i / 2 * (RUN * 16) + i % 2 * 8));
      for (uint slot = 0; slot < topk; slot++) {
        const int row = load_i32(element_at(inverse, slot, I32));
        if (row >= 0) {
          const uvec2 to = address_add(address_add(rows, multiply_64(uint(row), row_bytes)), mine);
          [[unroll]] for (uint i = 0; i < PAIRS; i++) store_word_pair(address_add(to, i / 2 * (RUN * 16) + i % 2 * 8), v[i]);
        }
      }
    }
    moved = whole;
    const uint pairs_end = end_byte & ~7u;
    for (uint at = moved + lane * 8; at < pairs_end; at += ROW_GROUP * 8) {
      const uvec2 v = load_word_pair(address_add(x, at));
      for (uint slot = 0; slot < topk; slot++) {
        const int row = load_i32(element_at(inverse, slot, I32));
        if (row >= 0) store_word_pair(address_add(address_add(rows, multiply_64(uint(row), row_bytes)), at), v);
      }
    }
    moved = pairs_end;
  }
  if (dense && (unaligned & 3u) == 0) {
    const uint words_end = end_byte & ~3u;
    for (uint at = moved + lane * 4; at < words_end; at += ROW_GROUP * 4) {
      const uint v = load_word(address_add(x, at));
      for (uint slot = 0; slot < topk; slot++) {
        const int row = load_i32(element_at(inverse, slot, I32));
        if (row >= 0) store_word(address_add(address_add(rows, multiply_64(uint(row), row_bytes)), at), v);
      }
    }
    moved = words_end;
  }
  for (uint j = moved / BYTES + lane; j < end; j += ROW_GROUP) {
    const uint v = load_element(element_at(x, j, column_stride, X_DTYPE));
    for (uint slot = 0; slot < topk; slot++) {
      const int row = load_i32(element_at(inverse, slot, I32));
      if (row >= 0) store_element(address_add(address_add(rows, multiply_64(uint(row), row_bytes)), j * BYTES), v);
    }
  }

  for (uint row = max(token * topk, used); row < (token + 1) * topk; row++) {
    const uvec2 to = address_add(rows, multiply_64(row, row_bytes));
    uint zeroed = begin * BYTES;
    if ((unaligned_rows & 7u) == 0) {
      for (uint at = zeroed + lane * 8; at < (end_byte & ~7u); at += ROW_GROUP * 8) store_word_pair(address_add(to, at), uvec2(0));
      zeroed = end_byte & ~7u;
    }
    for (uint j = zeroed / BYTES + lane; j < end; j += ROW_GROUP) store_element(address_add(to, j * BYTES), 0);
  }
}
