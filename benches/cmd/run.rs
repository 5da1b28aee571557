//! `ropeway run`: request files in, result files out.
//!
//! The data of a request goes from the file to the device in pieces, and that of a result back, so that a run holds the
//! device's buffers and little more.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use ropeway::{Registry, Session};
use ropeway_conformance::request_file::{Outcome, RequestFile};
use ropeway_core::device::Device;
use ropeway_core::info::{DeviceInfo, Execution};
use ropeway_core::memory::{Buffer, TensorDesc, View};
use ropeway_core::op::Op;
use ropeway_core::plan::{Executable, Plan};
use ropeway_core::{DType, Error, ErrorKind, Result};

use super::print_line;

/// Bytes that move between file and device at a time.
const PIECE: usize = 4 << 20;

/// Elements of an index tensor that are checked on the host where a view repeats stored ones.
const MAX_REPEATED: u64 = 1 << 24;

/// Which requests, on which device, and where the results go.
#[derive(Args, Debug)]
pub struct Run {
    /// Request files, or directories whose *.safetensors are taken.
    #[arg(required = true, value_name = "REQUEST")]
    requests: Vec<PathBuf>,
    /// The device (`cpu`, `opencl`, `opencl:1`; see `ropeway devices`).
    #[arg(long, value_name = "D")]
    device: String,
    /// The directory for result files, which have the requests' names; made if it is not there.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How often each request runs; the time is the median.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    repeat: u32,
    /// Print one JSON object for each request.
    #[arg(long)]
    json: bool,
}

impl Run {
    /// Runs every request; one that fails does not stop the rest.
    ///
    /// # Errors
    /// `InvalidArgument` for a call that cannot be meant: no such device or path, two requests of one name.
    pub fn run(self) -> Result<ExitCode> {
        let requests = find_requests(&self.requests)?;
        let usage = |error: Error| Error::new(ErrorKind::InvalidArgument, error.to_string());
        let registry = Registry::default();
        let session = registry
            .open(&self.device)
            .and_then(Session::new)
            .map_err(|error| usage(error.within("--device")))?;
        fs::create_dir_all(&self.out)
            .map_err(|error| usage(Error::from(error).within(self.out.display())))?;
        refuse_overwriting(&requests, &self.out)?;
        let runner = Runner {
            session,
            host: registry.open("cpu")?,
            repeat: self.repeat,
        };
        let mut failed = false;
        for request in &requests {
            let name = request.file_name().unwrap_or_default();
            let outcome = runner.run(request, &self.out.join(name));
            let outcome = outcome.unwrap_or_else(|error| Outcome::Error(error.to_string()));
            failed |= matches!(outcome, Outcome::Error(_));
            print_line(describe(request, &outcome, self.json))?;
        }
        Ok(ExitCode::from(u8::from(failed)))
    }
}

fn describe(request: &Path, outcome: &Outcome, json: bool) -> String {
    let name = request.display();
    if json {
        let mut object =
            serde_json::json!({"request": name.to_string(), "status": outcome.status()});
        let fields = match outcome {
            Outcome::Ok {
                device,
                plan,
                time_us,
            } => serde_json::json!({"device": device, "plan": plan, "time_us": time_us}),
            Outcome::Unsupported(reason) | Outcome::Error(reason) => {
                serde_json::json!({"reason": reason})
            }
        };
        for (key, value) in fields.as_object().into_iter().flatten() {
            object[key] = value.clone();
        }
        return object.to_string();
    }
    match outcome {
        Outcome::Ok { plan, time_us, .. } => format!("{name}: ok, {time_us:.3} us, {plan}"),
        Outcome::Unsupported(reason) | Outcome::Error(reason) => {
            format!("{name}: {}: {reason}", outcome.status())
        }
    }
}

/// The request files, in the order given, those of a directory sorted by name.
fn find_requests(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut requests = Vec::new();
    for path in paths {
        let missing = |error: std::io::Error| {
            Error::invalid(
                &path.display().to_string(),
                error,
                "a request file or a directory of them",
            )
        };
        if !fs::metadata(path).map_err(missing)?.is_dir() {
            requests.push(path.clone());
            continue;
        }
        let mut found = Vec::new();
        for entry in fs::read_dir(path).map_err(missing)? {
            let file = entry.map_err(missing)?.path();
            if file.extension().is_some_and(|e| e == "safetensors") {
                found.push(file);
            }
        }
        found.sort();
        requests.extend(found);
    }
    let mut names: BTreeSet<OsString> = BTreeSet::new();
    for request in &requests {
        let name = request.file_name().unwrap_or_default();
        if !names.insert(name.to_owned()) {
            return Err(Error::invalid(
                "REQUEST",
                format!("two requests called {}", name.display()),
                "names that differ, since results are named after them",
            ));
        }
    }
    match requests.is_empty() {
        true => Err(Error::invalid(
            "REQUEST",
            "no *.safetensors file in the directory",
            "at least one",
        )),
        false => Ok(requests),
    }
}

