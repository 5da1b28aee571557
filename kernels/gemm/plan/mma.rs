//! The launches of `gemm_mma` and `grouped_mma`: matrix units of CUDA devices.

use ropeway_core::Result;
use ropeway_core::dtype::DType;
use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::{Config, Kernel};
use ropeway_core::plan::{Arg, Expr, Launch, Plan};

use super::super::Activation;
use super::super::grouped::GroupedProduct;
use super::super::manifest::{mma_threads, stages};
use super::{Problem, Side, activation_code, f32_bytes, module, workspace};

/// Threads of a block that adds up the parts of k.
const REDUCE: u64 = 256;
/// Fewest slices of k in a part: fewer would hardly fill the stages.
const LEAST_SLICES: u64 = 4;
/// Most parts of k: each costs a round trip of all sums through memory.
const MOST_PARTS: u64 = 32;

/// Whether the matrix units multiply these. Mixed pairs would have to be converted on their way.
pub(in super::super) fn takes(a: DType, b: DType) -> bool {
    a == b && matches!(a, DType::F16 | DType::BF16 | DType::I8)
}

/// Whether an operand comes across k. Views that are bound later may lie otherwise: then the kernel takes elements one by one.
pub(super) fn is_across(dtype: DType, line: u64, k: u64) -> bool {
    // Matrices of bytes cannot be transposed on their way to registers.
    dtype != DType::I8 && line == 1 && k != 1
}

/// k of one stage.
fn slice(config: &Config, dtype: DType) -> u64 {
    let bytes = 2 * config.value("BLOCK_K") as u64;
    bytes / dtype.size().unwrap_or(1)
}

/// Tiles of d along a tile's rows' direction: b's columns, two of which make one of d under swiglu.
pub(super) fn tiles_n(config: &Config, n: u64, activation: Activation) -> u64 {
    let block = config.value("BLOCK_N") as u64;
    match activation {
        Activation::Swiglu => (n / 2).div_ceil(block / 2),
        _ => n.div_ceil(block),
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
    let swiglu = op.activation == Activation::Swiglu;
    let [a_m, a_k, b_k, b_n] = problem.element_strides();
    let module = plan.module({
        let mut config = config.clone();
        config
            .set("SWIGLU", swiglu.into())
            .set("A_ACROSS", is_across(op.a.dtype, a_m, a_k).into())
            .set("B_ACROSS", is_across(op.b.dtype, b_n, b_k).into());
        problem.module(kernel, &config)
    });
    let block_m = config.value("BLOCK_M") as u64;
    let tiles_n = tiles_n(config, problem.n, op.activation);
    let [outer, inner] = problem.launch_batch();
    let batches = outer.saturating_mul(inner);
    let tiles = problem
        .m_max
        .div_ceil(block_m)
        .saturating_mul(tiles_n)
        .saturating_mul(batches);
    let Split { part, parts } = split(problem.k, slice(config, op.a.dtype), tiles, info);
    let range = match parts {
        1 => 0..0,
        _ => plan.take_workspace(f32_bytes(&[parts, batches, problem.m_max, problem.n])?),
    };
    let dtype = match op.a.dtype {
        DType::I8 => DType::I32,
        _ => DType::F32,
    };
    for leading in problem.launches() {
        let source = |side: &Side| match problem.k {
            0 => Arg::Absent,
            _ => side.arg(&leading),
        };
        let mut args = vec![source(&problem.a), source(&problem.b)];
        args.extend(targets(problem, &leading));
        args.push(workspace(&range, dtype, true));
        args.push(Arg::U32(problem.m.clone()));
        args.extend([problem.n, problem.k, inner, part].map(|v| Arg::U32(v.into())));
        args.extend(problem.epilogue());
        args.extend(problem.a.strides());
        args.extend(problem.b.strides());
        args.extend(target_strides(problem));
        plan.launches.push(Launch {
            module,
            entry: "gemm_mma",
            grid: [
                problem.m.clone().div_ceil(block_m) * Expr::from(tiles_n),
                parts.into(),
                batches.into(),
            ],
            group: [mma_threads(config) as u32, 1, 1],
            local_memory: stages(config) as u32,
            args,
        });
        if parts > 1 {
            let partial = workspace(&range, dtype, false);
            plan.launches
                .push(reduce(problem, module, partial, parts, &leading));
        }
    }
    Ok(())
}

/// How k is split.
pub(super) struct Split {
    /// k of each part, a multiple of the slice.
    pub(super) part: u64,
    /// Parts, at least one.
    pub(super) parts: u64,
}

/// Splits k where d has so few tiles that the device would not be full.
pub(super) fn split(k: u64, slice: u64, tiles: u64, info: &DeviceInfo) -> Split {
    let wanted = (u64::from(info.compute_units) / tiles.max(1))
        .min(k / (LEAST_SLICES * slice))
        .clamp(1, MOST_PARTS);
    let part = k.div_ceil(wanted).next_multiple_of(slice).max(slice);
    Split {
        part,
        parts: k.div_ceil(part).max(1),
    }
}

/// c, bias and d.
pub(super) fn targets(problem: &Problem<'_>, leading: &[u64]) -> [Arg; 3] {
    [
        problem.c_arg(leading),
        problem.bias_arg(),
        problem.d.arg(leading),
    ]
}

/// Their strides.
pub(super) fn target_strides(problem: &Problem<'_>) -> Vec<Arg> {
    let mut strides = problem.c_strides().to_vec();
    strides.push(Arg::U64(problem.bias_stride()));
    strides.extend(problem.d.strides());
    strides
}

/// The launch that adds up the parts of k.
pub(super) fn reduce(
    problem: &Problem<'_>,
    module: usize,
    partial: Arg,
    parts: u64,
    leading: &[u64],
) -> Launch {
    let [outer, inner] = problem.launch_batch();
    let mut args = vec![partial];
    args.extend(targets(problem, leading));
    args.push(Arg::U32(problem.m.clone()));
    args.extend([problem.n, parts, inner].map(|v| Arg::U32(v.into())));
    args.extend(problem.epilogue());
    args.extend(target_strides(problem));
    let columns = match problem.op.activation {
        Activation::Swiglu => problem.n / 2,
        _ => problem.n,
    };
    Launch {
        module,
        entry: "gemm_reduce",
        grid: [
            columns.div_ceil(REDUCE).into(),
            problem.m.clone(),
            outer.saturating_mul(inner).into(),
        ],
        group: [REDUCE as u32, 1, 1],
        local_memory: 0,
        args,
    }
}

/// Adds the launch of a grouped product.
pub(in super::super) fn append_grouped(
    plan: &mut Plan,
    kernel: &'static Kernel,
    config: &Config,
    product: &GroupedProduct,
) {
    let module = plan.module({
        let mut config = config.clone();
        config.set("SWIGLU", (product.activation == Activation::Swiglu).into());
        module(kernel, &config, product.dtypes)
    });
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
    let blocks = product.blocks(config.value("BLOCK_M") as u64);
    plan.launches.push(Launch {
        module,
        entry: "grouped_mma",
        grid: [
            blocks * Expr::from(tiles_n(config, product.n, product.activation)),
            1.into(),
            1.into(),
        ],
        group: [mma_threads(config) as u32, 1, 1],
        local_memory: stages(config) as u32,
        args,
    });
}
