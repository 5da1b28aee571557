//! The reference held to hand-computed values and to what softmax must satisfy; the bounds held from both sides: a plain f32
//! implementation stays within them, the faults that attention kernels have do not.

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use ropeway_core::op::OpKind;
use ropeway_core::request::HostTensor;
use ropeway_core::spec::{Fill, Judgement, compare};

use super::super::{AttentionKind, PagedAttentionKind, VarlenAttentionKind};
use super::*;

const KINDS: [&dyn OpKind; 3] = [&AttentionKind, &VarlenAttentionKind, &PagedAttentionKind];

fn run_with(recipe: &Recipe, attend: &Attend) -> Vec<Expected> {
    let kind = KINDS
        .into_iter()
        .find(|kind| kind.name() == recipe.op)
        .unwrap();
    let request = recipe.request().unwrap();
    let op = kind.parse(&request.signature()).unwrap();
    kind.check_values(&*op, &request.inputs).unwrap();
    let (op, inputs, data) = (&*op, &request.inputs, recipe.data);
    match recipe.op.as_str() {
        "attention" => attention(described(op).unwrap(), inputs, data, attend),
        "attention_varlen" => attention_varlen(described(op).unwrap(), inputs, data, attend),
        _ => attention_paged(described(op).unwrap(), inputs, data, attend),
    }
    .unwrap()
}

/// o and, if asked for, lse.
fn run(recipe: &Recipe) -> Vec<Vec<f64>> {
    let outputs = run_with(recipe, &attend).into_iter();
    outputs.map(|expected| expected.values).collect()
}

fn recipe(op: &str) -> Recipe {
    Recipe::new(op, "test", DataClass::Random, 7)
}

fn values(values: &[f64]) -> Fill {
    Fill::Values(values.to_vec())
}

const UNIFORM: Fill = Fill::Uniform { scale: 2.0 };

#[track_caller]
fn close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!(
            (found - expected).abs() < 1e-7 * expected.abs().max(1.0) || found == expected,
            "found {found}, expected {expected}"
        );
    }
}

/// q · k = (0, ln 3), so that the weights are 1/4 and 3/4.
fn quarter() -> Recipe {
    recipe("attention")
        .tensor("q", DType::F32, &[1, 1, 1, 1], values(&[1.0]))
        .tensor("k", DType::F32, &[1, 1, 2, 1], values(&[0.0, 3f64.ln()]))
        .tensor(
            "v",
            DType::F32,
            &[1, 1, 2, 2],
            values(&[4.0, 0.0, 8.0, 100.0]),
        )
        .attr("return_lse", true)
}

#[test]
fn two_keys_by_hand() {
    let found = run(&quarter());
    close(&found[0], &[7.0, 75.0]);
    close(&found[1], &[4f64.ln()]);
}

#[test]
fn a_sink_takes_its_share() {
    let found = run(&quarter().tensor("sinks", DType::F32, &[1], values(&[4f64.ln()])));
    close(&found[0], &[3.5, 37.5]);
    close(&found[1], &[8f64.ln()]);
}

#[test]
fn a_mask_adds_to_the_scores() {
    let found = run(&quarter().tensor("mask", DType::F32, &[2], values(&[3f64.ln(), 0.0])));
    close(&found[0], &[6.0, 50.0]);
    close(&found[1], &[6f64.ln()]);
}

#[test]
fn alibi_adds_slope_times_distance() {
    // The query stands at key 1: distances −1 and 0.
    let slope = values(&[3f64.ln()]);
    let found = run(&quarter().tensor("alibi_slopes", DType::F32, &[1], slope));
    close(
        &found[0],
        &[(4.0 / 3.0 + 24.0) / (10.0 / 3.0), 300.0 / (10.0 / 3.0)],
    );
    close(&found[1], &[(10f64 / 3.0).ln()]);
}

#[test]
fn a_soft_cap_comes_before_the_mask() {
    let found =
        run(&quarter()
            .attr("softcap", 2.0)
            .tensor("mask", DType::F32, &[2], values(&[5.0, 5.0])));
    let capped = 2.0 * (3f64.ln() / 2.0).tanh();
    let weight = capped.exp() / (1.0 + capped.exp());
    close(&found[0], &[4.0 + 4.0 * weight, 100.0 * weight]);
    close(&found[1], &[5.0 + (1.0 + capped.exp()).ln()]);
}

