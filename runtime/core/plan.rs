//! Plans: what an op wants done, as pure data.
//!
//! A [`Plan`] lists launches of configured kernels with symbolic arguments. It is made once for a problem and holds for every problem
//! that differs only in its *symbols* (row counts, lengths, batch), up to the maxima it was made for; sizes, strides and
//! grids are [`Expr`]essions over the views that are bound at each run. A plan names no device and holds no memory; it prints
//! itself.
//!
//! [`Executable`] is a plan with its compiled functions, [`BoundPlan`] an executable with operands and workspace.

use std::fmt;
use std::ops::Range;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernel::ModuleKey;
use crate::memory::{Slice, View};

pub use crate::executable::{BoundPlan, Executable};
pub use crate::expr::Expr;

/// The most arguments a launch may have.
pub const MAX_ARGUMENTS: usize = 64;

/// Alignment of every range of the workspace, in bytes.
pub const WORKSPACE_ALIGNMENT: u64 = 256;

/// What a plan promises about repeated runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Determinism {
    /// Results may differ from run to run within the error bound.
    None,
    /// Two runs with equal inputs on one device give equal bits.
    RunToRun,
    /// Besides, a row's result does not depend on which or how many other rows are in the batch.
    BatchInvariant,
}

/// A row count or length that may vary from run to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// What the field calls it (`"m"`, `"tokens"`, `"kv_len"`).
    pub name: &'static str,
    /// The largest value the plan holds for.
    pub max: u64,
}

/// What an axis of an operand must measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// This number.
    Exactly(u64),
    /// `symbol * times + plus`, for one value of the symbol throughout the run.
    Varies {
        /// Index into [`Plan::symbols`].
        symbol: usize,
        /// Factor, at least 1 (`topk` for rows that are `tokens * topk`).
        times: u64,
        /// Addend (1 for cumulative lengths).
        plus: u64,
    },
}

/// What the stride of an operand's axis must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StrideRule {
    /// Any number of elements.
    Any,
    /// This number of elements (axes of extent 1 or 0 aside, whose stride does not matter).
    Exactly(u64),
    /// A multiple of this number of elements (as above).
    MultipleOf(u64),
}

/// In which form an operand is expected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// As the op describes it.
    #[default]
    Plain,
    /// As made by the op's prepare plan; the text names kernel and configuration, and must be equal.
    Prepared(String),
}

/// What an operand must be to be bound to a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperandRule {
    /// Its name (`"a"`, `"expert_offsets"`).
    pub name: &'static str,
    /// Element type.
    pub dtype: DType,
    /// True for outputs.
    pub write: bool,
    /// Extents, outermost first.
    pub shape: Vec<Extent>,
    /// Strides, one an axis.
    pub strides: Vec<StrideRule>,
    /// The view's offset must be a multiple of this number of elements.
    pub offset_multiple: u64,
    /// Plain or prepared.
    pub form: Form,
}

/// A symbolic argument of a launch.
#[derive(Clone, Debug, PartialEq)]
pub enum Arg {
    /// A bound operand from element `at` of its view on.
    Operand {
        /// Index into [`Plan::operands`].
        operand: usize,
        /// Elements past the view's first.
        at: Expr,
    },
    /// A range of the workspace.
    Workspace {
        /// Bytes within the workspace; begins at a multiple of [`WORKSPACE_ALIGNMENT`].
        range: Range<u64>,
        /// The element type in which the kernel addresses it.
        dtype: DType,
        /// Whether the launch writes it.
        write: bool,
    },
    /// An operand that the problem has not.
    Absent,
    /// A 32-bit unsigned integer.
    U32(Expr),
    /// A 32-bit signed integer.
    I32(Expr),
    /// A 64-bit unsigned integer.
    U64(Expr),
    /// A 64-bit signed integer.
    I64(Expr),
    /// A 32-bit float.
    F32(f32),
    /// The queue's status word.
    Status,
    /// A tile access to a tensor of at most five dimensions, encoded by the device.
    TensorMap {
        /// Where the tensor lies: an operand or a range of the workspace.
        base: Box<Arg>,
        /// Its extents, innermost first.
        extents: Vec<Expr>,
        /// Its strides in elements, innermost first; the first is 1.
        strides: Vec<Expr>,
        /// The tile.
        map: TensorMap,
    },
}

impl Arg {
    /// An operand from its first element on.
    pub fn operand(operand: usize) -> Arg {
        Arg::Operand {
            operand,
            at: Expr::Const(0),
        }
    }
}

