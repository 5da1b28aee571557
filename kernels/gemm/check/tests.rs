//! Each rule of the three ops, from both sides: what is accepted, and what a refusal says.

use ropeway_core::memory::{Layout, TensorDesc};
use ropeway_core::op::{Op, OpKind, Signature};
use ropeway_core::request::{HostTensor, Operands};
use ropeway_core::{DType, ErrorKind, Result};
use serde_json::{Value, json};

use super::super::{
    Activation, Gemm, GemmKind, GroupedGemm, GroupedGemmKind, MaskedGroupedGemm,
    MaskedGroupedGemmKind,
};
use crate::signatures::{refused, signature};

fn parse_as<T: Clone + 'static>(kind: &dyn OpKind, signature: &Signature) -> Result<T> {
    let op = kind.parse(signature)?;
    Ok(op
        .as_any()
        .downcast_ref::<T>()
        .expect("its own type")
        .clone())
}

fn gemm(tensors: &[(&str, DType, &[u64])], attrs: Value) -> Result<Gemm> {
    parse_as(&GemmKind, &signature(tensors, attrs))
}

fn grouped(tensors: &[(&str, DType, &[u64])], attrs: Value) -> Result<GroupedGemm> {
    parse_as(&GroupedGemmKind, &signature(tensors, attrs))
}

fn masked(tensors: &[(&str, DType, &[u64])], attrs: Value) -> Result<MaskedGroupedGemm> {
    parse_as(&MaskedGroupedGemmKind, &signature(tensors, attrs))
}

const INVALID: ErrorKind = ErrorKind::InvalidArgument;
const UNSUPPORTED: ErrorKind = ErrorKind::Unsupported;
use DType::{BF16, F8E4M3, F16, F32, I8, I32, U8};

#[test]
fn gemm_takes_its_defaults() {
    let op = gemm(&[("a", F16, &[3, 5]), ("b", F16, &[5, 7])], json!({})).unwrap();
    assert_eq!((op.m(), op.n(), op.k()), (3, 7, 5));
    assert_eq!(op.d, TensorDesc::contiguous(F16, &[3, 7]).unwrap());
    assert_eq!((op.alpha, op.beta), (1.0, 0.0));
    assert_eq!(op.activation, Activation::None);
    assert!(op.reads_product() && !op.reads_c());
    assert_eq!(op.cost().flops, 2.0 * 3.0 * 5.0 * 7.0);
    assert_eq!(op.cost().bytes, 2.0 * (15.0 + 35.0 + 21.0));

    let op = gemm(
        &[
            ("a", F32, &[3, 5]),
            ("b", F32, &[5, 7]),
            ("c", F32, &[1, 7]),
        ],
        json!({}),
    )
    .unwrap();
    assert_eq!(op.beta, 1.0);
    assert!(op.reads_c());
}

#[test]
fn gemm_transposes() {
    let op = gemm(
        &[("a", F32, &[2, 5, 3]), ("b", F32, &[7, 5])],
        json!({"trans_a": true, "trans_b": true}),
    )
    .unwrap();
    assert_eq!((op.m(), op.n(), op.k()), (3, 7, 5));
    assert_eq!(op.batch(), [2]);
    assert_eq!(
        op.a_layout(),
        Layout::strided(&[2, 3, 5], &[15, 1, 3]).unwrap()
    );
    assert_eq!(
        op.b_layout(),
        Layout::strided(&[2, 5, 7], &[0, 1, 5]).unwrap()
    );
    refused(
        gemm(
            &[("a", F32, &[5, 3]), ("b", F32, &[7, 5])],
            json!({"trans_a": true}),
        ),
        INVALID,
        &["b:", "extent 7 on axis 0", "k = 5"],
    );
    refused(
        gemm(
            &[("a", F32, &[3, 5]), ("b", F32, &[7, 4])],
            json!({"trans_b": true}),
        ),
        INVALID,
        &["b:", "extent 4 on axis 1", "k = 5"],
    );
}

