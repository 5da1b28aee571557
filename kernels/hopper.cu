/* Hopper's asynchronous units by PTX, for sm_90a: tiles copied by the tensor memory accelerator (TMA), barriers in shared memory that count arrivals
 * and bytes (mbarrier), products of warpgroups (wgmma). Compiled with a kernel's text behind it; it stands where matrix.cu does for earlier devices.
 *
 *   device memory --tensor map, one thread--> shared memory, swizzled --wgmma, four warps--> sums in registers --stmatrix--> shared memory --TMA-->
 *                  full[stage]: bytes arrived             empty[stage]: consumers done
 *
 * A tile in shared memory is rows of 128 bytes, 16-byte chunks exclusive-ored with the row's number modulo 8 (CU_TENSOR_MAP_SWIZZLE_128B); tiles begin at
 * multiples of 1024 bytes. Wider tiles are several such panels, one after another.
 *
 * PTX ISA: "Asynchronous Warpgroup Level Matrix Instructions", "cp.async.bulk.tensor", "mbarrier".
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

/* What the host encodes; a kernel takes it as `const __grid_constant__ TensorMap`. */
struct __align__(64) TensorMap {
  u64 opaque[16];
};

__device__ __forceinline__ u32 shared_address(const void* pointer) { return (u32)__cvta_generic_to_shared(pointer); }

/* ---- barriers in shared memory: 8 bytes each, by their shared address ---- */

__device__ __forceinline__ void barrier_init(u32 barrier, u32 arrivals)
{
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

/* Makes initialised barriers known to the cluster and to the copy engine; by the thread that initialised, before a barrier of all. */
__device__ __forceinline__ void barriers_are_initialised() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ __forceinline__ void barrier_arrive(u32 barrier)
{
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/* Arrives at the barrier that lies at the same address in another block of the cluster. */
__device__ __forceinline__ void barrier_arrive_at(u32 barrier, u32 rank)
{
  asm volatile("{ .reg .b32 remote; mapa.shared::cluster.u32 remote, %0, %1; mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote]; }"
               ::"r"(barrier), "r"(rank) : "memory");
}

/* Arrives, and has the phase wait for so many bytes. */
__device__ __forceinline__ void barrier_expect(u32 barrier, u32 bytes)
{
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

/* Waits until the phase of this parity has completed. A fresh barrier is in phase 0: parity 1 does not wait. */
__device__ __forceinline__ void barrier_wait(u32 barrier, u32 parity)
{
  asm volatile("{ .reg .pred done;\n"
               "again: mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 done, [%0], %1;\n"
               "@!done bra again; }" ::"r"(barrier), "r"(parity) : "memory");
}

/* As barrier_wait, where blocks of the cluster arrive. */
__device__ __forceinline__ void barrier_wait_cluster(u32 barrier, u32 parity)
{
  asm volatile("{ .reg .pred done;\n"
               "again: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
               "@!done bra again; }" ::"r"(barrier), "r"(parity) : "memory");
}

/* ---- clusters ---- */

__device__ __forceinline__ u32 cluster_rank()
{
  u32 rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

/* Every thread of the cluster. */
__device__ __forceinline__ void cluster_sync()
{
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/* ---- copies ---- */

__device__ __forceinline__ void prefetch_map(const TensorMap* map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }

/* A tile to shared memory; coordinates in elements, innermost first. What lies outside the tensor is zero, and counts as bytes. */
__device__ __forceinline__ void load_tile(u32 to, const TensorMap* map, u32 barrier, int x, int y)
{
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
               ::"r"(to), "l"(map), "r"(barrier), "r"(x), "r"(y) : "memory");
}

__device__ __forceinline__ void load_tile(u32 to, const TensorMap* map, u32 barrier, int x, int y, int z)
{
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];"
               ::"r"(to), "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z) : "memory");
}

__device__ __forceinline__ void load_tile(u32 to, const TensorMap* map, u32 barrier, int x, int y, int z, int w)
{
  asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];"
               ::"r"(to), "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z), "r"(w) : "memory");
}

/* The same tile to every block of the cluster whose bit is set, each at the same address, each counted by its own barrier. */
__device__ __forceinline__ void load_tile_to(u32 blocks, u32 to, const TensorMap* map, u32 barrier, int x, int y)
{
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%4, %5}], [%2], %3;"
               ::"r"(to), "l"(map), "r"(barrier), "h"((u16)blocks), "r"(x), "r"(y) : "memory");
}

__device__ __forceinline__ void load_tile_to(u32 blocks, u32 to, const TensorMap* map, u32 barrier, int x, int y, int z)
{
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%4, %5, %6}], [%2], %3;"
               ::"r"(to), "l"(map), "r"(barrier), "h"((u16)blocks), "r"(x), "r"(y), "r"(z) : "memory");
}

