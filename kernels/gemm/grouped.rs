//! The planner of `grouped_gemm` and `grouped_gemm_masked`, and of the grouped products inside other ops.
//!
//! Which rows belong to which expert stands on the device. So the grid is sized for the worst case, and each group finds
//! its expert in the offsets (or counts) by itself; groups without rows end at once.

use ropeway_core::Result;
use ropeway_core::dtype::DType;
use ropeway_core::info::{DeviceInfo, DeviceKind};
use ropeway_core::kernel::{Config, Kernel, Language};
use ropeway_core::memory::TensorDesc;
use ropeway_core::op::{PlanRequest, TuneKey};
use ropeway_core::plan::{Arg, Determinism, Expr, Launch, Plan, Symbol};

use super::manifest::{
    GROUPED_CUBE, GROUPED_MMA, GROUPED_MMA_SMALL, GROUPED_NATIVE, GROUPED_PACKED, GROUPED_SCALED,
    GROUPED_SUBGROUP, GROUPED_TILED, GROUPED_WGMMA, GROUPED_WGMMA_SMALL,
};
use super::plan::ascend;
pub(crate) use super::plan::ascend::Way;
use super::plan::{
    activation_code, available, b_panels, b_rule, blocks, cuda, f32_bytes, mma, module, plain_rule,
    scaled, subgroup, supported_dtypes, tile_of, wgmma, workspace,
};
use super::{Activation, GroupedGemm, MaskedGroupedGemm};

/// A grouped product in the terms of the kernels. `a`, `b`, `d` and `routing` may be operands or workspace.
#[derive(Clone, Debug)]
pub(crate) struct GroupedProduct {
    /// Rows in expert order, [rows, k] or, masked, [experts, capacity, k].
    pub(crate) a: Arg,
    /// Strides of expert (masked only), row, and k.
    pub(crate) a_strides: [Expr; 3],
    /// [experts, n, k].
    pub(crate) b: Arg,
    /// Strides of expert, n and k.
    pub(crate) b_strides: [Expr; 3],
    /// What a and b are multiplied by.
    pub(crate) scales: [Scale; 2],
    /// I32: `expert_offsets` [experts + 1], or `counts` [experts] if masked.
    pub(crate) routing: Arg,
    /// [rows, n] or [experts, capacity, n]; half of n under swiglu.
    pub(crate) d: Arg,
    /// Strides of expert (masked only), row, and column.
    pub(crate) d_strides: [Expr; 3],
    /// Rows of this run (masked: experts * capacity).
    pub(crate) rows: Expr,
    /// The most rows the plan shall hold for.
    pub(crate) rows_max: u64,
    /// Rows an expert has room for, if masked.
    pub(crate) capacity: Option<u64>,
    /// Number of experts.
    pub(crate) experts: u64,
    /// Columns of b's transpose.
    pub(crate) n: u64,
    /// Reduction length.
    pub(crate) k: u64,
    /// `None` or `Swiglu`.
    pub(crate) activation: Activation,
    /// Of a, b and d.
    pub(crate) dtypes: [DType; 3],
    /// How an Ascend NPU's cube cores get a and b.
    pub(crate) ways: [Way; 2],
    /// Whether d's columns lie side by side.
    pub(crate) d_is_dense: bool,
    /// Whether tensor maps take a and b as they lie, k side by side.
    pub(crate) is_mapped: bool,
    /// Whether one takes d.
    pub(crate) d_is_mapped: bool,
}

/// Factors of an operand in 8-bit floats: one for each row (of b: 128 rows) and 128 k; none by default.
#[derive(Clone, Debug)]
pub(crate) struct Scale {
    /// Where they lie.
    pub(crate) arg: Arg,
    /// Strides of expert, row and block of k.
    pub(crate) strides: [Expr; 3],
}

impl Default for Scale {
    fn default() -> Scale {
        Scale {
            arg: Arg::Absent,
            strides: [0; 3].map(Expr::Const),
        }
    }
}

impl Scale {
    /// An operand whose axes from `rows` on are rows and blocks of k.
    pub(super) fn of(operand: usize, experts: Option<usize>, rows: usize) -> Scale {
        let stride = |axis| Expr::stride(operand, axis);
        Scale {
            arg: Arg::operand(operand),
            strides: [
                experts.map_or(Expr::Const(0), stride),
                stride(rows),
                stride(rows + 1),
            ],
        }
    }
}

