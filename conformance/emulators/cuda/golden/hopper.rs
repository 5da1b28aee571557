//! Kernels of `wgmma`, for Hopper alone: operands are whatever lies in shared memory, as descriptors read it, so that a record says how layouts are read.

use std::fmt::Write;

use super::Rule;
use super::vectors::{Numbers, Vector};

const HEADER: &str = ".version 8.0\n.target sm_90a\n.address_size 64\n";
/// Bytes of shared memory that operands are read from.
const BYTES: usize = 40960;
/// Where the second factor begins.
const SECOND: usize = 8192;

/// Types of sums and factors.
const TYPES: [[&str; 3]; 11] = [
    ["f32", "f16", "f16"],
    ["f16", "f16", "f16"],
    ["f32", "bf16", "bf16"],
    ["f32", "tf32", "tf32"],
    ["f32", "e4m3", "e4m3"],
    ["f32", "e4m3", "e5m2"],
    ["f32", "e5m2", "e4m3"],
    ["f16", "e5m2", "e5m2"],
    ["s32", "s8", "s8"],
    ["s32", "u8", "s8"],
    ["s32", "u8", "u8"],
];

/// How factors lie: bytes of the swizzle, and whether lines lie together, of each.
#[derive(Clone, Copy)]
struct Layout {
    swizzle: usize,
    across: [bool; 2],
    in_registers: bool,
}

const ALONG: Layout = Layout {
    swizzle: 128,
    across: [false; 2],
    in_registers: false,
};

/// Every vector.
pub fn all() -> Vec<Vector> {
    let mut vectors = Vec::new();
    for types in TYPES {
        for n in [8, 64, 256] {
            vectors.push(product(types, n, ALONG));
        }
        let in_registers = Layout {
            in_registers: true,
            ..ALONG
        };
        vectors.push(product(types, 32, in_registers));
    }
    for swizzle in [0, 32, 64] {
        for types in [TYPES[2], TYPES[4]] {
            vectors.push(product(types, 32, Layout { swizzle, ..ALONG }));
        }
    }
    for swizzle in [0, 32, 64, 128] {
        for across in [[true, false], [false, true], [true, true]] {
            let layout = Layout {
                swizzle,
                across,
                in_registers: false,
            };
            vectors.push(product(TYPES[2], 128, layout));
        }
    }
    vectors
}

/// A descriptor but for its address: strides between atoms, of 8 lines by the swizzle.
fn descriptor(layout: Layout, across: bool, lines: usize) -> u64 {
    let w = layout.swizzle;
    let (leading, stride) = match (across, w) {
        (false, 0) => (lines * 16, 128),
        (false, _) => (16, 8 * w),
        (true, 0) => (128, 256),
        (true, _) => (16 * w, 8 * w),
    };
    let swizzle = match w {
        0 => 0,
        32 => 3_u64,
        64 => 2,
        _ => 1,
    };
    (leading as u64 >> 4) << 16 | (stride as u64 >> 4) << 32 | swizzle << 62
}

