//! Planners: which kernels run a problem, with which launches.

use ropeway_core::info::{DeviceInfo, DeviceKind};
use ropeway_core::kernel::{Config, Kernel, ModuleKey};
use ropeway_core::memory::TensorDesc;
use ropeway_core::op::{Op, PlanRequest, TuneKey};
use ropeway_core::plan::{
    Arg, Determinism, Expr, Extent, Form, Launch, OperandRule, Plan, StrideRule, Symbol,
};
use ropeway_core::{Error, Result};

use super::manifest::vector_cores;
use super::{Extents, RANK, extents};

mod map;
mod rows;

pub(super) use map::{copy, elementwise, get_rows, glu, set_rows, unary};
pub(super) use rows::{argsort, norm, rope, softmax, sum_rows};

/// Those of `kernels` that the device takes, wide work-items first on CPUs, groups first elsewhere.
pub(super) fn fitting(
    op: &dyn Op,
    info: &DeviceInfo,
    kernels: &[&'static Kernel],
) -> Result<Vec<&'static Kernel>> {
    for operand in op.operands() {
        if !info.dtype(operand.desc.dtype).storage {
            let dtype = operand.desc.dtype;
            let context = format!("{} cannot store {dtype} ({})", info.name, operand.name);
            return Err(Error::unsupported(context));
        }
    }
    let mut lack = Error::unsupported("no kernel");
    let mut found = Vec::new();
    for &kernel in kernels {
        match kernel
            .source_for(info)
            .and_then(|_| kernel.validate(&kernel.default_config(), info))
        {
            Ok(()) => found.push(kernel),
            Err(error) => lack = Error::unsupported(error.context()),
        }
    }
    if info.kind != DeviceKind::Cpu {
        found.sort_by_key(|kernel| !kernel.name.ends_with("_group"));
    }
    if found.is_empty() {
        Err(lack)
    } else {
        Ok(found)
    }
}

/// Kernels count elements of a row, rows and the like in 32 bits.
fn countable(op: &dyn Op) -> Result<()> {
    for operand in op.operands() {
        let extents = extents(&operand.desc);
        let rows = extents[1..].iter().try_fold(1u64, |n, &m| n.checked_mul(m));
        let fits = |n: u64| n <= i32::MAX as u64;
        if !fits(extents[0]) || !rows.is_some_and(fits) {
            let shape = operand.desc.shape();
            let context = format!(
                "{} of shape {shape:?}; columns and rows are counted in 31 bits",
                operand.name
            );
            return Err(Error::unsupported(context));
        }
    }
    Ok(())
}

/// Groups along the first dimension of a grid; the others follow along the second, since devices may bound each to 65,535.
const GRID_WIDTH: u64 = 1 << 15;

/// A plan under way. Its iteration space is that of the op's rows: each axis but the last may shrink, as one symbol.
struct Planner {
    plan: Plan,
    space: Extents,
    /// Whether an axis may shrink.
    varies: [bool; RANK],
    key: ModuleKey,
    /// Of a device whose blocks stride over the work, how many it runs at once.
    cores: Option<u64>,
}

/// An operand's place in a plan.
#[derive(Clone, Copy)]
struct Bound {
    index: usize,
    rank: usize,
}

impl Bound {
    fn arg(self) -> Arg {
        Arg::operand(self.index)
    }

    /// Axis `k`, counted from the last.
    fn axis(self, k: usize) -> Option<usize> {
        (self.rank - 1).checked_sub(k)
    }

    fn extent(self, k: usize) -> Expr {
        self.axis(k)
            .map_or(1.into(), |axis| Expr::extent(self.index, axis))
    }

    fn stride(self, k: usize) -> Arg {
        Arg::U64(
            self.axis(k)
                .map_or(0.into(), |axis| Expr::stride(self.index, axis)),
        )
    }

    fn strides(self) -> [Arg; RANK] {
        [0, 1, 2, 3].map(|k| self.stride(k))
    }

    fn extents(self) -> [Arg; RANK] {
        [0, 1, 2, 3].map(|k| u32(self.extent(k)))
    }

    /// All rows.
    fn rows(self) -> Expr {
        self.extent(1) * self.extent(2) * self.extent(3)
    }
}

/// Names of the axes that may shrink, from the last axis on.
const SYMBOLS: [&str; RANK] = ["columns", "rows", "planes", "batch"];

