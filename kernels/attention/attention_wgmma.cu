// attention_wgmma: both products by warpgroups of Hopper (wgmma), keys and values by its copy engine (TMA), for f16 and bf16 on sm_90a; the
// division of the work is FlashAttention-3's (Shah et al. 2024). A block takes 64 rows for each of its CONSUMERS warpgroups, and one more
// warpgroup copies:
//
//   copying     K0   K1 V0   K2 V1   ..     tiles of KEYS keys, two rings of RING places; full[place]: bytes arrived, empty[place]: warps done
//   consumer 0  S0 softmax | S1, O += P0 V0 | softmax | S2, O += P1 V1 | softmax ..
//   consumer 1                  softmax     | S1, O += P0 V0 | softmax     | S2, ..          one after the other: products and softmax overlap
//
//   shared memory   | Q: 64 rows of each consumer | K: RING tiles | V: RING tiles |     rows of 128 bytes, swizzled; more columns: more such panels
//
//   S = Q K^T    a warpgroup: 64 rows by KEYS keys in f32, in registers; the next tile's is begun before the softmax of this one
//   softmax      a row of S is in four lanes: maximum by two shuffles; sums stay apart in the lanes until the end
//   O += P V     P, rounded to 16 bits, is in the registers where the first factor of wgmma belongs; V is read across its rows, as it lies
//
// Rows are (query, head in group) pairs, as in attention.cu, and are read once, by ordinary loads. Tiles reach beyond a sequence's keys, where
// other sequences' lie, or nobody's, NaN among them: such scores are hidden, and such values made zero by the copying warp before it hands the
// tile over. Keys beyond the block's sight are not loaded; tiles that all rows of a warpgroup see whole are not masked. Under `causal`, long
// tiles come first. Of a paged cache, a tile is several boxes of the block table's choosing.
//
// Tunables (-D):
//   D_MAX      128  bound of d: 64, 80, 96, 128, 192 or 256; d, dv and strides are multiples of 8
//   DV_MAX     128  likewise of dv
//   KEYS       128  keys in a tile, a multiple of 16 that Product has
//   CONSUMERS  2    warpgroups that multiply, 2 or 3 (one alone would leave ptxas too few registers, and spill)
//   RING       2    tiles of keys in shared memory, and as many of values
//   OPTIONS    0    1: scores are capped, biased or masked by an operand
//
// Grid (works, kv_heads), 128 * (1 + CONSUMERS) threads. Measured nowhere yet: no GPU has run it.

#ifndef D_MAX
#define D_MAX 128
#endif
#ifndef DV_MAX
#define DV_MAX 128
#endif
#ifndef KEYS
#define KEYS 128
#endif
#ifndef CONSUMERS
#define CONSUMERS 2
#endif
#ifndef RING
#define RING 2
#endif
#ifndef OPTIONS
#define OPTIONS 0
#endif

#define ROWS (64 * CONSUMERS)
// Panels of 64 columns of Q and K. Panels of V are as wide as divides its columns: a product must meet whole ones.
#define PANELS ((D_MAX + 63) / 64)
#define V_SWIZZLE (DV_MAX % 64 == 0 ? 128 : DV_MAX % 32 == 0 ? 64 : 32)
#define V_COLUMNS (V_SWIZZLE / 2)
#define V_PANELS (DV_MAX / V_COLUMNS)
// Results take the queries' place.
#define Q_BYTES (64 * 128 * (PANELS > (DV_MAX + 63) / 64 ? PANELS : (DV_MAX + 63) / 64))
#define K_PANEL (KEYS * 128)
#define K_BYTES (PANELS * K_PANEL)
#define V_PANEL (KEYS * V_SWIZZLE)
#define V_BYTES (V_PANELS * V_PANEL)
// Where a tile may begin.
#define ALIGNMENT 1024
// What the block's registers are shared out to: its 64 K, less what the copying warpgroup keeps.
#define FEW_REGISTERS (CONSUMERS == 3 ? 32 : 24)
#define MANY_REGISTERS (CONSUMERS == 3 ? 160 : 240)
// Barriers by number: a consumer's turn at the products, and its four warps among themselves.
#define TURN 1
#define AMONG 4

// As tanh_by_exp, by an approximate reciprocal of a number from 1 to 2: a division is a call here and there, for which registers are saved.
__device__ __forceinline__ float tanh_in_line(float x)
{
  const float t = exp_nonpositive(-2.0f * fabsf(x));
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(1.0f + t));
  return copysignf((1.0f - t) * inverse, x);
}

