//! Problems in few words, and how they become recipes: names, fills, and tensors stored in all the ways that a view can undo.

use ropeway_core::DType;
use ropeway_core::spec::{DataClass, Fill, Recipe, seed_of};

use super::blocks::Weights;
use super::eight_bits::{Scaled, scale_word};

/// How an operand [batch..., rows, columns] lies in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum Storage {
    /// Row-major, no view.
    #[default]
    Plain,
    /// Rows of NaN beside the columns: a leading dimension greater than the columns, and an offset.
    Padded,
    /// Every other element is NaN: innermost stride 2.
    Strided,
    /// Column-major: transposed by strides.
    ColumnMajor,
    /// [rows, batch, columns], as the heads of tokens lie.
    Interleaved,
    /// A window that slides by two elements from row to row. Elements are shared.
    Sliding,
    /// One row for all: stride 0. Elements are shared.
    Repeated,
}

impl Storage {
    pub(super) const ALL: [Storage; 7] = [
        Storage::Plain,
        Storage::Padded,
        Storage::ColumnMajor,
        Storage::Strided,
        Storage::Interleaved,
        Storage::Sliding,
        Storage::Repeated,
    ];

    /// Whether each element has a place of its own, as independent data must.
    pub(super) fn is_injective(self) -> bool {
        !matches!(self, Storage::Sliding | Storage::Repeated)
    }

    pub(super) fn word(self) -> &'static str {
        match self {
            Storage::Plain => "plain",
            Storage::Padded => "padded",
            Storage::Strided => "strided",
            Storage::ColumnMajor => "column_major",
            Storage::Interleaved => "interleaved",
            Storage::Sliding => "sliding",
            Storage::Repeated => "repeated",
        }
    }
}

/// An operand of a recipe.
#[derive(Clone, Debug)]
pub(super) struct Place<'a> {
    pub name: &'a str,
    pub dtype: DType,
    /// [batch..., rows, columns].
    pub shape: &'a [u64],
    pub fill: Fill,
    pub storage: Storage,
    /// Rows (all batches counted through) that must not be read.
    pub unread_rows: &'a [(u64, u64)],
}

impl Place<'_> {
    /// Adds the operand to `recipe`, as a view if it is not stored plainly.
    pub(super) fn add_to(self, recipe: Recipe) -> Recipe {
        let [batch @ .., rows, columns] = self.shape else {
            unreachable!("operands of products have two dimensions")
        };
        let (rows, columns) = (*rows, *columns);
        let batches: u64 = batch.iter().product();
        // Strides of one matrix and of one step through the batch, with the storage that they need.
        let (row, column, matrix, offset, stored) = match self.storage {
            _ if batches * rows * columns == 0 => (columns, 1, 0, 0, vec![0]),
            Storage::Plain => (columns, 1, rows * columns, 0, self.shape.to_vec()),
            Storage::Padded => {
                let lead = columns + 3;
                (lead, 1, rows * lead, 2, vec![batches, rows, lead])
            }
            Storage::Strided => {
                let lead = columns * 2;
                (lead, 2, rows * lead, 0, vec![batches, rows, lead])
            }
            Storage::ColumnMajor => (1, rows, rows * columns, 0, vec![batches, columns, rows]),
            Storage::Interleaved => {
                let stored = vec![rows, batches, columns];
                (batches * columns, 1, columns, 0, stored)
            }
            Storage::Sliding => {
                let matrix = (rows - 1) * 2 + columns;
                (2, 1, matrix, 0, vec![batches, matrix])
            }
            Storage::Repeated => (0, 1, columns, 0, vec![batches, columns]),
        };
        let fill = self.poisoned(row, batches * rows, offset);
        if self.storage == Storage::Plain {
            return recipe.tensor(self.name, self.dtype, self.shape, fill);
        }
        let mut strides = vec![column, row];
        let mut next = matrix;
        for extent in batch.iter().rev() {
            strides.push(next);
            next *= extent;
        }
        strides.reverse();
        let storage = format!("{}_stored", self.name);
        recipe
            .tensor(&storage, self.dtype, &stored, fill)
            .view(self.name, &storage, self.shape, &strides, offset)
    }

    /// The fill with NaN wherever a right kernel does not look. `row` is the stride of rows where rows lie apart.
    fn poisoned(&self, row: u64, rows: u64, offset: u64) -> Fill {
        let poison = |fill: Fill, period: u64, begin: u64, end: u64| match begin < end {
            true => Fill::Poisoned {
                base: Box::new(fill),
                period,
                begin,
                end,
            },
            false => fill,
        };
        let mut fill = self.fill.clone();
        let columns = self.shape[self.shape.len() - 1];
        match self.storage {
            Storage::Padded => {
                fill = poison(fill, row, 0, offset);
                fill = poison(fill, row, offset + columns, row);
            }
            Storage::Strided => fill = poison(fill, 2, 1, 2),
            Storage::Plain => {}
            // Rows have no ranges of their own.
            _ => return fill,
        }
        for &(begin, end) in self.unread_rows {
            fill = poison(fill, rows * row, begin * row, end * row);
        }
        fill
    }
}

