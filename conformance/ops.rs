//! One case of one op on one device: from recipe to verdict.
//!
//! ```text
//!  recipe → request → parse → check_values → plan → compile → run (twice, poisoned) → judge against the f64 reference
//!                                                            ↘ fewer rows with the same plan → judge
//! ```
//!
//! Nothing here knows an op: whatever `ropeway-kernels` lists is checked the same way.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use ropeway_core::device::{Device, Module, Queue};
use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::ModuleKey;
use ropeway_core::memory::{Layout, TensorDesc};
use ropeway_core::op::{Op, OpKind, Operand, PlanRequest};
use ropeway_core::plan::{Determinism, Executable, Extent, Plan};
use ropeway_core::request::{HostTensor, Operands, Request};
use ropeway_core::spec::{DataClass, Judgement, Recipe};
use ropeway_core::{DType, Error, ErrorKind, Result, View};
use serde_json::{Map, Value};

use crate::compare::{self, Guarded, Round};
use crate::verdict::{Pass, Verdict};

/// How long a launch may take before the device counts as hung.
const HUNG: Duration = Duration::from_secs(120);

/// Above this many operations a case is not run again with fewer rows: the reference would take too long.
const RERUN_FLOPS: f64 = 5e7;

/// A device under test: compiles each configured kernel once.
pub struct Subject {
    device: Arc<dyn Device>,
    modules: Mutex<HashMap<ModuleKey, Arc<OnceLock<Compiled>>>>,
}

type Compiled = Result<Arc<dyn Module>>;

impl Subject {
    /// Of this device.
    pub fn new(device: Arc<dyn Device>) -> Subject {
        Subject {
            device,
            modules: Mutex::default(),
        }
    }

    /// The device.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// What the device says of itself.
    pub fn info(&self) -> &DeviceInfo {
        self.device.info()
    }

    /// Compiles a configured kernel, or waits for who is at it. Others compile meanwhile.
    fn module(&self, key: &ModuleKey) -> Compiled {
        let slot = {
            let modules = self.modules.lock();
            let mut modules = modules.unwrap_or_else(PoisonError::into_inner);
            Arc::clone(modules.entry(key.clone()).or_default())
        };
        slot.get_or_init(|| {
            let source = key.kernel.source_for(self.info())?;
            self.device.compile(source, &key.config)
        })
        .clone()
    }

    /// A plan with its functions.
    ///
    /// # Errors
    /// As [`Device::compile`] and [`Executable::new`].
    pub fn executable(&self, plan: Plan) -> Result<Executable> {
        let functions = plan
            .launches
            .iter()
            .map(|launch| {
                self.module(&plan.modules[launch.module])?
                    .function(launch.entry)
            })
            .collect::<Result<_>>()?;
        Executable::new(plan, functions)
    }
}

/// Which of the ways to run an op a case takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Variant {
    /// The kernel to use; the planner's choice if `None`.
    pub kernel: Option<&'static str>,
    /// The operands that are bound in prepared form.
    pub prepared: Vec<&'static str>,
}

/// A recipe made concrete.
pub struct Problem {
    /// The op's kind.
    pub kind: &'static dyn OpKind,
    /// The checked op.
    pub op: Box<dyn Op>,
    /// The inputs.
    pub inputs: Operands,
    /// The attributes.
    pub attrs: Map<String, Value>,
    /// What the data is like.
    pub data: DataClass,
}

/// What became of making a problem of a recipe.
pub enum Posed {
    /// It can be run.
    Problem(Problem),
    /// It cannot, and that settles the case.
    Settled(Verdict),
}

/// The op kind of a recipe.
///
/// # Errors
/// `InvalidArgument` if there is none of that name.
pub fn kind_of(op: &str) -> Result<&'static dyn OpKind> {
    ropeway_kernels::op(op).ok_or_else(|| {
        let names: Vec<_> = ropeway_kernels::ops().iter().map(|op| op.name()).collect();
        Error::invalid("op", op, format!("one of {names:?}"))
    })
}

