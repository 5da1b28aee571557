//! The cases of the gate, and the strategies that draw random ones.

use ropeway_core::DType::{self, BF16, F16, F32, I8, I32, Q4_0};
use ropeway_core::spec::{DataClass, Fill, Recipe, Special};

mod blocks;
mod eight_bits;
mod problem;
mod strategy;

use problem::{Data, Grouped, Product, Storage};
pub(super) use strategy::{gemm_strategy, grouped_gemm_masked_strategy, grouped_gemm_strategy};

/// Whole numbers of at most this magnitude: exact for every k below a million, and in every dtype.
const SMALL: Data = Data::Exact(4);

pub(super) fn gemm() -> Vec<Recipe> {
    [
        shapes(),
        exact(),
        dtypes(),
        epilogues(),
        batches(),
        views(),
        zero_sizes(),
        adversarial(),
        non_finite(),
        unread(),
        aligned(),
        weight_blocks(),
        eight_bits::gemm(),
    ]
    .concat()
    .iter()
    .map(Product::recipe)
    .chain(shared_memory())
    .collect()
}

/// Operands whose rows begin at multiples of 16 bytes, as copy engines want them, over several tiles none of which is full.
fn aligned() -> Vec<Product> {
    let case = |label| Product::new(label, 72, 144, 136);
    let mut cases = Vec::new();
    for (trans_a, trans_b) in [(false, false), (false, true), (true, false), (true, true)] {
        let exact = Product::new("aligned", 136, 272, 200)
            .trans(trans_a, trans_b)
            .data(SMALL);
        cases.extend([exact.clone().dtype(F16), exact.dtype(BF16).out(F32)]);
    }
    cases.extend([
        // Tiles one above the other.
        Product::new("aligned", 400, 264, 72)
            .dtype(BF16)
            .trans(false, true),
        // Rows of d that begin anywhere.
        Product::new("aligned", 72, 141, 136)
            .dtype(BF16)
            .trans(false, true)
            .bias(),
        // Few rows and a long k, which is split where it is split at all.
        Product::new("aligned_deep", 8, 72, 4096)
            .dtype(BF16)
            .trans(false, true)
            .c(&[8, 72])
            .beta(0.5),
        Product::new("aligned_deep", 8, 80, 2048)
            .dtype(F16)
            .trans(false, true)
            .activation("swiglu")
            .bias(),
        case("aligned_epilogue")
            .dtype(F16)
            .activation("relu")
            .bias(),
        case("aligned_epilogue")
            .dtype(BF16)
            .activation("gelu")
            .bias()
            .c(&[72, 144]),
        case("aligned_epilogue").dtype(F16).activation("gelu_tanh"),
        case("aligned_epilogue")
            .dtype(BF16)
            .activation("silu")
            .alpha(0.7)
            .c(&[1, 144])
            .beta(-1.3),
        case("aligned_epilogue").dtype(BF16).activation("swiglu"),
        case("aligned_epilogue")
            .dtype(F16)
            .trans(true, true)
            .activation("swiglu")
            .bias()
            .c(&[72, 144])
            .out(F32),
    ]);
    let batch = || Product::new("aligned_batch", 40, 72, 64).data(SMALL);
    cases.extend([
        batch().batch(&[4], &[]).dtype(F16),
        batch().batch(&[], &[3]).dtype(BF16).trans(true, true),
        batch().batch(&[2, 1], &[3]).dtype(BF16).bias(),
        batch()
            .batch(&[2, 1, 2], &[3, 1])
            .dtype(F16)
            .trans(false, true),
    ]);
    cases
}

