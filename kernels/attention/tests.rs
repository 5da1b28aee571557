//! Each rule of the three ops from both sides, and what any signature must not do: panic.

use std::collections::HashSet;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use ropeway_core::ErrorKind;
use ropeway_core::spec::Recipe;
use serde_json::{Value, json};

use super::*;
use crate::signatures::{Tensors, parse, refused, signature, with};
use DType::{BF16, F8E4M3, F16, F32, I8, I32};
use ErrorKind::{InvalidArgument, Unsupported};

const KINDS: [&dyn OpKind; 3] = [&AttentionKind, &VarlenAttentionKind, &PagedAttentionKind];

fn rectangular() -> Tensors<'static> {
    vec![
        ("q", F16, &[2, 6, 5, 8]),
        ("k", F16, &[2, 3, 7, 8]),
        ("v", F16, &[2, 3, 7, 4]),
    ]
}

fn ragged() -> Tensors<'static> {
    vec![
        ("q", F32, &[9, 6, 8]),
        ("k", F32, &[11, 3, 8]),
        ("v", F32, &[11, 3, 4]),
        ("cu_q", I32, &[4]),
        ("cu_kv", I32, &[4]),
    ]
}

fn paged() -> Tensors<'static> {
    vec![
        ("q", BF16, &[9, 6, 8]),
        ("cu_q", I32, &[3]),
        ("k_cache", BF16, &[10, 16, 3, 8]),
        ("v_cache", BF16, &[10, 16, 3, 4]),
        ("block_table", I32, &[2, 5]),
        ("kv_lens", I32, &[2]),
    ]
}

#[test]
fn attention_takes_its_defaults() {
    let op = parse(&AttentionKind, &rectangular(), json!({})).unwrap();
    let op: &Attention = op.as_any().downcast_ref().unwrap();
    assert_eq!((op.batch(), op.heads(), op.kv_heads()), (2, 6, 3));
    assert_eq!((op.q_len(), op.kv_len(), op.d(), op.dv()), (5, 7, 8, 4));
    assert_eq!(op.softmax, Softmax::new(8));
    assert_eq!(op.softmax.scale, (1.0 / 8f64.sqrt()) as f32);
    assert_eq!(op.o, TensorDesc::contiguous(F16, &[2, 6, 5, 4]).unwrap());
    assert_eq!((op.lse, op.mask_layout()), (None, None));
    // Two operations for each element of q · k and p · v, of 5 · 7 pairs.
    assert_eq!(op.cost().flops, 2.0 * 12.0 * 35.0 * 12.0);
    assert_eq!(op.cost().bytes, 2.0 * (480.0 + 336.0 + 168.0 + 240.0));
}

#[test]
fn varlen_and_paged_take_their_defaults() {
    let attrs = json!({"return_lse": true, "causal": true, "window": 4, "softcap": 30, "scale": 1});
    let op = parse(&VarlenAttentionKind, &ragged(), attrs.clone()).unwrap();
    let op: &VarlenAttention = op.as_any().downcast_ref().unwrap();
    assert_eq!((op.tokens(), op.kv_tokens(), op.batch()), (9, 11, 3));
    assert_eq!((op.heads(), op.kv_heads(), op.d(), op.dv()), (6, 3, 8, 4));
    assert_eq!(op.o.shape(), [9, 6, 4]);
    assert_eq!(op.lse, Some(TensorDesc::contiguous(F32, &[9, 6]).unwrap()));
    let softmax = Softmax {
        scale: 1.0,
        causal: true,
        window: 4,
        softcap: 30.0,
    };
    assert_eq!(op.softmax, softmax);
    let op = parse(&PagedAttentionKind, &paged(), attrs).unwrap();
    let op: &PagedAttention = op.as_any().downcast_ref().unwrap();
    assert_eq!(
        (op.tokens(), op.batch(), op.heads(), op.kv_heads()),
        (9, 2, 6, 3)
    );
    assert_eq!(
        (
            op.blocks(),
            op.block_size(),
            op.max_blocks(),
            op.max_kv_len()
        ),
        (10, 16, 5, 80)
    );
    assert_eq!((op.d(), op.dv(), op.softmax), (8, 4, softmax));
    assert_eq!(op.lse, Some(TensorDesc::contiguous(F32, &[9, 6]).unwrap()));
}

