//! Matrix products: `gemm`, `grouped_gemm` and `grouped_gemm_masked`.

use std::any::Any;

use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::Kernel;
use ropeway_core::memory::TensorDesc;
use ropeway_core::op::{Cost, Op, OpKind, Operand, PlanRequest, Signature};
use ropeway_core::plan::Plan;
use ropeway_core::{Error, Result};

#[cfg(feature = "spec")]
mod cases;
mod manifest;
mod native;
mod plan;
#[cfg(feature = "spec")]
mod reference;

/// The ops of this folder.
pub const OPS: &[&dyn OpKind] = &[&GemmKind, &GroupedGemmKind, &MaskedGroupedGemmKind];

/// What is applied to each element before it is rounded to the output dtype.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    #[default]
    None,
    /// max(x, 0); NaN stays NaN.
    Relu,
    /// x · Φ(x), by the error function.
    Gelu,
    /// x · Φ(x), by the tanh approximation.
    GeluTanh,
    /// x · σ(x).
    Silu,
    /// silu(gate) · up: columns 0..n/2 are the gate, n/2..n the value; the output has n/2 columns.
    Swiglu,
}

/// `d = act(alpha · op(a) op(b) + beta · c + bias)`, over broadcast leading dimensions.
#[derive(Clone, Debug, PartialEq)]
pub struct Gemm {
    /// [..., m, k], or [..., k, m] with `trans_a`.
    pub a: TensorDesc,
    /// [..., k, n], or [..., n, k] with `trans_b`.
    pub b: TensorDesc,
    /// Broadcasts to [..., m, n]; has the dtype of `a` (I8: I32).
    pub c: Option<TensorDesc>,
    /// [n], of the dtype of `a` (I8: I32).
    pub bias: Option<TensorDesc>,
    /// [..., m, n] (swiglu: n / 2 columns).
    pub d: TensorDesc,
    /// `a` is stored transposed.
    pub trans_a: bool,
    /// `b` is stored transposed.
    pub trans_b: bool,
    /// Factor of the product; at 0 neither `a` nor `b` is read.
    pub alpha: f32,
    /// Factor of `c`; at 0 `c` is not read.
    pub beta: f32,
    /// The epilogue.
    pub activation: Activation,
}

impl Gemm {
    fn parse(signature: &Signature) -> Result<Gemm> {
        let _ = signature;
        Err(Error::unsupported("gemm is not written yet"))
    }

    fn work(&self) -> Cost {
        Cost::default()
    }
}

impl Op for Gemm {
    fn name(&self) -> &'static str {
        "gemm"
    }

    fn operands(&self) -> Vec<Operand> {
        [
            present("a", Some(self.a), false),
            present("b", Some(self.b), false),
            present("c", self.c, false),
            present("bias", self.bias, false),
            present("d", Some(self.d), true),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn candidates(&self, info: &DeviceInfo) -> Result<Vec<&'static Kernel>> {
        plan::gemm_candidates(self, info)
    }

    fn plan(&self, request: &PlanRequest<'_>) -> Result<Plan> {
        plan::gemm(self, request)
    }

    fn cost(&self) -> Cost {
        self.work()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The op `gemm` as request files name it.
#[derive(Clone, Copy, Debug)]
pub struct GemmKind;

impl OpKind for GemmKind {
    fn name(&self) -> &'static str {
        "gemm"
    }

    fn inputs(&self) -> &'static [&'static str] {
        &["a", "b", "c", "bias"]
    }

    fn parse(&self, signature: &Signature) -> Result<Box<dyn Op>> {
        Ok(Box::new(Gemm::parse(signature)?))
    }

    fn kernels(&self) -> &'static [&'static Kernel] {
        manifest::KERNELS
    }

    #[cfg(feature = "spec")]
    fn spec(&self) -> &'static dyn ropeway_core::spec::OpSpec {
        &reference::GemmSpec
    }
}

/// One product for each expert over contiguous rows: `d[r] = act(a[r] · b[e]ᵀ)` for the rows of expert e.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupedGemm {
    /// [rows, k].
    pub a: TensorDesc,
    /// [experts, n, k].
    pub b: TensorDesc,
    /// I32 [experts + 1], on the device.
    pub expert_offsets: TensorDesc,
    /// [rows, n] (swiglu: n / 2 columns).
    pub d: TensorDesc,
    /// `None` or `Swiglu`.
    pub activation: Activation,
}

