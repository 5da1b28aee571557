//! The rules of the ops from both sides, and the reference against values worked out by hand.

use ropeway_core::info::{DTypeSupport, DeviceInfo, DeviceKind, Execution, Limits};
use ropeway_core::kernel::Language;
use ropeway_core::op::{OpKind, PlanRequest};
use ropeway_core::request::{HostTensor, Operands};
use ropeway_core::spec::DataClass;
use ropeway_core::{DType, ErrorKind};
use serde_json::{Value, json};

use super::*;
use crate::described::npu;
use crate::signatures::{Tensors, parse, refused, with};
use DType::{BF16, F8E4M3, F16, F32, I32};
use ErrorKind::InvalidArgument;

/// A sound problem of each kind.
fn sound(kind: &dyn OpKind) -> (Tensors<'static>, Value) {
    match kind.name() {
        "elementwise" => (vec![("a", F32, &[4, 6]), ("b", F16, &[2, 3])], json!({})),
        "unary" => (vec![("x", F32, &[4, 6])], json!({"function": "silu"})),
        "glu" => (vec![("x", F32, &[4, 6])], json!({})),
        "get_rows" => (vec![("x", F16, &[4, 6]), ("ids", I32, &[2])], json!({})),
        "set_rows" => (
            vec![("x", F32, &[3, 6]), ("ids", I32, &[3])],
            json!({"rows": 9, "dtype": "F16"}),
        ),
        "softmax" => (
            vec![
                ("x", F32, &[2, 3, 4, 6]),
                ("mask", F16, &[4, 6]),
                ("sinks", F32, &[3]),
            ],
            json!({"max_bias": 8}),
        ),
        "norm" => (vec![("x", BF16, &[4, 6]), ("weight", F32, &[6])], json!({})),
        "rope" => (
            vec![
                ("x", F32, &[5, 2, 8]),
                ("positions", I32, &[5]),
                ("freq_factors", F32, &[4]),
            ],
            json!({"mode": "neox"}),
        ),
        _ => (vec![("x", F32, &[4, 6])], json!({})),
    }
}

#[test]
fn sound_problems_are_taken() {
    for kind in OPS {
        let (tensors, attrs) = sound(*kind);
        let op = parse(*kind, &tensors, attrs)
            .unwrap_or_else(|error| panic!("{}: {error}", kind.name()));
        assert_eq!(op.name(), kind.name());
        assert!(op.cost().bytes > 0.0);
    }
}

