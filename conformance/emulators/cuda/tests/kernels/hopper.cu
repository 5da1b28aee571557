// C = A B' in bf16 with f32 sums, as kernels for Hopper are made: tiles come by TMA, a producer warpgroup and a consumer warpgroup hand stages over by
// mbarriers, two blocks of a cluster share a tile of B, one product stays in flight, results leave by stmatrix and TMA; blocks stay for several tiles.
//
//   A: m x k, B: n x k, C: m x n, all of rows;  tiles 64 x 64, steps of 64 k;  a cluster has two tiles of rows and one of columns
//
// full[stage]: a thread announces the bytes, engines bring them. empty[stage]: the consumers of both blocks are done, as the tile of B goes to both.
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

struct __align__(64) TensorMap {
  u64 opaque[16];
};

#define STAGES 2
#define TILE_BYTES (64 * 128)
#define HALF_BYTES (TILE_BYTES / 2)

__device__ __forceinline__ void barrier_init(u32 barrier, u32 arrivals)
{
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void barrier_arrive_at(u32 barrier, u32 rank)
{
  asm volatile("{ .reg .b32 remote; mapa.shared::cluster.u32 remote, %0, %1; mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote]; }"
               ::"r"(barrier), "r"(rank) : "memory");
}

__device__ __forceinline__ void barrier_expect(u32 barrier, u32 bytes)
{
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ void barrier_wait(u32 barrier, u32 parity)
{
  asm volatile("{ .reg .pred done;\n"
               "again: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
               "@!done bra again; }" ::"r"(barrier), "r"(parity) : "memory");
}

__device__ __forceinline__ void cluster_sync()
{
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

__device__ __forceinline__ void load_tile(u32 to, const TensorMap* map, u32 barrier, int x, int y)
{
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
               ::"r"(to), "l"(map), "r"(barrier), "r"(x), "r"(y) : "memory");
}

__device__ __forceinline__ void load_tile_to(u32 blocks, u32 to, const TensorMap* map, u32 barrier, int x, int y)
{
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%4, %5}], [%2], %3;"
               ::"r"(to), "l"(map), "r"(barrier), "h"((u16)blocks), "r"(x), "r"(y) : "memory");
}

__device__ __forceinline__ u64 operand_at(u32 address)
{
  return (u64)(address >> 4 & 0x3fff) | (u64)1 << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}

#define SUMS(g) "+f"(d[8 * g]), "+f"(d[8 * g + 1]), "+f"(d[8 * g + 2]), "+f"(d[8 * g + 3]), "+f"(d[8 * g + 4]), "+f"(d[8 * g + 5]), "+f"(d[8 * g + 6]), "+f"(d[8 * g + 7])

__device__ __forceinline__ void product(float (&d)[32], u64 a, u64 b, u32 accumulate)
{
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %34, 0;\n"
               "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
               "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, %32, %33, p, 1, 1, 0, 0; }"
               : SUMS(0), SUMS(1), SUMS(2), SUMS(3) : "l"(a), "l"(b), "r"(accumulate));
}

__device__ __forceinline__ u32 packed(float low, float high)
{
  u32 pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

extern "C" __global__ void __launch_bounds__(256, 1) __cluster_dims__(2, 1, 1)
hopper(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap c, u32 m_tiles, u32 n_tiles, u32 steps)
{
  __shared__ __align__(1024) u8 tiles[STAGES][2][TILE_BYTES];
  __shared__ __align__(1024) u8 results[TILE_BYTES];
  __shared__ __align__(8) u64 full[STAGES];
  __shared__ __align__(8) u64 empty[STAGES];
  u32 first_full = (u32)__cvta_generic_to_shared(full), first_empty = (u32)__cvta_generic_to_shared(empty);
  u32 first_tile = (u32)__cvta_generic_to_shared(tiles), result = (u32)__cvta_generic_to_shared(results);
  u32 rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  u32 cluster = blockIdx.x / 2, clusters = gridDim.x / 2, pairs = m_tiles / 2;
  if (threadIdx.x == 0) {
    for (u32 stage = 0; stage < STAGES; stage++) {
      barrier_init(first_full + 8 * stage, 1);
      barrier_init(first_empty + 8 * stage, 2 * 4);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  cluster_sync(); /* at the start */
  u32 stage = 0, parity = 0;
  if (threadIdx.x >= 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == 128) {
#pragma unroll 1
      for (u32 tile = cluster; tile < pairs * n_tiles; tile += clusters) {
        int row = 64 * (2 * (tile % pairs) + rank), column = 64 * (tile / pairs);
#pragma unroll 1
        for (u32 step = 0; step < steps; step++) {
          u32 barrier = first_full + 8 * stage, to = first_tile + 2 * TILE_BYTES * stage;
          barrier_wait(first_empty + 8 * stage, parity ^ 1);
          barrier_expect(barrier, 2 * TILE_BYTES);
          load_tile(to, &a, barrier, 64 * step, row);
          /* Half of the tile of B for both. */
          load_tile_to(3, to + TILE_BYTES + rank * HALF_BYTES, &b, barrier, 64 * step, column + 32 * rank);
          if (++stage == STAGES) stage = 0, parity ^= 1;
        }
      }
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll 1
    for (u32 tile = cluster; tile < pairs * n_tiles; tile += clusters) {
      int row = 64 * (2 * (tile % pairs) + rank), column = 64 * (tile / pairs);
      float sums[32];
      u32 before = 0;
#pragma unroll
      for (int i = 0; i < 32; i++) {
        sums[i] = 0;
        asm volatile("" : "+f"(sums[i])::"memory");
      }
      asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll 1
      for (u32 step = 0; step < steps; step++) {
        barrier_wait(first_full + 8 * stage, parity);
        u64 first = operand_at(first_tile + 2 * TILE_BYTES * stage), second = operand_at(first_tile + 2 * TILE_BYTES * stage + TILE_BYTES);
#pragma unroll
        for (int k = 0; k < 4; k++) product(sums, first + 2 * k, second + 2 * k, step > 0 || k > 0);
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
        /* The stage before is read. */
        if (step > 0 && lane < 2) barrier_arrive_at(first_empty + 8 * before, lane);
        before = stage;
        if (++stage == STAGES) stage = 0, parity ^= 1;
      }
      asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
      for (int i = 0; i < 32; i++) asm volatile("" : "+f"(sums[i])::"memory");
      if (lane < 2) barrier_arrive_at(first_empty + 8 * before, lane);
      /* The results before have been read. */
      if (threadIdx.x == 0) asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
      asm volatile("bar.sync 1, 128;" ::: "memory");
#pragma unroll
      for (int block = 0; block < 4; block++) {
        const float* s = sums + 8 * block;
        u32 line = 16 * warp + lane % 16, chunk = 2 * block + lane / 16;
        u32 to = result + 128 * line + 16 * (chunk ^ line % 8);
        asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};"
                     ::"r"(to), "r"(packed(s[0], s[1])), "r"(packed(s[2], s[3])), "r"(packed(s[4], s[5])), "r"(packed(s[6], s[7])) : "memory");
      }
      asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
      asm volatile("bar.sync 1, 128;" ::: "memory");
      if (threadIdx.x == 0) {
        asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%1, {%2, %3}], [%0];" ::"r"(result), "l"(&c), "r"(column), "r"(row) : "memory");
        asm volatile("cp.async.bulk.commit_group;" ::: "memory");
      }
    }
    if (threadIdx.x == 0) asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
  }
  cluster_sync(); /* at the end */
}
