//! Random problems. What shrinks is the problem, never its data: fewer experts, smaller sizes, plain attributes, plain storage.

use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::BoxedStrategy;
use ropeway_core::DType::{self, BF16, F8E4M3, F16, F32, I8};
use ropeway_core::spec::{Fill, Recipe, Special};

use super::outputs;
use super::problem::{Data, Grouped, Product, Storage};

/// `gemm`.
pub(in super::super) fn gemm_strategy() -> BoxedStrategy<Recipe> {
    let operands = (
        sizes(),
        pair(true),
        any::<(bool, bool)>(),
        select(vec![
            ([&[][..], &[][..]], &[][..]),
            ([&[2], &[]], &[]),
            ([&[], &[3]], &[]),
            ([&[2], &[2]], &[]),
            ([&[2, 1], &[3]], &[3]),
            ([&[1], &[2, 2]], &[2, 1]),
            ([&[], &[]], &[2]),
            ([&[0], &[]], &[]),
        ]),
        [storage(), storage(), storage()],
    );
    let blocks = prop::option::weighted(0.2, select(DType::GGML_BLOCKS.to_vec()));
    let epilogue = (
        select(vec![C::None, C::Full, C::Row, C::Column, C::One]),
        prop::bool::weighted(0.25),
        factor(),
        factor(),
        prop_oneof![
            2 => Just("none"),
            1 => select(vec!["none", "relu", "silu", "gelu", "gelu_tanh", "swiglu"]),
        ],
        output(),
    );
    (
        operands,
        epilogue,
        nature(),
        any::<u64>().no_shrink(),
        blocks,
        eight_bits(),
    )
        .prop_map(|(operands, epilogue, nature, seed, blocks, eight_bits)| {
            let ([m, n, k], (a, b), (trans_a, trans_b), (batch, c_lead), storage) = operands;
            let (c, bias, alpha, beta, activation, out) = epilogue;
            let n = match activation {
                "swiglu" => n.next_multiple_of(2),
                _ => n,
            };
            let last = match c {
                C::None => None,
                C::Full => Some([m, n]),
                C::Row => Some([1, n]),
                C::Column => Some([m, 1]),
                C::One => Some([1, 1]),
            };
            let mut problem = Product {
                trans_a,
                trans_b,
                a_batch: batch[0].to_vec(),
                b_batch: batch[1].to_vec(),
                c: last.map(|last| [c_lead, &last].concat()),
                bias,
                activation,
                seed: Some(seed),
                ..Product::new("generated", m, n, k)
            };
            (problem.a, problem.b) = (a, b);
            problem.out = out.map(|index| outputs(a)[index]);
            let smooth = !matches!(activation, "none" | "relu");
            (problem.alpha, problem.beta) = match nature {
                // Powers of two keep exact sums exact.
                Nature::Exact => (alpha.map(|f| f.exact), beta.map(|f| f.exact)),
                _ => (alpha.map(|f| f.any), beta.map(|f| f.any)),
            };
            problem.data = data(nature, a, smooth);
            problem.storage = storage.map(|storage| honest(storage, &problem.data));
            if let Some(format) = blocks
                && in_blocks(problem.a, &problem.data)
            {
                problem.b = format;
                problem.trans_b = true;
                problem.size[2] = whole_blocks(k, format);
            }
            if let Some(EightBits {
                scales,
                out,
                k: longer,
            }) = eight_bits
            {
                (problem.a, problem.b, problem.out) = (F8E4M3, F8E4M3, Some(out));
                // Beside an extent of 0 or 1, k stays what it is.
                if k > 1 {
                    problem.size[2] = longer;
                }
                problem.data = data(nature, F8E4M3, smooth);
                problem.storage = storage.map(|storage| honest(storage, &problem.data));
                if scales.iter().any(Option::is_some) {
                    (problem.trans_a, problem.trans_b) = (false, true);
                    (problem.a_batch, problem.b_batch) = (Vec::new(), Vec::new());
                    problem.c = last.map(Vec::from);
                }
                problem.scales = scales.map(|scale| Some(honest(scale?, &problem.data)));
            }
            problem.recipe()
        })
        .boxed()
}

