//! Open devices, and the sessions on them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pyo3::prelude::*;
use ropeway::core::device::{Device, Queue, QueueKind};
use ropeway::core::info::Execution;
use ropeway::core::memory::TensorDesc;
use ropeway::core::plan::Executable;
use ropeway::core::{Error, Slice};
use ropeway::{Registry, Session as Plans};

use crate::error::Result;
use crate::host::HostArray;
use crate::info::DeviceInfo;
use crate::tensor::Tensor;
use crate::{dtype, info};

/// An open device with what was planned and compiled for it. One for each device of a process, shared by all sessions.
pub(crate) struct Opened {
    pub(crate) plans: Plans,
    /// The process that opened it: a fork inherits neither its threads nor its driver.
    process: u32,
}

impl Opened {
    pub(crate) fn device(&self) -> &dyn Device {
        &**self.plans.device()
    }

    /// Whether its memory is the host's own, so that arrays are operands where they lie.
    pub(crate) fn is_host(&self) -> bool {
        self.device().info().backend == "cpu"
    }

    pub(crate) fn selector(&self) -> String {
        self.device().info().selector()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn open(selector: &str) -> Result<Arc<Opened>> {
    static OPENED: Mutex<Option<HashMap<String, Arc<Opened>>>> = Mutex::new(None);
    let mut opened = lock(&OPENED);
    let opened = opened.get_or_insert_default();
    // `opencl` and `opencl:0` are one device.
    let key = match selector.contains(':') {
        true => selector.to_owned(),
        false => format!("{selector}:0"),
    };
    if let Some(known) = opened.get(&key)
        && known.process == std::process::id()
    {
        return Ok(Arc::clone(known));
    }
    let device = Registry::default().open(selector)?;
    if device.info().execution == Execution::Recorded {
        let lack = format!("{selector} records calls and computes nothing");
        return Err(Error::unsupported(lack).into());
    }
    let fresh = Arc::new(Opened {
        plans: Plans::new(device)?,
        process: std::process::id(),
    });
    if let Some(of_parent) = opened.insert(key, Arc::clone(&fresh)) {
        // Its threads are the parent's: waiting for them would never end.
        std::mem::forget(of_parent);
    }
    Ok(fresh)
}

/// A device's queue and workspace: calls of one session run in their order.
pub(crate) struct Line {
    pub(crate) opened: Arc<Opened>,
    pub(crate) queue: Arc<dyn Queue>,
    /// Held by a call until it has enqueued, or, if it waits, until it is done: so that a failure reaches the call whose it is.
    turn: Mutex<Turn>,
}

#[derive(Default)]
pub(crate) struct Turn {
    workspace: Option<Slice>,
}

impl Turn {
    /// Workspace for a plan, kept for the next.
    pub(crate) fn workspace(
        &mut self,
        line: &Line,
        executable: &Executable,
    ) -> Result<Option<Slice>> {
        let bytes = executable.plan().workspace;
        if bytes == 0 {
            return Ok(None);
        }
        if let Some(workspace) = self.workspace.as_ref().filter(|kept| kept.len() >= bytes) {
            return Ok(Some(workspace.clone()));
        }
        // The old one goes first: work that uses it keeps it.
        self.workspace = None;
        self.workspace = Some(line.opened.device().alloc(bytes)?.all());
        Ok(self.workspace.clone())
    }
}

impl Line {
    fn new(opened: Arc<Opened>) -> Result<Line> {
        let queue = opened.device().create_queue(QueueKind::Compute)?;
        Ok(Line {
            opened,
            queue,
            turn: Mutex::default(),
        })
    }

    /// Takes the turn; waits for other threads, so not to be called attached to Python.
    pub(crate) fn turn(&self) -> Result<MutexGuard<'_, Turn>> {
        if self.opened.process != std::process::id() {
            let found = "a session of the parent process";
            return Err(
                Error::invalid("session", found, "one that was made after the fork").into(),
            );
        }
        Ok(lock(&self.turn))
    }

    /// Waits for all earlier work.
    pub(crate) fn synchronize(&self, timeout: Option<Duration>) -> Result<()> {
        let _turn = self.turn()?;
        Ok(self.queue.synchronize(timeout)?)
    }

    /// Makes later work of this session wait, on the device, for what another has been given so far.
    pub(crate) fn follow(&self, other: &Line) -> Result<()> {
        Ok(self.queue.wait(&other.queue.record()?)?)
    }
}

/// A thread's own session on a device, for calls that name a device and not a session.
pub(crate) fn of_thread(selector: &str) -> Result<Arc<Line>> {
    thread_local! {
        static LINES: RefCell<HashMap<String, Arc<Line>>> = RefCell::default();
    }
    let opened = open(selector)?;
    LINES.with_borrow_mut(|lines| {
        if let Some(line) = lines.get(selector)
            && Arc::ptr_eq(&line.opened, &opened)
        {
            return Ok(Arc::clone(line));
        }
        let line = Arc::new(Line::new(opened)?);
        if let Some(of_parent) = lines.insert(selector.to_owned(), Arc::clone(&line)) {
            std::mem::forget(of_parent);
        }
        Ok(line)
    })
}

/// The session that a caller means by `device`: a session, or a selector; the cpu device's without one.
pub(crate) fn chosen(py: Python<'_>, device: Option<&Bound<'_, PyAny>>) -> Result<Arc<Line>> {
    let Some(device) = device else {
        return py.detach(|| of_thread("cpu"));
    };
    if let Ok(session) = device.cast::<Session>() {
        return Ok(Arc::clone(&session.get().line));
    }
    let selector: String = device.extract().map_err(|_| {
        pyo3::exceptions::PyTypeError::new_err(format!(
            "device: found {device}, expected a name such as \"opencl\", or a ropeway.Session"
        ))
    })?;
    py.detach(|| of_thread(&selector))
}

/// A device with a queue of its own. Calls of one session run in their order; sessions run beside each other.
#[pyclass(frozen, module = "ropeway")]
pub(crate) struct Session {
    pub(crate) line: Arc<Line>,
}

#[pymethods]
impl Session {
    #[new]
    #[pyo3(signature = (device = "cpu"))]
    fn new(py: Python<'_>, device: &str) -> Result<Session> {
        let line = py.detach(|| Line::new(open(device)?))?;
        Ok(Session {
            line: Arc::new(line),
        })
    }

