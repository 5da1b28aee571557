//! Scales of 8-bit floats, and the cases that are about them.

use ropeway_core::DType::{self, BF16, F8E4M3, F16, F32};
use ropeway_core::spec::{Fill, Recipe, Special};

use super::super::check::SCALE_BLOCK;
use super::problem::{Data, Grouped, Place, Product, Storage};
use super::{SMALL, nan};

/// The scales of a problem: of `a` [rows..., k / 128], of `b` [weights..., n / 128, k / 128].
pub(super) struct Scaled<'a> {
    pub rows: &'a [u64],
    pub weights: &'a [u64],
    pub n: u64,
    pub k: u64,
    pub data: &'a Data,
    pub storage: [Option<Storage>; 2],
}

impl Scaled<'_> {
    /// Adds those that there are to `recipe`.
    pub(super) fn add_to(self, mut recipe: Recipe) -> Recipe {
        let [n, k] = [self.n, self.k].map(|extent| extent.div_ceil(SCALE_BLOCK));
        let shapes = [[self.rows, &[k]].concat(), [self.weights, &[n, k]].concat()];
        let names = ["a_scale", "b_scale"];
        for ((name, shape), storage) in names.into_iter().zip(&shapes).zip(self.storage) {
            let Some(storage) = storage else { continue };
            let place = Place {
                name,
                dtype: F32,
                shape,
                fill: self.fill(),
                storage,
                unread_rows: &[],
            };
            recipe = place.add_to(recipe);
        }
        recipe
    }

    fn fill(&self) -> Fill {
        match self.data {
            Data::Random => Fill::Uniform { scale: 1.0 },
            // Powers of two keep exact sums exact.
            Data::Exact(_) => Fill::Values(vec![1.0, -0.5, 2.0, 4.0, -1.0, 0.25, 1.0]),
            Data::Unread => nan(),
            _ => Fill::Values(vec![1.5e-3, 27.3, -0.02, 1.0, 7.7e4, 3e-7, -2.25]),
        }
    }
}

/// What a case's name says of its scales.
pub(super) fn scale_word(scales: [Option<Storage>; 2]) -> String {
    let word = |(name, storage): (&str, Option<Storage>)| match storage {
        None => String::new(),
        Some(Storage::Plain) => format!("_{name}"),
        Some(storage) => format!("_{name}_{}", storage.word()),
    };
    ["a_scale", "b_scale"]
        .into_iter()
        .zip(scales)
        .map(word)
        .collect()
}

/// Every number of F8_E4M3 that a fill of values gives, the ends of its range first.
fn extremes() -> Fill {
    let least = 2f64.powi(-9);
    Fill::Values(vec![
        448.0,
        -448.0,
        least,
        -least,
        7.0 * least,
        8.0 * least,
        0.0,
        -0.0,
        240.0,
        1.125,
        -15.0,
    ])
}

