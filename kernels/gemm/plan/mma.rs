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
fn is_across(dtype: DType, line: u64, k: u64) -> bool {
    // Matrices of bytes cannot be transposed on their way to registers.
    dtype != DType::I8 && line == 1 && k != 1
}

/// k of one stage.
fn slice(config: &Config, dtype: DType) -> u64 {
    let bytes = 2 * config.value("BLOCK_K") as u64;
    bytes / dtype.size().unwrap_or(1)
}

/// Tiles of d along a tile's rows' direction: b's columns, two of which make one of d under swiglu.
fn tiles_n(config: &Config, n: u64, activation: Activation) -> u64 {
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
    let slice = slice(config, op.a.dtype);
    let wanted = (u64::from(info.compute_units) / tiles.max(1))
        .min(problem.k / (LEAST_SLICES * slice))
        .clamp(1, MOST_PARTS);
    let part = problem
        .k
        .div_ceil(wanted)
        .next_multiple_of(slice)
        .max(slice);
    let parts = problem.k.div_ceil(part).max(1);
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
        let targets = [
            problem.c_arg(&leading),
            problem.bias_arg(),
            problem.d.arg(&leading),
        ];
        let target_strides = || {
            let mut strides = problem.c_strides().to_vec();
            strides.push(Arg::U64(problem.bias_stride()));
            strides.extend(problem.d.strides());
            strides
        };
        let mut args = vec![source(&problem.a), source(&problem.b)];
        args.extend(targets.clone());
        args.push(workspace(&range, dtype, true));
        args.push(Arg::U32(problem.m.clone()));
        args.extend([problem.n, problem.k, inner, part].map(|v| Arg::U32(v.into())));
        args.extend(problem.epilogue());
        args.extend(problem.a.strides());
        args.extend(problem.b.strides());
        args.extend(target_strides());
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
        if parts == 1 {
            continue;
        }
        let mut args = vec![workspace(&range, dtype, false)];
        args.extend(targets);
        args.push(Arg::U32(problem.m.clone()));
        args.extend([problem.n, parts, inner].map(|v| Arg::U32(v.into())));
        args.extend(problem.epilogue());
        args.extend(target_strides());
        let columns = if swiglu { problem.n / 2 } else { problem.n };
        plan.launches.push(Launch {
            module,
            entry: "gemm_mma_reduce",
            grid: [
                columns.div_ceil(REDUCE).into(),
                problem.m.clone(),
                batches.into(),
            ],
            group: [REDUCE as u32, 1, 1],
            local_memory: 0,
            args,
        });
    }
    Ok(())
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