/// The kernel of this name among those of an op.
///
/// # Errors
/// `InvalidArgument` if there is none.
pub fn kernel_of(kind: &dyn OpKind, name: &str) -> Result<&'static str> {
    let names: Vec<_> = kind.kernels().iter().map(|kernel| kernel.name).collect();
    names
        .iter()
        .copied()
        .find(|known| *known == name)
        .ok_or_else(|| Error::invalid("kernel", name, format!("one of {names:?}")))
}

/// Makes the bytes of a recipe and checks them as a request.
pub fn pose(recipe: &Recipe) -> Posed {
    match recipe.request() {
        Ok(request) => pose_request(request, recipe.data),
        Err(error) => Posed::Settled(refusal("the recipe", &error)),
    }
}

/// Checks a request.
pub fn pose_request(request: Request, data: DataClass) -> Posed {
    let pose = || -> Result<Problem> {
        let kind = kind_of(&request.op)?;
        let op = kind.parse(&request.signature())?;
        kind.check_values(&*op, &request.inputs)?;
        Ok(Problem {
            kind,
            op,
            inputs: request.inputs,
            attrs: request.attrs,
            data,
        })
    };
    match pose() {
        Ok(problem) => Posed::Problem(problem),
        Err(error) => Posed::Settled(refusal("the request", &error)),
    }
}

/// `Unsupported` skips a case, anything else fails it.
fn refusal(what: &str, error: &Error) -> Verdict {
    match error.kind() {
        ErrorKind::Unsupported => Verdict::Skipped(error.context().to_owned()),
        _ => Verdict::Failed(vec![format!("{what}: {error}")]),
    }
}

/// Runs a recipe and judges the result.
pub fn check(
    subject: &Subject,
    queue: &dyn Queue,
    recipe: &Recipe,
    variant: &Variant,
    thorough: bool,
) -> Verdict {
    match pose(recipe) {
        Posed::Settled(verdict) => verdict,
        Posed::Problem(problem) => check_problem(subject, queue, &problem, variant, thorough),
    }
}

/// Plans a problem, runs it and judges the result.
pub fn check_problem(
    subject: &Subject,
    queue: &dyn Queue,
    problem: &Problem,
    variant: &Variant,
    thorough: bool,
) -> Verdict {
    let request = PlanRequest {
        kernel: variant.kernel,
        prepared: &variant.prepared,
        ..PlanRequest::new(subject.info())
    };
    match problem.op.plan(&request) {
        Ok(plan) => check_plan(subject, queue, problem, plan, variant, thorough),
        Err(error) => refusal("plan", &error),
    }
}

/// Runs a plan of a problem and judges the result. `thorough` also runs the same plan with fewer rows.
pub fn check_plan(
    subject: &Subject,
    queue: &dyn Queue,
    problem: &Problem,
    plan: Plan,
    variant: &Variant,
    thorough: bool,
) -> Verdict {
    let mut findings = Vec::new();
    let judged = run_and_judge(
        subject,
        queue,
        problem,
        plan,
        variant,
        thorough,
        &mut findings,
    );
    match judged {
        Err(error) if error.kind() == ErrorKind::Unsupported && findings.is_empty() => {
            Verdict::Skipped(error.context().to_owned())
        }
        Err(error) => {
            findings.push(error.to_string());
            Verdict::Failed(findings)
        }
        Ok(pass) if findings.is_empty() => Verdict::Passed(pass),
        Ok(_) => Verdict::Failed(findings),
    }
}

