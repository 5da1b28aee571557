/* Products of 8-bit floats with scales for blocks of them, on CUDA cores: any strides, any device. Where a device has matrix units for 8 bits and
 * memory lies as they want it, gemm_wgmma_scaled.cu does it.
 *
 *              128 k   128 k   128 k                    d = act(alpha * sum over blocks of (a_scale * b_scale * sum in the block of (a * b)) + ...)
 *            +-------+-------+-----                     a_scale: one for each row and 128 k
 *   row of a |  * s  |  * s  |  ...                     b_scale: one for each 128 columns and 128 k
 *            +-------+-------+-----
 *
 * Compiled behind gemm_tiled.cu, whose tiles multiply one block of 128 k at a time; the block's sums are added to the whole ones by what scales
 * them. An operand without scales is taken as it is. Between two blocks nothing is fetched ahead: correctness on every device is what this file is for.
 *
 * Tunables: those of gemm_tiled.cu, with PER_ITEM at most 4, as each thread keeps twice PER_ITEM x PER_ITEM sums.
 *
 * DeepSeek-V3 Technical Report (2024), section 3.3; no GPU has run it yet.
 */

/* k (and columns of b) that share a scale. */
#define SCALE_BLOCK 128u

/* Factors of the rows of an operand. */
struct Scales {
  const float* at;
  u64 row, block;
};

__device__ __forceinline__ Scales scales_at(const float* scale, u64 offset, u64 row, u64 block)
{
  Scales scales = {scale == nullptr ? nullptr : scale + offset, row, block};
  return scales;
}

__device__ __forceinline__ float scale_of(const Scales& scales, u32 row, u32 block)
{
  return scales.at == nullptr ? 1.0f : scales.at[row * scales.row + block * scales.block];
}

/* Line of a tile that sum i of a thread at this place along a side belongs to. */
__device__ __forceinline__ u32 line_in_tile(u32 i, u32 place) { return i / V * (GROUP * V) + place * V + i % V; }

/* Scaled sums of one tile of d. */
__device__ __forceinline__ void multiply_scaled(Operand a, const Lines& rows, const Scales& a_scales, Operand b, const Lines& columns,
                                                const Scales& b_scales, u32 k, sum_t* tiles, sum_t sums[PER_ITEM][PER_ITEM])
{
#pragma unroll
  for (int i = 0; i < PER_ITEM; i++)
#pragma unroll
    for (int j = 0; j < PER_ITEM; j++) sums[i][j] = 0;
  for (u32 k0 = 0; k0 < k; k0 += SCALE_BLOCK) {
    sum_t part[PER_ITEM][PER_ITEM], a_scale[PER_ITEM], b_scale[PER_ITEM];
#pragma unroll
    for (int i = 0; i < PER_ITEM; i++) {
      u32 line;
      a_scale[i] = line_of(rows, line_in_tile(i, threadIdx.y), &line) ? scale_of(a_scales, line, k0 / SCALE_BLOCK) : 0.0f;
      b_scale[i] = line_of(columns, line_in_tile(i, threadIdx.x), &line) ? scale_of(b_scales, line / SCALE_BLOCK, k0 / SCALE_BLOCK) : 0.0f;
    }
    multiply_tile(a, rows, b, columns, min(k - k0, SCALE_BLOCK), tiles, part);
#pragma unroll
    for (int i = 0; i < PER_ITEM; i++)
#pragma unroll
      for (int j = 0; j < PER_ITEM; j++) sums[i][j] = fmaf(part[i][j], a_scale[i] * b_scale[j], sums[i][j]);
    a.at = element_at(a.at, SCALE_BLOCK * a.k, A_DTYPE);
    b.at = element_at(b.at, SCALE_BLOCK * b.k, B_DTYPE);
    /* The next block's tiles overwrite what the slowest thread may still read. */
    __syncthreads();
  }
}

