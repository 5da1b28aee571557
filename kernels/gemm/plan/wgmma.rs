//! The launches of `gemm_wgmma` and `grouped_wgmma`: warpgroups of Hopper devices, fed by tensor maps.
//!
//! A tensor map takes a tensor whose elements lie side by side along one axis, while the others step by multiples of 16 bytes. The planner offers these kernels
//! where the described operands lie so, and the plan requires it of what is bound.

use ropeway_core::Result;
use ropeway_core::dtype::DType;
use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::{Config, DEPENDENT_LAUNCH, Kernel};
use ropeway_core::memory::TensorDesc;
use ropeway_core::plan::{Arg, Expr, Launch, OperandRule, Plan, StrideRule, TensorMap};

use super::super::Activation;
use super::super::grouped::GroupedProduct;
use super::super::manifest::{wgmma_shared_memory, wgmma_threads};
use super::mma::{Split, is_across, reduce, split, target_strides, targets, tiles_n};
use super::{Problem, Side, activation_code, f32_bytes, inner_extents, module, workspace};

/// k of one stage.
const SLICE: u64 = 64;
/// Lines of a panel of an operand that lies across k.
const PANEL: u64 = 64;
/// Rows of d that a warp stores.
const WARP_ROWS: u64 = 16;
/// Bytes of a tile's rows, and of a panel of d.
const SWIZZLE: u64 = 128;
/// Bytes of which tensor maps take multiples.
const ALIGNMENT: u64 = 16;
/// Strides of tensor maps, in bytes, end here.
const STRIDES_END: u64 = 1 << 40;
/// Of so many tiles, one may be of no row or column for the sake of clusters.
const CLUSTERED_TILES: u64 = 8;

/// Whether warpgroups multiply these.
fn takes_dtypes(a: DType, b: DType) -> bool {
    a == b && matches!(a, DType::F16 | DType::BF16)
}

/// Elements of which tensor maps take multiples.
fn multiple(dtype: DType) -> u64 {
    ALIGNMENT / dtype.size().unwrap_or(ALIGNMENT)
}

/// Whether a tensor map takes a tensor as it is described, side by side along axis `unit`.
pub(crate) fn is_mapped(desc: &TensorDesc, unit: usize) -> bool {
    let size = desc.dtype.size().unwrap_or(1);
    let axes = desc.shape().iter().zip(desc.layout.strides());
    axes.enumerate().all(|(axis, (extent, stride))| {
        let is_step = *stride > 0
            && stride.is_multiple_of(multiple(desc.dtype))
            && stride.saturating_mul(size) < STRIDES_END;
        match *extent {
            0 => false,
            1 => true,
            _ if axis == unit => *stride == 1,
            _ => is_step,
        }
    })
}

/// Requires of what is bound what [`is_mapped`] found.
pub(super) fn require_mapped(rule: &mut OperandRule, unit: usize) {
    let multiple = multiple(rule.dtype);
    rule.strides.fill(StrideRule::MultipleOf(multiple));
    rule.strides[unit] = StrideRule::Exactly(1);
    rule.offset_multiple = multiple;
}

/// A product's operands, as tensor maps take them.
struct Mapped {
    a_across: bool,
    b_across: bool,
    /// The axis of a, b and d that lies side by side.
    units: [usize; 3],
    /// Whether d is stored by the copy engine.
    d: bool,
}

impl Mapped {
    /// Nothing if a or b do not lie so.
    fn of(problem: &Problem<'_>) -> Option<Mapped> {
        let op = problem.op;
        let [a_m, a_k, b_k, b_n] = problem.element_strides();
        let a_across = is_across(op.a.dtype, a_m, a_k);
        let b_across = is_across(op.b.dtype, b_n, b_k);
        // The last axis is k of a, unless one of the two says otherwise; and n of b.
        let unit = |desc: &TensorDesc, last: bool| desc.layout.rank() - if last { 1 } else { 2 };
        let units = [
            unit(&op.a, a_across == op.trans_a),
            unit(&op.b, b_across != op.trans_b),
            unit(&op.d, true),
        ];
        let takes = takes_dtypes(op.a.dtype, op.b_dtype())
            && op.b_format.is_none()
            && problem.k > 0
            && is_mapped(&op.a, units[0])
            && is_mapped(&op.b, units[1])
            && !op.d.shape().contains(&0);
        takes.then(|| Mapped {
            a_across,
            b_across,
            units,
            d: is_mapped(&op.d, units[2]),
        })
    }
}

