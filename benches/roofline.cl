// What a device can do at most: fused multiply-adds from registers, and bytes from and to memory.
//
// peak_fma  every work-item runs 12 independent chains x = x * m + c of WIDTH lanes each, enough to fill two pipelines
//           of latency 4 or 5; the sum is stored, so that nothing is left out.
// read_all  every work-item adds up its share of a buffer far beyond the caches, four vectors at a time.
// copy_all  every work-item copies its share.
//
//   INTERLEAVED 0   item 0: | 0 1 2 3 | item 1: | 4 5 6 7 | ...      streams, as CPUs like them
//   INTERLEAVED 1   item 0: | 0 . . . 4 . . . |, item 1: | . 1 . . . 5 ...   neighbours together, as GPUs like them
//
// WIDTH         lanes of a vector: 16 on CPUs, where explicit vectors make the speed, 4 on GPUs
// INTERLEAVED   how a buffer is shared out

#ifndef WIDTH
#define WIDTH 16
#endif
#ifndef INTERLEAVED
#define INTERLEAVED 0
#endif

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define VEC JOIN(float, WIDTH)
#define STORE JOIN(vstore, WIDTH)

__kernel void peak_fma(__global float *out, ulong out_offset, uint iterations, float m)
{
    const ulong item = get_global_id(0);
    const VEC factor = (VEC)m;
    const VEC addend = (VEC)((float)item + 1.0f);
    VEC x0 = (VEC)0.0f, x1 = (VEC)1.0f, x2 = (VEC)2.0f, x3 = (VEC)3.0f, x4 = (VEC)4.0f, x5 = (VEC)5.0f;
    VEC x6 = (VEC)6.0f, x7 = (VEC)7.0f, x8 = (VEC)8.0f, x9 = (VEC)9.0f, xa = (VEC)10.0f, xb = (VEC)11.0f;
    for (uint i = 0; i < iterations; ++i) {
        x0 = fma(x0, factor, addend); x1 = fma(x1, factor, addend); x2 = fma(x2, factor, addend);
        x3 = fma(x3, factor, addend); x4 = fma(x4, factor, addend); x5 = fma(x5, factor, addend);
        x6 = fma(x6, factor, addend); x7 = fma(x7, factor, addend); x8 = fma(x8, factor, addend);
        x9 = fma(x9, factor, addend); xa = fma(xa, factor, addend); xb = fma(xb, factor, addend);
    }
    x0 += x1 + x2 + x3 + x4 + x5 + x6 + x7 + x8 + x9 + xa + xb;
    STORE(x0, item, out + out_offset);
}

#if INTERLEAVED
#define FIRST get_global_id(0)
#define STEP get_global_size(0)
#else
#define FIRST (get_global_id(0) * share)
#define STEP 1
#endif

// share: vectors for each work-item, a multiple of 4
__kernel void read_all(__global const float *in, ulong in_offset, __global float *out, ulong out_offset, ulong share)
{
    __global const VEC *v = (__global const VEC *)(in + in_offset) + FIRST;
    VEC s0 = (VEC)0.0f, s1 = (VEC)0.0f, s2 = (VEC)0.0f, s3 = (VEC)0.0f;
    for (ulong i = 0; i < share; i += 4) {
        s0 += v[(i + 0) * STEP];
        s1 += v[(i + 1) * STEP];
        s2 += v[(i + 2) * STEP];
        s3 += v[(i + 3) * STEP];
    }
    STORE(s0 + s1 + s2 + s3, get_global_id(0), out + out_offset);
}

__kernel void copy_all(__global const float *in, ulong in_offset, __global float *out, ulong out_offset, ulong share)
{
    __global const VEC *from = (__global const VEC *)(in + in_offset) + FIRST;
    __global VEC *to = (__global VEC *)(out + out_offset) + FIRST;
    for (ulong i = 0; i < share; ++i)
        to[i * STEP] = from[i * STEP];
}