#if !GROUPED
extern "C" __global__ void BOUNDS
gemm_scaled(const void* a, u64 a_offset, const void* b, u64 b_offset, const void* c, u64 c_offset, const void* bias, u64 bias_offset, void* d,
            u64 d_offset, u32 m, u32 n, u32 k, u32 batch_inner, float alpha, float beta, u32 has, u32 activation,
            u64 a_row, u64 a_col, u64 a_batch_outer, u64 a_batch_inner, u64 b_row, u64 b_col, u64 b_batch_outer, u64 b_batch_inner,
            u64 c_row, u64 c_col, u64 c_batch_outer, u64 c_batch_inner, u64 bias_col, u64 d_row, u64 d_col, u64 d_batch_outer, u64 d_batch_inner,
            const float* a_scale, u64 a_scale_offset, u64 a_scale_row, u64 a_scale_block, const float* b_scale, u64 b_scale_offset, u64 b_scale_row,
            u64 b_scale_block)
{
  __shared__ __align__(16) sum_t tiles[2 * BUFFERS * BUFFER];
  sum_t sums[PER_ITEM][PER_ITEM];
  u64 outer = blockIdx.z / batch_inner, inner = blockIdx.z % batch_inner;
  u32 swiglu = activation == ACTIVATION_SWIGLU, row0 = blockIdx.y * TILE;
  Lines rows = {row0, m, 0, 0}, columns = columns_of(blockIdx.x, n, swiglu);
  Operand from_a = {element_at(a, a_offset + outer * a_batch_outer + inner * a_batch_inner, A_DTYPE), a_row, a_col, SINGLE};
  Operand from_b = {element_at(b, b_offset + outer * b_batch_outer + inner * b_batch_inner, B_DTYPE), b_col, b_row, SINGLE};
  from_a.mode = mode_of(from_a.at, a_row, a_col, 0, A_DTYPE);
  from_b.mode = mode_of(from_b.at, b_col, b_row, swiglu, B_DTYPE);
  multiply_scaled(from_a, rows, scales_at(a_scale, a_scale_offset, a_scale_row, a_scale_block), from_b, columns,
                  scales_at(b_scale, b_scale_offset, b_scale_row, b_scale_block), k, tiles, sums);
  Epilogue e = {alpha, beta, has, activation,
                element_at(c, c_offset + outer * c_batch_outer + inner * c_batch_inner, C_DTYPE), element_at(bias, bias_offset, C_DTYPE),
                c_row, c_col, 0, bias_col,
                (void*)element_at(d, d_offset + outer * d_batch_outer + inner * d_batch_inner, D_DTYPE), d_row, d_col, n / 2};
  store_tile(sums, tiles, columns, [&](sum_t sum, sum_t up, u32 row, u32 column) {
    if (row0 + row < m) store_sum(e, sum, up, row0 + row, column);
  });
}
#else
extern "C" __global__ void BOUNDS
grouped_scaled(const void* a, u64 a_offset, const void* b, u64 b_offset, const int* routing, u64 routing_offset, void* d, u64 d_offset,
               u32* status, u64 status_offset, u32 rows, u32 experts, u32 capacity, u32 masked, u32 n, u32 k, u32 activation,
               u64 a_expert, u64 a_row, u64 a_col, u64 b_expert, u64 b_row, u64 b_col, u64 d_expert, u64 d_row, u64 d_col,
               const float* a_scale, u64 a_scale_offset, u64 a_scale_expert, u64 a_scale_row, u64 a_scale_block,
               const float* b_scale, u64 b_scale_offset, u64 b_scale_expert, u64 b_scale_row, u64 b_scale_block)
{
  __shared__ __align__(16) sum_t tiles[2 * BUFFERS * BUFFER];
  sum_t sums[PER_ITEM][PER_ITEM];
  routing += routing_offset;
  u32 swiglu = activation == ACTIVATION_SWIGLU;
  if (blockIdx.x == 0 && blockIdx.y == 0)
    check_routing(routing, rows, experts, capacity, masked, status + status_offset, threadIdx.y * GROUP + threadIdx.x, ITEMS);
  Rows r = find_rows(routing, rows, experts, capacity, masked, blockIdx.y, TILE);
  if (r.begin >= r.limit) return;
  Lines lines = {r.begin, r.end, 0, 0}, columns = columns_of(blockIdx.x, n, swiglu);
  /* b's rows of the op are columns of the product. */
  Operand from_a = {element_at(a, a_offset + (masked ? r.expert * a_expert : r.base * a_row), A_DTYPE), a_row, a_col, SINGLE};
  Operand from_b = {element_at(b, b_offset + r.expert * b_expert, B_DTYPE), b_row, b_col, SINGLE};
  from_a.mode = mode_of(from_a.at, a_row, a_col, 0, A_DTYPE);
  from_b.mode = mode_of(from_b.at, b_row, b_col, swiglu, B_DTYPE);
  Scales of_a = scales_at(a_scale, a_scale_offset + (masked ? r.expert * a_scale_expert : r.base * a_scale_row), a_scale_row, a_scale_block);
  Scales of_b = scales_at(b_scale, b_scale_offset + r.expert * b_scale_expert, b_scale_row, b_scale_block);
  multiply_scaled(from_a, lines, of_a, from_b, columns, of_b, r.begin < r.end ? k : 0, tiles, sums);
  void* to = (void*)element_at(d, d_offset + (masked ? r.expert * d_expert : r.base * d_row), D_DTYPE);
  Epilogue e = grouped_epilogue(activation, to, d_row, d_col, n / 2);
  store_tile(sums, tiles, columns, [&](sum_t sum, sum_t up, u32 row, u32 column) {
    row += r.begin;
    if (row >= r.limit) return;
    if (row < r.end) store_sum(e, sum, up, row, column);
    else store_1(to, row * d_row + column * d_col, 0.0f, D_DTYPE);
  });
}
#endif
