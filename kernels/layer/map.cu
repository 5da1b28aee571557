/* map: functions of elements, copies, and rows out of and into a table. The same entry, arguments and functions as in map.cl, which draws
 * what it computes.
 *
 * A block takes `rows_each` short rows, or BLOCK columns of a row; its threads take fours of columns by turns.
 *
 * Constants (the planner's)
 *   CLASS                      0 moves, 1 functions of two numbers, 2 of one, 3 gated linear units
 *   A_DTYPE, B_DTYPE, D_DTYPE  0 f32, 1 f16, 2 bf16, 4 i32 (moves alone)
 * Tunables
 *   GROUP   64    see layer.cu
 *   VECTOR  4     elements a thread takes at once
 *   BLOCK   1024  elements of a block
 */
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
#define BLOCK 1024
#endif

#define MOVE 0
#define BINARY 1
#define UNARY 2
#define GLU 3

#define PLAIN 0
#define GATHER 1

#define STATUS_ROW 1u

static __device__ __forceinline__ float function_of(float a, float b, u32 function, float p, float q)
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
    case 5: return 1.0f / (1.0f + expf(-a));
    case 6: return tanhf(a);
    case 7: return expf(a);
    case 8: return -a;
    case 9: return fmaf(a, p, q);
    default: {
      float least = a < p ? p : a;
      return least > q ? q : least;
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

/* Element `flat`, in row-major order, of a tensor. */
static __device__ __forceinline__ u64 element_of(u32 flat, u32 n0, u32 n1, u32 n2, u64 s0, u64 s1, u64 s2, u64 s3)
{
  Place r = place_of(flat / n0, n1, n2);
  return flat % n0 * s0 + r.i1 * s1 + r.i2 * s2 + r.i3 * s3;
}

extern "C" __global__ void __launch_bounds__(GROUP)
map(const void* a, u64 a_offset, const void* b, u64 b_offset, const int* ids, u64 ids_offset, void* d, u64 d_offset, u32* status,
    u64 status_offset, u32 n0, u32 n1, u32 n2, u32 n3, u64 a0, u64 a1, u64 a2, u64 a3, u32 b_n0, u32 b_n1, u32 b_n2, u32 b_n3,
    u64 b0, u64 b1, u64 b2, u64 b3, u64 d0, u64 d1, u64 d2, u64 d3, u32 indexing, u64 ids_half, u64 ids1, u64 ids2, u64 ids3,
    u32 ids_n2, u32 ids_n3, u32 table, u32 function, float p, float q, u32 rows_each, u32 blocks)
{
  const u32 group = group_number(), row_block = group / blocks, first = row_block * rows_each, rows = n1 * n2 * n3;
  if (first >= rows) return;
  const u32 begin = blocks == 1 ? 0 : group % blocks * BLOCK, end = blocks == 1 || begin + BLOCK > n0 ? n0 : begin + BLOCK;
  const u32 last = first + rows_each < rows ? first + rows_each : rows, fours = (end - begin + 3) / 4;
  /* Stepped on without divisions, as long as a row has fours for all threads. */
  u32 passed = threadIdx.x / fours, four = threadIdx.x - passed * fours;
  for (; first + passed < last; four += GROUP, passed += four < fours ? 0 : four / fours, four -= four < fours ? 0 : four / fours * fours) {
    const u32 row = first + passed, column = begin + four * 4, live = end - column;
    const Place r = place_of(row, n1, n2);
    u64 a_row = a_offset + r.i1 * a1 + r.i2 * a2 + r.i3 * a3, d_row = d_offset + r.i1 * d1 + r.i2 * d2 + r.i3 * d3;
    bool missing = false;
    if (indexing != PLAIN) {
      const u64 at = ids_offset + r.i1 * ids1 + wrapped(r.i2, ids_n2) * ids2 + wrapped(r.i3, ids_n3) * ids3;
      const u32 id = (u32)ids[at];
      missing = id >= table || (ids_half && ids[at + ids_half] != 0);
      if (missing) *(status + status_offset) = STATUS_ROW;
      if (indexing == GATHER) a_row = a_offset + (missing ? 0 : id) * a1 + r.i2 * a2 + r.i3 * a3;
      else if (missing) continue;
      else d_row = d_offset + id * d1 + r.i2 * d2 + r.i3 * d3;
    }
    float x[4] = {0.0f, 0.0f, 0.0f, 0.0f}, y[4] = {1.0f, 1.0f, 1.0f, 1.0f}, v[4];
    if (CLASS == MOVE && function == 1) {
#pragma unroll
      for (u32 e = 0; e < 4; e++)
        if (e < live) x[e] = load_1(a, a_offset + element_of(row * n0 + column + e, b_n0, b_n1, b_n2, a0, a1, a2, a3), A_DTYPE);
    } else if (!missing) {
      load_four(a, a_row + column * a0, a0, live, 0.0f, x, A_DTYPE);
    }
#if CLASS == BINARY || CLASS == GLU
    const u64 b_row = b_offset + wrapped(r.i1, b_n1) * b1 + wrapped(r.i2, b_n2) * b2 + wrapped(r.i3, b_n3) * b3;
    if (b_n0 >= n0) {
      load_four(b, b_row + column * b0, b0, live, 1.0f, y, B_DTYPE);
    } else {
#pragma unroll
      for (u32 e = 0; e < 4; e++)
        if (e < live) y[e] = load_1(b, b_row + wrapped(column + e, b_n0) * b0, B_DTYPE);
    }
#endif
#pragma unroll
    for (u32 e = 0; e < 4; e++) v[e] = function_of(x[e], y[e], function, p, q);
    store_four(d, d_row + column * d0, d0, live, v, D_DTYPE);
  }
}
