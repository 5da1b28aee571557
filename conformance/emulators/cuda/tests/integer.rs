//! Integer instructions, held to values worked out from the PTX ISA's definitions.

mod harness;

use harness::check;

const R: &str = ".b32 a, b, c, d";
const L: &str = ".b64 a, b, c, d";
const H: &str = ".b16 a, b, c, d";
const W: &str = ".b32 a, b; .b64 c, d";
const M: u64 = 0xFFFF_FFFF;

#[test]
fn addition_and_subtraction() {
    check(
        R,
        "add.s32 d, a, b;",
        &[(&[1, 2], 3), (&[M, 1], 0), (&[0x7FFF_FFFF, 1], 0x8000_0000)],
    );
    check(
        R,
        "add.sat.s32 d, a, b;",
        &[
            (&[0x7FFF_FFFF, 1], 0x7FFF_FFFF),
            (&[0x8000_0000, M], 0x8000_0000),
            (&[5, M], 4),
        ],
    );
    check(
        R,
        "sub.sat.s32 d, a, b;",
        &[
            (&[0x8000_0000, 1], 0x8000_0000),
            (&[0x7FFF_FFFF, M], 0x7FFF_FFFF),
        ],
    );
    check(
        L,
        "sub.u64 d, a, b;",
        &[(&[0, 1], u64::MAX), (&[1 << 40, 1], (1 << 40) - 1)],
    );
    check(H, "add.u16 d, a, b;", &[(&[0xFFFF, 2], 1)]);
    check(R, "sub.s32 d, a, 5;", &[(&[3], M - 1)]);
}

#[test]
fn carries() {
    let table: &[(&[u64], u64)] = &[(&[M, 1], 1), (&[M - 1, 1], 0), (&[M, M], 1)];
    check(
        R,
        "{ .reg .b32 low; add.cc.u32 low, a, b; addc.u32 d, 0, 0; }",
        table,
    );
    let table: &[(&[u64], u64)] = &[(&[0, 1], M), (&[1, 1], 0), (&[2, 1], 0)];
    check(
        R,
        "{ .reg .b32 low; sub.cc.u32 low, a, b; subc.u32 d, 0, 0; }",
        table,
    );
    // 0xFFFFFFFF * 2 + 3 = 0x2_00000001: low word 1 and a carry beside the product's high word 1.
    check(
        R,
        "{ .reg .b32 low; mad.lo.cc.u32 low, a, b, c; madc.hi.u32 d, a, b, 0; }",
        &[(&[M, 2, 3], 2), (&[M, 2, 1], 1)],
    );
}

#[test]
fn products() {
    check(
        R,
        "mul.lo.s32 d, a, b;",
        &[(&[M, 3], M - 2), (&[0x1_0000, 0x1_0000], 0)],
    );
    check(
        R,
        "mul.hi.u32 d, a, b;",
        &[(&[M, M], M - 1), (&[0x8000_0000, 2], 1)],
    );
    check(
        R,
        "mul.hi.s32 d, a, b;",
        &[
            (&[M, M], 0),
            (&[M, 2], M),
            (&[0x8000_0000, 0x8000_0000], 0x4000_0000),
        ],
    );
    check(
        L,
        "mul.hi.u64 d, a, b;",
        &[(&[u64::MAX, u64::MAX], u64::MAX - 1), (&[1 << 63, 6], 3)],
    );
    check(L, "mul.hi.s64 d, a, b;", &[(&[u64::MAX, 2], u64::MAX)]);
    check(
        W,
        "mul.wide.s32 d, a, b;",
        &[(&[M, 2], u64::MAX - 1), (&[7, 6], 42)],
    );
    check(W, "mul.wide.u32 d, a, b;", &[(&[M, 2], 0x1_FFFF_FFFE)]);
    check(
        ".b16 a, b; .b32 d",
        "mul.wide.s16 d, a, b;",
        &[(&[0xFFFF, 3], M - 2)],
    );
    check(W, "mad.wide.s32 d, a, b, c;", &[(&[M, 2, 5], 3)]);
    check(R, "mad.lo.s32 d, a, b, c;", &[(&[3, 4, 5], 17)]);
    check(R, "mad.hi.u32 d, a, b, c;", &[(&[0x8000_0000, 4, 5], 7)]);
    check(
        R,
        "mad.hi.sat.s32 d, a, b, c;",
        &[(&[0x7FFF_FFFF, 0x7FFF_FFFF, 0x7FFF_FFFF], 0x7FFF_FFFF)],
    );
    check(R, "mul24.lo.u32 d, a, b;", &[(&[0xFF00_0002, 3], 6)]);
    check(
        R,
        "mul24.hi.s32 d, a, b;",
        &[(
            &[0x80_0000, 0x7F_FFFF],
            ((-0x80_0000_i64 * 0x7F_FFFF) >> 16) as u32 as u64,
        )],
    );
}