/// `gemm`.
pub(super) fn gemm() -> Vec<Product> {
    use Storage::{ColumnMajor, Padded, Plain, Repeated, Strided};
    let plain = |label, m, n, k| {
        Product::new(label, m, n, k)
            .dtype(F8E4M3)
            .trans(false, true)
            .out(BF16)
    };
    let scaled = |label, m, n, k| Product::new(label, m, n, k).scaled().out(BF16);
    let patched = |patches: &[(u64, Special)]| Fill::Patched {
        base: Box::new(Fill::Uniform { scale: 1.0 }),
        patches: patches.to_vec(),
    };
    vec![
        scaled("tiny", 1, 1, 1).out(F32),
        scaled("odd", 3, 5, 7),
        // Blocks of scales that k, m and n leave unfilled, and that they fill.
        scaled("edge", 129, 130, 129),
        scaled("edge", 127, 257, 383).out(F16),
        scaled("whole", 128, 256, 256),
        scaled("aligned", 100, 144, 208).out(F32),
        scaled("large", 200, 384, 512).out(F32),
        scaled("deep", 5, 40, 7168).out(F32),
        scaled("decode", 1, 576, 512),
        // Whole numbers, and scales that are powers of two: indices to the last bit.
        scaled("exact", 37, 150, 300).out(F32).data(SMALL),
        scaled("exact", 256, 272, 640).out(F32).data(SMALL),
        scaled("exact", 70, 129, 128).data(SMALL),
        plain("exact", 37, 53, 145).data(SMALL).out(F32),
        plain("exact", 37, 53, 145)
            .data(SMALL)
            .out(F32)
            .trans(true, false),
        // One operand's scales alone, and none.
        scaled("one_scale", 20, 140, 260).scales(Some(Plain), None),
        scaled("one_scale", 20, 140, 260)
            .scales(None, Some(Plain))
            .out(F16),
        plain("no_scale", 65, 129, 272),
        plain("no_scale", 20, 30, 40)
            .batch(&[3], &[2, 1])
            .trans(false, false)
            .out(F32),
        // The whole epilogue; c and bias are 8-bit floats too.
        scaled("epilogue", 40, 160, 256)
            .alpha(0.7)
            .c(&[40, 160])
            .beta(-1.3)
            .bias()
            .out(F32),
        scaled("epilogue", 40, 160, 200)
            .activation("gelu_tanh")
            .c(&[1, 160])
            .bias(),
        scaled("epilogue", 13, 130, 150)
            .activation("relu")
            .data(SMALL)
            .out(F32),
        scaled("epilogue", 24, 256, 272).activation("swiglu"),
        scaled("epilogue", 24, 140, 130)
            .activation("swiglu")
            .out(F32),
        // Views of everything.
        scaled("view", 40, 150, 300)
            .stored(Padded, Padded)
            .scales(Some(Padded), Some(Padded))
            .data(SMALL)
            .out(F32),
        scaled("view", 40, 150, 300)
            .stored(ColumnMajor, Strided)
            .scales(Some(ColumnMajor), Some(Strided))
            .data(SMALL)
            .out(F32),
        scaled("view", 130, 260, 256)
            .scales(Some(ColumnMajor), Some(Repeated))
            .data(SMALL)
            .out(F32),
        scaled("zero", 0, 5, 130),
        scaled("zero", 5, 0, 130),
        scaled("zero", 5, 6, 0).bias().data(SMALL).out(F32),
        // The ends of the range, and scales far apart.
        scaled("extremes", 33, 140, 400)
            .adversarial(extremes(), extremes())
            .out(F32),
        scaled("extremes", 33, 140, 400).adversarial(extremes(), Fill::Constant(448.0)),
        scaled("one_sign", 20, 140, 512)
            .adversarial(
                Fill::Integers { low: 1, high: 16 },
                Fill::Integers { low: 1, high: 16 },
            )
            .out(F32),
        scaled("cancellation", 9, 17, 300)
            .adversarial(
                Fill::Values(vec![448.0, 2f64.powi(-6), -448.0]),
                Fill::Constant(1.0),
            )
            .out(F32),
        // a is [9, 144], b is [150, 144].
        scaled("nan_row", 9, 150, 144).adversarial(
            patched(&[(3 * 144 + 130, Special::Nan)]),
            Fill::Uniform { scale: 1.0 },
        ),
        scaled("nan_column", 9, 150, 144).adversarial(
            Fill::Uniform { scale: 1.0 },
            patched(&[(4 * 144 + 3, Special::Nan), (149 * 144, Special::Nan)]),
        ),
        // Numbers of every size, and the NaN of negative sign.
        scaled("any_bits", 3, 20, 300).adversarial(
            Fill::Uniform { scale: 1.0 },
            Fill::Bits {
                pattern: vec![(0xf7, 0x00)],
            },
        ),
        scaled("negative_nan", 3, 20, 300).adversarial(
            Fill::Bits {
                pattern: [vec![(0xf7, 0x00); 301], vec![(0x00, 0xff); 299]].concat(),
            },
            Fill::Uniform { scale: 1.0 },
        ),
        scaled("unread", 9, 150, 144).alpha(0.0).data(Data::Unread),
    ]
}

fn grouped_cases(case: impl Fn(&str, &[u64], u64, u64) -> Grouped) -> Vec<Grouped> {
    use Storage::{ColumnMajor, Padded, Plain};
    let scaled = |label: &str, counts: &[u64], n, k| case(label, counts, n, k).scaled().out(BF16);
    vec![
        scaled("one", &[1], 1, 1),
        scaled("edge", &[13, 0, 5, 22], 134, 200).out(F32),
        scaled("exact", &[13, 0, 5, 22], 134, 270)
            .out(F32)
            .data(SMALL),
        scaled("exact", &[140, 3, 131], 272, 256)
            .out(F32)
            .data(SMALL),
        scaled("side_by_side", &[13, 5], 1040, 144)
            .out(F32)
            .data(SMALL),
        scaled("decode", &[1, 0, 1, 2], 130, 272).out(F16),
        scaled("swiglu", &[10, 3, 27], 256, 144).swiglu(),
        scaled("swiglu", &[1, 1, 0, 1], 96, 130).swiglu().out(F32),
        scaled("one_scale", &[5, 8, 0], 140, 150).scales(None, Some(Plain)),
        case("no_scale", &[5, 8, 0], 140, 150)
            .dtype(F8E4M3)
            .out(F32),
        scaled("view", &[11, 6, 2], 140, 150)
            .stored(Padded, Padded)
            .scales(Some(Padded), Some(ColumnMajor))
            .out(F32)
            .data(SMALL),
        scaled("zero_k", &[4, 3], 6, 0),
        scaled("zero_n", &[4, 3], 0, 5),
    ]
}

/// `grouped_gemm`.
pub(super) fn grouped_gemm() -> Vec<Grouped> {
    let mut cases = grouped_cases(Grouped::new);
    cases.push(
        Grouped::new("rest", &[5, 8, 0], 18, 150)
            .rest(6)
            .scaled()
            .out(BF16),
    );
    cases
}

/// `grouped_gemm_masked`, with room for 150 rows an expert.
pub(super) fn grouped_gemm_masked() -> Vec<Grouped> {
    grouped_cases(|label, counts, n, k| Grouped::new(label, counts, n, k).masked(150))
}

/// The dtypes of d beside 8-bit floats.
pub(super) const OUTPUTS: &[DType] = &[F32, F16, BF16];
