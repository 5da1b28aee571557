// C = A B with bf16 inputs and f32 sums on matrix units: A m x k and B k x n row-major, m and n multiples of 64, k of 32.
//
// A block of 4 warps owns a tile of 64 x 64; each warp 32 x 32 of it. Slices of k = 32 arrive by cp.async into two stages of
// shared memory; ldmatrix hands them to the fragments (B transposed on the way), mma.sync multiplies.
//
//   stage:  a[64][40]   rows of 32 elements and 8 of padding, so that ldmatrix meets no bank twice
//           b[32][72]
typedef unsigned short u16;
typedef unsigned u32;

#define TILE 64
#define SLICE 32
#define A_PITCH (SLICE + 8)
#define B_PITCH (TILE + 8)
#define STAGE (TILE * A_PITCH + SLICE * B_PITCH)

__device__ __forceinline__ u32 shared_address(const void* pointer) {
    u32 address;
    asm("{ .reg .u64 wide; cvta.to.shared.u64 wide, %1; cvt.u32.u64 %0, wide; }" : "=r"(address) : "l"(pointer));
    return address;
}

__device__ __forceinline__ void copy16(u32 to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

__device__ __forceinline__ void load_slice(u16* stage, const u16* a, const u16* b, int k, int n, int first) {
    u16* shared_a = stage;
    u16* shared_b = stage + TILE * A_PITCH;
    int thread = threadIdx.x;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        int chunk = thread + i * 128;
        int row = chunk / 4, column = chunk % 4 * 8;
        copy16(shared_address(shared_a + row * A_PITCH + column), a + (long long)row * k + first + column);
        row = chunk / 8, column = chunk % 8 * 8;
        copy16(shared_address(shared_b + row * B_PITCH + column), b + (long long)(first + row) * n + column);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
}

extern "C" __global__ void __launch_bounds__(128) gemm_bf16(const u16* a, const u16* b, float* c, int n, int k) {
    extern __shared__ __align__(16) u16 stages[];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int warp_row = warp / 2 * 32, warp_column = warp % 2 * 32;
    a += (long long)blockIdx.y * TILE * k;
    b += blockIdx.x * TILE;
    float sum[2][4][4] = {};

    load_slice(stages, a, b, k, n, 0);
    int slices = k / SLICE;
    for (int slice = 0; slice < slices; ++slice) {
        u16* stage = stages + slice % 2 * STAGE;
        if (slice + 1 < slices) {
            load_slice(stages + (slice + 1) % 2 * STAGE, a, b, k, n, (slice + 1) * SLICE);
            asm volatile("cp.async.wait_group 1;" ::: "memory");
        } else {
            asm volatile("cp.async.wait_group 0;" ::: "memory");
        }
        __syncthreads();
        u16* shared_a = stage;
        u16* shared_b = stage + TILE * A_PITCH;
#pragma unroll
        for (int step = 0; step < SLICE; step += 16) {
            u32 fragment_a[2][4], fragment_b[4][2];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                u32 address = shared_address(shared_a + (warp_row + i * 16 + lane % 16) * A_PITCH + step + lane / 16 * 8);
                asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                             : "=r"(fragment_a[i][0]), "=r"(fragment_a[i][1]), "=r"(fragment_a[i][2]), "=r"(fragment_a[i][3])
                             : "r"(address)
                             : "memory");
            }
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                u32 address = shared_address(shared_b + (step + lane % 16) * B_PITCH + warp_column + j * 8);
                asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                             : "=r"(fragment_b[j][0]), "=r"(fragment_b[j][1])
                             : "r"(address)
                             : "memory");
            }
#pragma unroll
            for (int i = 0; i < 2; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j)
                    asm volatile(
                        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                        "{%0, %1, %2, %3};"
                        : "+f"(sum[i][j][0]), "+f"(sum[i][j][1]), "+f"(sum[i][j][2]), "+f"(sum[i][j][3])
                        : "r"(fragment_a[i][0]), "r"(fragment_a[i][1]), "r"(fragment_a[i][2]), "r"(fragment_a[i][3]),
                          "r"(fragment_b[j][0]), "r"(fragment_b[j][1]));
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            long long row = blockIdx.y * TILE + warp_row + i * 16 + lane / 4;
            int column = blockIdx.x * TILE + warp_column + j * 8 + lane % 4 * 2;
            c[row * n + column] = sum[i][j][0];
            c[row * n + column + 1] = sum[i][j][1];
            c[(row + 8) * n + column] = sum[i][j][2];
            c[(row + 8) * n + column + 1] = sum[i][j][3];
        }
}