/// What must be refused: the op, tensors in place of the sound ones, attributes in place of them, words of the refusal.
type Refusal<'a> = (&'a dyn OpKind, Tensors<'a>, Option<Value>, &'a [&'a str]);

#[test]
fn shapes_dtypes_and_attributes_are_refused_by_name() {
    let cases: Vec<Refusal<'_>> = vec![
        (
            &ElementwiseKind,
            vec![("b", F32, &[3, 3])],
            None,
            &["b", "divide"],
        ),
        (
            &ElementwiseKind,
            vec![("b", F32, &[1, 4, 6])],
            None,
            &["b", "divide"],
        ),
        (
            &ElementwiseKind,
            vec![("b", F32, &[2, 4, 6])],
            None,
            &["b", "divide"],
        ),
        (
            &ElementwiseKind,
            vec![("a", I32, &[4, 6])],
            None,
            &["a", "I32"],
        ),
        (
            &ElementwiseKind,
            vec![("a", F32, &[1, 1, 1, 4, 6])],
            None,
            &["a", "four"],
        ),
        (
            &ElementwiseKind,
            vec![],
            Some(json!({"function": "pow"})),
            &["function", "add"],
        ),
        (&UnaryKind, vec![], Some(json!({})), &["function", "silu"]),
        (
            &UnaryKind,
            vec![],
            Some(json!({"function": "silu", "scale": 2})),
            &["scale", "unknown"],
        ),
        (
            &UnaryKind,
            vec![],
            Some(json!({"function": "clamp", "min": 2, "max": 1})),
            &["min", "max"],
        ),
        (
            &UnaryKind,
            vec![],
            Some(json!({"function": "relu", "dtype": "I32"})),
            &["dtype", "F32"],
        ),
        (&GluKind, vec![("x", F32, &[4, 5])], None, &["x", "even"]),
        (
            &GluKind,
            vec![("up", F32, &[4, 5])],
            None,
            &["up", "[4, 6]"],
        ),
        (
            &GluKind,
            vec![("up", F32, &[4, 6])],
            Some(json!({"swapped": true})),
            &["swapped"],
        ),
        (
            &CopyKind,
            vec![],
            Some(json!({"shape": [5, 5]})),
            &["shape", "24 elements"],
        ),
        (
            &CopyKind,
            vec![],
            Some(json!({"shape": [-24]})),
            &["shape", "whole numbers"],
        ),
        (
            &CopyKind,
            vec![("x", F8E4M3, &[4])],
            None,
            &["x", "F8_E4M3"],
        ),
        (
            &GetRowsKind,
            vec![("ids", I32, &[2, 2])],
            None,
            &["ids", "leading"],
        ),
        (
            &GetRowsKind,
            vec![("ids", F32, &[2])],
            None,
            &["ids", "F32"],
        ),
        (
            &SetRowsKind,
            vec![("ids", I32, &[2])],
            None,
            &["ids", "[.., m]"],
        ),
        (
            &SetRowsKind,
            vec![("ids", I32, &[3, 3])],
            None,
            &["ids", "[.., m, 2]"],
        ),
        (&SetRowsKind, vec![], Some(json!({})), &["rows", "nothing"]),
        (
            &NormOpKind,
            vec![("weight", F32, &[5])],
            None,
            &["weight", "[6]"],
        ),
        (
            &NormOpKind,
            vec![],
            Some(json!({"eps": -1})),
            &["eps", "0 or more"],
        ),
        (
            &SoftmaxKind,
            vec![("mask", F32, &[4, 3])],
            None,
            &["mask", "6 columns"],
        ),
        (
            &SoftmaxKind,
            vec![("sinks", F32, &[2])],
            None,
            &["sinks", "[3]"],
        ),
        (
            &RopeKind,
            vec![("positions", I32, &[4])],
            None,
            &["positions", "[5]"],
        ),
        (
            &RopeKind,
            vec![],
            Some(json!({"n_dims": 7})),
            &["n_dims", "even"],
        ),
        (
            &RopeKind,
            vec![],
            Some(json!({"n_dims": 10})),
            &["n_dims", "8 columns"],
        ),
        (
            &RopeKind,
            vec![],
            Some(json!({"ext_factor": 1})),
            &["n_ctx_orig"],
        ),
        (
            &RopeKind,
            vec![],
            Some(json!({"freq_base": 0})),
            &["freq_base"],
        ),
        (
            &ArgsortKind,
            vec![],
            Some(json!({"k": 7})),
            &["k", "6 columns"],
        ),
        (
            &SumRowsKind,
            vec![("y", F32, &[4])],
            None,
            &["y", "unknown"],
        ),
    ];
    for (kind, others, attrs, words) in cases {
        let (tensors, sound_attrs) = sound(kind);
        let found = parse(kind, &with(&tensors, &others), attrs.unwrap_or(sound_attrs));
        refused(found, InvalidArgument, words);
    }
    // Without a mask there is nothing that slopes multiply.
    let x: Tensors<'_> = vec![("x", F32, &[2, 6])];
    refused(
        parse(&SoftmaxKind, &x, json!({"max_bias": 8})),
        InvalidArgument,
        &["max_bias", "mask"],
    );
}

fn ids(numbers: &[f64]) -> HostTensor {
    HostTensor::from_f64(I32, &[numbers.len() as u64], numbers).expect("as many as its shape says")
}

#[test]
fn ids_are_checked_on_the_host() {
    let (tensors, attrs) = sound(&GetRowsKind);
    let op = parse(&GetRowsKind, &tensors, attrs).expect("sound");
    let check = |numbers: &[f64]| {
        GetRowsKind.check_values(&*op, &Operands::from([("ids".into(), ids(numbers))]))
    };
    assert!(check(&[3.0, 3.0]).is_ok());
    refused(check(&[0.0, 4.0]), InvalidArgument, &["ids[1]", "row"]);
    refused(check(&[-1.0, 0.0]), InvalidArgument, &["ids[0]", "-1"]);
    let (tensors, attrs) = sound(&SetRowsKind);
    let op = parse(&SetRowsKind, &tensors, attrs).expect("sound");
    let check = |numbers: &[f64]| {
        SetRowsKind.check_values(&*op, &Operands::from([("ids".into(), ids(numbers))]))
    };
    assert!(check(&[8.0, 0.0, 3.0]).is_ok());
    refused(
        check(&[8.0, 0.0, 8.0]),
        InvalidArgument,
        &["ids[2]", "once"],
    );
    refused(check(&[9.0, 0.0, 1.0]), InvalidArgument, &["ids[0]", "row"]);
}

