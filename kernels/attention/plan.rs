//! Planners: which kernels run a problem, with which launches.
//!
//! The three ops differ in how sequences and keys are found (`LAYOUT`), and in what bounds the number of work-groups, since the lengths of
//! the sequences are known to the device only. Every kernel of `attention.cl` takes the same arguments.

use ropeway_core::dtype::DType;
use ropeway_core::info::{DeviceInfo, DeviceKind};
use ropeway_core::kernel::{Config, Kernel, Language, ModuleKey};
use ropeway_core::memory::TensorDesc;
use ropeway_core::op::{Op, PlanRequest, TuneKey};
use ropeway_core::plan::{Arg, Expr, Launch, OperandRule, Plan, StrideRule};
use ropeway_core::{Error, Result};

use super::manifest::{
    ATTENTION_CUBE, ATTENTION_DECODE, ATTENTION_FUSED, ATTENTION_KEYS, ATTENTION_LATENT,
    ATTENTION_MERGE, ATTENTION_MMA, ATTENTION_MMA_FEW, ATTENTION_NATIVE, ATTENTION_PREFILL,
    ATTENTION_ROWS, ATTENTION_TILED, ATTENTION_WGMMA, LANE_ROWS, TILED_GROUP, TILED_ROWS,
    rows_local_memory,
};
use super::{Attention, PagedAttention, Softmax, VarlenAttention};
use operands::{Operands, Sizes, arguments, flags};

mod ascend;
mod latent;
mod mma;
mod operands;
#[cfg(all(test, feature = "spec"))]
mod tests;
mod wgmma;

/// Rows that `attention_decode` can take at most.
const FEW_ROWS: u64 = 8;

/// Bytes of queries, and as many of sums, that a work-group of `attention_decode` keeps.
const FEW_BYTES: u64 = 32 << 10;

/// Work-groups of `attention_decode` for each core, where they can be made larger or smaller.
const WORKS_A_CORE: u64 = 4;

/// Columns of all rows that a group of `attention_keys` has room for.
const LANE_COLUMNS: u64 = 512;

/// Rows of a sequence and key head up to which its keys are split.
const SPLIT_ROWS: u64 = 128;

/// The most keys of a split that may be chosen.
const MOST_SPLIT_KEYS: u64 = 2048;

/// The greatest head sizes that kernels are compiled for: a problem takes the next one, so that models share compiled kernels.
const HEAD_SIZES: [u64; 4] = [64, 128, 256, 576];

/// Bits of `flags`; the same in `attention.cl`.
pub(super) mod flag {
    pub const CAUSAL: i64 = 1;
    pub const SOFTCAP: i64 = 2;
    pub const MASK: i64 = 4;
    pub const ALIBI: i64 = 8;
    pub const SINKS: i64 = 16;
    pub const LSE: i64 = 32;
    pub const KV_LENS: i64 = 64;
}

/// What the planners need of any of the three ops.
struct Problem {
    name: &'static str,
    /// `LAYOUT` of `attention.cl`.
    layout: i64,
    dtype: DType,
    heads: u64,
    kv_heads: u64,
    d: u64,
    dv: u64,
    /// The most rows (queries times heads that share a key head) of all sequences together, dense: of one.
    rows: u64,
    /// The most sequences.
    sequences: u64,
    /// The most keys of all sequences together (varlen), of one otherwise.
    keys: u64,
    /// Keys of a block of the cache; 1 where there is none.
    block_size: u64,
    /// Whether k and v have stride 1 on their last axis.
    unit: bool,
    /// Whether each of q, k and v has.
    units: [bool; 3],
    /// Whether q, k and v consist of whole vectors of four: sizes, and strides but the last, which is 1.
    fours: bool,
    /// As `fours`, of eight.
    eights: bool,
    /// Whether all heads of a key lie before the next key.
    heads_inside: bool,
    softmax: Softmax,
}

