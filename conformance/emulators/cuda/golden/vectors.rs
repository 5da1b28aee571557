//! The kernels and their inputs.

use super::Rule;

/// A kernel of one block, `(in, out)`, with its input.
#[derive(Clone, Debug)]
pub struct Vector {
    /// Its name, which decides the inputs.
    pub name: String,
    /// The PTX.
    pub text: String,
    /// Threads of the block.
    pub threads: u32,
    /// What `in` points to.
    pub input: Vec<u8>,
    /// How many bytes `out` points to.
    pub output_bytes: usize,
    /// How results are compared.
    pub rule: Rule,
    /// The one architecture that has its instructions; `None` for what every GPU since sm_80 takes.
    pub only_on: Option<&'static str>,
}

impl Vector {
    /// Whether a device of this architecture (`9.0`) has its instructions.
    pub fn runs_on(&self, architecture: &str) -> bool {
        self.only_on.is_none_or(|only| only == architecture)
    }
}

/// What every GPU since sm_80 takes.
const HEADER: &str = ".version 7.8\n.target sm_80\n.address_size 64\n";
/// Rows of inputs to an instruction, a thread each.
const ROWS: u32 = 256;

/// Integers, and bits of floats, where something happens.
const EDGES_32: [u32; 24] = [
    0,
    1,
    2,
    31,
    32,
    33,
    0x7F,
    0xFF,
    0x8000,
    0xFFFF,
    0x7FFF_FFFF,
    0x8000_0000,
    0xFFFF_FFFF,
    0x3F80_0000,
    0xBF80_0000,
    0x3F7F_FFFF,
    0x0080_0000,
    0x0000_0001,
    0x7F7F_FFFF,
    0x7F80_0000,
    0xFF80_0000,
    0x7FC0_0000,
    0x4F00_0000,
    0x4B80_0001,
];
const EDGES_16: [u16; 16] = [
    0, 0x8000, 0x3C00, 0xBC00, 1, 0x03FF, 0x0400, 0x7BFF, 0x7C00, 0xFC00, 0x7E00, 0x3C01, 0x4248,
    0x3F80, 0x7F7F, 0x0080,
];

/// splitmix64, begun by a name.
pub(super) struct Numbers(u64);

impl Numbers {
    pub(super) fn of(name: &str) -> Numbers {
        Numbers(name.bytes().fold(0x1234_5678_9ABC_DEF0, |state, byte| {
            (state ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3)
        }))
    }

    pub(super) fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    /// A value of a register type: an edge, any bits, or an ordinary number.
    fn value(&mut self, ty: &str) -> u64 {
        let pick = self.draw();
        let any = self.draw();
        let ordinary = (any as i32) as f32 / 2f32.powi((pick >> 32) as i32 % 40);
        match (ty, pick % 3) {
            ("f32", 0) | ("b32", 0) => u64::from(EDGES_32[any as usize % EDGES_32.len()]),
            ("f32", 1) => u64::from(ordinary.to_bits()),
            ("b16", 0) => u64::from(EDGES_16[any as usize % EDGES_16.len()]),
            ("b64", 0) => [
                0,
                1,
                u64::MAX,
                1 << 63,
                i64::MAX as u64,
                1 << 53,
                (1 << 53) + 1,
            ][any as usize % 7],
            ("f64", 0) => [0.0, -0.0, 1.0, f64::INFINITY, f64::NAN, 5e-324, f64::MAX]
                [any as usize % 7]
                .to_bits(),
            ("f64", 1) => f64::from(ordinary).to_bits(),
            _ => any,
        }
    }
}

fn bits(ty: &str) -> u32 {
    ty[1..].parse().unwrap_or(32)
}

