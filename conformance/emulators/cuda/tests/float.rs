//! Float instructions and conversions, held to values worked out from the PTX ISA's definitions.

mod harness;

use harness::{check, rows};

const F: &str = ".f32 a, b, c, d";
const D: &str = ".f64 a, b, c, d";
const H: &str = ".b16 a, b, c, d";
const X: &str = ".b32 a, b, c, d";
const NAN: u64 = 0x7FFF_FFFF;
const INF: u64 = 0x7F80_0000;
const TINY: u64 = 0x0000_0001;

fn f(value: f32) -> u64 {
    u64::from(value.to_bits())
}

fn d(value: f64) -> u64 {
    value.to_bits()
}

#[test]
fn sums() {
    check(
        F,
        "add.f32 d, a, b;",
        &[
            (&[f(1.5), f(2.25)], f(3.75)),
            (&[f(1.0), f(2f32.powi(-24))], f(1.0)),
            (&[INF, 0xFF80_0000], NAN),
            (&[TINY, TINY], 2),
        ],
    );
    let half_ulp = f(2f32.powi(-24));
    check(
        F,
        "add.rp.f32 d, a, b;",
        &[(&[f(1.0), half_ulp], f(1.0 + f32::EPSILON))],
    );
    check(
        F,
        "add.rm.f32 d, a, b;",
        &[(&[f(1.0), half_ulp], f(1.0)), (&[f(1.0), f(-1.0)], f(-0.0))],
    );
    check(
        F,
        "add.rz.f32 d, a, b;",
        &[
            (&[f(-1.0), f(-2f32.powi(-24))], f(-1.0)),
            (&[f(f32::MAX), f(f32::MAX)], f(f32::MAX)),
        ],
    );
    check(
        F,
        "add.ftz.f32 d, a, b;",
        &[
            (&[TINY, TINY], 0),
            (
                &[f(f32::MIN_POSITIVE), f(-1.5 * f32::MIN_POSITIVE)],
                0x8000_0000,
            ),
        ],
    );
    check(
        F,
        "add.sat.f32 d, a, b;",
        &[
            (&[f(0.75), f(0.75)], f(1.0)),
            (&[f(-1.0), f(0.5)], 0),
            (&[INF, 0xFF80_0000], 0),
        ],
    );
    check(F, "sub.f32 d, a, b;", &[(&[f(1.0), f(3.0)], f(-2.0))]);
    check(D, "add.f64 d, a, b;", &[(&[d(0.1), d(0.2)], d(0.1 + 0.2))]);
}

#[test]
fn products_and_quotients() {
    check(
        F,
        "mul.f32 d, a, b;",
        &[
            (&[f(3.0), f(-0.5)], f(-1.5)),
            (&[0, INF], NAN),
            (&[f(1e30), f(1e30)], INF),
        ],
    );
    check(
        F,
        "mul.rz.f32 d, a, b;",
        &[(&[f(1e30), f(1e30)], f(f32::MAX))],
    );
    check(
        F,
        "div.rn.f32 d, a, b;",
        &[
            (&[f(1.0), f(3.0)], f(1.0 / 3.0)),
            (&[f(1.0), 0], INF),
            (&[0, 0], NAN),
        ],
    );
    // 1/3 in binary is 0.0101…: nearest rounds up, so downwards differs.
    check(
        F,
        "div.rm.f32 d, a, b;",
        &[
            (&[f(1.0), f(3.0)], f(1.0 / 3.0) - 1),
            (&[f(-1.0), f(3.0)], f(-1.0 / 3.0)),
        ],
    );
    check(
        F,
        "div.rp.f32 d, a, b;",
        &[(&[f(1.0), f(-3.0)], f(-1.0 / 3.0) - 1)],
    );
    check(
        F,
        "rcp.rn.f32 d, a;",
        &[(&[f(4.0)], f(0.25)), (&[f(-0.0)], 0xFF80_0000)],
    );
    check(
        F,
        "rcp.rz.f32 d, a;",
        &[
            (&[f(3.0)], f(1.0 / 3.0) - 1),
            (&[f(-3.0)], f(-1.0 / 3.0) - 1),
        ],
    );
    check(
        F,
        "sqrt.rn.f32 d, a;",
        &[(&[f(2.0)], f(std::f32::consts::SQRT_2)), (&[f(-1.0)], NAN)],
    );
    // sqrt 2 = 1.41421356237…, and the nearest f32 1.41421354… is below it.
    check(
        F,
        "sqrt.rp.f32 d, a;",
        &[
            (&[f(2.0)], f(std::f32::consts::SQRT_2) + 1),
            (&[f(4.0)], f(2.0)),
        ],
    );
    check(
        D,
        "div.rn.f64 d, a, b;",
        &[(&[d(1.0), d(3.0)], d(1.0 / 3.0))],
    );
    check(D, "sqrt.rn.f64 d, a;", &[(&[d(2.0)], d(2f64.sqrt()))]);
}