/// Runs a recipe whose integers (ids, offsets, lengths, block numbers) are out of range, which the host's check is made to skip. The
/// kernels must stay in bounds, and the queue must report it at its next synchronize. What does not hold is in the answer.
///
/// # Errors
/// `Unsupported` where the device cannot run the op; whatever else goes wrong.
pub fn check_out_of_range(
    subject: &Subject,
    queue: &dyn Queue,
    recipe: &Recipe,
) -> Result<Vec<String>> {
    let kind = kind_of(&recipe.op)?;
    let request = recipe.request()?;
    let op = kind.parse(&request.signature())?;
    let mut findings = Vec::new();
    match kind.check_values(&*op, &request.inputs) {
        Err(error) if error.kind() == ErrorKind::InvalidArgument => {}
        other => findings.push(format!("the host's check of the values gave {other:?}")),
    }
    let problem = Problem {
        kind,
        op,
        inputs: request.inputs,
        attrs: request.attrs,
        data: recipe.data,
    };
    let plan = problem.op.plan(&PlanRequest::new(subject.info()))?;
    let executable = subject.executable(plan)?;
    let arena = Arena::new(subject, queue, &problem, &executable, &Variant::default())?;
    let views = arena.views(&problem.op.operands(), &problem.inputs)?;
    arena.enqueue(queue, &executable, &views, Round::First)?;
    match queue.synchronize(Some(HUNG)) {
        Err(error) if error.kind() == ErrorKind::DataOutOfRange => {}
        Err(error) => return Err(error),
        Ok(()) => findings.push("nothing was reported at the next synchronize".into()),
    }
    arena.inspect(queue, &mut findings)?;
    Ok(findings)
}

fn run_and_judge(
    subject: &Subject,
    queue: &dyn Queue,
    problem: &Problem,
    plan: Plan,
    variant: &Variant,
    thorough: bool,
    findings: &mut Vec<String>,
) -> Result<Pass> {
    let mut pass = Pass {
        plan: plan_name(&plan),
        ..Pass::default()
    };
    let executable = subject.executable(plan)?;
    let arena = Arena::new(subject, queue, problem, &executable, variant)?;
    let operands = problem.op.operands();
    let views = arena.views(&operands, &problem.inputs)?;

    let first = arena.run(queue, &executable, &views, Round::First, findings)?;
    let second = arena.run(queue, &executable, &views, Round::Second, findings)?;
    for operand in operands.iter().filter(|operand| operand.output) {
        let (a, b) = (&first[operand.name], &second[operand.name]);
        compare_rounds(operand, a, b, executable.plan().determinism, findings);
    }
    let outputs = host_outputs(&operands, &first)?;
    let judgement =
        problem
            .kind
            .spec()
            .judge(&*problem.op, &problem.inputs, &outputs, problem.data)?;
    describe(&judgement, findings);
    pass.worst_ratio = judgement.worst_ratio();
    pass.notes = judgement.notes;

    if thorough && findings.is_empty() {
        for symbol in 0..executable.plan().symbols.len() {
            let cut = Cut::new(problem, &operands, executable.plan(), symbol, &views);
            if let Some(cut) = cut {
                cut.check(queue, problem, &executable, &arena, &first, findings)?;
            }
        }
    }
    Ok(pass)
}

/// The kernels of a plan, for reports.
fn plan_name(plan: &Plan) -> String {
    let names: Vec<_> = plan.modules.iter().map(|key| key.kernel.name).collect();
    names.join(" + ")
}

fn compare_rounds(
    operand: &Operand,
    first: &[u8],
    second: &[u8],
    determinism: Determinism,
    findings: &mut Vec<String>,
) {
    let dtype = operand.desc.dtype;
    if let Some((at, count)) = compare::unwritten(dtype, first, second) {
        findings.push(format!(
            "{}: {count} elements were not written, the first at {:?}",
            operand.name,
            index_of(operand.desc.shape(), at)
        ));
    } else if determinism >= Determinism::RunToRun
        && let Some(byte) = first.iter().zip(second).position(|(a, b)| a != b)
    {
        let at = byte / dtype.size().unwrap_or(1) as usize;
        findings.push(format!(
            "{}: two runs of a plan that declares {determinism:?} differ, first at {:?}",
            operand.name,
            index_of(operand.desc.shape(), at)
        ));
    }
}

