#version 460
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_shuffle : require
/* attention_rows: many rows, on a device that runs invocations as the lanes of short vectors (lavapipe, SwiftShader) and pays for a load
 * lane by lane. So each lane loads eight bytes that no other lane loads, and the lanes hand them to each other by shuffles, whose sources
 * are constants.
 *
 *   lanes are rows: a group has 32 rows, 32 / SUBGROUP in a lane; its subgroups share the rows, not the keys and columns
 *
 *   scores  a subgroup takes KEY_VECTORS * SUBGROUP keys:  s[key][row] += k[key][x] (handed around) * q[row][x] (its own lane's)
 *   softmax in shared memory  p [KEY_VECTORS * GROUP keys][lane][row of the lane], its maximum over all subgroups
 *   sums    a subgroup takes 4 * SUBGROUP columns and all keys:  o[column][row] += v[key][column] (handed around) * p[key][row]
 *
 * The sums leave registers (as far as there are any: 128 a lane) only at the end, by the same code that shares the scores: every
 * unrolled access to shared memory takes a driver long to compile.
 *
 * Specialization constants beside those of attention.glsl:
 *   SUBGROUP     8    invocations in a subgroup, the device's: 4, 8 or 16
 *   GROUP        32   invocations in a group: HEAD_MAX / 4
 *   KEY_VECTORS  4    keys of a lane between two rescalings: 1, 2 or 4
 *   VECTOR       1    rows of q, k and v begin at 8 bytes, lie side by side and have whole fours of columns
 *   OPTIONS      1    0 if there is no soft cap, no ALiBi and no mask: some drivers run what an `if` skips
 *
 * Groups (kv_heads, works).
 */
#include "attention.glsl"

layout(constant_id = 4) const uint SUBGROUP = 8;
layout(constant_id = 5) const uint GROUP = 32;
layout(constant_id = 6) const uint KEY_VECTORS = 4;
layout(constant_id = 7) const bool VECTOR = true;
layout(constant_id = 8) const bool OPTIONS = true;
#define ROWS 32
const uint ROWS_EACH = ROWS / SUBGROUP;
const uint SUBGROUPS = GROUP / SUBGROUP;
const uint COLUMNS = 4 * SUBGROUP;
const uint KEYS = KEY_VECTORS * SUBGROUP;
const uint BLOCK = KEY_VECTORS * GROUP;
const uint PAIRS = ROWS_EACH / 2;
const uint CHUNKS = COLUMNS / KEYS;
#define KEYS_UNROLLED 4

layout(local_size_x_id = 5) in;

#if INT_64
shared uint64_t p[BLOCK * ROWS / 2], tops[SUBGROUPS * ROWS / 2], factors[ROWS / 2];
#define LOAD_PAIR(array, i) uintBitsToFloat(unpack32(array[i]))
#define STORE_PAIR(array, i, pair) array[i] = pack64(floatBitsToUint(pair))
#else
shared uvec2 p[BLOCK * ROWS / 2], tops[SUBGROUPS * ROWS / 2], factors[ROWS / 2];
#define LOAD_PAIR(array, i) uintBitsToFloat(array[i])
#define STORE_PAIR(array, i, pair) array[i] = floatBitsToUint(pair)
#endif
shared uvec2 v_row[BLOCK];

/* Four elements of a row from column c on, of which the first is there. */
vec4 fours_of(uvec2 row, uvec2 stride, int c, int columns)
{
  return VECTOR ? load_4(element_at(row, uint(c), DTYPE), DTYPE) : columns_of(row, stride, c, columns, false);
}

