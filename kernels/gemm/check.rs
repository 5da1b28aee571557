//! What `gemm`, `grouped_gemm` and `grouped_gemm_masked` accept: builders for engines and the reading of requests, with one set of
//! checks behind both.
//!
//! A malformed problem is an error even where it is also one that no kernel takes, so the checks of shapes and dtypes come first and
//! the reasons why a sound problem is not taken last.

use ropeway_core::memory::TensorDesc;
use ropeway_core::op::Signature;
use ropeway_core::{DType, Error, Result};

use super::{Activation, Gemm, GroupedGemm, MaskedGroupedGemm};

/// Block of k, and of n in `b_scale`, that shares one scale of an 8-bit float operand.
const SCALE_BLOCK: u64 = 128;

/// The dtypes that `out_dtype` can name.
const OUT_DTYPES: &[(&str, DType)] = &[
    ("F32", DType::F32),
    ("F16", DType::F16),
    ("BF16", DType::BF16),
    ("F8_E4M3", DType::F8E4M3),
    ("F8_E5M2", DType::F8E5M2),
    ("I8", DType::I8),
    ("I32", DType::I32),
];

/// GGML's block formats: weights in a block and bytes of one.
const BLOCK_FORMATS: &[(&str, Blocks)] = &[
    ("q4_0", Blocks::new("q4_0", 32, 18)),
    ("q4_1", Blocks::new("q4_1", 32, 20)),
    ("q8_0", Blocks::new("q8_0", 32, 34)),
    ("q4_k", Blocks::new("q4_k", 256, 144)),
    ("q6_k", Blocks::new("q6_k", 256, 210)),
];

#[derive(Clone, Copy, Debug, PartialEq)]
struct Blocks {
    name: &'static str,
    weights: u64,
    bytes: u64,
}

impl Blocks {
    const fn new(name: &'static str, weights: u64, bytes: u64) -> Blocks {
        Blocks {
            name,
            weights,
            bytes,
        }
    }
}

/// Operands beside `a` and `b` that say how `b` (or both) are quantised. Checked, and then refused: no kernel reads them yet.
#[derive(Clone, Copy, Debug, Default)]
struct Quantisation {
    blocks: Option<Blocks>,
    a_scale: Option<TensorDesc>,
    b_scale: Option<TensorDesc>,
}

/// Describes a [`Gemm`]; everything but `a` and `b` has a default.
///
/// ```
/// use ropeway_core::DType;
/// use ropeway_core::memory::TensorDesc;
/// use ropeway_kernels::gemm::{Activation, Gemm};
///
/// // 8 tokens through a layer of 256 inputs and 512 outputs, whose weight is stored [outputs, inputs].
/// let x = TensorDesc::contiguous(DType::F32, &[8, 256])?;
/// let weight = TensorDesc::contiguous(DType::F32, &[512, 256])?;
/// let bias = TensorDesc::contiguous(DType::F32, &[512])?;
/// let layer = Gemm::builder(x, weight)
///     .trans_b(true)
///     .bias(bias)
///     .activation(Activation::Gelu)
///     .build()?;
/// assert_eq!(layer.d.shape(), [8, 512]);
/// # Ok::<(), ropeway_core::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct GemmBuilder {
    a: TensorDesc,
    b: TensorDesc,
    c: Option<TensorDesc>,
    bias: Option<TensorDesc>,
    trans_a: bool,
    trans_b: bool,
    alpha: f32,
    beta: Option<f32>,
    activation: Activation,
    out_dtype: Option<DType>,
    output: Option<TensorDesc>,
    quantisation: Quantisation,
}

impl GemmBuilder {
    pub(super) fn new(a: TensorDesc, b: TensorDesc) -> GemmBuilder {
        GemmBuilder {
            a,
            b,
            c: None,
            bias: None,
            trans_a: false,
            trans_b: false,
            alpha: 1.0,
            beta: None,
            activation: Activation::None,
            out_dtype: None,
            output: None,
            quantisation: Quantisation::default(),
        }
    }

    /// `a` is stored [..., k, m].
    pub fn trans_a(mut self, trans_a: bool) -> GemmBuilder {
        self.trans_a = trans_a;
        self
    }