/// An instruction over rows: `registers` are the types of `d` and of the sources `a`, `b`, `c`.
fn rows(name: &str, registers: &[&str], instruction: &str, rule: Rule) -> Vector {
    let (d, sources) = (registers[0], &registers[1..]);
    let names = ["a", "b", "c"];
    let declared: String = sources
        .iter()
        .zip(names)
        .map(|(ty, name)| format!(".reg .{ty} {name}; "))
        .collect();
    let load = |(index, (ty, name)): (usize, (&&str, &str))| {
        format!("ld.global.b{} {name}, [%i+{}];\n", bits(ty), 8 * index)
    };
    let loads: String = sources.iter().zip(names).enumerate().map(load).collect();
    let text = format!(
        "{HEADER}.visible .entry golden(.param .u64 in, .param .u64 out) {{
.reg .b64 %i, %o, %w; .reg .b32 %t; .reg .pred p, q; .reg .{d} d; {declared}
ld.param.u64 %i, [in]; ld.param.u64 %o, [out]; mov.u32 %t, %tid.x;
mul.wide.u32 %w, %t, 24; add.s64 %i, %i, %w; mul.wide.u32 %w, %t, 8; add.s64 %o, %o, %w;
mov.b64 %w, 0; st.global.b64 [%o], %w;
{loads}{instruction}
st.global.b{} [%o], d;
ret; }}
",
        bits(d)
    );
    let mut numbers = Numbers::of(name);
    let mut input = Vec::new();
    for _ in 0..ROWS {
        for index in 0..3 {
            let value = sources.get(index).map_or(0, |ty| numbers.value(ty));
            input.extend(value.to_le_bytes());
        }
    }
    Vector {
        name: name.into(),
        text,
        threads: ROWS,
        input,
        output_bytes: ROWS as usize * 8,
        rule,
        only_on: None,
    }
}

/// Instructions named as they are written, with operands in order.
fn plain(list: &[(&str, &[&str])], rule: Rule) -> Vec<Vector> {
    list.iter()
        .map(|(name, registers)| {
            let operands = ["d", "a", "b", "c"][..registers.len()].join(", ");
            rows(name, registers, &format!("{name} {operands};"), rule)
        })
        .collect()
}

const B1: &[&str] = &["b32", "b32"];
const B2: &[&str] = &["b32", "b32", "b32"];
const B3: &[&str] = &["b32", "b32", "b32", "b32"];
const L2: &[&str] = &["b64", "b64", "b64"];
const W2: &[&str] = &["b64", "b32", "b32"];
const W3: &[&str] = &["b64", "b32", "b32", "b64"];
const F1: &[&str] = &["f32", "f32"];
const F2: &[&str] = &["f32", "f32", "f32"];
const F3: &[&str] = &["f32", "f32", "f32", "f32"];
const D1: &[&str] = &["f64", "f64"];
const D2: &[&str] = &["f64", "f64", "f64"];
const D3: &[&str] = &["f64", "f64", "f64", "f64"];
const H2: &[&str] = &["b16", "b16", "b16"];
const H3: &[&str] = &["b16", "b16", "b16", "b16"];

