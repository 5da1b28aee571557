//! One case of one op on one device: from recipe to verdict.
//!
//! ```text
//!  recipe → request → parse → check_values → plan → compile → run (twice, poisoned) → judge against the f64 reference
//!                                                            ↘ the same plan on fewer rows, padded outputs, a part of the batch
//! ```
//!
//! Nothing here knows an op: whatever `ropeway-kernels` lists is checked the same way.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use ropeway_core::device::{Device, Graph, Module, Queue};
use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::ModuleKey;
use ropeway_core::op::{Op, OpKind, Operand, PlanRequest};
use ropeway_core::plan::{BoundPlan, Determinism, Executable, Plan};
use ropeway_core::request::{HostTensor, Operands, Request};
use ropeway_core::spec::{DataClass, Expected, Judgement, Recipe};
use ropeway_core::{Error, ErrorKind, Result, View};
use serde_json::{Map, Value};

use crate::arena::{Arena, Placement};
use crate::compare::{self, Round};
use crate::reruns::Rerun;
use crate::verdict::{Pass, Verdict};

/// How long a launch may take before the device counts as hung.
pub(crate) const HUNG: Duration = Duration::from_secs(120);

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

/// Elements of a reference that is kept with its problem: 256 MiB of values and bounds.
pub const KEPT: usize = 1 << 24;

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
    /// The reference's answer, once it was asked for.
    reference: OnceLock<Arc<Vec<Expected>>>,
}

impl Problem {
    /// Of inputs that were checked.
    pub fn new(
        kind: &'static dyn OpKind,
        op: Box<dyn Op>,
        inputs: Operands,
        attrs: Map<String, Value>,
        data: DataClass,
    ) -> Problem {
        Problem {
            kind,
            op,
            inputs,
            attrs,
            data,
            reference: OnceLock::new(),
        }
    }

    /// The reference's answer, computed at the first call and kept for the next unless it is very large.
    ///
    /// # Errors
    /// As [`OpSpec::reference`](ropeway_core::spec::OpSpec::reference).
    pub fn reference(&self) -> Result<Arc<Vec<Expected>>> {
        if let Some(kept) = self.reference.get() {
            return Ok(Arc::clone(kept));
        }
        let spec = self.kind.spec();
        let computed = Arc::new(spec.reference(&*self.op, &self.inputs, self.data)?);
        let elements: usize = computed.iter().map(|output| output.values.len()).sum();
        Ok(match elements <= KEPT {
            true => Arc::clone(self.reference.get_or_init(|| computed)),
            false => computed,
        })
    }

    /// Compares a device's outputs with the reference.
    pub(crate) fn judge(&self, outputs: &Operands) -> Result<Judgement> {
        let spec = self.kind.spec();
        spec.judge_by(
            &|| self.reference(),
            &*self.op,
            &self.inputs,
            outputs,
            self.data,
        )
    }
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
        Ok(Problem::new(kind, op, request.inputs, request.attrs, data))
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
        Ok(plan) => check_plan(subject, queue, problem, plan, variant, thorough)
            .unwrap_or_else(|error| Verdict::Failed(vec![error.to_string()])),
        Err(error) => refusal("plan", &error),
    }
}

/// Runs a plan of a problem and judges the result. `thorough` also runs the same plan with fewer rows. A wrong result is a verdict, and so is
/// an index out of range that kernels report of inputs that have none.
///
/// # Errors
/// Whatever kept the result from being judged, as long as nothing wrong was seen before: no memory, a launch that the driver refuses, a
/// device that is lost.
pub fn check_plan(
    subject: &Subject,
    queue: &dyn Queue,
    problem: &Problem,
    plan: Plan,
    variant: &Variant,
    thorough: bool,
) -> Result<Verdict> {
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
        Err(error) if findings.is_empty() && error.kind() != ErrorKind::DataOutOfRange => {
            match error.kind() {
                ErrorKind::Unsupported => Ok(Verdict::Skipped(error.context().to_owned())),
                _ => Err(error),
            }
        }
        Err(error) => {
            findings.push(error.to_string());
            Ok(Verdict::Failed(findings))
        }
        Ok(pass) if findings.is_empty() => Ok(Verdict::Passed(pass)),
        Ok(_) => Ok(Verdict::Failed(findings)),
    }
}

/// Runs a recipe whose integers (ids, offsets, lengths, block numbers) are out of range, which the host's check is made to skip. The
/// kernels must stay in bounds, and the queue must report it at its next synchronize. What does not hold is in the answer, beside the outputs.
///
/// # Errors
/// `Unsupported` where the device cannot run the op; whatever else goes wrong.
pub fn check_out_of_range(
    subject: &Subject,
    queue: &dyn Queue,
    recipe: &Recipe,
) -> Result<(Vec<String>, Operands)> {
    let mut findings = Vec::new();
    let (problem, checked) = unchecked(recipe)?;
    match checked {
        Err(error) if error.kind() == ErrorKind::InvalidArgument => {}
        other => findings.push(format!("the host's check of the values gave {other:?}")),
    }
    let operands = problem.op.operands();
    let placed = Placed::new(subject, queue, &problem, &operands)?;
    let Placed {
        arena,
        executable,
        views,
    } = &placed;
    arena.enqueue(queue, executable, views, Round::First)?;
    match queue.synchronize(Some(HUNG)) {
        Err(error) if error.kind() == ErrorKind::DataOutOfRange => {}
        Err(error) => return Err(error),
        Ok(()) => findings.push("nothing was reported at the next synchronize".into()),
    }
    let outputs = arena.inspect(queue, &mut findings)?;
    Ok((findings, host_outputs(&operands, &outputs)?))
}

