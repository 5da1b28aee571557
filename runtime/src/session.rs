//! A session: one device, its compiled kernels and plans.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use ropeway_core::device::{Device, Module, Queue, QueueKind};
use ropeway_core::kernel::{Config, ModuleKey};
use ropeway_core::op::{Op, PlanRequest, Tuned};
use ropeway_core::plan::{BoundPlan, Executable, Plan};
use ropeway_core::request::{HostTensor, Operands};
use ropeway_core::{Buffer, Error, Result, Slice, View};

use crate::tuned::TunedTables;

/// Plans that a session keeps. An engine makes a few; a caller whose every call has a shape of its own must not fill the memory with them.
const MAX_PLANS: usize = 4096;

/// Choices that a caller may take out of the planner's hands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PlanOptions {
    /// Use the kernel of this name or fail.
    pub kernel: Option<String>,
    /// Use these tunables or fail; needs `kernel`.
    pub config: Option<Config>,
    /// Operands that will be bound in prepared form (see [`Session::prepare`]).
    pub prepared: Vec<String>,
}

/// One device with its compiled kernels and plans. Share it between threads.
pub struct Session {
    device: Arc<dyn Device>,
    queue: Arc<dyn Queue>,
    tuned: Box<dyn Tuned + Send>,
    /// By the op's description and the options.
    plans: Mutex<HashMap<(String, PlanOptions), Arc<Executable>>>,
    modules: Mutex<HashMap<ModuleKey, Arc<dyn Module>>>,
}

impl Session {
    /// A session on a device, with the tuned configurations that ship and those in the user's data directory.
    ///
    /// # Errors
    /// What creating a queue can fail with.
    pub fn new(device: Arc<dyn Device>) -> Result<Session> {
        Session::with_tuned(device, Box::new(TunedTables::load()))
    }

    /// A session with a look-up of the caller's.
    ///
    /// # Errors
    /// What creating a queue can fail with.
    pub fn with_tuned(device: Arc<dyn Device>, tuned: Box<dyn Tuned + Send>) -> Result<Session> {
        let queue = device.create_queue(QueueKind::Compute)?;
        Ok(Session {
            device,
            queue,
            tuned,
            plans: Mutex::default(),
            modules: Mutex::default(),
        })
    }

    /// The device.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// The session's own queue, for callers that bring none.
    pub fn queue(&self) -> &Arc<dyn Queue> {
        &self.queue
    }

    /// Plans an op and compiles what the plan needs; both are done once for equal ops, as long as there are not thousands of different
    /// ones. The plan holds for all row counts and lengths up
    /// to those the op describes.
    ///
    /// # Errors
    /// `Unsupported` with the reason, `CompileFailed`.
    pub fn plan(&self, op: &dyn Op) -> Result<Arc<Executable>> {
        self.plan_with(op, &PlanOptions::default())
    }

    /// [`Session::plan`] with choices of the caller.
    ///
    /// # Errors
    /// As [`Session::plan`], and `InvalidArgument` for a kernel or configuration that does not fit.
    pub fn plan_with(&self, op: &dyn Op, options: &PlanOptions) -> Result<Arc<Executable>> {
        self.cached(format!("{op:?}"), options, |request| op.plan(request))
    }

    /// Brings a constant operand (a weight) into the form the op's plan wants when the operand is listed in
    /// [`PlanOptions::prepared`]; enqueued on `queue`. Bind the result in place of the operand.
    ///
    /// # Errors
    /// `Unsupported` where the plain form is the only one, else as [`Session::plan`].
    pub fn prepare(
        &self,
        op: &dyn Op,
        operand: &str,
        options: &PlanOptions,
        view: &View,
        queue: &dyn Queue,
    ) -> Result<View> {
        let key = format!("prepare {operand} of {op:?}");
        let executable = self.cached(key, options, |request| op.prepare(operand, request))?;
        let rule = executable
            .plan()
            .operands
            .last()
            .expect("a prepare plan has an output");
        let ropeway_core::plan::Extent::Exactly(bytes) = rule.shape[0] else {
            return Err(Error::unsupported(format!(
                "{operand} has no fixed prepared size"
            )));
        };
        let desc = ropeway_core::memory::TensorDesc::contiguous(rule.dtype, &[bytes])?;
        let prepared = self.device.alloc(bytes)?.view(desc, 0)?;
        let workspace = self.workspace(&executable)?;
        executable.enqueue(queue, &[view.clone(), prepared.clone()], workspace.as_ref())?;
        Ok(prepared)
    }

    fn cached(
        &self,
        key: String,
        options: &PlanOptions,
        plan: impl FnOnce(&PlanRequest<'_>) -> Result<Plan>,
    ) -> Result<Arc<Executable>> {
        let key = (key, options.clone());
        if let Some(known) = self
            .plans
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&key)
        {
            return Ok(Arc::clone(known));
        }
        let prepared: Vec<&str> = options.prepared.iter().map(String::as_str).collect();
        let plan = plan(&PlanRequest {
            info: self.device.info(),
            tuned: &*self.tuned,
            kernel: options.kernel.as_deref(),
            config: options.config.as_ref(),
            prepared: &prepared,
        })?;
        tracing::debug!(%plan, "planned");
        let executable = Arc::new(self.compile(plan)?);
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if plans.len() >= MAX_PLANS {
            // Those in use live on with their users, and what they need stays compiled.
            plans.clear();
        }
        Ok(Arc::clone(plans.entry(key).or_insert(executable)))
    }