/// A tile that hardware copies between global and local memory by itself (CUDA: TMA). Described here, encoded by the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorMap {
    /// Element type.
    pub dtype: DType,
    /// Dimensions in use.
    pub rank: u8,
    /// Extents of the tile, innermost first.
    pub tile: [u32; 5],
    /// Swizzle of the tile's rows in bytes: 0, 32, 64 or 128.
    pub swizzle: u8,
}

/// One launch of a plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// Index into [`Plan::modules`].
    pub module: usize,
    /// Entry point.
    pub entry: &'static str,
    /// Work-groups along each dimension; a launch with none in some dimension is skipped.
    pub grid: [Expr; 3],
    /// Work-items in a group along each dimension.
    pub group: [u32; 3],
    /// Bytes of dynamic local memory.
    pub local_memory: u32,
    /// The arguments in the kernel's order, at most [`MAX_ARGUMENTS`].
    pub args: Vec<Arg>,
}

/// What an op wants done. Pure data.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The op.
    pub op: &'static str,
    /// What may vary between runs.
    pub symbols: Vec<Symbol>,
    /// The operands to bind, inputs first, in the op's order; those that the problem has not are left out.
    pub operands: Vec<OperandRule>,
    /// The configured kernels.
    pub modules: Vec<ModuleKey>,
    /// The launches, in order.
    pub launches: Vec<Launch>,
    /// Bytes of workspace at the symbols' maxima.
    pub workspace: u64,
    /// Pairs of an output and an input (indices into `operands`) that may be bound to one view, with the same layout: the launches have
    /// read an element, and whatever else depends on it, before they write it.
    pub in_place: Vec<(usize, usize)>,
    /// What it promises about repeated runs.
    pub determinism: Determinism,
}

impl Plan {
    /// An empty plan of `op`, for a planner to fill.
    pub fn new(op: &'static str, determinism: Determinism) -> Plan {
        Plan {
            op,
            symbols: Vec::new(),
            operands: Vec::new(),
            modules: Vec::new(),
            launches: Vec::new(),
            workspace: 0,
            in_place: Vec::new(),
            determinism,
        }
    }

    /// The index of this configured kernel, added if it is new.
    pub fn module(&mut self, key: ModuleKey) -> usize {
        self.modules
            .iter()
            .position(|m| *m == key)
            .unwrap_or_else(|| {
                self.modules.push(key);
                self.modules.len() - 1
            })
    }

    /// Adds `bytes` to the workspace and gives their range. A range of no bytes has a place too, so that a launch can be given it.
    pub fn take_workspace(&mut self, bytes: u64) -> Range<u64> {
        let begin = self.workspace;
        // Sizes beyond 64 bits stay beyond every device's memory.
        self.workspace = begin
            .saturating_add(bytes.max(1))
            .checked_next_multiple_of(WORKSPACE_ALIGNMENT)
            .unwrap_or(u64::MAX);
        begin..begin.saturating_add(bytes)
    }

    /// Whether these views may be bound: dtype, extents, strides, one value for every symbol, all of one device, no output that overlaps
    /// another operand. Allocates nothing.
    ///
    /// # Errors
    /// `InvalidArgument` naming the operand, what was found and what is expected.
    pub fn check(&self, operands: &[View], workspace: Option<&Slice>) -> Result<()> {
        if operands.len() != self.operands.len() {
            return Err(Error::invalid(
                self.op,
                format!("{} operands", operands.len()),
                format!("{}: {}", self.operands.len(), Names(&self.operands)),
            ));
        }
        let mut values = [None; 16];
        for (rule, view) in self.operands.iter().zip(operands) {
            rule.check(view, &self.symbols, &mut values)?;
        }
        for (index, (rule, view)) in self.operands.iter().zip(operands).enumerate() {
            if view.buffer().device() != operands[0].buffer().device() {
                return Err(Error::invalid(
                    rule.name,
                    "a buffer of another device",
                    "operands of one device",
                ));
            }
            for (other_index, other) in operands.iter().enumerate() {
                let is_one =
                    || self.in_place.contains(&(index, other_index)) && is_same(view, other);
                if rule.write
                    && index != other_index
                    && overlap(&view.bytes(), &other.bytes())
                    && !is_one()
                {
                    let name = self.operands[other_index].name;
                    return Err(Error::invalid(
                        rule.name,
                        format!("an output that overlaps {name}"),
                        "disjoint memory",
                    ));
                }
            }
        }
        match workspace {
            None if self.workspace > 0 => Err(Error::invalid(
                "workspace",
                "none",
                format!("{} bytes", self.workspace),
            )),
            Some(slice) if slice.len() < self.workspace => Err(Error::invalid(
                "workspace",
                format!("{} bytes", slice.len()),
                format!("at least {}", self.workspace),
            )),
            Some(slice) if slice.offset() % WORKSPACE_ALIGNMENT != 0 => Err(Error::invalid(
                "workspace",
                format!("offset {}", slice.offset()),
                format!("a multiple of {WORKSPACE_ALIGNMENT}"),
            )),
            Some(slice) => match operands
                .iter()
                .position(|view| overlap(&view.bytes(), slice))
            {
                Some(index) => Err(Error::invalid(
                    "workspace",
                    format!("memory that overlaps {}", self.operands[index].name),
                    "disjoint memory",
                )),
                None => Ok(()),
            },
            None => Ok(()),
        }
    }
}

