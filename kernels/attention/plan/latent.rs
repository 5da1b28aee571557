//! The launch of `attention_latent`: multi-head latent attention on Hopper.

use ropeway_core::dtype::DType;
use ropeway_core::kernel::{Config, ModuleKey};
use ropeway_core::op::Op;
use ropeway_core::plan::{Arg, Expr, Plan};

use super::super::manifest::{ATTENTION_LATENT, LATENT_DYNAMIC_MEMORY};
use super::operands::Operands;
use super::{Problem, launch, wgmma};

/// The columns of keys and of values that its panels hold; heads that are much narrower have kernels of their own.
const COLUMNS: [std::ops::RangeInclusive<u64>; 2] = [513..=576, 257..=512];

/// Rows of a block.
const ROWS: u64 = 64;

/// Keys of a tile.
const KEYS: u64 = 64;

/// Columns of a panel.
const PANEL: u64 = 64;

/// Two warpgroups that multiply and one that copies.
const THREADS: u32 = 384;

/// Rows of a sequence and key head up to which its keys are split: two queries of 128 heads.
pub(super) const SPLIT_ROWS: u64 = 256;

impl Problem {
    /// Whether `attention_latent` takes it: nothing changes the scores one by one, and of a paged cache a tile is whole pages or part of one.
    pub(super) fn fits_latent(&self, op: &dyn Op) -> bool {
        let [d, dv] = COLUMNS;
        matches!(self.dtype, DType::F16 | DType::BF16)
            && self.eights
            && d.contains(&self.d)
            && dv.contains(&self.dv)
            && self.keys > 0
            && self.whole_pages()
            && !self.changes_scores(op)
    }
}

/// The rows of a sequence whose keys are split: of as many queries as each sequence has tokens (several are predicted at once), if these are few.
pub(super) fn split_rows(problem: &Problem) -> u64 {
    let group = problem.group();
    let tokens = problem.rows / group;
    let rows = group.saturating_mul(tokens.div_ceil(problem.sequences.max(1)).max(1));
    if rows <= SPLIT_ROWS { rows } else { group }
}

/// Adds the launch, of `works` of the rows of a tile.
pub(super) fn append(
    plan: &mut Plan,
    problem: &Problem,
    operands: &Operands,
    config: &Config,
    works: impl Fn(u64) -> Expr,
    mut args: Vec<Arg>,
) {
    let mut config = config.clone();
    config
        .set("LAYOUT", problem.layout)
        .set_dtype("DTYPE", problem.dtype);
    let box_keys = match problem.layout {
        2 => KEYS.min(problem.block_size),
        _ => KEYS,
    };
    for operand in [operands.k, operands.v] {
        args.push(wgmma::map(problem, operand, PANEL, box_keys));
    }
    let grid = [works(ROWS), problem.kv_heads.into(), 1.into()];
    let key = ModuleKey {
        kernel: &ATTENTION_LATENT,
        config,
    };
    launch(plan, key, "attention_latent", grid, THREADS, args);
    plan.launches.last_mut().expect("just added").local_memory = LATENT_DYNAMIC_MEMORY as u32;
}