    /// `b` is stored [..., n, k].
    pub fn trans_b(mut self, trans_b: bool) -> GemmBuilder {
        self.trans_b = trans_b;
        self
    }

    /// Factor of the product; 1 by default. At 0 neither `a` nor `b` is read.
    pub fn alpha(mut self, alpha: f32) -> GemmBuilder {
        self.alpha = alpha;
        self
    }

    /// Factor of `c`; 1 by default. At 0 `c` is not read.
    pub fn beta(mut self, beta: f32) -> GemmBuilder {
        self.beta = Some(beta);
        self
    }

    /// Adds `beta · c`; broadcasts to [..., m, n], and its leading dimensions take part in the batch.
    pub fn c(mut self, c: TensorDesc) -> GemmBuilder {
        self.c = Some(c);
        self
    }

    /// Adds `bias` [n] to each row.
    pub fn bias(mut self, bias: TensorDesc) -> GemmBuilder {
        self.bias = Some(bias);
        self
    }

    /// The epilogue; none by default.
    pub fn activation(mut self, activation: Activation) -> GemmBuilder {
        self.activation = activation;
        self
    }

    /// The dtype of `d`; that of `a` by default (I8: I32).
    pub fn out_dtype(mut self, out_dtype: DType) -> GemmBuilder {
        self.out_dtype = Some(out_dtype);
        self
    }

    /// Dtype and layout of `d`; row-major without gaps by default. Any strides that keep its elements apart.
    pub fn output(mut self, d: TensorDesc) -> GemmBuilder {
        self.output = Some(d);
        self
    }

    /// Checks it.
    ///
    /// # Errors
    /// `InvalidArgument` naming the tensor or attribute, what was found and what was expected; `Unsupported` for dtypes that no kernel
    /// takes.
    pub fn build(self) -> Result<Gemm> {
        let (a, b) = (self.a, self.b);
        let a_batch = at_least_two("a", &a)?;
        let b_batch = at_least_two("b", &b)?;
        let [m, k] = last_two(&a, self.trans_a);
        let [b_k, n] = last_two(&b, self.trans_b);
        let n = match self.quantisation.blocks {
            Some(blocks) => self.check_blocks(blocks, k, n)?,
            None if b_k != k => return Err(inner_mismatch(&b, k, self.trans_b)),
            None => n,
        };
        let mut batch = broadcast("b", a_batch, b_batch)?;
        let (operand_dtype, operand_expected) = match a.dtype {
            DType::I8 => (DType::I32, "I32 (a is I8)".to_owned()),
            dtype => (dtype, format!("{dtype} (the dtype of a)")),
        };
        if let Some(c) = &self.c {
            let c_batch = at_least_two("c", c)?;
            expect_dtype("c", c, operand_dtype, &operand_expected)?;
            batch = broadcast("c", &batch, c_batch)?;
            let [c_m, c_n] = last_two(c, false);
            if (c_m != m && c_m != 1) || (c_n != n && c_n != 1) {
                return Err(Error::invalid(
                    "c",
                    format!("shape {:?}", c.shape()),
                    format!("last two dimensions that broadcast to [m, n] = [{m}, {n}]"),
                ));
            }
        }
        if let Some(bias) = &self.bias {
            expect_dtype("bias", bias, operand_dtype, &operand_expected)?;
            expect_shape("bias", bias, &[n], "[n]")?;
        }
        if !self.alpha.is_finite() {
            return Err(Error::invalid("alpha", self.alpha, "a finite number"));
        }
        let beta = match (self.c, self.beta) {
            (_, Some(beta)) if !beta.is_finite() => {
                return Err(Error::invalid("beta", beta, "a finite number"));
            }
            (Some(_), beta) => beta.unwrap_or(1.0),
            (None, _) => 0.0,
        };
        let columns = output_columns(n, self.activation)?;
        self.check_scales(m, n, k, !batch.is_empty())?;
        let out_dtype = out_dtype(a.dtype, self.out_dtype.or(self.output.map(|d| d.dtype)))?;
        let mut shape = batch;
        shape.extend([m, columns]);
        let d = output(&shape, out_dtype, self.output)?;
        check_spans(&[
            ("a", Some(a)),
            ("b", Some(b)),
            ("c", self.c),
            ("bias", self.bias),
            ("d", Some(d)),
        ])?;
        supported(a.dtype, b.dtype, d.dtype, &self.quantisation, true)?;
        let gemm = Gemm {
            a,
            b,
            c: self.c,
            bias: self.bias,
            d,
            trans_a: self.trans_a,
            trans_b: self.trans_b,
            alpha: self.alpha,
            beta,
            activation: self.activation,
        };
        // Broadcasting can overflow what the tensors themselves do not.
        for (name, layout) in [
            ("a", gemm.a_broadcast()),
            ("b", gemm.b_broadcast()),
            ("c", gemm.c_broadcast().transpose().map(|_| gemm.d.layout)),
        ] {
            layout.map_err(|error| error.within(name))?;
        }
        Ok(gemm)
    }