/// Whether element i of one view is element i of the other.
fn is_same(a: &View, b: &View) -> bool {
    let same_axis =
        |((&extent, &stride), &other): ((&u64, &u64), &u64)| extent == 1 || stride == other;
    a.buffer().same(b.buffer())
        && a.offset() == b.offset()
        && a.dtype() == b.dtype()
        && a.layout().shape() == b.layout().shape()
        && (a.layout().shape().iter())
            .zip(a.layout().strides())
            .zip(b.layout().strides())
            .all(same_axis)
}

fn overlap(a: &Slice, b: &Slice) -> bool {
    a.buffer().same(b.buffer())
        && a.offset() < b.offset() + b.len()
        && b.offset() < a.offset() + a.len()
}

impl OperandRule {
    fn check(&self, view: &View, symbols: &[Symbol], values: &mut [Option<u64>; 16]) -> Result<()> {
        let wrong =
            |found: String, expected: String| Err(Error::invalid(self.name, found, expected));
        if view.dtype() != self.dtype {
            return wrong(view.dtype().to_string(), self.dtype.to_string());
        }
        let layout = view.layout();
        if layout.rank() != self.shape.len() {
            return wrong(
                format!("{} dimensions", layout.rank()),
                format!("{}", self.shape.len()),
            );
        }
        for (axis, (&found, rule)) in layout.shape().iter().zip(&self.shape).enumerate() {
            match *rule {
                Extent::Exactly(n) if n == found => {}
                Extent::Exactly(n) => {
                    return wrong(format!("extent {found} on axis {axis}"), n.to_string());
                }
                Extent::Varies {
                    symbol,
                    times,
                    plus,
                } => {
                    let Symbol { name, max } = symbols[symbol];
                    let value = match found.checked_sub(plus) {
                        Some(rest) if rest % times == 0 => rest / times,
                        _ => {
                            return wrong(
                                format!("extent {found} on axis {axis}"),
                                format!("{name} * {times} + {plus}"),
                            );
                        }
                    };
                    if value > max {
                        return wrong(
                            format!("{name} = {value} on axis {axis}"),
                            format!("at most {max}"),
                        );
                    }
                    match values[symbol] {
                        Some(earlier) if earlier != value => {
                            return wrong(
                                format!("{name} = {value} on axis {axis}"),
                                format!("{earlier}, as before"),
                            );
                        }
                        _ => values[symbol] = Some(value),
                    }
                }
            }
        }
        for (axis, (&stride, rule)) in layout.strides().iter().zip(&self.strides).enumerate() {
            let fits = match *rule {
                _ if layout.shape()[axis] <= 1 => true,
                StrideRule::Any => true,
                StrideRule::Exactly(n) => stride == n,
                StrideRule::MultipleOf(n) => stride % n == 0,
            };
            if !fits {
                return wrong(
                    format!("stride {stride} on axis {axis}"),
                    format!("{rule:?}"),
                );
            }
        }
        if !view.offset().is_multiple_of(self.offset_multiple.max(1)) {
            return wrong(
                format!("offset {}", view.offset()),
                format!("a multiple of {}", self.offset_multiple),
            );
        }
        Ok(())
    }
}

struct Names<'a>(&'a [OperandRule]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, rule) in self.0.iter().enumerate() {
            write!(f, "{}{}", if index == 0 { "" } else { ", " }, rule.name)?;
        }
        Ok(())
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (", self.op)?;
        for (index, symbol) in self.symbols.iter().enumerate() {
            write!(
                f,
                "{}{} <= {}",
                if index == 0 { "" } else { ", " },
                symbol.name,
                symbol.max
            )?;
        }
        writeln!(
            f,
            "), {:?}, {} bytes of workspace",
            self.determinism, self.workspace
        )?;
        for launch in &self.launches {
            writeln!(
                f,
                "  {}::{} grid {} x {} x {}, group {:?}",
                self.modules[launch.module].kernel.name,
                launch.entry,
                launch.grid[0],
                launch.grid[1],
                launch.grid[2],
                launch.group
            )?;
        }
        for module in &self.modules {
            writeln!(f, "  {module:?}")?;
        }
        Ok(())
    }
}