/// What the operands of a problem hold.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Data {
    /// Uniform in [-1, 1).
    Random,
    /// Whole numbers of at most this magnitude, exact in the accumulator.
    Exact(i64),
    /// This in `a` and that in `b`; judged in the worst case.
    Adversarial(Fill, Fill),
    /// Random, with NaN for the scale of these of b's blocks.
    NanBlocks(Vec<u64>),
    /// NaN in a and in b's blocks, which a factor of zero leaves unread.
    Unread,
}

impl Data {
    pub(super) fn class(&self) -> DataClass {
        match self {
            Data::Random => DataClass::Random,
            Data::Exact(_) => DataClass::Exact,
            Data::Adversarial(..) | Data::NanBlocks(_) | Data::Unread => DataClass::Adversarial,
        }
    }

    pub(super) fn a(&self) -> Fill {
        match self {
            Data::Adversarial(a, _) => a.clone(),
            Data::Unread => super::nan(),
            _ => self.addend(),
        }
    }

    pub(super) fn b(&self) -> Fill {
        match self {
            Data::Adversarial(_, b) => b.clone(),
            _ => self.addend(),
        }
    }

    /// What `c` and `bias` hold.
    fn addend(&self) -> Fill {
        match self {
            Data::Exact(high) => Fill::Integers {
                low: -high,
                high: *high,
            },
            _ => Fill::Uniform { scale: 1.0 },
        }
    }
}

/// A `gemm` in few words.
#[derive(Clone, Debug)]
pub(super) struct Product {
    pub label: String,
    pub size: [u64; 3],
    pub a: DType,
    pub b: DType,
    pub out: Option<DType>,
    pub trans_a: bool,
    pub trans_b: bool,
    pub a_batch: Vec<u64>,
    pub b_batch: Vec<u64>,
    /// The shape of `c`.
    pub c: Option<Vec<u64>>,
    pub bias: bool,
    pub alpha: Option<f64>,
    pub beta: Option<f64>,
    pub activation: &'static str,
    pub storage: [Storage; 3],
    pub data: Data,
    /// Where the data comes from; by default, it follows from the name.
    pub seed: Option<u64>,
    /// What `c` and `bias` hold, if not what the data says.
    pub c_fill: Option<Fill>,
    /// How the scales of a and of b are stored, where there are some.
    pub scales: [Option<Storage>; 2],
}

/// Whether b is stored in blocks of weights.
fn is_blocks(b: DType) -> bool {
    DType::GGML_BLOCKS.contains(&b)
}

impl Product {
    /// Random F32 data, everything else at its default.
    pub(super) fn new(label: &str, m: u64, n: u64, k: u64) -> Product {
        Product {
            label: label.into(),
            size: [m, n, k],
            a: DType::F32,
            b: DType::F32,
            out: None,
            trans_a: false,
            trans_b: false,
            a_batch: Vec::new(),
            b_batch: Vec::new(),
            c: None,
            bias: false,
            alpha: None,
            beta: None,
            activation: "none",
            storage: [Storage::Plain; 3],
            data: Data::Random,
            seed: None,
            c_fill: None,
            scales: [None; 2],
        }
    }