/// Every vector.
pub fn all() -> Vec<Vector> {
    let integers: &[(&str, &[&str])] = &[
        ("add.s32", B2),
        ("add.sat.s32", B2),
        ("sub.sat.s32", B2),
        ("mul.lo.s32", B2),
        ("mul.hi.s32", B2),
        ("mul.hi.u32", B2),
        ("mul.hi.s64", L2),
        ("mul.hi.u64", L2),
        ("mul.wide.s32", W2),
        ("mul.wide.u32", W2),
        ("mad.wide.s32", W3),
        ("mad.hi.u32", B3),
        ("mul24.lo.s32", B2),
        ("mul24.hi.u32", B2),
        ("sad.s32", B3),
        ("sad.u32", B3),
        ("min.s32", B2),
        ("max.u64", L2),
        ("abs.s32", B1),
        ("neg.s32", B1),
        ("popc.b32", B1),
        ("clz.b32", B1),
        ("brev.b32", B1),
        ("bfind.u32", B1),
        ("bfind.s32", B1),
        ("bfind.shiftamt.u32", B1),
        ("bfe.u32", B3),
        ("bfe.s32", B3),
        ("shl.b32", B2),
        ("shr.u32", B2),
        ("shr.s32", B2),
        ("shf.l.wrap.b32", B3),
        ("shf.l.clamp.b32", B3),
        ("shf.r.wrap.b32", B3),
        ("shf.r.clamp.b32", B3),
        ("prmt.b32", B3),
        ("prmt.b32.f4e", B3),
        ("prmt.b32.b4e", B3),
        ("prmt.b32.rc8", B3),
        ("prmt.b32.ecl", B3),
        ("prmt.b32.ecr", B3),
        ("prmt.b32.rc16", B3),
        ("dp4a.s32.s32", B3),
        ("dp4a.u32.s32", B3),
        ("dp2a.lo.s32.u32", B3),
        ("dp2a.hi.u32.u32", B3),
        ("cnot.b32", B1),
        ("szext.clamp.s32", B2),
        ("szext.wrap.u32", B2),
        ("bmsk.clamp.b32", B2),
        ("bmsk.wrap.b32", B2),
    ];
    let singles: &[(&str, &[&str])] = &[
        ("add.rn.f32", F2),
        ("add.rz.f32", F2),
        ("add.rm.f32", F2),
        ("add.rp.f32", F2),
        ("add.rn.ftz.f32", F2),
        ("add.rn.sat.f32", F2),
        ("mul.rn.f32", F2),
        ("mul.rz.f32", F2),
        ("mul.rm.ftz.f32", F2),
        ("fma.rn.f32", F3),
        ("fma.rz.f32", F3),
        ("fma.rm.f32", F3),
        ("fma.rp.f32", F3),
        ("fma.rn.ftz.sat.f32", F3),
        ("div.rn.f32", F2),
        ("div.rz.f32", F2),
        ("div.rm.f32", F2),
        ("div.rp.f32", F2),
        ("rcp.rn.f32", F1),
        ("rcp.rz.f32", F1),
        ("rcp.rp.f32", F1),
        ("sqrt.rn.f32", F1),
        ("sqrt.rz.f32", F1),
        ("sqrt.rm.f32", F1),
        ("min.f32", F2),
        ("max.f32", F2),
        ("min.NaN.f32", F2),
        ("max.ftz.f32", F2),
        ("abs.ftz.f32", F1),
        ("copysign.f32", F2),
        ("cvt.rni.f32.f32", F1),
        ("cvt.rzi.f32.f32", F1),
        ("cvt.rmi.ftz.f32.f32", F1),
        ("cvt.sat.f32.f32", F1),
        ("cvt.rn.f32.s32", &["f32", "b32"]),
        ("cvt.rz.f32.u32", &["f32", "b32"]),
        ("cvt.rn.f32.u64", &["f32", "b64"]),
        ("cvt.rp.f32.s64", &["f32", "b64"]),
        ("cvt.rn.f32.f64", &["f32", "f64"]),
        ("cvt.rm.f32.f64", &["f32", "f64"]),
        ("cvt.f32.f16", &["f32", "b16"]),
    ];
    let doubles: &[(&str, &[&str])] = &[
        ("add.rn.f64", D2),
        ("mul.rn.f64", D2),
        ("div.rn.f64", D2),
        ("fma.rn.f64", D3),
        ("sqrt.rn.f64", D1),
        ("min.f64", D2),
        ("cvt.rni.f64.f64", D1),
        ("cvt.f64.f32", &["f64", "f32"]),
        ("cvt.rn.f64.s64", &["f64", "b64"]),
        ("cvt.rp.f64.u64", &["f64", "b64"]),
    ];
    let exact: &[(&str, &[&str])] = &[
        ("cvt.rni.s32.f32", &["b32", "f32"]),
        ("cvt.rzi.u32.f32", &["b32", "f32"]),
        ("cvt.rmi.s64.f32", &["b64", "f32"]),
        ("cvt.rpi.u64.f64", &["b64", "f64"]),
        ("cvt.rzi.s32.f64", &["b32", "f64"]),
        ("cvt.rzi.s32.f16", &["b32", "b16"]),
        ("cvt.rn.f16.f32", &["b16", "f32"]),
        ("cvt.rz.f16.f32", &["b16", "f32"]),
        ("cvt.rn.bf16.f32", &["b16", "f32"]),
        ("cvt.rn.relu.bf16.f32", &["b16", "f32"]),
        ("cvt.rz.bf16.f32", &["b16", "f32"]),
        ("cvt.rn.f16x2.f32", &["b32", "f32", "f32"]),
        ("cvt.rn.bf16x2.f32", &["b32", "f32", "f32"]),
        ("cvt.rna.tf32.f32", &["b32", "f32"]),
        ("cvt.rn.f16.s32", &["b16", "b32"]),
        ("cvt.sat.s8.s32", &["b32", "b32"]),
        ("cvt.sat.u16.s32", &["b32", "b32"]),
        ("add.f16", H2),
        ("mul.f16", H2),
        ("sub.f16", H2),
        ("fma.rn.f16", H3),
        ("fma.rn.relu.f16", H3),
        ("fma.rn.bf16", H3),
        ("min.f16", H2),
        ("max.NaN.f16", H2),
        ("max.bf16", H2),
        ("add.f16x2", B2),
        ("fma.rn.f16x2", B3),
        ("fma.rn.bf16x2", B3),
    ];
    let approximate: &[(&str, f64, f64)] = &[
        ("ex2.approx.f32", 2f64.powi(-22), 0.0),
        ("ex2.approx.ftz.f32", 2f64.powi(-22), 0.0),
        ("lg2.approx.f32", 2f64.powi(-22), 2f64.powi(-22)),
        ("rcp.approx.ftz.f32", 2f64.powi(-23), 0.0),
        ("sqrt.approx.f32", 2f64.powi(-22), 0.0),
        ("rsqrt.approx.f32", 2f64.powi(-22), 0.0),
        ("tanh.approx.f32", 2f64.powi(-11), 0.0),
    ];
    let mut vectors = plain(integers, Rule::Exact);
    vectors.extend(plain(exact, Rule::Exact));
    vectors.extend(plain(singles, Rule::Single));
    vectors.extend(plain(doubles, Rule::Double));
    vectors.extend(approximate.iter().flat_map(|(name, relative, absolute)| {
        plain(&[(name, F1)], Rule::Near(*relative, *absolute))
    }));
    for table in [0x80, 0x96, 0xCA, 0xE8] {
        vectors.push(rows(
            &format!("lop3.b32.{table:#x}"),
            B3,
            &format!("lop3.b32 d, a, b, c, {table};"),
            Rule::Exact,
        ));
    }
    vectors.push(rows("bfi.b32", B3, "bfi.b32 d, a, b, c, 5;", Rule::Exact));
    let carry = "{ .reg .b32 low; add.cc.u32 low, a, b; addc.u32 d, c, 0; }";
    vectors.push(rows("add.cc.u32", B3, carry, Rule::Exact));
    for test in [
        "eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan",
    ] {
        let compare = format!("setp.{test}.f32 p, a, b; selp.b32 d, 1, 0, p;");
        vectors.push(rows(
            &format!("setp.{test}.f32"),
            &["b32", "f32", "f32"],
            &compare,
            Rule::Exact,
        ));
    }
    for (mode, c) in [
        ("up", 0),
        ("down", 31),
        ("bfly", 31),
        ("idx", 31),
        ("down", 0x1807),
        ("idx", 0x1C1F),
    ] {
        let shuffle = format!(
            "and.b32 b, b, 7; shfl.sync.{mode}.b32 d|p, a, b, {c}, -1; @!p add.u32 d, d, 1;"
        );
        vectors.push(rows(
            &format!("shfl.sync.{mode}.{c:#x}"),
            B2,
            &shuffle,
            Rule::Exact,
        ));
    }
    vectors.push(rows(
        "vote.sync.ballot",
        B1,
        "setp.lt.s32 p, a, 0; vote.sync.ballot.b32 d, p, -1;",
        Rule::Exact,
    ));
    vectors.push(rows(
        "match.any.sync",
        B1,
        "and.b32 a, a, 3; match.any.sync.b32 d, a, -1;",
        Rule::Exact,
    ));
    for op in ["add.u32", "min.s32", "max.u32", "and.b32", "xor.b32"] {
        vectors.push(rows(
            &format!("redux.sync.{op}"),
            B1,
            &format!("redux.sync.{op} d, a, -1;"),
            Rule::Exact,
        ));
    }
    vectors.extend(matrices());
    vectors.extend(super::hopper::all());
    vectors
}