fn reference(
    kind: &dyn OpKind,
    inputs: &[(&str, DType, &[u64], &[f64])],
    attrs: Value,
) -> Vec<f64> {
    let tensors: Tensors<'_> = inputs
        .iter()
        .map(|&(name, dtype, shape, _)| (name, dtype, shape))
        .collect();
    let op = parse(kind, &tensors, attrs).expect("a sound problem");
    let tensor = |&(name, dtype, shape, values): &(&str, DType, &[u64], &[f64])| {
        let tensor = HostTensor::from_f64(dtype, shape, values).expect("as many as its shape says");
        (name.to_owned(), tensor)
    };
    let inputs: Operands = inputs.iter().map(tensor).collect();
    let expected = kind
        .spec()
        .reference(&*op, &inputs, DataClass::Random)
        .expect("a reference");
    expected
        .into_iter()
        .flat_map(|output| output.values)
        .collect()
}

#[track_caller]
fn close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!(
            (found - expected).abs() < 1e-9,
            "{found} in place of {expected}"
        );
    }
}

#[test]
fn the_reference_meets_values_worked_out_by_hand() {
    let x: &[f64] = &[3.0, 4.0];
    // √((9 + 16) / 2) = 5 / √2
    let root_2 = 2f64.sqrt();
    let rms = reference(&NormOpKind, &[("x", F32, &[1, 2], x)], json!({"eps": 0}));
    close(&rms, &[0.6 * root_2, 0.8 * root_2]);
    let layer = reference(
        &NormOpKind,
        &[("x", F32, &[1, 2], x)],
        json!({"eps": 0, "kind": "layer"}),
    );
    close(&layer, &[-1.0, 1.0]);
    close(
        &reference(&SumRowsKind, &[("x", F32, &[1, 2], x)], json!({})),
        &[7.0],
    );
    // Scores ln 1, ln 2 and a sink of ln 1: 1 / 4, 2 / 4.
    let scores = [
        ("x", F32, &[1u64, 1, 2][..], &[0.0, 1.0][..]),
        ("sinks", F32, &[1], &[0.0]),
    ];
    let weights = reference(
        &SoftmaxKind,
        &scores,
        json!({"scale": std::f32::consts::LN_2}),
    );
    for (found, expected) in weights.iter().zip([0.25, 0.5]) {
        assert!((found - expected).abs() < 1e-7);
    }
    // Four heads: slopes 1/4, 1/16, 1/64, 1/256, of which the second makes a mask of −16 one of −1.
    let masked = [
        ("x", F32, &[4u64, 1, 2][..], &[0.0; 8][..]),
        ("mask", F32, &[1, 2], &[0.0, -16.0]),
    ];
    let weights = reference(&SoftmaxKind, &masked, json!({"max_bias": 8}));
    close(
        &weights[2..4],
        &[1.0 / (1.0 + (-1f64).exp()), 1.0 / (1.0 + 1f64.exp())],
    );
    // The second frequency of base 4 over four columns is a half.
    let turned = [
        ("x", F32, &[1u64, 1, 4][..], &[1.0, 0.0, 0.0, 2.0][..]),
        ("positions", I32, &[1], &[1.0]),
    ];
    let normal = reference(&RopeKind, &turned, json!({"freq_base": 4}));
    close(
        &normal,
        &[
            1f64.cos(),
            1f64.sin(),
            -2.0 * 0.5f64.sin(),
            2.0 * 0.5f64.cos(),
        ],
    );
    let neox = reference(&RopeKind, &turned, json!({"freq_base": 4, "mode": "neox"}));
    close(
        &neox,
        &[
            1f64.cos(),
            -2.0 * 0.5f64.sin(),
            1f64.sin(),
            2.0 * 0.5f64.cos(),
        ],
    );
    let order = reference(
        &ArgsortKind,
        &[("x", F32, &[1, 4], &[2.0, f64::NAN, 3.0, 2.0])],
        json!({"order": "desc"}),
    );
    assert_eq!(order, [2.0, 0.0, 3.0, 1.0]);
    let repeated = [
        ("a", F32, &[1u64, 4][..], &[1.0, 2.0, 3.0, 4.0][..]),
        ("b", F32, &[2], &[10.0, 20.0]),
    ];
    assert_eq!(
        reference(&ElementwiseKind, &repeated, json!({})),
        [11.0, 22.0, 13.0, 24.0]
    );
    let swapped = reference(
        &GluKind,
        &[("x", F32, &[1, 2], &[5.0, -1.0])],
        json!({"function": "reglu", "swapped": true}),
    );
    assert_eq!(swapped, [0.0]);
}