#[test]
fn shapes_and_dtypes_are_refused_by_name() {
    let refuse = |others: &[(&str, DType, &[u64])], words: &[&str]| {
        let result = parse(&AttentionKind, &with(&rectangular(), others), json!({}));
        refused(result, InvalidArgument, words);
    };
    refuse(
        &[("q", F16, &[2, 6, 8])],
        &["q", "[2, 6, 8]", "[batch, heads, q_len, d]"],
    );
    refuse(
        &[("k", F16, &[3, 3, 7, 8])],
        &["k", "[3, 3, 7, 8]", "[2, 3, 7, 8]"],
    );
    refuse(&[("k", F16, &[2, 3, 7, 9])], &["k", "[2, 3, 7, 8]"]);
    refuse(&[("v", F16, &[2, 3, 6, 4])], &["v", "[2, 3, 7, 4]"]);
    refuse(&[("v", F16, &[2, 2, 7, 4])], &["v", "[2, 3, 7, 4]"]);
    refuse(
        &[("q", F16, &[2, 7, 5, 8])],
        &["q", "7 heads", "multiple of the 3"],
    );
    refuse(
        &[("k", F16, &[2, 0, 7, 8]), ("v", F16, &[2, 0, 7, 4])],
        &["6 heads", "the 0"],
    );
    refuse(
        &[("q", F16, &[2, 6, 5, 0]), ("k", F16, &[2, 3, 7, 0])],
        &["q", "d = 0"],
    );
    refuse(&[("k", F32, &[2, 3, 7, 8])], &["k", "F32", "F16"]);
    refuse(&[("q", I8, &[2, 6, 5, 8])], &["q", "I8"]);
    refuse(&[("mask", F16, &[5, 7])], &["mask", "F16", "F32"]);
    refuse(
        &[("mask", F32, &[5, 6])],
        &["mask", "[5, 6]", "[2, 6, 5, 7]"],
    );
    refuse(&[("mask", F32, &[1, 2, 6, 5, 7])], &["mask"]);
    refuse(&[("kv_lens", F32, &[2])], &["kv_lens", "F32", "I32"]);
    refuse(&[("kv_lens", I32, &[3])], &["kv_lens", "[3]", "[2]"]);
    refuse(&[("sinks", F32, &[3])], &["sinks", "[3]", "[6]"]);
    refuse(
        &[("alibi_slopes", F16, &[6])],
        &["alibi_slopes", "F16", "F32"],
    );
    refuse(&[("w", F16, &[6])], &["w", "unknown"]);
    let nothing = parse(&AttentionKind, &rectangular()[..2], json!({}));
    refused(nothing, InvalidArgument, &["v", "nothing"]);
}

#[test]
fn attributes_are_refused_by_name() {
    for (attrs, words) in [
        (json!({"scale": "1"}), ["scale", "number"]),
        (json!({"scale": 1e300}), ["scale", "f32"]),
        (json!({"scale": null}), ["scale", "null"]),
        (json!({"causal": 1}), ["causal", "true or false"]),
        (
            json!({"causal": true, "window": -1}),
            ["window", "0 or more"],
        ),
        (json!({"causal": true, "window": 1.5}), ["window", "1.5"]),
        (json!({"window": 3}), ["window", "causal"]),
        (json!({"softcap": -2}), ["softcap", "positive"]),
        (json!({"return_lse": 0}), ["return_lse", "true or false"]),
        (json!({"dropout": 0.1}), ["dropout", "unknown"]),
    ] {
        for (kind, sound) in KINDS.into_iter().zip([rectangular(), ragged(), paged()]) {
            refused(parse(kind, &sound, attrs.clone()), InvalidArgument, &words);
        }
    }
}

