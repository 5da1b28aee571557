/* Products on Hopper's matrix units, in tiles of wgmma.cu. As many blocks as the device has multiprocessors walk the tiles of d:
 *
 *   grid   x: blocks, those of a cluster side by side; each takes every gridDim.x-th tile
 *
 *          n ->
 *   m    1  3  5  7 ..        Tiles go in bands of BAND along m, so that what is in level 2 cache is used again; batches one after another.
 *   |    2  4  6  8 ..        Blocks of a cluster take tiles one above the other.
 *
 *   Where d has too few tiles for the device (SPLIT_K), parts of k are tiles too: each stores its plain sums, [part][batch][m][n] in f32, and
 *   gemm_reduce adds them up in order: the result is the same in each run. Both begin before the launch before them has ended, as dependent.cu has it.
 *
 * a, b and d are tensor maps of four dimensions: k (or what lies side by side), rows (or k), inner batch, outer batch. Batches that an operand has not have extent 1, and
 * their bit in `batched` is 0: 1 a's inner, 2 a's outer, 4 b's inner, 8 b's outer.
 *
 * Tunables: see wgmma.cu.
 */
#define BAND (16 / CLUSTER)
#ifndef SPLIT_K
#define SPLIT_K 0
#endif

/* A tile of d, or a part of its k. */
struct Work {
  u32 row, column, part, batch;
};

struct Walk {
  u32 tiles_m, tiles_n, all;
};

/* The tile of this number for this block of the cluster. */
__device__ __forceinline__ Work work_of(const Walk& walk, u32 number, u32 rank, u32 batches)
{
  u32 tiles = walk.tiles_m * walk.tiles_n, tile = number % tiles, rest = number / tiles;
  u32 band = tile / (BAND * walk.tiles_n), in_band = tile % (BAND * walk.tiles_n), height = min(BAND, walk.tiles_m - band * BAND);
  Work work = {((band * BAND + in_band % height) * CLUSTER + rank) * BLOCK_M, in_band / height * OUTPUTS, rest / batches, rest % batches};
  return work;
}

/* Plain sums of a tile: gates and ups where columns of b are. */
__device__ __forceinline__ void store_partial(float* to, u32 row0, u32 m, u32 column0, u32 columns, u32 n, const float (&sums)[BLOCK_N / 2])
{
  u32 lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < BLOCK_N / 2; i += 2) {
    int half = SWIGLU ? i / (BLOCK_N / 4) : 0, in_half = i - half * (BLOCK_N / 4);
    u32 row = row0 + lane / 4 + i / 2 % 2 * 8, column = column0 + in_half / 4 * 8 + lane % 4 * 2;
    if (row >= m || column >= columns) continue;
    float* at = to + (u64)row * n + half * columns + column;
    if (n % 2 == 0 && (!SWIGLU || columns % 2 == 0)) *(float2*)at = make_float2(sums[i], sums[i + 1]);
    else {
      at[0] = sums[i];
      if (column + 1 < columns) at[1] = sums[i + 1];
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
#if CLUSTER > 1
__cluster_dims__(CLUSTER, 1, 1)
#endif
gemm_wgmma(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b,
#if D_BY_MAP && !SPLIT_K
           const __grid_constant__ TensorMap d_map,
#endif
           const void* c, u64 c_offset, const void* bias, u64 bias_offset, void* d, u64 d_offset, float* partial, u64 partial_offset,
           u32 m, u32 n, u32 k, u32 batch_inner, u32 batches, u32 batched, u32 parts, u32 k_split, float alpha, float beta,
           u64 c_row, u64 c_col, u64 c_batch_outer, u64 c_batch_inner, u64 bias_col, u64 d_row, u64 d_col, u64 d_batch_outer, u64 d_batch_inner)
{
  extern __shared__ __align__(1024) u8 shared_bytes[];
  u32 shared = shared_address(shared_bytes), rank = rank_in_cluster(), columns = SWIGLU ? n / 2 : n;
  u32 tiles_m = (m + CLUSTER * BLOCK_M - 1) / (CLUSTER * BLOCK_M), tiles_n = (columns + OUTPUTS - 1) / OUTPUTS;
  Walk walk = {tiles_m, tiles_n, tiles_m * tiles_n * batches * parts};
  Ring ring = begin_ring(shared);
  wait_for_previous_launch();
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
      for (u32 number = blockIdx.x / CLUSTER; number < walk.all; number += gridDim.x / CLUSTER) {
        Work work = work_of(walk, number, rank, batches);
        int inner = work.batch % batch_inner, outer = work.batch / batch_inner;
        int up = SWIGLU ? work.column + columns : work.column + HALF;
        u32 k0 = SPLIT_K ? work.part * k_split : 0, k_end = SPLIT_K ? min(k, k0 + k_split) : k;
        Operands operands = {(int)work.row, (int)work.column, up, batched & 1 ? inner : 0, batched & 2 ? outer : 0,
                             batched & 4 ? inner : 0, batched & 8 ? outer : 0, k0, k_end};
        load_slices(ring, &a, &b, operands, rank);
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
#pragma unroll 1
    for (u32 number = blockIdx.x / CLUSTER; number < walk.all; number += gridDim.x / CLUSTER) {
      Work work = work_of(walk, number, rank, batches);
      u32 k0 = SPLIT_K ? work.part * k_split : 0, k_end = SPLIT_K ? min(k, k0 + k_split) : k, row = work.row + row_of_warp;
      float sums[BLOCK_N / 2];
      multiply_slices(ring, (k_end - k0 + SLICE - 1) / SLICE, warpgroup - 1, sums);
      if (row >= m) continue;
#if SPLIT_K
      float* to = partial + partial_offset + ((u64)work.part * batches + work.batch) * m * n;
      store_partial(to, row, m, work.column, columns, n, sums);
#else
      u64 inner = work.batch % batch_inner, outer = work.batch / batch_inner;
      Epilogue e = {alpha, beta, HAS, ACTIVATION,
                    element_at(c, c_offset + outer * c_batch_outer + inner * c_batch_inner, C_DTYPE), element_at(bias, bias_offset, C_DTYPE),
                    c_row, c_col, 0, bias_col,
                    (void*)element_at(d, d_offset + outer * d_batch_outer + inner * d_batch_inner, D_DTYPE), d_row, d_col, n / 2};
      Target target = {row, m, m, work.column, columns, (int)row, (int)inner, (int)outer};
#if D_BY_MAP
      store_by_map(e, target, &d_map, buffers, sums);
#else
      store_by_element(e, target, sums);
#endif
#endif
    }
    end_buffers();
    end_ring();
  }
}
