//! Each rule of the four ops from both sides, and what any signature must not do: panic.

use std::collections::HashSet;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use ropeway_core::op::{Op, Signature};
use ropeway_core::spec::Recipe;
use ropeway_core::{ErrorKind, Layout};
use serde_json::{Value, json};

use super::*;
use crate::signatures::{Tensors, parse, refused, signature, with};
use DType::{BF16, F8E4M3, F16, F32, I8, I32};
use ErrorKind::{InvalidArgument, Unsupported};

const KINDS: [&dyn OpKind; 4] = [
    &MoeRouteKind,
    &ExpertScatterKind,
    &ExpertGatherKind,
    &MoeFfnKind,
];

fn route() -> Tensors<'static> {
    vec![("logits", BF16, &[5, 12]), ("bias", F32, &[12])]
}

fn scatter() -> Tensors<'static> {
    vec![("x", F16, &[5, 8]), ("topk_ids", I32, &[5, 2])]
}

fn gather() -> Tensors<'static> {
    vec![
        ("rows", F16, &[10, 8]),
        ("source", I32, &[10]),
        ("topk_weights", F32, &[5, 2]),
    ]
}

fn ffn() -> Tensors<'static> {
    vec![
        ("x", BF16, &[5, 8]),
        ("logits", F32, &[5, 12]),
        ("w_gate_up", BF16, &[12, 6, 8]),
        ("w_down", BF16, &[12, 8, 3]),
    ]
}

/// A sound problem of each kind, with its attributes.
fn sound(kind: &dyn OpKind) -> (Tensors<'static>, Value) {
    match kind.name() {
        "moe_route" => (route(), json!({"topk": 2})),
        "expert_scatter" => (scatter(), json!({"experts": 4})),
        "expert_gather" => (gather(), json!({})),
        _ => (ffn(), json!({"topk": 2})),
    }
}

#[test]
fn ops_take_their_defaults() {
    let op = parse(&MoeRouteKind, &route(), json!({"topk": 2})).unwrap();
    let op: &MoeRoute = op.as_any().downcast_ref().unwrap();
    assert_eq!((op.tokens(), op.experts(), op.topk()), (5, 12, 2));
    assert_eq!(op.routing, Routing::new(2));
    assert_eq!(op.topk_ids, TensorDesc::contiguous(I32, &[5, 2]).unwrap());
    assert_eq!(
        op.topk_weights,
        TensorDesc::contiguous(F32, &[5, 2]).unwrap()
    );

    let op = parse(&ExpertScatterKind, &scatter(), json!({"experts": 4})).unwrap();
    let op: &ExpertScatter = op.as_any().downcast_ref().unwrap();
    assert_eq!(
        (op.tokens(), op.hidden(), op.topk(), op.experts()),
        (5, 8, 2, 4)
    );
    assert_eq!(op.rows, TensorDesc::contiguous(F16, &[10, 8]).unwrap());
    assert_eq!(
        op.expert_offsets,
        TensorDesc::contiguous(I32, &[5]).unwrap()
    );
    assert_eq!(op.source, TensorDesc::contiguous(I32, &[10]).unwrap());
    assert_eq!(op.cost().flops, 0.0);
    assert_eq!(
        op.cost().bytes,
        2.0 * 40.0 + 4.0 * 10.0 + 2.0 * 80.0 + 4.0 * 5.0 + 4.0 * 10.0
    );

    let op = parse(&ExpertGatherKind, &gather(), json!({})).unwrap();
    let op: &ExpertGather = op.as_any().downcast_ref().unwrap();
    assert_eq!((op.tokens(), op.hidden(), op.topk()), (5, 8, 2));
    assert_eq!(op.y, TensorDesc::contiguous(F16, &[5, 8]).unwrap());
    assert_eq!(op.cost().flops, 2.0 * 80.0);

    let op = parse(&MoeFfnKind, &ffn(), json!({"topk": 2})).unwrap();
    let op: &MoeFfn = op.as_any().downcast_ref().unwrap();
    assert_eq!(
        (
            op.tokens(),
            op.experts(),
            op.hidden(),
            op.inter(),
            op.topk()
        ),
        (5, 12, 8, 3, 2)
    );
    assert_eq!(op.y, TensorDesc::contiguous(BF16, &[5, 8]).unwrap());
    // Ten rows: six products of 8 · 3, and the weighted sum of eight elements.
    assert_eq!(op.cost().flops, 10.0 * (6.0 * 24.0 + 16.0));
}