/// Operands of 8-bit floats: how their scales are stored, where there are some, and the dtype of d.
#[derive(Clone, Copy, Debug)]
struct EightBits {
    scales: [Option<Storage>; 2],
    out: DType,
    /// Longer sums of several blocks of scales.
    k: u64,
}

fn eight_bits() -> impl Strategy<Value = Option<EightBits>> {
    let scale = || prop::option::weighted(0.8, storage());
    let some = (
        [scale(), scale()],
        select(super::eight_bits::OUTPUTS),
        1..=400u64,
    );
    prop::option::weighted(
        0.15,
        some.prop_map(|(scales, out, k)| EightBits { scales, out, k }),
    )
}

/// `grouped_gemm`.
pub(in super::super) fn grouped_gemm_strategy() -> BoxedStrategy<Recipe> {
    let counts = prop::collection::vec(prop_oneof![3 => 0..=24u64, 1 => Just(0u64)], 0..=9);
    let rest = prop_oneof![2 => Just(0u64), 1 => 1..=5u64];
    (grouped(), counts, rest)
        .prop_map(|(grouped, counts, rest)| {
            Grouped {
                counts,
                rest,
                ..grouped
            }
            .recipe()
        })
        .boxed()
}

/// `grouped_gemm_masked`.
pub(in super::super) fn grouped_gemm_masked_strategy() -> BoxedStrategy<Recipe> {
    let counts = prop::collection::vec(prop_oneof![3 => 0..=24u64, 1 => Just(0u64)], 0..=9);
    let room = prop_oneof![1 => Just(0u64), 2 => 1..=7u64];
    (grouped(), counts, room)
        .prop_map(|(grouped, counts, room)| {
            let capacity = counts.iter().max().unwrap_or(&0) + room;
            Grouped {
                counts,
                capacity: Some(capacity),
                ..grouped
            }
            .recipe()
        })
        .boxed()
}

/// What both grouped products share.
fn grouped() -> impl Strategy<Value = Grouped> {
    (
        sizes(),
        pair(false),
        any::<bool>(),
        output(),
        [storage(), storage()],
        nature(),
        any::<u64>().no_shrink(),
        prop::option::weighted(0.2, select(DType::GGML_BLOCKS.to_vec())),
        eight_bits(),
    )
        .prop_map(
            |([_, n, k], (a, b), swiglu, out, storage, nature, seed, blocks, eight_bits)| {
                let ((a, b), k) = match eight_bits {
                    Some(EightBits { k, .. }) => ((F8E4M3, F8E4M3), k),
                    None => ((a, b), k),
                };
                let data = data(nature, a, swiglu);
                let (b, k) = match blocks {
                    Some(format) if in_blocks(a, &data) => (format, whole_blocks(k, format)),
                    _ => (b, k),
                };
                Grouped {
                    a,
                    b,
                    out: match eight_bits {
                        Some(EightBits { out, .. }) => Some(out),
                        None => out.map(|index| outputs(a)[index]),
                    },
                    swiglu,
                    storage: storage.map(|storage| honest(storage, &data)),
                    scales: eight_bits
                        .map_or([None; 2], |eight_bits| eight_bits.scales)
                        .map(|scale| Some(honest(scale?, &data))),
                    data,
                    seed: Some(seed),
                    ..Grouped::new(
                        "generated",
                        &[],
                        if swiglu { n.next_multiple_of(2) } else { n },
                        k,
                    )
                }
            },
        )
}

/// Whether b may lie in blocks beside such an a.
fn in_blocks(a: DType, data: &Data) -> bool {
    matches!(a, F32 | F16) && matches!(data, Data::Random | Data::Exact(_))
}

fn whole_blocks(k: u64, format: DType) -> u64 {
    k.next_multiple_of(format.block().expect("a format of blocks").elements)
}

