/* Which rows are whose: read from the device, by every warp for itself, so that no host waits between routing and product.
 *
 *   expert_offsets   0      3   3        8            rows of expert e: offsets[e] .. offsets[e + 1]; the rest is zeroed
 *   rows             0 1 2 | | | 3 4 5 6 7 | 8 9 ...
 *
 *   counts (masked)  expert e owns rows 0 .. counts[e] of its `capacity`; the rest is zeroed and never read
 *
 * The lanes of a warp take 32 experts at a time: clamped offsets are a running maximum, blocks before an expert a running sum.
 */

/* A block of rows of one expert. `begin` and `end` count from the expert's first row in a and d, which is row `base`; rows from
 * `end` on to `limit` belong to no product and are zeroed. */
struct Rows {
  u32 expert, base, begin, end, limit;
};

__device__ __forceinline__ u32 clamped(int x, u32 most) { return x < 0 ? 0 : min((u32)x, most); }

/* Finds the block of this number, `size` rows each, for whatever the device holds: offsets that descend or pass the end are clamped.
 *
 *   offsets: blocks of expert 0, blocks of expert 1, ..., blocks of the rows past the last offset (expert == experts)
 *   counts:  ceil(capacity / size) blocks for each expert
 *
 * All lanes of the warp call it, with the same arguments. */
__device__ __forceinline__ Rows find_rows(const int* routing, u32 rows, u32 experts, u32 capacity, u32 masked, u32 block, u32 size)
{
  Rows found;
  if (masked) {
    u32 blocks = (capacity + size - 1) / size;
    found.expert = block / blocks;
    found.base = found.expert * capacity;
    found.begin = block % blocks * size;
    found.limit = min(found.begin + size, capacity);
    found.end = min(max(clamped(routing[found.expert], capacity), found.begin), found.limit);
    return found;
  }
  const u32 all = 0xffffffffu;
  u32 lane = (threadIdx.y * blockDim.x + threadIdx.x) % 32, base = 0;
  for (u32 first = 0; first < experts; first += 32) {
    u32 expert = first + lane;
    u32 next = max(expert < experts ? clamped(routing[expert + 1], rows) : 0, base);
    for (u32 step = 1; step < 32; step *= 2) {
      u32 before = __shfl_up_sync(all, next, step);
      if (lane >= step) next = max(next, before);
    }
    u32 previous = __shfl_up_sync(all, next, 1);
    if (lane == 0) previous = base;
    u32 blocks = (next - previous + size - 1) / size, through = blocks;
    for (u32 step = 1; step < 32; step *= 2) {
      u32 before = __shfl_up_sync(all, through, step);
      if (lane >= step) through += before;
    }
    u32 reached = __ballot_sync(all, block < through);
    if (reached != 0) {
      u32 owner = __ffs(reached) - 1;
      found.expert = first + owner;
      found.base = __shfl_sync(all, previous, owner);
      found.begin = (block - __shfl_sync(all, through - blocks, owner)) * size;
      found.end = min(found.begin + size, __shfl_sync(all, next, owner) - found.base);
      found.limit = found.end;
      return found;
    }
    block -= __shfl_sync(all, through, 31);
    base = __shfl_sync(all, next, 31);
  }
  found.expert = experts;
  found.base = base;
  found.begin = min(block * size, rows - base);
  found.end = found.begin;
  found.limit = min(found.begin + size, rows - base);
  return found;
}

/* Sets the status word if offsets or counts are not what they should be; find_rows clamps them. For `threads` threads of one block. */
__device__ __forceinline__ void check_routing(const int* routing, u32 rows, u32 experts, u32 capacity, u32 masked, u32* status, u32 thread, u32 threads)
{
  bool sound = masked || thread != 0 || routing[0] == 0;
  for (u32 e = thread; e < experts; e += threads) {
    int next = routing[masked ? e : e + 1], least = masked || e == 0 ? 0 : routing[e];
    sound = sound && next >= least && next <= (int)(masked ? capacity : rows);
  }
  if (!sound) *status = 1;
}
