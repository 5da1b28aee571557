//! Whatever a request says, the answer is an op or an error, never a panic.

use proptest::prelude::*;
use proptest::sample::select;
use ropeway_core::memory::{Layout, MAX_RANK, TensorDesc};
use ropeway_core::op::{OpKind, Signature};
use ropeway_core::{DType, ErrorKind};
use serde_json::{Value, json};

use super::super::{Gemm, GemmKind, GroupedGemmKind, MaskedGroupedGemmKind};

fn extent() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => 0..=4u64,
        2 => select(vec![32, 128, 200, 256]),
        1 => select(vec![1 << 16, 1 << 31, 1 << 32, 1 << 40, 1 << 62, u64::MAX]),
    ]
}

/// Layouts as a request file can describe them, strides and all.
fn tensor() -> impl Strategy<Value = Option<TensorDesc>> {
    let shape = prop::collection::vec(extent(), 0..=MAX_RANK);
    let strides = prop::option::weighted(0.3, prop::collection::vec(extent(), MAX_RANK));
    let dtype = prop_oneof![3 => Just(DType::F32), 2 => select(DType::ALL.to_vec())];
    (shape, strides, dtype).prop_map(|(shape, strides, dtype)| {
        let layout = match strides {
            Some(strides) => Layout::strided(&shape, &strides[..shape.len()]),
            None => Layout::contiguous(&shape),
        };
        layout.ok().map(|layout| TensorDesc { dtype, layout })
    })
}

fn attribute() -> impl Strategy<Value = (String, Value)> {
    let name = select(vec![
        "trans_a",
        "trans_b",
        "alpha",
        "beta",
        "activation",
        "out_dtype",
        "b_format",
        "gamma",
    ]);
    let value = select(vec![
        json!(true),
        json!(false),
        json!(null),
        json!(0),
        json!(-2.5),
        json!(1e300),
        json!("swiglu"),
        json!("relu"),
        json!("none"),
        json!("I8"),
        json!("BF16"),
        json!("q4_0"),
        json!([1]),
    ]);
    (name, value).prop_map(|(name, value)| (name.to_owned(), value))
}

fn hostile() -> impl Strategy<Value = Signature> {
    let name = select(vec![
        "a",
        "b",
        "c",
        "bias",
        "expert_offsets",
        "counts",
        "a_scale",
        "b_scale",
        "d",
    ]);
    let tensors = prop::collection::vec((name, tensor()), 0..6);
    let attrs = prop::collection::vec(attribute(), 0..4);
    (tensors, attrs).prop_map(|(tensors, attrs)| Signature {
        tensors: tensors
            .into_iter()
            .filter_map(|(name, desc)| Some((name.to_owned(), desc?)))
            .collect(),
        attrs: attrs.into_iter().collect(),
    })
}

/// A sound signature of `kind` with one thing wrong at most.
fn nearly_sound(kind: &'static dyn OpKind) -> impl Strategy<Value = Signature> {
    let names: &[&str] = match kind.name() {
        "gemm" => &["a", "b", "c", "bias", "a_scale", "b_scale"],
        "grouped_gemm" => &["a", "b", "expert_offsets", "a_scale", "b_scale"],
        _ => &["a", "b", "counts", "a_scale", "b_scale"],
    };
    let change = (
        select(names.to_vec()),
        tensor(),
        prop::option::of(attribute()),
        0..4,
    );
    (kind.spec().strategy(), change).prop_map(|(recipe, (name, desc, attribute, what))| {
        let mut signature = recipe.request().expect("a sound recipe").signature();
        match (what, desc) {
            (0, Some(desc)) => drop(signature.tensors.insert(name.to_owned(), desc)),
            (1, _) => drop(signature.tensors.remove(name)),
            (2, Some(desc)) => {
                if let Some(tensor) = signature.tensors.get_mut(name) {
                    tensor.dtype = desc.dtype;
                }
            }
            _ => signature.attrs.extend(attribute),
        }
        signature
    })
}

/// Parses, and uses what came of it as a planner would.
fn survive(kind: &dyn OpKind, signature: &Signature) -> std::result::Result<(), TestCaseError> {
    match kind.parse(signature) {
        Ok(op) => {
            let cost = op.cost();
            prop_assert!(cost.flops.is_finite() && cost.bytes.is_finite());
            if let Some(gemm) = op.as_any().downcast_ref::<Gemm>() {
                let rank = gemm.d.shape().len();
                prop_assert_eq!(gemm.a_layout().rank(), rank);
                prop_assert_eq!(gemm.b_layout().rank(), rank);
            }
        }
        Err(error) => {
            prop_assert!(
                matches!(
                    error.kind(),
                    ErrorKind::InvalidArgument | ErrorKind::Unsupported
                ),
                "{}",
                error
            );
            prop_assert!(!error.context().is_empty());
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 4000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn garbage(signature in hostile()) {
        for kind in [&GemmKind as &dyn OpKind, &GroupedGemmKind, &MaskedGroupedGemmKind] {
            survive(kind, &signature)?;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn nearly_sound_gemm(signature in nearly_sound(&GemmKind)) {
        survive(&GemmKind, &signature)?;
    }

    #[test]
    fn nearly_sound_grouped_gemm(signature in nearly_sound(&GroupedGemmKind)) {
        survive(&GroupedGemmKind, &signature)?;
    }

    #[test]
    fn nearly_sound_masked_grouped_gemm(signature in nearly_sound(&MaskedGroupedGemmKind)) {
        survive(&MaskedGroupedGemmKind, &signature)?;
    }
}