    /// 8-bit floats, b transposed, with both scales.
    pub(super) fn scaled(mut self) -> Product {
        self.scales = [Some(Storage::Plain); 2];
        self.dtype(DType::F8E4M3).trans(false, true)
    }

    pub(super) fn scales(mut self, a: Option<Storage>, b: Option<Storage>) -> Product {
        self.scales = [a, b];
        self
    }

    pub(super) fn size_m(mut self, m: u64) -> Product {
        self.size[0] = m;
        self
    }

    pub(super) fn dtype(self, dtype: DType) -> Product {
        self.pair(dtype, dtype)
    }

    pub(super) fn pair(mut self, a: DType, b: DType) -> Product {
        (self.a, self.b) = (a, b);
        self
    }

    pub(super) fn out(mut self, out: DType) -> Product {
        self.out = Some(out);
        self
    }

    pub(super) fn trans(mut self, trans_a: bool, trans_b: bool) -> Product {
        (self.trans_a, self.trans_b) = (trans_a, trans_b);
        self
    }

    pub(super) fn batch(mut self, a: &[u64], b: &[u64]) -> Product {
        (self.a_batch, self.b_batch) = (a.into(), b.into());
        self
    }

    pub(super) fn c(mut self, shape: &[u64]) -> Product {
        self.c = Some(shape.into());
        self
    }

    pub(super) fn bias(mut self) -> Product {
        self.bias = true;
        self
    }

    pub(super) fn alpha(mut self, alpha: f64) -> Product {
        self.alpha = Some(alpha);
        self
    }

    pub(super) fn beta(mut self, beta: f64) -> Product {
        self.beta = Some(beta);
        self
    }

    pub(super) fn activation(mut self, activation: &'static str) -> Product {
        self.activation = activation;
        self
    }

    pub(super) fn stored(mut self, a: Storage, b: Storage) -> Product {
        (self.storage[0], self.storage[1]) = (a, b);
        self
    }

    pub(super) fn data(mut self, data: Data) -> Product {
        self.data = data;
        self
    }

    pub(super) fn adversarial(self, a: Fill, b: Fill) -> Product {
        self.data(Data::Adversarial(a, b))
    }

    pub(super) fn recipe(&self) -> Recipe {
        let [m, n, k] = self.size;
        let name = self.name();
        let seed = self.seed.unwrap_or_else(|| seed_of(&name));
        let mut recipe = Recipe::new("gemm", name, self.data.class(), seed);
        let matrix = |batch: &[u64], trans: bool, rows: u64, columns: u64| match trans {
            true => [batch, &[columns, rows]].concat(),
            false => [batch, &[rows, columns]].concat(),
        };
        let place = |name, dtype, shape, fill, storage| Place {
            name,
            dtype,
            shape,
            fill,
            storage,
            unread_rows: &[],
        };
        let [a_storage, b_storage, c_storage] = self.storage;
        let shape = matrix(&self.a_batch, self.trans_a, m, k);
        recipe = place("a", self.a, &shape, self.data.a(), a_storage).add_to(recipe);
        let shape = matrix(&self.b_batch, self.trans_b, k, n);
        recipe = match is_blocks(self.b) {
            true => Weights {
                format: self.b,
                shape: &shape,
                data: &self.data,
                storage: b_storage,
            }
            .add_to(recipe),
            false => place("b", self.b, &shape, self.data.b(), b_storage).add_to(recipe),
        };
        let addend_dtype = match self.a {
            DType::I8 => DType::I32,
            dtype => dtype,
        };
        let addend = match &self.c_fill {
            Some(fill) => fill.clone(),
            // Whole numbers, or they would all be rounded to 0.
            None if addend_dtype == DType::I32 => Fill::Integers {
                low: -100,
                high: 100,
            },
            None => self.data.addend(),
        };
        if let Some(shape) = &self.c {
            recipe = place("c", addend_dtype, shape, addend.clone(), c_storage).add_to(recipe);
        }
        if self.bias {
            recipe = recipe.tensor("bias", addend_dtype, &[n], addend);
        }
        recipe = Scaled {
            rows: &[m],
            weights: &[],
            n,
            k,
            data: &self.data,
            storage: self.scales,
        }
        .add_to(recipe);
        for (name, value) in [("trans_a", self.trans_a), ("trans_b", self.trans_b)] {
            if value {
                recipe = recipe.attr(name, true);
            }
        }
        for (name, value) in [("alpha", self.alpha), ("beta", self.beta)] {
            if let Some(value) = value {
                recipe = recipe.attr(name, value);
            }
        }
        if self.activation != "none" {
            recipe = recipe.attr("activation", self.activation);
        }
        if let Some(out) = self.out {
            recipe = recipe.attr("out_dtype", out.name());
        }
        recipe
    }

