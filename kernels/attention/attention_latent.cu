// attention_latent: multi-head latent attention (DeepSeek-V2: d 576, dv 512, one key head, values inside keys) by warpgroups of Hopper (wgmma), keys
// and values by its copy engine (TMA), for f16 and bf16 on sm_90a; blocks and their halves of the values are FlashMLA's. A block takes 64 rows and a
// split of the keys. Its two multiplying warpgroups have half of a tile's keys each for the scores, and half of the columns for the sums:
//
//                 S = Q K^T, 64 x 64                  P, shared              O += P V, 64 x 512
//                 +---------+---------+               +---------+            +-------------+-------------+
//   64 rows       | wg 0    | wg 1    |  -softmax->   |         |     ->     | wg 0        | wg 1        |
//                 +---------+---------+  (maxima are  +---------+            +-------------+-------------+
//                   32 keys   32 keys     exchanged)    64 keys                256 columns   256 columns
//
//   copying       tile 0 | tile 1 |      | tile 2        | tile 3 ..         a place is free when the sums that read it are done
//   multiplying            S0      softmax  O += P0 V0, S1  softmax  O += P1 V1, S2 ..
//
//   shared memory   | Q 72 KiB | place 0: 72 KiB | place 1: 72 KiB | P 8 KiB |      panels of 64 columns, rows of 128 bytes, swizzled
//
// Where v is bound as the first columns of k (same address, same strides), a tile is copied once and read twice: along its rows as keys, across them
// as values; two tiles are on their way. Otherwise place 0 is for keys and place 1 for values.
//
// Rows, sight, hidden keys and what lies beyond a sequence's keys: as in attention_wgmma.cu. Scores are neither capped nor biased nor masked by an operand.
//
// d is 513 to 576 and dv 257 to 512; they and strides are multiples of 8.
//
// Grid (works, kv_heads), 384 threads. Measured nowhere yet: no GPU has run it.


#define ROWS 64
#define KEYS 64
// Panels of 64 columns of Q and K, and of V.
#define PANELS 9
#define V_PANELS 8
#define PANEL (64 * 128)
#define TILE (PANELS * PANEL)
// Keys of a warpgroup for the scores, and columns for the sums.
#define MY_KEYS 32
#define MY_COLUMNS 256
// Where a tile may begin.
#define ALIGNMENT 1024
// What the block's registers are shared out to: its 64 K, less what the copying warpgroup keeps.
#define FEW_REGISTERS 40
#define MANY_REGISTERS 232
// The barrier, by number, of the warpgroups that multiply.
#define BOTH 1

// Where a tile of keys and its values lie, and the parity of their phase.
struct Places {
  int keys, values;
  u32 parity;
};

__device__ __forceinline__ Places places_of(int tile, bool inside)
{
  return inside ? Places{tile & 1, tile & 1, (u32)tile >> 1 & 1} : Places{0, 1, (u32)tile & 1};
}