#[test]
fn gemm_broadcasts_leading_dimensions_of_unequal_rank() {
    let op = gemm(
        &[
            ("a", F32, &[4, 1, 3, 5]),
            ("b", F32, &[6, 5, 7]),
            ("c", F32, &[2, 1, 1, 3, 1]),
        ],
        json!({}),
    )
    .unwrap();
    assert_eq!(op.d.shape(), [2, 4, 6, 3, 7]);
    assert_eq!(op.a_layout().strides(), [0, 15, 0, 5, 1]);
    assert_eq!(op.b_layout().strides(), [0, 0, 35, 7, 1]);
    assert_eq!(op.c_layout().unwrap().strides(), [3, 0, 0, 1, 0]);
    refused(
        gemm(&[("a", F32, &[4, 3, 5]), ("b", F32, &[6, 5, 7])], json!({})),
        INVALID,
        &["b:", "[6]", "[4]"],
    );
    refused(
        gemm(
            &[
                ("a", F32, &[4, 3, 5]),
                ("b", F32, &[5, 7]),
                ("c", F32, &[3, 3, 7]),
            ],
            json!({}),
        ),
        INVALID,
        &["c:", "[3]", "[4]"],
    );
    refused(
        gemm(
            &[
                ("a", F32, &[1, 5]),
                ("b", F32, &[5, 7]),
                ("c", F32, &[3, 7]),
            ],
            json!({}),
        ),
        INVALID,
        &["c:", "[3, 7]", "[1, 7]"],
    );
    refused(
        gemm(
            &[("a", F32, &[3, 5]), ("b", F32, &[5, 7]), ("c", F32, &[7])],
            json!({}),
        ),
        INVALID,
        &["c:", "two dimensions"],
    );
}

#[test]
fn any_size_may_be_zero() {
    for (m, n, k) in [(0, 7, 5), (3, 0, 5), (3, 7, 0), (0, 0, 0)] {
        let op = gemm(&[("a", F32, &[m, k]), ("b", F32, &[k, n])], json!({})).unwrap();
        assert_eq!(op.d.shape(), [m, n]);
    }
    let op = gemm(&[("a", F32, &[0, 3, 5]), ("b", F32, &[1, 5, 7])], json!({})).unwrap();
    assert_eq!(op.d.shape(), [0, 3, 7]);
    let op = gemm(
        &[("a", F32, &[3, 5]), ("b", F32, &[5, 0])],
        json!({"activation": "swiglu"}),
    )
    .unwrap();
    assert_eq!(op.d.shape(), [3, 0]);
}

#[test]
fn swiglu_halves_an_even_n() {
    let op = gemm(
        &[
            ("a", F32, &[3, 5]),
            ("b", F32, &[5, 8]),
            ("c", F32, &[3, 8]),
            ("bias", F32, &[8]),
        ],
        json!({"activation": "swiglu"}),
    )
    .unwrap();
    assert_eq!((op.n(), op.d.shape()), (8, &[3, 4][..]));
    refused(
        gemm(
            &[("a", F32, &[3, 5]), ("b", F32, &[5, 7])],
            json!({"activation": "swiglu"}),
        ),
        INVALID,
        &["n = 7", "even"],
    );
}

#[test]
fn c_and_bias_have_the_dtype_of_a() {
    let both = |c, bias, a| {
        gemm(
            &[
                ("a", a, &[3, 5]),
                ("b", a, &[5, 7]),
                ("c", c, &[3, 7]),
                ("bias", bias, &[7]),
            ],
            json!({}),
        )
    };
    assert!(both(F16, F16, F16).is_ok());
    assert!(both(I32, I32, I8).is_ok());
    refused(both(F32, F16, F16), INVALID, &["c: found F32", "F16"]);
    refused(both(F16, F32, F16), INVALID, &["bias: found F32", "F16"]);
    refused(both(I8, I32, I8), INVALID, &["c: found I8", "I32"]);
    refused(
        gemm(
            &[
                ("a", F32, &[3, 5]),
                ("b", F32, &[5, 7]),
                ("bias", F32, &[1]),
            ],
            json!({}),
        ),
        INVALID,
        &["bias:", "[1]", "[7]"],
    );
    refused(
        gemm(
            &[
                ("a", F32, &[3, 5]),
                ("b", F32, &[5, 7]),
                ("bias", F32, &[1, 7]),
            ],
            json!({}),
        ),
        INVALID,
        &["bias:", "[1, 7]"],
    );
}