impl Problem {
    fn dense(op: &Attention) -> Problem {
        Problem {
            name: "attention",
            layout: 0,
            dtype: op.q.dtype,
            heads: op.heads(),
            kv_heads: op.kv_heads(),
            d: op.d(),
            dv: op.dv(),
            rows: op.q_len().saturating_mul(group(op.heads(), op.kv_heads())),
            sequences: op.batch(),
            keys: op.kv_len(),
            block_size: 1,
            unit: unit(&op.k) && unit(&op.v),
            units: [&op.q, &op.k, &op.v].map(unit),
            fours: [&op.q, &op.k, &op.v]
                .into_iter()
                .all(|desc| in_vectors(desc, 4)),
            eights: [&op.q, &op.k, &op.v]
                .into_iter()
                .all(|desc| in_vectors(desc, mma::CHUNK)),
            heads_inside: inside(&op.k, 1, 2),
            softmax: op.softmax,
        }
    }

    fn varlen(op: &VarlenAttention) -> Problem {
        Problem {
            name: "attention_varlen",
            layout: 1,
            dtype: op.q.dtype,
            heads: op.heads(),
            kv_heads: op.kv_heads(),
            d: op.d(),
            dv: op.dv(),
            rows: op.tokens().saturating_mul(group(op.heads(), op.kv_heads())),
            sequences: op.batch(),
            keys: op.kv_tokens(),
            block_size: 1,
            unit: unit(&op.k) && unit(&op.v),
            units: [&op.q, &op.k, &op.v].map(unit),
            fours: [&op.q, &op.k, &op.v]
                .into_iter()
                .all(|desc| in_vectors(desc, 4)),
            eights: [&op.q, &op.k, &op.v]
                .into_iter()
                .all(|desc| in_vectors(desc, mma::CHUNK)),
            heads_inside: inside(&op.k, 1, 0),
            softmax: op.softmax,
        }
    }

    fn paged(op: &PagedAttention) -> Problem {
        Problem {
            name: "attention_paged",
            layout: 2,
            dtype: op.q.dtype,
            heads: op.heads(),
            kv_heads: op.kv_heads(),
            d: op.d(),
            dv: op.dv(),
            rows: op.tokens().saturating_mul(group(op.heads(), op.kv_heads())),
            sequences: op.batch(),
            keys: op.max_kv_len(),
            block_size: op.block_size(),
            unit: unit(&op.k_cache) && unit(&op.v_cache),
            units: [&op.q, &op.k_cache, &op.v_cache].map(unit),
            fours: [&op.q, &op.k_cache, &op.v_cache]
                .into_iter()
                .all(|desc| in_vectors(desc, 4)),
            eights: [&op.q, &op.k_cache, &op.v_cache]
                .into_iter()
                .all(|desc| in_vectors(desc, mma::CHUNK)),
            heads_inside: inside(&op.k_cache, 2, 1),
            softmax: op.softmax,
        }
    }

    fn group(&self) -> u64 {
        group(self.heads, self.kv_heads)
    }

    /// Whether every sequence has few rows.
    fn few(&self) -> bool {
        self.layout == 0 && self.rows <= FEW_ROWS
    }