/// The kernels for grouped products of these dtypes and this k, best first; `is_mapped`: tensor maps take a and b.
pub(crate) fn candidates(
    dtypes: [DType; 3],
    k: u64,
    is_mapped: bool,
    info: &DeviceInfo,
) -> Result<Vec<&'static Kernel>> {
    let [a, b, d] = dtypes;
    supported_dtypes(a, b, d)?;
    if scaled::is_eight_bits(a) {
        return available(&scaled::grouped_candidates(is_mapped, info)?, info);
    }
    if info.languages.contains(&Language::CudaC) {
        return available(&cuda::grouped_candidates(dtypes, is_mapped), info);
    }
    if info.languages.contains(&Language::AscendC) {
        return available(&[&GROUPED_CUBE], info);
    }
    if DType::GGML_BLOCKS.contains(&b) {
        return blocks::grouped_candidates(k, info);
    }
    let wanted: Vec<&'static Kernel> = match info.kind {
        DeviceKind::Cpu => vec![
            &GROUPED_NATIVE,
            &GROUPED_SUBGROUP,
            &GROUPED_PACKED,
            &GROUPED_TILED,
        ],
        _ => vec![
            &GROUPED_NATIVE,
            &GROUPED_TILED,
            &GROUPED_PACKED,
            &GROUPED_SUBGROUP,
        ],
    };
    subgroup::available_for(k, wanted, info)
}

/// The kernel and configuration for a grouped product: the forced, tuned or default one.
pub(crate) fn choose(
    product: &GroupedProduct,
    request: &PlanRequest<'_>,
) -> Result<(&'static Kernel, Config)> {
    let [a, b, _] = product.dtypes;
    let key = TuneKey {
        op: "grouped_gemm",
        variant: &format!("{a}_{b}").to_lowercase(),
        sizes: &[
            ("rows", product.rows_max),
            ("experts", product.experts),
            ("n", product.n),
            ("k", product.k),
        ],
    };
    let mut wanted = candidates(product.dtypes, product.k, product.is_mapped, request.info)?;
    cuda::order_by_rows(&mut wanted, product);
    scaled::order_by_rows(&mut wanted, product);
    request.choose(&key, &wanted)
}

/// Adds the launches of a grouped product to a plan.
pub(crate) fn append(
    plan: &mut Plan,
    kernel: &'static Kernel,
    config: &Config,
    info: &DeviceInfo,
    product: &GroupedProduct,
) -> Result<()> {
    if kernel.name == GROUPED_SUBGROUP.name {
        subgroup::append_grouped(plan, config, info, product);
        return Ok(());
    }
    if kernel.name == GROUPED_CUBE.name {
        return ascend::append_grouped(plan, config, info, product);
    }
    if kernel.name == GROUPED_NATIVE.name {
        append_native(plan, config, product);
        return Ok(());
    }
    if [GROUPED_MMA.name, GROUPED_MMA_SMALL.name].contains(&kernel.name) {
        mma::append_grouped(plan, kernel, config, product);
        return Ok(());
    }
    if [GROUPED_WGMMA.name, GROUPED_WGMMA_SMALL.name].contains(&kernel.name) {
        wgmma::append_grouped(plan, kernel, config, info, product);
        return Ok(());
    }
    if kernel.name == GROUPED_SCALED.name {
        scaled::append_grouped(plan, config, product);
        return Ok(());
    }
    if scaled::is_by_warpgroups(kernel) {
        scaled::append_grouped_by_warpgroups(plan, kernel, config, info, product);
        return Ok(());
    }
    if kernel.name == GROUPED_TILED.name {
        append_tiled(plan, config, product);
        return Ok(());
    }
    append_packed(plan, config, product)
}

impl GroupedProduct {
    /// rows, experts, capacity, masked
    pub(super) fn sizes(&self) -> [Expr; 4] {
        [
            self.rows.clone(),
            self.experts.into(),
            self.capacity.unwrap_or(0).into(),
            i64::from(self.capacity.is_some()).into(),
        ]
    }