#[test]
fn masks_of_any_rank_broadcast() {
    for (shape, strides) in [
        (&[2u64, 6, 5, 7][..], [210, 35, 7, 1]),
        (&[5, 7], [0, 0, 7, 1]),
        (&[7], [0, 0, 0, 1]),
        (&[], [0; 4]),
        (&[5, 1], [0, 0, 1, 0]),
        (&[6, 1, 7], [0, 7, 0, 1]),
        (&[2, 1, 1, 1], [1, 0, 0, 0]),
    ] {
        let tensors = with(&rectangular(), &[("mask", F32, shape)]);
        let op = parse(&AttentionKind, &tensors, json!({})).unwrap();
        let op: &Attention = op.as_any().downcast_ref().unwrap();
        let layout = op.mask_layout().unwrap();
        assert_eq!(
            (layout.shape(), layout.strides()),
            (&[2, 6, 5, 7][..], &strides[..])
        );
    }
}

#[test]
fn windows_that_hide_nothing_are_none() {
    for (window, expected) in [(6u64, 6), (7, 0), (u64::MAX, 0)] {
        let attrs = json!({"causal": true, "window": window});
        let op = parse(&AttentionKind, &rectangular(), attrs).unwrap();
        let op: &Attention = op.as_any().downcast_ref().unwrap();
        assert_eq!(op.softmax.window, expected);
    }
}

#[test]
fn malformed_wins_over_unsupported() {
    let f8 = |q: &'static [u64]| -> Tensors<'static> {
        let kv: &[u64] = &[2, 3, 7, 8];
        vec![("q", F8E4M3, q), ("k", F8E4M3, kv), ("v", F8E4M3, kv)]
    };
    let sound = parse(&AttentionKind, &f8(&[2, 6, 5, 8]), json!({}));
    refused(sound, Unsupported, &["F8_E4M3"]);
    let malformed = parse(&AttentionKind, &f8(&[2, 7, 5, 8]), json!({}));
    refused(malformed, InvalidArgument, &["7 heads"]);
    let malformed = parse(&AttentionKind, &f8(&[2, 6, 5, 8]), json!({"window": 1}));
    refused(malformed, InvalidArgument, &["window"]);
    for dtype in [F8E4M3, I8] {
        let caches: [(&str, DType, &[u64]); 2] = [
            ("k_cache", dtype, &[10, 16, 3, 8]),
            ("v_cache", dtype, &[10, 16, 3, 4]),
        ];
        let tensors = with(&paged(), &caches);
        let words = [dtype.name(), "cache"];
        refused(
            parse(&PagedAttentionKind, &tensors, json!({})),
            Unsupported,
            &words,
        );
        let tensors = with(&tensors, &[("kv_lens", I32, &[5])]);
        refused(
            parse(&PagedAttentionKind, &tensors, json!({})),
            InvalidArgument,
            &["kv_lens"],
        );
    }
}

#[test]
fn ragged_shapes_are_refused_by_name() {
    let refuse = |others: &[(&str, DType, &[u64])], words: &[&str]| {
        let result = parse(&VarlenAttentionKind, &with(&ragged(), others), json!({}));
        refused(result, InvalidArgument, words);
    };
    refuse(&[("cu_q", I32, &[0])], &["cu_q", "[0]"]);
    refuse(&[("cu_kv", I32, &[5])], &["cu_kv", "[5]", "[4]"]);
    refuse(&[("cu_q", F32, &[4])], &["cu_q", "F32", "I32"]);
    refuse(&[("v", F32, &[10, 3, 4])], &["v", "[11, 3, 4]"]);
    refuse(&[("k", F32, &[11, 4, 8])], &["6 heads"]);
    refuse(&[("sinks", F32, &[5])], &["sinks", "[6]"]);
    let refuse = |others: &[(&str, DType, &[u64])], words: &[&str]| {
        let result = parse(&PagedAttentionKind, &with(&paged(), others), json!({}));
        refused(result, InvalidArgument, words);
    };
    refuse(&[("cu_q", I32, &[2])], &["cu_q", "[2]", "[3]"]);
    refuse(&[("kv_lens", I32, &[3])], &["kv_lens", "[3]", "[2]"]);
    refuse(
        &[("k_cache", F16, &[10, 16, 3, 8])],
        &["k_cache", "F16", "BF16"],
    );
    refuse(
        &[("v_cache", BF16, &[10, 8, 3, 4])],
        &["v_cache", "[10, 16, 3, 4]"],
    );
    refuse(
        &[("k_cache", BF16, &[10, 0, 3, 8])],
        &["k_cache", "block_size 0"],
    );
    refuse(
        &[("block_table", I32, &[10])],
        &["block_table", "[batch, max_blocks]"],
    );
}