fn refuse_overwriting(requests: &[PathBuf], out: &Path) -> Result<()> {
    for request in requests {
        let result = out.join(request.file_name().unwrap_or_default());
        if let (Ok(request), Ok(result)) = (request.canonicalize(), result.canonicalize())
            && request == result
        {
            return Err(Error::invalid(
                "--out",
                format!("the directory of {}", request.display()),
                "another one: a result has its request's name",
            ));
        }
    }
    Ok(())
}

struct Runner {
    session: Session,
    /// The cpu device, which knows how much memory the host has left.
    host: std::sync::Arc<dyn Device>,
    repeat: u32,
}

impl Runner {
    /// Runs one request and writes its result file, whatever becomes of it.
    ///
    /// # Errors
    /// `File` if the result cannot be written.
    fn run(&self, request: &Path, result: &Path) -> Result<Outcome> {
        // A fault in Ropeway itself must not cost the other requests their results.
        let attempt = catch_unwind(AssertUnwindSafe(|| self.attempt(request, result)));
        let error = match attempt {
            Ok(Ok(outcome)) => return Ok(outcome),
            Ok(Err(error)) => error,
            Err(_) => Error::new(
                ErrorKind::Driver,
                "a fault in Ropeway itself; please report it with this request file",
            ),
        };
        let outcome = Outcome::of_error(&error);
        outcome.create_file(result, &[])?.finish()?;
        Ok(outcome)
    }

    fn attempt(&self, request: &Path, result: &Path) -> Result<Outcome> {
        let file = RequestFile::open(request)?;
        let op = file.parse()?;
        self.check_values(&file, &*op)?;
        let info = self.session.device().info();
        if info.execution == Execution::Recorded {
            return Err(Error::unsupported(format!(
                "{} records calls and computes nothing",
                info.name
            )));
        }
        let executable = self.session.plan(&*op)?;
        self.check_memory(&file, &*op, &executable)?;
        let operands = self.bind(&file, &*op)?;
        let workspace = self.session.workspace(&executable)?;
        let queue = self.session.queue();
        queue.synchronize(None)?;
        let mut times = Vec::new();
        for _ in 0..self.repeat {
            let begin = queue.record()?;
            executable.enqueue(&**queue, &operands, workspace.as_ref())?;
            let end = queue.record()?;
            queue.synchronize(None)?;
            times.push(end.elapsed_since(&*begin)?.as_secs_f64() * 1e6);
        }
        times.sort_by(f64::total_cmp);
        let middle = times.len() / 2;
        let time_us = match times.len() % 2 {
            0 => (times[middle - 1] + times[middle]) / 2.0,
            _ => times[middle],
        };
        let outcome = Outcome::Ok {
            device: describe_device(info),
            plan: describe_plan(executable.plan()),
            time_us,
        };
        let outputs: Vec<_> = op
            .operands()
            .into_iter()
            .zip(&operands)
            .filter(|(operand, _)| operand.output)
            .map(|(operand, view)| (operand.name, view))
            .collect();
        self.write(&outcome, result, &outputs)?;
        Ok(outcome)
    }

    /// Ids, offsets, lengths and block numbers, which are I32 in every op, are checked before the device sees them.
    fn check_values(&self, file: &RequestFile, op: &dyn Op) -> Result<()> {
        let is_index = |stored: usize| file.stored()[stored].known_dtype() == Some(DType::I32);
        let bytes: u64 = (0..file.stored().len())
            .filter(|&index| is_index(index))
            .map(|index| file.stored()[index].bytes)
            .sum();
        self.check_host(bytes)?;
        for input in file.inputs().iter().filter(|input| is_index(input.stored)) {
            // A view that repeats elements can be longer than any memory.
            let elements = input.layout.elements();
            let most = file.stored()[input.stored].elements().max(MAX_REPEATED);
            if elements > most {
                let lack = format!(
                    "{}: a view of {elements} elements; at most {most} are checked",
                    input.name
                );
                return Err(Error::unsupported(lack));
            }
        }
        let inputs = file.load(|input| is_index(input.stored))?;
        file.kind().check_values(op, &inputs)
    }

    fn check_host(&self, bytes: u64) -> Result<()> {
        match self.host.memory()?.free {
            Some(free) if bytes > free => Err(Error::unsupported(format!(
                "{bytes} bytes of host memory are needed, {free} are free"
            ))),
            _ => Ok(()),
        }
    }