/// The masks that FlashAttention documents for `causal` with unequal lengths.
#[test]
fn causal_aligns_the_last_query_with_the_last_key() {
    // Values are one-hot, so that o shows which keys are seen.
    let one_hot = |n: usize| {
        let unit = (0..n * n).map(|at| if at % (n + 1) == 0 { 1.0 } else { 0.0 });
        Fill::Values(unit.collect())
    };
    let seen = |q_len: u64, kv_len: u64, window: u64| -> Vec<u8> {
        let found = run(&recipe("attention")
            .tensor("q", DType::F32, &[1, 1, q_len, 1], Fill::Constant(0.0))
            .tensor("k", DType::F32, &[1, 1, kv_len, 1], Fill::Constant(0.0))
            .tensor(
                "v",
                DType::F32,
                &[1, 1, kv_len, kv_len],
                one_hot(kv_len as usize),
            )
            .attr("causal", true)
            .attr("window", window));
        found[0].iter().map(|&o| u8::from(o > 0.0)).collect()
    };
    assert_eq!(seen(2, 5, 0), [1, 1, 1, 1, 0, 1, 1, 1, 1, 1]);
    assert_eq!(seen(5, 2, 0), [0, 0, 0, 0, 0, 0, 1, 0, 1, 1]);
    assert_eq!(seen(3, 3, 2), [1, 0, 0, 1, 1, 0, 0, 1, 1]);
    assert_eq!(seen(2, 4, 1), [0, 0, 1, 0, 0, 0, 0, 1]);
}

#[test]
fn a_query_that_sees_no_key_gives_zeros() {
    let found = run(&quarter().tensor("kv_lens", DType::I32, &[1], values(&[0.0])));
    assert_eq!(found, [vec![0.0, 0.0], vec![f64::NEG_INFINITY]]);
    let found = run(&quarter()
        .tensor("kv_lens", DType::I32, &[1], values(&[0.0]))
        .tensor("sinks", DType::F32, &[1], values(&[2.5])));
    assert_eq!(found, [vec![0.0, 0.0], vec![2.5]]);
}

/// A case with everything whose effect the properties below do not change.
fn rich(heads: u64, kv_heads: u64) -> Recipe {
    recipe("attention")
        .tensor("q", DType::F32, &[2, heads, 5, 4], UNIFORM)
        .tensor("k", DType::F32, &[2, kv_heads, 6, 4], UNIFORM)
        .tensor("v", DType::F32, &[2, kv_heads, 6, 3], UNIFORM)
        .attr("softcap", 3.0)
        .attr("return_lse", true)
}

#[test]
fn rows_of_the_softmax_sum_to_one() {
    let mut ones = rich(4, 2);
    ones.tensors[2].fill = Fill::Constant(1.0);
    close(&run(&ones)[0], &[1.0; 2 * 4 * 5 * 3]);
}

#[test]
fn attention_is_linear_in_the_values() {
    let plain = run(&rich(4, 2));
    let mut request = rich(4, 2).request().unwrap();
    let doubled: Vec<f64> = request.inputs["v"]
        .to_f64()
        .iter()
        .map(|v| 2.0 * v)
        .collect();
    let v = HostTensor::from_f64(DType::F32, &[2, 2, 6, 3], &doubled).unwrap();
    request.inputs.insert("v".into(), v);
    let op = AttentionKind.parse(&request.signature()).unwrap();
    let found = AttentionSpec
        .reference(&*op, &request.inputs, DataClass::Random)
        .unwrap();
    let expected: Vec<f64> = plain[0].iter().map(|o| 2.0 * o).collect();
    close(&found[0].values, &expected);
}