/// Whether `gemm_wgmma` takes a product.
pub(super) fn takes(problem: &Problem<'_>) -> bool {
    Mapped::of(problem).is_some()
}

/// A tensor map: elements side by side, lines, and as many axes of matrices. Axes of one element may have any stride, and get one that can be encoded.
pub(super) fn map<const RANK: usize, const STRIDES: usize>(
    base: Arg,
    dtype: DType,
    extents: [Expr; RANK],
    strides: [Expr; STRIDES],
    tile: [u64; 2],
) -> Arg {
    const { assert!(RANK == STRIDES + 1, "the innermost stride is 1") };
    let multiple = multiple(dtype);
    let step = |stride: Expr| match stride {
        Expr::Const(..=1) => Expr::from(multiple),
        stride => stride.max(1).div_ceil(multiple) * Expr::from(multiple),
    };
    let [first, second] = tile.map(|extent| extent as u32);
    Arg::TensorMap {
        base: Box::new(base),
        // Nothing is read of a tensor without rows, whose map must be encoded nevertheless.
        extents: extents.map(|extent| extent.max(1)).to_vec(),
        strides: [Expr::from(1)]
            .into_iter()
            .chain(strides.map(step))
            .collect(),
        map: TensorMap {
            dtype,
            rank: RANK as u8,
            tile: [first, second, 1, 1, 1],
            swizzle: SWIZZLE as u8,
        },
    }
}

/// The map of an operand of a product: `beside` and `lines` are extent and stride of the axis that lies side by side and of the other.
fn side_map(
    side: &Side,
    dtype: DType,
    leading: &[u64],
    beside: Expr,
    (lines, line_stride): (Expr, &Expr),
    tile: [u64; 2],
) -> Arg {
    let [outer_extent, inner_extent] = inner_extents(&side.batch_extents).map(Expr::from);
    let [outer, inner] = side.batch_strides();
    map(
        side.arg(leading),
        dtype,
        [beside, lines, inner_extent, outer_extent],
        [line_stride.clone(), inner, outer],
        tile,
    )
}

/// The map by which a warp stores its rows of d, a panel at a time.
pub(super) fn d_tile(dtype: DType) -> [u64; 2] {
    [SWIZZLE / dtype.size().unwrap_or(1), WARP_ROWS]
}

/// Blocks of a cluster, which take `tiles` together: both have one, but for one in [`CLUSTERED_TILES`].
pub(super) fn cluster(config: &Config, tiles: u64) -> u64 {
    let wanted = config.get("CLUSTER").unwrap_or(1) as u64;
    match tiles.is_multiple_of(wanted) || tiles > CLUSTERED_TILES {
        true => wanted,
        false => 1,
    }
}