#[test]
fn division() {
    check(
        R,
        "div.s32 d, a, b;",
        &[(&[M - 6, 2], M - 2), (&[7, M - 1], M - 2)],
    );
    check(R, "rem.s32 d, a, b;", &[(&[M - 6, 2], M), (&[7, M - 1], 1)]);
    check(R, "div.u32 d, a, b;", &[(&[M, 2], 0x7FFF_FFFF)]);
    check(L, "rem.u64 d, a, b;", &[(&[u64::MAX, 10], 5)]);
}

#[test]
fn bits() {
    check(R, "popc.b32 d, a;", &[(&[0xF0F0], 8), (&[M], 32)]);
    check(".b64 a; .b32 d", "popc.b64 d, a;", &[(&[u64::MAX], 64)]);
    check(R, "clz.b32 d, a;", &[(&[0], 32), (&[1], 31), (&[M], 0)]);
    check(".b64 a; .b32 d", "clz.b64 d, a;", &[(&[0], 64), (&[1], 63)]);
    check(
        R,
        "brev.b32 d, a;",
        &[(&[1], 0x8000_0000), (&[0xF], 0xF000_0000)],
    );
    check(
        R,
        "bfind.u32 d, a;",
        &[(&[0], M), (&[1], 0), (&[0x8000_0001], 31)],
    );
    // Of negative numbers the highest zero is looked for.
    check(R, "bfind.s32 d, a;", &[(&[M], M), (&[M - 1], 0), (&[4], 2)]);
    check(
        R,
        "bfind.shiftamt.u32 d, a;",
        &[(&[1], 31), (&[0x8000_0000], 0), (&[0], M)],
    );
    check(R, "not.b32 d, a;", &[(&[0], M)]);
    check(R, "cnot.b32 d, a;", &[(&[0], 1), (&[9], 0)]);
    check(
        R,
        "abs.s32 d, a;",
        &[(&[M], 1), (&[0x8000_0000], 0x8000_0000)],
    );
    check(
        R,
        "neg.s32 d, a;",
        &[(&[1], M), (&[0x8000_0000], 0x8000_0000)],
    );
    check(R, "and.b32 d, a, b;", &[(&[0xC, 0xA], 0x8)]);
    check(R, "or.b32 d, a, b;", &[(&[0xC, 0xA], 0xE)]);
    check(L, "xor.b64 d, a, b;", &[(&[u64::MAX, 0xA], u64::MAX - 0xA)]);
    check(
        R,
        "bmsk.clamp.b32 d, a, b;",
        &[(&[4, 8], 0xFF0), (&[28, 8], 0xF000_0000), (&[33, 1], 0)],
    );
    check(
        R,
        "szext.clamp.s32 d, a, b;",
        &[(&[0x80, 8], 0xFFFF_FF80), (&[0x7F, 8], 0x7F)],
    );
}

#[test]
fn shifts() {
    check(
        R,
        "shl.b32 d, a, b;",
        &[(&[1, 31], 0x8000_0000), (&[1, 32], 0), (&[M, 100], 0)],
    );
    check(
        R,
        "shr.u32 d, a, b;",
        &[(&[0x8000_0000, 31], 1), (&[M, 32], 0)],
    );
    check(
        R,
        "shr.s32 d, a, b;",
        &[
            (&[0x8000_0000, 31], M),
            (&[0x8000_0000, 40], M),
            (&[0x4000_0000, 30], 1),
        ],
    );
    check(
        ".b64 a, d; .b32 b",
        "shr.s64 d, a, b;",
        &[(&[1 << 63, 63], u64::MAX), (&[1 << 63, 64], u64::MAX)],
    );
    check(H, "shr.s16 d, a, 4;", &[(&[0x8000], 0xF800)]);
    // b above a; left gives the upper word, right the lower one.
    check(
        R,
        "shf.l.wrap.b32 d, a, b, c;",
        &[(&[0xF000_0000, 1, 4], 0x1F), (&[1, 2, 32], 2)],
    );
    check(
        R,
        "shf.l.clamp.b32 d, a, b, c;",
        &[(&[0x1234_5678, 1, 32], 0x1234_5678), (&[9, 1, 50], 9)],
    );
    check(
        R,
        "shf.r.wrap.b32 d, a, b, c;",
        &[(&[0x10, 0xF, 4], 0xF000_0001), (&[1, 2, 32], 1)],
    );
    check(R, "shf.r.clamp.b32 d, a, b, c;", &[(&[1, 0x55, 33], 0x55)]);
}