#[test]
fn output_dtypes() {
    let out = |a, word: &str| {
        gemm(
            &[("a", a, &[3, 5]), ("b", a, &[5, 7])],
            json!({"out_dtype": word}),
        )
        .map(|op| op.d.dtype)
    };
    for a in [F32, F16, BF16] {
        for (word, dtype) in [("F32", F32), ("F16", F16), ("BF16", BF16)] {
            assert_eq!(out(a, word).unwrap(), dtype);
        }
        refused(out(a, "F8_E4M3"), UNSUPPORTED, &["F8_E4M3"]);
        refused(out(a, "I32"), INVALID, &["out_dtype: found I32", "BF16"]);
    }
    for (word, dtype) in [("F32", F32), ("I8", I8), ("I32", I32)] {
        assert_eq!(out(I8, word).unwrap(), dtype);
    }
    refused(out(I8, "F16"), INVALID, &["out_dtype: found F16", "I32"]);
    refused(out(F32, "f32"), INVALID, &["out_dtype", "\"f32\""]);
    refused(out(F32, "F64"), INVALID, &["out_dtype", "\"F64\""]);
    let op = gemm(&[("a", I8, &[3, 5]), ("b", I8, &[5, 7])], json!({})).unwrap();
    assert_eq!(op.d.dtype, I32);
}

#[test]
fn pairs_of_dtypes() {
    for (a, b) in [(F32, F16), (F32, BF16), (F16, F32)] {
        let op = gemm(&[("a", a, &[3, 5]), ("b", b, &[5, 7])], json!({})).unwrap();
        assert_eq!(op.d.dtype, a);
    }
    for (a, b) in [
        (F16, BF16),
        (BF16, F32),
        (I8, F32),
        (F32, I8),
        (I32, I32),
        (U8, F32),
    ] {
        let result = gemm(&[("a", a, &[3, 5]), ("b", b, &[5, 7])], json!({}));
        refused(result, UNSUPPORTED, &[a.name(), b.name()]);
        // What is malformed besides is an error.
        let result = gemm(&[("a", a, &[3, 5]), ("b", b, &[6, 7])], json!({}));
        refused(result, INVALID, &["b:", "k = 5"]);
    }
}

#[test]
fn attributes_are_checked() {
    let with = |attrs| gemm(&[("a", F32, &[3, 5]), ("b", F32, &[5, 7])], attrs);
    assert_eq!(with(json!({"alpha": 2})).unwrap().alpha, 2.0);
    // Without c there is nothing for beta to scale.
    assert_eq!(with(json!({"beta": 2.5})).unwrap().beta, 0.0);
    refused(with(json!({"alpha": null})), INVALID, &["alpha", "null"]);
    refused(
        with(json!({"alpha": 1e39})),
        INVALID,
        &["alpha", "1e+39", "f32"],
    );
    refused(with(json!({"beta": "1"})), INVALID, &["beta"]);
    refused(with(json!({"trans_a": 1})), INVALID, &["trans_a: found 1"]);
    refused(
        with(json!({"trans_b": null})),
        INVALID,
        &["trans_b: found null"],
    );
    refused(
        with(json!({"activation": "tanh"})),
        INVALID,
        &["activation", "tanh", "gelu_tanh"],
    );
    refused(with(json!({"Alpha": 1})), INVALID, &["Alpha", "unknown"]);
    refused(
        with(json!({"b_format": "q4_0"})),
        INVALID,
        &["b: found F32", "U8"],
    );
}

#[test]
fn tensors_are_checked() {
    refused(
        gemm(&[("a", F32, &[3, 5])], json!({})),
        INVALID,
        &["b: found nothing"],
    );
    refused(
        gemm(&[("b", F32, &[3, 5])], json!({})),
        INVALID,
        &["a: found nothing"],
    );
    refused(
        gemm(
            &[("a", F32, &[3, 5]), ("b", F32, &[5, 7]), ("x", F32, &[7])],
            json!({}),
        ),
        INVALID,
        &["x:", "unknown tensor"],
    );
    refused(
        gemm(&[("a", F32, &[5]), ("b", F32, &[5, 7])], json!({})),
        INVALID,
        &["a:", "[5]", "two dimensions"],
    );
    refused(
        gemm(&[("a", F32, &[3, 5]), ("b", F32, &[])], json!({})),
        INVALID,
        &["b:", "two dimensions"],
    );
}

