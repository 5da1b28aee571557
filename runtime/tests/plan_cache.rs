//! What a session keeps of the plans it made.

use std::sync::{Arc, Weak};

use ropeway::prelude::*;

fn product(rows: u64) -> gemm::Gemm {
    let a = TensorDesc::contiguous(DType::F32, &[rows, 8]).unwrap();
    let b = TensorDesc::contiguous(DType::F32, &[8, 8]).unwrap();
    gemm::Gemm::builder(a, b).build().unwrap()
}

#[test]
fn equal_ops_are_planned_once_and_thousands_of_others_do_not_pile_up() {
    let session = Session::new(Registry::default().open("cpu").unwrap()).unwrap();
    let first = session.plan(&product(1)).unwrap();
    assert!(Arc::ptr_eq(&first, &session.plan(&product(1)).unwrap()));
    let kept: Vec<Weak<Executable>> = (1..10_000)
        .map(|rows| Arc::downgrade(&session.plan(&product(rows)).unwrap()))
        .collect();
    let alive = kept.iter().filter(|plan| plan.strong_count() > 0).count();
    assert!(
        (1000..5000).contains(&alive),
        "{alive} of 10,000 plans are kept"
    );
    assert_eq!(first.plan().op, "gemm", "one in use lives on");
}