#[test]
fn engines_may_bring_their_own_outputs() {
    let desc = |dtype, shape: &[u64]| TensorDesc::contiguous(dtype, shape).unwrap();
    let strided = |strides: &[u64]| TensorDesc {
        dtype: F16,
        layout: Layout::strided(&[2, 6, 5, 4], strides).unwrap(),
    };
    let [q, k, v] = [
        desc(F16, &[2, 6, 5, 8]),
        desc(F16, &[2, 3, 7, 8]),
        desc(F16, &[2, 3, 7, 4]),
    ];
    let plain = Attention::new(q, k, v).unwrap();
    let with_output = |o| Attention { o, ..plain.clone() }.checked();
    assert!(with_output(strided(&[120, 4, 24, 1])).is_ok());
    refused(
        with_output(strided(&[0, 4, 24, 1])),
        InvalidArgument,
        &["o", "share memory"],
    );
    refused(
        with_output(desc(F16, &[2, 6, 5, 8])),
        InvalidArgument,
        &["o", "[2, 6, 5, 4]"],
    );
    refused(
        with_output(desc(F32, &[2, 6, 5, 4])),
        InvalidArgument,
        &["o", "F32"],
    );
    let lse = Attention {
        lse: Some(desc(F32, &[2, 6, 4])),
        ..plain.clone()
    };
    refused(lse.checked(), InvalidArgument, &["lse", "[2, 6, 5]"]);
    let softmax = Softmax {
        scale: f32::NAN,
        ..Softmax::new(8)
    };
    let scaled = Attention { softmax, ..plain }.checked();
    refused(scaled, InvalidArgument, &["scale", "finite"]);
}

fn visible_pairs(q_len: u64, kv_len: u64, causal: bool, window: u64) -> u64 {
    let sees = |query: u64, key: u64| {
        let position = (kv_len + query) as i64 - q_len as i64;
        let key = key as i64;
        !causal || (key <= position && (window == 0 || key > position - window as i64))
    };
    let keys = |query| (0..kv_len).filter(|&key| sees(query, key)).count() as u64;
    (0..q_len).map(keys).sum()
}

#[test]
fn cost_counts_the_visible_pairs() {
    for q_len in 0..9 {
        for kv_len in 0..9 {
            for (causal, windows) in [(false, 0..1), (true, 0..11)] {
                for window in windows {
                    let softmax = Softmax {
                        causal,
                        window,
                        ..Softmax::new(1)
                    };
                    let softmax = softmax.checked(kv_len).unwrap();
                    let expected = visible_pairs(q_len, kv_len, causal, window) as f64;
                    let found = softmax.visible_pairs(q_len, kv_len);
                    assert_eq!(found, expected, "{q_len} {kv_len} {causal} {window}");
                }
            }
        }
    }
}

fn check(kind: &dyn OpKind, recipe: Recipe, name: &str, values: &[i32]) -> Result<()> {
    let mut request = recipe.request().unwrap();
    let shape = request.inputs[name].shape().to_vec();
    let tensor = HostTensor::from_i32(&shape, values).unwrap();
    request.inputs.insert(name.into(), tensor);
    let op = kind.parse(&request.signature())?;
    kind.check_values(&*op, &request.inputs)
}