impl GroupedGemm {
    fn parse(signature: &Signature) -> Result<GroupedGemm> {
        let _ = signature;
        Err(Error::unsupported("grouped_gemm is not written yet"))
    }

    fn work(&self) -> Cost {
        Cost::default()
    }
}

impl Op for GroupedGemm {
    fn name(&self) -> &'static str {
        "grouped_gemm"
    }

    fn operands(&self) -> Vec<Operand> {
        [
            present("a", Some(self.a), false),
            present("b", Some(self.b), false),
            present("expert_offsets", Some(self.expert_offsets), false),
            present("d", Some(self.d), true),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn candidates(&self, info: &DeviceInfo) -> Result<Vec<&'static Kernel>> {
        plan::grouped_gemm_candidates(self, info)
    }

    fn plan(&self, request: &PlanRequest<'_>) -> Result<Plan> {
        plan::grouped_gemm(self, request)
    }

    fn cost(&self) -> Cost {
        self.work()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The op `grouped_gemm` as request files name it.
#[derive(Clone, Copy, Debug)]
pub struct GroupedGemmKind;

impl OpKind for GroupedGemmKind {
    fn name(&self) -> &'static str {
        "grouped_gemm"
    }

    fn inputs(&self) -> &'static [&'static str] {
        &["a", "b", "expert_offsets"]
    }

    fn parse(&self, signature: &Signature) -> Result<Box<dyn Op>> {
        Ok(Box::new(GroupedGemm::parse(signature)?))
    }

    fn kernels(&self) -> &'static [&'static Kernel] {
        manifest::KERNELS
    }

    #[cfg(feature = "spec")]
    fn spec(&self) -> &'static dyn ropeway_core::spec::OpSpec {
        &reference::GroupedGemmSpec
    }
}

/// One product for each expert over a fixed capacity of rows, of which the first `counts[e]` hold something.
#[derive(Clone, Debug, PartialEq)]
pub struct MaskedGroupedGemm {
    /// [experts, capacity, k].
    pub a: TensorDesc,
    /// [experts, n, k].
    pub b: TensorDesc,
    /// I32 [experts], on the device.
    pub counts: TensorDesc,
    /// [experts, capacity, n] (swiglu: n / 2 columns); rows past the count are zero.
    pub d: TensorDesc,
    /// `None` or `Swiglu`.
    pub activation: Activation,
}

impl MaskedGroupedGemm {
    fn parse(signature: &Signature) -> Result<MaskedGroupedGemm> {
        let _ = signature;
        Err(Error::unsupported("grouped_gemm_masked is not written yet"))
    }

    fn work(&self) -> Cost {
        Cost::default()
    }
}

impl Op for MaskedGroupedGemm {
    fn name(&self) -> &'static str {
        "grouped_gemm_masked"
    }

    fn operands(&self) -> Vec<Operand> {
        [
            present("a", Some(self.a), false),
            present("b", Some(self.b), false),
            present("counts", Some(self.counts), false),
            present("d", Some(self.d), true),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn candidates(&self, info: &DeviceInfo) -> Result<Vec<&'static Kernel>> {
        plan::grouped_gemm_masked_candidates(self, info)
    }

    fn plan(&self, request: &PlanRequest<'_>) -> Result<Plan> {
        plan::grouped_gemm_masked(self, request)
    }

    fn cost(&self) -> Cost {
        self.work()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The op `grouped_gemm_masked` as request files name it.
#[derive(Clone, Copy, Debug)]
pub struct MaskedGroupedGemmKind;

impl OpKind for MaskedGroupedGemmKind {
    fn name(&self) -> &'static str {
        "grouped_gemm_masked"
    }

    fn inputs(&self) -> &'static [&'static str] {
        &["a", "b", "counts"]
    }

    fn parse(&self, signature: &Signature) -> Result<Box<dyn Op>> {
        Ok(Box::new(MaskedGroupedGemm::parse(signature)?))
    }

    fn kernels(&self) -> &'static [&'static Kernel] {
        manifest::KERNELS
    }

    #[cfg(feature = "spec")]
    fn spec(&self) -> &'static dyn ropeway_core::spec::OpSpec {
        &reference::MaskedGroupedGemmSpec
    }
}

fn present(name: &'static str, desc: Option<TensorDesc>, output: bool) -> Option<Operand> {
    desc.map(|desc| Operand { name, desc, output })
}