    /// The `n` of a quantised `b`, whose rows hold k weights each.
    fn check_blocks(&self, blocks: Blocks, k: u64, n: u64) -> Result<u64> {
        if self.trans_b {
            expect_row_bytes(&self.b, blocks, k)?;
        }
        Ok(n)
    }

    fn check_scales(&self, m: u64, n: u64, k: u64, batched: bool) -> Result<()> {
        let k_blocks = k.div_ceil(SCALE_BLOCK);
        let scales = [
            ("a_scale", self.quantisation.a_scale, m, "[m, k / 128]"),
            (
                "b_scale",
                self.quantisation.b_scale,
                n.div_ceil(SCALE_BLOCK),
                "[n / 128, k / 128]",
            ),
        ];
        for (name, scale, rows, meaning) in scales {
            let Some(scale) = scale else { continue };
            expect_scaled(name, self.a.dtype, self.b.dtype)?;
            expect_dtype(name, &scale, DType::F32, "F32")?;
            expect_shape(name, &scale, &[rows, k_blocks], meaning)?;
            if batched {
                return Err(Error::invalid(
                    name,
                    "scales beside batch dimensions",
                    "a, b and c of two dimensions",
                ));
            }
            if self.trans_a {
                return Err(Error::invalid("trans_a", true, format!("false ({name})")));
            }
            if !self.trans_b {
                return Err(Error::invalid("trans_b", false, format!("true ({name})")));
            }
        }
        Ok(())
    }

    /// Reads a request.
    pub(super) fn parse(signature: &Signature) -> Result<Gemm> {
        signature.only(&["a", "b", "c", "bias", "a_scale", "b_scale"])?;
        let mut builder = GemmBuilder::new(signature.required("a")?, signature.required("b")?);
        builder.c = signature.optional("c");
        builder.bias = signature.optional("bias");
        let mut attrs = signature.attrs();
        builder.trans_a = attrs.bool("trans_a", false)?;
        builder.trans_b = attrs.bool("trans_b", false)?;
        builder.alpha = attrs.float("alpha", 1.0)?;
        builder.beta = attrs.optional_float("beta")?;
        builder.activation = attrs.choice(
            "activation",
            Activation::None,
            &[
                ("none", Activation::None),
                ("relu", Activation::Relu),
                ("gelu", Activation::Gelu),
                ("gelu_tanh", Activation::GeluTanh),
                ("silu", Activation::Silu),
                ("swiglu", Activation::Swiglu),
            ],
        )?;
        builder.out_dtype = read_out_dtype(&mut attrs)?;
        builder.quantisation = read_quantisation(signature, &mut attrs)?;
        attrs.finish()?;
        builder.build()
    }
}

/// Describes a [`GroupedGemm`].
#[derive(Clone, Debug)]
#[must_use]
pub struct GroupedGemmBuilder {
    a: TensorDesc,
    b: TensorDesc,
    expert_offsets: TensorDesc,
    epilogue: GroupedEpilogue,
}

/// Describes a [`MaskedGroupedGemm`].
#[derive(Clone, Debug)]
#[must_use]
pub struct MaskedGroupedGemmBuilder {
    a: TensorDesc,
    b: TensorDesc,
    counts: TensorDesc,
    epilogue: GroupedEpilogue,
}

