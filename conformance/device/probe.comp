// Probe: what the device tests launch. No mathematics; each entry makes one thing about launches visible. The entries and
// arguments are those of probe.cl; a macro picks the entry, since a module has one. Memory is reached by address: a buffer's argument is
// the address of its first element, 64-bit scalars are two words (low, high).
#version 460
#extension GL_EXT_control_flow_attributes : require
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_scalar_block_layout : require

layout(local_size_x = 1) in;

layout(buffer_reference, scalar, buffer_reference_align = 4) buffer Words { uint at[]; };

#if defined(AFFINE)
layout(push_constant, scalar) uniform Arguments { uvec2 x; uint multiplier; uint addend; uvec2 count; } arguments;

void main()
{
    // A device holds no vector of 2^32 words.
    Words x = Words(arguments.x);
    for (uint i = gl_GlobalInvocationID.x; i < arguments.count.x; i += gl_NumWorkGroups.x)
        x.at[i] = x.at[i] * arguments.multiplier + arguments.addend;
}

#elif defined(SPIN)
layout(push_constant, scalar) uniform Arguments { uvec2 x; uint multiplier; uint addend; uvec2 rounds; } arguments;

// lavapipe leaves all loops of an invocation after 65,535 iterations in sum, so each takes many steps.
const uint STEPS = 128;

void main()
{
    if (gl_GlobalInvocationID.x != 0)
        return;
    Words x = Words(arguments.x);
    uint value = x.at[0];
    uint rounds = arguments.rounds.x;
    for (uint i = 0; i < rounds / STEPS; i++) {
        [[unroll]]
        for (uint step = 0; step < STEPS; step++)
            value = value * arguments.multiplier + arguments.addend;
    }
    for (uint i = 0; i < rounds % STEPS; i++)
        value = value * arguments.multiplier + arguments.addend;
    x.at[0] = value;
}

#elif defined(SCALARS)
layout(push_constant, scalar) uniform Arguments {
    uvec2 result;
    uvec2 absent;
    uint a;
    int b;
    uvec2 c;
    ivec2 d;
    float e;
} arguments;

void main()
{
    if (gl_GlobalInvocationID.x != 0)
        return;
    Words result = Words(arguments.result);
    result.at[0] = arguments.a;
    result.at[1] = uint(arguments.b);
    result.at[2] = arguments.c.x;
    result.at[3] = arguments.c.y;
    result.at[4] = uint(arguments.d.x);
    result.at[5] = uint(arguments.d.y);
    result.at[6] = floatBitsToUint(arguments.e);
    result.at[7] = uint(arguments.absent == uvec2(0));
}

#elif defined(CELLS)
layout(push_constant, scalar) uniform Arguments { uvec2 cells; } arguments;

void main()
{
    uvec3 group = gl_WorkGroupID;
    uint flat_position = (group.z * gl_NumWorkGroups.y + group.y) * gl_NumWorkGroups.x + group.x;
    Words cells = Words(arguments.cells);
    cells.at[flat_position] += flat_position + 1;
}

#elif defined(COMPLAIN)
layout(push_constant, scalar) uniform Arguments { uvec2 status; uint code; } arguments;

void main()
{
    if (gl_GlobalInvocationID.x == 0)
        Words(arguments.status).at[0] = arguments.code;
}

#else
#error "define AFFINE, SPIN, SCALARS, CELLS or COMPLAIN"
#endif
