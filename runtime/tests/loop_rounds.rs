//! Planners offer no kernel whose loops a driver would end (`Limits::loop_rounds`), since such a driver ends them without a word and
//! the result is wrong; where loops run as written, the same kernels are offered.

use ropeway::core::info::DeviceInfo;
use ropeway::core::kernel::Language;
use ropeway::core::op::PlanRequest;
use ropeway::prelude::*;

use attention::VarlenAttention;
use gemm::{Gemm, GroupedGemm};

/// A device that runs SPIR-V with four-wide subgroups.
fn device(loop_rounds: Option<u64>) -> DeviceInfo {
    let mut info = Registry::default().open("cpu").unwrap().info().clone();
    info.name = "four lanes".into();
    info.languages = vec![Language::SpirV];
    info.subgroup_sizes = vec![4];
    info.features = ["subgroupBasic", "subgroupShuffle"]
        .map(String::from)
        .to_vec();
    info.limits.max_group_size = 1024;
    info.limits.max_group = [1024; 3];
    info.limits.local_memory = 32 << 10;
    info.limits.loop_rounds = loop_rounds;
    info
}

fn f32s(shape: &[u64]) -> TensorDesc {
    TensorDesc::contiguous(DType::F32, shape).unwrap()
}

fn i32s(shape: &[u64]) -> TensorDesc {
    TensorDesc::contiguous(DType::I32, shape).unwrap()
}

/// Planned where loops run as written and where `rounds` are enough, refused by its size where they are not.
fn ends(op: &dyn Op, size: &str) {
    let planned = |info: &DeviceInfo| op.plan(&PlanRequest::new(info)).map(drop);
    planned(&device(None)).unwrap();
    let error = planned(&device(Some(65_535))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    for part in [size, "65535 rounds on four lanes"] {
        assert!(error.to_string().contains(part), "{error}");
    }
}

fn does_not_reach(op: &dyn Op) {
    op.plan(&PlanRequest::new(&device(Some(65_535)))).unwrap();
}

#[test]
fn long_products_are_not_offered_where_loops_are_ended() {
    // A kernel that takes a k a round ends first, one with tiles in local memory at twice its length.
    let kernel = |op: &dyn Op| {
        let plan = op.plan(&PlanRequest::new(&device(Some(65_535)))).unwrap();
        plan.modules[0].kernel.name
    };
    let product = |k| {
        Gemm::builder(f32s(&[9, k]), f32s(&[k, 10]))
            .build()
            .unwrap()
    };
    assert_eq!(kernel(&product(65_000)), "gemm_subgroup");
    assert_eq!(kernel(&product(65_100)), "gemm_tiled");
    ends(&product(131_100), "k 131100");
    let grouped = |k| {
        let (a, b) = (f32s(&[3, k]), f32s(&[2, 5, k]));
        GroupedGemm::builder(a, b, i32s(&[3])).build().unwrap()
    };
    assert_eq!(kernel(&grouped(65_000)), "grouped_subgroup");
    assert_eq!(kernel(&grouped(65_100)), "grouped_tiled");
    ends(&grouped(131_100), "k 131100");
    // Few rows: lanes share them.
    let skinny = |k| Gemm::builder(f32s(&[3, k]), f32s(&[k, 5])).build().unwrap();
    assert_eq!(kernel(&skinny(131_100)), "gemv_lanes");
    ends(&skinny(524_400), "k 524400");
}

#[test]
fn long_attention_is_not_offered_where_loops_are_ended() {
    let attention = |tokens: u64, keys: u64| {
        let (q, k) = (f32s(&[tokens, 1, 64]), f32s(&[keys, 1, 64]));
        VarlenAttention::new(q, k, k, i32s(&[2]), i32s(&[2])).unwrap()
    };
    does_not_reach(&attention(200, 4096));
    let keys = 1 << 24;
    ends(&attention(200, keys), &format!("{keys} keys"));
}