/// What both grouped products have in common beside their operands.
#[derive(Clone, Debug, Default)]
struct GroupedEpilogue {
    activation: Activation,
    out_dtype: Option<DType>,
    output: Option<TensorDesc>,
    quantisation: Quantisation,
}

impl GroupedGemmBuilder {
    pub(super) fn new(a: TensorDesc, b: TensorDesc, expert_offsets: TensorDesc) -> Self {
        GroupedGemmBuilder {
            a,
            b,
            expert_offsets,
            epilogue: GroupedEpilogue::default(),
        }
    }

    /// `None` (the default) or `Swiglu`.
    pub fn activation(mut self, activation: Activation) -> Self {
        self.epilogue.activation = activation;
        self
    }

    /// The dtype of `d`; that of `a` by default.
    pub fn out_dtype(mut self, out_dtype: DType) -> Self {
        self.epilogue.out_dtype = Some(out_dtype);
        self
    }

    /// Dtype and layout of `d`; row-major without gaps by default. Any strides that keep its elements apart.
    pub fn output(mut self, d: TensorDesc) -> Self {
        self.epilogue.output = Some(d);
        self
    }

    /// Checks it.
    ///
    /// # Errors
    /// As [`GemmBuilder::build`].
    pub fn build(self) -> Result<GroupedGemm> {
        expect_rank("a", &self.a, 2, "[rows, k]")?;
        let [rows, k] = last_two(&self.a, false);
        let (experts, n) = self.epilogue.experts(&self.b, k)?;
        expect_dtype("expert_offsets", &self.expert_offsets, DType::I32, "I32")?;
        let offsets = experts.checked_add(1).ok_or_else(|| {
            Error::invalid("b", format!("{experts} experts"), "a number that fits")
        })?;
        expect_shape(
            "expert_offsets",
            &self.expert_offsets,
            &[offsets],
            "[experts + 1]",
        )?;
        let scales = [
            ("a_scale", vec![rows, k.div_ceil(SCALE_BLOCK)]),
            (
                "b_scale",
                vec![experts, n.div_ceil(SCALE_BLOCK), k.div_ceil(SCALE_BLOCK)],
            ),
        ];
        self.epilogue.check_scales(&self.a, &self.b, &scales)?;
        let d = self.epilogue.finish(
            &self.a,
            &self.b,
            &[rows],
            n,
            ("expert_offsets", self.expert_offsets),
        )?;
        Ok(GroupedGemm {
            a: self.a,
            b: self.b,
            expert_offsets: self.expert_offsets,
            d,
            activation: self.epilogue.activation,
        })
    }

    /// Reads a request.
    pub(super) fn parse(signature: &Signature) -> Result<GroupedGemm> {
        signature.only(&["a", "b", "expert_offsets", "a_scale", "b_scale"])?;
        let mut builder = GroupedGemmBuilder::new(
            signature.required("a")?,
            signature.required("b")?,
            signature.required("expert_offsets")?,
        );
        builder.epilogue = GroupedEpilogue::parse(signature)?;
        builder.build()
    }
}

impl MaskedGroupedGemmBuilder {
    pub(super) fn new(a: TensorDesc, b: TensorDesc, counts: TensorDesc) -> Self {
        MaskedGroupedGemmBuilder {
            a,
            b,
            counts,
            epilogue: GroupedEpilogue::default(),
        }
    }

    /// `None` (the default) or `Swiglu`.
    pub fn activation(mut self, activation: Activation) -> Self {
        self.epilogue.activation = activation;
        self
    }

    /// The dtype of `d`; that of `a` by default.
    pub fn out_dtype(mut self, out_dtype: DType) -> Self {
        self.epilogue.out_dtype = Some(out_dtype);
        self
    }

    /// Dtype and layout of `d`; row-major without gaps by default. Any strides that keep its elements apart.
    pub fn output(mut self, d: TensorDesc) -> Self {
        self.epilogue.output = Some(d);
        self
    }

