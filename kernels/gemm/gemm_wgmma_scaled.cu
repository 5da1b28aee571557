/* Products of 8-bit floats with scales for blocks of them on Hopper's matrix units (sm_90a): e4m3, each block of 128 k summed by wgmma, the blocks in f32.
 *
 *   A block of threads stays on its multiprocessor and walks tiles of BLOCK_M x BLOCK_N. Its first warpgroup has one thread at work, which asks the copy engine for
 *   128 k of a and b at a time; the others multiply 64 rows each.
 *
 *     producer     wait empty[s]    expect bytes    load a, b -> stage s                                                | the next 128 k, the next tile, ...
 *     consumers    wait full[s]     4 products of 32 k -> partial    release the stage    sums += partial * (a_scale * b_scale) | ... finish, store
 *
 *     stage   | a: BLOCK_M rows of 128 bytes | b: BLOCK_N columns of 128 bytes |      STAGES of them; 128 bytes are a block of k and a swizzled row of a panel
 *
 *   The matrix units keep some 14 bits of such sums, whatever dtype they are handed back in: so each block starts at zero, and the CUDA cores add it to the
 *   whole. While one consumer does that, the other one's products keep the matrix units busy. Scales of the next block are loaded before this one's
 *   products have ended: two of a for each thread, and one of b, as 128 columns share it and tiles do not straddle them. Under swiglu half of a
 *   tile's columns are gate and half are up, each with a scale of its own; n / 2 is a multiple of 64 then.
 *
 *   b comes in two halves. Two blocks of a cluster compute tiles one above the other, which share b: each loads one half and sends it to both. Grouped, they
 *   compute tiles side by side, which share a, and send each other its upper and lower rows. A stage is therefore free when the consumers of both blocks
 *   have read it.
 *
 *   grid   x: as many blocks as the device has multiprocessors, those of a cluster side by side; each takes every gridDim.x-th tile
 *   maps   a [k, rows, matrix], b [k, n, matrix], d [columns, rows, matrix]: innermost first. With GROUPED matrices are experts, and the rows of a tile
 *          those of one, found in the offsets or counts on the device; without capacities all rows are those of matrix 0.
 *
 * Macros: wgmma_tile.cu, which has ring and stores; BLOCK_N is 32, 64 or 128 here.
 *
 * The structure is that of DeepGEMM (DeepSeek-AI, 2025); the scales are DeepSeek-V3's (Technical Report, 2024, section 3.3). No GPU has run it yet.
 */
#if A_DTYPE != E4M3 || B_DTYPE != E4M3
#error "a and b are e4m3"
#endif
#if BLOCK_N != 128 && BLOCK_N != 64 && BLOCK_N != 32
#error "a tile's columns share a scale"
#endif
#if GROUPED && HAS
#error "grouped products have no c or bias"
#endif

/* k, and columns of b, that share a scale. */
#define SCALE_BLOCK 128
/* Tiles along m that go together, so that what is in level 2 cache is used again. */
#define BAND (16 / CLUSTER)

/* ---- producer ---- */

/* What a tile is made of: rows of a from the first on, the first columns of both halves of b, and their matrices. */
struct Operands {
  int row, a_matrix, halves[2], b_matrix;
};

/* Half a tile's b, to every block that shares it. */
__device__ __forceinline__ void load_half_of_b(const TensorMap* b, u32 to, u32 full, const Operands& o, u32 half, int k)
{
  int column = half ? o.halves[1] : o.halves[0];
#if SHARES_B
  load_tile_to((1 << CLUSTER) - 1, to + half * HALF * 128, b, full, k, column, o.b_matrix);
#else
  load_tile(to + half * HALF * 128, b, full, k, column, o.b_matrix);
#endif
}

/* Asks for all blocks of k of a tile, each as soon as its stage is free. By one thread. */
__device__ __forceinline__ void load_blocks(Ring& ring, const TensorMap* a, const TensorMap* b, const Operands& o, u32 k, u32 rank)
{
#pragma unroll 1
  for (u32 k0 = 0; k0 < k; k0 += SCALE_BLOCK) {
    u32 full = ring.full + 8 * ring.slot, to = ring.stage();
    barrier_wait_cluster(ring.empty + 8 * ring.slot, ring.parity ^ 1);
    /* what the other block sends counts too */
    barrier_expect(full, STAGE_BYTES);
#if SHARES_A
    load_tile_to((1 << CLUSTER) - 1, to + rank * (A_BYTES / CLUSTER), a, full, k0, o.row + rank * (BLOCK_M / CLUSTER), o.a_matrix);
#else
    load_tile(to, a, full, k0, o.row, o.a_matrix);
#endif
#if SHARES_B
    load_half_of_b(b, to + A_BYTES, full, o, rank, k0);
#else
    load_half_of_b(b, to + A_BYTES, full, o, 0, k0);
    load_half_of_b(b, to + A_BYTES, full, o, 1, k0);
#endif
    ring.advance();
  }
}