extern "C" __global__ void __launch_bounds__(384, 1)
    attention_latent(OPERANDS, const __grid_constant__ TensorMap k_map, const __grid_constant__ TensorMap v_map)
{
  // Aligned by hand: the compiler would round what stands before it up, and there is no room for that.
  extern __shared__ __align__(16) u8 shared[];
  // Of each place: full, empty; and where the last tile of values lands before its tail is made zero.
  __shared__ u64 barriers[5];
  // A bit for each box of a tile of keys whose block the table names none of.
  __shared__ u32 hidden[2];
  // The first and the last key that each row sees in its block's share of them.
  __shared__ Pair sights[ROWS];
  // Each warpgroup's maximum of a row's scores in this tile; at the end its sum of exponentials.
  __shared__ float exchanged[2][ROWS];
  APPLY_OFFSETS;
  const int lane = threadIdx.x % 32, warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0), group = heads / kv_heads, kv_head = blockIdx.y;
  Work w;
  if (!find_work(blockIdx.x, w, ROWS, LENGTHS)) return;
  const Sequence s = w.s;
  const int rows = s.queries * group;
  if (flags & CAUSAL) w.tile = s.tiles - 1 - w.tile;
  const int first_row = w.tile * ROWS, last_row = min(first_row + ROWS, rows) - 1;
  int first = sight_of(first_row / group, s, window, flags).x / KEYS * KEYS, end = sight_of(last_row / group, s, window, flags).y + 1;
  if (s.splits > 1) {
    first = max(first, w.split * SPLIT_KEYS);
    end = min(end, (w.split + 1) * SPLIT_KEYS);
  }
  const int tiles = end > first ? (end - first + KEYS - 1) / KEYS : 0;
  const bool inside = v == k && dv <= d && v_batch_stride == k_batch_stride && v_head_stride == k_head_stride && v_row_stride == k_row_stride;

  const u32 q_tile = (shared_address(shared) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT, ring = q_tile + TILE, p_tile = ring + 2 * TILE;
  const u32 full = shared_address(barriers), empty = full + 16, landed = empty + 16;
  if (threadIdx.x == 0) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      barrier_init(full + 8 * i, 1);
      barrier_init(empty + 8 * i, 8);
    }
    barrier_init(landed, 1);
    barriers_are_initialised();
  }
  __syncthreads();

  if (warpgroup == 2) {
    give_registers_up<FEW_REGISTERS>();
    if (threadIdx.x / 32 % 4 != 0) return;
    if (lane == 0) {
      prefetch_map(&k_map);
      prefetch_map(&v_map);
    }
#if LAYOUT == 2
    const int box_keys = min(block_size, KEYS), pages = KEYS / box_keys, pages_of_sequence = (s.keys + block_size - 1) / block_size;
    const int* table = block_table + s.index * block_table_stride;
#endif
    const int k_head = k_head_stride == 0 ? 0 : kv_head, v_head = v_head_stride == 0 ? 0 : kv_head;
    // Asks for the keys (or values) from first_key on; a box lies in one block of the cache.
    auto ask = [&](bool values, int first_key, u32 to, u32 barrier, u32* marks) {
      const TensorMap* map = values ? &v_map : &k_map;
      const int panels = values ? V_PANELS : PANELS, head = values ? v_head : k_head;
#if LAYOUT == 2
      int block = -1;
      const int page = (first_key + lane * box_keys) / block_size;
      bool none = false;
      if (lane < pages && page < pages_of_sequence) {
        block = table[page * block_table_column_stride];
        none = block < 0 || block >= blocks;
        if (none) {
          atomicOr(status, STATUS_BLOCK);
          block = -1;
        }
      }
      const u32 without = __ballot_sync(0xffffffffu, none);
      if (lane == 0) {
        if (marks) *marks = without;
        barrier_expect(barrier, panels * PANEL);
      }
      __syncwarp();
      // A box of block -1 lies outside, and is zero.
      if (lane < pages)
        for (int i = 0; i < panels; i++)
          load_tile(to + i * PANEL + lane * box_keys * 128, map, barrier, i * 64, (first_key + lane * box_keys) % block_size, head,
                    (values ? v_batch_stride : k_batch_stride) == 0 && block > 0 ? 0 : block);
#else
      if (lane == 0) barrier_expect(barrier, panels * PANEL);
      __syncwarp();
      if (lane < panels)
        load_tile(to + lane * PANEL, map, barrier, lane * 64, s.first_key + first_key, head,
                  LAYOUT == 0 && (values ? v_batch_stride : k_batch_stride) != 0 ? s.index : 0);
#endif
    };
#pragma unroll 1
    for (int i = 0; i < tiles; i++) {
      const Places at = places_of(i, inside);
      const int first_key = first + i * KEYS, there = s.keys - first_key;
      // Only the last tile ends beyond the keys.
      const bool tail = there < KEYS && (LAYOUT != 0 || s.keys < kv_len);
      const u32 values = ring + at.values * TILE, values_full = full + 8 * at.values;
      barrier_wait(empty + 8 * at.keys, at.parity ^ 1);
      ask(false, first_key, ring + at.keys * TILE, inside && tail ? landed : full + 8 * at.keys, LAYOUT == 2 ? hidden + at.keys : 0);
      if (!inside) {
        barrier_wait(empty + 8 * at.values, at.parity ^ 1);
        ask(true, first_key, values, tail ? landed : values_full, 0);
      }
      if (tail) {
        barrier_wait(landed, 0);
#pragma unroll 1
        for (int panel = 0; panel < V_PANELS; panel++)
#pragma unroll 1
          for (u32 from = there * 128 + lane * 16; from < PANEL; from += 32 * 16)
            asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(values + panel * PANEL + from), "r"(0) : "memory");
        fence_for_engines();
        __syncwarp();
        if (lane == 0) barrier_arrive(values_full);
      }
    }
    return;
  }

  take_registers<MANY_REGISTERS>();
  // A negative scale is the queries' sign; without a scale, they are zero.
  const u32 sign = scale < 0.0f ? 0x80008000u : 0u, keep = scale == 0.0f ? 0u : 0xffffffffu;
  const float unit = scale == 0.0f ? 1.0f : fabsf(scale);
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int line = threadIdx.x / 8 + 32 * i, row = first_row + line, query = row / group, head = row + (kv_head - query) * group;
    const T* from = q + (row <= last_row ? row_of_query(s, query, head, q_batch_stride, q_head_stride, q_row_stride) : 0);