#[test]
fn fused_products() {
    // (1 + 2^-12)^2 - 1 = 2^-11 + 2^-24: the product is not rounded before the sum.
    let a = f(1.0 + 2f32.powi(-12));
    check(
        F,
        "fma.rn.f32 d, a, b, c;",
        &[
            (&[a, a, f(-1.0)], f(2f32.powi(-11) + 2f32.powi(-24))),
            (&[INF, 0, f(1.0)], NAN),
        ],
    );
    // 1 + 2^-24 + 2^-80 rounds up, though 1 + 2^-24 alone is a tie.
    check(
        F,
        "fma.rn.f32 d, a, b, c;",
        &[(&[f(2f32.powi(-40)), f(2f32.powi(-40)), f(1.0)], f(1.0))],
    );
    check(
        F,
        "fma.rp.f32 d, a, b, c;",
        &[(
            &[f(2f32.powi(-40)), f(2f32.powi(-40)), f(1.0)],
            f(1.0 + f32::EPSILON),
        )],
    );
    check(
        D,
        "fma.rn.f64 d, a, b, c;",
        &[(
            &[d(1.0 + f64::EPSILON), d(1.0 - f64::EPSILON), d(-1.0)],
            d(-f64::EPSILON * f64::EPSILON),
        )],
    );
    // 6 2^-10 + 9 2^-20, of which rounding the product would lose the second part.
    check(
        H,
        "fma.rn.f16 d, a, b, c;",
        &[(&[0x3C03, 0x3C03, 0xBC00], 0x1E02)],
    );
    check(
        H,
        "fma.rn.relu.f16 d, a, b, c;",
        &[(&[0x3C00, 0x3C00, 0xC000], 0)],
    );
    check(
        H,
        "fma.rn.bf16 d, a, b, c;",
        &[(&[0x4000, 0x4040, 0x3F80], 0x40E0)],
    );
    check(
        X,
        "fma.rn.f16x2 d, a, b, c;",
        &[(&[0x4000_3C00, 0x4000_4200, 0x3C00_3C00], 0x4500_4400)],
    );
    check(
        X,
        "fma.rn.bf16x2 d, a, b, c;",
        &[(&[0x4000_3F80, 0x4000_4040, 0x3F80_3F80], 0x40A0_4080)],
    );
}

#[test]
fn extremes() {
    check(
        F,
        "min.f32 d, a, b;",
        &[
            (&[f(1.0), NAN], f(1.0)),
            (&[NAN, NAN], NAN),
            (&[0, f(-0.0)], f(-0.0)),
        ],
    );
    check(
        F,
        "max.f32 d, a, b;",
        &[(&[NAN, f(-1.0)], f(-1.0)), (&[f(-0.0), 0], 0)],
    );
    check(F, "max.NaN.f32 d, a, b;", &[(&[NAN, f(-1.0)], NAN)]);
    check(
        F,
        "min.xorsign.abs.f32 d, a, b;",
        &[(&[f(-2.0), f(3.0)], f(-2.0)), (&[f(-4.0), f(-3.0)], f(3.0))],
    );
    check(D, "max.f64 d, a, b;", &[(&[d(1.0), d(2.0)], d(2.0))]);
    check(
        H,
        "max.f16 d, a, b;",
        &[(&[0x3C00, 0xC000], 0x3C00), (&[0x7E00, 0x3C00], 0x3C00)],
    );
    check(
        X,
        "min.bf16x2 d, a, b;",
        &[(&[0x3F80_4000, 0x4000_3F80], 0x3F80_3F80)],
    );
    check(F, "abs.f32 d, a;", &[(&[f(-3.0)], f(3.0))]);
    check(F, "neg.ftz.f32 d, a;", &[(&[TINY], 0x8000_0000)]);
    check(H, "neg.f16 d, a;", &[(&[0x3C00], 0xBC00)]);
    check(F, "copysign.f32 d, a, b;", &[(&[f(-1.0), f(2.0)], f(-2.0))]);
}

