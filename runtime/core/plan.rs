//! Plans: what an op wants done, as pure data.
//!
//! A [`Plan`] lists launches of configured kernels with symbolic arguments. It is made once for a problem and holds for every problem
//! that differs only in its *symbols* (row counts, lengths, batch), up to the maxima it was made for; sizes, strides and
//! grids are [`Expr`]essions over the views that are bound at each run. A plan names no device and holds no memory; it prints
//! itself.
//!
//! [`Executable`] is a plan with its compiled functions, [`BoundPlan`] an executable with operands and workspace.

use std::fmt;
use std::ops::{Add, Mul, Range, Sub};
use std::sync::Arc;

use crate::device::{Argument, Function, LaunchCall, Queue};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernel::ModuleKey;
use crate::memory::{Slice, View};

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

/// A 64-bit integer computed from the bound operands at each run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expr {
    /// A number.
    Const(i64),
    /// Extent of an operand's axis.
    Extent {
        /// Index into [`Plan::operands`].
        operand: usize,
        /// Axis, outermost 0.
        axis: usize,
    },
    /// Stride in elements of an operand's axis.
    Stride {
        /// Index into [`Plan::operands`].
        operand: usize,
        /// Axis, outermost 0.
        axis: usize,
    },
    /// Sum.
    Add(Box<(Expr, Expr)>),
    /// Difference.
    Sub(Box<(Expr, Expr)>),
    /// Product.
    Mul(Box<(Expr, Expr)>),
    /// Quotient, rounded up.
    DivCeil(Box<(Expr, Expr)>),
    /// The smaller.
    Min(Box<(Expr, Expr)>),
    /// The larger.
    Max(Box<(Expr, Expr)>),
}

impl Expr {
    /// Extent of an operand's axis.
    pub fn extent(operand: usize, axis: usize) -> Expr {
        Expr::Extent { operand, axis }
    }

    /// Stride of an operand's axis, in elements.
    pub fn stride(operand: usize, axis: usize) -> Expr {
        Expr::Stride { operand, axis }
    }

    /// This divided by `divisor`, rounded up.
    #[must_use]
    pub fn div_ceil(self, divisor: impl Into<Expr>) -> Expr {
        Expr::DivCeil(Box::new((self, divisor.into())))
    }

    /// The smaller of the two.
    #[must_use]
    pub fn min(self, other: impl Into<Expr>) -> Expr {
        Expr::Min(Box::new((self, other.into())))
    }

    /// The larger of the two.
    #[must_use]
    pub fn max(self, other: impl Into<Expr>) -> Expr {
        Expr::Max(Box::new((self, other.into())))
    }

    /// Its value for these operands. Saturates; allocates nothing.
    pub fn evaluate(&self, operands: &[View]) -> i64 {
        let both = |pair: &(Expr, Expr)| (pair.0.evaluate(operands), pair.1.evaluate(operands));
        match self {
            Expr::Const(value) => *value,
            Expr::Extent { operand, axis } => saturate(operands[*operand].layout().shape()[*axis]),
            Expr::Stride { operand, axis } => {
                saturate(operands[*operand].layout().strides()[*axis])
            }
            Expr::Add(pair) => {
                let (a, b) = both(pair);
                a.saturating_add(b)
            }
            Expr::Sub(pair) => {
                let (a, b) = both(pair);
                a.saturating_sub(b)
            }
            Expr::Mul(pair) => {
                let (a, b) = both(pair);
                a.saturating_mul(b)
            }
            Expr::DivCeil(pair) => {
                let (a, b) = both(pair);
                let b = b.max(1);
                a / b + i64::from(a % b > 0)
            }
            Expr::Min(pair) => {
                let (a, b) = both(pair);
                a.min(b)
            }
            Expr::Max(pair) => {
                let (a, b) = both(pair);
                a.max(b)
            }
        }
    }
}