#[test]
fn rows_of_b_are_whole_blocks() {
    let with = |rows: u64, bytes: u64, k: u64, format: &str| {
        gemm(
            &[("a", F32, &[3, k]), ("b", U8, &[rows, bytes])],
            json!({"b_format": format, "trans_b": true}),
        )
    };
    for (format, k, bytes) in [
        ("q4_0", 64, 36),
        ("q4_1", 64, 40),
        ("q8_0", 64, 68),
        ("q4_k", 512, 288),
        ("q6_k", 512, 420),
    ] {
        let word = format.to_uppercase();
        assert!(with(7, bytes, k, format).is_ok());
        refused(with(7, bytes + 1, k, format), INVALID, &["b:", &word]);
        refused(with(7, bytes, k + 1, format), INVALID, &["b:", &word]);
    }
    refused(with(7, 36, 64, "q5_0"), INVALID, &["b_format", "q5_0"]);
    refused(
        gemm(
            &[("a", F32, &[3, 64]), ("b", U8, &[36, 7])],
            json!({"b_format": "q4_0"}),
        ),
        INVALID,
        &["trans_b", "Q4_0"],
    );
    refused(
        gemm(
            &[("a", BF16, &[3, 64]), ("b", U8, &[7, 36])],
            json!({"b_format": "q4_0", "trans_b": true}),
        ),
        UNSUPPORTED,
        &["BF16", "Q4_0"],
    );
    refused(
        gemm(
            &[("a", F32, &[3, 64]), ("b", DType::Q4_0, &[7, 64])],
            json!({"trans_b": true}),
        ),
        INVALID,
        &["b: found Q4_0", "U8", "b_format"],
    );
    let apart = TensorDesc {
        dtype: U8,
        layout: Layout::strided(&[7, 36], &[72, 2]).unwrap(),
    };
    let a = TensorDesc::contiguous(F32, &[3, 64]).unwrap();
    let with = |b, format| Gemm::builder(a, b).trans_b(true).b_format(format).build();
    let error = with(apart, DType::Q4_0).unwrap_err().to_string();
    assert!(error.contains("stride 2 on axis 1"), "{error}");
    let bytes = TensorDesc::contiguous(U8, &[7, 36]).unwrap();
    let error = with(bytes, F16).unwrap_err().to_string();
    assert!(error.contains("b_format: found F16"), "{error}");
    refused(
        gemm(&[("a", F32, &[3, 5]), ("b", U8, &[5, 7])], json!({})),
        INVALID,
        &["b_format", "U8"],
    );
}

#[test]
fn scales_go_with_8_bit_floats() {
    let with = |a_scale: &[u64], b_scale: &[u64], dtype, batch: &[u64], attrs| {
        gemm(
            &[
                ("a", dtype, &[batch, &[3, 200]].concat()),
                ("b", dtype, &[130, 200]),
                ("a_scale", F32, a_scale),
                ("b_scale", F32, b_scale),
            ],
            attrs,
        )
    };
    let nt = || json!({"trans_b": true});
    let bf16 = || json!({"trans_b": true, "out_dtype": "BF16"});
    let op = with(&[3, 2], &[2, 2], F8E4M3, &[], bf16()).unwrap();
    assert_eq!(op.d, TensorDesc::contiguous(BF16, &[3, 130]).unwrap());
    let names: Vec<_> = op.operands().iter().map(|operand| operand.name).collect();
    assert_eq!(names, ["a", "b", "a_scale", "b_scale", "d"]);
    refused(
        with(&[3, 2], &[2, 2], F8E4M3, &[], nt()),
        UNSUPPORTED,
        &["F8_E4M3", "writes"],
    );
    refused(
        with(&[3, 2], &[2, 2], DType::F8E5M2, &[], bf16()),
        UNSUPPORTED,
        &["F8_E5M2"],
    );
    refused(
        with(&[3, 2], &[2, 2], F8E4M3, &[], json!({"out_dtype": "BF16"})),
        INVALID,
        &["b:", "k = 200"],
    );
    refused(
        with(&[3, 1], &[2, 2], F8E4M3, &[], nt()),
        INVALID,
        &["a_scale", "[3, 2]"],
    );
    refused(
        with(&[3, 2], &[130, 2], F8E4M3, &[], nt()),
        INVALID,
        &["b_scale", "[2, 2]"],
    );
    refused(
        with(&[3, 2], &[2, 2], F16, &[], nt()),
        INVALID,
        &["a_scale", "8-bit"],
    );
    refused(
        with(&[3, 2], &[2, 2], F8E4M3, &[1], nt()),
        INVALID,
        &["a_scale", "batch"],
    );
    refused(
        gemm(
            &[
                ("a", F8E4M3, &[3, 200]),
                ("b", F8E4M3, &[200, 130]),
                ("b_scale", F32, &[2, 2]),
            ],
            json!({}),
        ),
        INVALID,
        &["trans_b", "b_scale"],
    );
}