#[test]
fn half_precision() {
    check(
        H,
        "add.f16 d, a, b;",
        &[(&[0x3C00, 0x4000], 0x4200), (&[0x7BFF, 0x7BFF], 0x7C00)],
    );
    // 1 + 2^-11 is a tie, which goes to even.
    check(
        H,
        "add.rn.f16 d, a, b;",
        &[(&[0x3C00, 0x1000], 0x3C00), (&[0x3C01, 0x1000], 0x3C02)],
    );
    check(
        H,
        "mul.f16 d, a, b;",
        &[(&[0x0001, 0x3800], 0x0000), (&[0x0003, 0x3800], 0x0002)],
    );
    check(H, "sub.bf16 d, a, b;", &[(&[0x3F80, 0x4000], 0xBF80)]);
    check(
        X,
        "add.f16x2 d, a, b;",
        &[(&[0x3C00_4000, 0x4000_4000], 0x4200_4400)],
    );
    check(
        X,
        "mul.rn.bf16x2 d, a, b;",
        &[(&[0x4000_4000, 0x4040_3F80], 0x40C0_4000)],
    );
}

#[test]
fn comparisons() {
    let select = |setp: &str| format!("{setp} selp.b32 d, 1, 0, p;");
    check(
        F,
        &select("setp.lt.f32 p, a, b;"),
        &[(&[f(1.0), f(2.0)], 1), (&[NAN, f(2.0)], 0)],
    );
    check(
        F,
        &select("setp.ltu.f32 p, a, b;"),
        &[(&[NAN, f(2.0)], 1), (&[f(2.0), f(2.0)], 0)],
    );
    check(
        F,
        &select("setp.neu.f32 p, a, b;"),
        &[(&[NAN, NAN], 1), (&[0, f(-0.0)], 0)],
    );
    check(
        F,
        &select("setp.ne.f32 p, a, b;"),
        &[(&[NAN, NAN], 0), (&[f(1.0), f(2.0)], 1)],
    );
    check(
        F,
        &select("setp.num.f32 p, a, b;"),
        &[(&[f(1.0), NAN], 0), (&[f(1.0), INF], 1)],
    );
    check(F, &select("setp.nan.f32 p, a, b;"), &[(&[f(1.0), NAN], 1)]);
    check(F, &select("setp.eq.ftz.f32 p, a, b;"), &[(&[TINY, 0], 1)]);
    check(
        F,
        &select("testp.subnormal.f32 p, a;"),
        &[(&[TINY], 1), (&[0], 0)],
    );
    check(
        F,
        &select("testp.infinite.f32 p, a;"),
        &[(&[INF], 1), (&[NAN], 0)],
    );
    check(
        X,
        "setp.gt.f16x2 p|q, a, b; selp.b32 d, 1, 0, p; @q add.s32 d, d, 2;",
        &[
            (&[0x4000_3C00, 0x3C00_4000], 2),
            (&[0x3C00_4000, 0x4000_3C00], 1),
        ],
    );
    check(
        ".b16 a, b; .b32 d",
        &select("setp.ge.bf16 p, a, b;"),
        &[(&[0x4000, 0x4000], 1), (&[0x3F80, 0x4000], 0)],
    );
}

