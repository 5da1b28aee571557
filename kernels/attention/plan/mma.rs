//! The launches of `attention_mma`: matrix units of CUDA devices.

use ropeway_core::dtype::DType;
use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::{Config, ModuleKey};
use ropeway_core::plan::{Arg, Expr, Plan};

use super::super::manifest::{
    ATTENTION_LATENT, ATTENTION_MMA, ATTENTION_MMA_FEW, ATTENTION_WGMMA, mma_local_memory,
    mma_rows, mma_threads,
};
use super::operands::Operands;
use super::{Problem, latent, launch, wgmma};

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

/// The columns of keys and of values that kernels are compiled for.
pub(super) fn head_columns(problem: &Problem) -> [i64; 2] {
    [problem.d, problem.dv].map(|size| columns(size).expect("checked with the candidates"))
}

/// Whether a plan's kernel is one of these, or one of Hopper's, which divide work as they do.
pub(super) fn is_mma(key: &ModuleKey) -> bool {
    [
        ATTENTION_MMA.name,
        ATTENTION_MMA_FEW.name,
        ATTENTION_WGMMA.name,
        ATTENTION_LATENT.name,
    ]
    .contains(&key.kernel.name)
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

/// A configuration with what the problem decides: the sizes of heads, and fewer fragments and tiles where the configuration's have no room.
fn complete(problem: &Problem, config: &Config, split_keys: i64, info: &DeviceInfo) -> Config {
    let sizes = head_columns(problem);
    let mut config = config.clone();
    config
        .set("LAYOUT", problem.layout)
        .set("SPLIT_KEYS", split_keys)
        .set("D_MAX", sizes[0])
        .set("DV_MAX", sizes[1])
        .set_dtype("DTYPE", problem.dtype);
    if config.value("ROW_FRAGMENTS") * sizes[0].max(sizes[1]) > SUMS {
        config.set("ROW_FRAGMENTS", 1);
    }
    while config.value("RING") > 2 && local_memory(problem, &config) > info.limits.local_memory {
        config.set("RING", config.value("RING") - 1);
    }
    config
}

/// Bytes of shared memory, with the marks of keys whose block there is none of.
fn local_memory(problem: &Problem, config: &Config) -> u64 {
    let marks = match problem.layout {
        2 => config.value("RING") * config.value("KEYS"),
        _ => 0,
    };
    mma_local_memory(config) + marks as u64
}

/// Adds the launches: of sequences with few rows, which are `few_works`, and of the others, which are `many_works` of the rows of a tile.
#[allow(clippy::too_many_arguments)]
pub(super) fn append(
    plan: &mut Plan,
    problem: &Problem,
    operands: &Operands,
    key: &ModuleKey,
    info: &DeviceInfo,
    few_works: Option<Expr>,
    many_works: impl Fn(u64) -> Expr,
    args: impl Fn() -> Vec<Arg>,
) {
    let split_keys = key.config.value("SPLIT_KEYS");
    let mut add = |kernel, config: Config, works| {
        let grid = [works, problem.kv_heads.into(), 1.into()];
        let (threads, bytes) = (mma_threads(&config), mma_local_memory(&config) as u32);
        let key = ModuleKey { kernel, config };
        launch(plan, key, "attention_mma", grid, threads, args());
        plan.launches.last_mut().expect("just added").local_memory = bytes;
    };
    let only_few = key.kernel.name == ATTENTION_MMA_FEW.name;
    if let Some(works) = few_works {
        let config = match only_few {
            true => key.config.clone(),
            false => ATTENTION_MMA_FEW.default_config(),
        };
        let config = complete(problem, &config, split_keys, info);
        add(&ATTENTION_MMA_FEW, config, works);
    }
    if key.kernel.name == ATTENTION_LATENT.name {
        latent::append(plan, problem, operands, &key.config, many_works, args());
    } else if key.kernel.name == ATTENTION_WGMMA.name {
        wgmma::append(
            plan,
            problem,
            operands,
            &key.config,
            info,
            many_works,
            args(),
        );
    } else if !only_few {
        let config = complete(problem, &key.config, split_keys, info);
        let works = many_works(mma_rows(&config));
        add(&ATTENTION_MMA, config, works);
    }
}
