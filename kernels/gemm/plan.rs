//! The planner of `gemm`: from a checked problem and a device's description to launches. Nothing here touches a device.
//!
//! Kernels take two batch axes; further ones become a launch each. Strides are read from the bound views, so one plan
//! serves every layout of the same kind.

use std::ops::Range;

use ropeway_core::dtype::DType;
use ropeway_core::info::{DeviceInfo, DeviceKind};
use ropeway_core::kernel::{Config, Kernel, Language, ModuleKey};
use ropeway_core::memory::TensorDesc;
use ropeway_core::op::{PlanRequest, TuneKey};
use ropeway_core::plan::{
    Arg, Determinism, Expr, Extent, Form, Launch, OperandRule, Plan, StrideRule, Symbol,
};
use ropeway_core::{Error, Result};

use super::grouped::Scale;
use super::manifest::{
    CUBE, GEMV, GEMV_LANES, MATRIX, MMA, MMA_SMALL, NATIVE, PACKED, SCALED, SIMT, SUBGROUP, TILED,
    WGMMA, WGMMA_SMALL,
};
use super::{Activation, Gemm};

pub(super) mod ascend;
pub(super) mod blocks;
pub(super) mod cuda;
mod lanes;
mod matrix;
pub(super) mod mma;
pub(super) mod scaled;
pub(super) mod subgroup;
#[cfg(all(test, feature = "spec"))]
mod tests;
pub(super) mod wgmma;

/// Columns of a register tile (`NR` in panels.cl).
pub(super) const NR: u64 = 32;
/// Columns of one panel of d under swiglu: gate and up share the tile.
pub(super) const NR_SWIGLU: u64 = 16;
/// k of one work-item's share of packing.
const PACK_BLOCK: u64 = 256;
/// Most rows of the small operand of gemv.
const SKINNY: u64 = 8;
/// Work-groups per compute unit that even out their load.
const GROUPS_PER_UNIT: u64 = 16;

/// What the kernels call flags: bits of `has` in elements.cl.
const HAS_C: i64 = 1;
const HAS_BIAS: i64 = 2;
const EXACT: i64 = 4;

/// The kernels for a product, best first.
pub(super) use super::grouped::{
    grouped_gemm, grouped_gemm_candidates, grouped_gemm_masked, grouped_gemm_masked_candidates,
};

pub(super) fn gemm_candidates(op: &Gemm, info: &DeviceInfo) -> Result<Vec<&'static Kernel>> {
    supported_dtypes(op.a.dtype, op.b_dtype(), op.d.dtype)?;
    if scaled::is_eight_bits(op.a.dtype) {
        return available(&scaled::gemm_candidates(&Problem::new(op), info)?, info);
    }
    if info.languages.contains(&Language::CudaC) {
        return available(&cuda::gemm_candidates(&Problem::new(op), info), info);
    }
    if info.languages.contains(&Language::AscendC) {
        return available(&[&CUBE], info);
    }
    if op.b_format.is_some() {
        return blocks::gemm_candidates(&Problem::new(op), info);
    }
    let mut wanted: Vec<&'static Kernel> = vec![&NATIVE];
    let problem = Problem::new(op);
    if problem.skinny().is_some() {
        wanted.push(&GEMV);
    }
    wanted.extend(match info.kind {
        DeviceKind::Cpu => [&SUBGROUP, &GEMV_LANES, &MATRIX, &PACKED, &TILED],
        _ => [&GEMV_LANES, &MATRIX, &TILED, &PACKED, &SUBGROUP],
    });
    wanted.retain(|kernel| kernel.name != MATRIX.name || matrix::shape(op, info).is_some());
    wanted.retain(|kernel| kernel.name != GEMV_LANES.name || lanes::takes(&problem));
    subgroup::available_for(problem.k, wanted, info)
}

/// Those of `wanted` that the device has a language and the capabilities for.
pub(super) fn available(
    wanted: &[&'static Kernel],
    info: &DeviceInfo,
) -> Result<Vec<&'static Kernel>> {
    let mut lack = Error::unsupported("no kernel is known");
    let mut found = Vec::new();
    for kernel in wanted {
        match kernel.source_for(info) {
            Ok(_) => found.push(*kernel),
            Err(error) => lack = error,
        }
    }
    if found.is_empty() {
        return Err(lack);
    }
    Ok(found)
}