/// Reversing keys, values and mask together changes nothing.
#[test]
fn the_order_of_keys_does_not_matter() {
    let request = rich(2, 2)
        .tensor("mask", DType::F32, &[5, 6], UNIFORM)
        .request()
        .unwrap();
    let op = AttentionKind.parse(&request.signature()).unwrap();
    let mut reversed = request.clone();
    for (name, axis) in [("k", 2), ("v", 2), ("mask", 1)] {
        let tensor = &request.inputs[name];
        let values: Vec<f64> = tensor
            .desc
            .layout
            .indices()
            .map(|mut index| {
                index[axis] = 5 - index[axis];
                tensor.at(&index)
            })
            .collect();
        let tensor = HostTensor::from_f64(DType::F32, tensor.shape(), &values).unwrap();
        reversed.inputs.insert(name.into(), tensor);
    }
    let answer = |inputs| {
        AttentionSpec
            .reference(&*op, inputs, DataClass::Random)
            .unwrap()
    };
    for (plain, reversed) in answer(&request.inputs).iter().zip(answer(&reversed.inputs)) {
        close(&plain.values, &reversed.values);
    }
}

/// Grouped heads are the same as heads whose keys and values are repeated.
#[test]
fn grouped_heads_share_keys_and_values() {
    let grouped = rich(6, 2).attr("causal", true).request().unwrap();
    let mut repeated = grouped.clone();
    for name in ["k", "v"] {
        let tensor = &grouped.inputs[name];
        let [batch, _, len, d] = tensor.shape().try_into().unwrap();
        let wide = Layout::contiguous(&[batch, 6, len, d]).unwrap();
        let values: Vec<f64> = wide
            .indices()
            .map(|i| tensor.at(&[i[0], i[1] / 3, i[2], i[3]]))
            .collect();
        let tensor = HostTensor::from_f64(DType::F32, wide.shape(), &values).unwrap();
        repeated.inputs.insert(name.into(), tensor);
    }
    let answer = |request: &ropeway_core::request::Request| {
        let op = AttentionKind.parse(&request.signature()).unwrap();
        AttentionSpec
            .reference(&*op, &request.inputs, DataClass::Random)
            .unwrap()
    };
    assert_eq!(answer(&grouped), answer(&repeated));
}

/// One sequence of `attention_varlen`, as `attention` sees it.
fn sequence(inputs: &Operands, name: &str, from: f64, to: f64) -> HostTensor {
    let tensor = &inputs[name];
    let [_, heads, d] = tensor.shape().try_into().unwrap();
    let [row, head, element] = tensor.desc.layout.strides().try_into().unwrap();
    let layout =
        Layout::strided(&[1, heads, (to - from) as u64, d], &[0, head, row, element]).unwrap();
    tensor
        .view(layout, tensor.offset + from as u64 * row)
        .unwrap()
}

/// What `attention` says of each sequence, laid end to end.
fn one_by_one(recipe: &Recipe, inputs: &Operands, k: &str, v: &str) -> Vec<Vec<f64>> {
    let (cu_q, cu_kv) = (inputs["cu_q"].to_f64(), inputs["cu_kv"].to_f64());
    let mut outputs = vec![Vec::new(); 2];
    for (q, kv) in cu_q.windows(2).zip(cu_kv.windows(2)) {
        let mut operands = Operands::new();
        operands.insert("q".into(), sequence(inputs, "q", q[0], q[1]));
        operands.insert("k".into(), sequence(inputs, k, kv[0], kv[1]));
        operands.insert("v".into(), sequence(inputs, v, kv[0], kv[1]));
        for name in ["sinks", "alibi_slopes"] {
            if let Some(tensor) = inputs.get(name) {
                operands.insert(name.into(), tensor.clone());
            }
        }
        let request = ropeway_core::request::Request {
            op: "attention".into(),
            inputs: operands,
            attrs: recipe.attrs.clone(),
        };
        let op = AttentionKind.parse(&request.signature()).unwrap();
        let answer = AttentionSpec
            .reference(&*op, &request.inputs, recipe.data)
            .unwrap();
        for (output, expected) in outputs.iter_mut().zip(answer) {
            // [1, heads, q_len, …] to [q_len, heads, …].
            let width = *expected.shape.get(3).unwrap_or(&1) as usize;
            let (heads, q_len) = (expected.shape[1] as usize, expected.shape[2] as usize);
            for t in 0..q_len {
                for h in 0..heads {
                    let at = (h * q_len + t) * width;
                    output.extend_from_slice(&expected.values[at..at + width]);
                }
            }
        }
    }
    outputs
}