    fn name(&self) -> String {
        let [m, n, k] = self.size;
        let mut name = format!("{}_m{m}_n{n}_k{k}", self.label);
        name += &dtypes(self.a, self.b, self.out);
        name += match (self.trans_a, self.trans_b) {
            (false, false) => "",
            (false, true) => "_nt",
            (true, false) => "_tn",
            (true, true) => "_tt",
        };
        for (word, batch) in [("a", &self.a_batch), ("b", &self.b_batch)] {
            if !batch.is_empty() {
                name += &format!("_{word}{}", extents(batch));
            }
        }
        if let Some(alpha) = self.alpha {
            name += &format!("_alpha{alpha}");
        }
        if let Some(c) = &self.c {
            name += &format!("_c{}", extents(c));
            if let Some(beta) = self.beta {
                name += &format!("_beta{beta}");
            }
        }
        if self.bias {
            name += "_bias";
        }
        if self.activation != "none" {
            name += &format!("_{}", self.activation);
        }
        name += &scale_word(self.scales);
        name + &storages(&[
            ("a", self.storage[0]),
            ("b", self.storage[1]),
            ("c", self.storage[2]),
        ])
    }
}

/// A `grouped_gemm` or `grouped_gemm_masked` in few words.
#[derive(Clone, Debug)]
pub(super) struct Grouped {
    pub label: String,
    /// Rows of each expert.
    pub counts: Vec<u64>,
    /// `Some`: masked, with this many rows for each expert.
    pub capacity: Option<u64>,
    /// Rows past the last expert's (not masked).
    pub rest: u64,
    pub n: u64,
    pub k: u64,
    pub a: DType,
    pub b: DType,
    pub out: Option<DType>,
    pub swiglu: bool,
    pub storage: [Storage; 2],
    pub data: Data,
    /// Where the data comes from; by default, it follows from the name.
    pub seed: Option<u64>,
    /// How the scales of a and of b are stored, where there are some.
    pub scales: [Option<Storage>; 2],
}

impl Grouped {
    /// Random F32 data over contiguous rows.
    pub(super) fn new(label: &str, counts: &[u64], n: u64, k: u64) -> Grouped {
        Grouped {
            label: label.into(),
            counts: counts.into(),
            capacity: None,
            rest: 0,
            n,
            k,
            a: DType::F32,
            b: DType::F32,
            out: None,
            swiglu: false,
            storage: [Storage::Plain; 2],
            data: Data::Random,
            seed: None,
            scales: [None; 2],
        }
    }

    /// 8-bit floats with both scales.
    pub(super) fn scaled(mut self) -> Grouped {
        self.scales = [Some(Storage::Plain); 2];
        self.dtype(DType::F8E4M3)
    }

    pub(super) fn scales(mut self, a: Option<Storage>, b: Option<Storage>) -> Grouped {
        self.scales = [a, b];
        self
    }

    pub(super) fn masked(mut self, capacity: u64) -> Grouped {
        self.capacity = Some(capacity);
        self
    }

    pub(super) fn rest(mut self, rest: u64) -> Grouped {
        self.rest = rest;
        self
    }

    pub(super) fn pair(mut self, a: DType, b: DType) -> Grouped {
        (self.a, self.b) = (a, b);
        self
    }

    pub(super) fn dtype(self, dtype: DType) -> Grouped {
        self.pair(dtype, dtype)
    }

    pub(super) fn out(mut self, out: DType) -> Grouped {
        self.out = Some(out);
        self
    }

    pub(super) fn swiglu(mut self) -> Grouped {
        self.swiglu = true;
        self
    }

