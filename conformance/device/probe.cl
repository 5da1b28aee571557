// Probe: what the device tests launch. No mathematics; each entry makes one thing about launches visible.
//
//   affine     x[i] = x[i] * multiplier + addend (mod 2^32): two of them do not commute, so the result shows their order
//   spin       x[0] through `rounds` steps of the same map, one after the other: work that takes a while and can be checked
//   scalars    one element for each half of each scalar, so that a wrong width, sign or position shows
//   cells      cell += 1 + its flat position in a grid of nx * ny * nz groups: a group that runs twice or never shows
//   complain   sets the status word
//
//   pointer arguments are pairs: base and element offset. Any work-group size is right.

__kernel void affine(__global uint* x, ulong x_offset, uint multiplier, uint addend, ulong count)
{
    for (ulong i = get_global_id(0); i < count; i += get_global_size(0))
        x[x_offset + i] = x[x_offset + i] * multiplier + addend;
}

__kernel void spin(__global uint* x, ulong x_offset, uint multiplier, uint addend, ulong rounds)
{
    if (get_global_id(0) != 0)
        return;
    uint value = x[x_offset];
    for (ulong i = 0; i < rounds; i++)
        value = value * multiplier + addend;
    x[x_offset] = value;
}

__kernel void scalars(__global uint* out, ulong out_offset, __global const uint* absent, ulong absent_offset,
                      uint a, int b, ulong c, long d, float e)
{
    if (get_global_id(0) != 0)
        return;
    out += out_offset;
    out[0] = a;
    out[1] = as_uint(b);
    out[2] = (uint)c;
    out[3] = (uint)(c >> 32);
    out[4] = (uint)as_ulong(d);
    out[5] = (uint)(as_ulong(d) >> 32);
    out[6] = as_uint(e);
    out[7] = absent == 0 && absent_offset == 0;
}

__kernel void cells(__global uint* out, ulong out_offset)
{
    if (get_local_id(0) != 0)
        return;
    ulong flat = (get_group_id(2) * get_num_groups(1) + get_group_id(1)) * get_num_groups(0) + get_group_id(0);
    out[out_offset + flat] += (uint)flat + 1;
}

__kernel void complain(__global uint* status, ulong status_offset, uint code)
{
    if (get_global_id(0) == 0)
        status[status_offset] = code;
}
