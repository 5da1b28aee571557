/* argsort: the indices of each row's elements in order, or of its first `keep`. The same entries, arguments and steps as in argsort.cl, which
 * draws them.
 *
 * Constants (the planner's)
 *   X_DTYPE  0 f32, 1 f16, 2 bf16
 * Tunables
 *   GROUP  64    see layer.cu
 *   RUN    256   elements that are put in order by counting
 *   BLOCK  1024  elements that a block merges
 */
#ifndef X_DTYPE
#define X_DTYPE F32
#endif
#ifndef RUN
#define RUN 256
#endif
#ifndef BLOCK
#define BLOCK 1024
#endif

/* Orders as the number does. -0 is 0. */
static __device__ __forceinline__ u32 key_of(const void* x, u64 i, u32 descending)
{
#if X_DTYPE == F32
  const u32 bits = ((const u32*)x)[i];
#elif X_DTYPE == F16
  const u32 half_bits = ((const u16*)x)[i], magnitude = half_bits & 0x7fffu;
  /* Moved to where f32 has exponent and mantissa; a NaN stays one. */
  const u32 bits = (half_bits & 0x8000u) << 16 | magnitude << 13 | (magnitude > 0x7c00u ? 0x7f800000u : 0u);
#else
  const u32 bits = (u32)((const u16*)x)[i] << 16;
#endif
  const u32 size = bits & 0x7fffffffu;
  if (size > 0x7f800000u) return 0xffffffffu;
  const u32 ascending = size == 0 ? 0x80000000u : bits == size ? bits | 0x80000000u : ~bits;
  return descending ? ~ascending : ascending;
}

extern "C" __global__ void __launch_bounds__(GROUP)
argsort_runs(const void* x, u64 x_offset, int* to, u64 to_offset, u32 n0, u32 n1, u32 n2, u32 n3, u64 x0, u64 x1, u64 x2, u64 x3,
             u64 to0, u64 to1, u64 to2, u64 to3, u32 keep, u32 descending, u32 runs)
{
  __shared__ u32 keys[RUN];
  const u32 group = group_number(), row = group / runs, begin = group % runs * RUN;
  if (row >= n1 * n2 * n3) return;
  const u32 length = n0 - begin < RUN ? n0 - begin : RUN;
  const Place r = place_of(row, n1, n2);
  x_offset += r.i1 * x1 + r.i2 * x2 + r.i3 * x3;
  to_offset += r.i1 * to1 + r.i2 * to2 + r.i3 * to3 + begin * to0;
  for (u32 i = threadIdx.x; i < length; i += GROUP) keys[i] = key_of(x, x_offset + (begin + i) * x0, descending);
  __syncthreads();
  for (u32 i = threadIdx.x; i < length; i += GROUP) {
    const u32 key = keys[i];
    u32 before = 0;
    for (u32 j = 0; j < length; j++) before += keys[j] < key || (keys[j] == key && j < i);
    if (before < keep) to[to_offset + before * to0] = (int)(begin + i);
  }
}

extern "C" __global__ void __launch_bounds__(GROUP)
argsort_merge(const void* x, u64 x_offset, const int* from, u64 from_offset, int* to, u64 to_offset, u32 n0, u32 n1, u32 n2, u32 n3,
              u64 x0, u64 x1, u64 x2, u64 x3, u64 to0, u64 to1, u64 to2, u64 to3, u32 keep, u32 descending, u32 width, u32 blocks)
{
  const u32 group = group_number(), row = group / blocks, block = group % blocks;
  if (row >= n1 * n2 * n3) return;
  const Place r = place_of(row, n1, n2);
  x_offset += r.i1 * x1 + r.i2 * x2 + r.i3 * x3;
  from_offset += (u64)row * n0;
  to_offset += r.i1 * to1 + r.i2 * to2 + r.i3 * to3;
  const u32 end = (block + 1) * BLOCK < n0 ? (block + 1) * BLOCK : n0;
  for (u32 i = block * BLOCK + threadIdx.x; i < end; i += GROUP) {
    const u32 run = i / width, own = i - run * width;
    if (own >= keep) continue;
    const u32 index = (u32)from[from_offset + i], key = key_of(x, x_offset + index * x0, descending);
    /* The other run of the pair, as far as there is one and it was kept. Equal elements of the first run come first. */
    const u32 second = run & 1u, other = (run + 1 - 2 * second) * width;
    u32 low = 0, high = other < n0 ? n0 - other : 0;
    high = high < width ? high : width;
    high = high < keep ? high : keep;
    while (low < high) {
      const u32 middle = (low + high) / 2;
      const u32 found = key_of(x, x_offset + (u32)from[from_offset + other + middle] * x0, descending);
      if (found < key || (second && found == key)) low = middle + 1;
      else high = middle;
    }
    const u32 before = own + low;
    if (before < keep) to[to_offset + ((run - second) * width + before) * to0] = (int)index;
  }
}