#[test]
fn routing_attributes_are_refused_by_name() {
    for (attrs, words) in [
        (json!({}), ["topk", "nothing"]),
        (json!({"topk": 0}), ["topk", "1 to the 12"]),
        (json!({"topk": 13}), ["topk", "1 to the 12"]),
        (json!({"topk": -1}), ["topk", "whole number"]),
        (json!({"topk": u64::MAX}), ["topk", "1 to the 12"]),
        (
            json!({"topk": 2, "groups": 5}),
            ["groups", "divisor of the 12"],
        ),
        (json!({"topk": 2, "groups": 0}), ["groups", "divisor"]),
        (
            json!({"topk": 2, "groups": 3, "topk_groups": 4}),
            ["topk_groups", "1 to the 3"],
        ),
        (
            json!({"topk": 2, "groups": 3, "topk_groups": 0}),
            ["topk_groups", "1 to the 3"],
        ),
        (
            json!({"topk": 2, "topk_groups": 2}),
            ["topk_groups", "1 to the 1"],
        ),
        (json!({"topk": 5, "groups": 3}), ["topk", "at most the 4"]),
        (
            json!({"topk": 9, "groups": 3, "topk_groups": 2}),
            ["topk", "at most the 8"],
        ),
        (json!({"topk": 2, "score": "relu"}), ["score", "sigmoid"]),
        (json!({"topk": 2, "scale": "x"}), ["scale", "number"]),
        (json!({"topk": 2, "scale": 1e39}), ["scale", "f32"]),
        (
            json!({"topk": 2, "renormalize": 1}),
            ["renormalize", "true or false"],
        ),
        (json!({"topk": 2, "top_k": 2}), ["top_k", "unknown"]),
    ] {
        refused(
            parse(&MoeRouteKind, &route(), attrs.clone()),
            InvalidArgument,
            &words,
        );
        refused(parse(&MoeFfnKind, &ffn(), attrs), InvalidArgument, &words);
    }
    let attrs = json!({"topk": 8, "groups": 3, "topk_groups": 2, "scale": 2, "score": "sigmoid"});
    assert!(parse(&MoeRouteKind, &route(), attrs).is_ok());
}

#[test]
fn shapes_and_dtypes_are_refused_by_name() {
    let refuse = |kind: &dyn OpKind, others: &[(&str, DType, &[u64])], words: &[&str]| {
        let (tensors, attrs) = sound(kind);
        refused(
            parse(kind, &with(&tensors, others), attrs),
            InvalidArgument,
            words,
        );
    };
    refuse(
        &MoeRouteKind,
        &[("logits", F32, &[12])],
        &["logits", "[tokens, experts]"],
    );
    refuse(
        &MoeRouteKind,
        &[("logits", I32, &[5, 12])],
        &["logits", "I32"],
    );
    refuse(
        &MoeRouteKind,
        &[("bias", F32, &[11])],
        &["bias", "[11]", "[12]"],
    );
    refuse(
        &MoeRouteKind,
        &[("bias", BF16, &[12])],
        &["bias", "BF16", "F32"],
    );
    refuse(&MoeRouteKind, &[("x", F32, &[5, 8])], &["x", "unknown"]);
    refuse(
        &ExpertScatterKind,
        &[("topk_ids", F32, &[5, 2])],
        &["topk_ids", "I32"],
    );
    refuse(
        &ExpertScatterKind,
        &[("topk_ids", I32, &[4, 2])],
        &["topk_ids", "[5, 2]"],
    );
    refuse(&ExpertScatterKind, &[("x", I8, &[5, 8])], &["x", "I8"]);
    refuse(
        &ExpertScatterKind,
        &[("x", F16, &[5])],
        &["x", "[tokens, hidden]"],
    );
    refuse(
        &ExpertGatherKind,
        &[("rows", F16, &[9, 8])],
        &["rows", "[10, 8]"],
    );
    refuse(
        &ExpertGatherKind,
        &[("source", I32, &[9])],
        &["source", "[10]"],
    );
    refuse(
        &ExpertGatherKind,
        &[("source", F32, &[10])],
        &["source", "I32"],
    );
    refuse(
        &ExpertGatherKind,
        &[("topk_weights", F16, &[5, 2])],
        &["topk_weights", "F32"],
    );
    refuse(
        &ExpertGatherKind,
        &[("topk_weights", F32, &[10])],
        &["topk_weights", "[tokens, topk]"],
    );
    refuse(
        &MoeFfnKind,
        &[("w_gate_up", BF16, &[12, 7, 8])],
        &["w_gate_up", "7 rows", "even"],
    );
    refuse(
        &MoeFfnKind,
        &[("w_gate_up", BF16, &[11, 6, 8])],
        &["w_gate_up", "[12, 6, 8]"],
    );
    refuse(
        &MoeFfnKind,
        &[("w_down", BF16, &[12, 3, 8])],
        &["w_down", "[12, 8, 3]"],
    );
    refuse(
        &MoeFfnKind,
        &[("w_down", I32, &[12, 8, 3])],
        &["w_down", "I32"],
    );
    refuse(
        &MoeFfnKind,
        &[("logits", F32, &[4, 12])],
        &["logits", "[5, 12]"],
    );
    let no_experts = parse(&ExpertScatterKind, &scatter(), json!({}));
    refused(no_experts, InvalidArgument, &["experts", "nothing"]);
    let alpha = parse(&ExpertGatherKind, &gather(), json!({"alpha": 1}));
    refused(alpha, InvalidArgument, &["alpha", "unknown"]);
}

