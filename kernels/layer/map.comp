/* map: functions of elements, copies, and rows out of and into a table. The same entry, arguments and functions as in map.cl, which draws
 * what it computes.
 *
 * A group takes `rows_each` short rows, or BLOCK columns of a row; its invocations take fours of columns by turns.
 *
 * Constants (the planner's), specialized
 *   CLASS                      0 moves, 1 functions of two numbers, 2 of one, 3 gated linear units
 *   A_DTYPE, B_DTYPE, D_DTYPE  0 f32, 1 f16, 2 bf16, 4 i32 (moves alone)
 * Tunables
 *   GROUP  invocations of a group
 *   BLOCK  elements of a group
 */
#version 460
#extension GL_GOOGLE_include_directive : require
#include "layer.glsl"

layout(constant_id = 1) const uint CLASS = 1;
layout(constant_id = 2) const uint A_DTYPE = F32;
layout(constant_id = 3) const uint B_DTYPE = F32;
layout(constant_id = 4) const uint D_DTYPE = F32;
layout(constant_id = 5) const uint BLOCK = 1024;

#define MOVE 0
#define BINARY 1
#define UNARY 2

#define PLAIN 0
#define GATHER 1

#define STATUS_ROW 1

layout(buffer_reference, scalar, buffer_reference_align = 4) restrict readonly buffer Arguments
{
  uvec2 a, b, ids, d, status;
  uint n0, n1, n2, n3;
  uvec2 a0, a1, a2, a3;
  uint b_n0, b_n1, b_n2, b_n3;
  uvec2 b0, b1, b2, b3;
  uvec2 d0, d1, d2, d3;
  uint indexing;
  uvec2 ids_half, ids1, ids2, ids3;
  uint ids_n2, ids_n3, table, function;
  float p, q;
  uint rows_each, blocks;
};

layout(push_constant, scalar) uniform Push { Arguments arguments; };

float gelu_quick(float x) { return x / (1.0 + exp_of(-1.702 * x)); }

float function_of(float a, float b, uint function, float p, float q)
{
  if (CLASS == BINARY) {
    switch (function) {
      case 0: return a + b;
      case 1: return a - b;
      case 2: return a * b;
      default: return a / b;
    }
  }
  if (CLASS == MOVE) return a;
  /* The activations of gated linear units come first, in the same order. */
  float v;
  switch (function) {
    case 0: v = silu(a); break;
    case 1: v = gelu_tanh(a); break;
    case 2: v = a < 0.0 ? 0.0 : a; break;
    case 3: v = gelu(a); break;
    case 4: v = gelu_quick(a); break;
    case 5: v = sigmoid(a); break;
    case 6: v = tanh_of(a); break;
    case 7: v = exp_of(a); break;
    case 8: v = -a; break;
    case 9: v = a * p + q; break;
    default: {
      const float least = a < p ? p : a;
      v = least > q ? q : least;
    }
  }
  return CLASS == UNARY ? v : v * b;
}

/* Element `number`, in row-major order, of a. */
uvec2 element_of(uint number)
{
  const uint row = number / arguments.b_n0;
  const Place r = place_of(row, arguments.b_n1, arguments.b_n2);
  return element_at(row_at(arguments.a, r, arguments.a1, arguments.a2, arguments.a3, A_DTYPE), number % arguments.b_n0, arguments.a0, A_DTYPE);
}

void main()
{
  const uint n0 = arguments.n0, n1 = arguments.n1, n2 = arguments.n2, blocks = arguments.blocks, indexing = arguments.indexing;
  const uint function = arguments.function, rows = n1 * n2 * arguments.n3, lane = gl_LocalInvocationID.x;
  const uvec2 a0 = arguments.a0, b0 = arguments.b0, d0 = arguments.d0;
  const float p = arguments.p, q = arguments.q;
  const uint group = group_number(), row_block = group / blocks, first = row_block * arguments.rows_each;
  if (first >= rows) return;
  const uint begin = blocks == 1 ? 0 : group % blocks * BLOCK, end = blocks == 1 ? n0 : min(begin + BLOCK, n0);
  const uint last = min(first + arguments.rows_each, rows), fours = (end - begin + 3) / 4;
  /* Stepped on without divisions, as long as a row has fours for all invocations. */
  uint passed = lane / fours, four = lane - passed * fours;
  while (first + passed < last) {
    const uint row = first + passed, column = begin + four * 4, live = end - column;
    const Place r = place_of(row, n1, n2);
    Place from = r, to = r;
    bool missing = false;
    if (indexing != PLAIN) {
      const Place place = Place(r.i1, wrapped(r.i2, arguments.ids_n2), wrapped(r.i3, arguments.ids_n3));
      const uvec2 at = row_at(arguments.ids, place, arguments.ids1, arguments.ids2, arguments.ids3, I32);
      const uint id = load_word(at);
      missing = id >= arguments.table;
      if (!is_stride(arguments.ids_half, 0)) missing = missing || load_word(element_at(at, 1, arguments.ids_half, I32)) != 0;
      if (missing) report(arguments.status, STATUS_ROW);
      if (indexing == GATHER) from.i1 = missing ? 0 : id;
      else to.i1 = missing ? 0 : id;
    }
    if (!missing || indexing == GATHER) {
      vec4 x = vec4(0.0), y = vec4(1.0);
      if (CLASS == MOVE && function == 1) {
        for (uint e = 0; e < min(live, 4u); e++) x[e] = load_1(element_of(row * n0 + column + e), A_DTYPE);
      } else if (!missing) {
        const uvec2 a_row = row_at(arguments.a, from, arguments.a1, arguments.a2, arguments.a3, A_DTYPE);
        x = load_four(element_at(a_row, column, a0, A_DTYPE), a0, live, 0.0, A_DTYPE);
      }
      if (CLASS != MOVE && CLASS != UNARY) {
        const Place place = Place(wrapped(r.i1, arguments.b_n1), wrapped(r.i2, arguments.b_n2), wrapped(r.i3, arguments.b_n3));
        const uvec2 b_row = row_at(arguments.b, place, arguments.b1, arguments.b2, arguments.b3, B_DTYPE);
        if (arguments.b_n0 >= n0) {
          y = load_four(element_at(b_row, column, b0, B_DTYPE), b0, live, 1.0, B_DTYPE);
        } else {
          for (uint e = 0; e < min(live, 4u); e++) y[e] = load_1(element_at(b_row, wrapped(column + e, arguments.b_n0), b0, B_DTYPE), B_DTYPE);
        }
      }
      vec4 v;
      for (uint e = 0; e < 4; e++) v[e] = function_of(x[e], y[e], function, p, q);
      const uvec2 d_row = row_at(arguments.d, to, arguments.d1, arguments.d2, arguments.d3, D_DTYPE);
      store_four(element_at(d_row, column, d0, D_DTYPE), d0, live, v, D_DTYPE);
    }
    four += GROUP;
    if (four >= fours) {
      const uint over = four / fours;
      passed += over;
      four -= over * fours;
    }
  }
}