    /// The kernels that can run it, the best first.
    fn candidates(&self, op: &dyn Op, info: &DeviceInfo) -> Result<Vec<&'static Kernel>> {
        for operand in op.operands() {
            if !info.dtype(operand.desc.dtype).storage {
                let dtype = operand.desc.dtype;
                let context = format!("{} cannot store {dtype} ({})", info.name, operand.name);
                return Err(Error::unsupported(context));
            }
        }
        let size = self.d.max(self.dv);
        let most = HEAD_SIZES[HEAD_SIZES.len() - 1];
        if size > most {
            let context = format!("heads of size {size}; kernels have room for {most}");
            return Err(Error::unsupported(context));
        }
        for (what, count) in [
            ("rows", self.rows.saturating_add(self.sequences)),
            (
                "keys",
                self.keys.saturating_mul(if self.layout == 0 {
                    1
                } else {
                    self.sequences.max(1)
                }),
            ),
            ("sequences", self.sequences),
        ] {
            if count > 1 << 28 {
                let context = format!("{count} {what}; they are numbered in 32 bits");
                return Err(Error::unsupported(context));
            }
        }
        let mut kernels = if self.few() {
            vec![
                &ATTENTION_NATIVE,
                &ATTENTION_DECODE,
                &ATTENTION_KEYS,
                &ATTENTION_PREFILL,
                &ATTENTION_ROWS,
                &ATTENTION_TILED,
            ]
        } else {
            vec![
                &ATTENTION_NATIVE,
                &ATTENTION_PREFILL,
                &ATTENTION_ROWS,
                &ATTENTION_TILED,
            ]
        };
        if !self.keys_fit() {
            kernels.retain(|kernel| kernel.name != ATTENTION_KEYS.name);
        }
        // `attention_rows` needs more local memory the wider the heads are.
        if !self.rows_fit(info) {
            kernels.retain(|kernel| kernel.name != ATTENTION_ROWS.name);
        }
        if info.kind != DeviceKind::Cpu {
            kernels.sort_by_key(|kernel| kernel.name != ATTENTION_TILED.name);
        }
        kernels.extend(ascend::forms(self, info));
        if self.fits_mma() {
            kernels.insert(0, &ATTENTION_MMA);
            if self.few_mma() {
                kernels.insert(0, &ATTENTION_MMA_FEW);
            }
        }
        if self.fits_wgmma(op) {
            let before = match (self.many_for_wgmma(), self.few_mma()) {
                (true, _) => 0,
                (false, few) => 1 + usize::from(few),
            };
            kernels.insert(before, &ATTENTION_WGMMA);
        }
        if self.fits_latent(op) {
            kernels.insert(0, &ATTENTION_LATENT);
        }
        let mut lack = Error::unsupported("no kernel");
        let most = info.limits.loop_rounds.unwrap_or(u64::MAX);
        let mut ended = None;
        let mut found = Vec::new();
        for kernel in kernels {
            match kernel
                .source_for(info)
                .and_then(|_| kernel.validate(&kernel.default_config(), info))
            {
                Ok(()) if self.rounds(kernel, info) > most => {
                    let (keys, device) = (self.keys, &info.name);
                    let context = format!("{keys} keys: loops end after {most} rounds on {device}");
                    ended = Some(Error::unsupported(context));
                }
                Ok(()) => found.push(kernel),
                Err(error) => lack = Error::unsupported(error.context()),
            }
        }
        if found.is_empty() {
            Err(ended.unwrap_or(lack))
        } else {
            Ok(found)
        }
    }

    fn choose(&self, op: &dyn Op, request: &PlanRequest<'_>) -> Result<ModuleKey> {
        let key = TuneKey {
            op: self.name,
            variant: &self.dtype.to_string(),
            sizes: &[
                ("rows", self.rows),
                ("keys", self.keys),
                ("heads", self.kv_heads),
                ("d", self.d),
                ("dv", self.dv),
            ],
        };
        let (kernel, config) = request.choose(&key, &self.candidates(op, request.info)?)?;
        Ok(ModuleKey { kernel, config })
    }

    /// Whether the queries of few rows and their sums are not too many for the registers of `attention_keys`: drivers take minutes otherwise.
    fn keys_fit(&self) -> bool {
        let rows = if self.layout == 0 {
            self.rows
        } else {
            self.group()
        };
        rows.next_power_of_two() * self.head_max() <= LANE_COLUMNS
    }

    fn rows_fit(&self, info: &DeviceInfo) -> bool {
        let [subgroup] = info.subgroup_sizes[..] else {
            return false;
        };
        let group = self.head_max() / 4;
        rows_local_memory(group, self.keys_each(), subgroup.into()) <= info.limits.local_memory
            && group <= info.limits.max_group_size.into()
    }

    /// Keys that a work-item of `attention_rows` takes at a time: as many as the scores of 32 rows leave room for.
    fn keys_each(&self) -> u64 {
        match self.head_max() {
            ..=128 => 4,
            256 => 2,
            _ => 1,
        }
    }

    /// No fewer rounds than the loops of a work-item make in a kernel with unsplit keys, whatever its tunables; 0 for kernels that walk few keys
    /// or exist only where loops run as written.
    fn rounds(&self, kernel: &Kernel, info: &DeviceInfo) -> u64 {
        let unsplit = match self.layout {
            0 if self.rows <= SPLIT_ROWS => self.keys.min(MOST_SPLIT_KEYS),
            _ => self.keys,
        };
        let head_max = self.head_max();
        let (block, rounds) = if kernel.name == ATTENTION_ROWS.name {
            let subgroup = info
                .subgroup_sizes
                .first()
                .map_or(1, |&size| u64::from(size));
            let (keys, block) = (self.keys_each() * subgroup, self.keys_each() * head_max / 4);
            // Scores along d, the two passes over a subgroup's keys, other subgroups' maxima, two keys at a time.
            let subgroups = head_max / 4 / subgroup;
            (block, head_max / 4 + 2 * keys + subgroups + block / 2 + 1)
        } else if kernel.name == ATTENTION_TILED.name {
            // 16 keys at a time, in parts of 16 columns, each loaded by 64 work-items and multiplied two columns at a time.
            (16, head_max / 16 * (1 + 4 + 4 + 8) + TILED_ROWS + 16 + 1)
        } else {
            return 0;
        };
        let others = 2 * head_max + self.sequences;
        unsplit
            .div_ceil(block)
            .saturating_mul(rounds)
            .saturating_add(others)
    }

    /// What the kernels for short subgroups are compiled for, beside what all are: how whole vectors of four are found, and the options, since
    /// the drivers run what an `if` skips.
    fn complete_lanes(&self, config: &mut Config, flags: i64, info: &DeviceInfo) {
        let in_scores = flag::SOFTCAP | flag::MASK | flag::ALIBI;
        config
            .set("SUBGROUP", info.subgroup_sizes[0].into())
            .set("VECTOR", i64::from(self.fours))
            .set("OPTIONS", i64::from(flags & in_scores != 0));
    }

    /// Key heads of a work-group of `attention_decode`: all whose rows lie behind each other, so that memory is read in order, as long as there is
    /// work for every core of the device and their queries and sums fit level 1 and 2 caches.
    fn heads_together(&self, division: &Division, info: &DeviceInfo) -> u64 {
        let works = division.most_slots.max(self.sequences);
        let row_bytes = 4 * self.head_max() * division.few_rows;
        let mut together = 1;
        while self.heads_inside
            && 2 * together <= self.kv_heads
            && 2 * together * row_bytes <= FEW_BYTES
            && works * self.kv_heads / (2 * together)
                >= WORKS_A_CORE * u64::from(info.compute_units)
        {
            together *= 2;
        }
        together
    }

    /// The room that kernels have for columns.
    fn head_max(&self) -> u64 {
        let size = self.d.max(self.dv);
        let head_max = HEAD_SIZES.into_iter().find(|&most| size <= most);
        head_max.expect("checked with the candidates")
    }

    /// The constants that the kernels of a plan share.
    fn complete(&self, config: &mut Config, split_keys: i64) {
        config
            .set("LAYOUT", self.layout)
            .set("UNIT", i64::from(self.unit))
            .set("HEAD_MAX", self.head_max() as i64)
            .set("SPLIT_KEYS", split_keys)
            .set_dtype("DTYPE", self.dtype);
    }
}