#[test]
fn sizes_that_overflow_are_errors() {
    let huge = 1 << 40;
    refused(
        gemm(&[("a", F32, &[huge, 0]), ("b", F32, &[0, huge])], json!({})),
        INVALID,
        &["d:", "64 bits"],
    );
    // The elements fit, the bytes do not.
    refused(
        gemm(
            &[("a", F32, &[1 << 31, 0]), ("b", F32, &[0, 1 << 32])],
            json!({}),
        ),
        INVALID,
        &["d:", "64 bits"],
    );
    // Each tensor fits, but not b seen in the batch of a.
    refused(
        gemm(
            &[("a", F32, &[1 << 40, 0, 1]), ("b", F32, &[1, 1 << 40])],
            json!({}),
        ),
        INVALID,
        &["64 bits"],
    );
}

/// Views cost nothing, so that a small file can ask for any number of experts.
#[test]
fn too_many_experts_are_refused_before_they_are_counted() {
    let experts = 1 << 40;
    let repeated = |dtype, shape: &[u64]| TensorDesc {
        dtype,
        layout: Layout::strided(shape, &vec![0; shape.len()]).unwrap(),
    };
    let offsets = repeated(I32, &[experts + 1]);
    let (a, b) = (repeated(F32, &[2, 0]), repeated(F32, &[experts, 3, 0]));
    let built = GroupedGemm::builder(a, b, offsets).build();
    refused(built, UNSUPPORTED, &["experts", "2147483647"]);
    let (a, counts) = (repeated(F32, &[experts, 0, 0]), repeated(I32, &[experts]));
    let built = MaskedGroupedGemm::builder(a, b, counts).build();
    refused(built, UNSUPPORTED, &["experts", "2147483647"]);
}

#[test]
fn engines_may_lay_the_output_out() {
    let a = TensorDesc::contiguous(F32, &[3, 5]).unwrap();
    let b = TensorDesc::contiguous(F32, &[5, 7]).unwrap();
    let d = |strides: &[u64]| TensorDesc {
        dtype: F16,
        layout: Layout::strided(&[3, 7], strides).unwrap(),
    };
    let op = Gemm::builder(a, b).output(d(&[1, 3])).build().unwrap();
    assert_eq!(op.d, d(&[1, 3]));
    refused(
        Gemm::builder(a, b).output(d(&[6, 1])).build(),
        INVALID,
        &["d:", "apart"],
    );
    refused(
        Gemm::builder(a, b)
            .output(d(&[7, 1]))
            .out_dtype(F32)
            .build(),
        INVALID,
        &["d: found F16", "F32"],
    );
    refused(
        Gemm::builder(a, b).output(b).build(),
        INVALID,
        &["d:", "[5, 7]", "[3, 7]"],
    );
    refused(
        Gemm::builder(a, b).alpha(f32::NAN).build(),
        INVALID,
        &["alpha", "NaN"],
    );
}

#[test]
fn grouped_gemm_shapes() {
    let with = |a: &[u64], b: &[u64], offsets: &[u64], attrs| {
        grouped(
            &[
                ("a", BF16, a),
                ("b", BF16, b),
                ("expert_offsets", I32, offsets),
            ],
            attrs,
        )
    };
    let op = with(&[9, 5], &[4, 8, 5], &[5], json!({})).unwrap();
    assert_eq!((op.rows(), op.experts(), op.n(), op.k()), (9, 4, 8, 5));
    assert_eq!(op.d, TensorDesc::contiguous(BF16, &[9, 8]).unwrap());
    let op = with(
        &[9, 5],
        &[4, 8, 5],
        &[5],
        json!({"activation": "swiglu", "out_dtype": "F32"}),
    )
    .unwrap();
    assert_eq!(op.d, TensorDesc::contiguous(F32, &[9, 4]).unwrap());
    assert!(with(&[0, 0], &[0, 0, 0], &[1], json!({})).is_ok());
    refused(
        with(&[9, 5], &[4, 8, 6], &[5], json!({})),
        INVALID,
        &["b:", "k = 5"],
    );
    refused(
        with(&[9, 5], &[4, 8, 5], &[4], json!({})),
        INVALID,
        &["expert_offsets", "[5]"],
    );
    refused(
        with(&[1, 9, 5], &[4, 8, 5], &[5], json!({})),
        INVALID,
        &["a:", "[rows, k]"],
    );
    refused(
        with(&[9, 5], &[8, 5], &[5], json!({})),
        INVALID,
        &["b:", "[experts, n, k]"],
    );
    refused(
        with(&[9, 5], &[4, 7, 5], &[5], json!({"activation": "swiglu"})),
        INVALID,
        &["n = 7"],
    );
    refused(
        with(&[9, 5], &[4, 8, 5], &[5], json!({"activation": "relu"})),
        INVALID,
        &["relu"],
    );
    refused(
        with(&[9, 5], &[4, 8, 5], &[5], json!({"alpha": 1})),
        INVALID,
        &["alpha"],
    );
    refused(
        grouped(
            &[
                ("a", I8, &[9, 5]),
                ("b", I8, &[4, 8, 5]),
                ("expert_offsets", I32, &[5]),
            ],
            json!({}),
        ),
        UNSUPPORTED,
        &["I8"],
    );
    refused(
        grouped(
            &[
                ("a", F32, &[9, 5]),
                ("b", F32, &[4, 8, 5]),
                ("expert_offsets", F32, &[5]),
            ],
            json!({}),
        ),
        INVALID,
        &["expert_offsets: found F32", "I32"],
    );
    refused(
        grouped(
            &[
                ("a", F8E4M3, &[9, 200]),
                ("b", F8E4M3, &[4, 130, 200]),
                ("expert_offsets", I32, &[5]),
                ("b_scale", F32, &[4, 2, 1]),
            ],
            json!({}),
        ),
        INVALID,
        &["b_scale", "[4, 2, 2]"],
    );
}