    /// Checks it.
    ///
    /// # Errors
    /// As [`GemmBuilder::build`].
    pub fn build(self) -> Result<MaskedGroupedGemm> {
        expect_rank("a", &self.a, 3, "[experts, capacity, k]")?;
        let [capacity, k] = last_two(&self.a, false);
        let (experts, n) = self.epilogue.experts(&self.b, k)?;
        if self.a.shape()[0] != experts {
            return Err(Error::invalid(
                "a",
                format!("{} experts on axis 0", self.a.shape()[0]),
                format!("{experts}, as b has"),
            ));
        }
        expect_dtype("counts", &self.counts, DType::I32, "I32")?;
        expect_shape("counts", &self.counts, &[experts], "[experts]")?;
        let d = self.epilogue.finish(
            &self.a,
            &self.b,
            &[experts, capacity],
            n,
            ("counts", self.counts),
        )?;
        Ok(MaskedGroupedGemm {
            a: self.a,
            b: self.b,
            counts: self.counts,
            d,
            activation: self.epilogue.activation,
        })
    }

    /// Reads a request.
    pub(super) fn parse(signature: &Signature) -> Result<MaskedGroupedGemm> {
        signature.only(&["a", "b", "counts"])?;
        let mut builder = MaskedGroupedGemmBuilder::new(
            signature.required("a")?,
            signature.required("b")?,
            signature.required("counts")?,
        );
        builder.epilogue = GroupedEpilogue::parse(signature)?;
        builder.build()
    }
}

impl GroupedEpilogue {
    fn parse(signature: &Signature) -> Result<GroupedEpilogue> {
        let mut attrs = signature.attrs();
        let epilogue = GroupedEpilogue {
            activation: attrs.choice(
                "activation",
                Activation::None,
                &[("none", Activation::None), ("swiglu", Activation::Swiglu)],
            )?,
            out_dtype: read_out_dtype(&mut attrs)?,
            output: None,
            quantisation: read_quantisation(signature, &mut attrs)?,
        };
        attrs.finish()?;
        Ok(epilogue)
    }

    /// Experts and n of `b` [experts, n, k].
    fn experts(&self, b: &TensorDesc, k: u64) -> Result<(u64, u64)> {
        expect_rank("b", b, 3, "[experts, n, k]")?;
        match self.quantisation.blocks {
            Some(blocks) => expect_row_bytes(b, blocks, k)?,
            None if b.shape()[2] != k => return Err(inner_mismatch(b, k, true)),
            None => {}
        }
        Ok((b.shape()[0], b.shape()[1]))
    }

    fn check_scales(
        &self,
        a: &TensorDesc,
        b: &TensorDesc,
        shapes: &[(&'static str, Vec<u64>); 2],
    ) -> Result<()> {
        let scales = [self.quantisation.a_scale, self.quantisation.b_scale];
        for ((name, shape), scale) in shapes.iter().zip(scales) {
            if let Some(scale) = scale {
                expect_scaled(name, a.dtype, b.dtype)?;
                expect_dtype(name, &scale, DType::F32, "F32")?;
                expect_shape(name, &scale, shape, "one scale a block of 128")?;
            }
        }
        Ok(())
    }

    /// The output, [rows..., n] or half as many columns, and the reasons not to take a sound problem.
    fn finish(
        &self,
        a: &TensorDesc,
        b: &TensorDesc,
        rows: &[u64],
        n: u64,
        counts: (&str, TensorDesc),
    ) -> Result<TensorDesc> {
        if !matches!(self.activation, Activation::None | Activation::Swiglu) {
            return Err(Error::invalid(
                "activation",
                format!("{:?}", self.activation),
                "None or Swiglu",
            ));
        }
        let columns = output_columns(n, self.activation)?;
        let out_dtype = out_dtype(a.dtype, self.out_dtype.or(self.output.map(|d| d.dtype)))?;
        let d = output(&[rows, &[columns]].concat(), out_dtype, self.output)?;
        check_spans(&[
            ("a", Some(*a)),
            ("b", Some(*b)),
            (counts.0, Some(counts.1)),
            ("d", Some(d)),
        ])?;
        supported(a.dtype, b.dtype, d.dtype, &self.quantisation, false)?;
        Ok(d)
    }
}

fn read_out_dtype(attrs: &mut ropeway_core::request::AttrReader<'_>) -> Result<Option<DType>> {
    let choices: Vec<_> = OUT_DTYPES
        .iter()
        .map(|&(name, dtype)| (name, Some(dtype)))
        .collect();
    attrs.choice("out_dtype", None, &choices)
}

fn read_quantisation(
    signature: &Signature,
    attrs: &mut ropeway_core::request::AttrReader<'_>,
) -> Result<Quantisation> {
    let choices: Vec<_> = BLOCK_FORMATS
        .iter()
        .map(|&(name, blocks)| (name, Some(blocks)))
        .collect();
    let blocks = attrs.choice("b_format", None, &choices)?;
    let dtype = signature.required("b")?.dtype;
    match (blocks, dtype) {
        (None, DType::U8) => Err(Error::invalid(
            "b_format",
            "nothing",
            "the format of the blocks in b, which is U8",
        )),
        (Some(blocks), dtype) if dtype != DType::U8 => Err(Error::invalid(
            "b",
            format!("{dtype} (b_format is {:?})", blocks.name),
            "U8",
        )),
        _ => Ok(Quantisation {
            blocks,
            a_scale: signature.optional("a_scale"),
            b_scale: signature.optional("b_scale"),
        }),
    }
}

/// The leading dimensions of a tensor that must have two others.
fn at_least_two<'a>(name: &str, desc: &'a TensorDesc) -> Result<&'a [u64]> {
    match desc.shape() {
        [batch @ .., _, _] => Ok(batch),
        shape => Err(Error::invalid(
            name,
            format!("shape {shape:?}"),
            "at least two dimensions",
        )),
    }
}