/// Every kind of shape, with random data.
fn shapes() -> Vec<Product> {
    vec![
        Product::new("tiny", 1, 1, 1),
        Product::new("odd", 3, 5, 7),
        Product::new("prime", 31, 37, 41),
        Product::new("prime", 127, 131, 137).trans(true, true),
        Product::new("edge", 65, 129, 33).trans(false, true),
        Product::new("tall", 1000, 3, 64),
        Product::new("wide", 3, 1000, 64),
        Product::new("large", 256, 256, 256),
        Product::new("large", 193, 385, 257)
            .dtype(F16)
            .trans(false, true),
        // Rows that whole vectors begin and end, over several tiles and slices of k.
        Product::new("tiles", 144, 264, 320).dtype(BF16),
        Product::new("tiles", 80, 200, 320)
            .dtype(F16)
            .trans(false, true),
        // Lengths at which one dropped product must not pass.
        Product::new("deep", 8, 24, 1024).trans(false, true),
        Product::new("deep", 5, 33, 16384).trans(false, true),
        Product::new("deep", 17, 9, 4099).dtype(BF16).out(F32),
        Product::new("gemv", 1, 1000, 513),
        Product::new("gemv", 1, 1000, 512).trans(false, true),
        Product::new("gemv", 1, 515, 1027)
            .dtype(BF16)
            .trans(false, true),
        Product::new("gemv", 1000, 1, 257).dtype(F16),
        Product::new("skinny", 2, 514, 300).trans(false, true),
        Product::new("skinny", 4, 257, 512)
            .dtype(F16)
            .trans(false, true),
        Product::new("skinny", 8, 515, 260),
        Product::new("skinny", 16, 130, 511)
            .dtype(BF16)
            .trans(false, true),
    ]
}

/// Whole numbers: every argument about indices, transposes and edges is settled to the last bit.
fn exact() -> Vec<Product> {
    let mut cases = Vec::new();
    for dtype in [F32, F16, BF16, I8] {
        for (trans_a, trans_b) in [(false, false), (false, true), (true, false), (true, true)] {
            cases.push(
                Product::new("exact", 37, 53, 45)
                    .dtype(dtype)
                    .trans(trans_a, trans_b)
                    .data(SMALL),
            );
        }
    }
    cases.push(
        Product::new("exact", 130, 70, 257)
            .data(SMALL)
            .trans(false, true),
    );
    // Several blocks in every direction, none of them full.
    cases.push(Product::new("exact_blocks", 261, 530, 601).data(SMALL));
    // Rows that whole vectors begin and end, over several tiles and slices of k.
    cases.push(
        Product::new("exact_tiles", 72, 136, 512)
            .dtype(I8)
            .trans(false, true)
            .data(SMALL),
    );
    // Sums beyond 2^11 and 2^8: the output must be rounded to nearest even, not cut.
    cases.push(
        Product::new("exact_rounded", 19, 23, 200)
            .dtype(F16)
            .data(Data::Exact(50)),
    );
    cases.push(
        Product::new("exact_rounded", 19, 23, 200)
            .dtype(BF16)
            .data(Data::Exact(16)),
    );
    // The widest integers, up to the corners of the type.
    cases.push(
        Product::new("exact_full_range", 9, 21, 1000)
            .dtype(I8)
            .adversarial(
                Fill::Integers {
                    low: -128,
                    high: 127,
                },
                Fill::Integers {
                    low: -128,
                    high: 127,
                },
            ),
    );
    cases
}

/// Pairs, and outputs of another dtype.
fn dtypes() -> Vec<Product> {
    let case = || Product::new("dtypes", 21, 34, 55);
    vec![
        case().pair(F32, F16),
        case().pair(F32, BF16).trans(false, true),
        case().pair(F16, F32),
        case().pair(F32, F16).trans(false, true).data(SMALL),
        case().out(F16),
        case().out(BF16),
        case().dtype(F16).out(F32),
        case().dtype(BF16).out(F16),
        case().dtype(I8).out(I8).data(Data::Exact(3)),
        // Most of these sums lie beyond 127.
        case()
            .dtype(I8)
            .out(I8)
            .data(Data::Exact(30))
            .trans(false, true),
        case().dtype(I8).out(F32).data(Data::Exact(100)),
    ]
}