fn fixed(kind: &dyn OpKind, name: &str) -> Recipe {
    let cases = kind.spec().fixed_cases().into_iter();
    cases
        .into_iter()
        .find(|recipe| recipe.name == name)
        .unwrap()
}

#[test]
fn values_on_the_device_are_checked_on_the_host() {
    let lens = |values: &[i32]| {
        check(
            &AttentionKind,
            fixed(&AttentionKind, "kv_lens_f32"),
            "kv_lens",
            values,
        )
    };
    assert!(lens(&[50, 0, 7, 33]).is_ok());
    refused(
        lens(&[50, 51, 7, 33]),
        InvalidArgument,
        &["kv_lens[1]", "51", "0 to 50"],
    );
    refused(
        lens(&[50, 0, -1, 33]),
        InvalidArgument,
        &["kv_lens[2]", "-1"],
    );

    let cu_q = |values: &[i32]| {
        check(
            &VarlenAttentionKind,
            fixed(&VarlenAttentionKind, "causal_f32"),
            "cu_q",
            values,
        )
    };
    assert!(cu_q(&[0, 0, 44, 44]).is_ok());
    refused(
        cu_q(&[1, 5, 40, 44]),
        InvalidArgument,
        &["cu_q[0]", "found 1"],
    );
    refused(
        cu_q(&[0, 5, 4, 44]),
        InvalidArgument,
        &["cu_q[2]", "4", "5"],
    );
    refused(
        cu_q(&[0, 5, 40, 43]),
        InvalidArgument,
        &["cu_q[3]", "43", "44"],
    );
    refused(
        cu_q(&[0, 5, 40, 45]),
        InvalidArgument,
        &["cu_q[3]", "45", "44"],
    );

    let table = |values: &[i32]| {
        let recipe = fixed(&PagedAttentionKind, "unreached_blocks_hold_nan_f32");
        check(&PagedAttentionKind, recipe, "block_table", values)
    };
    assert!(table(&[1, 3, 99]).is_ok());
    refused(
        table(&[1, 4, -1]),
        InvalidArgument,
        &["block_table[0, 1]", "4", "0 to 3"],
    );
    refused(
        table(&[-1, 3, -1]),
        InvalidArgument,
        &["block_table[0, 0]", "-1"],
    );
    let recipe = fixed(&PagedAttentionKind, "unreached_blocks_hold_nan_f32");
    let lens = check(&PagedAttentionKind, recipe, "kv_lens", &[13]);
    refused(lens, InvalidArgument, &["kv_lens[0]", "13", "0 to 12"]);
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
    vec(extent, 0..=5)
}

fn any_attribute() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<bool>().prop_map(Value::from),
        (-2i64..5).prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        Just(Value::Null),
        Just(json!("softmax")),
        Just(json!([1])),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn no_signature_makes_it_panic(
        kind in 0usize..3,
        shapes in vec((any_shape(), select(DType::ALL.to_vec()), any::<bool>()), 8),
        attrs in btree_map(select(vec!["scale", "causal", "window", "softcap", "return_lse", "x"]), any_attribute(), 0..3),
        like in any::<bool>(),
    ) {
        let kind = KINDS[kind];
        // Half of them begin as sound problems, so that the later checks are reached.
        let mut signature = Signature::default();
        if like {
            let sound = match kind.name() {
                "attention" => rectangular(),
                "attention_varlen" => ragged(),
                _ => paged(),
            };
            signature = self::signature(&sound, json!({}));
        }
        for (name, (shape, dtype, given)) in kind.inputs().iter().zip(&shapes) {
            if let Ok(desc) = TensorDesc::contiguous(*dtype, shape)
                && *given
            {
                signature.tensors.insert((*name).into(), desc);
            }
        }
        signature.attrs = attrs.into_iter().map(|(name, value)| (name.into(), value)).collect();
        if let Ok(op) = kind.parse(&signature) {
            let _ = (op.operands(), op.cost(), format!("{op:?}"));
            let nothing = Operands::new();
            let _ = kind.check_values(&*op, &nothing);
        }
    }
}