    fn check_memory(&self, file: &RequestFile, op: &dyn Op, executable: &Executable) -> Result<()> {
        let info = self.session.device().info();
        let outputs = op.operands().into_iter().filter(|operand| operand.output);
        let mut buffers = outputs
            .map(|operand| Ok((operand.name, operand.desc.span_bytes()?)))
            .collect::<Result<Vec<_>>>()?;
        let used: BTreeSet<usize> = file.inputs().iter().map(|input| input.stored).collect();
        buffers.extend(used.iter().map(|&index| {
            let stored = &file.stored()[index];
            (stored.name.as_str(), stored.bytes)
        }));
        buffers.push(("the workspace", executable.plan().workspace));
        for (name, bytes) in &buffers {
            if *bytes > info.limits.max_buffer {
                return Err(Error::unsupported(format!(
                    "{name} takes {bytes} bytes, a buffer of {} at most {}",
                    info.name, info.limits.max_buffer
                )));
            }
        }
        let total = buffers
            .iter()
            .try_fold(0u64, |sum, (_, bytes)| sum.checked_add(*bytes))
            .unwrap_or(u64::MAX);
        let memory = self.session.device().memory()?;
        let free = memory
            .free
            .unwrap_or(memory.total.saturating_sub(memory.used));
        if total > free {
            return Err(Error::unsupported(format!(
                "the request takes {total} bytes, {} has {free} free",
                info.name
            )));
        }
        match info.unified_memory {
            // Such drivers commit host memory at the first touch, when it is too late for an error.
            true => self.check_host(total),
            false => Ok(()),
        }
    }

    /// Brings the operands to the device, each stored tensor once.
    fn bind(&self, file: &RequestFile, op: &dyn Op) -> Result<Vec<View>> {
        let device = self.session.device();
        let queue = self.session.queue();
        let mut uploaded: BTreeMap<usize, Buffer> = BTreeMap::new();
        let mut views = Vec::new();
        for operand in op.operands() {
            if operand.output {
                let buffer = device.alloc(operand.desc.span_bytes()?)?;
                queue.fill(&buffer.all(), 0)?;
                views.push(buffer.view(operand.desc, 0)?);
                continue;
            }
            let input = file
                .inputs()
                .iter()
                .find(|input| input.name == operand.name)
                .ok_or_else(|| Error::invalid(operand.name, "nothing", "a tensor"))?;
            let buffer = match uploaded.get(&input.stored) {
                Some(buffer) => buffer.clone(),
                None => self.upload(file, input.stored)?,
            };
            uploaded.insert(input.stored, buffer.clone());
            let desc = TensorDesc {
                dtype: operand.desc.dtype,
                layout: input.layout,
            };
            views.push(buffer.view(desc, input.offset)?);
        }
        Ok(views)
    }

    fn upload(&self, file: &RequestFile, index: usize) -> Result<Buffer> {
        let stored = &file.stored()[index];
        let buffer = self
            .session
            .device()
            .alloc(stored.bytes)
            .map_err(|error| error.within(&stored.name))?;
        let queue = self.session.queue();
        let mut piece = vec![0; PIECE.min(stored.bytes as usize)];
        for begin in (0..stored.bytes).step_by(PIECE) {
            let length = (stored.bytes - begin).min(PIECE as u64);
            let piece = &mut piece[..length as usize];
            file.file().read(stored, begin, piece)?;
            queue.upload(&buffer.slice(begin, length)?, piece)?;
            // Else the queue's staging would hold the whole tensor a second time.
            queue.synchronize(None)?;
        }
        Ok(buffer)
    }

    fn write(&self, outcome: &Outcome, path: &Path, outputs: &[(&str, &View)]) -> Result<()> {
        let descs: Vec<_> = outputs
            .iter()
            .map(|(name, view)| (*name, *view.desc()))
            .collect();
        let mut writer = outcome.create_file(path, &descs)?;
        for (_, view) in outputs {
            let bytes = view.bytes();
            for begin in (0..bytes.len()).step_by(PIECE) {
                let length = (bytes.len() - begin).min(PIECE as u64);
                let mut piece = vec![0; length as usize];
                let slice = view.buffer().slice(bytes.offset() + begin, length)?;
                self.session.queue().read_blocking(&slice, &mut piece)?;
                writer.write(&piece)?;
            }
        }
        writer.finish()
    }
}

fn describe_device(info: &DeviceInfo) -> String {
    match info.execution {
        Execution::Hardware => format!("{} {}", info.selector(), info.name),
        execution => format!("{} {} ({execution})", info.selector(), info.name),
    }
}

fn describe_plan(plan: &Plan) -> String {
    let modules: Vec<_> = plan
        .modules
        .iter()
        .map(|module| format!("{module:?}"))
        .collect();
    match modules.is_empty() {
        true => "nothing to launch".into(),
        false => modules.join("; "),
    }
}