fn epilogues() -> Vec<Product> {
    let case = || Product::new("epilogue", 13, 26, 40);
    let mut cases = vec![
        case().activation("relu").bias(),
        case().activation("gelu").bias().trans(false, true),
        case().activation("gelu_tanh"),
        case().activation("silu"),
        case().activation("gelu").dtype(F16).bias(),
        case().activation("silu").dtype(BF16),
        case().activation("swiglu"),
        case().activation("swiglu").dtype(BF16).bias().c(&[13, 26]),
        case().alpha(0.7).c(&[13, 26]).beta(-1.3).bias(),
        case().alpha(-2.0).c(&[1, 26]).beta(0.5).data(SMALL),
        case().c(&[13, 1]).bias().data(SMALL).dtype(F16),
        case().c(&[1, 1]).beta(-1.0).data(SMALL).dtype(BF16),
        case().dtype(I8).c(&[13, 26]).bias().data(Data::Exact(100)),
        case()
            .dtype(I8)
            .activation("relu")
            .bias()
            .out(I8)
            .data(Data::Exact(4)),
        // Ties at one half: to even.
        case()
            .dtype(I8)
            .alpha(0.5)
            .c(&[13, 1])
            .out(I8)
            .data(Data::Exact(3)),
    ];
    // In f32, then rounded and saturated.
    let scaled_integers = || Fill::Integers { low: -9, high: 9 };
    cases.extend([
        case()
            .dtype(I8)
            .alpha(0.013)
            .c(&[13, 26])
            .beta(0.3)
            .adversarial(scaled_integers(), scaled_integers()),
        case()
            .dtype(I8)
            .alpha(0.01)
            .activation("swiglu")
            .out(F32)
            .adversarial(scaled_integers(), scaled_integers()),
    ]);
    cases
}

/// Leading dimensions that broadcast.
fn batches() -> Vec<Product> {
    let case = || Product::new("batch", 7, 18, 12).data(SMALL);
    vec![
        case().batch(&[4], &[4]),
        case().batch(&[5], &[]).trans(false, true),
        case().batch(&[], &[5]).dtype(F16),
        case().batch(&[2, 1], &[3]).bias(),
        case().batch(&[1, 4], &[2, 1]).trans(true, true).dtype(BF16),
        case().batch(&[3], &[2, 1]).c(&[2, 2, 3, 7, 18]),
        case().batch(&[], &[]).c(&[3, 1, 18]).beta(2.0),
        case().batch(&[2, 1, 2], &[3, 1]).dtype(I8),
    ]
}

/// Operands that a view picks out of memory which holds NaN elsewhere.
fn views() -> Vec<Product> {
    use Storage::{ColumnMajor, Interleaved, Padded, Plain, Repeated, Sliding, Strided};
    let case = || Product::new("view", 22, 35, 19);
    let mut c_padded = case().data(SMALL).c(&[22, 35]);
    c_padded.storage[2] = Padded;
    let mut c_column_major = case().dtype(F16).c(&[22, 35]).bias();
    c_column_major.storage[2] = ColumnMajor;
    vec![
        case().stored(Padded, Padded),
        case()
            .stored(Padded, Padded)
            .trans(true, true)
            .dtype(F16)
            .data(SMALL),
        case().stored(ColumnMajor, Plain).data(SMALL),
        case().stored(Plain, ColumnMajor).dtype(BF16).data(SMALL),
        case().stored(Strided, Strided).data(SMALL),
        case().stored(Strided, Plain).trans(false, true).dtype(F16),
        case()
            .stored(Interleaved, Interleaved)
            .batch(&[3], &[3])
            .data(SMALL),
        case()
            .stored(Interleaved, Padded)
            .batch(&[2, 3], &[3])
            .trans(false, true),
        case().stored(Sliding, Plain).data(SMALL),
        case().stored(Repeated, Sliding).data(SMALL).dtype(I8),
        Product::new("view_gemv", 1, 300, 257)
            .stored(Strided, Padded)
            .trans(false, true),
        c_padded,
        c_column_major,
    ]
}