fn describe(judgement: &Judgement, findings: &mut Vec<String>) {
    for output in judgement.outputs.iter().filter(|o| o.mismatches > 0) {
        let worst = match &output.worst {
            Some(worst) => format!(
                "worst at {:?}: found {:e}, expected {:e} within {:e}",
                worst.index, worst.found, worst.expected, worst.bound
            ),
            None => "shape or dtype differ".into(),
        };
        findings.push(format!(
            "{}: {} of {} elements lie outside their bound (error / bound {:.3}); {worst}",
            output.name, output.mismatches, output.elements, output.worst_ratio
        ));
    }
}

/// The index of a flat position in a row-major tensor.
fn index_of(shape: &[u64], flat: usize) -> Vec<u64> {
    let mut rest = flat as u64;
    let mut index = vec![0; shape.len()];
    for (axis, &extent) in shape.iter().enumerate().rev() {
        index[axis] = rest % extent.max(1);
        rest /= extent.max(1);
    }
    index
}

fn host_outputs(operands: &[Operand], bytes: &BTreeMap<&'static str, Vec<u8>>) -> Result<Operands> {
    operands
        .iter()
        .filter(|operand| operand.output)
        .map(|operand| {
            let data = bytes[operand.name].clone();
            let tensor = HostTensor::new(operand.desc.dtype, operand.desc.shape(), data)?;
            Ok((operand.name.to_owned(), tensor))
        })
        .collect()
}

/// The device memory of a case, every part of it between canaries.
struct Arena {
    /// Stored tensors: several operands may be windows into one.
    stored: Vec<Stored>,
    outputs: BTreeMap<&'static str, (Operand, Guarded)>,
    prepared: BTreeMap<&'static str, Guarded>,
    workspace: Option<Guarded>,
}

struct Stored {
    /// The operands that are windows into it.
    operands: Vec<String>,
    /// What is on the device: the stored bytes, and poison where no operand looks.
    bytes: Vec<u8>,
    memory: Guarded,
}

impl Arena {
    fn new(
        subject: &Subject,
        queue: &dyn Queue,
        problem: &Problem,
        executable: &Executable,
        variant: &Variant,
    ) -> Result<Arena> {
        let device = &**subject.device();
        let plan = executable.plan();
        // Where a plan asks for no alignment it gets none: the payload begins one element off.
        let shift = |name: &str, dtype: DType| {
            let rule = plan.operands.iter().find(|rule| rule.name == name);
            dtype.size().unwrap_or(1) * rule.map_or(1, |rule| rule.offset_multiple.max(1))
        };
        let mut stored: Vec<Stored> = Vec::new();
        let mut sources: Vec<&Arc<Vec<u8>>> = Vec::new();
        for (name, tensor) in &problem.inputs {
            match sources
                .iter()
                .position(|data| Arc::ptr_eq(data, &tensor.data))
            {
                Some(number) => stored[number].operands.push(name.clone()),
                None => {
                    sources.push(&tensor.data);
                    let dtype = tensor.desc.dtype;
                    stored.push(Stored {
                        operands: vec![name.clone()],
                        bytes: Vec::new(),
                        memory: Guarded::new(
                            device,
                            name,
                            tensor.data.len() as u64,
                            shift(name, dtype),
                            compare::poison(dtype, Round::First),
                        )?,
                    });
                }
            }
        }
        for (stored, data) in stored.iter_mut().zip(sources) {
            let windows = stored.operands.iter().map(|name| &problem.inputs[name]);
            stored.bytes = poison_gaps(data, &windows.collect::<Vec<_>>());
            stored.memory.write(queue, &stored.bytes)?;
        }
        let mut outputs = BTreeMap::new();
        for operand in problem.op.operands().into_iter().filter(|o| o.output) {
            let (name, dtype) = (operand.name, operand.desc.dtype);
            let memory = Guarded::new(
                device,
                name,
                operand.desc.span_bytes()?,
                shift(name, dtype),
                compare::poison(dtype, Round::First),
            )?;
            outputs.insert(name, (operand, memory));
        }
        let workspace = match plan.workspace {
            0 => None,
            bytes => Some(Guarded::new(
                device,
                "workspace",
                bytes,
                0,
                compare::workspace_poison(Round::First),
            )?),
        };
        let mut arena = Arena {
            stored,
            outputs,
            prepared: BTreeMap::new(),
            workspace,
        };
        for &name in &variant.prepared {
            arena.prepare(subject, queue, problem, variant, name)?;
        }
        Ok(arena)
    }