    pub(super) fn stored(mut self, a: Storage, b: Storage) -> Grouped {
        self.storage = [a, b];
        self
    }

    pub(super) fn data(mut self, data: Data) -> Grouped {
        self.data = data;
        self
    }

    pub(super) fn recipe(&self) -> Recipe {
        let experts = self.counts.len() as u64;
        let name = self.name();
        let op = match self.capacity {
            Some(_) => "grouped_gemm_masked",
            None => "grouped_gemm",
        };
        let seed = self.seed.unwrap_or_else(|| seed_of(&name));
        let recipe = Recipe::new(op, name, self.data.class(), seed);
        let filled: u64 = self.counts.iter().sum();
        let (a_shape, unread_rows) = match self.capacity {
            Some(capacity) => (
                vec![experts, capacity, self.k],
                (self.counts.iter().zip(0..))
                    .map(|(count, expert)| (expert * capacity + count, (expert + 1) * capacity))
                    .collect(),
            ),
            None => (
                vec![filled + self.rest, self.k],
                vec![(filled, filled + self.rest)],
            ),
        };
        let a = Place {
            name: "a",
            dtype: self.a,
            shape: &a_shape,
            fill: self.data.a(),
            storage: self.storage[0],
            unread_rows: &unread_rows,
        };
        let recipe = a.add_to(recipe);
        let shape = &[experts, self.n, self.k];
        let mut recipe = match is_blocks(self.b) {
            true => Weights {
                format: self.b,
                shape,
                data: &self.data,
                storage: self.storage[1],
            }
            .add_to(recipe),
            false => Place {
                name: "b",
                dtype: self.b,
                shape,
                fill: self.data.b(),
                storage: self.storage[1],
                unread_rows: &[],
            }
            .add_to(recipe),
        };
        let counts = self.counts.iter().map(|&count| count as f64);
        recipe = match self.capacity {
            Some(_) => {
                let values = Fill::Values(counts.collect());
                recipe.tensor("counts", DType::I32, &[experts], values)
            }
            None => {
                let mut offsets = vec![0.0];
                offsets.extend(counts.scan(0.0, |end, count| {
                    *end += count;
                    Some(*end)
                }));
                let values = Fill::Values(offsets);
                recipe.tensor("expert_offsets", DType::I32, &[experts + 1], values)
            }
        };
        recipe = Scaled {
            rows: &a_shape[..a_shape.len() - 1],
            weights: &[experts],
            n: self.n,
            k: self.k,
            data: &self.data,
            storage: self.scales,
        }
        .add_to(recipe);
        if self.swiglu {
            recipe = recipe.attr("activation", "swiglu");
        }
        if let Some(out) = self.out {
            recipe = recipe.attr("out_dtype", out.name());
        }
        recipe
    }

    fn name(&self) -> String {
        let rows: u64 = self.counts.iter().sum();
        let mut name = format!("{}_e{}_rows{rows}", self.label, self.counts.len());
        if let Some(capacity) = self.capacity {
            name += &format!("of{capacity}");
        }
        if self.rest > 0 {
            name += &format!("_rest{}", self.rest);
        }
        name += &format!("_n{}_k{}", self.n, self.k);
        name += &dtypes(self.a, self.b, self.out);
        if self.swiglu {
            name += "_swiglu";
        }
        name += &scale_word(self.scales);
        name + &storages(&[("a", self.storage[0]), ("b", self.storage[1])])
    }
}

fn dtypes(a: DType, b: DType, out: Option<DType>) -> String {
    let word = |dtype: DType| dtype.name().to_ascii_lowercase();
    let mut text = format!("_{}", word(a));
    if a != b {
        text += &format!("x{}", word(b));
    }
    if let Some(out) = out {
        text += &format!("_to_{}", word(out));
    }
    text
}

fn extents(shape: &[u64]) -> String {
    let words: Vec<_> = shape.iter().map(u64::to_string).collect();
    words.join("x")
}

fn storages(operands: &[(&str, Storage)]) -> String {
    operands
        .iter()
        .filter(|(_, storage)| *storage != Storage::Plain)
        .map(|(name, storage)| format!("_{name}_{}", storage.word()))
        .collect()
}