void main()
{
  /* The works of a key head follow each other: its keys and values stay in cache. */
  uint place = gl_WorkGroupID.y * gl_NumWorkGroups.x + gl_WorkGroupID.x, works = gl_NumWorkGroups.y;
  int group = arguments.heads / arguments.kv_heads, kv_head = int(place / works);
  Work w;
  if (!find_work(int(place % works), ROWS, w)) return;
  Sequence s = w.s;
  Rows keys = key_rows(s, kv_head), values = value_rows(s, kv_head);
  uint lane = gl_SubgroupInvocationID, subgroup = gl_SubgroupID;
  int rows = s.queries * group;
  if (rows <= arguments.few_rows) return;
  int first_row = w.tile * ROWS, tile_rows = min(ROWS, rows - first_row);
  int d = arguments.d, dv = arguments.dv, window = arguments.window, flags = arguments.flags;
  int options = OPTIONS ? flags : 0;
  float scale = arguments.scale, softcap = arguments.softcap;
  uvec2 q_stride = arguments.q_stride, k_stride = arguments.k_stride, v_stride = arguments.v_stride;
  uvec2 v_row_bytes = bytes_of(arguments.v_row_stride, DTYPE), mask_stride = arguments.mask_stride;
  const bool finish = OPTIONS || LAYOUT == 2;

  uvec2 q_at[ROWS_EACH], mask_at[ROWS_EACH];
  int first_seen[ROWS_EACH], last_seen[ROWS_EACH], position[ROWS_EACH];
  float slope[ROWS_EACH], most[ROWS_EACH], sum[ROWS_EACH];
  [[unroll]] for (uint r = 0; r < ROWS_EACH; r++) {
    int row = min(first_row + int(lane * ROWS_EACH + r), rows - 1), query = row / group, head = row + (kv_head - query) * group;
    ivec2 sight = sight_of(query, s, window, flags);
    q_at[r] = q_row(s, query, head);
    first_seen[r] = sight.x;
    last_seen[r] = sight.y;
    position[r] = s.keys - s.queries + query;
    slope[r] = 0.0;
    if ((options & ALIBI) != 0) slope[r] = of_head(arguments.alibi_slopes, head, arguments.alibi_slopes_stride);
    mask_at[r] = uvec2(0);
    if ((options & MASK) != 0) mask_at[r] = mask_row(s, query, head);
    most[r] = -INFINITY;
    sum[r] = 0.0;
  }
  float acc[COLUMNS * ROWS_EACH];
  [[unroll]] for (uint i = 0; i < COLUMNS * ROWS_EACH; i++) acc[i] = 0.0;

  int first = sight_of(first_row / group, s, window, flags).x / int(BLOCK) * int(BLOCK);
  int end = sight_of((first_row + tile_rows - 1) / group, s, window, flags).y + 1;
  if (s.splits > 1) {
    first = max(first, w.split * SPLIT_KEYS);
    end = min(end, (w.split + 1) * SPLIT_KEYS);
  }
  uint own = subgroup * KEYS * (ROWS / 2) + lane * PAIRS;
  int rounds = (max(end - first, 0) + int(BLOCK) - 1) / int(BLOCK);
  bool split = s.splits > 1;
  uvec2 to[ROWS_EACH], to_stride = split ? uvec2(1, 0) : arguments.o_stride;
  [[unroll]] for (uint r = 0; r < ROWS_EACH; r++) {
    int row = first_row + int(lane * ROWS_EACH + r), query = row / group, head = row + (kv_head - query) * group;
    to[r] = uvec2(0);
    if (row < rows) to[r] = split ? partial_row(s.slot + w.split, kv_head, row) : o_row(s, query, head);
  }
  for (int round = 0; round < rounds + int(CHUNKS); round++) {
    /* The last rounds have no keys: what they pass through shared memory in place of scores are the sums, KEYS columns in each. */
    bool last = round >= rounds;
    int chunk = round - rounds, first_key = first + round * int(BLOCK);
    uvec2 k_at[KEY_VECTORS];
    [[unroll]] for (uint i = 0; i < KEY_VECTORS; i++) {
      uint in_block = subgroup * KEYS + i * SUBGROUP + lane;
      int key = min(first_key + int(in_block), end - 1);
      k_at[i] = uvec2(0);
      if (!last) {
        k_at[i] = row_of(keys, key);
        if (LAYOUT == 2) v_row[in_block] = row_of(values, key);
      }
    }
    float scores[KEYS * ROWS_EACH];
    [[unroll]] for (uint i = 0; i < KEYS * ROWS_EACH; i++) scores[i] = 0.0;
    int columns = last ? 0 : d;
    for (int x = 0; x < columns; x += 4) {
      vec4 q[ROWS_EACH], k[KEY_VECTORS];
      [[unroll]] for (uint r = 0; r < ROWS_EACH; r++) q[r] = fours_of(q_at[r], q_stride, x, d);
      [[unroll]] for (uint i = 0; i < KEY_VECTORS; i++) {
        k[i] = vec4(0.0);
        if (LAYOUT != 2 || !is_absent(k_at[i])) k[i] = fours_of(k_at[i], k_stride, x, d);
      }
      [[unroll]] for (uint j = 0; j < KEYS; j++) {
        vec4 element;
        [[unroll]] for (uint u = 0; u < 4; u++) element[u] = subgroupShuffle(k[j / SUBGROUP][u], j % SUBGROUP);
        [[unroll]] for (uint r = 0; r < ROWS_EACH; r++)
          [[unroll]] for (uint u = 0; u < 4; u++) scores[j * ROWS_EACH + r] += element[u] * q[r][u];
      }
    }

    float top[ROWS_EACH];
    uint before[ROWS_EACH], visible[ROWS_EACH];
    int at = first_key + int(subgroup * KEYS);
    [[unroll]] for (uint r = 0; r < ROWS_EACH; r++) {
      top[r] = -INFINITY;
      before[r] = uint(first_seen[r] - at);
      visible[r] = uint(max(min(last_seen[r], end - 1) + 1 - first_seen[r], 0));
    }
    [[unroll]] for (uint j = 0; j < KEYS; j++)
      [[unroll]] for (uint r = 0; r < ROWS_EACH; r += 2) {
        vec2 pair = vec2(scores[j * ROWS_EACH + r], scores[j * ROWS_EACH + r + 1]) * scale;
        if (!finish) {
          [[unroll]] for (uint i = 0; i < 2; i++) {
            bool seen = j - before[r + i] < visible[r + i];
            pair[i] = seen ? pair[i] : -INFINITY;
            top[r + i] = pair[i] > top[r + i] ? pair[i] : top[r + i];
          }
        }
        [[unroll]] for (uint c = 0; c < CHUNKS; c++) {
          uint from = (c * KEYS + j) * ROWS_EACH + r;
          pair = chunk == int(c) ? vec2(acc[from], acc[from + 1]) : pair;
        }
        STORE_PAIR(p, own + j * (ROWS / 2) + r / 2, pair);
      }
    if (finish) {
      uint finishing = last ? 0 : KEYS;
      for (uint j = 0; j < finishing; j++) {
        int key = at + int(j);
        [[unroll]] for (uint r = 0; r < ROWS_EACH; r += 2) {
          vec2 pair = LOAD_PAIR(p, own + j * (ROWS / 2) + r / 2);
          [[unroll]] for (uint i = 0; i < 2; i++) {
            bool seen = j - before[r + i] < visible[r + i];
            if (LAYOUT == 2) seen = seen && !is_absent(v_row[subgroup * KEYS + j]);
            float bias = 0.0;
            if ((options & MASK) != 0 && seen) bias = load_1(element_at(mask_at[r + i], uint(key), mask_stride, F32), F32);
            float score = finish_score(pair[i], bias, slope[r + i], key - position[r + i], softcap, options);
            pair[i] = seen ? score : -INFINITY;
            top[r + i] = pair[i] > top[r + i] ? pair[i] : top[r + i];
          }
          STORE_PAIR(p, own + j * (ROWS / 2) + r / 2, pair);
        }
      }
    }
    [[unroll]] for (uint r = 0; r < ROWS_EACH; r += 2)
      STORE_PAIR(tops, subgroup * (ROWS / 2) + lane * PAIRS + r / 2, last ? vec2(sum[r], sum[r + 1]) : vec2(top[r], top[r + 1]));
    barrier();
    float total[ROWS_EACH];
    [[unroll]] for (uint r = 0; r < ROWS_EACH; r++) {
      top[r] = most[r];
      total[r] = 0.0;
    }
    for (uint i = 0; i < SUBGROUPS; i++)
      [[unroll]] for (uint r = 0; r < ROWS_EACH; r += 2) {
        vec2 pair = LOAD_PAIR(tops, i * (ROWS / 2) + lane * PAIRS + r / 2);
        top[r] = pair.x > top[r] && !last ? pair.x : top[r];
        top[r + 1] = pair.y > top[r + 1] && !last ? pair.y : top[r + 1];
        total[r] += pair.x;
        total[r + 1] += pair.y;
      }
    float base[ROWS_EACH];
    [[unroll]] for (uint r = 0; r < ROWS_EACH; r++) {
      /* Where nothing was seen yet the maximum is -inf, and -inf - -inf would be NaN. */
      base[r] = top[r] == -INFINITY ? 0.0 : top[r];
      float rescale = last ? 1.0 : exp_nonpositive(most[r] - base[r]);
      most[r] = top[r];
      sum[r] *= rescale;
      [[unroll]] for (uint c = 0; c < COLUMNS; c++) acc[c * ROWS_EACH + r] *= rescale;
    }
    uint exponentials = last ? 0 : KEYS;
    for (uint j = 0; j < exponentials; j++)
      [[unroll]] for (uint r = 0; r < ROWS_EACH; r += 2) {
        vec2 pair = LOAD_PAIR(p, own + j * (ROWS / 2) + r / 2);
        pair = vec2(exp_nonpositive(pair.x - base[r]), exp_nonpositive(pair.y - base[r + 1]));
        sum[r] += pair.x;
        sum[r + 1] += pair.y;
        STORE_PAIR(p, own + j * (ROWS / 2) + r / 2, pair);
      }
    /* The subgroups share the rows that are finished. */
    uint pairs = last ? PAIRS : 0;
    for (uint pair_of = subgroup; pair_of < pairs; pair_of += SUBGROUPS) {
      vec2 factor;
      for (uint i = 0; i < 2; i++) {
        uint r = 2 * pair_of + i;
        float row_most = most[0], row_total = total[0];
        [[unroll]] for (uint j = 1; j < ROWS_EACH; j++) {
          row_most = r == j ? most[j] : row_most;
          row_total = r == j ? total[j] : row_total;
        }
        int row = first_row + int(lane * ROWS_EACH + r), query = min(row, rows - 1) / group, head = min(row, rows - 1) + (kv_head - query) * group;
        bool has_sink = (flags & SINKS) != 0;
        float sink = 0.0;
        if (has_sink) sink = of_head(arguments.sinks, head, arguments.sinks_stride);
        vec2 finished = finish_row(row_most, row_total, has_sink, sink);
        if (i == 0) factor.x = finished.x;
        else factor.y = finished.x;
        if (row < rows && split) {
          uvec2 to = element_at(partial_row(s.slot + w.split, kv_head, row), uint(dv), F32);
          store_1(to, row_most, F32);
          store_1(element_at(to, 1, F32), row_total, F32);
        }
        if (row < rows && !split && (flags & LSE) != 0) store_1(lse_row(s, query, head), finished.y, F32);
      }
      STORE_PAIR(factors, lane * PAIRS + pair_of, factor);
    }
    barrier();

    int block = last || dv == 0 ? 0 : min(int(BLOCK), end - first_key), c0 = min(int(gl_LocalInvocationID.x) * 4, VECTOR ? dv - 4 : dv);
    uvec2 v_at = uvec2(0);
    if (LAYOUT != 2) v_at = row_of(values, first_key);
    for (int j = 0; j < block; j += KEYS_UNROLLED) {
      vec4 v[KEYS_UNROLLED];
      float pr[KEYS_UNROLLED * ROWS_EACH];
      [[unroll]] for (int t = 0; t < KEYS_UNROLLED; t++) {
        /* Past the last key it is that key again, with a probability of zero. */
        int key = min(j + t, block - 1);
        uvec2 from = LAYOUT == 2 ? v_row[key] : address_add(v_at, multiply_64(key, v_row_bytes));
        v[t] = vec4(0.0);
        if (LAYOUT != 2 || !is_absent(from)) v[t] = fours_of(from, v_stride, c0, dv);
        [[unroll]] for (uint r = 0; r < ROWS_EACH; r += 2) {
          vec2 pair = LOAD_PAIR(p, (j + t) * (ROWS / 2) + lane * PAIRS + r / 2);
          pr[t * ROWS_EACH + r] = pair.x;
          pr[t * ROWS_EACH + r + 1] = pair.y;
        }
      }
      [[unroll]] for (uint c = 0; c < COLUMNS; c++) {
        float element[KEYS_UNROLLED];
        [[unroll]] for (int t = 0; t < KEYS_UNROLLED; t++) element[t] = subgroupShuffle(v[t][c % 4], c / 4);
        [[unroll]] for (uint r = 0; r < ROWS_EACH; r++)
          [[unroll]] for (int t = 0; t < KEYS_UNROLLED; t++) acc[c * ROWS_EACH + r] += element[t] * pr[t * ROWS_EACH + r];
      }
    }
    float factor[ROWS_EACH];
    [[unroll]] for (uint r = 0; r < ROWS_EACH; r += 2) {
      vec2 pair = LOAD_PAIR(factors, lane * PAIRS + r / 2);
      factor[r] = split ? 1.0 : pair.x;
      factor[r + 1] = split ? 1.0 : pair.y;
    }
    uint stores = last ? KEYS : 0;
    for (uint c = 0; c < stores; c++) {
      uint column = subgroup * COLUMNS + chunk * KEYS + c;
      [[unroll]] for (uint r = 0; r < ROWS_EACH; r += 2) {
        vec2 pair = LOAD_PAIR(p, own + c * (ROWS / 2) + r / 2);
        [[unroll]] for (uint i = 0; i < 2; i++)
          if (column < dv && !is_absent(to[r + i])) {
            float value = pair[i] * factor[r + i];
            if (DTYPE == F32 || split) store_1(element_at(to[r + i], column, to_stride, F32), value, F32);
            else store_1(element_at(to[r + i], column, to_stride, DTYPE), value, DTYPE);
          }
      }
    }
    barrier();
  }
}