/// Operands that are windows into one tensor.
fn shared_memory() -> Vec<Recipe> {
    let exact = |name: &str| Recipe::new("gemm", name, DataClass::Exact, 11);
    let small = Fill::Integers { low: -4, high: 4 };
    vec![
        // A · Aᵀ: both operands are the same elements.
        exact("shared_gram_m21_n21_k33_f32")
            .tensor("x", F32, &[21, 33], small.clone())
            .view("a", "x", &[21, 33], &[33, 1], 0)
            .view("b", "x", &[33, 21], &[1, 33], 0),
        // Four heads of queries and keys as one projection stores them: [tokens, 2, heads, head_dim].
        exact("shared_heads_b4_m12_n12_k16_f16")
            .tensor("qk", F16, &[12, 2, 4, 16], small.clone())
            .view("a", "qk", &[4, 12, 16], &[16, 128, 1], 0)
            .view("b", "qk", &[4, 12, 16], &[16, 128, 1], 64)
            .attr("trans_b", true),
        // Everything out of one vector, overlapping, at odd offsets.
        exact("shared_overlapping_m9_n10_k8_f32")
            .tensor("pool", F32, &[120], small)
            .view("a", "pool", &[9, 8], &[3, 2], 1)
            .view("b", "pool", &[8, 10], &[5, 1], 7)
            .view("c", "pool", &[9, 10], &[0, 11], 13)
            .view("bias", "pool", &[10], &[1], 3),
    ]
}

/// Nothing to read, nothing to write, or nothing to sum.
fn zero_sizes() -> Vec<Product> {
    vec![
        Product::new("zero", 0, 5, 7),
        Product::new("zero", 5, 0, 7).dtype(F16),
        Product::new("zero", 5, 6, 0),
        Product::new("zero", 5, 6, 0)
            .c(&[5, 1])
            .bias()
            .activation("relu")
            .data(SMALL),
        Product::new("zero", 5, 6, 0).dtype(I8).data(SMALL),
        Product::new("zero", 5, 6, 0)
            .activation("swiglu")
            .trans(true, true),
        Product::new("zero", 5, 6, 4).batch(&[0], &[1]),
    ]
}

/// Data that random numbers never show.
fn adversarial() -> Vec<Product> {
    let values = |values: &[f64]| Fill::Values(values.to_vec());
    let one_sign = || Fill::Integers { low: 1, high: 1000 };
    vec![
        Product::new("one_sign", 11, 30, 700).adversarial(one_sign(), one_sign()),
        Product::new("one_sign", 11, 30, 700)
            .dtype(BF16)
            .trans(false, true)
            .adversarial(one_sign(), one_sign()),
        // Large terms that cancel and leave the small ones.
        Product::new("cancellation", 9, 17, 300)
            .adversarial(values(&[4096.0, 1e-3, -4096.0]), values(&[1.0])),
        Product::new("cancellation", 9, 17, 120)
            .dtype(F16)
            .out(F32)
            .adversarial(values(&[1000.0, 0.25, -1000.0]), values(&[2.0])),
        Product::new("huge_range", 9, 17, 50).adversarial(
            values(&[1e-12, 3e7, -2e-3, 1e15, 7.0]),
            values(&[1e10, -1e-9, 0.5]),
        ),
        // 60 · 400 · 400: beyond f16, but not beyond the accumulator.
        Product::new("overflow", 6, 10, 60)
            .dtype(F16)
            .adversarial(Fill::Constant(400.0), values(&[400.0, -400.0])),
        // Partial sums beyond f16 that come back.
        Product::new("f16_accumulator", 6, 10, 64)
            .dtype(F16)
            .trans(false, true)
            .adversarial(
                values(&[vec![200.0; 32], vec![-200.0; 32]].concat()),
                Fill::Constant(150.0),
            ),
        Product::new("overflow", 6, 10, 8)
            .adversarial(Fill::Constant(1e20), values(&[1e20, -1e20])),
        Product::new("overflow", 6, 10, 60)
            .out(F16)
            .bias()
            .adversarial(Fill::Constant(40.0), Fill::Uniform { scale: 40.0 }),
        Product::new("subnormal_inputs", 6, 10, 33)
            .adversarial(values(&[1e-39, -3e-40, 2e-41, 7e-39]), Fill::Constant(1e38)),
        Product::new("subnormal_inputs", 6, 10, 33)
            .dtype(F16)
            .out(F32)
            .adversarial(values(&[6e-8, -5e-5, 3e-6]), Fill::Constant(1000.0)),
        Product::new("subnormal_outputs", 6, 10, 33)
            .dtype(F16)
            .adversarial(values(&[1e-3, 2e-4]), values(&[1e-4, 3e-3, 2e-4])),
    ]
}