#pragma unroll
    for (int panel = 0; panel < PANELS; panel++) {
      const int chunk = threadIdx.x % 8;
      uint4 x = make_uint4(0, 0, 0, 0);
      if (row <= last_row && panel * 64 + chunk * 8 < d) x = *(const uint4*)(from + panel * 64 + chunk * 8);
      asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(q_tile + panel * PANEL + line * 128 + (chunk ^ line % 8) * 16),
                   "r"((x.x ^ sign) & keep), "r"((x.y ^ sign) & keep), "r"((x.z ^ sign) & keep), "r"((x.w ^ sign) & keep)
                   : "memory");
    }
  }
  if (threadIdx.x < ROWS) {
    const Pair sight = sight_of(min(first_row + (int)threadIdx.x, rows - 1) / group, s, window, flags);
    sights[threadIdx.x] = Pair{sight.x, min(sight.y, end - 1)};
  }
  fence_for_engines();
  barrier_of(BOTH, 256);

  // A thread has rows lane / 4 and lane / 4 + 8 of its warp's 16, and of each eight columns two.
  const int my_line = 16 * (threadIdx.x / 32 % 4) + lane / 4, my_keys = MY_KEYS * warpgroup;
  // Scores count in units of `unit`, exponentials are of base 2.
  const float power = unit * 1.44269504f;
  float scores[MY_KEYS / 2], acc[MY_COLUMNS / 2], most[2], sum[2], rescale[2];
