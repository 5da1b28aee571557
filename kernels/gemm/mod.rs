//! Matrix products: `gemm`, `grouped_gemm` and `grouped_gemm_masked`.

use std::any::Any;

use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::Kernel;
use ropeway_core::memory::{Layout, TensorDesc};
use ropeway_core::op::{Cost, Op, OpKind, Operand, PlanRequest, Signature};
use ropeway_core::plan::Plan;
use ropeway_core::request::Operands;
use ropeway_core::{DType, Error, Result};

#[cfg(feature = "spec")]
pub(crate) mod bound;
#[cfg(feature = "spec")]
mod cases;
mod check;
pub(crate) mod grouped;
mod manifest;
mod native;
mod plan;
#[cfg(feature = "spec")]
mod reference;
mod spirv;

pub use check::{GemmBuilder, GroupedGemmBuilder, MaskedGroupedGemmBuilder};

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
    /// [..., k, n], or [..., n, k] with `trans_b`; with `b_format` U8 [..., n, bytes of k weights].
    pub b: TensorDesc,
    /// The format of the blocks that `b` holds, one of [`DType::GGML_BLOCKS`].
    pub b_format: Option<DType>,
    /// Broadcasts to [..., m, n]; has the dtype of `a` (I8: I32).
    pub c: Option<TensorDesc>,
    /// `[n]`, of the dtype of `a` (I8: I32).
    pub bias: Option<TensorDesc>,
    /// F32 [m, k / 128], rounded up: factors of an 8-bit float `a`.
    pub a_scale: Option<TensorDesc>,
    /// F32 [n / 128, k / 128], rounded up: factors of an 8-bit float `b`.
    pub b_scale: Option<TensorDesc>,
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
    /// Describes a product of `a` [..., m, k] and `b` [..., k, n].
    pub fn builder(a: TensorDesc, b: TensorDesc) -> GemmBuilder {
        GemmBuilder::new(a, b)
    }

    /// Rows of the product.
    pub fn m(&self) -> u64 {
        check::last_two(&self.a, self.trans_a)[0]
    }

    /// Columns of the product: those of `d`, or twice as many with `Swiglu`.
    pub fn n(&self) -> u64 {
        check::last_two(&self.b, self.trans_b)[1]
    }

    /// Length of the sums.
    pub fn k(&self) -> u64 {
        check::last_two(&self.a, self.trans_a)[1]
    }

    /// The leading dimensions of `d`, to which those of `a`, `b` and `c` broadcast.
    pub fn batch(&self) -> &[u64] {
        let shape = self.d.shape();
        &shape[..shape.len() - 2]
    }

    /// The layout of op(a): [batch..., m, k], with stride 0 where it broadcasts.
    pub fn a_layout(&self) -> Layout {
        self.a_broadcast().expect("checked when it was built")
    }

    /// The dtype of b's elements, in blocks or not.
    pub fn b_dtype(&self) -> DType {
        self.b_format.unwrap_or(self.b.dtype)
    }

    /// The layout of op(b): [batch..., k, n], with stride 0 where it broadcasts; of blocks, that of their bytes.
    pub fn b_layout(&self) -> Layout {
        self.b_broadcast().expect("checked when it was built")
    }

    /// The layout of `c`: [batch..., m, n], with stride 0 where it broadcasts.
    pub fn c_layout(&self) -> Option<Layout> {
        self.c_broadcast()
            .map(|layout| layout.expect("checked when it was built"))
    }

    /// Whether `a` and `b` are read: not if `alpha` is 0.
    pub fn reads_product(&self) -> bool {
        self.alpha != 0.0
    }

    /// Whether `c` is read: if it is there and `beta` is not 0.
    pub fn reads_c(&self) -> bool {
        self.c.is_some() && self.beta != 0.0
    }

    fn a_broadcast(&self) -> Result<Layout> {
        self.broadcast(self.a.layout, self.trans_a, [self.m(), self.k()])
    }

    fn b_broadcast(&self) -> Result<Layout> {
        let matrix = check::last_two(&self.b, self.trans_b);
        self.broadcast(self.b.layout, self.trans_b, matrix)
    }

    fn c_broadcast(&self) -> Option<Result<Layout>> {
        self.c
            .map(|c| self.broadcast(c.layout, false, [self.m(), self.n()]))
    }

    fn broadcast(&self, layout: Layout, transposed: bool, matrix: [u64; 2]) -> Result<Layout> {
        let rank = layout.rank();
        let layout = if transposed {
            layout.transposed(rank - 2, rank - 1)
        } else {
            layout
        };
        layout.broadcast_to(&[self.batch(), &matrix].concat())
    }

    fn work(&self) -> Cost {
        let sizes: f64 = self
            .batch()
            .iter()
            .chain(&[self.m(), self.n(), self.k()])
            .map(|&extent| extent as f64)
            .product();
        let read = |desc: Option<TensorDesc>, is_read| match desc {
            Some(desc) if is_read => distinct_bytes(&desc),
            _ => 0.0,
        };
        let product = self.reads_product();
        Cost {
            flops: if product { 2.0 * sizes } else { 0.0 },
            bytes: read(Some(self.a), product)
                + read(Some(self.b), product)
                + read(self.c, self.reads_c())
                + read(self.bias, true)
                + read(self.a_scale, product)
                + read(self.b_scale, product)
                + distinct_bytes(&self.d),
        }
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
            present("a_scale", self.a_scale, false),
            present("b_scale", self.b_scale, false),
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

    fn prepare(&self, operand: &str, request: &PlanRequest<'_>) -> Result<Plan> {
        plan::prepare_gemm(self, operand, request)
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
        &["a", "b", "c", "bias", "a_scale", "b_scale"]
    }

    fn parse(&self, signature: &Signature) -> Result<Box<dyn Op>> {
        Ok(Box::new(GemmBuilder::parse(signature)?))
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
    /// [experts, n, k]; with `b_format` U8 [experts, n, bytes of k weights].
    pub b: TensorDesc,
    /// The format of the blocks that `b` holds, one of [`DType::GGML_BLOCKS`].
    pub b_format: Option<DType>,
    /// I32 [experts + 1], on the device.
    pub expert_offsets: TensorDesc,
    /// F32 [rows, k / 128], rounded up: factors of an 8-bit float `a`.
    pub a_scale: Option<TensorDesc>,
    /// F32 [experts, n / 128, k / 128], rounded up: factors of an 8-bit float `b`.
    pub b_scale: Option<TensorDesc>,
    /// [rows, n] (swiglu: n / 2 columns).
    pub d: TensorDesc,
    /// `None` or `Swiglu`.
    pub activation: Activation,
}

impl GroupedGemm {
    /// Describes a product of the rows of `a` [rows, k] with their expert's `b` [experts, n, k].
    pub fn builder(a: TensorDesc, b: TensorDesc, expert_offsets: TensorDesc) -> GroupedGemmBuilder {
        GroupedGemmBuilder::new(a, b, expert_offsets)
    }

    /// Rows of `a` and `d`.
    pub fn rows(&self) -> u64 {
        self.a.shape()[0]
    }

    /// Number of experts.
    pub fn experts(&self) -> u64 {
        self.b.shape()[0]
    }

    /// Columns of the product: those of `d`, or twice as many with `Swiglu`.
    pub fn n(&self) -> u64 {
        self.b.shape()[1]
    }

    /// Length of the sums.
    pub fn k(&self) -> u64 {
        self.a.shape()[1]
    }

    /// The dtype of b's elements, in blocks or not.
    pub fn b_dtype(&self) -> DType {
        self.b_format.unwrap_or(self.b.dtype)
    }

    /// Counts every row and every expert's weight: how many have rows, only the device knows.
    fn work(&self) -> Cost {
        // No more experts than rows have any.
        let reached = (self.rows() as f64 / self.experts().max(1) as f64).min(1.0);
        Cost {
            flops: 2.0 * self.rows() as f64 * self.n() as f64 * self.k() as f64,
            bytes: reached
                * (distinct_bytes(&self.b) + self.b_scale.as_ref().map_or(0.0, distinct_bytes))
                + [
                    Some(self.a),
                    Some(self.expert_offsets),
                    self.a_scale,
                    Some(self.d),
                ]
                .iter()
                .flatten()
                .map(distinct_bytes)
                .sum::<f64>(),
        }
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
            present("a_scale", self.a_scale, false),
            present("b_scale", self.b_scale, false),
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
        &["a", "b", "expert_offsets", "a_scale", "b_scale"]
    }

    fn parse(&self, signature: &Signature) -> Result<Box<dyn Op>> {
        Ok(Box::new(GroupedGemmBuilder::parse(signature)?))
    }

    fn check_values(&self, op: &dyn Op, inputs: &Operands) -> Result<()> {
        let op = downcast::<GroupedGemm>(op)?;
        let mut previous = 0;
        for (index, offset) in i32_values("expert_offsets", inputs)?.enumerate() {
            let name = format!("expert_offsets[{index}]");
            if index == 0 && offset != 0 {
                return Err(Error::invalid(&name, offset, 0));
            }
            if offset < previous {
                let expected = format!("at least {previous}, the offset before");
                return Err(Error::invalid(&name, offset, expected));
            }
            if offset as u64 > op.rows() {
                let expected = format!("at most {} rows", op.rows());
                return Err(Error::invalid(&name, offset, expected));
            }
            previous = offset;
        }
        Ok(())
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
    /// [experts, n, k]; with `b_format` U8 [experts, n, bytes of k weights].
    pub b: TensorDesc,
    /// The format of the blocks that `b` holds, one of [`DType::GGML_BLOCKS`].
    pub b_format: Option<DType>,
    /// I32 `[experts]`, on the device.
    pub counts: TensorDesc,
    /// F32 [experts, capacity, k / 128], rounded up: factors of an 8-bit float `a`.
    pub a_scale: Option<TensorDesc>,
    /// F32 [experts, n / 128, k / 128], rounded up: factors of an 8-bit float `b`.
    pub b_scale: Option<TensorDesc>,
    /// [experts, capacity, n] (swiglu: n / 2 columns); rows past the count are zero.
    pub d: TensorDesc,
    /// `None` or `Swiglu`.
    pub activation: Activation,
}

impl MaskedGroupedGemm {
    /// Describes a product of the rows of `a` [experts, capacity, k] with `b` [experts, n, k], as many as `counts` says.
    pub fn builder(a: TensorDesc, b: TensorDesc, counts: TensorDesc) -> MaskedGroupedGemmBuilder {
        MaskedGroupedGemmBuilder::new(a, b, counts)
    }

    /// Number of experts.
    pub fn experts(&self) -> u64 {
        self.b.shape()[0]
    }

    /// Rows that each expert has room for.
    pub fn capacity(&self) -> u64 {
        self.a.shape()[1]
    }

    /// Columns of the product: those of `d`, or twice as many with `Swiglu`.
    pub fn n(&self) -> u64 {
        self.b.shape()[1]
    }

    /// Length of the sums.
    pub fn k(&self) -> u64 {
        self.a.shape()[2]
    }

    /// The dtype of b's elements, in blocks or not.
    pub fn b_dtype(&self) -> DType {
        self.b_format.unwrap_or(self.b.dtype)
    }

    /// Counts every row: how many there are, only the device knows.
    fn work(&self) -> Cost {
        let rows = self.experts() as f64 * self.capacity() as f64;
        Cost {
            flops: 2.0 * rows * self.n() as f64 * self.k() as f64,
            bytes: [Some(self.a), Some(self.b), Some(self.counts), Some(self.d)]
                .iter()
                .chain(&[self.a_scale, self.b_scale])
                .flatten()
                .map(distinct_bytes)
                .sum(),
        }
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
            present("a_scale", self.a_scale, false),
            present("b_scale", self.b_scale, false),
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
        &["a", "b", "counts", "a_scale", "b_scale"]
    }

    fn parse(&self, signature: &Signature) -> Result<Box<dyn Op>> {
        Ok(Box::new(MaskedGroupedGemmBuilder::parse(signature)?))
    }

    fn check_values(&self, op: &dyn Op, inputs: &Operands) -> Result<()> {
        let op = downcast::<MaskedGroupedGemm>(op)?;
        for (index, count) in i32_values("counts", inputs)?.enumerate() {
            if u64::try_from(count).is_ok_and(|count| count <= op.capacity()) {
                continue;
            }
            let expected = format!("0 to {} (capacity)", op.capacity());
            return Err(Error::invalid(&format!("counts[{index}]"), count, expected));
        }
        Ok(())
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

/// Bytes of the elements that a tensor has: those that broadcast or overlap count once, as far as its span tells.
fn distinct_bytes(desc: &TensorDesc) -> f64 {
    let elements = desc.layout.elements().min(desc.layout.span());
    elements as f64 * desc.dtype.size().unwrap_or(1) as f64
}

fn downcast<T: 'static>(op: &dyn Op) -> Result<&T> {
    op.as_any()
        .downcast_ref()
        .ok_or_else(|| Error::invalid("op", op.name(), std::any::type_name::<T>()))
}

/// The elements of an I32 vector one after another: a view may be longer than any memory.
fn i32_values<'a>(name: &str, inputs: &'a Operands) -> Result<impl Iterator<Item = i32> + use<'a>> {
    let tensor = inputs
        .get(name)
        .ok_or_else(|| Error::invalid(name, "nothing", "a tensor"))?;
    match (tensor.desc.dtype, tensor.shape()) {
        (DType::I32, &[elements]) => Ok((0..elements).map(|i| tensor.at(&[i]) as i32)),
        _ => Err(Error::invalid(name, tensor.desc, "a vector of I32")),
    }
}