/// NaN and infinity reach the elements whose maths reads them, and no others.
fn non_finite() -> Vec<Product> {
    let uniform = || Fill::Uniform { scale: 1.0 };
    let patched = |patches: &[(u64, Special)]| Fill::Patched {
        base: Box::new(uniform()),
        patches: patches.to_vec(),
    };
    use Special::{Infinity, Nan, NegativeInfinity, Number};
    let case = |label| Product::new(label, 9, 20, 14);
    // a is [9, 14], b is [14, 20].
    let nan_in_a = || patched(&[(3 * 14 + 5, Nan)]);
    let infinite_row = || patched(&[(2 * 14 + 7, Infinity), (6 * 14, NegativeInfinity)]);
    vec![
        case("nan_row").adversarial(nan_in_a(), uniform()),
        case("nan_row")
            .dtype(F16)
            .trans(false, true)
            .adversarial(nan_in_a(), uniform()),
        case("nan_row")
            .activation("relu")
            .adversarial(nan_in_a(), uniform()),
        case("nan_row")
            .activation("gelu_tanh")
            .dtype(BF16)
            .adversarial(nan_in_a(), uniform()),
        case("nan_column")
            .activation("swiglu")
            .adversarial(uniform(), patched(&[(4 * 20 + 3, Nan), (4 * 20 + 15, Nan)])),
        case("nan_gemv_column")
            .size_m(1)
            .trans(false, true)
            .adversarial(
                uniform(),
                patched(&[(3 * 14 + 5, Nan), (19 * 14, Infinity)]),
            ),
        case("infinite_row").adversarial(infinite_row(), uniform()),
        case("infinite_row")
            .dtype(BF16)
            .trans(false, true)
            .adversarial(infinite_row(), uniform()),
        // 0 · ∞ inside a product is NaN.
        case("zero_times_infinity").adversarial(
            patched(&[(14 + 3, Number(0.0)), (5 * 14 + 3, Number(0.0))]),
            patched(&[(3 * 20 + 11, Infinity)]),
        ),
        case("infinity_minus_infinity")
            .activation("relu")
            .adversarial(
                patched(&[(14 + 3, Infinity), (14 + 4, Infinity)]),
                patched(&[(3 * 20 + 11, Number(1.0)), (4 * 20 + 11, Number(-1.0))]),
            ),
    ]
}

/// NaN everywhere.
fn nan() -> Fill {
    Fill::Poisoned {
        base: Box::new(Fill::Constant(0.0)),
        period: 1,
        begin: 0,
        end: 1,
    }
}

