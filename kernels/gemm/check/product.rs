//! The builder of [`Gemm`], and its reading of requests.

use ropeway_core::memory::TensorDesc;
use ropeway_core::op::Signature;
use ropeway_core::{DType, Error, Result};

use super::super::{Activation, Gemm};
use super::{
    Quantisation, SCALE_BLOCK, at_least_two, broadcast, check_format, check_spans, expect_dtype,
    expect_rows_of_blocks, expect_scale, expect_scaled, expect_shape, inner_mismatch, last_two,
    out_dtype, output, output_columns, read_out_dtype, read_quantisation, supported,
};

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
    pub(in super::super) fn new(a: TensorDesc, b: TensorDesc) -> GemmBuilder {
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

    /// Adds `bias` `[n]` to each row.
    pub fn bias(mut self, bias: TensorDesc) -> GemmBuilder {
        self.bias = Some(bias);
        self
    }

    /// The epilogue; none by default.
    pub fn activation(mut self, activation: Activation) -> GemmBuilder {
        self.activation = activation;
        self
    }

    /// `b` is U8 and holds blocks of this format ([`DType::GGML_BLOCKS`]): rows [..., n] of k weights each, with `trans_b`.
    ///
    /// ```
    /// use ropeway_core::DType;
    /// use ropeway_core::memory::TensorDesc;
    /// use ropeway_kernels::gemm::Gemm;
    ///
    /// // 256 weights in 8 blocks of 18 bytes.
    /// let x = TensorDesc::contiguous(DType::F32, &[1, 256])?;
    /// let weight = TensorDesc::contiguous(DType::U8, &[512, 8 * 18])?;
    /// let layer = Gemm::builder(x, weight).trans_b(true).b_format(DType::Q4_0).build()?;
    /// assert_eq!(layer.d.shape(), [1, 512]);
    /// # Ok::<(), ropeway_core::Error>(())
    /// ```
    pub fn b_format(mut self, format: DType) -> GemmBuilder {
        self.quantisation.b_format = Some(format);
        self
    }

    /// Scales of an 8-bit float `a`: F32 [m, k / 128] (rounded up), one for each row and 128 k. With `trans_b`, and without batch dimensions.
    ///
    /// ```
    /// use ropeway_core::DType;
    /// use ropeway_core::memory::TensorDesc;
    /// use ropeway_kernels::gemm::Gemm;
    ///
    /// // A layer of DeepSeek-V3: activations scaled by 1 x 128, weights by 128 x 128.
    /// let x = TensorDesc::contiguous(DType::F8E4M3, &[64, 7168])?;
    /// let weight = TensorDesc::contiguous(DType::F8E4M3, &[2112, 7168])?;
    /// let layer = Gemm::builder(x, weight)
    ///     .trans_b(true)
    ///     .a_scale(TensorDesc::contiguous(DType::F32, &[64, 56])?)
    ///     .b_scale(TensorDesc::contiguous(DType::F32, &[17, 56])?)
    ///     .out_dtype(DType::BF16)
    ///     .build()?;
    /// assert_eq!(layer.d.shape(), [64, 2112]);
    /// # Ok::<(), ropeway_core::Error>(())
    /// ```
    pub fn a_scale(mut self, a_scale: TensorDesc) -> GemmBuilder {
        self.quantisation.a_scale = Some(a_scale);
        self
    }

    /// Scales of an 8-bit float `b`: F32 [n / 128, k / 128] (rounded up), one for each 128 columns and 128 k. As [`a_scale`](Self::a_scale).
    pub fn b_scale(mut self, b_scale: TensorDesc) -> GemmBuilder {
        self.quantisation.b_scale = Some(b_scale);
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
        let (a, b, b_format) = (self.a, self.b, self.quantisation.b_format);
        check_format(&b, b_format)?;
        let a_batch = at_least_two("a", &a)?;
        let b_batch = at_least_two("b", &b)?;
        let [m, k] = last_two(&a, self.trans_a);
        let [b_k, n] = last_two(&b, self.trans_b);
        match b_format {
            Some(format) if !self.trans_b => {
                let expected = format!("true (b holds {format} blocks)");
                return Err(Error::invalid("trans_b", false, expected));
            }
            Some(format) => expect_rows_of_blocks(&b, format, k)?,
            None if b_k != k => return Err(inner_mismatch(&b, k, self.trans_b)),
            None => {}
        }
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
            ("a_scale", self.quantisation.a_scale),
            ("b_scale", self.quantisation.b_scale),
            ("d", Some(d)),
        ])?;
        let b_dtype = b_format.unwrap_or(b.dtype);
        supported(a.dtype, b_dtype, d.dtype, true)?;
        let gemm = Gemm {
            a,
            b,
            b_format,
            c: self.c,
            bias: self.bias,
            a_scale: self.quantisation.a_scale,
            b_scale: self.quantisation.b_scale,
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
            expect_scale(name, &scale, &[rows, k_blocks], meaning)?;
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
    pub(in super::super) fn parse(signature: &Signature) -> Result<Gemm> {
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