/// The last two extents, in the order of the product. The tensor must have them.
pub(super) fn last_two(desc: &TensorDesc, transposed: bool) -> [u64; 2] {
    let shape = desc.shape();
    let (rows, columns) = (shape[shape.len() - 2], shape[shape.len() - 1]);
    if transposed {
        [columns, rows]
    } else {
        [rows, columns]
    }
}

/// NumPy's broadcasting of leading dimensions.
fn broadcast(name: &str, so_far: &[u64], batch: &[u64]) -> Result<Vec<u64>> {
    let rank = so_far.len().max(batch.len());
    let extent = |shape: &[u64], axis: usize| match (axis + shape.len()).checked_sub(rank) {
        Some(axis) => shape[axis],
        None => 1,
    };
    (0..rank)
        .map(|axis| match (extent(so_far, axis), extent(batch, axis)) {
            (x, y) if x == y => Ok(x),
            (1, y) => Ok(y),
            (x, 1) => Ok(x),
            _ => Err(Error::invalid(
                name,
                format!("leading dimensions {batch:?}"),
                format!("ones that broadcast with {so_far:?}"),
            )),
        })
        .collect()
}

fn inner_mismatch(b: &TensorDesc, k: u64, trans_b: bool) -> Error {
    let axis = b.shape().len() - if trans_b { 1 } else { 2 };
    Error::invalid(
        "b",
        format!(
            "extent {} on axis {axis} of {:?}",
            b.shape()[axis],
            b.shape()
        ),
        format!("k = {k}, as a has"),
    )
}

fn expect_rank(name: &str, desc: &TensorDesc, rank: usize, meaning: &str) -> Result<()> {
    if desc.shape().len() == rank {
        return Ok(());
    }
    Err(Error::invalid(
        name,
        format!("shape {:?}", desc.shape()),
        format!("{rank} dimensions {meaning}"),
    ))
}

fn expect_shape(name: &str, desc: &TensorDesc, shape: &[u64], meaning: &str) -> Result<()> {
    if desc.shape() == shape {
        return Ok(());
    }
    Err(Error::invalid(
        name,
        format!("shape {:?}", desc.shape()),
        format!("{shape:?}: {meaning}"),
    ))
}

fn expect_dtype(name: &str, desc: &TensorDesc, dtype: DType, meaning: &str) -> Result<()> {
    if desc.dtype == dtype {
        return Ok(());
    }
    Err(Error::invalid(name, desc.dtype, meaning))
}

fn expect_row_bytes(b: &TensorDesc, blocks: Blocks, k: u64) -> Result<()> {
    let found = b.shape()[b.shape().len() - 1];
    let expected = (k / blocks.weights).checked_mul(blocks.bytes);
    if k.is_multiple_of(blocks.weights) && expected == Some(found) {
        return Ok(());
    }
    Err(Error::invalid(
        "b",
        format!("rows of {found} bytes"),
        format!(
            "rows of k = {k} weights in {} blocks of {} weights and {} bytes",
            blocks.name, blocks.weights, blocks.bytes
        ),
    ))
}

