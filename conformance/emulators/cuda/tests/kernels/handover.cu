// The first warp hands 32 values to the second through shared memory, with a flag and fences and no barrier.
extern "C" __global__ void __launch_bounds__(64) handover(const int* from, int* to) {
    __shared__ int values[32];
    __shared__ volatile int flag;
    int lane = threadIdx.x % 32;
    if (threadIdx.x == 0) flag = 0;
    __syncthreads();
    if (threadIdx.x < 32) {
        values[lane] = from[lane] * 2;
        __threadfence_block();
        __syncwarp();
        if (lane == 0) flag = 1;
    } else {
        while (flag == 0) {
        }
        __threadfence_block();
        to[lane] = values[31 - lane];
    }
}