#[test]
fn masked_grouped_gemm_shapes() {
    let with = |a: &[u64], b: &[u64], counts: &[u64]| {
        masked(
            &[("a", F32, a), ("b", F16, b), ("counts", I32, counts)],
            json!({}),
        )
    };
    let op = with(&[4, 9, 5], &[4, 8, 5], &[4]).unwrap();
    assert_eq!((op.experts(), op.capacity(), op.n(), op.k()), (4, 9, 8, 5));
    assert_eq!(op.d, TensorDesc::contiguous(F32, &[4, 9, 8]).unwrap());
    refused(
        with(&[3, 9, 5], &[4, 8, 5], &[4]),
        INVALID,
        &["a:", "3 experts", "4"],
    );
    refused(
        with(&[4, 9, 5], &[4, 8, 5], &[3]),
        INVALID,
        &["counts", "[4]"],
    );
    refused(
        with(&[4, 9, 5], &[4, 8, 6], &[4]),
        INVALID,
        &["b:", "k = 5"],
    );
    refused(
        with(&[9, 5], &[4, 8, 5], &[4]),
        INVALID,
        &["a:", "capacity"],
    );
}

#[test]
fn values_on_the_device_are_checked_on_the_host() {
    let op = grouped(
        &[
            ("a", F32, &[9, 5]),
            ("b", F32, &[4, 8, 5]),
            ("expert_offsets", I32, &[5]),
        ],
        json!({}),
    )
    .unwrap();
    let offsets = |values: [i32; 5]| {
        let tensor = HostTensor::from_i32(&[5], &values).unwrap();
        let inputs = Operands::from([("expert_offsets".to_owned(), tensor)]);
        GroupedGemmKind.check_values(&op, &inputs)
    };
    assert!(offsets([0, 0, 4, 4, 9]).is_ok());
    assert!(offsets([0, 0, 0, 0, 0]).is_ok());
    refused(
        offsets([1, 2, 4, 4, 9]),
        INVALID,
        &["expert_offsets[0]: found 1"],
    );
    refused(
        offsets([-1, 2, 4, 4, 9]),
        INVALID,
        &["expert_offsets[0]: found -1"],
    );
    refused(
        offsets([0, 2, 1, 4, 9]),
        INVALID,
        &["expert_offsets[2]: found 1", "2"],
    );
    refused(
        offsets([0, 2, 4, 4, 10]),
        INVALID,
        &["expert_offsets[4]: found 10", "9"],
    );
    refused(
        GroupedGemmKind.check_values(&op, &Operands::new()),
        INVALID,
        &["expert_offsets"],
    );

    let op = masked(
        &[
            ("a", F32, &[3, 9, 5]),
            ("b", F32, &[3, 8, 5]),
            ("counts", I32, &[3]),
        ],
        json!({}),
    )
    .unwrap();
    let counts = |values: [i32; 3]| {
        let tensor = HostTensor::from_i32(&[3], &values).unwrap();
        let inputs = Operands::from([("counts".to_owned(), tensor)]);
        MaskedGroupedGemmKind.check_values(&op, &inputs)
    };
    assert!(counts([0, 9, 4]).is_ok());
    refused(counts([0, 10, 4]), INVALID, &["counts[1]: found 10", "9"]);
    refused(counts([0, 9, -1]), INVALID, &["counts[2]: found -1"]);
}