/// The pairs and outputs that the kernels of this folder convert.
pub(super) fn supported_dtypes(a: DType, b: DType, d: DType) -> Result<()> {
    use DType::{BF16, F8E4M3, F16, F32, I8, I32};
    let pair = matches!(
        (a, b),
        (F32, F32 | F16 | BF16) | (F16, F16 | F32) | (BF16, BF16) | (I8, I8)
    ) || (matches!(a, F32 | F16) && DType::GGML_BLOCKS.contains(&b))
        || (a, b) == (F8E4M3, F8E4M3);
    let output = match a {
        I8 => matches!(d, I32 | I8 | F32),
        _ => matches!(d, F32 | F16 | BF16),
    };
    if pair && output {
        Ok(())
    } else {
        Err(Error::unsupported(format!(
            "no kernel multiplies {a} by {b} into {d}"
        )))
    }
}

/// The number by which kernel sources know an activation.
pub(super) fn activation_code(activation: Activation) -> i64 {
    match activation {
        Activation::None => 0,
        Activation::Relu => 1,
        Activation::Gelu => 2,
        Activation::GeluTanh => 3,
        Activation::Silu => 4,
        Activation::Swiglu => 5,
    }
}

/// Number of panels of b, and the columns of d that each gives.
pub(super) fn b_panels(n: u64, activation: Activation) -> u64 {
    match activation {
        Activation::Swiglu => (n / 2).div_ceil(NR_SWIGLU),
        _ => n.div_ceil(NR),
    }
}

/// A kernel with its configuration and the dtypes of its operands.
pub(super) fn module(kernel: &'static Kernel, config: &Config, [a, b, d]: [DType; 3]) -> ModuleKey {
    let mut config = config.clone();
    config
        .set_dtype("A_DTYPE", a)
        .set_dtype("B_DTYPE", b)
        .set_dtype("D_DTYPE", d);
    ModuleKey { kernel, config }
}

/// The product of sizes, in bytes of f32, for a workspace.
pub(super) fn f32_bytes(sizes: &[u64]) -> Result<u64> {
    sizes
        .iter()
        .try_fold(4u64, |bytes, size| bytes.checked_mul(*size))
        .filter(|bytes| *bytes <= i64::MAX as u64 / 2)
        .ok_or_else(|| {
            Error::unsupported(format!("a workspace of {sizes:?} elements, beyond 64 bits"))
        })
}

/// A range of the workspace as an argument; absent if the problem leaves it empty.
pub(super) fn workspace(range: &Range<u64>, dtype: DType, write: bool) -> Arg {
    if range.is_empty() {
        return Arg::Absent;
    }
    Arg::Workspace {
        range: range.clone(),
        dtype,
        write,
    }
}

/// The plan of a product.
pub(super) fn gemm(op: &Gemm, request: &PlanRequest<'_>) -> Result<Plan> {
    let (kernel, config) = choose(op, request)?;
    let problem = Problem::new(op);
    let prepared = match request.prepared {
        [] => false,
        ["b"] if kernel.name == PACKED.name => true,
        names => {
            return Err(Error::unsupported(format!(
                "{} takes {names:?} in plain form only",
                kernel.name
            )));
        }
    };
    let mut plan = Plan::new("gemm", Determinism::RunToRun);
    plan.symbols.push(Symbol {
        name: "m",
        max: problem.m_max,
    });
    plan.operands = problem.rules();
    match kernel.name {
        name if name == NATIVE.name => native(&problem, &config, &mut plan),
        name if name == GEMV.name => gemv(&problem, &config, request.info, &mut plan)?,
        name if name == SUBGROUP.name => {
            subgroup::gemm(&problem, &config, request.info, &mut plan);
        }
        name if name == TILED.name || name == SIMT.name => {
            tiled(&problem, kernel, &config, &mut plan);
        }
        name if name == MMA.name || name == MMA_SMALL.name => {
            mma::gemm(&problem, kernel, &config, request.info, &mut plan)?;
        }
        name if name == WGMMA.name || name == WGMMA_SMALL.name => {
            wgmma::gemm(&problem, kernel, &config, request.info, &mut plan)?;
        }
        name if name == SCALED.name => scaled::gemm(&problem, &config, &mut plan),
        _ if scaled::is_by_warpgroups(kernel) => {
            scaled::gemm_by_warpgroups(&problem, kernel, &config, request.info, &mut plan);
        }
        name if name == CUBE.name => ascend::gemm(&problem, &config, request.info, &mut plan)?,
        name if name == MATRIX.name => matrix::gemm(&problem, &config, request.info, &mut plan)?,
        name if name == GEMV_LANES.name => lanes::gemv(&problem, &config, request.info, &mut plan),
        _ => packed(&problem, &config, prepared, request.info, &mut plan)?,
    }
    Ok(plan)
}