/// `ldmatrix` by position, `mma` on integers that are exact and on noise.
fn matrices() -> Vec<Vector> {
    let mut vectors = Vec::new();
    for load in ["x1", "x1.trans", "x2", "x2.trans", "x4", "x4.trans"] {
        let count = usize::from(load.as_bytes()[1] - b'0');
        let list = (0..count)
            .map(|i| format!("d{i}"))
            .collect::<Vec<_>>()
            .join(", ");
        let text = format!(
            "{HEADER}.visible .entry golden(.param .u64 in, .param .u64 out) {{
.reg .b64 %i, %o, %w; .reg .b32 %t, %s, a<4>, d<4>; .shared .align 16 .b8 tile[512];
ld.param.u64 %i, [in]; ld.param.u64 %o, [out]; mov.u32 %t, %tid.x; mul.wide.u32 %w, %t, 16; add.s64 %i, %i, %w; add.s64 %o, %o, %w;
mov.u32 %s, tile; mad.lo.u32 %s, %t, 16, %s; ld.global.v4.b32 {{a0, a1, a2, a3}}, [%i]; st.shared.v4.b32 [%s], {{a0, a1, a2, a3}}; bar.sync 0;
mov.b32 d0, 0; mov.b32 d1, 0; mov.b32 d2, 0; mov.b32 d3, 0;
ldmatrix.sync.aligned.m8n8.{load}.shared.b16 {{{list}}}, [%s];
st.global.v4.b32 [%o], {{d0, d1, d2, d3}}; ret; }}
"
        );
        vectors.push(Vector {
            name: format!("ldmatrix.{load}"),
            text,
            threads: 32,
            input: (0..256_u16).flat_map(u16::to_le_bytes).collect(),
            output_bytes: 512,
            rule: Rule::Exact,
            only_on: None,
        });
    }
    for (shape, k, ty, sums) in [
        ("m16n8k16", 16, "f16", "f32"),
        ("m16n8k8", 8, "f16", "f32"),
        ("m16n8k16", 16, "f16", "f16"),
        ("m16n8k16", 16, "bf16", "f32"),
        ("m16n8k8", 8, "bf16", "f32"),
        ("m16n8k8", 8, "tf32", "f32"),
        ("m16n8k4", 4, "tf32", "f32"),
        ("m16n8k32", 32, "s8", "s32"),
        ("m16n8k16", 16, "u8", "s32"),
    ] {
        for exact in [true, false] {
            if exact || sums == "f32" {
                vectors.push(mma(shape, k, ty, sums, exact));
            }
        }
    }
    vectors
}

