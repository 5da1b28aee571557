/* Which rows are whose: read from the device, by every group for itself, so that no host waits between routing and product.
 *
 *   expert_offsets   0      3   3        8            rows of expert e: offsets[e] .. offsets[e + 1]; the rest is zeroed
 *   rows             0 1 2 | | | 3 4 5 6 7 | 8 9 ...
 *
 *   counts (masked)  expert e owns rows 0 .. counts[e] of its `capacity`; the rest is zeroed and never read
 *
 * Macro  default  meaning
 * MR     8        rows of one packed panel of a, for kernels that pack
 */
#ifndef MR
#define MR 8
#endif

/* A block of rows of one expert. `begin` and `end` count from the expert's first row in a and d, which is row `base`; rows from
 * `end` on to `limit` belong to no product and are zeroed. `strip` is the number of the block's first panel of a. */
typedef struct {
  uint expert, base, begin, end, limit, strip;
} Rows;

/* Finds the block of this number, `size` rows each (a multiple of MR, or MR), by walking the experts; works for whatever the
 * device holds: offsets that descend or pass the end are clamped.
 *
 *   offsets: blocks of expert 0, blocks of expert 1, ..., blocks of the rows past the last offset (expert == experts)
 *   counts:  ceil(capacity / size) blocks for each expert
 *
 * Panels of an expert begin at strip base / MR + expert: experts never share one. */
inline void find_rows(__global const int* routing, uint rows, uint experts, uint capacity, uint masked, uint block, uint size, Rows* found)
{
  if (masked) {
    uint blocks = (capacity + size - 1) / size;
    found->expert = block / blocks;
    found->base = found->expert * capacity;
    found->begin = remainder_of(block, blocks, found->expert) * size;
    uint count = (uint)clamp(routing[found->expert], 0, (int)capacity);
    found->limit = min(found->begin + size, capacity);
    found->end = clamp(count, found->begin, found->limit);
    found->strip = found->expert * ((capacity + MR - 1) / MR) + found->begin / MR;
    return;
  }
  uint base = 0, expert = 0;
  for (; expert < experts; expert++) {
    uint next = (uint)clamp(routing[expert + 1], (int)base, (int)rows), blocks = (next - base + size - 1) / size;
    if (block < blocks) {
      found->expert = expert;
      found->base = base;
      found->begin = block * size;
      found->end = min(found->begin + size, next - base);
      found->limit = found->end;
      found->strip = base / MR + expert + found->begin / MR;
      return;
    }
    block -= blocks;
    base = next;
  }
  found->expert = experts;
  found->base = base;
  found->begin = min(block * size, rows - base);
  found->end = found->begin;
  found->limit = min(found->begin + size, rows - base);
  found->strip = 0;
}

/* Sets the status word if offsets or counts are not what they should be; find_rows clamps them. */
inline void check_routing(__global const int* routing, uint rows, uint experts, uint capacity, uint masked, __global uint* status)
{
  int previous = 0;
  if (!masked && routing[0] != 0) *status = 1;
  for (uint e = 0; e < experts; e++) {
    int next = routing[masked ? e : e + 1];
    if (next < previous || next > (int)(masked ? capacity : rows)) *status = 1;
    if (!masked) previous = next;
  }
}