__device__ __forceinline__ void load_tile_to(u32 blocks, u32 to, const TensorMap* map, u32 barrier, int x, int y, int z, int w)
{
  asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%4, %5, %6, %7}], [%2], %3;"
               ::"r"(to), "l"(map), "r"(barrier), "h"((u16)blocks), "r"(x), "r"(y), "r"(z), "r"(w) : "memory");
}

/* A tile to device memory; what lies outside the tensor is not stored. Then commit_stores. */
__device__ __forceinline__ void store_tile_of(u32 from, const TensorMap* map, int x, int y)
{
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%1, {%2, %3}], [%0];" ::"r"(from), "l"(map), "r"(x), "r"(y) : "memory");
}

__device__ __forceinline__ void store_tile_of(u32 from, const TensorMap* map, int x, int y, int z)
{
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%1, {%2, %3, %4}], [%0];"
               ::"r"(from), "l"(map), "r"(x), "r"(y), "r"(z) : "memory");
}

__device__ __forceinline__ void store_tile_of(u32 from, const TensorMap* map, int x, int y, int z, int w)
{
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%1, {%2, %3, %4, %5}], [%0];"
               ::"r"(from), "l"(map), "r"(x), "r"(y), "r"(z), "r"(w) : "memory");
}

__device__ __forceinline__ void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

/* Waits until at most `MOST` groups of stores of this thread have yet to be read from shared memory. */
template <int MOST>
__device__ __forceinline__ void wait_for_stores()
{
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(MOST) : "memory");
}

/* Shared memory that this thread wrote by ordinary stores (stmatrix too) may be read by wgmma and TMA after the next barrier. */
__device__ __forceinline__ void fence_for_engines() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/* ---- warpgroups ---- */

