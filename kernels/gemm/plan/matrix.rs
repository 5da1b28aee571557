//! The launches of `gemm_matrix`: products of f16 on matrix units.

use ropeway_core::dtype::DType;
use ropeway_core::error::{Error, Result};
use ropeway_core::info::{DeviceInfo, MatrixShape};
use ropeway_core::kernel::Config;
use ropeway_core::plan::{Arg, Launch, Plan};

use super::super::Gemm;
use super::super::manifest::{MATRIX, MATRIX_SIDE};
use super::{Problem, Side};

/// Parts of a tile, one subgroup each.
const PARTS: u32 = 4;
/// Parts along each side of a tile.
const SIDE: u64 = 2;

/// The largest of the device's shapes that the kernel can take for a product.
pub(super) fn shape(op: &Gemm, info: &DeviceInfo) -> Option<MatrixShape> {
    if [op.a.dtype, op.b.dtype] != [DType::F16; 2] || group(info).is_none() {
        return None;
    }
    let taken = |shape: &&MatrixShape| {
        shape.input == DType::F16
            && shape.accumulator == DType::F32
            && [shape.m, shape.n, shape.k]
                .iter()
                .all(|side| side.is_power_of_two() && *side <= MATRIX_SIDE)
    };
    info.matrix_shapes
        .iter()
        .filter(taken)
        .max_by_key(|shape| shape.m * shape.n * shape.k)
        .copied()
}

/// Work-items of a group: a subgroup for each part, whatever size the driver gives them.
fn group(info: &DeviceInfo) -> Option<u32> {
    let group = info.subgroup_sizes.iter().max()?.checked_mul(PARTS)?;
    let limits = &info.limits;
    (group <= limits.max_group_size && group <= limits.max_group[0]).then_some(group)
}

/// The plan of a product.
pub(super) fn gemm(
    problem: &Problem<'_>,
    config: &Config,
    info: &DeviceInfo,
    plan: &mut Plan,
) -> Result<()> {
    let (Some(shape), Some(group)) = (shape(problem.op, info), group(info)) else {
        return Err(Error::unsupported(format!(
            "{} has no matrix unit that sums products of F16 in F32",
            info.name
        )));
    };
    let part = SIDE * config.value("MATRICES") as u64;
    let [tile_m, tile_n] = [shape.m, shape.n].map(|side| part * u64::from(side));
    let mut config = config.clone();
    config
        .set("GROUP", group.into())
        .set("MATRIX_M", shape.m.into())
        .set("MATRIX_N", shape.n.into())
        .set("MATRIX_K", shape.k.into());
    let module = plan.module(problem.module(&MATRIX, &config));
    let [outer, inner] = problem.launch_batch();
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
            entry: "gemm_matrix",
            grid: [
                problem.n.div_ceil(tile_n).into(),
                problem.m.clone().div_ceil(tile_m),
                outer.saturating_mul(inner).into(),
            ],
            group: [group, 1, 1],
            local_memory: 0,
            args,
        });
    }
    Ok(())
}
