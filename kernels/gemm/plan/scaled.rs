//! Products of 8-bit floats with scales for blocks of them: which kernels take them, and their launches.
//!
//! Hopper's matrix units take such operands only along k, and its copy engine tensors whose k lies side by side while rows step by multiples of 16 bytes. The
//! planner offers `gemm_wgmma_scaled` where the described operands lie so, and the plan requires it of what is bound.

use ropeway_core::dtype::DType;
use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::{Config, Kernel, Language};
use ropeway_core::memory::TensorDesc;
use ropeway_core::plan::{Arg, Expr, Launch, Plan};
use ropeway_core::{Error, Result};

use super::super::Activation;
use super::super::check::SCALE_BLOCK;
use super::super::grouped::{GroupedProduct, Scale};
use super::super::manifest::{
    GROUPED_NATIVE, GROUPED_SCALED, GROUPED_WGMMA_SCALED, GROUPED_WGMMA_SCALED_SMALL, NATIVE,
    SCALED, WGMMA_SCALED, WGMMA_SCALED_SMALL, wgmma_scaled_shared_memory, wgmma_scaled_threads,
};
use super::wgmma::{cluster, d_tile, is_mapped, map, require_mapped};
use super::{Problem, Side, activation_code, module, tile_of};

/// Rows and columns of the larger tiles of warpgroups.
const LARGE_TILE: [u64; 2] = [128; 2];
/// Most rows, of an expert on average, for tiles of 64 rows.
const FEW_ROWS: u64 = 64;

/// Whether an operand of this dtype makes the product one of 8-bit floats.
pub(in super::super) fn is_eight_bits(a: DType) -> bool {
    a == DType::F8E4M3
}

/// Every kernel that takes a product, best first.
pub(super) fn gemm_candidates(
    problem: &Problem<'_>,
    info: &DeviceInfo,
) -> Result<Vec<&'static Kernel>> {
    let op = problem.op;
    let [_, a_k, b_k, _] = problem.element_strides();
    let by_warpgroups = problem.batch.is_empty()
        && problem.k > 0
        && [a_k, b_k] == [1, 1]
        && is_mapped(&op.a, k_axis(&op.a, op.trans_a))
        && is_mapped(&op.b, k_axis(&op.b, !op.trans_b))
        && halves_are_whole(op.activation, problem.n)
        && !op.d.shape().contains(&0);
    let few =
        problem.m_max <= FEW_ROWS || problem.tiles(LARGE_TILE) < u64::from(info.compute_units);
    of(
        info,
        match (by_warpgroups, few) {
            (true, false) => vec![&WGMMA_SCALED, &WGMMA_SCALED_SMALL, &SCALED],
            (true, true) => vec![&WGMMA_SCALED_SMALL, &WGMMA_SCALED, &SCALED],
            (false, _) => vec![&SCALED],
        },
        &NATIVE,
    )
}

/// Every kernel that takes a grouped product, best first; `is_mapped`: tensor maps take a and b.
pub(in super::super) fn grouped_candidates(
    is_mapped: bool,
    info: &DeviceInfo,
) -> Result<Vec<&'static Kernel>> {
    of(
        info,
        match is_mapped {
            true => vec![
                &GROUPED_WGMMA_SCALED,
                &GROUPED_WGMMA_SCALED_SMALL,
                &GROUPED_SCALED,
            ],
            false => vec![&GROUPED_SCALED],
        },
        &GROUPED_NATIVE,
    )
}