// The thread's number, read again.
__device__ __forceinline__ int thread_again()
{
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread)::"memory");
  return thread;
}

// The descriptor of values, whose rows are keys: 8 of them to the next, a panel of columns to the next.
__device__ __forceinline__ u64 values_at(u32 address)
{
  return (u64)(address >> 4 & 0x3fff) | (u64)(V_PANEL >> 4) << 16 | (u64)(8 * V_SWIZZLE >> 4) << 32 |
         (u64)(V_SWIZZLE == 128 ? 1 : V_SWIZZLE == 64 ? 2 : 3) << 62;
}

// What the options make of a scaled score, by its row and key.
struct Scores {
  const float* mask;
  float slope, softcap, inverse_softcap;
  i64 mask_stride;
  int position, flags;

  __device__ __forceinline__ float finish(float score, int key) const
  {
    if (flags & SOFTCAP) score = softcap * tanh_in_line(score * inverse_softcap);
    if (flags & ALIBI) score += slope * (float)(key - position);
    if (flags & MASK) {
      // A mask of -inf hides a key even from a NaN query.
      const float bias = mask[key * mask_stride];
      score = bias == -infinity() ? -infinity() : score + bias;
    }
    return score;
  }
};

// What a block has found out about its work.
struct Found {
  Sequence s;
  int split, rows, first_row, last_row, group;
};

// Of one ring: where its barriers lie, and the next place with the parity of its phase.
struct Place {
  int index;
  u32 parity;

  __device__ __forceinline__ void advance()
  {
    if (++index == RING) {
      index = 0;
      parity ^= 1;
    }
  }
};

extern "C" __global__ void __launch_bounds__(128 * (1 + CONSUMERS), 1)
    attention_wgmma(OPERANDS, const __grid_constant__ TensorMap k_map, const __grid_constant__ TensorMap v_map)
{
  extern __shared__ __align__(ALIGNMENT) u8 shared[];
  // Of keys and of values: full, empty; and where the values' last tile lands before its tail is made zero.
  __shared__ u64 barriers[4 * RING + 1];
  // A bit for each box of a tile of keys whose block the table names none of.
  __shared__ u32 hidden[RING];
  __shared__ Found found;
  // The first and the last key that each row sees in its block's share of them.
  __shared__ Pair sights[ROWS];
  APPLY_OFFSETS;
  const int lane = threadIdx.x % 32, warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0), group = heads / kv_heads, kv_head = blockIdx.y;
  Lengths lengths = LENGTHS;
  // Of a batch with few rows and many, another launch takes the few.
  lengths.few_rows = few_rows;
  Work w;
  if (!find_work(blockIdx.x, w, ROWS, lengths)) return;
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

  const u32 q_tile = (shared_address(shared) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  const u32 k_ring = q_tile + CONSUMERS * Q_BYTES, v_ring = k_ring + RING * K_BYTES;
  const u32 k_full = shared_address(barriers), k_empty = k_full + 8 * RING, v_full = k_empty + 8 * RING, v_empty = v_full + 8 * RING;
  const u32 landed = v_empty + 8 * RING;
  if (threadIdx.x == 0) {
    found = Found{s, w.split, rows, first_row, last_row, group};
#pragma unroll
    for (int i = 0; i < RING; i++) {
      barrier_init(k_full + 8 * i, 1);
      barrier_init(k_empty + 8 * i, 4 * CONSUMERS);
      barrier_init(v_full + 8 * i, 1);
      barrier_init(v_empty + 8 * i, 4 * CONSUMERS);
    }
    barrier_init(landed, 1);
    barriers_are_initialised();
  }
  __syncthreads();

  if (warpgroup == CONSUMERS) {
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
    auto ask = [&](bool values, int first_key, u32 to, u32 full, u32* marks) {
      const TensorMap* map = values ? &v_map : &k_map;
      const int panels = values ? V_PANELS : PANELS, columns = values ? V_COLUMNS : 64;
      const u32 panel = values ? V_PANEL : K_PANEL;
      const int head = values ? v_head : k_head;
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
        barrier_expect(full, values ? V_BYTES : K_BYTES);
      }
      __syncwarp();
      // A box of block -1 lies outside, and is zero.
      if (lane < pages)
        for (int i = 0; i < panels; i++)
          load_tile(to + i * panel + lane * box_keys * (2 * columns), map, full, i * columns, (first_key + lane * box_keys) % block_size, head,
                    (values ? v_batch_stride : k_batch_stride) == 0 && block > 0 ? 0 : block);
#else
      if (lane == 0) barrier_expect(full, values ? V_BYTES : K_BYTES);
      __syncwarp();
      if (lane < panels)
        load_tile(to + lane * panel, map, full, lane * columns, s.first_key + first_key, head,
                  LAYOUT == 0 && (values ? v_batch_stride : k_batch_stride) != 0 ? s.index : 0);
#endif
    };
    Place k_place = {0, 0}, v_place = {0, 0};
#pragma unroll 1
    for (int i = 0; i <= tiles; i++) {
      if (i < tiles) {
        barrier_wait(k_empty + 8 * k_place.index, k_place.parity ^ 1);
        ask(false, first + i * KEYS, k_ring + k_place.index * K_BYTES, k_full + 8 * k_place.index, LAYOUT == 2 ? hidden + k_place.index : 0);
        k_place.advance();
      }
      if (i == 0) continue;
      const int first_key = first + (i - 1) * KEYS, there = s.keys - first_key;
      const u32 tile = v_ring + v_place.index * V_BYTES, full = v_full + 8 * v_place.index;
      barrier_wait(v_empty + 8 * v_place.index, v_place.parity ^ 1);
      // Only the last tile ends beyond the keys.
      const bool tail = there < KEYS && (LAYOUT != 0 || s.keys < kv_len);
      ask(true, first_key, tile, tail ? landed : full, 0);
      if (tail) {
        barrier_wait(landed, 0);
#pragma unroll 1
        for (int panel = 0; panel < V_PANELS; panel++)
#pragma unroll 1
          for (u32 at = there * V_SWIZZLE + lane * 16; at < V_PANEL; at += 32 * 16)
            asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(tile + panel * V_PANEL + at), "r"(0) : "memory");
        fence_for_engines();
        __syncwarp();
        if (lane == 0) barrier_arrive(full);
      }
      v_place.advance();
    }
    return;
  }

  take_registers<MANY_REGISTERS>();
  const int warp = threadIdx.x / 32 % 4, my_first_row = first_row + 64 * warpgroup;
  // A negative scale is the queries' sign; without a scale, they are zero.
  const u32 sign = scale < 0.0f ? 0x80008000u : 0u, keep = scale == 0.0f ? 0u : 0xffffffffu;
  const float magnitude = scale == 0.0f ? 1.0f : fabsf(scale);
  const u32 my_queries = q_tile + warpgroup * Q_BYTES;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int line = threadIdx.x % 128 / 8 + 16 * i, row = my_first_row + line, query = row / group, head = row + (kv_head - query) * group;
    const T* from = q + (row <= last_row ? row_of_query(s, query, head, q_batch_stride, q_head_stride, q_row_stride) : 0);