    /// Brings an operand into its prepared form.
    fn prepare(
        &mut self,
        subject: &Subject,
        queue: &dyn Queue,
        problem: &Problem,
        variant: &Variant,
        name: &'static str,
    ) -> Result<()> {
        let request = PlanRequest {
            kernel: variant.kernel,
            ..PlanRequest::new(subject.info())
        };
        let executable = subject.executable(problem.op.prepare(name, &request)?)?;
        let plan = executable.plan();
        let rule = plan
            .operands
            .last()
            .ok_or_else(|| Error::invalid(name, "a prepare plan without operands", "two"))?;
        let desc = match rule.shape[..] {
            [Extent::Exactly(bytes)] => TensorDesc::contiguous(DType::U8, &[bytes])?,
            _ => return Err(Error::invalid(name, format!("{rule:?}"), "a U8 vector")),
        };
        let workspace = match plan.workspace {
            0 => None,
            bytes => Some(subject.device().alloc(bytes)?.all()),
        };
        let memory = Guarded::new(
            &**subject.device(),
            name,
            desc.span_bytes()?,
            0,
            compare::workspace_poison(Round::First),
        )?;
        let unwritten =
            compare::repeated(compare::workspace_poison(Round::First), desc.span_bytes()?);
        memory.write(queue, &unwritten)?;
        let tensor = &problem.inputs[name];
        let views = [
            self.stored_of(name)?
                .memory
                .view(tensor.desc, tensor.offset)?,
            memory.view(desc, 0)?,
        ];
        executable.enqueue(queue, &views, workspace.as_ref())?;
        queue.synchronize(Some(HUNG))?;
        self.prepared.insert(name, memory);
        Ok(())
    }

    fn stored_of(&self, operand: &str) -> Result<&Stored> {
        self.stored
            .iter()
            .find(|stored| stored.operands.iter().any(|name| name == operand))
            .ok_or_else(|| Error::invalid(operand, "nothing", "an input of the request"))
    }

    /// The views to bind, in the op's order.
    fn views(&self, operands: &[Operand], inputs: &Operands) -> Result<Vec<View>> {
        operands
            .iter()
            .map(|operand| {
                if operand.output {
                    return self.outputs[operand.name].1.view(operand.desc, 0);
                }
                if let Some(memory) = self.prepared.get(operand.name) {
                    let bytes = memory.slice()?.len();
                    return memory.view(TensorDesc::contiguous(DType::U8, &[bytes])?, 0);
                }
                let stored = self.stored_of(operand.name)?;
                stored
                    .memory
                    .view(operand.desc, inputs[operand.name].offset)
            })
            .collect()
    }

    /// Poisons what the plan shall write, runs it, and looks at everything around the results.
    fn run(
        &self,
        queue: &dyn Queue,
        executable: &Executable,
        views: &[View],
        round: Round,
        findings: &mut Vec<String>,
    ) -> Result<BTreeMap<&'static str, Vec<u8>>> {
        self.enqueue(queue, executable, views, round)?;
        queue.synchronize(Some(HUNG))?;
        self.inspect(queue, findings)
    }

    /// Poisons what the plan shall write, and enqueues it.
    fn enqueue(
        &self,
        queue: &dyn Queue,
        executable: &Executable,
        views: &[View],
        round: Round,
    ) -> Result<()> {
        for (operand, memory) in self.outputs.values() {
            let pattern = compare::poison(operand.desc.dtype, round);
            let bytes = operand.desc.span_bytes()?;
            memory.write(queue, &compare::repeated(pattern, bytes))?;
        }
        let workspace = match &self.workspace {
            Some(memory) => {
                let slice = memory.slice()?;
                let pattern = compare::workspace_poison(round);
                memory.write(queue, &compare::repeated(pattern, slice.len()))?;
                Some(slice)
            }
            None => None,
        };
        executable.enqueue(queue, views, workspace.as_ref())
    }

    /// Reads the outputs, and looks at canaries and inputs.
    fn inspect(
        &self,
        queue: &dyn Queue,
        findings: &mut Vec<String>,
    ) -> Result<BTreeMap<&'static str, Vec<u8>>> {
        for stored in &self.stored {
            stored
                .memory
                .expect_unchanged(queue, &stored.bytes, findings)?;
        }
        for memory in self.workspace.iter().chain(self.prepared.values()) {
            memory.read(queue, findings)?;
        }
        self.outputs
            .iter()
            .map(|(&name, (_, memory))| Ok((name, memory.read(queue, findings)?)))
            .collect()
    }
}