/// Puts the kernel first that suits the number of rows.
pub(in super::super) fn order_by_rows(wanted: &mut [&'static Kernel], product: &GroupedProduct) {
    if product.rows_max <= product.experts.saturating_mul(FEW_ROWS) {
        wanted.sort_by_key(|kernel| kernel.name != GROUPED_WGMMA_SCALED_SMALL.name);
    }
}

/// Whether a kernel is one of gemm_wgmma_scaled.cu.
pub(in super::super) fn is_by_warpgroups(kernel: &Kernel) -> bool {
    [
        &WGMMA_SCALED,
        &WGMMA_SCALED_SMALL,
        &GROUPED_WGMMA_SCALED,
        &GROUPED_WGMMA_SCALED_SMALL,
    ]
    .iter()
    .any(|other| other.name == kernel.name)
}

/// The axis of k: the last one, or the one before.
fn k_axis(desc: &TensorDesc, transposed: bool) -> usize {
    desc.layout.rank() - if transposed { 2 } else { 1 }
}

/// Whether a tile's columns of gate and of up, 64 at most, have one scale each.
pub(in super::super) fn halves_are_whole(activation: Activation, n: u64) -> bool {
    activation != Activation::Swiglu || (n / 2).is_multiple_of(SCALE_BLOCK / 2)
}

/// Columns of d for `n` of the product, be it whole or a tile.
fn columns(activation: Activation, n: u64) -> u64 {
    match activation {
        Activation::Swiglu => n / 2,
        _ => n,
    }
}

/// Whether d lies as a tensor map takes it, and a tile has the columns of a panel.
fn stores_by_map(is_mapped: bool, columns: u64, dtype: DType) -> bool {
    is_mapped && columns >= d_tile(dtype)[0]
}

/// The plan of a product by warpgroups.
pub(super) fn gemm_by_warpgroups(
    problem: &Problem<'_>,
    kernel: &'static Kernel,
    config: &Config,
    info: &DeviceInfo,
    plan: &mut Plan,
) {
    let op = problem.op;
    let [block_m, block_n] = ["BLOCK_M", "BLOCK_N"].map(|name| config.value(name) as u64);
    let cluster = cluster(config, problem.m_max.div_ceil(block_m));
    let [columns, tile_columns] = [problem.n, block_n].map(|n| columns(op.activation, n));
    let d_by_map = stores_by_map(is_mapped(&op.d, 1), tile_columns, op.d.dtype);
    let module = plan.module({
        let mut config = config.clone();
        config
            .set("CLUSTER", cluster as i64)
            .set("ACTIVATION", activation_code(op.activation))
            .set("HAS", problem.has)
            .set("D_BY_MAP", d_by_map.into());
        problem.module(kernel, &config)
    });
    let [a_unit, b_unit] = [k_axis(&op.a, op.trans_a), k_axis(&op.b, !op.trans_b)];
    require_mapped(&mut plan.operands[problem.a.operand], a_unit);
    require_mapped(&mut plan.operands[problem.b.operand], b_unit);
    if d_by_map {
        require_mapped(&mut plan.operands[problem.d.operand], 1);
    }
    let (m, n, k) = (&problem.m, problem.n, problem.k);
    let matrix = |side: &Side, dtype, [first, second]: [Expr; 2], stride: &Expr, tile| {
        let extents = [first, second, 1.into()];
        map(
            side.arg(&[]),
            dtype,
            extents,
            [stride.clone(), 1.into()],
            tile,
        )
    };
    let (a, b, d) = (&problem.a, &problem.b, &problem.d);
    let [a_tile, b_tile] = [block_m, block_n / 2].map(|lines| [SCALE_BLOCK, lines]);
    let mut args = vec![
        matrix(a, op.a.dtype, [k.into(), m.clone()], &a.row, a_tile),
        matrix(b, op.b.dtype, [k, n].map(Expr::from), &b.column, b_tile),
    ];
    if d_by_map {
        let extents = [columns.into(), m.clone()];
        args.push(matrix(d, op.d.dtype, extents, &d.row, d_tile(op.d.dtype)));
    }
    args.extend([problem.c_arg(&[]), problem.bias_arg(), d.arg(&[])]);
    let scales = problem.scales();
    args.extend(scales.iter().map(|scale| scale.arg.clone()));
    args.push(Arg::U32(m.clone()));
    args.extend([n, k].map(|v| Arg::U32(v.into())));
    args.extend([op.alpha, op.beta].map(Arg::F32));
    args.extend(problem.c_strides().into_iter().take(2));
    args.push(Arg::U64(problem.bias_stride()));
    args.extend([&d.row, &d.column].map(|stride| Arg::U64(stride.clone())));
    args.extend(scales.iter().flat_map(|scale| {
        let [_, row, block] = scale.strides.clone();
        [row, block].map(Arg::U64)
    }));
    let clusters =
        m.clone().div_ceil(cluster * block_m) * Expr::from(columns.div_ceil(tile_columns));
    let most = (u64::from(info.compute_units) / cluster).max(1);
    plan.launches.push(Launch {
        module,
        entry: "gemm_wgmma_scaled",
        grid: [clusters.min(most) * Expr::from(cluster), 1.into(), 1.into()],
        group: [wgmma_scaled_threads(config), 1, 1],
        local_memory: wgmma_scaled_shared_memory(config) as u32,
        args,
    });
}

/// Adds the launch of a grouped product by warpgroups.
pub(in super::super) fn append_grouped_by_warpgroups(
    plan: &mut Plan,
    kernel: &'static Kernel,
    config: &Config,
    info: &DeviceInfo,
    product: &GroupedProduct,
) {
    let [a_dtype, b_dtype, d_dtype] = product.dtypes;
    let [block_m, block_n] = ["BLOCK_M", "BLOCK_N"].map(|name| config.value(name) as u64);
    let [columns, tile_columns] = [product.n, block_n].map(|n| columns(product.activation, n));
    let d_by_map = stores_by_map(product.d_is_mapped, tile_columns, d_dtype);
    let tiles_n = columns.div_ceil(tile_columns);
    let cluster = cluster(config, tiles_n);
    let module = plan.module({
        let mut config = config.clone();
        config
            .set("GROUPED", 1)
            .set("CLUSTER", cluster as i64)
            .set("ACTIVATION", activation_code(product.activation))
            .set("D_BY_MAP", d_by_map.into());
        module(kernel, &config, product.dtypes)
    });
    let mut mapped = vec![&product.a, &product.b];
    if d_by_map {
        mapped.push(&product.d);
    }
    for arg in mapped {
        if let Arg::Operand { operand, .. } = arg {
            let rule = &mut plan.operands[*operand];
            let last = rule.strides.len() - 1;
            require_mapped(rule, last);
        }
    }
    // Without capacities all rows are those of one matrix.
    let [rows, matrices] = match product.capacity {
        Some(capacity) => [capacity, product.experts].map(Expr::from),
        None => [product.rows.clone(), Expr::from(1)],
    };
    let rows_map = |base: &Arg, dtype, columns: u64, strides: &[Expr; 3], tile| {
        let [matrix, row, _] = strides.clone();
        let extents = [columns.into(), rows.clone(), matrices.clone()];
        map(base.clone(), dtype, extents, [row, matrix], tile)
    };
    let [expert, column, _] = product.b_strides.clone();
    let mut args = vec![
        rows_map(
            &product.a,
            a_dtype,
            product.k,
            &product.a_strides,
            [SCALE_BLOCK, block_m / cluster],
        ),
        map(
            product.b.clone(),
            b_dtype,
            [product.k, product.n, product.experts].map(Expr::from),
            [column, expert],
            [SCALE_BLOCK, block_n / 2],
        ),
    ];
    if d_by_map {
        let tile = d_tile(d_dtype);
        let strides = &product.d_strides;
        args.push(rows_map(&product.d, d_dtype, columns, strides, tile));
    }
    args.extend([product.routing.clone(), product.d.clone(), Arg::Status]);
    args.extend(product.scales.iter().map(|scale| scale.arg.clone()));
    args.extend(product.sizes().map(Arg::U32));
    args.extend([product.n, product.k].map(|v| Arg::U32(v.into())));
    args.extend(product.d_strides.clone().map(Arg::U64));
    for scale in &product.scales {
        args.extend(scale.strides.clone().map(Arg::U64));
    }
    let clusters = product.blocks(block_m) * Expr::from(tiles_n.div_ceil(cluster));
    let most = (u64::from(info.compute_units) / cluster).max(1);
    plan.launches.push(Launch {
        module,
        entry: "grouped_wgmma_scaled",
        grid: [clusters.min(most) * Expr::from(cluster), 1.into(), 1.into()],
        group: [wgmma_scaled_threads(config), 1, 1],
        local_memory: wgmma_scaled_shared_memory(config) as u32,
        args,
    });
}

fn of(
    info: &DeviceInfo,
    cuda: Vec<&'static Kernel>,
    native: &'static Kernel,
) -> Result<Vec<&'static Kernel>> {
    if info.languages.contains(&Language::CudaC) {
        return Ok(cuda);
    }
    if info.languages.contains(&Language::Native) {
        return Ok(vec![native]);
    }
    Err(Error::unsupported(
        "F8_E4M3: kernels for this kind of device read no 8-bit floats",
    ))
}

/// Row (or block of rows) and block of k: what products without experts tell of a scale's strides.
fn scale_args(scale: &Scale) -> [Arg; 3] {
    let [_, row, block] = scale.strides.clone();
    [scale.arg.clone(), Arg::U64(row), Arg::U64(block)]
}

/// The plan of a product on CUDA cores.
pub(super) fn gemm(problem: &Problem<'_>, config: &Config, plan: &mut Plan) {
    let module = plan.module(problem.module(&SCALED, config));
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
        args.extend(problem.scales().iter().flat_map(scale_args));
        plan.launches.push(Launch {
            module,
            entry: "gemm_scaled",
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

/// Adds the launch of a grouped product on CUDA cores.
pub(in super::super) fn append_grouped(plan: &mut Plan, config: &Config, product: &GroupedProduct) {
    let module = plan.module({
        let mut config = config.clone();
        config.set("GROUPED", 1);
        module(&GROUPED_SCALED, &config, product.dtypes)
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
    for scale in &product.scales {
        args.push(scale.arg.clone());
        args.extend(scale.strides.clone().map(Arg::U64));
    }
    plan.launches.push(Launch {
        module,
        entry: "grouped_scaled",
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