#[test]
fn bit_fields() {
    check(
        R,
        "bfe.u32 d, a, b, c;",
        &[
            (&[0xABCD_EF12, 8, 8], 0xEF),
            (&[M, 28, 8], 0xF),
            (&[M, 0, 0], 0),
        ],
    );
    check(
        R,
        "bfe.s32 d, a, b, c;",
        &[
            (&[0x0000_8000, 8, 8], 0xFFFF_FF80),
            (&[0x80, 0, 9], 0x80),
            (&[0x8000_0000, 28, 8], 0xFFFF_FFF8),
        ],
    );
    check(
        ".b64 a, d; .b32 b, c",
        "bfe.u64 d, a, b, c;",
        &[(&[0xFF00_0000_0000, 40, 4], 0xF)],
    );
    check(
        R,
        "bfi.b32 d, a, b, 8, 4;",
        &[(&[0xF, 0], 0xF00), (&[0, M], 0xFFFF_F0FF)],
    );
    check(R, "bfi.b32 d, a, b, 30, 8;", &[(&[M, 0], 0xC000_0000)]);
    check(
        R,
        "lop3.b32 d, a, b, c, 0x80;",
        &[(&[0xF0, 0xCC, 0xAA], 0x80)],
    );
    // a ^ b ^ c is 0xF0 ^ 0xCC ^ 0xAA = 0x96.
    check(
        R,
        "lop3.b32 d, a, b, c, 0x96;",
        &[(&[0xF0, 0xCC, 0xAA], 0xF0 ^ 0xCC ^ 0xAA), (&[1, 2, 4], 7)],
    );
    check(
        R,
        "lop3.b32 d, a, b, c, 0xCA;",
        &[(&[0xFF00, 0x1234, 0x5678], 0x1278)],
    );
}

#[test]
fn permutations() {
    check(
        R,
        "prmt.b32 d, a, b, c;",
        &[
            (&[0x3322_1100, 0x7766_5544, 0x7531], 0x7755_3311),
            (&[0x3322_1100, 0x7766_5544, 0x0123], 0x0011_2233),
            // Bit 3 of a selector spreads the byte's sign.
            (&[0x0000_0080, 0, 0x0008], 0x8080_80FF),
        ],
    );
    check(
        R,
        "prmt.b32.f4e d, a, b, c;",
        &[(&[0x3322_1100, 0x7766_5544, 1], 0x4433_2211)],
    );
    check(
        R,
        "prmt.b32.b4e d, a, b, c;",
        &[(&[0x3322_1100, 0x7766_5544, 1], 0x6677_0011)],
    );
    check(
        R,
        "prmt.b32.rc8 d, a, b, c;",
        &[(&[0x3322_1100, 0, 2], 0x2222_2222)],
    );
    check(
        R,
        "prmt.b32.ecl d, a, b, c;",
        &[(&[0x3322_1100, 0, 2], 0x3322_2200)],
    );
    check(
        R,
        "prmt.b32.ecr d, a, b, c;",
        &[(&[0x3322_1100, 0, 2], 0x2222_1100)],
    );
    check(
        R,
        "prmt.b32.rc16 d, a, b, c;",
        &[(&[0x3322_1100, 0, 1], 0x3322_3322)],
    );
}

#[test]
fn dot_products() {
    // (-1)(2) + 3(4) + 5(6) + 7(8) = 96
    check(
        R,
        "dp4a.s32.s32 d, a, b, c;",
        &[(&[0x0705_03FF, 0x0806_0402, 10], 106)],
    );
    check(R, "dp4a.u32.u32 d, a, b, c;", &[(&[0xFF, 0xFF, 0], 65025)]);
    check(
        R,
        "dp4a.u32.s32 d, a, b, c;",
        &[(&[0xFF, 0xFF, 0], M - 254)],
    );
    check(
        R,
        "dp2a.lo.s32.s32 d, a, b, c;",
        &[(&[0x0003_FFFF, 0x0000_0402, 1], 11)],
    );
    check(
        R,
        "dp2a.hi.u32.u32 d, a, b, c;",
        &[(&[0x0003_0002, 0x0506_0000, 1], 28)],
    );
    check(
        R,
        "sad.s32 d, a, b, c;",
        &[(&[M, 2, 10], 13), (&[5, 2, 0], 3)],
    );
    check(R, "sad.u32 d, a, b, c;", &[(&[M, 0, 1], 0)]);
}

