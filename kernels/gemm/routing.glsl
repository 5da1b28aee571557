/* Which rows are whose: read from the device, by every work-group for itself, so that no host waits between routing and product.
 * Included behind elements.glsl.
 *
 *   offsets:  expert e has the blocks from floor(offset[e] / size) + e on, up to those of expert e + 1: enough for its rows wherever
 *             they begin, and found by bisection. The rows past the last offset are those of one more expert, which zeroes them.
 *   counts:   ceil(capacity / size) blocks for each expert; rows past the count are zeroed, what a holds there is not read
 *
 * Offsets and counts that are out of range are clamped and set the status word.
 */

/* A block of rows of one expert. Rows from begin to end are multiplied, those from end to limit are zeroed; all count from row `base`
 * of a and d (masked: from the expert's first). */
struct Rows { uint expert, base, begin, end, limit; };

int routing_at(uvec2 routing, uint index) { return load_i32(element_at(routing, index, I32)); }

/* The first row of an expert, within bounds whatever the device holds. */
uint first_row(uvec2 routing, uint expert, uint rows) { return uint(clamp(routing_at(routing, expert), 0, int(rows))); }

Rows find_rows(uvec2 routing, uint rows, uint experts, uint capacity, bool masked, uint block, uint size)
{
  Rows r;
  if (masked) {
    uint blocks = (capacity + size - 1) / size;
    r.expert = block / blocks;
    r.base = 0;
    r.begin = (block - r.expert * blocks) * size;
    r.limit = min(r.begin + size, capacity);
    r.end = clamp(uint(clamp(routing_at(routing, r.expert), 0, int(capacity))), r.begin, r.limit);
    return r;
  }
  r.expert = 0;
  for (uint above = experts + 1; above - r.expert > 1;) {
    uint middle = (r.expert + above) / 2;
    if (first_row(routing, middle, rows) / size + middle <= block) r.expert = middle;
    else above = middle;
  }
  r.base = first_row(routing, r.expert, rows);
  uint next = r.expert < experts ? max(first_row(routing, min(r.expert + 1, experts), rows), r.base) : rows;
  uint from_start = block - min(block, r.base / size + r.expert);
  r.begin = min(from_start * size, next - r.base);
  r.limit = min(r.begin + size, next - r.base);
  r.end = r.expert < experts ? r.limit : r.begin;
  return r;
}

/* Sets the status word if offsets or counts are not what they should be: each of `lanes` invocations looks at every lanes-th. */
void check_routing(uvec2 routing, uint rows, uint experts, uint capacity, bool masked, uvec2 status, uint lane, uint lanes)
{
  bool sound = masked || routing_at(routing, 0) == 0;
  for (uint e = lane; e < experts; e += lanes) {
    int next = routing_at(routing, masked ? e : e + 1), least = masked ? 0 : routing_at(routing, e);
    sound = sound && next >= least && next >= 0 && next <= int(masked ? capacity : rows);
  }
  if (!sound) report(status, 1);
}