fn mma(shape: &str, k: usize, ty: &str, sums: &str, exact: bool) -> Vector {
    let bytes = match ty {
        "tf32" => 4,
        "s8" | "u8" => 1,
        _ => 2,
    };
    let (a, b, c) = (
        k * bytes / 8,
        k * bytes / 16,
        if sums == "f16" { 2 } else { 4 },
    );
    let list = |letter: &str, count: usize| {
        (0..count)
            .map(|i| format!("{letter}{i}"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let load = |letter: &str, count: usize, from: usize| {
        (0..count)
            .map(|i| format!("ld.global.b32 {letter}{i}, [%i+{}]; ", 4 * (from + i)))
            .collect::<String>()
    };
    let name = format!(
        "mma.{shape}.{sums}.{ty}.{}",
        if exact { "integers" } else { "noise" }
    );
    let text = format!(
        "{HEADER}.visible .entry golden(.param .u64 in, .param .u64 out) {{
.reg .b64 %i, %o, %w; .reg .b32 %t, a<4>, b<2>, c<4>, d<4>;
ld.param.u64 %i, [in]; ld.param.u64 %o, [out]; mov.u32 %t, %tid.x; mul.wide.u32 %w, %t, 40; add.s64 %i, %i, %w;
mul.wide.u32 %w, %t, 16; add.s64 %o, %o, %w; {} {} {}
mov.b32 d0, 0; mov.b32 d1, 0; mov.b32 d2, 0; mov.b32 d3, 0;
mma.sync.aligned.{shape}.row.col.{sums}.{ty}.{ty}.{sums} {{{}}}, {{{}}}, {{{}}}, {{{}}};
st.global.b32 [%o], d0; st.global.b32 [%o+4], d1; st.global.b32 [%o+8], d2; st.global.b32 [%o+12], d3; ret; }}
",
        load("a", a, 0), load("b", b, 4), load("c", c, 6), list("d", c), list("a", a), list("b", b), list("c", c)
    );
    let mut numbers = Numbers::of(&name);
    let mut number = |ty: &str| {
        let bits = numbers.draw();
        let small = (bits % 15) as f32 - 7.0;
        let value = if exact {
            small
        } else {
            (bits >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        match ty {
            "f16" => u64::from(crate::interpret::format::F16.round(
                f64::from(value),
                Default::default(),
                false,
            )),
            "bf16" => u64::from(crate::interpret::format::BF16.round(
                f64::from(value),
                Default::default(),
                false,
            )),
            "tf32" => u64::from(value.to_bits() & 0xFFFF_E000),
            "f32" => u64::from(value.to_bits()),
            "s32" => small as i32 as u32 as u64,
            // Of integers any bits are exact.
            _ => bits & 0xFF,
        }
    };
    let mut input = Vec::new();
    for _ in 0..32 {
        for register in 0..10 {
            let (ty, each) = if register < 6 {
                (ty, 4 / bytes)
            } else {
                (sums, if sums == "f16" { 2 } else { 1 })
            };
            let word = (0..each).fold(0, |word, part| word | number(ty) << (32 / each * part));
            input.extend((word as u32).to_le_bytes());
        }
    }
    Vector {
        name,
        text,
        threads: 32,
        input,
        output_bytes: 512,
        // Products below 1, truncated to no less than f32's bits: k + 1 terms.
        rule: if exact {
            Rule::Exact
        } else {
            Rule::Sums((k + 1) as f64 * 2f64.powi(-23))
        },
        only_on: None,
    }
}