fn same(found: &[f64], expected: &[f64]) -> bool {
    let pairs = found.iter().zip(expected);
    found.len() == expected.len() && { pairs }.all(|(a, b)| a == b || (a.is_nan() && b.is_nan()))
}

#[test]
fn varlen_is_attention_of_each_sequence() {
    for recipe in VarlenAttentionSpec.fixed_cases() {
        let request = recipe.request().unwrap();
        let expected = one_by_one(&recipe, &request.inputs, "k", "v");
        for (found, expected) in run(&recipe).iter().zip(&expected) {
            assert!(same(found, expected), "{}", recipe.name);
        }
    }
}

/// A paged cache gathered into rows is `attention_varlen`.
#[test]
fn paged_is_attention_of_the_gathered_cache() {
    for recipe in PagedAttentionSpec.fixed_cases() {
        let request = recipe.request().unwrap();
        let (table, lens) = (&request.inputs["block_table"], &request.inputs["kv_lens"]);
        let mut inputs = request.inputs.clone();
        let mut ends = vec![0];
        for (name, gathered) in [("k_cache", "k"), ("v_cache", "v")] {
            let cache = &request.inputs[name];
            let [_, size, heads, d] = cache.shape().try_into().unwrap();
            let mut rows = Vec::new();
            ends = vec![0];
            for (s, len) in lens.to_i32().unwrap().into_iter().enumerate() {
                ends.push(ends[s] + len);
                for j in 0..len as u64 {
                    let block = table.at(&[s as u64, j / size]) as u64;
                    for h in 0..heads {
                        rows.extend((0..d).map(|c| cache.at(&[block, j % size, h, c])));
                    }
                }
            }
            let shape = [ends[ends.len() - 1] as u64, heads, d];
            let rows = HostTensor::from_f64(cache.desc.dtype, &shape, &rows).unwrap();
            inputs.insert(gathered.into(), rows);
        }
        let cu_kv = HostTensor::from_i32(&[ends.len() as u64], &ends).unwrap();
        inputs.insert("cu_kv".into(), cu_kv);
        let expected = one_by_one(&recipe, &inputs, "k", "v");
        for (found, expected) in run(&recipe).iter().zip(&expected) {
            assert!(same(found, expected), "{}", recipe.name);
        }
    }
}

#[test]
fn nan_reaches_what_reads_it_and_nothing_else() {
    // Two heads of two keys and two queries; one number at a time is NaN.
    let plain = |nan: &str, at: u64| {
        let mut recipe = recipe("attention");
        for (name, shape) in [
            ("q", [1, 2, 2, 2]),
            ("k", [1, 2, 2, 2]),
            ("v", [1, 2, 2, 3]),
        ] {
            let base = Box::new(UNIFORM);
            let patches = match name == nan {
                true => vec![(at, ropeway_core::spec::Special::Nan)],
                false => vec![],
            };
            recipe = recipe.tensor(name, DType::F32, &shape, Fill::Patched { base, patches });
        }
        recipe.attr("return_lse", true).attr("causal", true)
    };
    let nan_at = |values: &[f64]| -> Vec<usize> {
        (0..values.len())
            .filter(|&at| values[at].is_nan())
            .collect()
    };
    // Query 1 of head 0: its row.
    let found = run(&plain("q", 2));
    assert_eq!(nan_at(&found[0]), [3, 4, 5]);
    assert_eq!(nan_at(&found[1]), [1]);
    // Key 0 of head 1: both queries of that head.
    let found = run(&plain("k", 4));
    assert_eq!(nan_at(&found[0]), [6, 7, 8, 9, 10, 11]);
    assert_eq!(nan_at(&found[1]), [2, 3]);
    // Element 1 of the value of key 1 of head 0: query 1; what query 0 makes of a hidden NaN is open, in that element alone.
    let answer = run_with(&plain("v", 4), &attend);
    assert_eq!(nan_at(&answer[0].values), [4]);
    let open = answer[0].bounds.iter().map(|bound| *bound == f64::INFINITY);
    assert_eq!(
        open.collect::<Vec<_>>(),
        (0..12).map(|at| at == 1).collect::<Vec<_>>()
    );
    assert!(answer[1].bounds.iter().all(|bound| bound.is_finite()));
}