/// The stored bytes with poison in every element that no window covers, so that reading a padding shows.
fn poison_gaps(data: &[u8], windows: &[&HostTensor]) -> Vec<u8> {
    let mut bytes = data.to_vec();
    let dtype = windows[0].desc.dtype;
    let size = dtype.size().unwrap_or(1) as usize;
    let whole = |tensor: &&HostTensor| {
        tensor.offset == 0
            && tensor.desc.layout.is_contiguous()
            && tensor.desc.layout.elements() as usize * size == data.len()
    };
    if windows.iter().any(whole) {
        return bytes;
    }
    let windows = windows
        .iter()
        .map(|tensor| (&tensor.desc.layout, tensor.offset));
    let covered = covered(data.len() / size, windows);
    let poison = compare::poison(dtype, Round::Second);
    for (element, _) in bytes
        .chunks_exact_mut(size)
        .zip(covered)
        .filter(|(_, covered)| !covered)
    {
        element.copy_from_slice(poison);
    }
    bytes
}

/// For each of `elements`, whether some window reaches it.
fn covered<'a>(elements: usize, windows: impl Iterator<Item = (&'a Layout, u64)>) -> Vec<bool> {
    let mut covered = vec![false; elements];
    for (layout, offset) in windows {
        for index in layout.indices() {
            covered[(offset + layout.offset_of(&index)) as usize] = true;
        }
    }
    covered
}

/// The same plan with fewer rows: half of what one symbol measures, the last ones, so that a causal mask stays aligned.
struct Cut {
    inputs: Operands,
    op: Box<dyn Op>,
    views: Vec<View>,
    /// Where the rows that remain lie in each output.
    windows: BTreeMap<&'static str, (TensorDesc, u64)>,
    /// Whether the rows that remain are those of the full run.
    same_rows: bool,
    /// For messages.
    what: String,
}