    /// The most blocks of `size` rows, with one block of rows that belong to no expert for each `size` of them.
    pub(super) fn blocks(&self, size: u64) -> Expr {
        match self.capacity {
            Some(capacity) => Expr::from(self.experts.saturating_mul(capacity.div_ceil(size))),
            None => self.rows.clone().div_ceil(size) + Expr::from(self.experts),
        }
    }

    fn blocks_max(&self, size: u64) -> u64 {
        match self.capacity {
            Some(capacity) => self.experts.saturating_mul(capacity.div_ceil(size)),
            None => self.rows_max.div_ceil(size).saturating_add(self.experts),
        }
    }
}

fn append_native(plan: &mut Plan, config: &Config, product: &GroupedProduct) {
    let module = plan.module(module(&GROUPED_NATIVE, config, product.dtypes));
    let mut args = vec![
        product.a.clone(),
        product.b.clone(),
        product.routing.clone(),
        product.d.clone(),
        Arg::Status,
    ];
    args.extend(product.sizes().map(Arg::U64));
    args.extend([product.n, product.k].map(|v| Arg::U64(v.into())));
    args.push(Arg::U32(activation_code(product.activation).into()));
    for strides in [&product.a_strides, &product.b_strides, &product.d_strides] {
        args.extend(strides.clone().map(Arg::U64));
    }
    for scale in &product.scales {
        args.push(scale.arg.clone());
        args.extend(scale.strides.clone().map(Arg::U64));
    }
    plan.launches.push(Launch {
        module,
        entry: "grouped_gemm",
        grid: [product.rows.clone(), product.n.into(), 1.into()],
        group: [1; 3],
        local_memory: 0,
        args,
    });
}

fn append_tiled(plan: &mut Plan, config: &Config, product: &GroupedProduct) {
    let module = plan.module({
        let mut config = config.clone();
        config.set("GROUPED", 1);
        module(&GROUPED_TILED, &config, product.dtypes)
    });
    let [group, tile] = tile_of(config);
    let mut args = vec![
        product.a.clone(),
        product.b.clone(),
        product.routing.clone(),
        product.d.clone(),
        Arg::Status,
    ];
    args.extend(product.sizes().map(Arg::U32));
    args.extend([product.n, product.k].map(|v| Arg::U32(v.into())));
    args.push(Arg::U32(activation_code(product.activation).into()));
    for strides in [&product.a_strides, &product.b_strides, &product.d_strides] {
        args.extend(strides.clone().map(Arg::U64));
    }
    plan.launches.push(Launch {
        module,
        entry: "grouped_tiled",
        grid: [
            product.n.div_ceil(tile.into()).into(),
            product.blocks(tile.into()),
            1.into(),
        ],
        group: [group, group, 1],
        local_memory: 0,
        args,
    });
}

fn append_packed(plan: &mut Plan, config: &Config, product: &GroupedProduct) -> Result<()> {
    let module = plan.module({
        let mut config = config.clone();
        config.set("B_PANEL_IS_PRIVATE", 1);
        module(&GROUPED_PACKED, &config, product.dtypes)
    });
    let mr = config.value("MR") as u64;
    let range = plan.take_workspace(f32_bytes(&[product.blocks_max(mr), mr, product.k])?);
    let panels = |write| workspace(&range, DType::F32, write);
    let mut args = vec![
        product.a.clone(),
        product.routing.clone(),
        panels(true),
        Arg::Status,
    ];
    args.extend(product.sizes().map(Arg::U32));
    args.push(Arg::U32(product.k.into()));
    args.extend(product.a_strides.clone().map(Arg::U64));
    plan.launches.push(Launch {
        module,
        entry: "grouped_pack",
        grid: [product.blocks(mr), 1.into(), 1.into()],
        group: [1; 3],
        local_memory: 0,
        args,
    });
    let mut args = vec![
        panels(false),
        product.b.clone(),
        product.routing.clone(),
        product.d.clone(),
    ];
    args.extend(product.sizes().map(Arg::U32));
    args.extend([product.n, product.k].map(|v| Arg::U32(v.into())));
    args.push(Arg::U32(activation_code(product.activation).into()));
    args.extend(product.b_strides.clone().map(Arg::U64));
    args.extend(product.d_strides.clone().map(Arg::U64));
    plan.launches.push(Launch {
        module,
        entry: "grouped_gemm",
        grid: [
            b_panels(product.n, product.activation).into(),
            product.blocks(config.value("BLOCK_M") as u64),
            1.into(),
        ],
        group: [1; 3],
        local_memory: 0,
        args,
    });
    Ok(())
}