    /// The device's selector, such as "opencl:0".
    #[getter]
    fn device(&self) -> String {
        self.line.opened.selector()
    }

    /// What the device is and can do.
    #[getter]
    fn info(&self) -> DeviceInfo {
        info::describe(self.line.opened.device().info())
    }

    /// A tensor on the device with undefined content.
    #[pyo3(signature = (shape, dtype = "float32"))]
    fn empty(&self, py: Python<'_>, shape: Vec<u64>, dtype: &str) -> Result<Tensor> {
        let desc = TensorDesc::contiguous(dtype::from_name("dtype", dtype)?, &shape)?;
        py.detach(|| Tensor::new(&self.line, desc))
    }

    /// A copy of an array on the device.
    pub(crate) fn tensor(&self, py: Python<'_>, array: &Bound<'_, PyAny>) -> Result<Tensor> {
        let array = required("array", HostArray::to_read("array", array)?, array)?;
        py.detach(|| {
            let desc = TensorDesc::contiguous(array.desc().dtype, array.desc().shape())?;
            let tensor = Tensor::new(&self.line, desc)?;
            tensor.write(&array)?;
            Ok(tensor)
        })
    }

    /// Waits until everything enqueued is done, at most `timeout` seconds if given, and raises what went wrong in it.
    #[pyo3(signature = (timeout = None))]
    fn synchronize(&self, py: Python<'_>, timeout: Option<f64>) -> Result<()> {
        let timeout = timeout.map(|seconds| {
            let expected = "a number of seconds";
            Duration::try_from_secs_f64(seconds)
                .map_err(|_| Error::invalid("timeout", seconds, expected))
        });
        let timeout = timeout.transpose()?;
        py.detach(|| self.line.synchronize(timeout))
    }

    /// Bytes of device memory in use by this process, and in all.
    fn memory(&self, py: Python<'_>) -> Result<(u64, u64)> {
        let memory = py.detach(|| self.line.opened.device().memory())?;
        Ok((memory.used, memory.total))
    }

    fn __repr__(&self) -> String {
        format!("<ropeway.Session on {}>", self.line.opened.selector())
    }
}

/// An operand that must be an array.
pub(crate) fn required<T>(name: &str, found: Option<T>, object: &Bound<'_, PyAny>) -> Result<T> {
    found.ok_or_else(|| {
        let class = object.get_type();
        let text = format!(
            "{name}: found {}, expected a NumPy array, a ropeway.Tensor or another object with __dlpack__",
            class.name().map_or_else(|_| "an object".to_owned(), |name| name.to_string())
        );
        pyo3::exceptions::PyTypeError::new_err(text).into()
    })
}