#pragma unroll
    for (int panel = 0; panel < PANELS; panel++) {
      const int chunk = threadIdx.x % 8;
      uint4 x = make_uint4(0, 0, 0, 0);
      if (row <= last_row && panel * 64 + chunk * 8 < d) x = *(const uint4*)(from + panel * 64 + chunk * 8);
      asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(my_queries + panel * 8192 + line * 128 + (chunk ^ line % 8) * 16),
                   "r"((x.x ^ sign) & keep), "r"((x.y ^ sign) & keep), "r"((x.z ^ sign) & keep), "r"((x.w ^ sign) & keep)
                   : "memory");
    }
  }
  if (threadIdx.x % 128 < 64) {
    const int line = 64 * warpgroup + threadIdx.x % 128;
    const Pair sight = sight_of(min(first_row + line, rows - 1) / group, s, window, flags);
    sights[line] = Pair{sight.x, min(sight.y, end - 1)};
  }
  fence_for_engines();
  barrier_of(AMONG + warpgroup, 128);

  // A thread has rows lane / 4 and lane / 4 + 8 of its warp's 16, and of each eight columns two.
  const int my_line = 64 * warpgroup + 16 * warp + lane / 4, lane_key = lane % 4 * 2;
  // Scores count in units of `unit`, exponentials are of base 2.
  const float unit = OPTIONS ? 1.0f : magnitude, power = unit * 1.44269504f, inverse_softcap = __fdiv_rn(1.0f, softcap);
  float scores[KEYS / 2], acc[DV_MAX / 2], most[2], sum[2], rescale[2];
  u32 p[KEYS / 16][4];