/// The plan of a product; k is split where d has too few tiles for the device.
pub(super) fn gemm(
    problem: &Problem<'_>,
    kernel: &'static Kernel,
    config: &Config,
    info: &DeviceInfo,
    plan: &mut Plan,
) -> Result<()> {
    let op = problem.op;
    let mapped = Mapped::of(problem).expect("it is a candidate");
    let units = u64::from(info.compute_units);
    let [block_m, block_n] = ["BLOCK_M", "BLOCK_N"].map(|name| config.value(name) as u64);
    let cluster = cluster(config, problem.m_max.div_ceil(block_m));
    let tiles_n = tiles_n(config, problem.n, op.activation);
    let [outer, inner] = problem.launch_batch();
    let batches = outer.saturating_mul(inner);
    let tiles = problem
        .m_max
        .div_ceil(block_m)
        .next_multiple_of(cluster)
        .saturating_mul(tiles_n)
        .saturating_mul(batches);
    let Split { part, parts } = split(problem.k, SLICE, tiles, info);
    let range = match parts {
        1 => 0..0,
        _ => plan.take_workspace(f32_bytes(&[parts, batches, problem.m_max, problem.n])?),
    };
    let d_by_map = mapped.d && parts == 1;
    let activation = match op.activation {
        Activation::Swiglu => op.activation,
        _ if parts > 1 => Activation::None,
        other => other,
    };
    let module = plan.module({
        let mut config = config.clone();
        config
            .set("CLUSTER", cluster as i64)
            .set("ACTIVATION", activation_code(activation))
            .set("HAS", if parts == 1 { problem.has } else { 0 })
            .set("A_ACROSS", mapped.a_across.into())
            .set("B_ACROSS", mapped.b_across.into())
            .set("D_BY_MAP", d_by_map.into())
            .set("SPLIT_K", (parts > 1).into());
        if parts > 1 {
            // The sum's blocks are ready when the parts are, which take some microseconds.
            config.set(DEPENDENT_LAUNCH, 1);
        }
        problem.module(kernel, &config)
    });
    require_mapped(&mut plan.operands[problem.a.operand], mapped.units[0]);
    require_mapped(&mut plan.operands[problem.b.operand], mapped.units[1]);
    if d_by_map {
        require_mapped(&mut plan.operands[problem.d.operand], mapped.units[2]);
    }
    let own = |side: &Side| inner_extents(&side.batch_extents).map(|extent| extent > 1);
    let [[a_outer, a_inner], [b_outer, b_inner]] = [own(&problem.a), own(&problem.b)];
    let batched = [a_inner, a_outer, b_inner, b_outer];
    let batched = (0..4)
        .map(|bit| u64::from(batched[bit]) << bit)
        .sum::<u64>();
    let columns = match op.activation {
        Activation::Swiglu => problem.n / 2,
        _ => problem.n,
    };
    let (m, n, k) = (&problem.m, Expr::from(problem.n), Expr::from(problem.k));
    for leading in problem.launches() {
        let a = match mapped.a_across {
            false => (k.clone(), (m.clone(), &problem.a.row), [SLICE, block_m]),
            true => (m.clone(), (k.clone(), &problem.a.column), [PANEL, SLICE]),
        };
        let b = match mapped.b_across {
            false => (
                k.clone(),
                (n.clone(), &problem.b.column),
                [SLICE, block_n / 2],
            ),
            true => (n.clone(), (k.clone(), &problem.b.row), [PANEL, SLICE]),
        };
        let mut args = vec![
            side_map(&problem.a, op.a.dtype, &leading, a.0, a.1, a.2),
            side_map(&problem.b, op.b.dtype, &leading, b.0, b.1, b.2),
        ];
        if d_by_map {
            let rows = (m.clone(), &problem.d.row);
            let tile = d_tile(op.d.dtype);
            let dtype = op.d.dtype;
            args.push(side_map(
                &problem.d,
                dtype,
                &leading,
                columns.into(),
                rows,
                tile,
            ));
        }
        args.extend(targets(problem, &leading));
        args.push(workspace(&range, DType::F32, true));
        args.push(Arg::U32(m.clone()));
        let sizes = [problem.n, problem.k, inner, batches, batched, parts, part];
        args.extend(sizes.map(|v| Arg::U32(v.into())));
        args.extend([Arg::F32(op.alpha), Arg::F32(op.beta)]);
        args.extend(target_strides(problem));
        let clusters = m.clone().div_ceil(cluster * block_m)
            * Expr::from(tiles_n.saturating_mul(batches).saturating_mul(parts));
        plan.launches.push(Launch {
            module,
            entry: "gemm_wgmma",
            grid: [
                clusters.min((units / cluster).max(1)) * Expr::from(cluster),
                1.into(),
                1.into(),
            ],
            group: [wgmma_threads(config) as u32, 1, 1],
            local_memory: wgmma_shared_memory(config) as u32,
            args,
        });
        if parts > 1 {
            let partial = workspace(&range, DType::F32, false);
            plan.launches
                .push(reduce(problem, module, partial, parts, &leading));
        }
    }
    Ok(())
}