/* Registers of the warpgroup's threads from here on, a multiple of 8. */
template <int REGISTERS>
__device__ __forceinline__ void give_registers_up()
{
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

template <int REGISTERS>
__device__ __forceinline__ void take_registers()
{
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

/* A barrier of some warps of the block: numbers 1 to 15. */
__device__ __forceinline__ void barrier_of(u32 number, u32 threads) { asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory"); }

__device__ __forceinline__ void barrier_of_arrive(u32 number, u32 threads) { asm volatile("bar.arrive %0, %1;" ::"r"(number), "r"(threads) : "memory"); }

/* Before the first product, and whenever registers that products use have been written by something else. */
__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

/* Waits until at most `MOST` groups of products are under way. */
template <int MOST>
__device__ __forceinline__ void products_wait()
{
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(MOST) : "memory");
}

/* A compiler may not move what uses these registers across products that are under way. */
template <int COUNT>
__device__ __forceinline__ void hold_registers(float (&sums)[COUNT])
{
#pragma unroll
  for (int i = 0; i < COUNT; i++) asm volatile("" : "+f"(sums[i])::"memory");
}

/* The descriptor of an operand in shared memory, rows swizzled by 128 bytes ("Matrix Descriptor Format").
 *
 *   along k:  rows of 128 bytes of k; `panel` unused (1)             the next k of a product: 32 bytes further
 *   across k: each row is 64 columns of one k; `panel`: bytes from 64 columns to the next 64      the next 16 k: 2048 bytes further
 */
__device__ __forceinline__ u64 operand_at(u32 address, u32 panel = 16)
{
  return (u64)(address >> 4 & 0x3fff) | (u64)(panel >> 4) << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}

/* ---- products: sums (64 x N in f32, a warpgroup's) += a (64 rows by 32 bytes of k) * b (N columns by as much) ----
 *
 *   sums of a thread    row 16 (warp % 4) + lane / 4 + 8 (i / 2 % 2)    column 8 (i / 4) + 2 (lane % 4) + i % 2
 *
 * Dtype of a and b: A_DTYPE of elements.cu or DTYPE of attention.cu (1 f16, 2 bf16), or 5 for e4m3.
 */
#if !defined(PRODUCT_DTYPE) && defined(A_DTYPE)
#define PRODUCT_DTYPE A_DTYPE
#elif !defined(PRODUCT_DTYPE)
#define PRODUCT_DTYPE DTYPE
#endif
#if PRODUCT_DTYPE == 5
#define WGMMA_TYPES "k32.f32.e4m3.e4m3"
#define WGMMA_TAIL(a, b) ""
#elif PRODUCT_DTYPE == 1
#define WGMMA_TYPES "k16.f32.f16.f16"
#define WGMMA_TAIL(a, b) ", " a b
#else
#define WGMMA_TYPES "k16.f32.bf16.bf16"
#define WGMMA_TAIL(a, b) ", " a b
#endif

/* Registers 8 g to 8 g + 7 of the sums, as text and as operands. */
#define SUMS_0 "%0,%1,%2,%3,%4,%5,%6,%7"
#define SUMS_1 "%8,%9,%10,%11,%12,%13,%14,%15"
#define SUMS_2 "%16,%17,%18,%19,%20,%21,%22,%23"
#define SUMS_3 "%24,%25,%26,%27,%28,%29,%30,%31"
#define SUMS_4 "%32,%33,%34,%35,%36,%37,%38,%39"
#define SUMS_5 "%40,%41,%42,%43,%44,%45,%46,%47"
#define SUMS_6 "%48,%49,%50,%51,%52,%53,%54,%55"
#define SUMS_7 "%56,%57,%58,%59,%60,%61,%62,%63"
#define SUMS_8 "%64,%65,%66,%67,%68,%69,%70,%71"
#define SUMS_9 "%72,%73,%74,%75,%76,%77,%78,%79"
#define SUMS_10 "%80,%81,%82,%83,%84,%85,%86,%87"
#define SUMS_11 "%88,%89,%90,%91,%92,%93,%94,%95"
#define SUMS_12 "%96,%97,%98,%99,%100,%101,%102,%103"
#define SUMS_13 "%104,%105,%106,%107,%108,%109,%110,%111"
#define SUMS_14 "%112,%113,%114,%115,%116,%117,%118,%119"
#define SUMS_15 "%120,%121,%122,%123,%124,%125,%126,%127"
#define SUMS_OF(d, g) "+f"(d[8 * g]), "+f"(d[8 * g + 1]), "+f"(d[8 * g + 2]), "+f"(d[8 * g + 3]), "+f"(d[8 * g + 4]), "+f"(d[8 * g + 5]), "+f"(d[8 * g + 6]), "+f"(d[8 * g + 7])
#define TEXT_1 SUMS_0
#define OPERANDS_1(d) SUMS_OF(d, 0)
#define TEXT_2 SUMS_0 "," SUMS_1
#define OPERANDS_2(d) SUMS_OF(d, 0), SUMS_OF(d, 1)
#define TEXT_4 SUMS_0 "," SUMS_1 "," SUMS_2 "," SUMS_3
#define OPERANDS_4(d) SUMS_OF(d, 0), SUMS_OF(d, 1), SUMS_OF(d, 2), SUMS_OF(d, 3)
#define TEXT_5 SUMS_0 "," SUMS_1 "," SUMS_2 "," SUMS_3 "," SUMS_4
#define OPERANDS_5(d) SUMS_OF(d, 0), SUMS_OF(d, 1), SUMS_OF(d, 2), SUMS_OF(d, 3), SUMS_OF(d, 4)
#define TEXT_6 SUMS_0 "," SUMS_1 "," SUMS_2 "," SUMS_3 "," SUMS_4 "," SUMS_5
#define OPERANDS_6(d) SUMS_OF(d, 0), SUMS_OF(d, 1), SUMS_OF(d, 2), SUMS_OF(d, 3), SUMS_OF(d, 4), SUMS_OF(d, 5)
#define TEXT_8 SUMS_0 "," SUMS_1 "," SUMS_2 "," SUMS_3 "," SUMS_4 "," SUMS_5 "," SUMS_6 "," SUMS_7
#define OPERANDS_8(d) SUMS_OF(d, 0), SUMS_OF(d, 1), SUMS_OF(d, 2), SUMS_OF(d, 3), SUMS_OF(d, 4), SUMS_OF(d, 5), SUMS_OF(d, 6), SUMS_OF(d, 7)
#define TEXT_10 SUMS_0 "," SUMS_1 "," SUMS_2 "," SUMS_3 "," SUMS_4 "," SUMS_5 "," SUMS_6 "," SUMS_7 "," SUMS_8 "," SUMS_9
#define OPERANDS_10(d) SUMS_OF(d, 0), SUMS_OF(d, 1), SUMS_OF(d, 2), SUMS_OF(d, 3), SUMS_OF(d, 4), SUMS_OF(d, 5), SUMS_OF(d, 6), SUMS_OF(d, 7), SUMS_OF(d, 8), SUMS_OF(d, 9)
#define TEXT_11 SUMS_0 "," SUMS_1 "," SUMS_2 "," SUMS_3 "," SUMS_4 "," SUMS_5 "," SUMS_6 "," SUMS_7 "," SUMS_8 "," SUMS_9 "," SUMS_10
#define OPERANDS_11(d) SUMS_OF(d, 0), SUMS_OF(d, 1), SUMS_OF(d, 2), SUMS_OF(d, 3), SUMS_OF(d, 4), SUMS_OF(d, 5), SUMS_OF(d, 6), SUMS_OF(d, 7), SUMS_OF(d, 8), SUMS_OF(d, 9), SUMS_OF(d, 10)
#define TEXT_12 SUMS_0 "," SUMS_1 "," SUMS_2 "," SUMS_3 "," SUMS_4 "," SUMS_5 "," SUMS_6 "," SUMS_7 "," SUMS_8 "," SUMS_9 "," SUMS_10 "," SUMS_11
#define OPERANDS_12(d) SUMS_OF(d, 0), SUMS_OF(d, 1), SUMS_OF(d, 2), SUMS_OF(d, 3), SUMS_OF(d, 4), SUMS_OF(d, 5), SUMS_OF(d, 6), SUMS_OF(d, 7), SUMS_OF(d, 8), SUMS_OF(d, 9), SUMS_OF(d, 10), SUMS_OF(d, 11)
#define TEXT_16 SUMS_0 "," SUMS_1 "," SUMS_2 "," SUMS_3 "," SUMS_4 "," SUMS_5 "," SUMS_6 "," SUMS_7 "," SUMS_8 "," SUMS_9 "," SUMS_10 "," SUMS_11 "," SUMS_12 "," SUMS_13 "," SUMS_14 "," SUMS_15
#define OPERANDS_16(d) SUMS_OF(d, 0), SUMS_OF(d, 1), SUMS_OF(d, 2), SUMS_OF(d, 3), SUMS_OF(d, 4), SUMS_OF(d, 5), SUMS_OF(d, 6), SUMS_OF(d, 7), SUMS_OF(d, 8), SUMS_OF(d, 9), SUMS_OF(d, 10), SUMS_OF(d, 11), SUMS_OF(d, 12), SUMS_OF(d, 13), SUMS_OF(d, 14), SUMS_OF(d, 15)

template <int N>
struct Product;

/* N, its groups of 8 sums, and the numbers of the operands behind them. */
#define PRODUCT(N, G, O0, O1, O2, O3, O4, O5, O6)                                                                                               \
  template <>                                                                                                                                    \
  struct Product<N> {                                                                                                                            \
    template <int A_ACROSS_K, int B_ACROSS_K>                                                                                                    \
    static __device__ __forceinline__ void of_shared(float (&d)[N / 2], u64 a, u64 b, u32 accumulate)                                            \
    {                                                                                                                                            \
      asm volatile("{ .reg .pred p; setp.ne.b32 p, " O2 ", 0;\n"                                                                                 \
                   "wgmma.mma_async.sync.aligned.m64n" #N WGMMA_TYPES " {" TEXT_##G "}, " O0 ", " O1 ", p, 1, 1" WGMMA_TAIL(O3 ", ", O4) "; }"     \
                   : OPERANDS_##G(d) : "l"(a), "l"(b), "r"(accumulate), "n"(A_ACROSS_K), "n"(B_ACROSS_K));                                       \
    }                                                                                                                                            \
    template <int B_ACROSS_K>                                                                                                                    \
    static __device__ __forceinline__ void of_registers(float (&d)[N / 2], const u32 (&a)[4], u64 b, u32 accumulate)                             \
    {                                                                                                                                            \
      asm volatile("{ .reg .pred p; setp.ne.b32 p, " O5 ", 0;\n"                                                                                 \
                   "wgmma.mma_async.sync.aligned.m64n" #N WGMMA_TYPES " {" TEXT_##G "}, {" O0 "," O1 "," O2 "," O3 "}, " O4                        \
                   ", p, 1, 1" WGMMA_TAIL("", O6) "; }"                                                                                          \
                   : OPERANDS_##G(d) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(B_ACROSS_K));                    \
    }                                                                                                                                            \
  };

PRODUCT(16, 1, "%8", "%9", "%10", "%11", "%12", "%13", "%14")
PRODUCT(32, 2, "%16", "%17", "%18", "%19", "%20", "%21", "%22")
PRODUCT(64, 4, "%32", "%33", "%34", "%35", "%36", "%37", "%38")
PRODUCT(80, 5, "%40", "%41", "%42", "%43", "%44", "%45", "%46")
PRODUCT(96, 6, "%48", "%49", "%50", "%51", "%52", "%53", "%54")
PRODUCT(128, 8, "%64", "%65", "%66", "%67", "%68", "%69", "%70")
PRODUCT(160, 10, "%80", "%81", "%82", "%83", "%84", "%85", "%86")
PRODUCT(176, 11, "%88", "%89", "%90", "%91", "%92", "%93", "%94")
PRODUCT(192, 12, "%96", "%97", "%98", "%99", "%100", "%101", "%102")
PRODUCT(256, 16, "%128", "%129", "%130", "%131", "%132", "%133", "%134")