/// Weights in GGML's blocks, rows of k. Every kernel reads the five formats by the same code but for what a group of weights is, so that
/// only two of them go through every corner of it.
fn weight_blocks() -> Vec<Product> {
    use Storage::{Padded, Plain, Repeated, Strided};
    let mut cases = Vec::new();
    for format in DType::GGML_BLOCKS {
        let step = format.block().expect("a format of blocks").elements;
        let case = |label, m, n, blocks: u64| {
            let product = Product::new(label, m, n, blocks * step).trans(false, true);
            move |a| product.clone().pair(a, format)
        };
        cases.extend([
            case("blocks_exact", 1, 70, 3)(F32).data(SMALL),
            case("blocks_exact", 3, 33, 4)(F16).data(SMALL),
            case("blocks_exact", 8, 47, 2)(F32).data(SMALL),
            case("blocks_exact", 41, 67, 2)(F32).data(SMALL),
            case("blocks_gemv", 1, 515, 2048 / step)(F32),
            case("blocks", 65, 129, 1280 / step)(F32).out(F16),
            case("blocks_view", 21, 37, 3)(F32)
                .stored(Padded, Padded)
                .data(SMALL),
            case("blocks_nan", 1, 40, 2)(F32).data(Data::NanBlocks(vec![3, 78])),
            case("blocks_nan", 17, 40, 2)(F32).data(Data::NanBlocks(vec![3, 78])),
            case("blocks_any_scale", 7, 36, 5)(F32)
                .adversarial(Fill::Values(vec![1000.0, 1e-3, -7.0]), Fill::Constant(0.0)),
        ]);
        if !matches!(format, Q4_0 | DType::Q6K) {
            continue;
        }
        cases.extend([
            case("blocks_one", 1, 1, 1)(F32),
            case("blocks_exact", 70, 3, 2)(F16).data(SMALL).out(F32),
            case("blocks_gemv", 2, 130, 1536 / step)(F16),
            case("blocks_gemv", 5, 96, 1024 / step)(F32),
            case("blocks", 9, 40, 768 / step)(F16).bias(),
            case("blocks_deep", 1, 24, 16384 / step)(F32),
            case("blocks_batch", 4, 18, 2)(F32)
                .batch(&[2, 1], &[3])
                .c(&[4, 18])
                .alpha(0.5)
                .data(SMALL),
            case("blocks_batch", 1, 34, 1)(F16)
                .batch(&[3], &[])
                .data(SMALL),
            case("blocks_swiglu", 1, 50, 3)(F32).activation("swiglu"),
            case("blocks_swiglu", 19, 70, 2)(F32).activation("swiglu"),
            case("blocks_view", 1, 37, 3)(F32).stored(Strided, Padded),
            case("blocks_view", 2, 33, 2)(F32)
                .stored(Plain, Repeated)
                .data(SMALL),
            case("blocks_zero", 0, 6, 2)(F32),
            case("blocks_zero", 5, 0, 2)(F32),
            case("blocks_zero", 5, 6, 0)(F32).bias(),
        ]);
    }
    let mut unread = Product::new("blocks_unread", 1, 40, 64)
        .trans(false, true)
        .pair(F32, Q4_0)
        .alpha(0.0)
        .bias()
        .data(Data::Unread);
    unread.c_fill = Some(Fill::Uniform { scale: 1.0 });
    cases.push(unread);
    cases
}

/// The same for experts.
fn expert_blocks(masked: Option<u64>) -> Vec<Grouped> {
    let mut cases = Vec::new();
    for format in DType::GGML_BLOCKS {
        let step = format.block().expect("a format of blocks").elements;
        let case = |label, counts: &[u64], n, blocks: u64| {
            let grouped = Grouped::new(label, counts, n, blocks * step);
            match masked {
                Some(capacity) => grouped.masked(capacity),
                None => grouped,
            }
        };
        cases.extend([
            case("blocks_exact", &[7, 0, 1, 12], 35, 2)
                .pair(F32, format)
                .data(SMALL),
            case("blocks_decode", &[1, 0, 1, 1], 130, 768 / step).pair(F16, format),
            case("blocks_swiglu", &[5, 0, 18], 64, 2)
                .pair(F32, format)
                .swiglu(),
            case("blocks_view", &[4, 9], 26, 2)
                .pair(F32, format)
                .stored(Storage::Padded, Storage::Padded)
                .data(SMALL),
            case("blocks_nan", &[2, 3], 9, 1)
                .pair(F32, format)
                .data(Data::NanBlocks(vec![2, 17])),
        ]);
    }
    cases
}

