//! The comparison that judges every case: what must fail fails.

use ropeway_core::DType;
use ropeway_core::request::HostTensor;
use ropeway_core::spec::{DataClass, Expected, Fill, Recipe, Special, compare};

fn judge(dtype: DType, expected: f64, bound: f64, found: f64) -> bool {
    let expected = Expected {
        name: "d",
        dtype,
        shape: vec![1],
        values: vec![expected],
        bounds: vec![bound],
    };
    let found = HostTensor::from_f64(dtype, &[1], &[found]).unwrap();
    let judgement = compare(&expected, &found);
    assert!(!judgement.worst_ratio.is_nan());
    assert_eq!(judgement.mismatches == 0, judgement.worst.is_none());
    judgement.mismatches == 0
}

#[test]
fn an_element_within_its_bound_passes_and_one_outside_fails() {
    assert!(judge(DType::F32, 1.0, 0.25, 1.25));
    assert!(!judge(DType::F32, 1.0, 0.25, 1.2500001));
    assert!(judge(DType::F32, 3.0, 0.0, 3.0));
    assert!(!judge(DType::F32, 3.0, 0.0, f64::from(3f32.next_up())));
    assert!(judge(DType::F32, 0.0, 0.0, -0.0));
}

#[test]
fn nan_passes_only_where_the_reference_has_it() {
    assert!(judge(DType::F32, f64::NAN, 0.0, f64::NAN));
    assert!(!judge(DType::F32, f64::NAN, 1e9, 0.0));
    assert!(!judge(DType::F32, 0.0, 1e9, f64::NAN));
    assert!(judge(DType::F32, 0.0, f64::INFINITY, f64::NAN), "left open");
}

#[test]
fn infinities_must_agree_or_come_from_overflow() {
    let infinity = f64::INFINITY;
    assert!(judge(DType::F32, infinity, 0.0, infinity));
    assert!(!judge(DType::F32, infinity, 0.0, -infinity));
    assert!(!judge(DType::F32, infinity, 1e9, 1.0));
    assert!(!judge(DType::F32, 1.0, 1e9, infinity));
    assert!(judge(DType::F16, 70000.0, 100.0, infinity));
    assert!(!judge(DType::F16, 70000.0, 100.0, -infinity));
    assert!(
        judge(DType::F16, 65519.0, 2.0, infinity),
        "the bound reaches the overflow"
    );
    assert!(!judge(DType::F16, 65000.0, 100.0, infinity));
    assert!(!judge(DType::I32, 70000.0, 100.0, 80000.0));
}

#[test]
fn a_wrong_shape_or_dtype_fails() {
    let expected = Expected {
        name: "d",
        dtype: DType::F32,
        shape: vec![0],
        values: Vec::new(),
        bounds: Vec::new(),
    };
    let found = HostTensor::from_f32(&[1], &[0.0]).unwrap();
    assert!(compare(&expected, &found).mismatches > 0);
}

#[test]
fn a_recipe_makes_the_same_bytes_each_time() {
    let special = Fill::Patched {
        base: Box::new(Fill::Uniform { scale: 2.0 }),
        patches: vec![(1, Special::Nan), (2, Special::NegativeInfinity)],
    };
    let recipe = Recipe::new("gemm", "case", DataClass::Random, 7)
        .tensor("a", DType::F16, &[4, 4], special)
        .tensor("b", DType::I8, &[9], Fill::Integers { low: -3, high: 3 })
        .view("at", "a", &[2, 2], &[1, 4], 1);
    let (first, second) = (recipe.request().unwrap(), recipe.request().unwrap());
    assert_eq!(first.inputs["b"], second.inputs["b"]);
    assert_eq!(
        first.inputs["at"].to_bytes(),
        second.inputs["at"].to_bytes()
    );
    assert!(
        !first.inputs.contains_key("a"),
        "a tensor with views is no operand"
    );
    assert!(first.inputs["at"].at(&[0, 0]).is_nan());
    assert_eq!(first.inputs["at"].at(&[1, 0]), f64::NEG_INFINITY);
    assert!(first.inputs["b"].to_f64().iter().all(|b| b.abs() <= 3.0));
}
