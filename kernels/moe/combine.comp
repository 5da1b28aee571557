/* expert_combine: the weighted sum of each token's rows. The same entry and arguments as in rows.cl.
 *
 *   y[token, j] = sum over the slots, in their order, of topk_weights[token, slot] * rows[inverse[token, slot], j]      in f32
 *
 * Work-group (block, token) sums ROW_BLOCK columns. With the inverse map at hand no two invocations write one element, so there
 * are no atomics and the sum has one order. A slot without a row (-1) reads neither row nor weight. An invocation sums its share of
 * the block at once, up to FOURS_MOST vectors of four columns, of which neighbours take neighbouring ones (see copy_rows.comp).
 *
 * Constants (the planner's), specialized
 *   X_DTYPE     0 f32, 1 f16, 2 bf16: of y
 *   ROWS_DTYPE  likewise, of the rows
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
layout(constant_id = 2) const uint ROWS_DTYPE = F32;
layout(constant_id = 3) const uint ROW_BLOCK = 2048;

layout(push_constant, scalar) uniform Arguments {
  uvec2 rows;
  uvec2 inverse;
  uvec2 topk_weights;
  uvec2 y;
  uint tokens;
  uint topk;
  uint hidden;
  uvec2 row_stride;
  uvec2 column_stride;
  uvec2 token_stride;
  uvec2 slot_stride;
  uvec2 y_stride;
} arguments;

const uint FOURS_MOST = 16;
const uint RUN = 8; /* divides ROW_GROUP */
const uint SHARE = ROW_BLOCK / 4 / ROW_GROUP;
const uint FOURS = SHARE > FOURS_MOST ? FOURS_MOST : SHARE > 1 ? SHARE : 1;
const uint CHUNK = RUN * FOURS * 4;

void main()
{
  /* Copied, since some drivers read push constants anew wherever they are named. */
  const uvec2 rows = arguments.rows, row_stride = arguments.row_stride, column_stride = arguments.column_stride;
  const uvec2 slot_stride = arguments.slot_stride;
  const uint token = gl_WorkGroupID.y, lane = gl_LocalInvocationID.x, topk = arguments.topk;
  const uint begin = gl_WorkGroupID.x * ROW_BLOCK, end = min(begin + ROW_BLOCK, arguments.hidden);
  const uvec2 inverse = element_at(arguments.inverse, token, uvec2(topk, 0), I32);
  const uvec2 topk_weights = element_at(arguments.topk_weights, token, arguments.token_stride, F32);
  const uvec2 y = element_at(arguments.y, token, arguments.y_stride, X_DTYPE);

  uint summed = begin;
  const uvec2 rows_and_stride = uvec2(rows.x | bytes_of(row_stride, ROWS_DTYPE).x, 0);
  if (is_stride(column_stride, 1) && is_aligned_4(rows_and_stride, ROWS_DTYPE) && is_aligned_4(y, X_DTYPE)) {
    const uint whole = begin + (end - begin) / CHUNK * CHUNK;
    for (uint j = begin + lane / RUN * CHUNK; j < whole; j += ROW_GROUP / RUN * CHUNK) {
      const uint mine = j + lane % RUN * 4;
      vec4 sum[FOURS];
      [[unroll]] for (uint i = 0; i < FOURS; i++) sum[i] = vec4(0.0);
      for (uint slot = 0; slot < topk; slot++) {
        const int row = load_i32(element_at(inverse, slot, I32));
        if (row >= 0) {
          const float weight = load_1(element_at(topk_weights, slot, slot_stride, F32), F32);
          const uvec2 from = element_at(element_at(rows, uint(row), row_stride, ROWS_DTYPE), mine, ROWS_DTYPE);
          [[unroll]] for (uint i = 0; i < FOURS; i++)
            sum[i] += weight * load_4(element_at(from, i * (RUN * 4), ROWS_DTYPE), ROWS_DTYPE);
        }
      }
      const uvec2 to = element_at(y, mine, X_DTYPE);
      [[unroll]] for (uint i = 0; i < FOURS; i++) store_4(element_at(to, i * (RUN * 4), X_DTYPE), sum[i], X_DTYPE);
    }
    summed = whole;
  }
  for (uint j = summed + lane; j < end; j += ROW_GROUP) {
    float sum = 0.0;
    for (uint slot = 0; slot < topk; slot++) {
      const int row = load_i32(element_at(inverse, slot, I32));
      if (row >= 0) {
        const uvec2 from = element_at(rows, uint(row), row_stride, ROWS_DTYPE);
        sum += load_1(element_at(topk_weights, slot, slot_stride, F32), F32)
               * load_1(element_at(from, j, column_stride, ROWS_DTYPE), ROWS_DTYPE);
      }
    }
    store_1(element_at(y, j, X_DTYPE), sum, X_DTYPE);
  }
}
