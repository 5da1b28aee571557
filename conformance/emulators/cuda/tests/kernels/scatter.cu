// Where each token goes when tokens are put in the order of their experts: position[token] = tokens of lower experts + earlier tokens of its own.
// One block; at most 256 tokens and 16 experts. offsets[e] is where expert e begins.
//
//   counts[e][w]   tokens of expert e in warp w   --- inclusive scan over (e, w) --->   what comes before (e, w)
extern "C" __global__ void __launch_bounds__(256) scatter(const int* expert, int* position, int* offsets, int tokens, int experts) {
    __shared__ int counts[128];
    int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, warps = blockDim.x / 32;
    if (thread < 128) counts[thread] = 0;
    __syncthreads();
    int own = thread < tokens ? expert[thread] : experts;
    unsigned same = __match_any_sync(0xffffffffu, own);
    int rank = __popc(same & ((1u << lane) - 1));
    if (rank == 0 && own < experts) counts[own * warps + warp] = __popc(same);
    __syncthreads();
    int entries = experts * warps;
    for (int step = 1; step < entries; step *= 2) {
        int before = thread >= step && thread < entries ? counts[thread - step] : 0;
        __syncthreads();
        if (thread < entries) counts[thread] += before;
        __syncthreads();
    }
    if (thread < tokens) position[thread] = (own * warps + warp > 0 ? counts[own * warps + warp - 1] : 0) + rank;
    if (thread < experts) offsets[thread] = thread > 0 ? counts[thread * warps - 1] : 0;
}
