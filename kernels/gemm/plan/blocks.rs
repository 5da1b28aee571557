//! Weights in GGML's blocks: the kernels that read them as they lie, best first. (On CUDA devices they are those of other pairs of dtypes.)

use ropeway_core::Result;
use ropeway_core::dtype::DType;
use ropeway_core::info::{DeviceInfo, DeviceKind};
use ropeway_core::kernel::{Config, Kernel};
use ropeway_core::plan::{Arg, Launch, Plan};

use super::super::manifest::{
    GEMV, GEMV_LANES, GROUPED_NATIVE, GROUPED_PACKED, GROUPED_SUBGROUP, GROUPED_TILED, NATIVE,
    PACKED, SUBGROUP, TILED,
};
use super::{Panels, Problem, b_panels, lanes, subgroup, workspace};

/// Most rows of a that share a strip of b, whose sums a work-item keeps in its own memory.
const BLOCK_M: u64 = 240;

/// The kernels for a product.
pub(super) fn gemm_candidates(
    problem: &Problem<'_>,
    info: &DeviceInfo,
) -> Result<Vec<&'static Kernel>> {
    let mut wanted: Vec<&'static Kernel> = vec![&NATIVE];
    if problem.skinny().is_some() {
        wanted.push(&GEMV);
    }
    wanted.extend(match info.kind {
        DeviceKind::Cpu => [&SUBGROUP, &GEMV_LANES, &PACKED, &TILED],
        _ => [&GEMV_LANES, &TILED, &PACKED, &SUBGROUP],
    });
    wanted.retain(|kernel| kernel.name != GEMV_LANES.name || lanes::takes(problem));
    subgroup::available_for(problem.k, wanted, info)
}

/// The kernels for grouped products.
pub(in super::super) fn grouped_candidates(
    k: u64,
    info: &DeviceInfo,
) -> Result<Vec<&'static Kernel>> {
    let mut wanted: Vec<&'static Kernel> = vec![&GROUPED_NATIVE];
    wanted.extend(match info.kind {
        DeviceKind::Cpu => [&GROUPED_SUBGROUP, &GROUPED_PACKED, &GROUPED_TILED],
        _ => [&GROUPED_TILED, &GROUPED_PACKED, &GROUPED_SUBGROUP],
    });
    subgroup::available_for(k, wanted, info)
}

/// The launches of a product of a, packed, with blocks that each group packs for itself.
pub(super) fn packed(problem: &Problem<'_>, config: &Config, plan: &mut Plan) -> Result<()> {
    let rows = problem.m_max.max(1);
    // Few sizes, since each is compiled for itself; every MR divides them.
    let block = match rows.div_ceil(rows.div_ceil(BLOCK_M)) {
        0..=24 => 24,
        rows => rows.next_multiple_of(48),
    };
    let module = plan.module({
        let mut config = config.clone();
        config
            .set("B_PANEL_IS_PRIVATE", 1)
            .set("BLOCK_M", block as i64);
        problem.module(&PACKED, &config)
    });
    let a_panels = Panels::of_a(problem, config)?;
    let [outer, inner] = problem.launch_batch();
    let range = plan.take_workspace(a_panels.total_bytes()?);
    for leading in problem.launches() {
        let a = (&problem.a, &a_panels, workspace(&range, DType::F32, true));
        plan.launches
            .push(problem.pack_launch(module, config, Some(a), None, &leading));
        let mut args = vec![
            workspace(&range, DType::F32, false),
            match problem.k {
                0 => Arg::Absent,
                _ => problem.b.arg(&leading),
            },
            problem.c_arg(&leading),
            problem.bias_arg(),
            problem.d.arg(&leading),
            Arg::U32(problem.m.clone()),
        ];
        args.extend([problem.n, problem.k, inner].map(|v| Arg::U32(v.into())));
        args.extend(problem.epilogue());
        args.extend(a_panels.strides());
        args.extend(problem.b.strides());
        args.extend(problem.c_strides());
        args.push(Arg::U64(problem.bias_stride()));
        args.extend(problem.d.strides());
        plan.launches.push(Launch {
            module,
            entry: "gemm_blocks",
            grid: [
                b_panels(problem.n, problem.op.activation).into(),
                problem.m.clone().div_ceil(block),
                outer.saturating_mul(inner).into(),
            ],
            group: [1; 3],
            local_memory: 0,
            args,
        });
    }
    Ok(())
}
