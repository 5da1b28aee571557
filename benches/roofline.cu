// What a GPU can do at most: fused multiply-adds from registers, and bytes from and to memory. roofline.cl says it for OpenCL.
//
// peak_fma  every thread runs 12 independent chains x = x * m + c of WIDTH lanes, enough to fill the pipelines of its multiprocessor; the sum is
//           stored, so that nothing is left out
// read_all  every thread adds up its share of a buffer far beyond the caches, four vectors at a time
// copy_all  every thread copies its share, four vectors at a time
//
//   thread 0: | 0 . . . 4 . . . |, thread 1: | . 1 . . . 5 ... |   neighbours touch neighbours
//
// WIDTH        lanes of a vector: 4, the widest load of a thread
// INTERLEAVED  1, as above; a GPU has no other good way

#ifndef WIDTH
#define WIDTH 4
#endif
#if WIDTH != 4
#error "a thread loads at most four floats at once"
#endif

typedef unsigned int uint;
typedef unsigned long long ulong;

struct alignas(16) Vector { float x, y, z, w; };

__device__ inline void step(Vector& v, float m, float c)
{
  v.x = fmaf(v.x, m, c);
  v.y = fmaf(v.y, m, c);
  v.z = fmaf(v.z, m, c);
  v.w = fmaf(v.w, m, c);
}

__device__ inline void add(Vector& sum, const Vector& v)
{
  sum.x += v.x;
  sum.y += v.y;
  sum.z += v.z;
  sum.w += v.w;
}

extern "C" __global__ void peak_fma(float* out, ulong out_offset, uint iterations, float m)
{
  const ulong item = (ulong)blockIdx.x * blockDim.x + threadIdx.x;
  const float c = (float)item + 1.0f;
  Vector chains[12];
#pragma unroll
  for (int i = 0; i < 12; i++) chains[i] = Vector{(float)i, (float)i, (float)i, (float)i};
  for (uint i = 0; i < iterations; i++) {
#pragma unroll
    for (int chain = 0; chain < 12; chain++) step(chains[chain], m, c);
  }
#pragma unroll
  for (int i = 1; i < 12; i++) add(chains[0], chains[i]);
  ((Vector*)(out + out_offset))[item] = chains[0];
}

extern "C" __global__ void read_all(const float* in, ulong in_offset, float* out, ulong out_offset, ulong share)
{
  const ulong item = (ulong)blockIdx.x * blockDim.x + threadIdx.x, items = (ulong)gridDim.x * blockDim.x;
  const Vector* from = (const Vector*)(in + in_offset) + item;
  Vector sums[4] = {};
  for (ulong i = 0; i < share; i += 4) {
    Vector v[4];
#pragma unroll
    for (int j = 0; j < 4; j++) v[j] = from[(i + j) * items];
#pragma unroll
    for (int j = 0; j < 4; j++) add(sums[j], v[j]);
  }
#pragma unroll
  for (int j = 1; j < 4; j++) add(sums[0], sums[j]);
  ((Vector*)(out + out_offset))[item] = sums[0];
}

extern "C" __global__ void copy_all(const float* in, ulong in_offset, float* out, ulong out_offset, ulong share)
{
  const ulong item = (ulong)blockIdx.x * blockDim.x + threadIdx.x, items = (ulong)gridDim.x * blockDim.x;
  const Vector* from = (const Vector*)(in + in_offset) + item;
  Vector* to = (Vector*)(out + out_offset) + item;
  for (ulong i = 0; i < share; i += 4) {
    Vector v[4];
#pragma unroll
    for (int j = 0; j < 4; j++) v[j] = from[(i + j) * items];
#pragma unroll
    for (int j = 0; j < 4; j++) to[(i + j) * items] = v[j];
  }
}