/// The plan that packs b for [`gemm`].
pub(super) fn prepare_gemm(op: &Gemm, operand: &str, request: &PlanRequest<'_>) -> Result<Plan> {
    let (kernel, config) = choose(op, request)?;
    let problem = Problem::new(op);
    if operand != "b" || kernel.name != PACKED.name || problem.launches().count() > 1 {
        return Err(Error::unsupported(format!(
            "{} takes {operand} in its plain form only",
            kernel.name
        )));
    }
    let panels = Panels::of_b(&problem)?;
    let mut plan = Plan::new("gemm_prepare", Determinism::RunToRun);
    plan.operands = vec![
        b_rule(&op.b, op.b_format),
        OperandRule {
            write: true,
            form: Form::Plain,
            ..panels.rule("prepared", &config)
        },
    ];
    let module = plan.module(problem.module(&PACKED, &config));
    // Here b is operand 0, and there is no a.
    let b = Side {
        operand: 0,
        ..Side::new(&op.b, 0, op.trans_b, problem.batch.len())
    };
    let launch = problem.pack_launch(
        module,
        &config,
        None,
        Some((&b, &panels, Arg::operand(1))),
        &[],
    );
    plan.launches.push(launch);
    Ok(plan)
}

fn choose(op: &Gemm, request: &PlanRequest<'_>) -> Result<(&'static Kernel, Config)> {
    let mut candidates = gemm_candidates(op, request.info)?;
    if request.prepared.contains(&"b") {
        candidates.retain(|kernel| kernel.name == PACKED.name);
        if candidates.is_empty() {
            return Err(Error::unsupported(format!(
                "no kernel on {} takes b in prepared form",
                request.info.name
            )));
        }
    }
    let problem = Problem::new(op);
    let letter = |transposed| if transposed { 't' } else { 'n' };
    let variant = format!(
        "{}_{}_{}{}",
        op.a.dtype,
        op.b_dtype(),
        letter(op.trans_a),
        letter(op.trans_b)
    )
    .to_lowercase();
    let key = TuneKey {
        op: "gemm",
        variant: &variant,
        sizes: &[("m", problem.m_max), ("n", problem.n), ("k", problem.k)],
    };
    request.choose(&key, &candidates)
}

/// An operand as a matrix: the strides of its bound view by role.
#[derive(Clone)]
struct Side {
    operand: usize,
    row: Expr,
    column: Expr,
    /// One for each batch axis of d; 0 where the operand broadcasts.
    batch: Vec<Expr>,
    /// Extents of the operand itself along d's batch axes, 1 where it broadcasts.
    batch_extents: Vec<u64>,
}

impl Side {
    /// `desc`'s last two axes are rows and columns, or columns and rows if `transposed`; `batches` is the number of d's batch axes.
    fn new(desc: &TensorDesc, operand: usize, transposed: bool, batches: usize) -> Side {
        let rank = desc.layout.rank();
        let (row, column) = match transposed {
            false => (rank - 2, rank - 1),
            true => (rank - 1, rank - 2),
        };
        let lead = batches + 2 - rank;
        let extent = |axis: usize| {
            if axis < lead {
                1
            } else {
                desc.shape()[axis - lead]
            }
        };
        Side {
            operand,
            row: Expr::stride(operand, row),
            column: Expr::stride(operand, column),
            batch: (0..batches)
                .map(|axis| match extent(axis) {
                    1 => Expr::Const(0),
                    _ => Expr::stride(operand, axis - lead),
                })
                .collect(),
            batch_extents: (0..batches).map(extent).collect(),
        }
    }

    /// The same matrix seen transposed.
    fn swapped(&self) -> Side {
        Side {
            row: self.column.clone(),
            column: self.row.clone(),
            ..self.clone()
        }
    }

    /// The operand from the matrix on that these indices of the leading batch axes name.
    fn arg(&self, leading: &[u64]) -> Arg {
        let at = leading
            .iter()
            .zip(&self.batch)
            .filter(|(index, _)| **index > 0)
            .fold(Expr::Const(0), |at, (index, stride)| {
                at + stride.clone() * Expr::from(*index)
            });
        Arg::Operand {
            operand: self.operand,
            at,
        }
    }

    /// Strides of the two innermost batch axes.
    fn batch_strides(&self) -> [Expr; 2] {
        let stride = |back: usize| match self.batch.len().checked_sub(back) {
            Some(axis) => self.batch[axis].clone(),
            None => Expr::Const(0),
        };
        [stride(2), stride(1)]
    }

    /// Row, column, outer and inner batch stride, as kernels take them.
    fn strides(&self) -> [Arg; 4] {
        let [outer, inner] = self.batch_strides();
        [self.row.clone(), self.column.clone(), outer, inner].map(Arg::U64)
    }
}

fn inner_extents(extents: &[u64]) -> [u64; 2] {
    let extent = |back: usize| extents.len().checked_sub(back).map_or(1, |i| extents[i]);
    [extent(2), extent(1)]
}