fn group(heads: u64, kv_heads: u64) -> u64 {
    heads.checked_div(kv_heads).unwrap_or(0)
}

fn unit(desc: &TensorDesc) -> bool {
    let last = desc.layout.rank() - 1;
    desc.layout.strides()[last] == 1 || desc.layout.shape()[last] <= 1
}

/// Whether a tensor consists of whole vectors of so many elements: sizes, and strides but the last, which is 1.
fn in_vectors(desc: &TensorDesc, size: u64) -> bool {
    let (shape, strides) = (desc.layout.shape(), desc.layout.strides());
    let last = shape.len() - 1;
    let mut others = shape.iter().zip(strides).take(last);
    unit(desc)
        && shape[last].is_multiple_of(size)
        && others.all(|(&extent, stride)| extent <= 1 || stride.is_multiple_of(size))
}

fn inside(desc: &TensorDesc, inner: usize, outer: usize) -> bool {
    desc.layout.strides()[inner] < desc.layout.strides()[outer]
}

pub(super) fn attention_candidates(
    op: &Attention,
    info: &DeviceInfo,
) -> Result<Vec<&'static Kernel>> {
    Problem::dense(op).candidates(op, info)
}

pub(super) fn attention_varlen_candidates(
    op: &VarlenAttention,
    info: &DeviceInfo,
) -> Result<Vec<&'static Kernel>> {
    Problem::varlen(op).candidates(op, info)
}

