/* Grouped products on matrix units, in tiles of mma.cu. The rows of a tile are those of one expert, found in the offsets or counts on the device.
 *
 *   grid   x: tiles of d, those of one block of rows side by side: its rows of a are read once from memory, and experts follow each other
 *
 *   expert 0  | tile | tile | ..    BLOCK_M rows each; the last block of an expert may have fewer, and there may be more blocks in the grid
 *   expert 1  | tile | tile | ..    than rows to compute: they find nothing to do, or zero the rows that belong to no expert.
 *
 * Tunables: see mma.cu. Few rows an expert want a small BLOCK_M.
 */
extern "C" __global__ void __launch_bounds__(THREADS, 1)
grouped_mma(const void* a, u64 a_offset, const void* b, u64 b_offset, const int* routing, u64 routing_offset, void* d, u64 d_offset,
            u32* status, u64 status_offset, u32 rows, u32 experts, u32 capacity, u32 masked, u32 n, u32 k, u32 activation,
            u64 a_expert, u64 a_row, u64 a_col, u64 b_expert, u64 b_row, u64 b_col, u64 d_expert, u64 d_row, u64 d_col)
{
  wait_for_previous_launch();
  extern __shared__ __align__(128) u8 shared[];
  routing += routing_offset;
  u32 columns = SWIGLU ? n / 2 : n, across = SWIGLU ? BLOCK_N / 2 : BLOCK_N, tiles_n = (columns + across - 1) / across;
  if (blockIdx.x == 0) check_routing(routing, rows, experts, capacity, masked, status + status_offset, threadIdx.x, THREADS);
  Rows r = find_rows(routing, rows, experts, capacity, masked, blockIdx.x / tiles_n, BLOCK_M);
  if (r.begin >= r.limit) return;
  Lines lines = {r.begin, r.end, 0}, of_b = columns_of(blockIdx.x % tiles_n, n);

  ShareOfA share_a;
  ShareOfB share_b;
  share_a.aim(element_at(a, a_offset + (masked ? r.expert * a_expert : r.base * a_row), A_DTYPE), a_row, a_col, lines, 0);
  share_b.aim(element_at(b, b_offset + r.expert * b_expert, B_DTYPE), b_row, b_col, of_b, 0);
  sum_t sums[ROW_FRAGMENTS][COLUMN_FRAGMENTS][4];
  multiply_tile(share_a, share_b, 0, r.begin < r.end ? k : 0, shared_address(shared), sums);

  void* to = (void*)element_at(d, d_offset + (masked ? r.expert * d_expert : r.base * d_row), D_DTYPE);
  Epilogue e = grouped_epilogue(activation, to, d_row, d_col, n / 2);
  bool at_once = stores_pairs(e);
  store_tile(sums, shared, [&](u32 row, u32 column, const sum_t* sum, const sum_t* up) {
    row += r.begin, column += of_b.first;
    if (row < r.end) store_pair(e, at_once, row, column, columns, sum, up);
    else if (row < r.limit)
      for (u32 i = 0; i < 2 && column + i < columns; i++) store_1(to, row * d_row + (column + i) * d_col, 0.0f, D_DTYPE);
  });
}