/// What goes wrong in attention kernels.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// A query sees one key beyond itself.
    CausalLate,
    /// A query does not see itself.
    CausalEarly,
    /// The window is one key too wide.
    WindowWide,
    /// What was summed before a new maximum is not rescaled.
    NoRescale,
    /// The sum is rescaled, the output is not.
    NoRescaleOfOutput,
    /// The last key is lost.
    LostKey,
    /// The sink is counted once a block.
    SinkTwice,
    /// The cap comes after the mask.
    CapAfterMask,
    /// Distances count from the first key instead of the query; softmax does not see it, the log-sum-exp does.
    AlibiFromFirst,
    /// The last element of q and k is lost.
    LostElement,
    /// The log-sum-exp has base 2.
    LogBaseTwo,
    /// A NaN score counts as −∞.
    NanAsHidden,
    /// The scale is applied twice.
    ScaleTwice,
}

/// Online softmax over blocks of 16 keys in f32, probabilities rounded to the input dtype: what a plain kernel does.
fn plain_f32(query: &Query<'_>, rules: &Rules, fault: Fault) -> Attended {
    let softmax = rules.softmax;
    let round = |x: f32| match rules.dtype {
        DType::F16 => half::f16::from_f32(x).to_f32(),
        DType::BF16 => half::bf16::from_f32(x).to_f32(),
        _ => x,
    };
    let position = query.position
        + match fault {
            Fault::CausalLate => 1,
            Fault::CausalEarly => -1,
            _ => 0,
        };
    let widened = Rules {
        softmax: Softmax {
            window: softmax.window + u64::from(fault == Fault::WindowWide && softmax.window > 0),
            ..softmax
        },
        ..*rules
    };
    let elements = query.q.len() - usize::from(fault == Fault::LostElement);
    let len = query.keys.len() - usize::from(fault == Fault::LostKey && !query.keys.is_empty());
    let mut max = f32::NEG_INFINITY;
    let mut sum = 0f32;
    let mut o = vec![0f32; rules.dv];
    let scale = if fault == Fault::ScaleTwice {
        softmax.scale * softmax.scale
    } else {
        softmax.scale
    };
    for block in (0..len).step_by(16) {
        let mut scores = Vec::new();
        for j in block..len.min(block + 16) {
            let mask = query.mask.get(j).copied().unwrap_or(0.0) as f32;
            if !widened.sees(position, j) || mask == f32::NEG_INFINITY {
                scores.push(f32::NEG_INFINITY);
                continue;
            }
            let products = query.q.iter().zip(query.keys[j]).take(elements);
            let dot = products.fold(0f32, |sum, (&q, &k)| sum + q as f32 * k as f32);
            let cap = |x: f32| match softmax.softcap {
                0.0 => x,
                cap => cap * (x / cap).tanh(),
            };
            let from = if fault == Fault::AlibiFromFirst {
                0
            } else {
                query.position
            };
            let distance = (j as i64 - from) as f32;
            let alibi = query.slope.map_or(0.0, |slope| slope as f32 * distance);
            let score = match fault {
                Fault::CapAfterMask => cap(dot * scale + alibi + mask),
                _ => cap(dot * scale) + alibi + mask,
            };
            scores.push(match fault {
                Fault::NanAsHidden if score.is_nan() => f32::NEG_INFINITY,
                _ => score,
            });
        }
        let new = scores.iter().copied().fold(max, f32::max);
        if new == f32::NEG_INFINITY && scores.iter().all(|score| !score.is_nan()) {
            continue;
        }
        let alpha = match max {
            _ if fault == Fault::NoRescale => 1.0,
            f32::NEG_INFINITY => 0.0,
            max => (max - new).exp(),
        };
        sum *= alpha;
        if fault != Fault::NoRescaleOfOutput {
            o.iter_mut().for_each(|o| *o *= alpha);
        }
        max = new;
        for (score, values) in scores.into_iter().zip(&query.values[block..]) {
            if score == f32::NEG_INFINITY {
                continue;
            }
            let p = (score - max).exp();
            sum += p;
            for (o, &v) in o.iter_mut().zip(*values) {
                *o += round(p) * v as f32;
            }
        }
        if fault == Fault::SinkTwice
            && let Some(sink) = query.sink
        {
            sum += (sink as f32 - max).exp();
        }
    }
    if let Some(sink) = query
        .sink
        .filter(|&sink| sink > f64::NEG_INFINITY || sink.is_nan())
    {
        let new = max.max(sink as f32);
        let alpha = if max == f32::NEG_INFINITY {
            0.0
        } else {
            (max - new).exp()
        };
        sum = sum * alpha + (sink as f32 - new).exp();
        o.iter_mut().for_each(|o| *o *= alpha);
        max = new;
    }
    let is_empty = sum == 0.0;
    let log = if fault == Fault::LogBaseTwo {
        sum.log2()
    } else {
        sum.ln()
    };
    Attended {
        o: o.iter()
            .map(|&o| if is_empty { 0.0 } else { f64::from(o / sum) })
            .collect(),
        o_bounds: vec![0.0; rules.dv],
        lse: if is_empty {
            f64::NEG_INFINITY
        } else {
            f64::from(max + log)
        },
        lse_bound: 0.0,
    }
}