pub(super) fn attention_paged_candidates(
    op: &PagedAttention,
    info: &DeviceInfo,
) -> Result<Vec<&'static Kernel>> {
    Problem::paged(op).candidates(op, info)
}

// ---- plans ---------------------------------------------------------------------------------------------------------

pub(super) fn attention(op: &Attention, request: &PlanRequest<'_>) -> Result<Plan> {
    let problem = Problem::dense(op);
    let key = problem.choose(op, request)?;
    finish(&problem, key, request.info, operands::dense(&problem, op))
}

pub(super) fn attention_varlen(op: &VarlenAttention, request: &PlanRequest<'_>) -> Result<Plan> {
    let problem = Problem::varlen(op);
    let key = problem.choose(op, request)?;
    finish(&problem, key, request.info, operands::varlen(&problem, op))
}

pub(super) fn attention_paged(op: &PagedAttention, request: &PlanRequest<'_>) -> Result<Plan> {
    let problem = Problem::paged(op);
    let key = problem.choose(op, request)?;
    finish(&problem, key, request.info, operands::paged(&problem, op))
}

/// How the work of a plan is divided.
struct Division {
    /// Sequences of at most this many rows go to `attention_decode` or `attention_mma_few`, or to their like in `native.rs`.
    few_rows: u64,
    /// The keys of sequences of at most this many rows are split.
    split_rows: u64,
    /// Splits that `partial` has room for, by the bound operands and at the most.
    slots: Expr,
    most_slots: u64,
}

/// Divides the work of a problem whose keys fall into splits of `split_keys`.
fn divide(problem: &Problem, key: &ModuleKey, sizes: &Sizes, split_keys: u64) -> Division {
    let group = problem.group();
    let name = key.kernel.name;
    let decode = name == ATTENTION_DECODE.name || name == ATTENTION_KEYS.name;
    let rows_in_lanes = name == ATTENTION_ROWS.name;
    let beside = (name == ATTENTION_PREFILL.name || rows_in_lanes) && problem.layout != 0;
    let latent = name == ATTENTION_LATENT.name;
    let few_rows = if latent {
        0
    } else if mma::is_mma(key) {
        // Of a rectangular batch one launch takes all.
        let few = name == ATTENTION_MMA_FEW.name || problem.layout != 0 && group <= mma::FEW_ROWS;
        if few { mma::FEW_ROWS } else { 0 }
    } else if decode {
        problem.rows.next_power_of_two()
    } else if beside && group <= FEW_ROWS && (!rows_in_lanes || problem.keys_fit()) {
        group.next_power_of_two()
    } else {
        0
    };
    let rows = if problem.layout == 0 {
        problem.rows
    } else if latent {
        latent::split_rows(problem)
    } else {
        group.max(few_rows)
    };
    let most_rows = if latent {
        latent::SPLIT_ROWS
    } else {
        SPLIT_ROWS
    };
    let one_split = problem.keys <= split_keys;
    let split_rows = if rows > most_rows || one_split {
        0
    } else {
        rows
    };
    let per_sequence = if split_rows == 0 {
        Expr::Const(1)
    } else {
        sizes.kv_len.clone().div_ceil(split_keys).max(1)
    };
    let most = if split_rows == 0 {
        1
    } else {
        problem.keys.div_ceil(split_keys).max(1)
    };
    // The keys of a varlen batch are counted all together: each sequence begins at most one split more.
    let (slots, most_slots) = match problem.layout {
        1 => (
            per_sequence + sizes.sequences.clone(),
            most + problem.sequences,
        ),
        _ => (
            sizes.sequences.clone() * per_sequence,
            problem.sequences * most,
        ),
    };
    Division {
        few_rows,
        split_rows,
        slots,
        most_slots,
    }
}

