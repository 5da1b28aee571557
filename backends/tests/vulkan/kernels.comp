// Kernels of the Vulkan backend's tests; a macro picks one.
//
//   ADD_ONE   x[i + offset] += 1
//   SLOW      x[0] through `rounds` iterations of 128 steps of a generator
//   REPORT    a code into the status word
//   CHOSEN    what the specialization constants are
//   MANY      the sum of 40 64-bit numbers' lower words: more arguments than fit push constants
//   FAR       writes a word at a 64-bit offset
#version 460
#extension GL_EXT_control_flow_attributes : require
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_scalar_block_layout : require
#ifdef WIDE
#extension GL_EXT_shader_explicit_arithmetic_types_int64 : require
#endif

layout(buffer_reference, scalar, buffer_reference_align = 4) buffer Words { uint at[]; };

#if defined(ADD_ONE)
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint GROUP = 64;
layout(push_constant, scalar) uniform Arguments { uvec2 x; uint offset; } arguments;
void main() { Words(arguments.x).at[arguments.offset + gl_GlobalInvocationID.x] += 1; }

#elif defined(SLOW)
layout(local_size_x = 1) in;
layout(push_constant, scalar) uniform Arguments { uvec2 x; uint rounds; } arguments;
void main()
{
    uint value = Words(arguments.x).at[0];
    for (uint i = 0; i < arguments.rounds; i++) {
        [[unroll]]
        for (uint step = 0; step < 128; step++)
            value = value * 1664525u + 1013904223u;
    }
    Words(arguments.x).at[0] = value | 1u;
}

#elif defined(REPORT)
layout(local_size_x = 1) in;
layout(push_constant, scalar) uniform Arguments { uvec2 status; uint code; } arguments;
void main()
{
    if (arguments.code != 0)
        Words(arguments.status).at[0] = arguments.code;
}

#elif defined(CHOSEN)
layout(local_size_x = 1) in;
layout(constant_id = 7) const uint COUNT = 1;
layout(constant_id = 3) const int SIGNED = 2;
layout(constant_id = 9) const float SCALE = 0.5;
layout(constant_id = 4) const bool FLAG = false;
layout(push_constant, scalar) uniform Arguments { uvec2 x; } arguments;
void main()
{
    Words x = Words(arguments.x);
    x.at[0] = COUNT;
    x.at[1] = uint(SIGNED);
    x.at[2] = floatBitsToUint(SCALE);
    x.at[3] = uint(FLAG);
}

#elif defined(MANY)
layout(local_size_x = 1) in;
layout(buffer_reference, scalar, buffer_reference_align = 4) readonly buffer Block { uvec2 x; uvec2 numbers[40]; };
layout(push_constant, scalar) uniform Arguments { uvec2 at; } arguments;
void main()
{
    Block block = Block(arguments.at);
    uint sum = 0;
    [[unroll]]
    for (uint i = 0; i < 40; i++)
        sum += block.numbers[i].x;
    Words(block.x).at[0] += sum;
}

#elif defined(FAR)
layout(local_size_x = 1) in;
layout(push_constant, scalar) uniform Arguments { uvec2 x; uvec2 offset; uint value; } arguments;
void main()
{
#ifdef WIDE
    uint64_t address = packUint2x32(arguments.x) + packUint2x32(arguments.offset);
    Words(unpackUint2x32(address)).at[0] = arguments.value;
#else
    uint carry;
    uint low = uaddCarry(arguments.x.x, arguments.offset.x, carry);
    Words(uvec2(low, arguments.x.y + arguments.offset.y + carry)).at[0] = arguments.value;
#endif
}
#endif