#[test]
fn conversions_between_floats() {
    check(
        ".f32 a; .b16 d",
        "cvt.rn.f16.f32 d, a;",
        &[
            (&[f(1.0)], 0x3C00),
            (&[f(65520.0)], 0x7C00),
            (&[f(2f32.powi(-24))], 1),
            (&[f(2f32.powi(-25))], 0),
            (&[NAN], 0x7FFF),
        ],
    );
    check(
        ".f32 a; .b16 d",
        "cvt.rz.f16.f32 d, a;",
        &[(&[f(65535.0)], 0x7BFF), (&[f(-1.9999)], 0xBFFF)],
    );
    check(
        ".f32 a; .b16 d",
        "cvt.rn.bf16.f32 d, a;",
        &[
            (&[0x3F80_8000], 0x3F80),
            (&[0x3F81_8000], 0x3F82),
            (&[0x3F80_8001], 0x3F81),
            (&[f(f32::MAX)], 0x7F80),
        ],
    );
    check(
        ".f32 a; .b16 d",
        "cvt.rn.relu.bf16.f32 d, a;",
        &[(&[f(-2.0)], 0)],
    );
    check(
        ".b16 a; .f32 d",
        "cvt.f32.f16 d, a;",
        &[(&[0x0001], f(2f32.powi(-24))), (&[0xFC00], 0xFF80_0000)],
    );
    check(
        ".b16 a; .f32 d",
        "cvt.f32.bf16 d, a;",
        &[(&[0x4049], 0x4049_0000)],
    );
    check(
        ".f32 a, b, d",
        "cvt.rn.f16x2.f32 d, a, b;",
        &[(&[f(1.0), f(2.0)], 0x3C00_4000)],
    );
    check(
        ".f32 a, b, d",
        "cvt.rn.bf16x2.f32 d, a, b;",
        &[(&[f(1.0), f(2.0)], 0x3F80_4000)],
    );
    check(
        ".f32 a, b; .b16 d",
        "cvt.rn.satfinite.e4m3x2.f32 d, a, b;",
        &[(&[f(1.0), f(1000.0)], 0x387E), (&[NAN, f(-0.0)], 0x7F80)],
    );
    check(
        ".f32 a, b; .b16 d",
        "cvt.rn.satfinite.e5m2x2.f32 d, a, b;",
        &[(&[f(1.0), f(-1e9)], 0x3CFB)],
    );
    check(
        ".b16 a; .b32 d",
        "cvt.rn.f16x2.e4m3x2 d, a;",
        &[(&[0x387E], 0x3C00_5F00)],
    );
    check(
        ".f32 a, d",
        "cvt.rna.tf32.f32 d, a;",
        &[(&[0x3F80_1000], 0x3F80_2000), (&[0x3F80_0FFF], 0x3F80_0000)],
    );
    check(
        ".f64 a; .f32 d",
        "cvt.rn.f32.f64 d, a;",
        &[(&[d(0.1)], f(0.1)), (&[d(1e300)], INF)],
    );
    check(
        ".f64 a; .f32 d",
        "cvt.rp.f32.f64 d, a;",
        &[(&[d(1.0 + f64::EPSILON)], f(1.0 + f32::EPSILON))],
    );
    check(
        ".f32 a; .f64 d",
        "cvt.f64.f32 d, a;",
        &[(&[TINY], d(2f64.powi(-149)))],
    );
    check(
        F,
        "cvt.rni.f32.f32 d, a;",
        &[(&[f(2.5)], f(2.0)), (&[f(-1.5)], f(-2.0))],
    );
    check(F, "cvt.rmi.f32.f32 d, a;", &[(&[f(-1.5)], f(-2.0))]);
    check(
        F,
        "cvt.sat.f32.f32 d, a;",
        &[(&[f(1.5)], f(1.0)), (&[NAN], 0)],
    );
}

#[test]
fn conversions_to_and_from_integers() {
    let to = ".f32 a; .b32 d";
    check(
        to,
        "cvt.rzi.s32.f32 d, a;",
        &[
            (&[f(-1.9)], 0xFFFF_FFFF),
            (&[f(1e20)], 0x7FFF_FFFF),
            (&[f(-1e20)], 0x8000_0000),
            (&[NAN], 0),
        ],
    );
    check(
        to,
        "cvt.rni.s32.f32 d, a;",
        &[(&[f(2.5)], 2), (&[f(3.5)], 4)],
    );
    check(
        to,
        "cvt.rpi.u32.f32 d, a;",
        &[(&[f(1.1)], 2), (&[f(-5.0)], 0)],
    );
    check(to, "cvt.rmi.s32.f32 d, a;", &[(&[f(-1.1)], 0xFFFF_FFFE)]);
    // NaN: zero, but for 64 bits and f64, where the top bit alone is set.
    check(
        ".f32 a; .b64 d",
        "cvt.rzi.s64.f32 d, a;",
        &[(&[NAN], 1 << 63), (&[f(1e10)], 10_000_000_000)],
    );
    check(
        ".f64 a; .b32 d",
        "cvt.rzi.s32.f64 d, a;",
        &[
            (&[0x7FF8_0000_0000_0000], 0x8000_0000),
            (&[d(-2.7)], 0xFFFF_FFFE),
        ],
    );
    check(
        ".f32 a; .b16 d",
        "cvt.rzi.u8.f32 d, a;",
        &[(&[f(300.0)], 255)],
    );
    check(".b16 a; .b32 d", "cvt.rni.s32.f16 d, a;", &[(&[0x4100], 2)]);
    let from = ".b32 a; .f32 d";
    check(
        from,
        "cvt.rn.f32.s32 d, a;",
        &[(&[0xFFFF_FFFF], f(-1.0)), (&[16_777_217], f(16_777_216.0))],
    );
    check(
        from,
        "cvt.rn.f32.u32 d, a;",
        &[(&[0xFFFF_FFFF], f(4_294_967_296.0))],
    );
    check(
        from,
        "cvt.rz.f32.u32 d, a;",
        &[(&[0xFFFF_FFFF], f(4_294_967_040.0))],
    );
    check(
        ".b64 a; .f32 d",
        "cvt.rn.f32.u64 d, a;",
        &[
            (&[u64::MAX], f(1.844_674_4e19)),
            (
                &[(1 << 54) + (1 << 30) + 1],
                f(2f32.powi(54) + 2f32.powi(31)),
            ),
        ],
    );
    check(
        ".b64 a; .f64 d",
        "cvt.rn.f64.s64 d, a;",
        &[(&[u64::MAX], d(-1.0)), (&[(1 << 53) + 1], d(2f64.powi(53)))],
    );
    check(
        ".b64 a; .f64 d",
        "cvt.rp.f64.s64 d, a;",
        &[(&[(1 << 53) + 1], d(2f64.powi(53) + 2.0))],
    );
    check(".b32 a; .b16 d", "cvt.rn.f16.s32 d, a;", &[(&[3], 0x4200)]);
}

