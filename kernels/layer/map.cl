// map: functions of elements, copies, and rows out of and into a table.
//
//   d[r, c] = f(a[r, c], b[r, c])        r a row of the iteration space (n1, n2, n3), c a column of n0
//
//   indexing  a's row             d's row
//   PLAIN     r                   r
//   GATHER    ids[r] of its plane r           an id out of range: d's row is zero, the status word is set
//   SCATTER   r                   ids[r] of its plane; an id out of range: no row, the status word is set
//
// b is repeated along each axis. As a MOVE with function 1, a has the extents of b, and d takes its elements in row-major order.
// d may be a or b: an element is read before it is written, by the work-item that writes it.
//
// A group takes `rows_each` short rows, or BLOCK columns of a row.
//
// Constants (the planner's)
//   CLASS    0 moves, 1 functions of two numbers, 2 of one, 3 gated linear units
//   A_DTYPE, B_DTYPE, D_DTYPE   0 f32, 1 f16, 2 bf16, 4 i32 (moves alone)
// Tunables
//   GROUP, VECTOR  see layer.cl
//   BLOCK          elements of a group

#ifndef CLASS
#define CLASS 1
#endif
#ifndef A_DTYPE
#define A_DTYPE F32
#endif
#ifndef B_DTYPE
#define B_DTYPE A_DTYPE
#endif
#ifndef D_DTYPE
#define D_DTYPE A_DTYPE
#endif
#ifndef BLOCK
#define BLOCK 4096
#endif

#define MOVE 0
#define BINARY 1
#define UNARY 2
#define GLU 3

#define PLAIN 0
#define GATHER 1
#define SCATTER 2

#define STATUS_ROW 1u

inline floats function_of(floats a, floats b, uint function, float p, float q)
{
#if CLASS == BINARY
  switch (function) {
    case 0: return a + b;
    case 1: return a - b;
    case 2: return a * b;
    default: return a / b;
  }
#elif CLASS == UNARY
  switch (function) {
    case 0: return silu(a);
    case 1: return gelu(a);
    case 2: return relu(a);
    case 3: return gelu_erf(a);
    case 4: return gelu_quick(a);
    case 5: return sigmoid(a);
    case 6: return tanh(a);
    case 7: return exp(a);
    case 8: return -a;
    case 9: return fma(a, (floats)p, (floats)q);
    default: {
      const floats least = select(a, (floats)p, a < p);
      return select(least, (floats)q, least > q);
    }
  }
#elif CLASS == GLU
  switch (function) {
    case 0: return silu(a) * b;
    case 1: return gelu(a) * b;
    case 2: return relu(a) * b;
    case 3: return gelu_erf(a) * b;
    default: return gelu_quick(a) * b;
  }
#else
  return a;
#endif
}

// Element `flat`, in row-major order, of a tensor.
inline ulong element_of(uint flat, uint n0, uint n1, uint n2, ulong s0, ulong s1, ulong s2, ulong s3)
{
  const uint row = flat / n0;
  const place p = place_of(row, n1, n2);
  return remainder_of(flat, n0, row) * s0 + p.i1 * s1 + p.i2 * s2 + p.i3 * s3;
}

__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1)))
void map(__global const void* a, ulong a_offset, __global const void* b, ulong b_offset, __global const int* ids, ulong ids_offset,
         __global void* d, ulong d_offset, __global uint* status, ulong status_offset, uint n0, uint n1, uint n2, uint n3,
         ulong a0, ulong a1, ulong a2, ulong a3, uint b_n0, uint b_n1, uint b_n2, uint b_n3, ulong b0, ulong b1, ulong b2, ulong b3,
         ulong d0, ulong d1, ulong d2, ulong d3, uint indexing, ulong ids_half, ulong ids1, ulong ids2, ulong ids3, uint ids_n2,
         uint ids_n3, uint table, uint function, float p, float q, uint rows_each, uint blocks)
{
  const uint group = group_number(), row_block = group / blocks;
  const uint column_block = remainder_of(group, blocks, row_block), rows = n1 * n2 * n3;
  if (row_block * rows_each >= rows) return;
  const uint begin = blocks == 1 ? 0 : column_block * BLOCK, end = blocks == 1 ? n0 : min(begin + BLOCK, n0);
  const uint last = min((row_block + 1) * rows_each, rows);
  const uint first = row_block * rows_each;
#if GROUP == 1
  for (uint row = first; row < last; row++)
  for (uint column = begin; column < end; column += VECTOR) {
#else
  // All of the group's rows are shared.
  const uint vectors = (end - begin + VECTOR - 1) / VECTOR;
  for (uint t = get_local_id(0); t < (last - first) * vectors; t += GROUP) {
    const uint passed = t / vectors, row = first + passed, column = begin + remainder_of(t, vectors, passed) * VECTOR;
#endif
    const uint live = end - column;
    const place r = place_of(row, n1, n2);
    ulong a_row = a_offset + r.i1 * a1 + r.i2 * a2 + r.i3 * a3, d_row = d_offset + r.i1 * d1 + r.i2 * d2 + r.i3 * d3;
    int missing = 0;
    if (indexing != PLAIN) {
      const ulong at = ids_offset + r.i1 * ids1 + wrapped(r.i2, ids_n2) * ids2 + wrapped(r.i3, ids_n3) * ids3;
      const int id = ids[at], high = ids_half ? ids[at + ids_half] : 0;
      missing = id < 0 || (uint)id >= table || high != 0;
      if (missing) status[status_offset] = STATUS_ROW;
      if (indexing == GATHER) a_row = a_offset + (missing ? 0 : id) * a1 + r.i2 * a2 + r.i3 * a3;
      else if (missing) continue;
      else d_row = d_offset + id * d1 + r.i2 * d2 + r.i3 * d3;
    }
    floats x = 0.0f, y = 0.0f;
    if (!missing) {
#if CLASS == MOVE
      if (function == 1) {
        const uint flat = row * n0 + column;
        if (a0 == 1 && live >= VECTOR && b_n0 % VECTOR == 0 && flat % VECTOR == 0) {
          x = load_side_by_side(a, a_offset + element_of(flat, b_n0, b_n1, b_n2, a0, a1, a2, a3), A_DTYPE);
        } else {
          float v[VECTOR];
          for (uint e = 0; e < VECTOR; e++)
            v[e] = e < live ? load_1(a, a_offset + element_of(flat + e, b_n0, b_n1, b_n2, a0, a1, a2, a3), A_DTYPE) : 0.0f;
          x = LOAD(0, v);
        }
      } else {
        x = load_vector(a, a_row + column * a0, a0, live, 0.0f, A_DTYPE);
      }
#else
      x = load_vector(a, a_row + column * a0, a0, live, 0.0f, A_DTYPE);
#endif
    }
#if CLASS == BINARY || CLASS == GLU
    const ulong b_row = b_offset + wrapped(r.i1, b_n1) * b1 + wrapped(r.i2, b_n2) * b2 + wrapped(r.i3, b_n3) * b3;
    if (b_n0 >= n0) {
      y = load_vector(b, b_row + column * b0, b0, live, 1.0f, B_DTYPE);
    } else {
      float v[VECTOR];
      for (uint e = 0; e < VECTOR; e++) v[e] = e < live ? load_1(b, b_row + wrapped(column + e, b_n0) * b0, B_DTYPE) : 1.0f;
      y = LOAD(0, v);
    }
#endif
    store_vector(d, d_row + column * d0, d0, live, function_of(x, y, function, p, q), D_DTYPE);
  }
}