/// Adds the launches.
fn finish(
    problem: &Problem,
    mut key: ModuleKey,
    info: &DeviceInfo,
    (mut plan, operands, sizes): (Plan, Operands, Sizes),
) -> Result<Plan> {
    let (operands, sizes) = (&operands, &sizes);
    if problem.heads == 0 || problem.kv_heads == 0 {
        return Ok(plan);
    }
    let kv_heads = Expr::from(problem.kv_heads);
    if key.kernel.name == ATTENTION_NATIVE.name {
        problem.complete(&mut key.config, 1);
        let division = Division {
            few_rows: if problem.layout != 0 || problem.few() {
                FEW_ROWS
            } else {
                0
            },
            split_rows: 0,
            slots: Expr::Const(0),
            most_slots: 0,
        };
        let args = arguments(problem, operands, sizes, &division, None);
        launch(
            &mut plan,
            key,
            "attention_native",
            [1.into(), 1.into(), 1.into()],
            1,
            args,
        );
        return Ok(plan);
    }
    if key.kernel.name == ATTENTION_FUSED.name {
        ascend::append_fused(&mut plan, problem, info, operands, sizes);
        return Ok(plan);
    }
    if key.kernel.name == ATTENTION_CUBE.name {
        ascend::append(&mut plan, problem, info, operands, sizes);
        return Ok(plan);
    }
    let split_keys = key.config.value("SPLIT_KEYS");
    let by_mma = mma::is_mma(&key);
    if !by_mma {
        problem.complete(&mut key.config, split_keys);
    }
    let division = divide(problem, &key, sizes, split_keys as u64);
    let partial = (division.split_rows > 0).then(|| {
        let floats = [problem.kv_heads, division.split_rows, problem.dv + 2, 4];
        let bytes = floats
            .into_iter()
            .fold(division.most_slots, u64::saturating_mul);
        plan.take_workspace(bytes)
    });
    let args = || arguments(problem, operands, sizes, &division, partial.as_ref());

    // Sequences of few rows have one tile; the ids of a dense batch are tiles of each split, otherwise tiles of whole sequences may join.
    let rows = sizes.q_len.clone() * problem.group();
    let works = |tile_rows: u64| match problem.layout {
        0 => rows.clone().div_ceil(tile_rows) * division.slots.clone(),
        _ => {
            rows.clone().div_ceil(tile_rows)
                + sizes.sequences.clone()
                + division.slots.clone() * division.split_rows.div_ceil(tile_rows)
        }
    };
    let few_works = match problem.layout {
        1 if division.split_rows == 0 => sizes.sequences.clone(),
        _ => division.slots.clone(),
    };
    let tiled = key.kernel.name == ATTENTION_TILED.name;
    let in_lanes = key.kernel.name == ATTENTION_ROWS.name || key.kernel.name == ATTENTION_KEYS.name;
    if in_lanes {
        if problem.fours {
            for index in [operands.q, operands.k, operands.v] {
                require_vectors(&mut plan.operands[index], 4);
            }
        }
        problem.complete_lanes(&mut key.config, flags(problem, operands), info);
    }
    if by_mma {
        for index in [operands.q, operands.k, operands.v] {
            require_vectors(&mut plan.operands[index], mma::CHUNK);
        }
        // Where one launch takes the sequences of few rows, those of the other are not split.
        let many_works = |tile_rows: u64| match division.few_rows {
            0 => works(tile_rows),
            _ => rows.clone().div_ceil(tile_rows) + sizes.sequences.clone(),
        };
        let few_works = (division.few_rows > 0).then_some(few_works);
        mma::append(
            &mut plan, problem, operands, &key, info, few_works, many_works, args,
        );
    } else if division.few_rows > 0 && in_lanes {
        let mut few = ModuleKey {
            kernel: &ATTENTION_KEYS,
            config: ATTENTION_KEYS.default_config(),
        };
        problem.complete(&mut few.config, split_keys);
        problem.complete_lanes(&mut few.config, flags(problem, operands), info);
        few.config.set("FEW_ROWS", division.few_rows as i64);
        let grid = [kv_heads.clone(), few_works, 1.into()];
        let group = info.subgroup_sizes[0];
        launch(&mut plan, few, "attention_keys", grid, group, args());
    } else if division.few_rows > 0 {
        let mut decode = ModuleKey {
            kernel: &ATTENTION_DECODE,
            config: Config::default(),
        };
        decode.config = ATTENTION_DECODE.default_config();
        problem.complete(&mut decode.config, split_keys);
        if key.kernel.name == ATTENTION_DECODE.name {
            decode
                .config
                .set("KEY_BLOCK", key.config.value("KEY_BLOCK"));
        }
        decode.config.set("FEW_ROWS", division.few_rows as i64);
        let together = problem.heads_together(&division, info);
        decode.config.set("HEADS", together as i64);
        let grid = [
            problem.kv_heads.div_ceil(together).into(),
            few_works,
            1.into(),
        ];
        launch(&mut plan, decode, "attention_decode", grid, 1, args());
    }
    if tiled {
        let grid = over_heads(info, kv_heads.clone(), works(TILED_ROWS));
        launch(&mut plan, key, "attention_tiled", grid, TILED_GROUP, args());
    } else if key.kernel.name == ATTENTION_ROWS.name {
        let group = problem.head_max() / 4;
        key.config.set("GROUP", group as i64);
        key.config.set("KEY_VECTORS", problem.keys_each() as i64);
        let grid = [kv_heads.clone(), works(LANE_ROWS), 1.into()];
        launch(&mut plan, key, "attention_rows", grid, group as u32, args());
    } else if key.kernel.name == ATTENTION_PREFILL.name {
        let tile_rows = 16 * key.config.value("ROW_GROUPS") as u64;
        let grid = [works(tile_rows), kv_heads.clone(), 1.into()];
        launch(&mut plan, key, "attention_prefill", grid, 1, args());
    }
    if division.split_rows > 0 {
        let mut merge = ModuleKey {
            kernel: &ATTENTION_MERGE,
            config: Config::default(),
        };
        problem.complete(&mut merge.config, split_keys);
        let rows = sizes.sequences.clone() * division.split_rows;
        let grid = over_heads(info, kv_heads, rows);
        let group = if tiled || in_lanes || by_mma {
            TILED_GROUP
        } else {
            1
        };
        launch(&mut plan, merge, "attention_merge", grid, group, args());
    }
    Ok(plan)
}

/// A grid over key heads and what may be many. CUDA has 65,535 groups along the second dimension, so there they are the first.
fn over_heads(info: &DeviceInfo, kv_heads: Expr, many: Expr) -> [Expr; 3] {
    match info.languages.first() {
        Some(Language::CudaC) => [many, kv_heads, 1.into()],
        _ => [kv_heads, many, 1.into()],
    }
}

/// Of `size` elements that are loaded at once, each operand's first must be bound at a whole vector.
fn require_vectors(rule: &mut OperandRule, size: u64) {
    rule.offset_multiple = size;
    let last = rule.strides.len() - 1;
    for (axis, stride) in rule.strides.iter_mut().enumerate() {
        *stride = if axis == last {
            StrideRule::Exactly(1)
        } else {
            StrideRule::MultipleOf(size)
        };
    }
}

fn launch(
    plan: &mut Plan,
    key: ModuleKey,
    entry: &'static str,
    grid: [Expr; 3],
    group: u32,
    args: Vec<Arg>,
) {
    let module = plan.module(key);
    plan.launches.push(Launch {
        module,
        entry,
        grid,
        group: [group, 1, 1],
        local_memory: 0,
        args,
    });
}