/// Whether `grouped_wgmma` takes products of these dtypes, of operands that tensor maps take or not.
pub(in super::super) fn takes_grouped([a, b, _]: [DType; 3], is_mapped: bool) -> bool {
    is_mapped && takes_dtypes(a, b)
}

/// Adds the launch of a grouped product.
pub(in super::super) fn append_grouped(
    plan: &mut Plan,
    kernel: &'static Kernel,
    config: &Config,
    info: &DeviceInfo,
    product: &GroupedProduct,
) {
    let [a_dtype, b_dtype, d_dtype] = product.dtypes;
    let tiles_n = tiles_n(config, product.n, product.activation);
    let cluster = cluster(config, tiles_n);
    let module = plan.module({
        let mut config = config.clone();
        config
            .set("GROUPED", 1)
            .set("CLUSTER", cluster as i64)
            .set("ACTIVATION", activation_code(product.activation))
            .set("D_BY_MAP", product.d_is_mapped.into());
        module(kernel, &config, product.dtypes)
    });
    let mut mapped = vec![&product.a, &product.b];
    if product.d_is_mapped {
        mapped.push(&product.d);
    }
    for arg in mapped {
        if let Arg::Operand { operand, .. } = arg {
            let rule = &mut plan.operands[*operand];
            let last = rule.strides.len() - 1;
            require_mapped(rule, last);
        }
    }
    let [block_m, block_n] = ["BLOCK_M", "BLOCK_N"].map(|name| config.value(name) as u64);
    let columns = match product.activation {
        Activation::Swiglu => product.n / 2,
        _ => product.n,
    };
    // Without capacities all rows are those of one expert.
    let [rows, experts] = match product.capacity {
        Some(capacity) => [capacity, product.experts].map(Expr::from),
        None => [product.rows.clone(), Expr::from(1)],
    };
    let rows_map = |base: &Arg, dtype, columns: u64, strides: &[Expr; 3], tile| {
        let [expert, row, _] = strides.clone();
        let extents = [columns.into(), rows.clone(), experts.clone(), 1.into()];
        map(base.clone(), dtype, extents, [row, expert, 0.into()], tile)
    };
    let a = rows_map(
        &product.a,
        a_dtype,
        product.k,
        &product.a_strides,
        [SLICE, block_m / cluster],
    );
    let [expert, column, _] = product.b_strides.clone();
    let extents = [product.k, product.n, product.experts, 1].map(Expr::from);
    let strides = [column, expert, 0.into()];
    let b = map(
        product.b.clone(),
        b_dtype,
        extents,
        strides,
        [SLICE, block_n / 2],
    );
    let mut args = vec![a, b];
    if product.d_is_mapped {
        let tile = d_tile(d_dtype);
        args.push(rows_map(
            &product.d,
            d_dtype,
            columns,
            &product.d_strides,
            tile,
        ));
    }
    args.extend([product.routing.clone(), product.d.clone(), Arg::Status]);
    args.extend(product.sizes().map(Arg::U32));
    args.extend([product.n, product.k].map(|v| Arg::U32(v.into())));
    args.extend(product.d_strides.clone().map(Arg::U64));
    let clusters = product.blocks(block_m) * Expr::from(tiles_n.div_ceil(cluster));
    let most = (u64::from(info.compute_units) / cluster).max(1);
    plan.launches.push(Launch {
        module,
        entry: "grouped_wgmma",
        grid: [clusters.min(most) * Expr::from(cluster), 1.into(), 1.into()],
        group: [wgmma_threads(config) as u32, 1, 1],
        local_memory: wgmma_shared_memory(config) as u32,
        args,
    });
}