    /// Compiles what a plan needs; each kernel and configuration once.
    ///
    /// # Errors
    /// `CompileFailed`, `Unsupported` if a kernel has no source for the device.
    pub fn compile(&self, plan: Plan) -> Result<Executable> {
        let modules = plan
            .modules
            .iter()
            .map(|key| self.module(key))
            .collect::<Result<Vec<_>>>()?;
        let functions = plan
            .launches
            .iter()
            .map(|launch| modules[launch.module].function(launch.entry))
            .collect::<Result<_>>()?;
        Executable::new(plan, functions)
    }

    fn module(&self, key: &ModuleKey) -> Result<Arc<dyn Module>> {
        if let Some(known) = self
            .modules
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(key)
        {
            return Ok(Arc::clone(known));
        }
        // Compiled outside the lock: two threads may compile the same kernel once each, none waits for another's.
        let source = key.kernel.source_for(self.device.info())?;
        let module = self
            .device
            .compile(source, &key.config)
            .map_err(|e| e.within(key.kernel.name))?;
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Arc::clone(modules.entry(key.clone()).or_insert(module)))
    }

    /// A workspace for an executable at its largest, or none if it needs none.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn workspace(&self, executable: &Executable) -> Result<Option<Slice>> {
        match executable.plan().workspace {
            0 => Ok(None),
            bytes => Ok(Some(self.device.alloc(bytes)?.all())),
        }
    }

    /// Uploads an op's inputs and allocates its outputs and workspace. Tensors that share their stored bytes share a buffer.
    ///
    /// # Errors
    /// `InvalidArgument` naming an input that is missing or not as the op describes it, `OutOfMemory`.
    pub fn bind(
        &self,
        op: &dyn Op,
        executable: &Arc<Executable>,
        inputs: &Operands,
    ) -> Result<BoundPlan> {
        let mut uploaded: Vec<(*const Vec<u8>, Buffer)> = Vec::new();
        let mut operands = Vec::new();
        for operand in op.operands() {
            if operand.output {
                let buffer = self.device.alloc(operand.desc.span_bytes()?)?;
                operands.push(buffer.view(operand.desc, 0)?);
                continue;
            }
            let tensor = inputs
                .get(operand.name)
                .ok_or_else(|| Error::invalid(operand.name, "nothing", "a tensor"))?;
            if tensor.desc.dtype != operand.desc.dtype || tensor.shape() != operand.desc.shape() {
                return Err(Error::invalid(operand.name, tensor.desc, operand.desc));
            }
            let stored = Arc::as_ptr(&tensor.data);
            let buffer = match uploaded.iter().find(|(pointer, _)| *pointer == stored) {
                Some((_, buffer)) => buffer.clone(),
                None => {
                    let buffer = self.device.alloc(tensor.data.len() as u64)?;
                    self.queue.upload(&buffer.all(), &tensor.data)?;
                    uploaded.push((stored, buffer.clone()));
                    buffer
                }
            };
            operands.push(
                buffer
                    .view(tensor.desc, tensor.offset)
                    .map_err(|e| e.within(operand.name))?,
            );
        }
        let workspace = self.workspace(executable)?;
        Ok(BoundPlan {
            executable: Arc::clone(executable),
            operands,
            workspace,
        })
    }

    /// Reads a view back, after all earlier work of the session's queue.
    ///
    /// # Errors
    /// `DeviceLost`, or what went wrong in that work.
    pub fn read(&self, view: &View) -> Result<HostTensor> {
        let bytes = view.bytes();
        let mut data = vec![0; bytes.len() as usize];
        if !data.is_empty() {
            self.queue.read_blocking(&bytes, &mut data)?;
        }
        Ok(HostTensor {
            desc: *view.desc(),
            offset: 0,
            data: Arc::new(data),
        })
    }

    /// Runs an op on host tensors: upload, plan, run, read back. For tests and tools; an engine keeps its tensors on the device.
    ///
    /// # Errors
    /// As [`Session::plan`], [`Session::bind`] and the launches, and `DataOutOfRange` if a kernel met an id, offset or length that is
    /// out of range.
    pub fn run(&self, op: &dyn Op, inputs: &Operands) -> Result<Operands> {
        let executable = self.plan(op)?;
        let bound = self.bind(op, &executable, inputs)?;
        bound.enqueue(&*self.queue)?;
        self.queue.synchronize(None)?;
        let outputs = op
            .operands()
            .into_iter()
            .zip(&bound.operands)
            .filter(|(operand, _)| operand.output);
        outputs
            .map(|(operand, view)| Ok((operand.name.to_owned(), self.read(view)?)))
            .collect()
    }
}