fn expect_scaled(name: &str, a: DType, b: DType) -> Result<()> {
    if is_f8(a) && is_f8(b) {
        return Ok(());
    }
    Err(Error::invalid(
        name,
        format!("scales beside {a} × {b}"),
        "8-bit float a and b",
    ))
}

fn is_f8(dtype: DType) -> bool {
    matches!(dtype, DType::F8E4M3 | DType::F8E5M2)
}

/// Columns of the output for n columns of the product.
fn output_columns(n: u64, activation: Activation) -> Result<u64> {
    match activation {
        Activation::Swiglu if n % 2 == 1 => Err(Error::invalid(
            "b",
            format!("n = {n}"),
            "an even n (swiglu: as many gates as values)",
        )),
        Activation::Swiglu => Ok(n / 2),
        _ => Ok(n),
    }
}

/// The dtype of the output, if `a` may have it.
fn out_dtype(a: DType, wanted: Option<DType>) -> Result<DType> {
    let (default, others): (DType, &[DType]) = match a {
        DType::I8 => (DType::I32, &[DType::I32, DType::I8, DType::F32]),
        a if a.is_float() => (
            a,
            &[
                DType::F32,
                DType::F16,
                DType::BF16,
                DType::F8E4M3,
                DType::F8E5M2,
            ],
        ),
        // No product of this dtype is taken; whatever it would give.
        a => return Ok(wanted.unwrap_or(a)),
    };
    let wanted = wanted.unwrap_or(default);
    if others.contains(&wanted) {
        return Ok(wanted);
    }
    let names: Vec<_> = others.iter().map(|dtype| dtype.name()).collect();
    Err(Error::invalid(
        "out_dtype",
        wanted,
        format!("one of {names:?} (a is {a})"),
    ))
}

/// The caller's output if it fits, else a row-major one.
fn output(shape: &[u64], dtype: DType, wanted: Option<TensorDesc>) -> Result<TensorDesc> {
    let Some(d) = wanted else {
        return TensorDesc::contiguous(dtype, shape).map_err(|error| error.within("d"));
    };
    expect_dtype("d", &d, dtype, &format!("{dtype} (out_dtype)"))?;
    expect_shape("d", &d, shape, "the shape of the product")?;
    if !d.layout.is_injective() {
        return Err(Error::invalid(
            "d",
            format!("strides {:?}", d.layout.strides()),
            "strides that keep its elements apart",
        ));
    }
    Ok(d)
}

/// Sizes in bytes that overflow are an error, even of tensors that will not be taken.
fn check_spans(operands: &[(&str, Option<TensorDesc>)]) -> Result<()> {
    for (name, desc) in operands {
        if let Some(desc) = desc
            && desc.dtype.size().is_some()
        {
            desc.span_bytes().map_err(|error| error.within(name))?;
        }
    }
    Ok(())
}

/// Whether a sound product of these dtypes is one that Ropeway has kernels for on some device.
fn supported(
    a: DType,
    b: DType,
    d: DType,
    quantisation: &Quantisation,
    integers: bool,
) -> Result<()> {
    if let Some(blocks) = quantisation.blocks {
        return Err(Error::unsupported(format!(
            "b in {} blocks: no kernel reads quantised weights yet",
            blocks.name
        )));
    }
    if let Some(dtype) = [a, b, d].into_iter().find(|&dtype| is_f8(dtype)) {
        return Err(Error::unsupported(format!(
            "{dtype}: no kernel reads or writes 8-bit floats yet"
        )));
    }
    match (a, b) {
        (DType::F32 | DType::F16 | DType::BF16, _) if a == b => Ok(()),
        (DType::F32, DType::F16 | DType::BF16) | (DType::F16, DType::F32) => Ok(()),
        (DType::I8, DType::I8) if integers => Ok(()),
        _ => Err(Error::unsupported(format!(
            "{a} × {b} is not among the pairs of dtypes that are multiplied"
        ))),
    }
}

#[cfg(test)]
mod tests;