/// A graph of one recipe's plan, which has run once on the queue.
///
/// # Errors
/// `Unsupported` where the device cannot run the op; whatever else goes wrong.
pub(crate) fn graph_of(
    subject: &Subject,
    queue: &dyn Queue,
    recipe: &Recipe,
) -> Result<Arc<dyn Graph>> {
    let (problem, checked) = unchecked(recipe)?;
    checked?;
    let operands = problem.op.operands();
    let placed = Placed::new(subject, queue, &problem, &operands)?;
    let Placed {
        arena,
        executable,
        views,
    } = placed;
    arena.enqueue(queue, &executable, &views, Round::First)?;
    let workspace = arena.workspace()?;
    subject.device.instantiate(vec![BoundPlan {
        executable: Arc::new(executable),
        operands: views,
        workspace,
    }])
}

/// The problem of a recipe, and what the host says of its values.
fn unchecked(recipe: &Recipe) -> Result<(Problem, Result<()>)> {
    let kind = kind_of(&recipe.op)?;
    let request = recipe.request()?;
    let op = kind.parse(&request.signature())?;
    let checked = kind.check_values(&*op, &request.inputs);
    let problem = Problem::new(kind, op, request.inputs, request.attrs, recipe.data);
    Ok((problem, checked))
}

/// A problem planned and in device memory.
struct Placed {
    arena: Arena,
    executable: Executable,
    views: Vec<View>,
}

impl Placed {
    fn new(
        subject: &Subject,
        queue: &dyn Queue,
        problem: &Problem,
        operands: &[Operand],
    ) -> Result<Placed> {
        let plan = problem.op.plan(&PlanRequest::new(subject.info()))?;
        let executable = subject.executable(plan)?;
        let arena = Arena::new(
            subject,
            queue,
            problem,
            operands,
            &executable,
            &Variant::default(),
            Placement::LeastAligned,
        )?;
        let views = arena.views(operands, &problem.inputs)?;
        Ok(Placed {
            arena,
            executable,
            views,
        })
    }
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
    let operands = problem.op.operands();
    let placement = Placement::LeastAligned;
    let arena = Arena::new(
        subject,
        queue,
        problem,
        &operands,
        &executable,
        variant,
        placement,
    )?;
    let views = arena.views(&operands, &problem.inputs)?;

    let first = arena.run(queue, &executable, &views, Round::First, findings)?;
    let second = arena.run(queue, &executable, &views, Round::Second, findings)?;
    for operand in operands.iter().filter(|operand| operand.output) {
        let (a, b) = (&first[operand.name], &second[operand.name]);
        compare_rounds(operand, a, b, executable.plan().determinism, findings);
    }
    let outputs = host_outputs(&operands, &first)?;
    let judgement = problem.judge(&outputs)?;
    describe(&judgement, findings);
    pass.worst_ratio = judgement.worst_ratio();
    pass.notes = judgement.notes;

    let rerun = Rerun {
        subject,
        queue,
        problem,
        executable: &executable,
        variant,
        first: &first,
    };
    if findings.is_empty() {
        rerun.with_aligned_operands(findings)?;
    }
    if thorough && findings.is_empty() {
        rerun.with_fewer_rows(&arena, &views, findings)?;
        rerun.with_padded_outputs(findings)?;
        rerun.in_place(&arena, &views, findings)?;
        rerun.with_part_of_the_batch(findings)?;
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

pub(crate) fn describe(judgement: &Judgement, findings: &mut Vec<String>) {
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

#[cfg(test)]
mod tests {
    use ropeway_core::DType;
    use ropeway_core::device::QueueKind;
    use ropeway_core::spec::Fill;

    use super::*;

    #[test]
    fn a_problem_is_judged_by_the_reference_that_it_keeps() {
        let fill = Fill::Uniform { scale: 1.0 };
        let recipe = Recipe::new("gemm", "kept", DataClass::Random, 7)
            .tensor("a", DType::F32, &[5, 7], fill.clone())
            .tensor("b", DType::F32, &[7, 6], fill);
        let posed = || match pose(&recipe) {
            Posed::Problem(problem) => problem,
            Posed::Settled(verdict) => panic!("{verdict:?}"),
        };
        let device = ropeway::Registry::default().open("cpu").unwrap();
        let queue = device.create_queue(QueueKind::Compute).unwrap();
        let subject = Subject::new(device);
        let check = |problem: &Problem| {
            check_problem(&subject, &*queue, problem, &Variant::default(), false)
        };
        let problem = posed();
        assert!(matches!(check(&problem), Verdict::Passed(_)));
        let kept = problem.reference.get().expect("kept by the check");
        assert!(Arc::ptr_eq(kept, &problem.reference().unwrap()));

        let mut other = (**kept).clone();
        other[0].values[0] += 1.0;
        let problem = posed();
        problem.reference.set(Arc::new(other)).unwrap();
        assert!(matches!(check(&problem), Verdict::Failed(_)));
    }
}
