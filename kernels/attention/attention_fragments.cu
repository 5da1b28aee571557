// What the kernels on matrix units do with scores in registers, where a row lies in four lanes: for attention_mma.cu, attention_wgmma.cu and
// attention_latent.cu, behind attention.cu.

#if DTYPE == 0
#error "DTYPE is f16 or bf16"
#endif
#if DTYPE == 1
#define PACK "cvt.rn.f16x2.f32"
#else
#define PACK "cvt.rn.bf16x2.f32"
#endif

// Two elements side by side, the first in the lower half.
__device__ __forceinline__ u32 pack(float first, float second)
{
  u32 both;
  asm(PACK " %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
  return both;
}

// Two of the numbers that a split row leaves: dv is even in these kernels, so that they lie at a multiple of 8 bytes.
__device__ __forceinline__ void store_two(float* to, float first, float second) { *(float2*)to = make_float2(first, second); }

__device__ __forceinline__ float exp2_approximately(float x)
{
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The greater of two, of which a NaN never is.
__device__ __forceinline__ float greater(float a, float b) { return b > a ? b : a; }

// A value of the lane whose number differs in these bits.
__device__ __forceinline__ float in_lane(float x, int difference) { return __shfl_xor_sync(0xffffffffu, x, difference); }