fn judge(recipe: &Recipe, fault: Fault) -> Judgement {
    let found = run_with(recipe, &move |query: &Query<'_>, rules: &Rules| {
        plain_f32(query, rules, fault)
    });
    let outputs = run_with(recipe, &attend)
        .into_iter()
        .zip(found)
        .map(|(expected, found)| {
            let found = HostTensor::from_f64(found.dtype, &found.shape, &found.values).unwrap();
            compare(&expected, &found)
        });
    Judgement {
        outputs: outputs.collect(),
        notes: Vec::new(),
    }
}

#[test]
fn a_plain_implementation_passes_the_fixed_cases() {
    for kind in KINDS {
        for recipe in kind.spec().fixed_cases() {
            let judgement = judge(&recipe, Fault::None);
            assert!(
                judgement.passes(),
                "{} {}: {judgement:?}",
                recipe.op,
                recipe.name
            );
        }
    }
}

/// Random cases keep away from their bounds: the greatest error ÷ bound over 3,000 cases is 0.41.
#[test]
fn a_plain_implementation_passes_random_cases() {
    let mut runner = TestRunner::deterministic();
    for (kind, cases) in KINDS.into_iter().zip([2000, 500, 500]) {
        let strategy = kind.spec().strategy();
        let mut worst: (f64, String) = (0.0, String::new());
        for _ in 0..cases {
            let recipe = strategy.new_tree(&mut runner).unwrap().current();
            let ratio = judge(&recipe, Fault::None).worst_ratio();
            assert!(ratio <= 0.6, "{ratio} in {recipe:#?}");
            if ratio > worst.0 {
                worst = (ratio, format!("{} {:?}", recipe.name, recipe.attrs));
            }
        }
        println!(
            "{}: greatest error ÷ bound {} in {}",
            kind.name(),
            worst.0,
            worst.1
        );
        assert!(worst.0 > 0.0);
    }
}

/// Each fault fails in several fixed cases of `attention`.
#[test]
fn planted_faults_fail() {
    let cases = AttentionSpec.fixed_cases();
    for (fault, least) in [
        (Fault::CausalLate, 10),
        (Fault::CausalEarly, 10),
        (Fault::WindowWide, 4),
        (Fault::NoRescale, 10),
        (Fault::NoRescaleOfOutput, 10),
        (Fault::LostKey, 20),
        (Fault::SinkTwice, 4),
        (Fault::CapAfterMask, 1),
        (Fault::AlibiFromFirst, 1),
        (Fault::LostElement, 30),
        (Fault::LogBaseTwo, 10),
        (Fault::NanAsHidden, 2),
        (Fault::ScaleTwice, 30),
    ] {
        let failed = cases.iter().filter(|recipe| !judge(recipe, fault).passes());
        let names: Vec<_> = failed.map(|recipe| recipe.name.as_str()).collect();
        println!("{fault:?}: {} of {}", names.len(), cases.len());
        assert!(names.len() >= least, "{fault:?} fails only in {names:?}");
    }
}