/// A checked problem in the terms of the kernels.
struct Problem<'a> {
    op: &'a Gemm,
    m_max: u64,
    n: u64,
    /// 0 if alpha is: then neither a nor b is read.
    k: u64,
    /// The rows of this run.
    m: Expr,
    batch: Vec<u64>,
    a: Side,
    b: Side,
    c: Option<Side>,
    bias: Option<usize>,
    /// The operands that hold the scales of a and of b.
    scales: [Option<usize>; 2],
    d: Side,
    has: i64,
}

impl<'a> Problem<'a> {
    fn new(op: &'a Gemm) -> Problem<'a> {
        let d_shape = op.d.shape();
        let batches = d_shape.len() - 2;
        let m_max = d_shape[batches];
        let last = |desc: &TensorDesc, back: usize| desc.shape()[desc.layout.rank() - back];
        let (n, k) = (op.n(), op.k());
        let bias = op.bias.map(|_| 2 + usize::from(op.c.is_some()));
        let mut d_operand = 2 + usize::from(op.c.is_some()) + usize::from(op.bias.is_some());
        let scales = [op.a_scale, op.b_scale].map(|scale| {
            d_operand += usize::from(scale.is_some());
            scale.map(|_| d_operand - 1)
        });
        let c = op.c.as_ref().map(|desc| {
            let mut side = Side::new(desc, 2, false, batches);
            if last(desc, 2) != m_max {
                side.row = Expr::Const(0);
            }
            if last(desc, 1) != n {
                side.column = Expr::Const(0);
            }
            side
        });
        let reads_c = c.is_some() && op.beta != 0.0;
        let exact = op.a.dtype == DType::I8
            && op.alpha == 1.0
            && (!reads_c || op.beta == 1.0)
            && matches!(op.activation, Activation::None | Activation::Relu);
        Problem {
            op,
            m_max,
            n,
            k: if op.alpha == 0.0 { 0 } else { k },
            m: Expr::extent(d_operand, batches),
            batch: d_shape[..batches].to_vec(),
            a: Side::new(&op.a, 0, op.trans_a, batches),
            b: Side::new(&op.b, 1, op.trans_b, batches),
            c,
            bias,
            scales,
            d: Side::new(&op.d, d_operand, false, batches),
            has: if reads_c { HAS_C } else { 0 }
                + if op.bias.is_some() { HAS_BIAS } else { 0 }
                + if exact { EXACT } else { 0 },
        }
    }

    fn module(&self, kernel: &'static Kernel, config: &Config) -> ModuleKey {
        module(
            kernel,
            config,
            [self.op.a.dtype, self.op.b_dtype(), self.op.d.dtype],
        )
    }

    fn rules(&self) -> Vec<OperandRule> {
        let op = self.op;
        let rows = |desc: &TensorDesc, back: usize| Some(desc.layout.rank() - back);
        let mut rules = vec![
            plain_rule(
                "a",
                &op.a,
                false,
                rows(&op.a, if op.trans_a { 1 } else { 2 }),
            ),
            b_rule(&op.b, op.b_format),
        ];
        if let Some(c) = &op.c {
            let varies = rows(c, 2).filter(|axis| c.shape()[*axis] == self.m_max);
            rules.push(plain_rule("c", c, false, varies));
        }
        if let Some(bias) = &op.bias {
            rules.push(plain_rule("bias", bias, false, None));
        }
        if let Some(scale) = &op.a_scale {
            rules.push(plain_rule("a_scale", scale, false, Some(0)));
        }
        if let Some(scale) = &op.b_scale {
            rules.push(plain_rule("b_scale", scale, false, None));
        }
        rules.push(plain_rule("d", &op.d, true, rows(&op.d, 2)));
        rules
    }

    /// Outer and inner batch extents of one launch.
    fn launch_batch(&self) -> [u64; 2] {
        inner_extents(&self.batch)
    }

    /// The indices of the leading batch axes: one launch (or chain of launches) each.
    fn launches(&self) -> impl Iterator<Item = Vec<u64>> + use<> {
        let leading = self.batch[..self.batch.len().saturating_sub(2)].to_vec();
        let count: u64 = leading.iter().product();
        (0..count).map(move |mut flat| {
            let mut index = vec![0; leading.len()];
            for axis in (0..leading.len()).rev() {
                index[axis] = flat % leading[axis];
                flat /= leading[axis];
            }
            index
        })
    }

    fn c_arg(&self, leading: &[u64]) -> Arg {
        match &self.c {
            Some(c) if self.has & HAS_C != 0 => c.arg(leading),
            _ => Arg::Absent,
        }
    }

    fn c_strides(&self) -> [Arg; 4] {
        match &self.c {
            Some(c) => c.strides(),
            None => [0; 4].map(|zero| Arg::U64(Expr::Const(zero))),
        }
    }

    fn bias_arg(&self) -> Arg {
        self.bias.map_or(Arg::Absent, Arg::operand)
    }

    fn bias_stride(&self) -> Expr {
        self.bias
            .map_or(Expr::Const(0), |operand| Expr::stride(operand, 0))
    }

    /// The scales of a and of b.
    fn scales(&self) -> [Scale; 2] {
        self.scales.map(|operand| match operand {
            Some(operand) if self.k > 0 => Scale::of(operand, None, 0),
            _ => Scale::default(),
        })
    }

    /// alpha, beta, has, activation
    fn epilogue(&self) -> [Arg; 4] {
        [
            Arg::F32(self.op.alpha),
            Arg::F32(self.op.beta),
            Arg::U32(self.has.into()),
            Arg::U32(activation_code(self.op.activation).into()),
        ]
    }

    /// Strides of the described a (m, k) and b (k, n), 1 where an axis has at most one element.
    fn element_strides(&self) -> [u64; 4] {
        let op = self.op;
        let stride = |desc: &TensorDesc, back: usize| {
            let axis = desc.layout.rank() - back;
            match desc.shape()[axis] {
                0 | 1 => 1,
                _ => desc.layout.strides()[axis],
            }
        };
        let axes = |transposed| if transposed { [1, 2] } else { [2, 1] };
        let [a_m, a_k] = axes(op.trans_a).map(|back| stride(&op.a, back));
        let [b_k, b_n] = axes(op.trans_b).map(|back| stride(&op.b, back));
        [a_m, a_k, b_k, b_n]
    }

    /// Whether gemv takes it, and how.
    fn skinny(&self) -> Option<Skinny> {
        let op = self.op;
        if op.b_format.is_some() {
            let few = self.m_max <= SKINNY;
            return few.then_some(Skinny {
                swapped: false,
                dot: true,
            });
        }
        let [a_m, a_k, b_k, b_n] = self.element_strides();
        let (swapped, [w_k, w_row], x_k) = if self.m_max <= SKINNY {
            (false, [b_k, b_n], a_k)
        } else if self.n <= SKINNY && op.activation != Activation::Swiglu {
            (true, [a_k, a_m], b_k)
        } else {
            return None;
        };
        let dot = w_k == 1 && x_k == 1;
        let columns = w_row == 1 && op.a.dtype != DType::I8;
        (dot || columns).then_some(Skinny { swapped, dot })
    }

    /// The launch that packs a, b or both.
    fn pack_launch(
        &self,
        module: usize,
        config: &Config,
        a: Option<(&Side, &Panels, Arg)>,
        b: Option<(&Side, &Panels, Arg)>,
        leading: &[u64],
    ) -> Launch {
        let absent = || (Arg::Absent, Arg::Absent, Expr::Const(0), Expr::Const(0), 1);
        let part = |side: Option<(&Side, &Panels, Arg)>, strips: Expr| match side {
            None => absent(),
            Some((side, panels, target)) => (
                side.arg(leading),
                target,
                strips,
                Expr::from(panels.batches.iter().product::<u64>()),
                panels.batches[1],
            ),
        };
        let a_strips = self.m.clone().div_ceil(config.value("MR"));
        let (a_arg, a_target, a_strips, a_batches, a_inner) = part(a.clone(), a_strips);
        let b_strips = b_panels(self.n, self.op.activation);
        let (b_arg, b_target, b_strips, b_batches, b_inner) = part(b.clone(), b_strips.into());
        let swiglu = self.op.activation == Activation::Swiglu;
        let m = match a {
            Some(_) => self.m.clone(),
            None => Expr::Const(0),
        };
        let strides = |side: Option<(&Side, &Panels, Arg)>| match side {
            Some((side, ..)) => side.strides(),
            None => [0; 4].map(|zero| Arg::U64(Expr::Const(zero))),
        };
        let mut args = vec![a_arg, b_arg, a_target, b_target, Arg::U32(m)];
        args.extend([self.n, self.k, u64::from(swiglu)].map(|v| Arg::U32(v.into())));
        args.extend([&a_strips, &b_strips, &a_batches].map(|v| Arg::U32(v.clone())));
        args.extend([a_inner, b_inner, PACK_BLOCK].map(|v| Arg::U32(v.into())));
        args.extend(strides(a));
        args.extend(strides(b));
        Launch {
            module,
            entry: "gemm_pack",
            grid: [
                a_strips * a_batches + b_strips * b_batches,
                self.k.div_ceil(PACK_BLOCK).into(),
                1.into(),
            ],
            group: [1; 3],
            local_memory: 0,
            args,
        }
    }
}

/// How gemv takes a problem: the large operand w is b (or a, if `swapped`), read along k (`dot`) or along its columns.
#[derive(Clone, Copy, Debug)]
struct Skinny {
    swapped: bool,
    dot: bool,
}

/// Packed panels of one operand, for the two batch axes of a launch.
struct Panels {
    /// Batches that the operand has of its own.
    batches: [u64; 2],
    /// Bytes of one batch's panels at the symbols' maxima.
    bytes: u64,
    /// Elements of one batch's panels in this run.
    size: Expr,
}

impl Panels {
    fn of_a(problem: &Problem<'_>, config: &Config) -> Result<Panels> {
        let mr = config.value("MR") as u64;
        let size = problem.m.clone().div_ceil(config.value("MR")) * Expr::from(mr * problem.k);
        Ok(Panels {
            batches: inner_extents(&problem.a.batch_extents),
            bytes: f32_bytes(&[problem.m_max.next_multiple_of(mr), problem.k])?,
            size,
        })
    }

