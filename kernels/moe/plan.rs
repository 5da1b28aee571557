//! Planners: which kernels run a problem, with which launches.

use std::ops::Range;

use ropeway_core::dtype::DType;
use ropeway_core::info::{DeviceInfo, DeviceKind};
use ropeway_core::kernel::{Config, Kernel, Language, ModuleKey};
use ropeway_core::op::Op;
use ropeway_core::plan::{
    Arg, Determinism, Expr, Extent, Form, Launch, OperandRule, Plan, StrideRule, Symbol,
};
use ropeway_core::{Error, Result};

use super::manifest::experts_capacity;

mod ffn;
mod route;
mod rows;
#[cfg(all(test, feature = "spec"))]
mod tests;
mod vector;

pub(super) use ffn::{moe_ffn, moe_ffn_candidates};
pub(super) use route::{moe_route, moe_route_candidates};
pub(super) use rows::{
    expert_gather, expert_gather_candidates, expert_scatter, expert_scatter_candidates,
};

/// Those of `kernels` that the device takes and whose counters over `experts` fit it, wide work-items first on CPUs,
/// warps, then groups of narrow ones, first elsewhere.
fn fitting(
    op: &dyn Op,
    info: &DeviceInfo,
    experts: u64,
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
    let mut misfit = None;
    let mut found = Vec::new();
    for &kernel in kernels {
        let mut config = kernel.default_config();
        config.set("EXPERTS_CAPACITY", experts_capacity(experts));
        match (kernel.source_for(info), kernel.validate(&config, info)) {
            (Ok(_), Ok(())) => found.push(kernel),
            // Says more than that another kernel has no source for the device.
            (Ok(_), Err(error)) => misfit = Some(Error::unsupported(error.context())),
            (Err(error), _) => lack = Error::unsupported(error.context()),
        }
    }
    if info.kind != DeviceKind::Cpu {
        found.sort_by_key(|kernel| {
            let warps = kernel.name.ends_with("_warp");
            (!warps, !kernel.name.ends_with("_group"))
        });
    }
    if found.is_empty() {
        return Err(misfit.unwrap_or(lack));
    }
    Ok(found)
}

/// Fails unless the elements of each row of the named operands lie side by side.
fn need_dense_rows(op: &dyn Op, names: &[&str]) -> Result<()> {
    for operand in op.operands() {
        let layout = operand.desc.layout;
        let last = layout.rank() - 1;
        if names.contains(&operand.name) && layout.shape()[last] > 1 && layout.strides()[last] != 1
        {
            return Err(Error::unsupported(format!(
                "{} takes {} with stride 1 on its last axis, not {}",
                op.name(),
                operand.name,
                layout.strides()[last]
            )));
        }
    }
    Ok(())
}

/// (token, slot) pairs are numbered in 32 bits.
fn pairs(tokens: u64, topk: u64) -> Result<u64> {
    countable("tokens", tokens)?;
    tokens
        .checked_mul(topk)
        .filter(|&pairs| pairs <= i32::MAX as u64)
        .ok_or_else(|| {
            Error::unsupported(format!(
                "{tokens} tokens times {topk} slots; rows are numbered in 32 bits"
            ))
        })
}

/// Kernels count tokens, columns and the like in 32 bits, and some multiply them by the 32 rows of a panel.
fn countable(name: &str, count: u64) -> Result<()> {
    const MOST: u64 = 1 << 26;
    if count > MOST {
        let context = format!("{count} {name}; kernels count up to {MOST}");
        return Err(Error::unsupported(context));
    }
    Ok(())
}

/// The product of these sizes, as bytes of a workspace.
fn bytes(sizes: &[u64]) -> Result<u64> {
    sizes
        .iter()
        .try_fold(1u64, |bytes, &size| bytes.checked_mul(size))
        .filter(|&bytes| bytes <= 1 << 56)
        .ok_or_else(|| Error::unsupported(format!("a workspace of {sizes:?} bytes")))
}

/// An operand's place in a plan, with the expressions that its launches are made of.
#[derive(Clone, Copy)]
struct Bound(usize);

impl Bound {
    fn index(self) -> usize {
        self.0
    }

    fn arg(self) -> Arg {
        Arg::operand(self.0)
    }

    fn extent(self, axis: usize) -> Expr {
        Expr::extent(self.0, axis)
    }

    fn stride(self, axis: usize) -> Arg {
        Arg::U64(Expr::stride(self.0, axis))
    }
}

/// `tokens * times`.
fn per_token(times: u64) -> Extent {
    Extent::Varies {
        symbol: 0,
        times,
        plus: 0,
    }
}

/// A plan whose one symbol is the number of tokens.
fn plan_over_tokens(op: &'static str, determinism: Determinism, tokens: u64) -> Plan {
    let mut plan = Plan::new(op, determinism);
    plan.symbols.push(Symbol {
        name: "tokens",
        max: tokens,
    });
    plan
}

/// Adds an operand. Outputs and `dense` inputs have stride 1 on their last axis, the other strides are free.
fn bind(
    plan: &mut Plan,
    name: &'static str,
    dtype: DType,
    shape: &[Extent],
    dense: bool,
    write: bool,
) -> Bound {
    let mut strides = vec![StrideRule::Any; shape.len()];
    if dense || write {
        strides[shape.len() - 1] = StrideRule::Exactly(1);
    }
    plan.operands.push(OperandRule {
        name,
        dtype,
        write,
        shape: shape.to_vec(),
        strides,
        offset_multiple: 1,
        form: Form::Plain,
    });
    Bound(plan.operands.len() - 1)
}

fn workspace(range: &Range<u64>, dtype: DType, write: bool) -> Arg {
    Arg::Workspace {
        range: range.clone(),
        dtype,
        write,
    }
}

fn u32(value: impl Into<Expr>) -> Arg {
    Arg::U32(value.into())
}

fn u64(value: impl Into<Expr>) -> Arg {
    Arg::U64(value.into())
}

/// The grid of `blocks` work-groups for each of `tokens`. CUDA's second dimension ends at 65535: there both share the first, and
/// kernels count groups through.
fn grid_over_tokens(blocks: u64, tokens: Expr, info: &DeviceInfo) -> [Expr; 3] {
    match info.languages.first() {
        Some(Language::CudaC) => one_dimension(tokens * blocks),
        _ => [blocks.into(), tokens, 1.into()],
    }
}

fn one_dimension(groups: impl Into<Expr>) -> [Expr; 3] {
    [groups.into(), 1.into(), 1.into()]
}

/// Work-items of a group, from the tunable that says so; 1 on the cpu device, whose functions thread themselves.
fn group(config: &Config, tunable: &str) -> [u32; 3] {
    [config.get(tunable).unwrap_or(1) as u32, 1, 1]
}

fn launch(
    plan: &mut Plan,
    key: ModuleKey,
    entry: &'static str,
    grid: [Expr; 3],
    group: [u32; 3],
    args: Vec<Arg>,
) {
    let module = plan.module(key);
    plan.launches.push(Launch {
        module,
        entry,
        grid,
        group,
        local_memory: 0,
        args,
    });
}