/* ---- consumers ---- */

/* The factors of one line, for one block of k after another: 1 where an operand has none. */
struct Factors {
  const float* at;
  u64 step;

  __device__ __forceinline__ float next()
  {
    if (at == nullptr) return 1.0f;
    float factor = *at;
    at += step;
    return factor;
  }
};

/* Scales as the host passes them: from the matrix's first on. */
struct Scales {
  const float* at;
  u64 row, block;
};

__device__ __forceinline__ Factors factors_of(const Scales& scales, u32 row)
{
  Factors factors = {scales.at == nullptr ? nullptr : scales.at + row * scales.row, scales.block};
  return factors;
}

/* Scaled sums of a tile over so many blocks of k, at least one. `a`: factors of this thread's rows; `b`: of the tile's halves. */
__device__ __forceinline__ void multiply_blocks(Ring& ring, u32 blocks, u32 consumer, Factors (&a)[2], Factors (&b)[2], float (&sums)[SUMS])
{
#pragma unroll
  for (int i = 0; i < SUMS; i++) sums[i] = 0.0f;
  float a_next[2] = {a[0].next(), a[1].next()}, b_next[2] = {b[0].next(), SWIGLU ? b[1].next() : 0.0f};
#pragma unroll 1
  for (u32 block = 0; block < blocks; block++) {
    float partial[SUMS], scale[2][2];
    u32 from_a = ring.stage() + consumer * 64 * 128, from_b = ring.stage() + A_BYTES;
    barrier_wait(ring.full + 8 * ring.slot, ring.parity);
    products_begin();
#pragma unroll
    for (u32 step = 0; step < SCALE_BLOCK / 32; step++)
      Product<BLOCK_N>::of_shared<0, 0>(partial, operand_at(from_a + step * 32), operand_at(from_b + step * 32), step);
    products_commit();
#pragma unroll
    for (int row = 0; row < 2; row++)
#pragma unroll
      for (int half = 0; half < 1 + SWIGLU; half++) scale[row][half] = a_next[row] * b_next[half];
    if (block + 1 < blocks) {
      a_next[0] = a[0].next(), a_next[1] = a[1].next();
      b_next[0] = b[0].next();
      if (SWIGLU) b_next[1] = b[1].next();
    }
    products_wait<0>();
    hold_registers(partial);
    release(ring.empty + 8 * ring.slot);
    ring.advance();
#pragma unroll
    for (int i = 0; i < SUMS; i++) sums[i] = fmaf(partial[i], scale[i / 2 % 2][SWIGLU ? i / (SUMS / 2) : 0], sums[i]);
  }
}

/* Sums of the warp's 16 rows from `row` on, whose scales end at `end`, and of the columns that `o` says. */
__device__ __forceinline__ void multiply_tile(Ring& ring, u32 k, u32 consumer, const Scales& a, u32 row, u32 end, const Scales& b, u32 column, u32 up,
                                              float (&sums)[SUMS])
{
  u32 lane = threadIdx.x % 32;
  Factors of_rows[2] = {factors_of(a, min(row + lane / 4, end - 1)), factors_of(a, min(row + lane / 4 + 8, end - 1))};
  Factors of_columns[2] = {factors_of(b, column / SCALE_BLOCK), factors_of(b, up / SCALE_BLOCK)};
  multiply_blocks(ring, (k + SCALE_BLOCK - 1) / SCALE_BLOCK, consumer, of_rows, of_columns, sums);
}

#if !GROUPED
/* A tile of d. */
struct Work {
  u32 row, column;
};