#[test]
fn comparison_and_selection() {
    check(R, "min.s32 d, a, b;", &[(&[M, 1], M)]);
    check(R, "min.u32 d, a, b;", &[(&[M, 1], 1)]);
    check(L, "max.s64 d, a, b;", &[(&[u64::MAX, 1], 1)]);
    let select = |setp: &str| format!("{setp} selp.b32 d, 1, 0, p;");
    check(
        R,
        &select("setp.lt.s32 p, a, b;"),
        &[(&[M, 0], 1), (&[0, M], 0)],
    );
    check(
        R,
        &select("setp.lt.u32 p, a, b;"),
        &[(&[M, 0], 0), (&[0, M], 1)],
    );
    check(
        R,
        &select("setp.hs.u32 p, a, b;"),
        &[(&[M, 0], 1), (&[3, 3], 1)],
    );
    check(
        R,
        &select("setp.eq.s32 p|q, a, b; @q setp.ne.u32 p, a, a;"),
        &[(&[2, 2], 1), (&[2, 3], 0)],
    );
    check(
        R,
        &select("setp.gt.u32 q, b, 5; setp.eq.and.u32 p, a, 1, q;"),
        &[(&[1, 6], 1), (&[1, 5], 0), (&[0, 6], 0)],
    );
    check(
        R,
        &select("setp.gt.u32 q, b, 5; setp.eq.or.u32 p, a, 1, !q;"),
        &[(&[1, 6], 1), (&[0, 5], 1), (&[0, 6], 0)],
    );
    check(R, "set.lt.s32.s32 d, a, b;", &[(&[M, 0], M), (&[0, 0], 0)]);
    check(R, "set.lt.f32.u32 d, a, b;", &[(&[1, 2], 0x3F80_0000)]);
    check(
        R,
        "slct.b32.s32 d, a, b, c;",
        &[(&[7, 8, 0], 7), (&[7, 8, M], 8)],
    );
    check(
        R,
        "slct.b32.f32 d, a, b, c;",
        &[(&[7, 8, 0x8000_0000], 7), (&[7, 8, 0x7FFF_FFFF], 8)],
    );
    check(
        R,
        &select(
            "setp.lt.s32 p, a, b; not.pred p, p; and.pred p, p, p; xor.pred p, p, !p; not.pred p, p;",
        ),
        &[(&[1, 2], 0)],
    );
}

#[test]
fn moves() {
    check(
        ".b16 a, b; .b32 d",
        "mov.b32 d, {a, b};",
        &[(&[0x1234, 0x5678], 0x5678_1234)],
    );
    check(
        ".b64 a; .b32 d, e",
        "mov.b64 {d, e}, a;",
        &[(&[0x1_0000_0002], 2)],
    );
    check(
        ".b64 a; .b32 d",
        "mov.b64 {_, d}, a;",
        &[(&[0x1_0000_0002], 1)],
    );
    check(".b32 d", "mov.f32 d, 0fBF800000;", &[(&[], 0xBF80_0000)]);
    check(".b64 d", "mov.b64 d, -2;", &[(&[], u64::MAX - 1)]);
    check(".b32 d", "mov.u32 d, %ntid.x;", &[(&[], 1)]);
    check(
        ".b32 d",
        "mov.u32 d, %lanemask_lt;",
        &[(&[], 0), (&[], 1), (&[], 3)],
    );
    check(
        ".b32 d",
        "mov.u32 d, %lanemask_ge;",
        &[(&[], M), (&[], M - 1)],
    );
}

#[test]
fn conversions_of_integers() {
    check(".b32 a; .b64 d", "cvt.s64.s32 d, a;", &[(&[M], u64::MAX)]);
    check(".b32 a; .b64 d", "cvt.u64.u32 d, a;", &[(&[M], M)]);
    check(
        ".b64 a; .b32 d",
        "cvt.u32.u64 d, a;",
        &[(&[0x1_2345_6789], 0x2345_6789)],
    );
    // The destination is a wider register: the result is extended to it.
    check(".b32 a, d", "cvt.s8.s32 d, a;", &[(&[0x80], 0xFFFF_FF80)]);
    check(".b32 a, d", "cvt.u8.u32 d, a;", &[(&[0x180], 0x80)]);
    check(
        ".b32 a; .b16 d",
        "cvt.sat.u8.s32 d, a;",
        &[(&[300], 255), (&[M], 0)],
    );
    check(
        ".b32 a; .b16 d",
        "cvt.sat.s16.s32 d, a;",
        &[(&[0x1_0000], 0x7FFF), (&[0xFFFF_0000], 0x8000)],
    );
}