/// Operands of both ops: a, b, offsets or counts, the scales that there are, d.
const A: usize = 0;
const B: usize = 1;
const ROUTING: usize = 2;
const SCALES: usize = 3;

/// The number of d.
fn d_operand(scales: [Option<TensorDesc>; 2]) -> usize {
    SCALES + scales.iter().flatten().count()
}

/// The scales of a, whose rows are axis `rows`, and of b.
fn scales([a, b]: [Option<TensorDesc>; 2], rows: usize, k: u64) -> [Scale; 2] {
    let of = |scale: Option<TensorDesc>, operand, experts, rows| match scale {
        Some(_) if k > 0 => Scale::of(operand, experts, rows),
        _ => Scale::default(),
    };
    let b_operand = SCALES + usize::from(a.is_some());
    [
        of(a, SCALES, rows.checked_sub(1), rows),
        of(b, b_operand, Some(0), 1),
    ]
}

fn strides(operand: usize, first: usize) -> [Expr; 3] {
    [0, 1, 2].map(|i| match (first + i).checked_sub(1) {
        Some(axis) => Expr::stride(operand, axis),
        None => Expr::Const(0),
    })
}

fn ways(a: &TensorDesc, b: &TensorDesc) -> [Way; 2] {
    [
        ascend::grouped_way(a, b.dtype),
        ascend::grouped_way(b, a.dtype),
    ]
}

/// Whether the last axis lies side by side.
fn is_dense(desc: &TensorDesc) -> bool {
    let last = desc.layout.rank() - 1;
    desc.shape()[last] <= 1 || desc.layout.strides()[last] == 1
}

/// Whether a tensor map takes rows as they lie, columns side by side.
pub(crate) fn are_mapped_rows(desc: &TensorDesc) -> bool {
    wgmma::is_mapped(desc, desc.layout.rank() - 1)
}

/// Whether tensor maps take a and b; of 8-bit floats, whether besides a tile's halves under swiglu have one scale each.
fn are_mapped(
    a: &TensorDesc,
    b: &TensorDesc,
    b_format: Option<DType>,
    activation: Activation,
) -> bool {
    let halves_are_whole =
        || !scaled::is_eight_bits(a.dtype) || scaled::halves_are_whole(activation, b.shape()[1]);
    b_format.is_none() && are_mapped_rows(a) && are_mapped_rows(b) && halves_are_whole()
}

impl GroupedProduct {
    /// Requires of what is bound to an operand's last axis what a kernel for cube cores takes for granted.
    fn require_units(&self, kernel: &Kernel, plan: &mut Plan) {
        if kernel.name != GROUPED_CUBE.name {
            return;
        }
        let [a, b] = self.ways.map(|way| way == Way::Along);
        for (operand, _) in [(A, a), (B, b), (plan.operands.len() - 1, self.d_is_dense)]
            .into_iter()
            .filter(|(_, required)| *required)
        {
            let last = plan.operands[operand].strides.len() - 1;
            ascend::require_unit(plan, operand, last);
        }
    }

    fn of_offsets(op: &GroupedGemm) -> GroupedProduct {
        let op_scales = [op.a_scale, op.b_scale];
        let d = d_operand(op_scales);
        GroupedProduct {
            a: Arg::operand(A),
            a_strides: strides(A, 0),
            b: Arg::operand(B),
            b_strides: strides(B, 1),
            scales: scales(op_scales, 0, op.k()),
            routing: Arg::operand(ROUTING),
            d: Arg::operand(d),
            d_strides: strides(d, 0),
            rows: Expr::extent(A, 0),
            rows_max: op.a.shape()[0],
            capacity: None,
            experts: op.b.shape()[0],
            n: op.n(),
            k: op.k(),
            activation: op.activation,
            dtypes: [op.a.dtype, op.b_dtype(), op.d.dtype],
            ways: ways(&op.a, &op.b),
            d_is_dense: is_dense(&op.d),
            is_mapped: are_mapped(&op.a, &op.b, op.b_format, op.activation),
            d_is_mapped: are_mapped_rows(&op.d),
        }
    }