impl Planner {
    /// A plan over the rows of `space`, of which those axes may shrink that are `fixed` by no operand.
    fn new(
        op: &dyn Op,
        request: &PlanRequest<'_>,
        kernels: &[&'static Kernel],
        space: &TensorDesc,
        fixed: [bool; RANK],
    ) -> Result<Planner> {
        countable(op)?;
        let rank = space.shape().len();
        let space = extents(space);
        let variant: Vec<_> = op
            .operands()
            .iter()
            .map(|operand| operand.desc.dtype.to_string())
            .collect();
        let key = TuneKey {
            op: op.name(),
            variant: &variant.join("_"),
            sizes: &[
                ("rows", space[1] * space[2] * space[3]),
                ("columns", space[0]),
            ],
        };
        let (kernel, config) = request.choose(&key, &fitting(op, request.info, kernels)?)?;
        let mut plan = Plan::new(op.name(), Determinism::BatchInvariant);
        let mut varies = [false; RANK];
        for k in 1..rank {
            varies[k] = !fixed[k];
            if varies[k] {
                plan.symbols.push(Symbol {
                    name: SYMBOLS[k],
                    max: space[k],
                });
            }
        }
        Ok(Planner {
            plan,
            space,
            varies,
            cores: vector_cores(kernel, request.info),
            key: ModuleKey { kernel, config },
        })
    }

    fn config(&mut self) -> &mut Config {
        &mut self.key.config
    }

    /// The extent of an operand's axis that measures `found` and is axis `k` of the space.
    fn along(&self, k: usize, found: u64) -> Extent {
        if !self.varies[k] || found != self.space[k] {
            return Extent::Exactly(found);
        }
        let symbol = self.varies[1..k].iter().filter(|varies| **varies).count();
        Extent::Varies {
            symbol,
            times: 1,
            plus: 0,
        }
    }

    /// Adds an operand whose axis i, from the last on, is axis `axes[i]` of the space, or of an extent of its own.
    fn bind_along(
        &mut self,
        name: &'static str,
        desc: &TensorDesc,
        write: bool,
        axes: [Option<usize>; RANK],
    ) -> Bound {
        let rank = desc.shape().len();
        let found = extents(desc);
        let shape = (0..rank).rev().map(|i| match axes[i] {
            Some(k) => self.along(k, found[i]),
            None => Extent::Exactly(found[i]),
        });
        let shape = shape.collect();
        self.plan.operands.push(OperandRule {
            name,
            dtype: desc.dtype,
            write,
            shape,
            strides: vec![StrideRule::Any; rank],
            offset_multiple: 1,
            form: Form::Plain,
        });
        Bound {
            index: self.plan.operands.len() - 1,
            rank,
        }
    }

    /// Adds an operand whose axes are those of the space, or repeated along them.
    fn bind(&mut self, name: &'static str, desc: &TensorDesc, write: bool) -> Bound {
        self.bind_along(name, desc, write, [0, 1, 2, 3].map(Some))
    }

    /// The output may be bound to the very view of an input.
    fn in_place(&mut self, output: Bound, input: Bound) {
        self.plan.in_place.push((output.index, input.index));
    }

    /// Rows of which a group takes several, and into how many pieces of `BLOCK` columns others are cut.
    fn blocks(&self) -> (u64, u64) {
        let block = self.key.config.get("BLOCK").unwrap_or(4096) as u64;
        let columns = self.space[0].max(1);
        ((block / columns).max(1), columns.div_ceil(block))
    }

    /// Rows of which a group takes several, one after the other: few, where its work-items share each of them.
    fn rows_each(&self) -> u64 {
        let (rows, _) = self.blocks();
        match self.key.config.get("GROUP") {
            Some(1) | None => rows,
            Some(_) => rows.min(16),
        }
    }

    /// Fails where the driver would end the loops over rows of so many columns, each of which is gone through `passes` times.
    fn need_rounds(&self, passes: u64, request: &PlanRequest<'_>) -> Result<()> {
        let config = &self.key.config;
        let [group, vector] = ["GROUP", "VECTOR"].map(|name| config.get(name).unwrap_or(1) as u64);
        let rows_each = self.rows_each();
        // Besides a vector's own elements.
        let rounds = rows_each * passes * (vector + 2) * self.space[0].div_ceil(group * vector);
        match request.info.limits.loop_rounds {
            Some(most) if rounds > most => Err(Error::unsupported(format!(
                "rows of {} columns on {}, which ends loops after {most} rounds",
                self.space[0], request.info.name
            ))),
            _ => Ok(()),
        }
    }

    fn launch(&mut self, entry: &'static str, groups: Expr, args: Vec<Arg>) {
        let module = self.plan.module(self.key.clone());
        let group = self.key.config.get("GROUP").unwrap_or(1) as u32;
        let grid = match self.cores {
            Some(cores) => [groups.min(cores), 1.into(), 1.into()],
            None => [
                groups.clone().min(GRID_WIDTH),
                groups.div_ceil(GRID_WIDTH),
                1.into(),
            ],
        };
        self.plan.launches.push(Launch {
            module,
            entry,
            grid,
            group: [group, 1, 1],
            local_memory: 0,
            args,
        });
    }
}

fn u32(value: impl Into<Expr>) -> Arg {
    Arg::U32(value.into())
}

fn u64(value: impl Into<Expr>) -> Arg {
    Arg::U64(value.into())
}

/// The axes of the space along which an operand of these extents neither runs whole nor is one element.
fn repeated(space: &TensorDesc, part: &TensorDesc) -> [bool; RANK] {
    let (space, part) = (extents(space), extents(part));
    [0, 1, 2, 3].map(|k| part[k] != space[k] && part[k] != 1)
}