fn saturate(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

impl From<i64> for Expr {
    fn from(value: i64) -> Expr {
        Expr::Const(value)
    }
}

impl From<u64> for Expr {
    fn from(value: u64) -> Expr {
        Expr::Const(saturate(value))
    }
}

impl From<i32> for Expr {
    fn from(value: i32) -> Expr {
        Expr::Const(value.into())
    }
}

impl<T: Into<Expr>> Add<T> for Expr {
    type Output = Expr;
    fn add(self, other: T) -> Expr {
        Expr::Add(Box::new((self, other.into())))
    }
}

impl<T: Into<Expr>> Sub<T> for Expr {
    type Output = Expr;
    fn sub(self, other: T) -> Expr {
        Expr::Sub(Box::new((self, other.into())))
    }
}

impl<T: Into<Expr>> Mul<T> for Expr {
    type Output = Expr;
    fn mul(self, other: T) -> Expr {
        Expr::Mul(Box::new((self, other.into())))
    }
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expr::Const(value) => write!(f, "{value}"),
            Expr::Extent { operand, axis } => write!(f, "extent({operand}.{axis})"),
            Expr::Stride { operand, axis } => write!(f, "stride({operand}.{axis})"),
            Expr::Add(pair) => write!(f, "({} + {})", pair.0, pair.1),
            Expr::Sub(pair) => write!(f, "({} - {})", pair.0, pair.1),
            Expr::Mul(pair) => write!(f, "({} * {})", pair.0, pair.1),
            Expr::DivCeil(pair) => write!(f, "ceil({} / {})", pair.0, pair.1),
            Expr::Min(pair) => write!(f, "min({}, {})", pair.0, pair.1),
            Expr::Max(pair) => write!(f, "max({}, {})", pair.0, pair.1),
        }
    }
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

    /// Adds `bytes` to the workspace and gives their range.
    pub fn take_workspace(&mut self, bytes: u64) -> Range<u64> {
        let begin = self.workspace;
        self.workspace = begin
            .saturating_add(bytes)
            .next_multiple_of(WORKSPACE_ALIGNMENT);
        begin..begin + bytes
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
                if rule.write && index != other_index && overlap(&view.bytes(), &other.bytes()) {
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

/// A plan with its compiled functions, one a launch: everything but the memory.
pub struct Executable {
    plan: Plan,
    functions: Vec<Arc<dyn Function>>,
}

impl Executable {
    /// Puts a plan and its functions together, one for each of the plan's launches.
    ///
    /// # Errors
    /// `InvalidArgument` if the numbers differ or a launch has too many arguments.
    pub fn new(plan: Plan, functions: Vec<Arc<dyn Function>>) -> Result<Executable> {
        if plan.launches.len() != functions.len() {
            return Err(Error::invalid(
                "functions",
                functions.len(),
                plan.launches.len(),
            ));
        }
        if let Some(launch) = plan
            .launches
            .iter()
            .find(|launch| launch.args.len() > MAX_ARGUMENTS)
        {
            return Err(Error::invalid(
                launch.entry,
                launch.args.len(),
                format!("at most {MAX_ARGUMENTS} arguments"),
            ));
        }
        if plan.symbols.len() > 16 {
            return Err(Error::invalid("symbols", plan.symbols.len(), "at most 16"));
        }
        Ok(Executable { plan, functions })
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Checks the operands against the plan and enqueues every launch. Allocates nothing itself.
    ///
    /// # Errors
    /// As [`Plan::check`] and [`Queue::launch`].
    #[allow(unsafe_code)]
    pub fn enqueue(
        &self,
        queue: &dyn Queue,
        operands: &[View],
        workspace: Option<&Slice>,
    ) -> Result<()> {
        self.plan.check(operands, workspace)?;
        for (launch, function) in self.plan.launches.iter().zip(&self.functions) {
            let grid = [0, 1, 2].map(|axis| launch.grid[axis].evaluate(operands).max(0) as u64);
            if grid.contains(&0) {
                continue;
            }
            let mut arguments = [Argument::Absent; MAX_ARGUMENTS];
            for (slot, arg) in arguments.iter_mut().zip(&launch.args) {
                *slot = self.resolve(arg, operands, workspace);
            }
            let call = LaunchCall {
                function,
                grid,
                group: launch.group,
                local_memory: launch.local_memory,
                arguments: &arguments[..launch.args.len()],
            };
            // SAFETY: the arguments are those of the plan that was made together with the kernel, the operands satisfy the plan's
            // rules (checked above), and the kernels of a plan stay within the views they are given; that is what an op promises
            // (see `op::Op::plan`) and what the conformance suite holds it to.
            unsafe { queue.launch(&call)? };
        }
        Ok(())
    }

    fn resolve<'a>(
        &self,
        arg: &'a Arg,
        operands: &'a [View],
        workspace: Option<&'a Slice>,
    ) -> Argument<'a> {
        match arg {
            Arg::Operand { operand, at } => {
                let view = &operands[*operand];
                let size = view.dtype().size().expect("a view's dtype has a size");
                let at = (at.evaluate(operands).max(0) as u64).min(view.layout().span());
                Argument::Buffer {
                    buffer: view.buffer(),
                    offset: view.offset() + at,
                    dtype: view.dtype(),
                    bytes: (view.layout().span() - at) * size,
                    write: self.plan.operands[*operand].write,
                }
            }
            Arg::Workspace {
                range,
                dtype,
                write,
            } => {
                let slice = workspace.expect("checked: a plan that needs workspace has it");
                Argument::Buffer {
                    buffer: slice.buffer(),
                    offset: (slice.offset() + range.start) / dtype.size().unwrap_or(1),
                    dtype: *dtype,
                    bytes: range.end - range.start,
                    write: *write,
                }
            }
            Arg::Absent => Argument::Absent,
            Arg::U32(value) => {
                Argument::U32(value.evaluate(operands).clamp(0, u32::MAX.into()) as u32)
            }
            Arg::I32(value) => Argument::I32(
                value
                    .evaluate(operands)
                    .clamp(i32::MIN.into(), i32::MAX.into()) as i32,
            ),
            Arg::U64(value) => Argument::U64(value.evaluate(operands).max(0) as u64),
            Arg::I64(value) => Argument::I64(value.evaluate(operands)),
            Arg::F32(value) => Argument::F32(*value),
            Arg::Status => Argument::Status,
            Arg::TensorMap {
                base,
                extents,
                strides,
                map,
            } => {
                let Argument::Buffer {
                    buffer,
                    offset,
                    dtype,
                    ..
                } = self.resolve(base, operands, workspace)
                else {
                    // A tensor that is not there has no tile.
                    return Argument::Absent;
                };
                let size = dtype.size().unwrap_or(1);
                let numbers = |exprs: &[Expr], fill: u64| {
                    let mut values = [fill; 5];
                    for (value, expr) in values.iter_mut().zip(exprs) {
                        *value = expr.evaluate(operands).max(0) as u64;
                    }
                    values
                };
                let strides = numbers(strides, 0).map(|stride| stride * size);
                Argument::TensorMap {
                    map,
                    buffer,
                    offset: offset * size,
                    extents: numbers(extents, 1),
                    strides,
                }
            }
        }
    }
}

/// An executable with its operands and workspace: what a graph is made of.
#[derive(Clone)]
pub struct BoundPlan {
    /// The executable.
    pub executable: Arc<Executable>,
    /// Operands in the plan's order.
    pub operands: Vec<View>,
    /// Workspace, if the plan needs any.
    pub workspace: Option<Slice>,
}

impl BoundPlan {
    /// Checks and enqueues it.
    ///
    /// # Errors
    /// As [`Executable::enqueue`].
    pub fn enqueue(&self, queue: &dyn Queue) -> Result<()> {
        self.executable
            .enqueue(queue, &self.operands, self.workspace.as_ref())
    }
}