impl Cut {
    /// `None` where the problem has too few rows, or is no sound problem without the others (offsets would point past the end).
    fn new(
        problem: &Problem,
        operands: &[Operand],
        plan: &Plan,
        symbol: usize,
        views: &[View],
    ) -> Option<Cut> {
        let varies = |operand: usize| {
            plan.operands[operand]
                .shape
                .iter()
                .enumerate()
                .find_map(|(axis, extent)| match *extent {
                    Extent::Varies {
                        symbol: s,
                        times,
                        plus,
                    } if s == symbol => Some((axis, times, plus)),
                    _ => None,
                })
        };
        let rows = (0..operands.len()).find_map(|operand| {
            let (axis, times, plus) = varies(operand)?;
            Some((operands[operand].desc.shape()[axis] - plus) / times)
        })?;
        let kept = rows / 2;
        if kept == 0 || problem.op.cost().flops > RERUN_FLOPS {
            return None;
        }
        let mut inputs = problem.inputs.clone();
        let mut cut_views = views.to_vec();
        let mut windows = BTreeMap::new();
        let mut same_rows = true;
        for (number, operand) in operands.iter().enumerate() {
            let mut desc = operand.desc;
            let mut skipped = 0;
            match varies(number) {
                Some((axis, times, plus)) => {
                    let mut shape = desc.shape().to_vec();
                    skipped = (rows - kept) * times * desc.layout.strides()[axis];
                    shape[axis] = kept * times + plus;
                    desc.layout = Layout::strided(&shape, desc.layout.strides()).ok()?;
                    if desc.layout.elements() == 0 {
                        skipped = 0;
                    }
                    let is_index = !operand.output && desc.dtype == DType::I32;
                    same_rows &= plus == 0 && !(is_index && times != 1);
                }
                None => same_rows &= !operand.output && desc.dtype != DType::I32,
            }
            let multiple = plan.operands[number].offset_multiple.max(1);
            let offset = views[number].offset() + skipped;
            if !offset.is_multiple_of(multiple) {
                return None;
            }
            let view = views[number].buffer().view(desc, offset).ok()?;
            if operand.output {
                windows.insert(operand.name, (desc, skipped));
            } else if plan.operands[number].form == ropeway_core::plan::Form::Plain {
                let tensor = &problem.inputs[operand.name];
                let tensor = tensor.view(desc.layout, tensor.offset + skipped).ok()?;
                inputs.insert(operand.name.to_owned(), tensor);
            } else {
                continue;
            }
            cut_views[number] = view;
        }
        let signature = ropeway_core::op::Signature {
            tensors: inputs
                .iter()
                .map(|(name, tensor)| (name.clone(), tensor.desc))
                .collect(),
            attrs: problem.attrs.clone(),
        };
        let op = problem.kind.parse(&signature).ok()?;
        problem.kind.check_values(&*op, &inputs).ok()?;
        let fits = op.operands().iter().all(|operand| {
            !operand.output
                || windows
                    .get(operand.name)
                    .is_some_and(|(desc, _)| desc.shape() == operand.desc.shape())
        });
        fits.then(|| Cut {
            inputs,
            op,
            views: cut_views,
            windows,
            same_rows,
            what: format!(
                "with {} = {kept} of {rows} on the same plan",
                plan.symbols[symbol].name
            ),
        })
    }

    fn check(
        &self,
        queue: &dyn Queue,
        problem: &Problem,
        executable: &Executable,
        arena: &Arena,
        full: &BTreeMap<&'static str, Vec<u8>>,
        findings: &mut Vec<String>,
    ) -> Result<()> {
        let mut found = Vec::new();
        let bytes = arena.run(queue, executable, &self.views, Round::First, &mut found)?;
        let mut outputs = Operands::new();
        for (&name, (desc, offset)) in &self.windows {
            let window = |bytes: &[u8]| {
                let elements = bytes.len() as u64 / desc.dtype.size().unwrap_or(1);
                HostTensor::new(desc.dtype, &[elements], bytes.to_vec())?.view(desc.layout, *offset)
            };
            let output = window(&bytes[name])?;
            let poison = compare::poison(desc.dtype, Round::First);
            let touched = bytes[name]
                .chunks_exact(poison.len())
                .zip(covered(
                    bytes[name].len() / poison.len(),
                    [(&desc.layout, *offset)].into_iter(),
                ))
                .position(|(element, inside)| !inside && element != poison);
            if let Some(at) = touched {
                found.push(format!(
                    "{name}: element {at}, outside the rows that were bound, was written"
                ));
            }
            if executable.plan().determinism == Determinism::BatchInvariant
                && self.same_rows
                && output.to_bytes() != window(&full[name])?.to_bytes()
            {
                found.push(format!(
                    "{name}: rows differ from those of the full batch in a plan that declares BatchInvariant"
                ));
            }
            outputs.insert(name.to_owned(), output);
        }
        let judgement =
            problem
                .kind
                .spec()
                .judge(&*self.op, &self.inputs, &outputs, problem.data)?;
        describe(&judgement, &mut found);
        findings.extend(found.into_iter().map(|f| format!("{}: {f}", self.what)));
        Ok(())
    }
}
