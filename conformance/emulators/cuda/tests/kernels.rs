//! Whole kernels, as NVRTC compiled them, on the interpreter.

mod harness;

use harness::{Argument, Shape, bf16, bytes_of, floats, launch, noise};

const VECTOR_ADD: &str = include_str!("kernels/vector_add.ptx");
const SGEMM: &str = include_str!("kernels/sgemm.ptx");
const GEMM_BF16: &str = include_str!("kernels/gemm_bf16.ptx");

#[test]
fn vector_add_ends_at_its_guard() {
    let n = 1000;
    let (a, b) = (noise(n, 1), noise(n, 2));
    let mut sum = vec![0xAA; n * 4];
    launch(
        VECTOR_ADD,
        Shape::new(4, 256),
        &mut [
            Argument::Memory(&mut bytes_of(&a, f32::to_le_bytes)),
            Argument::Memory(&mut bytes_of(&b, f32::to_le_bytes)),
            Argument::Memory(&mut sum),
            (n as u32).into(),
        ],
    )
    .unwrap();
    let expected: Vec<_> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
    assert_eq!(floats(&sum), expected);
}

#[test]
fn sgemm_through_shared_memory() {
    let (m, n, k) = (37, 29, 41);
    let (a, b) = (noise(m * k, 3), noise(k * n, 4));
    for seed in 0..4 {
        let mut c = vec![0xAA; m * n * 4];
        let mut shape = Shape::new(2, 16).seed(seed);
        shape.grid = [2, 3, 1];
        shape.block = [16, 16, 1];
        shape.options.threads = 2;
        launch(
            SGEMM,
            shape,
            &mut [
                Argument::Memory(&mut bytes_of(&a, f32::to_le_bytes)),
                Argument::Memory(&mut bytes_of(&b, f32::to_le_bytes)),
                Argument::Memory(&mut c),
                (m as u32).into(),
                (n as u32).into(),
                (k as u32).into(),
            ],
        )
        .unwrap();
        let c = floats(&c);
        for row in 0..m {
            for column in 0..n {
                let mut sum = 0f32;
                for i in 0..k {
                    sum = a[row * k + i].mul_add(b[i * n + column], sum);
                }
                assert_eq!(c[row * n + column], sum, "{row}, {column}");
            }
        }
    }
}

#[test]
fn bf16_gemm_on_matrix_units() {
    let (m, n, k) = (128, 64, 96);
    let (a, b) = (noise(m * k, 5), noise(k * n, 6));
    let (a, b): (Vec<_>, Vec<_>) = (
        a.into_iter().map(bf16).collect(),
        b.into_iter().map(bf16).collect(),
    );
    let wide = |value: u16| f64::from(f32::from_bits(u32::from(value) << 16));
    for seed in 0..4 {
        let mut c = vec![0xAA; m * n * 4];
        let mut shape = Shape::new(1, 128).seed(seed);
        shape.grid = [(n / 64) as u32, (m / 64) as u32, 1];
        shape.shared = 2 * 2 * (64 * 40 + 32 * 72);
        launch(
            GEMM_BF16,
            shape,
            &mut [
                Argument::Memory(&mut bytes_of(&a, u16::to_le_bytes)),
                Argument::Memory(&mut bytes_of(&b, u16::to_le_bytes)),
                Argument::Memory(&mut c),
                (n as u32).into(),
                (k as u32).into(),
            ],
        )
        .unwrap();
        for (index, found) in floats(&c).into_iter().enumerate() {
            let (row, column) = (index / n, index % n);
            let products = (0..k).map(|i| wide(a[row * k + i]) * wide(b[i * n + column]));
            let (sum, size) = products.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs()));
            assert!(
                (f64::from(found) - sum).abs() <= k as f64 * 2f64.powi(-24) * size,
                "{row}, {column}: {found} {sum}"
            );
        }
    }
}
