//! The launches of `attention_mma`: matrix units of CUDA devices.

use ropeway_core::dtype::DType;
use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::{Config, ModuleKey};
use ropeway_core::plan::{Arg, Expr, Plan};

use super::super::manifest::{
    ATTENTION_MMA, ATTENTION_MMA_FEW, mma_local_memory, mma_rows, mma_threads,
};
use super::{Division, Problem, launch};

/// The most rows of a sequence and key head that `attention_mma_few` takes: those of one fragment.
pub(super) const FEW_ROWS: u64 = 16;

/// The sizes that the kernel is compiled for; a head takes the next one, so that models share compiled kernels.
const COLUMNS: [u64; 6] = [64, 80, 96, 128, 192, 256];

/// Elements of a chunk that is copied at once.
pub(super) const CHUNK: u64 = 8;

/// Columns of all 16-row fragments of a warp whose sums fit its registers.
const SUMS: i64 = 256;

fn columns(size: u64) -> Option<i64> {
    let found = COLUMNS.into_iter().find(|&most| size <= most);
    found.map(|most| most as i64)
}

/// Whether a plan's kernel is one of these.
pub(super) fn is_mma(key: &ModuleKey) -> bool {
    [ATTENTION_MMA.name, ATTENTION_MMA_FEW.name].contains(&key.kernel.name)
}

impl Problem {
    /// Whether the matrix units take it.
    pub(super) fn fits_mma(&self) -> bool {
        matches!(self.dtype, DType::F16 | DType::BF16)
            && self.eights
            && columns(self.d.max(self.dv)).is_some()
    }

    /// Whether every sequence has so few rows that one fragment holds them.
    pub(super) fn few_mma(&self) -> bool {
        self.layout == 0 && self.rows <= FEW_ROWS
    }
}

/// Sets the sizes of heads, and fewer fragments and tiles where those of the configuration have no room.
fn complete(problem: &Problem, config: &mut Config, info: &DeviceInfo) {
    let sizes =
        [problem.d, problem.dv].map(|size| columns(size).expect("checked with the candidates"));
    config.set("D_MAX", sizes[0]).set("DV_MAX", sizes[1]);
    if config.value("ROW_FRAGMENTS") * sizes[0].max(sizes[1]) > SUMS {
        config.set("ROW_FRAGMENTS", 1);
    }
    while config.value("RING") > 2 && local_memory(problem, config) > info.limits.local_memory {
        config.set("RING", config.value("RING") - 1);
    }
}

/// Bytes of shared memory, with the marks of keys whose block there is none of.
fn local_memory(problem: &Problem, config: &Config) -> u64 {
    let marks = match problem.layout {
        2 => config.value("RING") * config.value("KEYS"),
        _ => 0,
    };
    mma_local_memory(config) + marks as u64
}

/// Adds the launches: of sequences with few rows, and of the others. `works` says how many works there are of so many rows.
pub(super) fn append(
    plan: &mut Plan,
    problem: &Problem,
    key: &ModuleKey,
    info: &DeviceInfo,
    division: &Division,
    [few_works, many_works]: [&dyn Fn(u64) -> Expr; 2],
    args: &dyn Fn() -> Vec<Arg>,
) {
    let few = key.kernel.name == ATTENTION_MMA_FEW.name;
    let beside = !few && division.few_rows > 0;
    let mut add = |kernel, mut config: Config, works: &dyn Fn(u64) -> Expr| {
        config
            .set("LAYOUT", problem.layout)
            .set("SPLIT_KEYS", key.config.value("SPLIT_KEYS"))
            .set_dtype("DTYPE", problem.dtype);
        complete(problem, &mut config, info);
        let grid = [works(mma_rows(&config)), problem.kv_heads.into(), 1.into()];
        let (threads, bytes) = (mma_threads(&config), mma_local_memory(&config) as u32);
        let key = ModuleKey { kernel, config };
        launch(plan, key, "attention_mma", grid, threads, args());
        plan.launches.last_mut().expect("just added").local_memory = bytes;
    };
    if few || beside {
        let config = match few {
            true => key.config.clone(),
            false => ATTENTION_MMA_FEW.default_config(),
        };
        add(&ATTENTION_MMA_FEW, config, few_works);
    }
    if !few {
        add(&ATTENTION_MMA, key.config.clone(), many_works);
    }
}
