// Sums two vectors, one element a thread.
extern "C" __global__ void vector_add(const float* a, const float* b, float* sum, unsigned n) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) sum[i] = a[i] + b[i];
}

// a[i] = scale * a[i], walking the vector by the grid's width.
extern "C" __global__ void scale(float* a, float scale, unsigned long long n) {
    for (unsigned long long i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) a[i] *= scale;
}