#pragma unroll
  for (int i = 0; i < MY_COLUMNS / 2; i++) acc[i] = 0.0f;
  most[0] = most[1] = -infinity();
  sum[0] = sum[1] = 0.0f;

  // A box's keys are a power of two, and whole eights.
  const int box_shift = LAYOUT == 2 ? 31 - __clz(min(block_size, KEYS)) : 0;
  auto begin_scores = [&](int place) {
    // Numbers that the compiler does not know again: descriptors of all products would be kept in registers.
    u32 queries = q_tile, keys = ring + place * TILE + my_keys * 128;
    asm volatile("" : "+r"(queries), "+r"(keys));
    const u64 q_operand = operand_at(queries), k_operand = operand_at(keys);
#pragma unroll
    for (int x = 0; x < 4 * PANELS; x++)
      Product<MY_KEYS>::of_shared<0, 0>(scores, q_operand + (x / 4 * PANEL + x % 4 * 32) / 16,
                                        k_operand + (x / 4 * PANEL + x % 4 * 32) / 16, x > 0);
    products_commit();
  };
  auto begin_sums = [&](int place) {
    const u64 p_operand = operand_at(p_tile), v_operand = operand_at(ring + place * TILE + warpgroup * (MY_COLUMNS / 64 * PANEL), PANEL);
#pragma unroll
    for (int j = 0; j < KEYS / 16; j++)
      Product<MY_COLUMNS>::of_shared<0, 1>(acc, p_operand + j * (32 / 16), v_operand + j * (2048 / 16), 1);
    products_commit();
  };
  // Makes exponentials of scores, of a maximum that both warpgroups know; what came before counts `rescale` times.
  auto softmax = [&](int first_key, u32 without) {
    if ((LAYOUT == 2 && without != 0) || first_key < sights[ROWS - 1].x || first_key + KEYS - 1 > sights[0].y) {
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const Pair sight = sights[my_line + 8 * h];
#pragma unroll
        for (int j = 0; j < MY_KEYS / 8; j++)
#pragma unroll
          for (int e = 0; e < 2; e++) {
            float& score = scores[4 * j + 2 * h + e];
            const int key = first_key + my_keys + 8 * j + lane % 4 * 2 + e;
            const bool seen = key >= sight.x && key <= sight.y && (LAYOUT != 2 || !(without >> (my_keys + 8 * j >> box_shift) & 1));
            score = seen ? score : -infinity();
          }
      }
    }
    float top[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      // A NaN score never becomes the maximum: it reaches the result through its exponential.
      top[h] = most[h];
#pragma unroll
      for (int j = 0; j < MY_KEYS / 8; j++) top[h] = greater(greater(top[h], scores[4 * j + 2 * h]), scores[4 * j + 2 * h + 1]);
      top[h] = greater(top[h], in_lane(top[h], 1));
      top[h] = greater(top[h], in_lane(top[h], 2));
      if (lane % 4 == 0) exchanged[warpgroup][my_line + 8 * h] = top[h];
    }
    // Both have done their products of the tile before, too: P is free.
    barrier_of(BOTH, 256);
#pragma unroll
    for (int h = 0; h < 2; h++) {
      top[h] = greater(top[h], exchanged[1 - warpgroup][my_line + 8 * h]);
      // Where nothing was seen yet the maximum is -inf, and -inf - -inf would be NaN.
      const float base = top[h] == -infinity() ? 0.0f : top[h] * power;
      rescale[h] = exp2_approximately(fmaf(most[h], power, -base));
      most[h] = top[h];
      float share = 0.0f;
#pragma unroll
      for (int j = 0; j < MY_KEYS / 8; j++) {
        const float p[2] = {exp2_approximately(fmaf(scores[4 * j + 2 * h], power, -base)),
                            exp2_approximately(fmaf(scores[4 * j + 2 * h + 1], power, -base))};
        share += p[0];
        share += p[1];
        const int line = my_line + 8 * h, chunk = my_keys / 8 + j;
        asm volatile("st.shared.b32 [%0], %1;" ::"r"(p_tile + line * 128 + (chunk ^ line % 8) * 16 + lane % 4 * 4), "r"(pack(p[0], p[1])) : "memory");
      }
      sum[h] = fmaf(sum[h], rescale[h], share);
    }
    fence_for_engines();
  };
  auto release = [&](int place) {
    if (lane == 0) barrier_arrive(empty + 8 * place);
  };

  if (tiles > 0) {
    Places at = places_of(0, inside);
    barrier_wait(full + 8 * at.keys, at.parity);
    u32 without = LAYOUT == 2 ? hidden[at.keys] : 0;
    products_begin();
    begin_scores(at.keys);
    products_wait<0>();
    hold_registers(scores);
    if (!inside) release(at.keys);
#pragma unroll 1
    for (int i = 0; i < tiles; i++) {
      softmax(first + i * KEYS, without);
#pragma unroll
      for (int c = 0; c < MY_COLUMNS / 2; c++) acc[c] *= rescale[c / 2 % 2];
      barrier_of(BOTH, 256);
      if (!inside) barrier_wait(full + 8 * at.values, at.parity);
      hold_registers(acc);
      hold_registers(scores);
      products_begin();
      begin_sums(at.values);
      if (i + 1 < tiles) {
        const Places next = places_of(i + 1, inside);
        barrier_wait(full + 8 * next.keys, next.parity);
        without = LAYOUT == 2 ? hidden[next.keys] : 0;
        products_begin();
        begin_scores(next.keys);
        products_wait<1>();
        release(at.values);
        at = next;
        products_wait<0>();
        hold_registers(scores);
        hold_registers(acc);
        if (!inside) release(at.keys);
      } else {
        products_wait<0>();
        hold_registers(acc);
      }
    }
  }

