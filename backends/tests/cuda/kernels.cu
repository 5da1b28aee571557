// What the CUDA backend's own tests launch. Pointers are pairs: base and element offset.
//
//   add_one  x[offset + i] += 1 for each thread
//   slow     x[0] through `rounds` steps: work that takes a while
//   many     x[0] += the sum of forty 64-bit numbers
//   report   sets the status word
//   shared   x[0] = the last word of `words` words of dynamic shared memory, which wander through it
//   mapped   x[0] += 1; takes a tensor map and reads nothing by it

typedef unsigned int uint;
typedef unsigned long long ulong;

extern "C" __global__ void add_one(uint* x, ulong x_offset, uint offset)
{
  x[x_offset + offset + blockIdx.x * blockDim.x + threadIdx.x] += 1;
}

extern "C" __global__ void slow(uint* x, ulong x_offset, uint rounds)
{
  uint value = x[x_offset];
  for (uint i = 0; i < rounds; i++) value = value * 1664525u + 1013904223u;
  x[x_offset] = value;
}

#define FOUR(i) ulong a##i##0, ulong a##i##1, ulong a##i##2, ulong a##i##3
#define SUM(i) a##i##0 + a##i##1 + a##i##2 + a##i##3

extern "C" __global__ void many(uint* x, ulong x_offset, FOUR(0), FOUR(1), FOUR(2), FOUR(3), FOUR(4), FOUR(5), FOUR(6), FOUR(7), FOUR(8), FOUR(9))
{
  x[x_offset] += (uint)(SUM(0) + SUM(1) + SUM(2) + SUM(3) + SUM(4) + SUM(5) + SUM(6) + SUM(7) + SUM(8) + SUM(9));
}

extern "C" __global__ void report(uint* status, ulong status_offset, uint code)
{
  if (code != 0) status[status_offset] = code;
}

extern __shared__ uint words_of_block[];

extern "C" __global__ void shared(uint* x, ulong x_offset, uint words)
{
  for (uint i = threadIdx.x; i < words; i += blockDim.x) words_of_block[i] = i * 7;
  __syncthreads();
  if (threadIdx.x == 0) x[x_offset] = words_of_block[words - 1];
}

struct __align__(64) Map {
  ulong opaque[16];
};

extern "C" __global__ void mapped(const __grid_constant__ Map map, uint* x, ulong x_offset)
{
  x[x_offset] += 1;
}
