/* Grouped products on Hopper's matrix units, in tiles of wgmma.cu. The rows of a tile are those of one expert, found in the offsets or counts on the device.
 *
 *   grid   x: as many blocks as the device has multiprocessors, those of a cluster side by side; each takes every gridDim.x-th tile, those of one block of
 *          rows side by side
 *
 *   expert 0  | tile | tile | ..    BLOCK_M rows each. Rows of a past an expert's last are the next one's: they are multiplied and not stored.
 *   expert 1  | tile | tile | ..    A warp whose 16 rows are all of this expert stores them by the copy engine, else element by element.
 *
 * There may be more tiles in the walk than rows to compute: they have nothing to do, or zero the rows that belong to no expert. With offsets those come
 * last, and the walk ends there.
 * a, b and d are tensor maps of four dimensions: k (columns), rows, experts, 1. Without capacities all rows of a and d are those of one expert.
 *
 * Tunables: see wgmma.cu. Few rows an expert want BLOCK_M 64. The blocks of a cluster take tiles of one expert side by side; the last may have no columns.
 */
#if A_ACROSS || B_ACROSS || HAS
#error "grouped products have no operands across k and no c or bias"
#endif

extern "C" __global__ void __launch_bounds__(THREADS, 1)
#if CLUSTER > 1
__cluster_dims__(CLUSTER, 1, 1)
#endif
grouped_wgmma(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b,
#if D_BY_MAP
              const __grid_constant__ TensorMap d_map,
#endif
              const int* routing, u64 routing_offset, void* d, u64 d_offset, u32* status, u64 status_offset,
              u32 rows, u32 experts, u32 capacity, u32 masked, u32 n, u32 k, u64 d_expert, u64 d_row, u64 d_col)
{
  wait_for_previous_launch();
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
        Operands operands = {(int)(masked ? r.begin : r.base + r.begin), column, (int)(SWIGLU ? column + columns : column + HALF),
                             masked ? (int)r.expert : 0, 0, (int)r.expert, 0, 0, k};
        if (threadIdx.x == 0) load_slices(ring, &a, &b, operands, rank);
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
      float sums[BLOCK_N / 2];
      if (r.begin < r.end) multiply_slices(ring, (k + SLICE - 1) / SLICE, warpgroup - 1, sums);
      u32 row = r.begin + row_of_warp;
      if (row >= r.limit) continue;
      void* to = (void*)element_at(d, d_offset + (masked ? r.expert * d_expert : r.base * d_row), D_DTYPE);
      Epilogue e = grouped_epilogue(ACTIVATION, to, d_row, d_col, n / 2);
      Target target = {row, r.end, r.limit, (number % tiles_n * CLUSTER + rank) * OUTPUTS, columns, (int)(masked ? row : r.base + row), masked ? (int)r.expert : 0, 0};
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
