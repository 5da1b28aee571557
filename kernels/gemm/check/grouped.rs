//! The builders of [`GroupedGemm`] and [`MaskedGroupedGemm`], and their reading of requests.

use ropeway_core::memory::TensorDesc;
use ropeway_core::op::Signature;
use ropeway_core::{DType, Error, Result};

use super::super::{Activation, GroupedGemm, MaskedGroupedGemm};
use super::{
    Quantisation, SCALE_BLOCK, check_format, check_spans, expect_dtype, expect_rank,
    expect_rows_of_blocks, expect_scale, expect_scaled, expect_shape, inner_mismatch, last_two,
    out_dtype, output, output_columns, read_out_dtype, read_quantisation, supported,
};

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
    pub(in super::super) fn new(a: TensorDesc, b: TensorDesc, expert_offsets: TensorDesc) -> Self {
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

    /// `b` is U8 and holds blocks of this format ([`DType::GGML_BLOCKS`]), rows of k weights.
    pub fn b_format(mut self, format: DType) -> Self {
        self.epilogue.quantisation.b_format = Some(format);
        self
    }

    /// Scales of an 8-bit float `a`: F32 [rows, k / 128] (rounded up), one for each row and 128 k.
    pub fn a_scale(mut self, a_scale: TensorDesc) -> Self {
        self.epilogue.quantisation.a_scale = Some(a_scale);
        self
    }

    /// Scales of an 8-bit float `b`: F32 [experts, n / 128, k / 128] (rounded up).
    pub fn b_scale(mut self, b_scale: TensorDesc) -> Self {
        self.epilogue.quantisation.b_scale = Some(b_scale);
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
    /// As [`GemmBuilder::build`](crate::gemm::GemmBuilder::build).
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
        self.epilogue
            .check_scales(&self.a, &self.b, &[rows], [experts, n, k])?;
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
            b_format: self.epilogue.quantisation.b_format,
            expert_offsets: self.expert_offsets,
            a_scale: self.epilogue.quantisation.a_scale,
            b_scale: self.epilogue.quantisation.b_scale,
            d,
            activation: self.epilogue.activation,
        })
    }

    /// Reads a request.
    pub(in super::super) fn parse(signature: &Signature) -> Result<GroupedGemm> {
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
    pub(in super::super) fn new(a: TensorDesc, b: TensorDesc, counts: TensorDesc) -> Self {
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

    /// `b` is U8 and holds blocks of this format ([`DType::GGML_BLOCKS`]), rows of k weights.
    pub fn b_format(mut self, format: DType) -> Self {
        self.epilogue.quantisation.b_format = Some(format);
        self
    }

    /// Scales of an 8-bit float `a`: F32 [experts, capacity, k / 128] (rounded up), one for each row and 128 k.
    pub fn a_scale(mut self, a_scale: TensorDesc) -> Self {
        self.epilogue.quantisation.a_scale = Some(a_scale);
        self
    }

    /// Scales of an 8-bit float `b`: F32 [experts, n / 128, k / 128] (rounded up).
    pub fn b_scale(mut self, b_scale: TensorDesc) -> Self {
        self.epilogue.quantisation.b_scale = Some(b_scale);
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
    /// As [`GemmBuilder::build`](crate::gemm::GemmBuilder::build).
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
        let rows = [experts, capacity];
        self.epilogue
            .check_scales(&self.a, &self.b, &rows, [experts, n, k])?;
        let d = self
            .epilogue
            .finish(&self.a, &self.b, &rows, n, ("counts", self.counts))?;
        Ok(MaskedGroupedGemm {
            a: self.a,
            b: self.b,
            b_format: self.epilogue.quantisation.b_format,
            counts: self.counts,
            a_scale: self.epilogue.quantisation.a_scale,
            b_scale: self.epilogue.quantisation.b_scale,
            d,
            activation: self.epilogue.activation,
        })
    }

    /// Reads a request.
    pub(in super::super) fn parse(signature: &Signature) -> Result<MaskedGroupedGemm> {
        signature.only(&["a", "b", "counts", "a_scale", "b_scale"])?;
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
        check_format(b, self.quantisation.b_format)?;
        expect_rank("b", b, 3, "[experts, n, k]")?;
        match self.quantisation.b_format {
            Some(format) => expect_rows_of_blocks(b, format, k)?,
            None if b.shape()[2] != k => return Err(inner_mismatch(b, k, true)),
            None => {}
        }
        Ok((b.shape()[0], b.shape()[1]))
    }

    fn check_scales(
        &self,
        a: &TensorDesc,
        b: &TensorDesc,
        rows: &[u64],
        [experts, n, k]: [u64; 3],
    ) -> Result<()> {
        let blocks = |extent: u64| extent.div_ceil(SCALE_BLOCK);
        let Quantisation {
            a_scale, b_scale, ..
        } = self.quantisation;
        for (name, scale, shape) in [
            ("a_scale", a_scale, [rows, &[blocks(k)]].concat()),
            ("b_scale", b_scale, vec![experts, blocks(n), blocks(k)]),
        ] {
            let Some(scale) = scale else { continue };
            expect_scaled(name, a.dtype, b.dtype)?;
            expect_scale(name, &scale, &shape, "one scale a block of 128")?;
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
            ("a_scale", self.quantisation.a_scale),
            ("b_scale", self.quantisation.b_scale),
            ("d", Some(d)),
        ])?;
        let b_dtype = self.quantisation.b_format.unwrap_or(b.dtype);
        supported(a.dtype, b_dtype, d.dtype, false)?;
        let experts = b.shape()[0];
        if experts > i32::MAX as u64 {
            return Err(Error::unsupported(format!(
                "{experts} experts; at most {} are, as topk_ids are I32",
                i32::MAX
            )));
        }
        Ok(d)
    }
}