#pragma unroll
  for (int h = 0; h < 2; h++) {
    sum[h] += in_lane(sum[h], 1);
    sum[h] += in_lane(sum[h], 2);
    if (lane % 4 == 0) exchanged[warpgroup][my_line + 8 * h] = sum[h];
  }
  // The queries have been read, too: results take their place.
  barrier_of(BOTH, 256);
  const int first_column = MY_COLUMNS * warpgroup;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int line = my_line + 8 * h, row = min(first_row + line, last_row), query = row / group, head = row + (kv_head - query) * group;
    const bool mine = row == first_row + line, writes = mine && warpgroup == 0 && lane % 4 == 0;
    const float all = exchanged[0][line] + exchanged[1][line];
    if (s.splits > 1) {
      if (!mine) continue;
      float* to = partial + (((i64)(s.slot + w.split) * kv_heads + kv_head) * split_rows + row) * (dv + 2);
      if (writes) store_two(to + dv, most[h] * unit, all);
#pragma unroll
      for (int c = 0; c < MY_COLUMNS / 8; c++)
        if (first_column + c * 8 < dv) store_two(to + first_column + c * 8 + lane % 4 * 2, acc[4 * c + 2 * h], acc[4 * c + 2 * h + 1]);
      continue;
    }
    const Finish last = finish_row(most[h] * unit, all, flags & SINKS, flags & SINKS ? sinks[head * sinks_stride] : 0.0f);
    if ((flags & LSE) && writes) lse[row_of_query(s, query, head, lse_batch_stride, lse_head_stride, lse_row_stride)] = last.lse;
    // 16 bytes of a row lie together when they are stored.
#pragma unroll
    for (int c = 0; c < MY_COLUMNS / 8; c++)
      asm volatile("st.shared.b32 [%0], %1;" ::"r"(q_tile + (first_column / 64 + c / 8) * PANEL + line * 128 + (c % 8 ^ line % 8) * 16 + lane % 4 * 4),
                   "r"(pack(acc[4 * c + 2 * h] * last.factor, acc[4 * c + 2 * h + 1] * last.factor)) : "memory");
  }
  if (s.splits > 1) return;
  __syncwarp();
  const int first_line = my_line - lane / 4;
#pragma unroll 1
  for (int line = first_line; line < first_line + 16; line++) {
    const int row = first_row + line, query = row / group, head = row + (kv_head - query) * group;
    if (row > last_row) break;
    T* to = o + row_of_query(s, query, head, o_batch_stride, o_head_stride, o_row_stride);
    const int chunk = first_column / 8 + lane;
    if (chunk * 8 >= dv) continue;
    uint4 x;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "r"(q_tile + chunk / 8 * PANEL + line * 128 + (chunk % 8 ^ line % 8) * 16) : "memory");
    if (o_stride == 1 && (u64)to % 16 == 0) {
      *(uint4*)(to + chunk * 8) = x;
      continue;
    }
    const u32 pairs[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
    for (int e = 0; e < 8; e++) to[(chunk * 8 + e) * o_stride] = (u16)(pairs[e / 2] >> e % 2 * 16);
  }
}
