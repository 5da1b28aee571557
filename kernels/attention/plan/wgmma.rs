//! The launch of `attention_wgmma`: warpgroups and the copy engine of Hopper.

use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::{Config, ModuleKey};
use ropeway_core::op::Op;
use ropeway_core::plan::{Arg, Expr, Plan, TensorMap};

use super::super::manifest::{
    ATTENTION_WGMMA, wgmma_dynamic_memory, wgmma_local_memory, wgmma_threads, wgmma_value_panel,
};
use super::operands::{Operands, flags, key_axes};
use super::{Problem, flag, launch, mma};

/// Rows of a warpgroup.
const WARPGROUP_ROWS: u64 = 64;

/// Keys of a tile, the most first.
const KEYS: [i64; 6] = [192, 160, 128, 96, 80, 64];

/// Elements that a stride of a tensor map is a multiple of.
const STRIDE: u64 = 8;

/// Options that change scores one by one.
const IN_SCORES: i64 = flag::SOFTCAP | flag::MASK | flag::ALIBI;

impl Problem {
    /// Whether warpgroups take it; with options in the scores their registers have room for 128 columns of values.
    pub(super) fn fits_wgmma(&self, op: &dyn Op) -> bool {
        let narrow = self.dv <= 128 || !self.changes_scores(op);
        self.fits_mma() && self.keys > 0 && self.whole_pages() && narrow
    }

    /// Whether an option changes scores one by one.
    pub(super) fn changes_scores(&self, op: &dyn Op) -> bool {
        let named = |operand: &str| ["mask", "alibi_slopes"].contains(&operand);
        self.softmax.softcap > 0.0 || op.operands().iter().any(|operand| named(operand.name))
    }

    /// Whether a tile is whole pages or part of one, and a page whole lines of eight, as swizzled.
    pub(super) fn whole_pages(&self) -> bool {
        self.layout != 2 || self.block_size.is_power_of_two() && self.block_size >= 8
    }

    /// Whether there are enough rows that a warpgroup's 64 pay.
    pub(super) fn many_for_wgmma(&self) -> bool {
        self.rows >= WARPGROUP_ROWS
    }
}

/// A configuration with what the problem decides: the sizes of heads, and fewer warpgroups, keys and tiles where the configuration's have no room.
fn complete(problem: &Problem, config: &Config, options: bool, info: &DeviceInfo) -> Config {
    let [d, dv] = mma::head_columns(problem);
    let mut config = config.clone();
    config
        .set("LAYOUT", problem.layout)
        .set("D_MAX", d)
        .set("DV_MAX", dv)
        .set("OPTIONS", i64::from(options))
        .set_dtype("DTYPE", problem.dtype);
    let [consumers, keys, ring] = ["CONSUMERS", "KEYS", "RING"].map(|name| config.value(name));
    let paged = |keys: &i64| problem.layout != 2 || keys.count_ones() == 1;
    let keys = KEYS
        .into_iter()
        .filter(|&fewer| fewer <= keys)
        .filter(paged);
    for consumers in (2..=consumers).rev() {
        for keys in keys.clone() {
            for ring in (2.min(ring)..=ring).rev() {
                config
                    .set("CONSUMERS", consumers)
                    .set("KEYS", keys)
                    .set("RING", ring);
                if registers_fit(&config, options)
                    && wgmma_local_memory(&config) <= info.limits.local_memory
                {
                    return config;
                }
            }
        }
    }
    config
}

/// Whether scores, probabilities and sums leave a thread registers for everything else, as compiled without spills.
fn registers_fit(config: &Config, options: bool) -> bool {
    let [consumers, keys, dv] = ["CONSUMERS", "KEYS", "DV_MAX"].map(|name| config.value(name));
    let most = match (consumers, options) {
        (2, true) => 112,
        (2, false) => 188,
        (_, true) => 80,
        (_, false) => 128,
    };
    keys / 2 + keys / 4 + dv / 2 <= most
}

/// The tensor map of keys or values, [columns, keys, heads, batch or blocks], for boxes of `columns` by `keys`.
pub(super) fn map(problem: &Problem, operand: usize, columns: u64, keys: u64) -> Arg {
    let [batch, head, row, column] = key_axes(problem);
    let extent = |axis: Option<usize>| match axis {
        Some(axis) => Expr::extent(operand, axis).max(1),
        None => Expr::Const(1),
    };
    // Where an axis measures 1, its stride may be any number. Heads or sequences that share their keys are one to the map.
    let stride = |axis: Option<usize>, least: i64| match axis {
        Some(axis) => {
            (Expr::stride(operand, axis).div_ceil(STRIDE) * STRIDE).max(Expr::Const(least))
        }
        None => Expr::Const(STRIDE as i64),
    };
    let shared = STRIDE as i64;
    Arg::TensorMap {
        base: Box::new(Arg::operand(operand)),
        extents: vec![extent(column), extent(row), extent(head), extent(batch)],
        strides: vec![
            Expr::Const(1),
            stride(row, 0),
            stride(head, shared),
            stride(batch, shared),
        ],
        map: TensorMap {
            dtype: problem.dtype,
            rank: 4,
            tile: [columns as u32, keys as u32, 1, 1, 1],
            swizzle: (2 * columns) as u8,
        },
    }
}

/// Adds the launch, of `works` of the rows of a tile.
pub(super) fn append(
    plan: &mut Plan,
    problem: &Problem,
    operands: &Operands,
    config: &Config,
    info: &DeviceInfo,
    works: impl Fn(u64) -> Expr,
    mut args: Vec<Arg>,
) {
    let options = flags(problem, operands) & IN_SCORES != 0;
    let config = complete(problem, config, options, info);
    let keys = config.value("KEYS") as u64;
    let box_keys = match problem.layout {
        2 => keys.min(problem.block_size),
        _ => keys,
    };
    args.push(map(problem, operands.k, 64, box_keys));
    args.push(map(
        problem,
        operands.v,
        wgmma_value_panel(&config),
        box_keys,
    ));
    let works = works(WARPGROUP_ROWS * config.value("CONSUMERS") as u64);
    let grid = [works, problem.kv_heads.into(), 1.into()];
    let (threads, bytes) = (wgmma_threads(&config), wgmma_dynamic_memory(&config));
    let key = ModuleKey {
        kernel: &ATTENTION_WGMMA,
        config,
    };
    launch(plan, key, "attention_wgmma", grid, threads, args);
    plan.launches.last_mut().expect("just added").local_memory = bytes as u32;
}
