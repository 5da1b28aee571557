//! Random cases, plain first: what fails is shrunk towards that.

use super::*;

/// Options over all attributes, plain first. `keys` is about as many as there are.
fn options_strategy() -> impl Strategy<Value = (Options, bool, bool)> {
    let dtype = prop_oneof![4 => Just(F32), 2 => Just(F16), 2 => Just(BF16)];
    let causal = prop_oneof![
        Just((false, 0u64)),
        Just((true, 0)),
        (1u64..40).prop_map(|window| (true, window)),
    ];
    let softcap = option::weighted(0.2, select(vec![30.0, 50.0, 5.0, 1.0]));
    let scale = option::weighted(0.3, select(vec![1.0, 0.125, 0.3, 0.0, -0.25]));
    let magnitude = prop_oneof![4 => Just(3.0), 1 => Just(30.0)];
    let (sinks, alibi, lse) = (
        prop::bool::weighted(0.25),
        prop::bool::weighted(0.2),
        any::<bool>(),
    );
    (dtype, causal, softcap, scale, magnitude, sinks, alibi, lse).prop_map(
        |(dtype, (causal, window), softcap, scale, magnitude, sinks, alibi, lse)| {
            let mut options = Options::new(dtype);
            options.fills[0] = uniform(magnitude);
            let mut attr = |name: &str, value: Option<Value>| {
                value.map(|value| options.attrs.insert(name.into(), value))
            };
            attr("causal", causal.then(|| true.into()));
            attr("window", (window > 0).then(|| window.into()));
            attr("softcap", softcap.map(f64::into));
            attr("scale", scale.map(f64::into));
            attr("return_lse", lse.then(|| true.into()));
            (options, sinks, alibi)
        },
    )
}

/// (kv_heads, heads / kv_heads).
fn heads_strategy() -> impl Strategy<Value = (u64, u64)> {
    (1u64..=3, 1u64..=4)
}

/// (d, dv).
fn size_strategy() -> impl Strategy<Value = (u64, u64)> {
    let size = || prop_oneof![3 => 1u64..=20, 2 => select(vec![32u64, 64, 80, 96, 128])];
    prop_oneof![
        6 => size().prop_map(|d| (d, d)),
        2 => (size(), size()),
        1 => select(vec![(192, 128), (256, 256), (576, 512)]),
    ]
}

fn mask_strategy() -> impl Strategy<Value = Option<([bool; 4], usize, Vec<u64>)>> {
    let form = (any::<[bool; 4]>(), 0usize..=4, vec(0u64..4000, 0..24));
    option::weighted(0.35, form)
}