    fn of_counts(op: &MaskedGroupedGemm) -> GroupedProduct {
        let [experts, capacity] = [op.a.shape()[0], op.a.shape()[1]];
        let op_scales = [op.a_scale, op.b_scale];
        let d = d_operand(op_scales);
        GroupedProduct {
            a: Arg::operand(A),
            a_strides: strides(A, 1),
            b: Arg::operand(B),
            b_strides: strides(B, 1),
            scales: scales(op_scales, 1, op.k()),
            routing: Arg::operand(ROUTING),
            d: Arg::operand(d),
            d_strides: strides(d, 1),
            rows: Expr::from(experts.saturating_mul(capacity)),
            rows_max: experts.saturating_mul(capacity),
            capacity: Some(capacity),
            experts,
            n: op.n(),
            k: op.k(),
            activation: op.activation,
            dtypes: [op.a.dtype, op.b_dtype(), op.d.dtype],
            ways: ways(&op.a, &op.b),
            d_is_dense: is_dense(&op.d),
            is_mapped: are_mapped(&op.a, &op.b, op.b_format, op.activation),
            d_is_mapped: are_mapped_rows(&op.d),
        }
    }
}

/// The rules of the scales that there are.
fn push_scales(plan: &mut Plan, [a, b]: [Option<TensorDesc>; 2], varies: Option<usize>) {
    let rule = |(name, scale, varies): (_, Option<TensorDesc>, _)| {
        scale.map(|scale| plain_rule(name, &scale, false, varies))
    };
    let rules = [("a_scale", a, varies), ("b_scale", b, None)].map(rule);
    plan.operands.extend(rules.into_iter().flatten());
}

pub(super) fn grouped_gemm_candidates(
    op: &GroupedGemm,
    info: &DeviceInfo,
) -> Result<Vec<&'static Kernel>> {
    let dtypes = [op.a.dtype, op.b_dtype(), op.d.dtype];
    let is_mapped = are_mapped(&op.a, &op.b, op.b_format, op.activation);
    candidates(dtypes, op.k(), is_mapped, info)
}

pub(super) fn grouped_gemm(op: &GroupedGemm, request: &PlanRequest<'_>) -> Result<Plan> {
    let product = GroupedProduct::of_offsets(op);
    let (kernel, config) = choose(&product, request)?;
    let mut plan = Plan::new("grouped_gemm", Determinism::RunToRun);
    plan.symbols.push(Symbol {
        name: "rows",
        max: product.rows_max,
    });
    plan.operands = vec![
        plain_rule("a", &op.a, false, Some(0)),
        b_rule(&op.b, op.b_format),
        plain_rule("expert_offsets", &op.expert_offsets, false, None),
    ];
    push_scales(&mut plan, [op.a_scale, op.b_scale], Some(0));
    plan.operands.push(plain_rule("d", &op.d, true, Some(0)));
    product.require_units(kernel, &mut plan);
    append(&mut plan, kernel, &config, request.info, &product)?;
    Ok(plan)
}

pub(super) fn grouped_gemm_masked_candidates(
    op: &MaskedGroupedGemm,
    info: &DeviceInfo,
) -> Result<Vec<&'static Kernel>> {
    let dtypes = [op.a.dtype, op.b_dtype(), op.d.dtype];
    let is_mapped = are_mapped(&op.a, &op.b, op.b_format, op.activation);
    candidates(dtypes, op.k(), is_mapped, info)
}

pub(super) fn grouped_gemm_masked(
    op: &MaskedGroupedGemm,
    request: &PlanRequest<'_>,
) -> Result<Plan> {
    let product = GroupedProduct::of_counts(op);
    let (kernel, config) = choose(&product, request)?;
    let mut plan = Plan::new("grouped_gemm_masked", Determinism::RunToRun);
    plan.operands = vec![
        plain_rule("a", &op.a, false, None),
        b_rule(&op.b, op.b_format),
        plain_rule("counts", &op.counts, false, None),
    ];
    push_scales(&mut plan, [op.a_scale, op.b_scale], None);
    plan.operands.push(plain_rule("d", &op.d, true, None));
    product.require_units(kernel, &mut plan);
    append(&mut plan, kernel, &config, request.info, &product)?;
    Ok(plan)
}