fn product([d, a, b]: [&str; 3], n: usize, layout: Layout) -> Vector {
    let bytes = match a {
        "tf32" => 4,
        "f16" | "bf16" => 2,
        _ => 1,
    };
    let whole = d == "s32";
    let (k, sums) = (32 / bytes, n / if d == "f16" { 4 } else { 2 });
    let list = |letter: char, count: usize| {
        let names: Vec<_> = (0..count).map(|i| format!("{letter}{i}")).collect();
        format!("{{{}}}", names.join(", "))
    };
    let side = |across| if across { "mn" } else { "k" };
    let name = format!(
        "wgmma.m64n{n}k{k}.{d}.{a}.{b}.{}.{}.swizzle{}",
        if layout.in_registers {
            "registers"
        } else {
            side(layout.across[0])
        },
        side(layout.across[1]),
        layout.swizzle
    );
    let mut tail = String::new();
    if !whole {
        tail += ", 1, 1";
    }
    if bytes == 2 {
        let used = if layout.in_registers { 1 } else { 0 };
        for across in &layout.across[used..] {
            let _ = write!(tail, ", {}", u8::from(*across));
        }
    }
    let first = if layout.in_registers {
        list('a', 4)
    } else {
        "da".into()
    };
    let mut text = format!(
        "{HEADER}.visible .entry golden(.param .u64 in, .param .u64 out) {{
.reg .b64 %i, %o, %w, %f, da, db; .reg .b32 %t, %s, %x, v<4>, a<4>, d<{sums}>; .reg .pred p; .shared .align 1024 .b8 tile[{BYTES}];
ld.param.u64 %i, [in]; ld.param.u64 %o, [out]; mov.u32 %t, %tid.x; mul.wide.u32 %w, %t, 16; add.s64 %i, %i, %w; mov.u64 %f, %i;
mov.u32 %s, tile; shl.b32 %x, %t, 4; add.u32 %s, %s, %x;
MORE: ld.global.v4.b32 {{v0, v1, v2, v3}}, [%i]; st.shared.v4.b32 [%s], {{v0, v1, v2, v3}};
add.s64 %i, %i, 2048; add.u32 %s, %s, 2048; add.u32 %x, %x, 2048; setp.lt.u32 p, %x, {BYTES}; @p bra MORE;
fence.proxy.async; bar.sync 0;
ld.global.v4.b32 {{a0, a1, a2, a3}}, [%f]; mul.wide.u32 %w, %t, {}; add.s64 %o, %o, %w;
mov.u32 %s, tile; shr.u32 %s, %s, 4; and.b32 %s, %s, 0x3fff; cvt.u64.u32 %w, %s; or.b64 da, %w, {:#x};
add.u32 %s, %s, {}; cvt.u64.u32 %w, %s; or.b64 db, %w, {:#x};
",
        4 * sums,
        descriptor(layout, layout.across[0], 64),
        SECOND / 16,
        descriptor(layout, layout.across[1], n)
    );
    for i in 0..sums {
        let _ = writeln!(text, "mov.b32 d{i}, 0;");
    }
    let _ = writeln!(
        text,
        "wgmma.fence.sync.aligned;
wgmma.mma_async.sync.aligned.m64n{n}k{k}.{d}.{a}.{b} {}, {first}, db, 1{tail};
wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;",
        list('d', sums)
    );
    for i in 0..sums {
        let _ = writeln!(text, "st.global.b32 [%o+{}], d{i};", 4 * i);
    }
    text += "ret; }\n";
    let mut numbers = Numbers::of(&name);
    let mut input = Vec::with_capacity(BYTES);
    while input.len() < BYTES {
        let ty = if input.len() < SECOND { a } else { b };
        let bits = encoded(ty, numbers.draw()).to_le_bytes();
        input.extend(&bits[..bytes]);
    }
    Vector {
        name,
        text,
        threads: 128,
        input,
        output_bytes: 128 * 4 * sums,
        rule: Rule::Exact,
        only_on: Some("9.0"),
    }
}

/// A small integer, whose sums are exact, in a format; of s8 and u8 any.
fn encoded(ty: &str, number: u64) -> u32 {
    let sign = (number >> 8) as u32 & 1;
    let magnitude = number as usize & 3;
    match ty {
        "f16" => sign << 15 | [0, 0x3C00, 0x4000, 0x4200][magnitude],
        "bf16" => sign << 15 | [0, 0x3F80, 0x4000, 0x4040][magnitude],
        "tf32" => sign << 31 | [0, 0x3F80_0000, 0x4000_0000, 0x4040_0000][magnitude],
        "e4m3" => sign << 7 | [0, 0x38, 0x40, 0x44][magnitude],
        "e5m2" => sign << 7 | [0, 0x3C, 0x40, 0x42][magnitude],
        _ => number as u32 & 0xFF,
    }
}