/// Operands that a factor of zero leaves unread hold NaN.
fn unread() -> Vec<Product> {
    let uniform = || Fill::Uniform { scale: 1.0 };
    let case = || Product::new("unread", 9, 20, 14);
    let mut alpha_zero = case()
        .alpha(0.0)
        .c(&[9, 20])
        .bias()
        .adversarial(nan(), nan());
    alpha_zero.c_fill = Some(uniform());
    let mut alpha_zero_gemv = Product::new("unread", 1, 20, 300)
        .alpha(0.0)
        .dtype(F16)
        .trans(false, true)
        .adversarial(nan(), nan());
    alpha_zero_gemv.c_fill = Some(uniform());
    let mut beta_zero = case()
        .beta(0.0)
        .c(&[9, 20])
        .adversarial(uniform(), uniform());
    beta_zero.c_fill = Some(nan());
    let mut both_zero = case()
        .alpha(0.0)
        .beta(0.0)
        .c(&[1, 20])
        .adversarial(nan(), nan());
    both_zero.c_fill = Some(nan());
    vec![alpha_zero, alpha_zero_gemv, beta_zero, both_zero]
}

pub(super) fn grouped_gemm() -> Vec<Recipe> {
    let case = Grouped::new;
    [
        case("one", &[1], 1, 1),
        case("unaligned", &[3, 17, 1, 30], 41, 29),
        case("exact", &[13, 0, 5, 22], 34, 27).data(SMALL),
        case("exact", &[13, 0, 5, 22], 34, 27)
            .dtype(F16)
            .data(SMALL),
        case("exact", &[13, 0, 5, 22], 34, 27)
            .dtype(BF16)
            .data(SMALL)
            .out(F32),
        case("empty_experts", &[0, 0, 9, 0, 4, 0], 24, 40).data(SMALL),
        case("no_rows", &[0, 0, 0], 24, 40),
        case("one_expert_takes_all", &[0, 0, 90, 0, 0, 0, 0, 0], 48, 64),
        case("first_expert_takes_all", &[70, 0, 0], 20, 33).dtype(BF16),
        case("decode", &[1, 0, 1, 1, 0, 0, 1, 1], 130, 257),
        case("rest", &[5, 8, 0], 18, 21).rest(6),
        case("rest", &[5, 8, 0], 18, 21).rest(6).swiglu().dtype(F16),
        case("rest_only", &[0, 0], 18, 21).rest(4).data(SMALL),
        case("swiglu", &[10, 3, 27], 64, 48).swiglu(),
        case("swiglu", &[1, 1, 0, 1], 96, 130).swiglu().dtype(BF16),
        case("many_experts", &[2; 40], 16, 24).data(SMALL),
        case("zero_k", &[4, 3], 6, 0),
        case("zero_k", &[4, 3], 6, 0).swiglu(),
        case("zero_n", &[4, 3], 0, 5),
        case("no_expert", &[], 6, 5).rest(3),
        case("pair", &[12, 7], 30, 44).pair(F32, F16),
        case("pair", &[12, 7], 30, 44).pair(F16, F32),
        case("view", &[11, 6, 2], 26, 31).stored(Storage::Padded, Storage::Padded),
        case("view", &[11, 6, 2], 26, 31)
            .stored(Storage::ColumnMajor, Storage::Strided)
            .data(SMALL),
        case("deep", &[4, 3], 20, 4096).dtype(F16),
        case("large", &[100, 31, 0, 69], 192, 256),
        case("tiles", &[40, 0, 30], 136, 256).dtype(BF16),
        case("aligned", &[130, 0, 3, 77], 136, 72)
            .rest(9)
            .dtype(BF16)
            .data(SMALL),
        case("aligned", &[16, 33, 0, 64], 272, 72)
            .swiglu()
            .dtype(F16),
        case("aligned", &[5, 48], 33, 72).dtype(BF16).out(F32),
        // Two tiles of 256 columns side by side; nine.
        case("side_by_side", &[66, 0, 3, 40], 328, 136)
            .rest(9)
            .dtype(BF16)
            .data(SMALL),
        case("side_by_side", &[20, 1], 2056, 72).dtype(F16),
        case("nan_row", &[5, 4], 12, 14).data(nan_row()),
    ]
    .iter()
    .chain(&expert_blocks(None))
    .chain(&eight_bits::grouped_gemm())
    .map(Grouped::recipe)
    .chain([offsets_inside_a_tensor()])
    .collect()
}