/// The greatest errors that the ISA allows.
#[test]
fn approximations() {
    let inputs: Vec<Vec<u64>> = (0..32).map(|i| vec![f(0.037 + 0.61 * i as f32)]).collect();
    let hold = |instruction: &str, exact: fn(f64) -> f64, relative: f64, absolute: f64| {
        let found = rows(F, &format!("{instruction} d, a;"), &inputs).unwrap();
        for (input, found) in inputs.iter().zip(found) {
            let x = f64::from(f32::from_bits(input[0] as u32));
            let (found, exact) = (f64::from(f32::from_bits(found[0] as u32)), exact(x));
            assert!(
                (found - exact).abs() <= relative * exact.abs() + absolute,
                "{instruction} {x}: {found}, exactly {exact}"
            );
        }
    };
    hold("ex2.approx.ftz.f32", f64::exp2, 2f64.powi(-22), 0.0);
    hold("lg2.approx.f32", f64::log2, 2f64.powi(-22), 2f64.powi(-22));
    hold("rcp.approx.ftz.f32", |x| 1.0 / x, 2f64.powi(-23), 0.0);
    hold("sqrt.approx.f32", f64::sqrt, 2f64.powi(-23), 0.0);
    hold(
        "rsqrt.approx.f32",
        |x| 1.0 / x.sqrt(),
        2f64.powf(-22.4),
        0.0,
    );
    hold("sin.approx.f32", f64::sin, 0.0, 2f64.powi(-20));
    hold("cos.approx.f32", f64::cos, 0.0, 2f64.powi(-20));
    hold("tanh.approx.f32", f64::tanh, 2f64.powi(-11), 0.0);
    check(
        F,
        "ex2.approx.ftz.f32 d, a;",
        &[
            (&[0xFF80_0000], 0),
            (&[f(-140.0)], 0),
            (&[INF], INF),
            (&[f(3.0)], f(8.0)),
        ],
    );
    check(F, "ex2.approx.f32 d, a;", &[(&[f(-140.0)], 1 << 9)]);
    check(
        F,
        "lg2.approx.ftz.f32 d, a;",
        &[(&[0], 0xFF80_0000), (&[f(-1.0)], NAN), (&[f(8.0)], f(3.0))],
    );
    check(
        F,
        "rcp.approx.ftz.f32 d, a;",
        &[(&[0], INF), (&[TINY], INF), (&[f(2f32.powi(127))], 0)],
    );
    check(
        F,
        "rsqrt.approx.f32 d, a;",
        &[(&[f(-0.0)], 0xFF80_0000), (&[f(0.25)], f(2.0))],
    );
    check(H, "ex2.approx.f16 d, a;", &[(&[0x4000], 0x4400)]);
    check(
        X,
        "tanh.approx.f16x2 d, a;",
        &[(&[0x0000_7C00], 0x0000_3C00)],
    );
}
