/* The permutation of expert_scatter and its inverse: a counting sort of (token, slot) pairs by expert. The same algorithm, entries
 * and arguments as in rows.cl, which says what the steps are and draws the arrays.
 *
 *   topk_ids --expert_count--> counts of each tile --expert_scan--> first rows --expert_place--> source, inverse
 *   topk_ids --expert_permute (one work-group, few ids)--> expert_offsets, source, inverse
 *   source   --expert_clear_inverse, expert_invert--> inverse,    or --expert_invert_few (one work-group)--> inverse
 *
 * Stable: an id's place among the equal ids of its batch is found by comparing it with all of them, which all invocations read at
 * once. The only atomics count, and take a maximum: neither depends on the order.
 *
 * Ids and sources come from the device: one that is out of range is skipped and reported.
 *
 * Constant (the planner's), specialized
 *   EXPERTS_CAPACITY  at least the number of experts: sizes the counters
 * Tunables
 *   PERMUTE_GROUP     invocations that share a tile of ids
 *   PERMUTE_TILE      ids of a tile
 * Macro
 *   EXPERT_COUNT, EXPERT_SCAN, ... = 1: the entry that is compiled; EXPERT_PERMUTE if none is given
 *
 * Measured: README.md.
 */
#version 460
#extension GL_GOOGLE_include_directive : require
#include "../elements.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint PERMUTE_GROUP = 64;
layout(constant_id = 1) const uint PERMUTE_TILE = 1024;
layout(constant_id = 2) const uint EXPERTS_CAPACITY = 512;

const uint STATUS_BAD_EXPERT = 1;
const uint STATUS_BAD_SOURCE = 2;
const uint NO_ROW = 0xffffffffu; /* -1 */

#if EXPERT_CLEAR_INVERSE
layout(push_constant, scalar) uniform Arguments {
  uvec2 inverse;
  uint ids;
} arguments;

void main()
{
  const uint begin = gl_WorkGroupID.x * PERMUTE_TILE, end = min(begin + PERMUTE_TILE, arguments.ids);
  for (uint i = begin + gl_LocalInvocationID.x; i < end; i += PERMUTE_GROUP)
    store_word(element_at(arguments.inverse, i, I32), NO_ROW);
}

#elif EXPERT_INVERT || EXPERT_INVERT_FEW
layout(push_constant, scalar) uniform Arguments {
  uvec2 source;
  uvec2 inverse;
  uvec2 status;
  uint ids;
  uvec2 source_stride;
} arguments;

layout(buffer_reference, scalar, buffer_reference_align = 4) buffer Row { int value; };

void invert(uint begin, uint end)
{
  for (uint r = begin + gl_LocalInvocationID.x; r < end; r += PERMUTE_GROUP) {
    const int i = load_i32(element_at(arguments.source, r, arguments.source_stride, I32));
    if (i == -1) continue;
    /* The row of the highest number wins where two claim one slot, whatever the order. */
    bool bad = i < 0 || uint(i) >= arguments.ids;
    if (!bad) bad = atomicMax(Row(element_at(arguments.inverse, uint(i), I32)).value, int(r)) != -1;
    if (bad) report(arguments.status, STATUS_BAD_SOURCE);
  }
}

void main()
{
#if EXPERT_INVERT_FEW
  for (uint i = gl_LocalInvocationID.x; i < arguments.ids; i += PERMUTE_GROUP)
    store_word(element_at(arguments.inverse, i, I32), NO_ROW);
  memoryBarrierBuffer();
  barrier();
  invert(0, arguments.ids);
#else
  const uint begin = gl_WorkGroupID.x * PERMUTE_TILE;
  invert(begin, min(begin + PERMUTE_TILE, arguments.ids));
#endif
}

#else
shared uint counts[EXPERTS_CAPACITY]; /* of the ids of each expert; then its next row */
shared int batch[PERMUTE_GROUP];
shared uint used_rows;

#if EXPERT_COUNT
layout(push_constant, scalar) uniform Arguments {
  uvec2 topk_ids;
  uvec2 tile_rows;
  uvec2 status;
  uint tokens;
  uint topk;
  uint experts;
  uvec2 token_stride;
  uvec2 slot_stride;
} arguments;
#elif EXPERT_SCAN
layout(push_constant, scalar) uniform Arguments {
  uvec2 tile_rows;
  uvec2 expert_offsets;
  uint tiles;
  uint experts;
} arguments;
#elif EXPERT_PLACE
layout(push_constant, scalar) uniform Arguments {
  uvec2 topk_ids;
  uvec2 tile_rows;
  uvec2 expert_offsets;
  uvec2 source;
  uvec2 inverse;
  uvec2 status;
  uint tokens;
  uint topk;
  uint experts;
  uvec2 token_stride;
  uvec2 slot_stride;
} arguments;
#else
layout(push_constant, scalar) uniform Arguments {
  uvec2 topk_ids;
  uvec2 expert_offsets;
  uvec2 source;
  uvec2 inverse;
  uvec2 status;
  uint tokens;
  uint topk;
  uint experts;
  uvec2 token_stride;
  uvec2 slot_stride;
} arguments;
#endif

