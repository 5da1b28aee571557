//! CUDA's own library functions on the interpreter, held to the errors that the CUDA C++ Programming Guide states ("Mathematical Functions").
//! NVIDIA wrote that code for GPUs: an instruction that rounded wrongly would show.

mod harness;

use harness::{Argument, Shape, bytes_of, launch_entry};

const TEXT: &str = include_str!("kernels/mathematics.ptx");
const N: usize = 256;

/// Numbers of either sign over many magnitudes.
fn inputs(seed: u64) -> Vec<f64> {
    let mut state = seed;
    (0..N)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let unit = (state >> 11) as f64 / (1_u64 << 53) as f64;
            (unit * 2.0 - 1.0) * 2f64.powi((state >> 3) as i32 & 15).recip() * 60.0
        })
        .collect()
}

fn ulp32(value: f64) -> f64 {
    let bits = (value.abs() as f32).max(f32::MIN_POSITIVE).to_bits();
    f64::from(f32::from_bits(bits + 1)) - f64::from(f32::from_bits(bits))
}

#[test]
fn single_precision() {
    let (x, y): (Vec<f32>, Vec<f32>) = (
        inputs(1).iter().map(|&v| v as f32).collect(),
        inputs(2).iter().map(|&v| v as f32 / 8.0).collect(),
    );
    type Function = (&'static str, f64, fn(f64, f64) -> f64);
    let functions: [Function; 13] = [
        ("expf", 1.0, |a, _| a.exp()),
        ("logf", 1.0, |a, _| a.abs().ln()),
        ("sinf", 2.0, |a, _| f64::from(a as f32 * 1000.0).sin()),
        ("cosf", 2.0, |a, _| a.cos()),
        ("tanhf", 2.0, |a, _| a.tanh()),
        ("powf", 4.0, |a, b| a.abs().powf(b)),
        ("cbrtf", 1.0, |a, _| a.cbrt()),
        ("log1pf", 1.0, |a, _| a.abs().ln_1p()),
        ("expm1f", 1.0, |a, _| a.exp_m1()),
        ("sqrtf", 0.5, |a, _| a.abs().sqrt()),
        ("division", 0.5, |a, b| a / b),
        ("fmodf", 0.0, |a, b| a % b),
        ("atan2f", 3.0, f64::atan2),
    ];
    let mut out = vec![0; functions.len() * N * 4];
    let buffers = [
        bytes_of(&x, f32::to_le_bytes),
        bytes_of(&y, f32::to_le_bytes),
    ];
    run("singles", buffers, &mut out);
    for (function, out) in functions.iter().zip(out.chunks(N * 4)) {
        let (name, bound, exact) = function;
        for (i, found) in harness::floats(out).into_iter().enumerate() {
            let exact = exact(f64::from(x[i]), f64::from(y[i]));
            let error = (f64::from(found) - exact).abs() / ulp32(exact);
            // The guide counts in ulp of the rounded result, which may have rounded by half of one.
            assert!(
                error <= bound + 0.5,
                "{name}({}, {}) is {found}, exactly {exact}: {error} ulp",
                x[i],
                y[i]
            );
        }
    }
}

#[test]
fn double_precision() {
    let (x, y) = (inputs(3), inputs(4));
    type Function = (&'static str, f64, fn(f64, f64) -> f64);
    let functions: [Function; 5] = [
        ("exp", 1.0, |a, _| a.exp()),
        ("log", 1.0, |a, _| a.abs().ln()),
        ("tanh", 2.0, |a, _| a.tanh()),
        ("division", 0.0, |a, b| a / b),
        ("sqrt", 0.0, |a, _| a.abs().sqrt()),
    ];
    let mut out = vec![0; functions.len() * N * 8];
    run(
        "doubles",
        [
            bytes_of(&x, f64::to_le_bytes),
            bytes_of(&y, f64::to_le_bytes),
        ],
        &mut out,
    );
    for ((name, bound, exact), out) in functions.iter().zip(out.chunks(N * 8)) {
        for (i, raw) in out.chunks(8).enumerate() {
            let found = f64::from_le_bytes(raw.try_into().unwrap());
            let exact = exact(x[i], y[i]);
            let ulp = f64::from_bits(exact.abs().to_bits() + 1) - exact.abs();
            // The host's own functions may err by one.
            let allowed = if *bound == 0.0 { 0.0 } else { bound + 1.0 };
            assert!(
                (found - exact).abs() <= allowed * ulp,
                "{name}({}, {}) is {found:e}, here {exact:e}",
                x[i],
                y[i]
            );
        }
    }
}

#[test]
fn integers_of_64_bits() {
    let whole = |seed| {
        inputs(seed)
            .iter()
            .map(|&v| (v * 1e17) as i64 | 1)
            .collect::<Vec<i64>>()
    };
    let (x, y) = (
        whole(5),
        whole(6)
            .iter()
            .enumerate()
            .map(|(i, v)| v >> (i % 60) | 1)
            .collect::<Vec<_>>(),
    );
    let functions: [fn(i64, i64) -> i64; 7] = [
        i64::wrapping_div,
        i64::wrapping_rem,
        |a, b| (a as u64 / b as u64) as i64,
        |a, b| i64::from((a as i32).wrapping_div(b as i32 | 1)),
        |a, b| i64::from(a as u32 % (b as u32 | 1)),
        |a, b| ((u128::from(a as u64) * u128::from(b as u64)) >> 64) as i64,
        |a, b| a.wrapping_mul(b) >> (b & 63),
    ];
    let mut out = vec![0; functions.len() * N * 8];
    run(
        "integers",
        [
            bytes_of(&x, i64::to_le_bytes),
            bytes_of(&y, i64::to_le_bytes),
        ],
        &mut out,
    );
    for (number, (function, out)) in functions.iter().zip(out.chunks(N * 8)).enumerate() {
        for (i, raw) in out.chunks(8).enumerate() {
            assert_eq!(
                i64::from_le_bytes(raw.try_into().unwrap()),
                function(x[i], y[i]),
                "{number}: {} {}",
                x[i],
                y[i]
            );
        }
    }
}

fn run(entry: &str, [mut x, mut y]: [Vec<u8>; 2], out: &mut [u8]) {
    let mut arguments = [
        Argument::Memory(&mut x),
        Argument::Memory(&mut y),
        Argument::Memory(out),
        (N as u32).into(),
    ];
    launch_entry(TEXT, entry, Shape::new(1, N as u32), &mut arguments)
        .unwrap_or_else(|report| panic!("{report}"));
}