/// m, n and k: small, at times one of them large or zero.
fn sizes() -> impl Strategy<Value = [u64; 3]> {
    let small = || [1..=80u64, 1..=80u64, 1..=80u64];
    let one = |extent: std::ops::RangeInclusive<u64>| {
        (small(), 0..3usize, extent).prop_map(|(mut sizes, axis, extent)| {
            sizes[axis] = extent;
            sizes
        })
    };
    prop_oneof![
        16 => small(),
        4 => one(81..=700),
        4 => one(1..=1),
        1 => one(0..=0),
    ]
}

fn pair(integers: bool) -> impl Strategy<Value = (DType, DType)> {
    prop_oneof![
        4 => Just((F32, F32)),
        3 => Just((F16, F16)),
        3 => Just((BF16, BF16)),
        2 => Just(if integers { (I8, I8) } else { (F32, F32) }),
        1 => select(vec![(F32, F16), (F32, BF16), (F16, F32)]),
    ]
}

/// An index into the output dtypes that may be asked for.
fn output() -> impl Strategy<Value = Option<usize>> {
    prop_oneof![2 => Just(None), 1 => (0..3usize).prop_map(Some)]
}

fn storage() -> impl Strategy<Value = Storage> {
    prop_oneof![2 => Just(Storage::Plain), 1 => select(Storage::ALL.to_vec())]
}

/// Whether `c` is there, and along which of its last dimensions it broadcasts.
#[derive(Clone, Copy, Debug)]
enum C {
    None,
    Full,
    Row,
    Column,
    One,
}

/// A value of alpha or beta: one for data that shall stay exact, one for the rest.
#[derive(Clone, Copy, Debug)]
struct Factor {
    exact: f64,
    any: f64,
}

fn factor() -> impl Strategy<Value = Option<Factor>> {
    let factor = select(vec![
        (1.0, 1.0),
        (0.0, 0.0),
        (-1.0, 0.7),
        (2.0, -1.3),
        (0.5, 1e-3),
    ])
    .prop_map(|(exact, any)| Factor { exact, any });
    prop_oneof![2 => Just(None), 1 => factor.prop_map(Some)]
}

/// What the data is to be like, where dtype and activation allow it.
#[derive(Clone, Copy, Debug)]
enum Nature {
    Random,
    Exact,
    OneSign,
    Cancellation,
    NonFinite,
}

fn nature() -> impl Strategy<Value = Nature> {
    prop_oneof![
        4 => Just(Nature::Random),
        4 => Just(Nature::Exact),
        1 => select(vec![Nature::OneSign, Nature::Cancellation, Nature::NonFinite]),
    ]
}

/// The data of a problem, honestly classed: nothing is exact behind a smooth activation, nothing is random among integers.
fn data(nature: Nature, a: DType, smooth: bool) -> Data {
    let uniform = Fill::Uniform { scale: 1.0 };
    match (nature, a) {
        (Nature::Exact, _) if !smooth => Data::Exact(4),
        (Nature::NonFinite, I8) | (Nature::Random | Nature::Exact, I8) => Data::Adversarial(
            Fill::Integers {
                low: -128,
                high: 127,
            },
            Fill::Integers { low: -30, high: 31 },
        ),
        (Nature::Random | Nature::Exact, _) => Data::Random,
        (Nature::OneSign, _) => Data::Adversarial(
            Fill::Integers { low: 0, high: 120 },
            Fill::Integers { low: 1, high: 120 },
        ),
        (Nature::Cancellation, _) => Data::Adversarial(
            Fill::Values(vec![100.0, 1.0, -100.0, 3.0]),
            Fill::Constant(1.0),
        ),
        (Nature::NonFinite, _) => Data::Adversarial(
            Fill::Patched {
                base: Box::new(uniform.clone()),
                patches: vec![(1, Special::Nan), (7, Special::Infinity)],
            },
            Fill::Patched {
                base: Box::new(uniform),
                patches: vec![(2, Special::NegativeInfinity), (4, Special::Number(0.0))],
            },
        ),
    }
}

/// Random data must be independent, so that no two places may share an element.
fn honest(storage: Storage, data: &Data) -> Storage {
    match data {
        Data::Random if !storage.is_injective() => Storage::Padded,
        _ => storage,
    }
}