/// `source` is I32 and numbers tokens · topk slots.
#[test]
fn more_slots_than_i32_numbers_are_refused() {
    let attrs = json!({"topk": 2});
    let tensors: Tensors<'_> = vec![
        ("x", F32, &[1 << 31, 0]),
        ("logits", F32, &[1 << 31, 2]),
        ("w_gate_up", F32, &[2, 2, 0]),
        ("w_down", F32, &[2, 0, 1]),
    ];
    refused(
        parse(&MoeFfnKind, &tensors, attrs),
        InvalidArgument,
        &["rows", "I32"],
    );
    let tensors: Tensors<'_> = vec![("x", F32, &[1 << 30, 0]), ("topk_ids", I32, &[1 << 30, 2])];
    let scattered = parse(&ExpertScatterKind, &tensors, json!({"experts": 2}));
    refused(scattered, InvalidArgument, &["topk_ids", "I32"]);
    let scattered = parse(
        &ExpertScatterKind,
        &scatter(),
        json!({"experts": 1u64 << 31}),
    );
    refused(scattered, InvalidArgument, &["experts", "I32"]);
}

#[test]
fn malformed_wins_over_unsupported() {
    let logits: [(&str, DType, &[u64]); 1] = [("logits", F8E4M3, &[5, 12])];
    let tensors = with(&route(), &logits);
    refused(
        parse(&MoeRouteKind, &tensors, json!({"topk": 2})),
        Unsupported,
        &["F8_E4M3"],
    );
    refused(
        parse(&MoeRouteKind, &tensors, json!({"topk": 13})),
        InvalidArgument,
        &["topk"],
    );
    let weights: [(&str, DType, &[u64]); 1] = [("w_down", F16, &[12, 8, 3])];
    let tensors = with(&ffn(), &weights);
    let words = ["w_down", "F16", "BF16"];
    refused(
        parse(&MoeFfnKind, &tensors, json!({"topk": 2})),
        Unsupported,
        &words,
    );
    let weights: [(&str, DType, &[u64]); 1] = [("w_down", F16, &[12, 8, 4])];
    let tensors = with(&ffn(), &weights);
    refused(
        parse(&MoeFfnKind, &tensors, json!({"topk": 2})),
        InvalidArgument,
        &["w_down"],
    );
}

#[test]
fn engines_may_bring_their_own_outputs() {
    let desc = |dtype, shape: &[u64]| TensorDesc::contiguous(dtype, shape).unwrap();
    let plain = ExpertScatter::new(desc(F16, &[5, 8]), desc(I32, &[5, 2]), 4).unwrap();
    let rows = |strides: &[u64]| TensorDesc {
        dtype: F16,
        layout: Layout::strided(&[10, 8], strides).unwrap(),
    };
    let with_rows = |rows| {
        ExpertScatter {
            rows,
            ..plain.clone()
        }
        .checked()
    };
    assert!(with_rows(rows(&[64, 1])).is_ok());
    refused(
        with_rows(rows(&[4, 1])),
        InvalidArgument,
        &["rows", "share memory"],
    );
    refused(
        with_rows(desc(F16, &[9, 8])),
        InvalidArgument,
        &["rows", "[10, 8]"],
    );
    let routing = Routing {
        scale: f32::INFINITY,
        ..Routing::new(2)
    };
    let routed = MoeRoute::new(desc(F32, &[5, 12]), routing)
        .unwrap()
        .checked();
    refused(routed, InvalidArgument, &["scale", "finite"]);
}

fn check(kind: &dyn OpKind, name: &str, tensor: HostTensor) -> Result<()> {
    let (tensors, attrs) = sound(kind);
    let signature = signature(&tensors, attrs);
    let mut inputs = Operands::new();
    for (name, desc) in &signature.tensors {
        let zeros = vec![0; desc.span_bytes().unwrap() as usize];
        let zeros = HostTensor::new(desc.dtype, desc.shape(), zeros).unwrap();
        inputs.insert(name.clone(), zeros);
    }
    inputs.insert(name.into(), tensor);
    kind.check_values(&*kind.parse(&signature)?, &inputs)
}