/* The tile of this number for this block of the cluster: bands along m, tile after tile. */
__device__ __forceinline__ Work work_of(u32 tiles_m, u32 tiles_n, u32 tile, u32 rank)
{
  u32 band = tile / (BAND * tiles_n), in_band = tile % (BAND * tiles_n), height = min(BAND, tiles_m - band * BAND);
  Work work = {((band * BAND + in_band % height) * CLUSTER + rank) * BLOCK_M, in_band / height * OUTPUTS};
  return work;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
#if CLUSTER > 1
__cluster_dims__(CLUSTER, 1, 1)
#endif
gemm_wgmma_scaled(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b,
#if D_BY_MAP
                  const __grid_constant__ TensorMap d_map,
#endif
                  const void* c, u64 c_offset, const void* bias, u64 bias_offset, void* d, u64 d_offset, const float* a_scale, u64 a_scale_offset,
                  const float* b_scale, u64 b_scale_offset, u32 m, u32 n, u32 k, float alpha, float beta, u64 c_row, u64 c_col, u64 bias_col,
                  u64 d_row, u64 d_col, u64 a_scale_row, u64 a_scale_block, u64 b_scale_row, u64 b_scale_block)
{
  extern __shared__ __align__(1024) u8 shared_bytes[];
  u32 shared = shared_address(shared_bytes), rank = rank_in_cluster(), columns = SWIGLU ? n / 2 : n;
  u32 tiles_m = (m + CLUSTER * BLOCK_M - 1) / (CLUSTER * BLOCK_M), tiles_n = (columns + OUTPUTS - 1) / OUTPUTS, all = tiles_m * tiles_n;
  Ring ring = begin_ring(shared);
  /* the same for all lanes of a warp, and known to be */
  u32 warpgroup = __shfl_sync(0xffffffff, threadIdx.x / WARPGROUP, 0);

  if (warpgroup == 0) {
#if CONSUMERS > 1
    give_registers_up<40>();
#endif
    if (threadIdx.x == 0) {
      prefetch_map(&a);
      prefetch_map(&b);
#pragma unroll 1
      for (u32 number = blockIdx.x / CLUSTER; number < all; number += gridDim.x / CLUSTER) {
        Work work = work_of(tiles_m, tiles_n, number, rank);
        Operands operands = {(int)work.row, 0, {(int)work.column, (int)(work.column + (SWIGLU ? columns : HALF))}, 0};
        load_blocks(ring, &a, &b, operands, k, rank);
      }
    }
    __syncwarp();
    end_ring();
  } else {
#if CONSUMERS > 1
    take_registers<232>();
#endif
    u32 row_of_warp = (threadIdx.x / 32 - 4) * WARP_ROWS;
    Buffers buffers = begin_buffers(shared);
    Epilogue e = {alpha, beta, HAS, ACTIVATION, element_at(c, c_offset, C_DTYPE), element_at(bias, bias_offset, C_DTYPE),
                  c_row, c_col, 0, bias_col, (void*)element_at(d, d_offset, D_DTYPE), d_row, d_col, n / 2};
    Scales of_a = {a_scale == nullptr ? nullptr : a_scale + a_scale_offset, a_scale_row, a_scale_block};
    Scales of_b = {b_scale == nullptr ? nullptr : b_scale + b_scale_offset, b_scale_row, b_scale_block};
#pragma unroll 1
    for (u32 number = blockIdx.x / CLUSTER; number < all; number += gridDim.x / CLUSTER) {
      Work work = work_of(tiles_m, tiles_n, number, rank);
      u32 row = work.row + row_of_warp;
      float sums[SUMS];
      multiply_tile(ring, k, warpgroup - 1, of_a, row, m, of_b, work.column, work.column + (SWIGLU ? columns : 0), sums);
      if (row >= m) continue;
      Target target = {row, m, m, work.column, columns, (int)row, 0};
#if D_BY_MAP
      store_by_map(e, target, &d_map, buffers, sums);
#else
      store_by_element(e, target, sums);
#endif
    }
    end_buffers();
    end_ring();
  }
}
#else
extern "C" __global__ void __launch_bounds__(THREADS, 1)
#if CLUSTER > 1
__cluster_dims__(CLUSTER, 1, 1)
#endif
grouped_wgmma_scaled(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b,
#if D_BY_MAP
                     const __grid_constant__ TensorMap d_map,
#endif
                     const int* routing, u64 routing_offset, void* d, u64 d_offset, u32* status, u64 status_offset,
                     const float* a_scale, u64 a_scale_offset, const float* b_scale, u64 b_scale_offset,
                     u32 rows, u32 experts, u32 capacity, u32 masked, u32 n, u32 k, u64 d_expert, u64 d_row, u64 d_col,
                     u64 a_scale_expert, u64 a_scale_row, u64 a_scale_block, u64 b_scale_expert, u64 b_scale_row, u64 b_scale_block)
{
  extern __shared__ __align__(1024) u8 shared_bytes[];
  u32 shared = shared_address(shared_bytes), rank = rank_in_cluster(), columns = SWIGLU ? n / 2 : n;
  u32 tiles_n = (columns + CLUSTER * OUTPUTS - 1) / (CLUSTER * OUTPUTS);
  u32 blocks = masked ? (capacity + BLOCK_M - 1) / BLOCK_M * experts : (rows + BLOCK_M - 1) / BLOCK_M + experts, all = blocks * tiles_n;
  routing += routing_offset;
  if (blockIdx.x == 0) check_routing(routing, rows, experts, capacity, masked, status + status_offset, threadIdx.x, THREADS);
  Ring ring = begin_ring(shared);
  /* the same for all lanes of a warp, and known to be */
  u32 warpgroup = __shfl_sync(0xffffffff, threadIdx.x / WARPGROUP, 0);

  if (warpgroup == 0) {
#if CONSUMERS > 1
    give_registers_up<40>();
#endif
    if (threadIdx.x < 32) {
      if (threadIdx.x == 0) {
        prefetch_map(&a);
        prefetch_map(&b);
      }
#pragma unroll 1
      for (u32 number = blockIdx.x / CLUSTER; number < all; number += gridDim.x / CLUSTER) {
        Rows r = find_rows(routing, rows, experts, capacity, masked, number / tiles_n, BLOCK_M);
        if (r.begin >= r.end) {
          if (masked) continue;
          break;
        }
        int column = (number % tiles_n * CLUSTER + rank) * OUTPUTS;
        Operands operands = {(int)(masked ? r.begin : r.base + r.begin), masked ? (int)r.expert : 0,
                             {column, column + (int)(SWIGLU ? columns : HALF)}, (int)r.expert};
        if (threadIdx.x == 0) load_blocks(ring, &a, &b, operands, k, rank);
        __syncwarp();
      }
    }
    end_ring();
  } else {
#if CONSUMERS > 1
    take_registers<232>();
#endif
    u32 row_of_warp = (threadIdx.x / 32 - 4) * WARP_ROWS;
    Buffers buffers = begin_buffers(shared);
#pragma unroll 1
    for (u32 number = blockIdx.x / CLUSTER; number < all; number += gridDim.x / CLUSTER) {
      Rows r = find_rows(routing, rows, experts, capacity, masked, number / tiles_n, BLOCK_M);
      if (r.begin >= r.limit) {
        if (masked) continue;
        break;
      }
      /* the scales of a tile without columns are the last ones */
      u32 row = r.begin + row_of_warp, column = (number % tiles_n * CLUSTER + rank) * OUTPUTS, scaled = min(column, columns - 1);
      float sums[SUMS];
      if (r.begin < r.end) {
        Scales of_a = {a_scale, a_scale_row, a_scale_block}, of_b = {b_scale, b_scale_row, b_scale_block};
        if (a_scale != nullptr) of_a.at += a_scale_offset + (masked ? r.expert * a_scale_expert : r.base * a_scale_row);
        if (b_scale != nullptr) of_b.at += b_scale_offset + r.expert * b_scale_expert;
        multiply_tile(ring, k, warpgroup - 1, of_a, row, r.end, of_b, scaled, scaled + (SWIGLU ? columns : 0), sums);
      }
      if (row >= r.limit) continue;
      void* to = (void*)element_at(d, d_offset + (masked ? r.expert * d_expert : r.base * d_row), D_DTYPE);
      Epilogue e = grouped_epilogue(ACTIVATION, to, d_row, d_col, n / 2);
      Target target = {row, r.end, r.limit, column, columns, (int)(masked ? row : r.base + row), masked ? (int)r.expert : 0};
#if D_BY_MAP
      if (row + WARP_ROWS <= r.limit) store_by_map(e, target, &d_map, buffers, sums);
      else
#endif
        store_by_element(e, target, sums);
    }
    end_buffers();
    end_ring();
  }
}
#endif