/// Random cases of `attention`.
pub(in crate::attention) fn attention_strategy() -> BoxedStrategy<Recipe> {
    let batch = prop_oneof![1 => Just(0u64), 12 => Just(1), 12 => 2u64..=3];
    let lens = prop_oneof![
        1 => (0u64..=2, 0u64..=2),
        4 => (1u64..=20, 1u64..=60),
        2 => (Just(1u64), 1u64..=300),
    ];
    let storage = prop_oneof![
        4 => Just(Storage::Plain),
        2 => Just(Storage::TokensFirst),
        1 => Just(Storage::Interleaved),
        1 => Just(Storage::ValuesInKeys),
        1 => Just(Storage::Padded),
        1 => Just(Storage::Shared),
    ];
    let shape = (batch, heads_strategy(), lens, size_strategy());
    let kv_lens = option::weighted(0.3, vec(0u64..=64, 3));
    let seed = any::<u64>().no_shrink();
    (
        shape,
        storage,
        mask_strategy(),
        kv_lens,
        options_strategy(),
        seed,
    )
        .prop_map(
            |(shape, storage, mask, kv_lens, (options, sinks, alibi), seed)| {
                let (batch, (kv_heads, group), (q_len, kv_len), (d, dv)) = shape;
                let heads = kv_heads * group;
                let name = format!("b{batch}_h{heads}_{kv_heads}_q{q_len}_kv{kv_len}_d{d}_{dv}");
                let name = format!("{name}_{}", options.dtype.name().to_lowercase());
                let mut case = case(
                    &name,
                    options.dtype,
                    [batch, heads, kv_heads],
                    [q_len, kv_len],
                    [
                        d,
                        if storage == Storage::ValuesInKeys {
                            dv.min(d)
                        } else {
                            dv
                        },
                    ],
                );
                // The values' bytes are the keys': no longer independent of the scores.
                if storage == Storage::ValuesInKeys {
                    case = case.adversarial();
                }
                case.seed = seed;
                case.options = Options {
                    data: case.options.data,
                    ..options
                };
                if let Some((full, rank, hidden)) = mask {
                    let scores = [batch, heads, q_len, kv_len];
                    let extents = scores.iter().zip(full);
                    let shape: Vec<u64> = extents
                        .map(|(&extent, full)| if full { extent } else { 1 })
                        .skip(4 - rank)
                        .collect();
                    let elements = shape.iter().product::<u64>().max(1);
                    let hidden = hidden.into_iter().map(|at| at % elements);
                    let fill = patched(uniform(2.0), hidden, Special::NegativeInfinity);
                    case = case.mask(&shape, fill);
                }
                if let Some(parts) = kv_lens {
                    let lens = parts.iter().map(|part| (kv_len * part).div_ceil(64));
                    case.kv_lens = Some(lens.collect());
                }
                if sinks {
                    case = case.sinks(uniform(3.0));
                }
                if alibi {
                    case = case.alibi();
                }
                case.storage(storage).recipe()
            },
        )
        .boxed()
}

fn ragged_strategy(paged: bool) -> BoxedStrategy<Recipe> {
    let sequence = prop_oneof![
        1 => (0u64..=2, 0u64..=2),
        4 => (1u64..=16, 1u64..=40),
        3 => (Just(1u64), 1u64..=120),
    ];
    let storage = prop_oneof![
        4 => Just(Storage::Plain),
        1 => Just(Storage::Padded),
        1 => Just(Storage::Transposed),
        1 => Just(Storage::ValuesInKeys),
    ];
    let shape = (heads_strategy(), size_strategy(), vec(sequence, 0..=4));
    let block_size = prop_oneof![Just(16u64), 1u64..=9, Just(33)];
    let seed = any::<u64>().no_shrink();
    (shape, storage, block_size, options_strategy(), seed)
        .prop_map(move |(shape, storage, block_size, options, seed)| {
            let ((kv_heads, group), (d, dv), lens) = shape;
            let (options, sinks, alibi) = options;
            let heads = kv_heads * group;
            let (q_lens, kv_lens): (Vec<u64>, Vec<u64>) = lens.into_iter().unzip();
            let name = format!("n{}_h{heads}_{kv_heads}_d{d}_{dv}", q_lens.len());
            let name = format!("{name}_{}", options.dtype.name().to_lowercase());
            let in_keys = storage == Storage::ValuesInKeys;
            let size = [d, if in_keys { dv.min(d) } else { dv }];
            let dtype = options.dtype;
            let mut case = varlen(&name, dtype, [heads, kv_heads], size, &q_lens, &kv_lens);
            case.options = options;
            if in_keys {
                case = case.adversarial();
            }
            case.seed = seed;
            case.block_size = paged.then_some(block_size);
            if sinks {
                case = case.sinks(uniform(3.0));
            }
            if alibi {
                case = case.alibi();
            }
            case.storage(storage).recipe()
        })
        .boxed()
}

/// Random cases of `attention_varlen`.
pub(in crate::attention) fn attention_varlen_strategy() -> BoxedStrategy<Recipe> {
    ragged_strategy(false)
}

/// Random cases of `attention_paged`.
pub(in crate::attention) fn attention_paged_strategy() -> BoxedStrategy<Recipe> {
    ragged_strategy(true)
}