#if !EXPERT_SCAN
int expert_of(uint i)
{
  const uint topk = arguments.topk;
  const uvec2 token = element_at(arguments.topk_ids, i / topk, arguments.token_stride, I32);
  const int id = load_i32(element_at(token, i % topk, arguments.slot_stride, I32));
  if (id >= -1 && id < int(arguments.experts)) return id;
  report(arguments.status, STATUS_BAD_EXPERT);
  return -1;
}

void count_experts(uint begin, uint end)
{
  const uint lane = gl_LocalInvocationID.x;
  for (uint e = lane; e < arguments.experts; e += PERMUTE_GROUP) counts[e] = 0;
  barrier();
  for (uint i = begin + lane; i < end; i += PERMUTE_GROUP) {
    const int e = expert_of(i);
    if (e >= 0) atomicAdd(counts[e], 1);
  }
  barrier();
}
#endif

#if !EXPERT_COUNT && !EXPERT_PLACE
/* First rows of the experts from their counts, in place. */
void scan_experts()
{
  if (gl_LocalInvocationID.x == 0) {
    uint row = 0;
    for (uint e = 0; e < arguments.experts; e++) {
      const uint count = counts[e];
      counts[e] = row;
      store_word(element_at(arguments.expert_offsets, e, I32), row);
      row += count;
    }
    store_word(element_at(arguments.expert_offsets, arguments.experts, I32), row);
    used_rows = row;
  }
  barrier();
}
#endif

#if !EXPERT_COUNT && !EXPERT_SCAN
/* Gives each id its row: the next free one of its expert, in the order of the ids. */
void place_ids(uint begin, uint end)
{
  const uint lane = gl_LocalInvocationID.x;
  for (uint first = begin; first < end; first += PERMUTE_GROUP) {
    const uint i = first + lane;
    int e = -1;
    if (i < end) e = expert_of(i);
    batch[lane] = e;
    barrier();
    uint before = 0, after = 0;
    for (uint o = 0; o < PERMUTE_GROUP; o++) {
      const bool same = batch[o] == e;
      before += uint(same && o < lane);
      after += uint(same && o > lane);
    }
    uint row = NO_ROW;
    if (e >= 0) {
      row = counts[e] + before;
      store_word(element_at(arguments.source, row, I32), i);
    }
    if (i < end) store_word(element_at(arguments.inverse, i, I32), row);
    barrier();
    if (e >= 0 && after == 0) counts[e] = row + 1; /* the last of its expert in this batch */
    barrier();
  }
}
#endif

void main()
{
  const uint lane = gl_LocalInvocationID.x, experts = arguments.experts;
#if EXPERT_COUNT
  const uint tile = gl_WorkGroupID.x, begin = tile * PERMUTE_TILE;
  count_experts(begin, min(begin + PERMUTE_TILE, arguments.tokens * arguments.topk));
  const uvec2 tile_rows = element_at(arguments.tile_rows, tile, uvec2(experts, 0), I32);
  for (uint e = lane; e < experts; e += PERMUTE_GROUP) store_word(element_at(tile_rows, e, I32), counts[e]);
#elif EXPERT_SCAN
  for (uint e = lane; e < experts; e += PERMUTE_GROUP) {
    uvec2 at = element_at(arguments.tile_rows, e, I32);
    uint count = 0;
    for (uint t = 0; t < arguments.tiles; t++) {
      count += load_word(at);
      at = element_at(at, experts, I32);
    }
    counts[e] = count;
  }
  barrier();
  scan_experts();
  for (uint e = lane; e < experts; e += PERMUTE_GROUP) {
    uvec2 at = element_at(arguments.tile_rows, e, I32);
    uint row = counts[e];
    for (uint t = 0; t < arguments.tiles; t++) {
      const uint count = load_word(at);
      store_word(at, row);
      row += count;
      at = element_at(at, experts, I32);
    }
  }
#elif EXPERT_PLACE
  const uint tile = gl_WorkGroupID.x, begin = tile * PERMUTE_TILE;
  const uint end = min(begin + PERMUTE_TILE, arguments.tokens * arguments.topk);
  const uvec2 tile_rows = element_at(arguments.tile_rows, tile, uvec2(experts, 0), I32);
  for (uint e = lane; e < experts; e += PERMUTE_GROUP) counts[e] = load_word(element_at(tile_rows, e, I32));
  barrier();
  place_ids(begin, end);
  const uint rows = load_word(element_at(arguments.expert_offsets, experts, I32));
  for (uint r = max(begin, rows) + lane; r < end; r += PERMUTE_GROUP) store_word(element_at(arguments.source, r, I32), NO_ROW);
#else
  const uint ids = arguments.tokens * arguments.topk;
  count_experts(0, ids);
  scan_experts();
  place_ids(0, ids);
  for (uint r = used_rows + lane; r < ids; r += PERMUTE_GROUP) store_word(element_at(arguments.source, r, I32), NO_ROW);
#endif
}
#endif