#[test]
fn values_on_the_device_are_checked_on_the_host() {
    let ids = |ids: &[i32]| {
        check(
            &ExpertScatterKind,
            "topk_ids",
            HostTensor::from_i32(&[5, 2], ids).unwrap(),
        )
    };
    assert!(ids(&[0, 3, -1, 3, 3, 3, -1, -1, 2, 1]).is_ok());
    let words = ["topk_ids[1, 1]", "found 4", "below 4"];
    refused(
        ids(&[0, 3, -1, 4, 3, 3, -1, -1, 2, 1]),
        InvalidArgument,
        &words,
    );
    refused(
        ids(&[0, 3, -2, 3, 3, 3, -1, -1, 2, 1]),
        InvalidArgument,
        &["topk_ids[1, 0]", "-2"],
    );

    let source = |source: &[i32]| {
        check(
            &ExpertGatherKind,
            "source",
            HostTensor::from_i32(&[10], source).unwrap(),
        )
    };
    assert!(source(&[9, 8, 7, -1, 5, 4, -1, 2, 1, 0]).is_ok());
    let twice = source(&[9, 8, 7, -1, 5, 4, -1, 8, 1, 0]);
    refused(
        twice,
        InvalidArgument,
        &["source[7]", "8", "source[1]", "once"],
    );
    let beyond = source(&[10, 8, 7, -1, 5, 4, -1, 2, 1, 0]);
    refused(beyond, InvalidArgument, &["source[0]", "10", "below 10"]);
    let below = source(&[-2, 8, 7, -1, 5, 4, -1, 2, 1, 0]);
    refused(below, InvalidArgument, &["source[0]", "-2"]);
}

/// Every case is a request that parses and holds sound values, is found by its name alone, and survives being written down.
#[test]
fn cases_are_sound() {
    let mut runner = TestRunner::deterministic();
    for kind in KINDS {
        let fixed = kind.spec().fixed_cases();
        let names: HashSet<&str> = fixed.iter().map(|recipe| recipe.name.as_str()).collect();
        assert_eq!(names.len(), fixed.len(), "{} has names twice", kind.name());
        let strategy = kind.spec().strategy();
        let generated = (0..300).map(|_| strategy.new_tree(&mut runner).unwrap().current());
        for recipe in fixed.clone().into_iter().chain(generated) {
            let request = recipe.request().unwrap();
            assert_eq!(request, recipe.request().unwrap());
            let op = kind
                .parse(&request.signature())
                .unwrap_or_else(|e| panic!("{recipe:?}: {e}"));
            kind.check_values(&*op, &request.inputs).unwrap();
            assert!(op.cost().bytes.is_finite() && op.cost().flops.is_finite());
            let written = serde_json::to_string(&recipe).unwrap();
            let read: Recipe = serde_json::from_str(&written).unwrap();
            assert_eq!(read, recipe);
        }
    }
}

/// A shape of any rank, with sizes that overflow now and then.
fn any_shape() -> impl Strategy<Value = Vec<u64>> {
    let extent = prop_oneof![
        8 => 0u64..5,
        1 => select(vec![1 << 31, 1 << 33, 1 << 62, u64::MAX]),
    ];
    vec(extent, 0..=4)
}

fn any_attribute() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<bool>().prop_map(Value::from),
        (-2i64..5).prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        Just(Value::Null),
        Just(json!("sigmoid")),
        Just(json!([1])),
    ]
}

const ATTRIBUTES: [&str; 8] = [
    "topk",
    "score",
    "groups",
    "topk_groups",
    "renormalize",
    "scale",
    "experts",
    "x",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn no_signature_makes_it_panic(
        kind in 0usize..4,
        shapes in vec((any_shape(), select(DType::ALL.to_vec()), any::<bool>()), 5),
        attrs in btree_map(select(ATTRIBUTES.to_vec()), any_attribute(), 0..3),
        like in any::<bool>(),
    ) {
        let kind = KINDS[kind];
        // Half of them begin as sound problems, so that the later checks are reached.
        let mut signature = Signature::default();
        if like {
            let (tensors, attrs) = sound(kind);
            signature = self::signature(&tensors, attrs);
        }
        for (name, (shape, dtype, given)) in kind.inputs().iter().zip(&shapes) {
            if let Ok(desc) = TensorDesc::contiguous(*dtype, shape)
                && *given
            {
                signature.tensors.insert((*name).into(), desc);
            }
        }
        signature.attrs.extend(attrs.into_iter().map(|(name, value)| (name.into(), value)));
        if let Ok(op) = kind.parse(&signature) {
            let _ = (op.operands(), op.cost(), format!("{op:?}"));
            let _ = kind.check_values(&*op, &Operands::new());
        }
    }
}
