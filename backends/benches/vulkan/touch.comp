// Takes the arguments of a GEMM and does nothing.
#version 460
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_scalar_block_layout : require

layout(local_size_x = 1) in;
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer Floats { float at[]; };
layout(push_constant, scalar) uniform Arguments {
    uvec2 a;
    uvec2 b;
    uvec2 c;
    uvec2 d;
    uint m;
    uint n;
    uint k;
    uvec2 lda;
    uvec2 ldb;
    uvec2 ldd;
    float alpha;
    float beta;
} arguments;

void main()
{
    if (arguments.m == 0)
        Floats(arguments.d).at[0] = arguments.alpha;
}
