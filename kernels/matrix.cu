/* Shared memory and matrix units by PTX: what kernels of several ops are made of. Compiled with a kernel's text behind it, on sm_80 and later.
 *
 *   device memory --cp.async, 16 bytes a thread--> shared memory --ldmatrix, a warp--> fragments in registers --mma.sync--> sums
 *
 * PTX ISA: "cp.async", "ldmatrix", "Matrix Fragments for mma.m16n8k16".
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

__device__ __forceinline__ u32 shared_address(const void* pointer) { return (u32)__cvta_generic_to_shared(pointer); }

/* 16 bytes to shared memory, of which the first `bytes` exist; the rest are zero. */
__device__ __forceinline__ void copy_chunk(u32 to, const void* from, u32 bytes)
{
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

/* Waits until at most `MOST` groups of copies are under way. */
template <int MOST>
__device__ __forceinline__ void wait_for_copies()
{
  asm volatile("cp.async.wait_group %0;" ::"n"(MOST) : "memory");
}

template <int TRANSPOSED>
__device__ __forceinline__ void load_matrices(u32 matrices[4], u32 from)
{
  if (TRANSPOSED)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3]) : "r"(from) : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3]) : "r"(from) : "memory");
}