/// The offsets are a window: the layers of a network share one tensor of them.
fn offsets_inside_a_tensor() -> Recipe {
    let small = Fill::Integers { low: -4, high: 4 };
    let offsets = [-1.0, 900.0, 77.0, 0.0, 4.0, 4.0, 11.0, -5.0];
    Recipe::new(
        "grouped_gemm",
        "offsets_view_e3_rows11_n17_k20_f32",
        DataClass::Exact,
        11,
    )
    .tensor("a", F32, &[11, 20], small.clone())
    .tensor("b", F32, &[3, 17, 20], small)
    .tensor("offsets", I32, &[8], Fill::Values(offsets.to_vec()))
    .view("expert_offsets", "offsets", &[4], &[1], 3)
}

pub(super) fn grouped_gemm_masked() -> Vec<Recipe> {
    let case =
        |label, counts: &[u64], capacity, n, k| Grouped::new(label, counts, n, k).masked(capacity);
    [
        case("one", &[1], 1, 1, 1),
        case("ragged", &[3, 0, 16, 9], 16, 41, 29),
        case("exact", &[13, 0, 20, 7], 20, 34, 27).data(SMALL),
        case("exact", &[13, 0, 20, 7], 20, 34, 27)
            .dtype(F16)
            .data(SMALL),
        case("exact", &[13, 0, 20, 7], 20, 34, 27)
            .dtype(BF16)
            .data(SMALL)
            .out(F32),
        case("empty", &[0, 0, 0], 8, 24, 40),
        case("full", &[8, 8, 8], 8, 24, 40),
        case("decode", &[1, 0, 1, 1], 4, 130, 257).dtype(BF16),
        case("swiglu", &[10, 0, 27], 30, 64, 48).swiglu(),
        case("swiglu", &[1, 2, 0], 5, 96, 130).swiglu().dtype(F16),
        case("zero_k", &[4, 3], 5, 6, 0),
        case("zero_capacity", &[0, 0], 0, 6, 5),
        case("pair", &[12, 7], 13, 30, 44).pair(F32, BF16),
        case("view", &[11, 6, 2], 12, 26, 31).stored(Storage::Padded, Storage::Padded),
        case("view", &[11, 6, 2], 12, 26, 31)
            .stored(Storage::Interleaved, Storage::ColumnMajor)
            .data(SMALL),
        case("large", &[100, 31, 64], 128, 192, 256),
        case("aligned", &[130, 0, 3, 77], 140, 136, 72)
            .dtype(F16)
            .data(SMALL),
        case("side_by_side", &[66, 0, 3, 40], 80, 328, 136)
            .dtype(F16)
            .data(SMALL),
        case("aligned", &[16, 33, 0, 5], 40, 80, 72)
            .swiglu()
            .dtype(BF16)
            .out(F32),
        case("nan_row", &[5, 4], 6, 12, 14).data(nan_row()),
    ]
    .iter()
    .chain(&expert_blocks(Some(21)))
    .chain(&eight_bits::grouped_gemm_masked())
    .map(Grouped::recipe)
    .collect()
}

/// NaN in row 3 of a k of 14.
fn nan_row() -> Data {
    let uniform = Fill::Uniform { scale: 1.0 };
    Data::Adversarial(
        Fill::Patched {
            base: Box::new(uniform.clone()),
            patches: vec![(3 * 14 + 5, Special::Nan)],
        },
        uniform,
    )
}

/// The output dtypes that may be asked for.
fn outputs(a: DType) -> &'static [DType] {
    match a {
        I8 => &[I32, I8, F32],
        _ => &[F32, F16, BF16],
    }
}

#[cfg(test)]
mod tests;