/// YaRN's ramp for 128 columns, base 10,000 and a context of 4096, as its authors' code computes it: pairs 20 to 46.
#[test]
fn yarn_ramps_between_the_pairs_of_its_betas() {
    let attrs = json!({"ext_factor": 1, "n_ctx_orig": 4096, "freq_scale": 0.25});
    let tensors: Tensors<'_> = vec![("x", F32, &[1, 1, 128]), ("positions", I32, &[1])];
    let op = parse(&RopeKind, &tensors, attrs).expect("sound");
    let angles = op
        .as_any()
        .downcast_ref::<Rope>()
        .expect("a rotation")
        .angles();
    assert_eq!((angles.low, angles.high), (20.0, 46.0));
    assert!((angles.magnitude - (1.0 + 0.1 * 4f64.ln())).abs() < 1e-12);
}

/// A GPU that takes OpenCL.
fn gpu() -> DeviceInfo {
    let both = DTypeSupport {
        storage: true,
        arithmetic: true,
    };
    DeviceInfo {
        backend: "opencl",
        ordinal: 0,
        name: "a GPU".into(),
        vendor: String::new(),
        platform: String::new(),
        kind: DeviceKind::Gpu,
        execution: Execution::Hardware,
        architecture: String::new(),
        driver_version: String::new(),
        compiler_version: String::new(),
        memory: 1 << 30,
        unified_memory: false,
        compute_units: 16,
        cache: 1 << 20,
        vector_width: 1,
        subgroup_sizes: Vec::new(),
        matrix_shapes: Vec::new(),
        dtypes: [both; DType::ALL.len()],
        features: Vec::new(),
        languages: vec![Language::OpenClC],
        limits: Limits {
            max_buffer: 1 << 30,
            base_alignment: 128,
            local_memory: 32 << 10,
            max_group_size: 256,
            max_group: [256; 3],
            max_grid: [1 << 31; 3],
            loop_rounds: Some(65_536),
        },
        keeps_denormals: true,
    }
}

/// A driver that ends loops early is offered no kernel that would need more of them.
#[test]
fn rows_that_a_driver_would_not_finish_are_refused() {
    let plan = |columns| {
        let x: Tensors<'_> = vec![("x", F32, columns)];
        parse(&SumRowsKind, &x, json!({}))
            .expect("sound")
            .plan(&PlanRequest::new(&gpu()))
    };
    assert!(plan(&[2, 100_000]).is_ok());
    refused(
        plan(&[2, 2_000_000]),
        ErrorKind::Unsupported,
        &["2000000 columns", "65536 rounds"],
    );
}

/// What an engine's allocator may do: only operands that a launch reads before it writes.
#[test]
fn plans_say_what_may_be_in_place() {
    let info = gpu();
    for (kind, expected) in [
        (&ElementwiseKind as &dyn OpKind, vec![(2, 0), (2, 1)]),
        (&SoftmaxKind, vec![(3, 0)]),
        (&GetRowsKind, vec![]),
        (&CopyKind, vec![]),
    ] {
        let (tensors, attrs) = sound(kind);
        let op = parse(kind, &tensors, attrs).expect("sound");
        let plan = op.plan(&PlanRequest::new(&info)).expect("a plan");
        assert_eq!(plan.in_place, expected, "{}", kind.name());
    }
}

/// The launches of an order on an NPU: runs alone, rounds of what few each run keeps, or merges in the workspace.
#[test]
fn npus_order_long_rows_in_rounds_or_by_merging() {
    let plan = |columns: &[u64], k: u64| {
        let x: Tensors<'_> = vec![("x", F32, columns)];
        parse(&ArgsortKind, &x, json!({"k": k}))
            .expect("sound")
            .plan(&PlanRequest::new(&npu()))
    };
    let launches = |n, k| {
        let plan = plan(&[3, n], k).expect("a plan");
        let exchanges = |entry: &&str| *entry == "argsort_exchange";
        let entries: Vec<_> = plan.launches.iter().map(|launch| launch.entry).collect();
        (
            entries.len(),
            entries.iter().filter(|e| exchanges(e)).count(),
        )
    };
    assert_eq!(launches(1024, 1024), (1, 0));
    // 128,256 columns are 126 runs, then 5, then one.
    assert_eq!(launches(128_256, 40), (3, 0));
    // Two, four, eight runs to merge at the last: mirrored, and at each distance down to a run.
    assert_eq!(launches(1025, 1025), (3, 1));
    assert_eq!(launches(5000, 5000), (1 + 3 + 6, 1 + 2 + 3));
    refused(
        plan(&[(1 << 23) + 1], 1),
        ErrorKind::Unsupported,
        &["8388609 columns"],
    );
}
