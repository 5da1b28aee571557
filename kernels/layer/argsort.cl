// argsort: the indices of each row's elements in order, or of its first `keep`.
//
//   row   | RUN elements | RUN | .. |     argsort_runs: an element's place in its run is the number of elements before it
//         |   run, in order  | run, .. |   argsort_merge, width by width: its place in two runs is its place in its own, and the number of
//         |      run, in order         |   elements before it in the other, found by bisection
//
// Elements are compared as whole numbers that order as they do, equal ones by index, NaN last: a total order, so that each place is
// taken once and nothing depends on who comes first. Of a run only the first `keep` are kept. Between launches the orders lie in the workspace,
// [rows, n].
//
// Constants (the planner's): X_DTYPE  0 f32, 1 f16, 2 bf16
// Tunables
//   GROUP  see layer.cl
//   RUN    elements that are put in order by counting
//   BLOCK  elements that a group merges

#ifndef X_DTYPE
#define X_DTYPE F32
#endif
#ifndef RUN
#define RUN 256
#endif
#ifndef BLOCK
#define BLOCK 4096
#endif

// Orders as the number does. -0 is 0.
inline uint key_of(__global const void* x, ulong i, uint descending)
{
#if X_DTYPE == F32
  const uint bits = ((__global const uint*)x)[i];
#elif X_DTYPE == F16
  const uint half_bits = ((__global const ushort*)x)[i], magnitude = half_bits & 0x7fffu;
  // Moved to where f32 has exponent and mantissa; a NaN stays one.
  const uint bits = (half_bits & 0x8000u) << 16 | magnitude << 13 | (magnitude > 0x7c00u ? 0x7f800000u : 0u);
#else
  const uint bits = (uint)((__global const ushort*)x)[i] << 16;
#endif
  const uint size = bits & 0x7fffffffu;
  if (size > 0x7f800000u) return 0xffffffffu;
  const uint ascending = size == 0 ? 0x80000000u : bits == size ? bits | 0x80000000u : ~bits;
  return descending ? ~ascending : ascending;
}

__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1)))
void argsort_runs(__global const void* x, ulong x_offset, __global int* to, ulong to_offset, uint n0, uint n1, uint n2, uint n3,
                  ulong x0, ulong x1, ulong x2, ulong x3, ulong to0, ulong to1, ulong to2, ulong to3, uint keep, uint descending,
                  uint runs)
{
#if GROUP > 1
  __local uint keys[RUN];
#else
  uint keys[RUN];
#endif
  const uint lane = get_local_id(0), group = group_number(), row = group / runs, run = remainder_of(group, runs, row);
  if (row >= n1 * n2 * n3) return;
  const uint begin = run * RUN, length = min((uint)RUN, n0 - begin);
  const place r = place_of(row, n1, n2);
  x_offset += r.i1 * x1 + r.i2 * x2 + r.i3 * x3;
  to_offset += r.i1 * to1 + r.i2 * to2 + r.i3 * to3 + begin * to0;
  for (uint i = lane; i < RUN; i += GROUP) keys[i] = i < length ? key_of(x, x_offset + (begin + i) * x0, descending) : 0xffffffffu;
  barrier(CLK_LOCAL_MEM_FENCE);
  for (uint i = lane; i < length; i += GROUP) {
    const uint key = keys[i];
    uint before = 0;
    // Of equal elements those with lower indices come before. No short circuit, so that compilers take whole vectors.
    for (uint j = 0; j < length; j++) before += (keys[j] < key) | ((keys[j] == key) & (j < i));
    if (before < keep) to[to_offset + before * to0] = (int)(begin + i);
  }
}

__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1)))
void argsort_merge(__global const void* x, ulong x_offset, __global const int* from, ulong from_offset, __global int* to, ulong to_offset,
                   uint n0, uint n1, uint n2, uint n3, ulong x0, ulong x1, ulong x2, ulong x3, ulong to0, ulong to1, ulong to2, ulong to3,
                   uint keep, uint descending, uint width, uint blocks)
{
  const uint group = group_number(), row = group / blocks, block = remainder_of(group, blocks, row);
  if (row >= n1 * n2 * n3) return;
  const place r = place_of(row, n1, n2);
  x_offset += r.i1 * x1 + r.i2 * x2 + r.i3 * x3;
  from_offset += (ulong)row * n0;
  to_offset += r.i1 * to1 + r.i2 * to2 + r.i3 * to3;
  const uint end = min((block + 1) * BLOCK, n0);
  for (uint i = block * BLOCK + get_local_id(0); i < end; i += GROUP) {
    const uint run = i / width, own = i - run * width;
    if (own >= keep) continue;
    const int index = from[from_offset + i];
    const uint key = key_of(x, x_offset + index * x0, descending);
    // The other run of the pair, as far as there is one and it was kept. Equal elements of the first run come first.
    const uint is_second = run & 1u, other = (is_second ? run - 1 : run + 1) * width;
    uint low = 0, high = other < n0 ? min(min(width, n0 - other), keep) : 0;
    while (low < high) {
      const uint middle = (low + high) / 2;
      const uint found = key_of(x, x_offset + from[from_offset + other + middle] * x0, descending);
      if (found < key || (is_second && found == key)) low = middle + 1;
      else high = middle;
    }
    const uint before = own + low;
    if (before < keep) to[to_offset + ((run - is_second) * width + before) * to0] = index;
  }
}