#pragma unroll
  for (int i = 0; i < DV_MAX / 2; i++) acc[i] = 0.0f;
  most[0] = most[1] = -infinity();
  sum[0] = sum[1] = 0.0f;

  // A box's keys are a power of two, and whole eights.
  const int box_shift = LAYOUT == 2 ? 31 - __clz(min(block_size, KEYS)) : 0;
  const u64 q_operand = operand_at(my_queries), k_operand = operand_at(k_ring), v_operand = values_at(v_ring);
  auto begin_scores = [&](int place) {
#pragma unroll
    for (int x = 0; x < D_MAX / 16; x++)
      Product<KEYS>::of_shared<0, 0>(scores, q_operand + (x / 4 * 8192 + x % 4 * 32) / 16,
                                     k_operand + (u64)(place * (K_BYTES / 16)) + (x / 4 * K_PANEL + x % 4 * 32) / 16, x > 0);
    products_commit();
  };
  auto begin_sums = [&](int place) {
#pragma unroll
    for (int j = 0; j < KEYS / 16; j++)
      Product<DV_MAX>::of_registers<1>(acc, p[j], v_operand + (u64)(place * (V_BYTES / 16)) + j * V_SWIZZLE, 1);
    products_commit();
  };
  // Makes exponentials of scores; what came before counts `rescale` times.
  auto softmax = [&](int first_key, u32 without) {
    if (OPTIONS || (LAYOUT == 2 && without != 0) || first_key < sights[64 * warpgroup + 63].x ||
        first_key + KEYS - 1 > sights[64 * warpgroup].y) {
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const Pair sight = sights[my_line + 8 * h];
#if OPTIONS
        const int row = min(found.first_row + my_line + 8 * h, found.rows - 1), query = row / found.group, head = row + (kv_head - query) * found.group;
        // A number that the compiler does not know again: multiples of it for all keys would be kept in registers.
        i64 step = mask_stride;
        asm volatile("" : "+l"(step));
        const Scores options = {mask + found.s.index * mask_batch_stride + head * mask_head_stride + query * mask_row_stride,
                                flags & ALIBI ? alibi_slopes[head * alibi_slopes_stride] : 0.0f, softcap, inverse_softcap, step, found.s.keys - found.s.queries + query, flags};
#endif
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
          for (int e = 0; e < 2; e++) {
            float& score = scores[4 * j + 2 * h + e];
            const int key = first_key + lane_key + 8 * j + e;
            const bool seen = key >= sight.x && key <= sight.y && (LAYOUT != 2 || !(without >> (8 * j >> box_shift) & 1));
#if OPTIONS
            score = seen ? options.finish(score * magnitude, key) : -infinity();
#else
            score = seen ? score : -infinity();
#endif
          }
      }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
      // A NaN score never becomes the maximum: it reaches the result through its exponential.
      float top = most[h];
#pragma unroll
      for (int j = 0; j < KEYS / 8; j++) top = greater(greater(top, scores[4 * j + 2 * h]), scores[4 * j + 2 * h + 1]);
      top = greater(top, in_lane(top, 1));
      top = greater(top, in_lane(top, 2));
      // Where nothing was seen yet the maximum is -inf, and -inf - -inf would be NaN.
      const float base = top == -infinity() ? 0.0f : top * power;
      rescale[h] = exp2_approximately(fmaf(most[h], power, -base));
      most[h] = top;
      float share = 0.0f;
#pragma unroll
      for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          float& score = scores[4 * j + 2 * h + e];
          score = exp2_approximately(fmaf(score, power, -base));
          share += score;
        }
      sum[h] = fmaf(sum[h], rescale[h], share);
    }
  };
  auto round_scores = [&]() {
#pragma unroll
    for (int j = 0; j < KEYS / 16; j++)
#pragma unroll
      for (int e = 0; e < 4; e++) p[j][e] = pack(scores[8 * j + 2 * e], scores[8 * j + 2 * e + 1]);
  };
  auto release = [&](u32 empty) {
    if (lane == 0) barrier_arrive(empty);
  };

  Place k_place = {0, 0}, v_place = {0, 0};
  if (tiles > 0) {
    // The first turn is consumer 0's.
    if (tiles > 1 && warpgroup == CONSUMERS - 1) barrier_of_arrive(TURN, 256);
    barrier_wait(k_full, 0);
    u32 without = LAYOUT == 2 ? hidden[0] : 0;
    products_begin();
    begin_scores(0);
    products_wait<0>();
    hold_registers(scores);
    release(k_empty);
    k_place.advance();
    softmax(first, without);
    round_scores();
#pragma unroll 1
    for (int i = 1; i < tiles; i++) {
      barrier_wait(k_full + 8 * k_place.index, k_place.parity);
      without = LAYOUT == 2 ? hidden[k_place.index] : 0;
      barrier_of(TURN + warpgroup, 256);
      hold_registers(scores);
      hold_registers(acc);
      products_begin();
      begin_scores(k_place.index);
      barrier_wait(v_full + 8 * v_place.index, v_place.parity);
      products_begin();
      begin_sums(v_place.index);
      if (i < tiles - 1 || warpgroup < CONSUMERS - 1) barrier_of_arrive(TURN + (warpgroup + 1) % CONSUMERS, 256);
      products_wait<1>();
      hold_registers(scores);
      release(k_empty + 8 * k_place.index);
      k_place.advance();
      softmax(first + i * KEYS, without);
      products_wait<0>();
      hold_registers(acc);
      release(v_empty + 8 * v_place.index);
      v_place.advance();
#pragma unroll
      for (int c = 0; c < DV_MAX / 2; c++) acc[c] *= rescale[c / 2 % 2];
      round_scores();
    }
    barrier_wait(v_full + 8 * v_place.index, v_place.parity);
    hold_registers(acc);
    products_begin();
    begin_sums(v_place.index);
    products_wait<0>();
    hold_registers(acc);
  }

  // What follows is found again, so that registers need not keep it meanwhile.
  if (tiles > 0) barrier_of(AMONG + warpgroup, 128);
  const Sequence place = found.s;
  const int again = thread_again(), to_lane = again % 32, to_warp = again / 32, to_group = found.group, to_last = found.last_row;
  const int to_first = found.first_row + 16 * to_warp;
  const u32 results = (shared_address(shared) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT + to_warp / 4 * Q_BYTES + 16 * (to_warp % 4) * 128;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    sum[h] += in_lane(sum[h], 1);
    sum[h] += in_lane(sum[h], 2);
    const int line = to_lane / 4 + 8 * h, row = min(to_first + line, to_last);
    const int query = row / to_group, head = row + (kv_head - query) * to_group;
    const bool mine = row == to_first + line;
    if (place.splits > 1) {
      if (!mine) continue;
      float* to = partial + (((i64)(place.slot + found.split) * kv_heads + kv_head) * split_rows + row) * (dv + 2);
      if (to_lane % 4 == 0) store_two(to + dv, most[h] * unit, sum[h]);
#pragma unroll
      for (int c = 0; c < DV_MAX / 8; c++)
        if (c * 8 < dv) store_two(to + c * 8 + to_lane % 4 * 2, acc[4 * c + 2 * h], acc[4 * c + 2 * h + 1]);
      continue;
    }
    const Finish last = finish_row(most[h] * unit, sum[h], flags & SINKS, flags & SINKS ? sinks[head * sinks_stride] : 0.0f);
    if ((flags & LSE) && mine && to_lane % 4 == 0) lse[row_of_query(place, query, head, lse_batch_stride, lse_head_stride, lse_row_stride)] = last.lse;
    // Where the queries were, as they were: 16 bytes of a row lie together when they are stored.
#pragma unroll
    for (int c = 0; c < DV_MAX / 8; c++)
      asm volatile("st.shared.b32 [%0], %1;" ::"r"(results + c / 8 * 8192 + line * 128 + (c % 8 ^ line % 8) * 16 + to_lane % 4 * 4),
                   "r"(pack(acc[4 * c + 2 * h] * last.factor, acc[4 * c + 2 * h + 1] * last.factor)) : "memory");
  }
  if (place.splits > 1) return;
  __syncwarp();
#pragma unroll 1
  for (int line = to_lane / 8; line < 16; line += 4) {
    const int row = to_first + line, query = row / to_group, head = row + (kv_head - query) * to_group;
    if (row > to_last) continue;
    T* to = o + row_of_query(place, query, head, o_batch_stride, o_head_stride, o_row_stride);
    const bool at_once = o_stride == 1 && (u64)to % 16 == 0;
#pragma unroll 1
    for (int chunk = to_lane % 8; chunk * 8 < dv; chunk += 8) {
      uint4 x;
      asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                   : "r"(results + chunk / 8 * 8192 + line * 128 + (chunk % 8 ^ line % 8) * 16) : "memory");
      if (at_once) {
        *(uint4*)(to + chunk * 8) = x;
        continue;
      }
      const u32 pairs[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
      for (int e = 0; e < 8; e++) to[(chunk * 8 + e) * o_stride] = (u16)(pairs[e / 2] >> e % 2 * 16);
    }
  }
}