    fn of_b(problem: &Problem<'_>) -> Result<Panels> {
        let panels = b_panels(problem.n, problem.op.activation);
        let bytes = f32_bytes(&[panels, NR, problem.k])?;
        Ok(Panels {
            batches: inner_extents(&problem.b.batch_extents),
            bytes,
            size: (bytes / 4).into(),
        })
    }

    fn total_bytes(&self) -> Result<u64> {
        f32_bytes(&[self.bytes / 4, self.batches[0], self.batches[1]])
    }

    /// Strides between batches, outer and inner.
    fn strides(&self) -> [Arg; 2] {
        let [outer, inner] = self.batches;
        let stride = |own: u64, times: u64| match own {
            1 => Expr::Const(0),
            _ => self.size.clone() * Expr::from(times),
        };
        [Arg::U64(stride(outer, inner)), Arg::U64(stride(inner, 1))]
    }

    /// The rule of a prepared operand that holds these panels.
    fn rule(&self, name: &'static str, config: &Config) -> OperandRule {
        OperandRule {
            name,
            dtype: DType::U8,
            write: false,
            shape: vec![Extent::Exactly(
                self.bytes * self.batches[0] * self.batches[1],
            )],
            strides: vec![StrideRule::Exactly(1)],
            offset_multiple: 64,
            form: Form::Prepared(format!(
                "{} version {} {config}",
                PACKED.name, PACKED.version
            )),
        }
    }
}

pub(super) fn plain_rule(
    name: &'static str,
    desc: &TensorDesc,
    write: bool,
    varies: Option<usize>,
) -> OperandRule {
    let extent = |(axis, extent): (usize, &u64)| match varies {
        Some(v) if v == axis => Extent::Varies {
            symbol: 0,
            times: 1,
            plus: 0,
        },
        _ => Extent::Exactly(*extent),
    };
    OperandRule {
        name,
        dtype: desc.dtype,
        write,
        shape: desc.shape().iter().enumerate().map(extent).collect(),
        strides: vec![StrideRule::Any; desc.layout.rank()],
        offset_multiple: 1,
        form: Form::Plain,
    }
}

/// Blocks begin at even bytes, where their F16s may be read, and follow each other along k.
pub(super) fn b_rule(b: &TensorDesc, format: Option<DType>) -> OperandRule {
    let mut rule = plain_rule("b", b, false, None);
    // Strides of what holds nothing may be any.
    if format.is_some() && !b.shape().contains(&0) {
        rule.offset_multiple = 2;
        rule.strides.fill(StrideRule::MultipleOf(2));
        rule.strides[b.layout.rank() - 1] = StrideRule::Exactly(1);
    }
    rule
}

fn native(problem: &Problem<'_>, config: &Config, plan: &mut Plan) {
    let module = plan.module(problem.module(&NATIVE, config));
    let [outer, inner] = problem.launch_batch();
    for leading in problem.launches() {
        let mut args = vec![
            if problem.k == 0 {
                Arg::Absent
            } else {
                problem.a.arg(&leading)
            },
            if problem.k == 0 {
                Arg::Absent
            } else {
                problem.b.arg(&leading)
            },
            problem.c_arg(&leading),
            problem.bias_arg(),
            problem.d.arg(&leading),
            Arg::U64(problem.m.clone()),
        ];
        args.extend([problem.n, problem.k, outer, inner].map(|v| Arg::U64(v.into())));
        args.extend(problem.epilogue());
        args.extend(problem.a.strides());
        args.extend(problem.b.strides());
        args.extend(problem.c_strides());
        args.push(Arg::U64(problem.bias_stride()));
        args.extend(problem.d.strides());
        for scale in &problem.scales() {
            args.push(scale.arg.clone());
            args.extend(scale.strides.clone().map(Arg::U64));
        }
        plan.launches.push(Launch {
            module,
            entry: "gemm",
            grid: [problem.m.clone(), problem.n.into(), (outer * inner).into()],
            group: [1; 3],
            local_memory: 0,
            args,
        });
    }
}

fn tiled(problem: &Problem<'_>, kernel: &'static Kernel, config: &Config, plan: &mut Plan) {
    let module = plan.module({
        let mut config = config.clone();
        config.set("INTEGER", (problem.op.a.dtype == DType::I8).into());
        problem.module(kernel, &config)
    });
    let [outer, inner] = problem.launch_batch();
    let [group, tile] = tile_of(config);
    for leading in problem.launches() {
        let source = |side: &Side| match problem.k {
            0 => Arg::Absent,
            _ => side.arg(&leading),
        };
        let mut args = vec![
            source(&problem.a),
            source(&problem.b),
            problem.c_arg(&leading),
            problem.bias_arg(),
            problem.d.arg(&leading),
            Arg::U32(problem.m.clone()),
        ];
        args.extend([problem.n, problem.k, inner].map(|v| Arg::U32(v.into())));
        args.extend(problem.epilogue());
        args.extend(problem.a.strides());
        args.extend(problem.b.strides());
        args.extend(problem.c_strides());
        args.push(Arg::U64(problem.bias_stride()));
        args.extend(problem.d.strides());
        plan.launches.push(Launch {
            module,
            entry: "gemm_tiled",
            grid: [
                problem.n.div_ceil(u64::from(tile)).into(),
                problem.m.clone().div_ceil(u64::from(tile)),
                outer.saturating_mul(inner).into(),
            ],
            group: [group, group, 1],
            local_memory: 0,
            args,
        });
    }
}

/// Work-items along a side of a tiled kernel's group, and elements along a side of its tile.
pub(super) fn tile_of(config: &Config) -> [u32; 2] {
    let group = config.value("GROUP") as u32;
    [group, group * config.value("PER_ITEM") as u32]
}

fn packed(
    problem: &Problem<'_>,
    config: &Config,
    prepared: bool,
    info: &DeviceInfo,
    plan: &mut Plan,
) -> Result<()> {
    if problem.op.b_format.is_some() && !prepared {
        return blocks::packed(problem, config, plan);
    }
    let module = plan.module(problem.module(&PACKED, config));
    let a_panels = Panels::of_a(problem, config)?;
    let b_panels_of_b = Panels::of_b(problem)?;
    let [outer, inner] = problem.launch_batch();
    let a_range = plan.take_workspace(a_panels.total_bytes()?);
    let b_range = match prepared {
        true if problem.launches().count() > 1 => {
            return Err(Error::unsupported(
                "prepared b with more than two batch axes",
            ));
        }
        true => {
            plan.operands[1] = b_panels_of_b.rule("b", config);
            0..0
        }
        false => plan.take_workspace(b_panels_of_b.total_bytes()?),
    };
    let a_strips = problem.m.clone().div_ceil(config.value("MR"));
    let b_strips = b_panels(problem.n, problem.op.activation);
    let batches = outer.saturating_mul(inner);
    let strips = (a_strips.clone() * Expr::from(b_strips.saturating_mul(batches)))
        .div_ceil(GROUPS_PER_UNIT * u64::from(info.compute_units.max(1)))
        .min(config.value("STRIPS"))
        .max(1);
    for leading in problem.launches() {
        let b_side = (
            &problem.b,
            &b_panels_of_b,
            workspace(&b_range, DType::U8, true),
        );
        plan.launches.push(problem.pack_launch(
            module,
            config,
            Some((&problem.a, &a_panels, workspace(&a_range, DType::F32, true))),
            (!prepared).then_some(b_side),
            &leading,
        ));
        let b_arg = match prepared {
            true => Arg::operand(1),
            false => workspace(&b_range, DType::U8, false),
        };
        let mut args = vec![
            workspace(&a_range, DType::F32, false),
            b_arg,
            problem.c_arg(&leading),
            problem.bias_arg(),
            problem.d.arg(&leading),
            Arg::U32(problem.m.clone()),
            Arg::U32(problem.n.into()),
            Arg::U32(problem.k.into()),
            Arg::U32(strips.clone()),
            Arg::U32(inner.into()),
        ];
        args.extend(problem.epilogue());
        args.extend(a_panels.strides());
        args.extend(b_panels_of_b.strides());
        args.extend(problem.c_strides());
        args.push(Arg::U64(problem.bias_stride()));
        args.extend(problem.d.strides());
        plan.launches.push(Launch {
            module,
            entry: "gemm_packed",
            grid: [
                b_strips.into(),
                a_strips.clone().div_ceil(strips.clone()),
                batches.into(),
            ],
            group: [1; 3],
            local_memory: 0,
            args,
        });
    }
    Ok(())
}

fn gemv(problem: &Problem<'_>, config: &Config, info: &DeviceInfo, plan: &mut Plan) -> Result<()> {
    let skinny = problem
        .skinny()
        .ok_or_else(|| Error::unsupported("gemv takes at most 8 rows or columns"))?;
    let x_max = if skinny.swapped {
        problem.n
    } else {
        problem.m_max
    };
    let w_max = if skinny.swapped {
        problem.m_max
    } else {
        problem.n
    };
    let mut config = config.clone();
    config
        .set("X_ROWS", x_max.max(1).next_power_of_two() as i64)
        .set("SWAPPED", skinny.swapped.into())
        .set("PREFETCH", (info.kind == DeviceKind::Cpu).into());
    let module = plan.module(problem.module(&GEMV, &config));
    let zero = || Arg::U64(Expr::Const(0));
    let bias = Arg::U64(problem.bias_stride());
    // Rows of w are columns of b, or rows of a; what is said of w's and x's rows follows.
    let (w, x, w_rows, x_rows, bias_strides) = match skinny.swapped {
        false => (
            problem.b.swapped(),
            problem.a.clone(),
            Expr::from(problem.n),
            problem.m.clone(),
            [zero(), bias],
        ),
        true => (
            problem.a.clone(),
            problem.b.swapped(),
            problem.m.clone(),
            Expr::from(problem.n),
            [bias, zero()],
        ),
    };
    let swap = |mut strides: [Arg; 4]| {
        if skinny.swapped {
            strides.swap(0, 1);
        }
        strides
    };
    let [outer, inner] = problem.launch_batch();
    let batches = outer.saturating_mul(inner);
    let panels = match problem.op.activation {
        Activation::Swiglu => (problem.n / 2).div_ceil(NR_SWIGLU).into(),
        _ => w_rows.clone().div_ceil(NR),
    };
    // The same tail of arguments closes gemv_dot and gemv_finish.
    let epilogue_operands = |leading: &[u64]| {
        [
            problem.c_arg(leading),
            problem.bias_arg(),
            problem.d.arg(leading),
        ]
    };
    let epilogue_strides = || {
        swap(problem.c_strides())
            .into_iter()
            .chain(bias_strides.clone())
            .chain(swap(problem.d.strides()))
    };
    let launch = |entry, grid, args| Launch {
        module,
        entry,
        grid,
        group: [1; 3],
        local_memory: 0,
        args,
    };
    let source = |side: &Side, leading: &[u64]| match problem.k {
        0 => Arg::Absent,
        _ => side.arg(leading),
    };
    if skinny.dot {
        for leading in problem.launches() {
            let mut args = vec![source(&w, &leading), source(&x, &leading)];
            args.extend(epilogue_operands(&leading));
            args.extend([w_rows.clone(), x_rows.clone(), problem.k.into()].map(Arg::U32));
            args.push(Arg::U32(inner.into()));
            args.extend(problem.epilogue());
            args.extend(w.strides());
            args.extend(x.strides());
            args.extend(epilogue_strides());
            // A run without rows of x has nothing to do.
            let some_x = x_rows.clone().min(1);
            plan.launches.push(launch(
                "gemv_dot",
                [panels.clone(), some_x, batches.into()],
                args,
            ));
        }
        return Ok(());
    }
    let chunk = config.value("CHUNK") as u64;
    let chunks = w_max.div_ceil(chunk).saturating_mul(batches).max(1);
    let wanted = (GROUPS_PER_UNIT / 2 * u64::from(info.compute_units.max(1))).div_ceil(chunks);
    let k_range = problem.k.div_ceil(wanted).max(64).next_multiple_of(8);
    let ranges = problem.k.div_ceil(k_range);
    let range = plan.take_workspace(f32_bytes(&[ranges, batches, x_max, w_max])?);
    let partial = |write| workspace(&range, DType::F32, write);
    for leading in problem.launches() {
        let mut args = vec![source(&w, &leading), source(&x, &leading), partial(true)];
        args.extend([w_rows.clone(), x_rows.clone()].map(Arg::U32));
        args.extend([problem.k, k_range, inner].map(|v| Arg::U32(v.into())));
        args.extend(w.strides());
        args.extend(x.strides());
        plan.launches.push(launch(
            "gemv_columns",
            [
                w_rows.clone().div_ceil(chunk),
                ranges.into(),
                batches.into(),
            ],
            args,
        ));
        let mut args = vec![partial(false)];
        args.extend(epilogue_operands(&leading));
        args.extend([w_rows.clone(), x_rows.clone()].map(Arg::U32));
        args.extend([ranges, inner].map(|v| Arg::U32(v.into())));
        args.extend(problem.epilogue());
        args.extend(epilogue_strides());
        plan.launches.push(launch(
            "gemv_finish",
            [panels.clone(), x_rows.clone(), batches.into()],
            args,
        ));
    }
    Ok(())
}
