// Probe: what the device tests launch. No mathematics; each entry makes one thing about launches visible.
//
//   affine     x[i] = x[i] * multiplier + addend (mod 2^32): two of them do not commute, so the result shows their order
//   spin       x[0] through `rounds` steps of the same map, one after the other: work that takes a while and can be checked
//   scalars    one element for each half of each scalar, so that a wrong width, sign or position shows
//   cells      cell += 1 + its flat position in a grid of nx * ny * nz groups: a group that runs twice or never shows
//   complain   sets the status word
//
//   pointer arguments are pairs: base and element offset. Any work-group size is right.

typedef unsigned int uint;
typedef unsigned long long ulong;

__device__ inline ulong global_id() { return (ulong)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ inline bool is_first() { return global_id() == 0 && blockIdx.y == 0 && blockIdx.z == 0 && threadIdx.y == 0 && threadIdx.z == 0; }

extern "C" __global__ void affine(uint* x, ulong x_offset, uint multiplier, uint addend, ulong count)
{
  for (ulong i = global_id(); i < count; i += (ulong)gridDim.x * blockDim.x)
    x[x_offset + i] = x[x_offset + i] * multiplier + addend;
}

extern "C" __global__ void spin(uint* x, ulong x_offset, uint multiplier, uint addend, ulong rounds)
{
  if (!is_first()) return;
  uint value = x[x_offset];
  for (ulong i = 0; i < rounds; i++) value = value * multiplier + addend;
  x[x_offset] = value;
}

extern "C" __global__ void scalars(uint* out, ulong out_offset, const uint* absent, ulong absent_offset, uint a, int b, ulong c, long long d,
                                   float e)
{
  if (!is_first()) return;
  out += out_offset;
  out[0] = a;
  out[1] = (uint)b;
  out[2] = (uint)c;
  out[3] = (uint)(c >> 32);
  out[4] = (uint)(ulong)d;
  out[5] = (uint)((ulong)d >> 32);
  out[6] = __float_as_uint(e);
  out[7] = absent == nullptr && absent_offset == 0;
}

extern "C" __global__ void cells(uint* out, ulong out_offset)
{
  if (threadIdx.x != 0 || threadIdx.y != 0 || threadIdx.z != 0) return;
  ulong flat = ((ulong)blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  out[out_offset + flat] += (uint)flat + 1;
}

extern "C" __global__ void complain(uint* status, ulong status_offset, uint code)
{
  if (is_first()) status[status_offset] = code;
}
