//! Plans: an op at the shapes, dtypes and attributes it is to run at, compiled for a device.

use std::ffi::{CString, c_char};
use std::sync::{Arc, OnceLock};

use ropeway_core::memory::TensorDesc;
use ropeway_core::op::{Op, Signature};
use ropeway_core::plan::{Determinism, Executable, Extent, Form, OperandRule, WORKSPACE_ALIGNMENT};
use ropeway_core::{Error, Result};
use ropeway_rust::kernels;
use ropeway_rust::{PlanOptions, Session};
use serde_json::Value;

use crate::device::ropeway_device;
use crate::memory::ropeway_buffer;
use crate::queue::ropeway_queue;
use crate::sized::{self, sized_structs};
use crate::status::{
    borrow, c_string, create, entry, flag, optional_text, release, ropeway_status, text,
};
use crate::tensor::{
    ROPEWAY_LAYOUT_CONTIGUOUS, ROPEWAY_LAYOUT_STRIDED, ROPEWAY_MAX_RANK, dtype_code, ropeway_dtype,
    ropeway_layout, ropeway_tensor,
};

/// An op that is planned and compiled: it is executed with any memory, any number of times.
pub struct ropeway_plan {
    pub(crate) planned: Arc<Planned>,
}

pub(crate) struct Planned {
    pub(crate) executable: Arc<Executable>,
    pub(crate) operands: Vec<Operand>,
    session: Arc<Session>,
    op: Box<dyn Op>,
    options: PlanOptions,
    op_name: CString,
    description: CString,
}

pub(crate) struct Operand {
    pub(crate) name: &'static str,
    /// As it was planned: row counts and lengths at their largest.
    pub(crate) desc: TensorDesc,
    c_name: CString,
    output: bool,
    prepared: bool,
}

/// The kind of an attribute.
pub type ropeway_attribute_kind = u32;
/// True or false: `integer` is 1 or 0.
pub const ROPEWAY_ATTRIBUTE_FLAG: ropeway_attribute_kind = 0;
/// A whole number of 0 or more: `integer`.
pub const ROPEWAY_ATTRIBUTE_INTEGER: ropeway_attribute_kind = 1;
/// A number: `number`.
pub const ROPEWAY_ATTRIBUTE_NUMBER: ropeway_attribute_kind = 2;
/// A word: `word`.
pub const ROPEWAY_ATTRIBUTE_WORD: ropeway_attribute_kind = 3;

/// An attribute of an op.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ropeway_attribute {
    /// sizeof(ropeway_attribute)
    pub struct_size: usize,
    /// Its name ("trans_b", "topk").
    pub name: *const c_char,
    /// If it is a flag or an integer.
    pub integer: u64,
    /// If it is a number.
    pub number: f64,
    /// If it is a word.
    pub word: *const c_char,
    /// Which of the three is read.
    pub kind: ropeway_attribute_kind,
    /// 0.
    pub reserved: u32,
}

/// Any op that the library has (op_name), by the names of its tensors and attributes; each op's are listed in kernels/<op>/README.md.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ropeway_request {
    /// sizeof(ropeway_request)
    pub struct_size: usize,
    /// "gemm".
    pub op: *const c_char,
    /// Its inputs, in any order. Outputs are contiguous.
    pub inputs: *const ropeway_tensor,
    /// Number of inputs.
    pub input_count: usize,
    /// Its attributes; one that is absent has its default.
    pub attributes: *const ropeway_attribute,
    /// Number of attributes.
    pub attribute_count: usize,
}

/// Choices that a caller may take out of the planner's hands.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ropeway_plan_options {
    /// sizeof(ropeway_plan_options)
    pub struct_size: usize,
    /// Use the kernel of this name or fail. NULL: the planner's choice.
    pub kernel: *const c_char,
    /// Names of operands that will be bound in prepared form (plan_prepare).
    pub prepared: *const *const c_char,
    /// Number of such names.
    pub prepared_count: usize,
    /// Use these tunables of the kernel named above, all that it has, or fail. NULL: tuned values, else the kernel's defaults.
    pub config: *const ropeway_tunable,
    /// Number of tunables.
    pub config_count: usize,
}

/// A tunable of a kernel and its value. Each kernel's are listed in kernels/<op>/README.md.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ropeway_tunable {
    /// sizeof(ropeway_tunable)
    pub struct_size: usize,
    /// Its name ("MR").
    pub name: *const c_char,
    /// One of the values that it may have.
    pub value: i64,
}

/// What a plan promises about repeated executions.
pub type ropeway_determinism = u32;
/// Results may differ from run to run within the error bound.
pub const ROPEWAY_DETERMINISM_NONE: ropeway_determinism = 0;
/// Two runs with equal inputs on one device give equal bits.
pub const ROPEWAY_DETERMINISM_RUN_TO_RUN: ropeway_determinism = 1;
/// Besides, a row's result does not depend on which or how many other rows are in the batch.
pub const ROPEWAY_DETERMINISM_BATCH_INVARIANT: ropeway_determinism = 2;

/// Alignment of a workspace within its buffer, in bytes.
pub const ROPEWAY_WORKSPACE_ALIGNMENT: u64 = 256;
const _: () = assert!(ROPEWAY_WORKSPACE_ALIGNMENT == WORKSPACE_ALIGNMENT);

/// What a plan is. The strings live as long as the plan.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ropeway_plan_info {
    /// sizeof(ropeway_plan_info)
    pub struct_size: usize,
    /// The op's name.
    pub op: *const c_char,
    /// The plan for people: kernels, configurations, launches.
    pub description: *const c_char,
    /// Bytes of workspace that an execution needs; 0 if none.
    pub workspace_bytes: u64,
    /// Operands that an execution binds.
    pub operand_count: usize,
    /// Arithmetic operations that the op cannot avoid, a multiply-add counting two.
    pub operations: f64,
    /// Bytes that it must read or write at least once.
    pub bytes: f64,
    /// What it promises about repeated executions.
    pub determinism: ropeway_determinism,
    /// Launches on the device.
    pub launch_count: u32,
}

/// What an operand of a plan is. The name lives as long as the plan.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ropeway_operand_info {
    /// sizeof(ropeway_operand_info)
    pub struct_size: usize,
    /// Its name.
    pub name: *const c_char,
    /// Bytes from its first to its last element.
    pub bytes: u64,
    /// Element type.
    pub dtype: ropeway_dtype,
    /// Number of dimensions.
    pub rank: u32,
    /// Extents as planned: row counts and lengths at their largest.
    pub shape: [u64; ROPEWAY_MAX_RANK],
    /// Strides in elements.
    pub strides: [u64; ROPEWAY_MAX_RANK],
    /// Whether it is contiguous.
    pub layout: ropeway_layout,
    /// 1 if the op writes it.
    pub is_output: u32,
    /// 1 if it is bound in prepared form (plan_prepare).
    pub is_prepared: u32,
    /// 0.
    pub reserved: u32,
    /// If the op writes it: the inputs whose memory it may be, as a bit each (1 << place). Such an input and this operand may be bound to the same
    /// place of one buffer, with one dtype and layout; other outputs must not overlap an operand.
    pub in_place: u64,
}

sized_structs!(
    ropeway_attribute,
    ropeway_request,
    ropeway_plan_options,
    ropeway_tunable,
    ropeway_plan_info,
    ropeway_operand_info,
);

impl ropeway_attribute {
    fn value(&self, name: &str) -> Result<Value> {
        if self.reserved != 0 {
            let found = format!("reserved = {}", self.reserved);
            return Err(Error::invalid(name, found, 0));
        }
        Ok(match self.kind {
            ROPEWAY_ATTRIBUTE_FLAG => {
                let value = u32::try_from(self.integer).unwrap_or(u32::MAX);
                flag(value, name)?.into()
            }
            ROPEWAY_ATTRIBUTE_INTEGER => self.integer.into(),
            ROPEWAY_ATTRIBUTE_NUMBER => number(self.number, name)?,
            // SAFETY: the request's strings are what the header asks for.
            ROPEWAY_ATTRIBUTE_WORD => unsafe { text(self.word, name) }?.into(),
            other => {
                let found = format!("kind {other}");
                return Err(Error::invalid(name, found, "one of ROPEWAY_ATTRIBUTE_..."));
            }
        })
    }
}

pub(crate) fn number(value: f64, name: &str) -> Result<Value> {
    serde_json::Number::from_f64(value)
        .map(Value::Number)
        .ok_or_else(|| Error::invalid(name, value, "a finite number"))
}

impl ropeway_request {
    /// The op's name and what is said of it.
    ///
    /// # Safety
    /// The request is null, or it and all it points to are valid.
    unsafe fn signature<'a>(request: *const ropeway_request) -> Result<(&'a str, Signature)> {
        // SAFETY: the caller's promise, here and below.
        let request = unsafe { sized::read(request, "request") }?;
        // SAFETY: as above.
        let op = unsafe { text(request.op, "op") }?;
        let mut signature = Signature::default();
        let (inputs, count) = (request.inputs, request.input_count);
        // SAFETY: as above.
        for (index, input) in unsafe { sized::read_array(inputs, count, "inputs") }?.enumerate() {
            let input = input?;
            // SAFETY: as above.
            let name = unsafe { text(input.name, &format!("inputs[{index}].name")) }?;
            let desc = input.desc(name)?;
            if signature.tensors.insert(name.to_owned(), desc).is_some() {
                return Err(Error::invalid(name, "a second tensor of this name", "one"));
            }
        }
        let (attributes, count) = (request.attributes, request.attribute_count);
        // SAFETY: as above.
        let attributes = unsafe { sized::read_array(attributes, count, "attributes") }?;
        for (index, attribute) in attributes.enumerate() {
            let attribute = attribute?;
            // SAFETY: as above.
            let name = unsafe { text(attribute.name, &format!("attributes[{index}].name")) }?;
            let value = attribute.value(name)?;
            if signature.attrs.insert(name.to_owned(), value).is_some() {
                return Err(Error::invalid(
                    name,
                    "a second attribute of this name",
                    "one",
                ));
            }
        }
        Ok((op, signature))
    }
}

/// The choices of the caller.
///
/// # Safety
/// `options` and its strings are null or valid.
unsafe fn plan_options(options: *const ropeway_plan_options) -> Result<PlanOptions> {
    let mut choices = PlanOptions::default();
    if options.is_null() {
        return Ok(choices);
    }
    // SAFETY: the caller's promise.
    let options = unsafe { sized::read(options, "options") }?;
    // SAFETY: the caller's promise.
    choices.kernel = unsafe { optional_text(options.kernel, "kernel") }?.map(str::to_owned);
    if options.prepared.is_null() && options.prepared_count > 0 {
        let found = format!("NULL for {} names", options.prepared_count);
        return Err(Error::invalid("prepared", found, "names of operands"));
    }
    for index in 0..options.prepared_count {
        // SAFETY: there are `prepared_count` names.
        let name = unsafe { text(options.prepared.add(index).read(), "prepared") }?;
        choices.prepared.push(name.to_owned());
    }
    // SAFETY: the caller's promise.
    let config = unsafe { sized::read_array(options.config, options.config_count, "config") }?;
    for (index, tunable) in config.enumerate() {
        let tunable = tunable?;
        // SAFETY: the caller's promise.
        let name = unsafe { text(tunable.name, &format!("config[{index}].name")) }?;
        let config = choices.config.get_or_insert_default();
        if config.get(name).is_some() {
            return Err(Error::invalid(
                name,
                "a second value of this tunable",
                "one",
            ));
        }
        config.set(name, tunable.value);
    }
    Ok(choices)
}

impl Planned {
    /// Checks an op and plans it for a device.
    ///
    /// # Safety
    /// `device` and `options` are null or valid.
    pub(crate) unsafe fn plan(
        device: *const ropeway_device,
        op: &str,
        signature: &Signature,
        options: *const ropeway_plan_options,
    ) -> Result<ropeway_plan> {
        // SAFETY: the caller's promise.
        let (device, options) = unsafe { (borrow(device, "device")?, plan_options(options)?) };
        let kind = kernels::op(op).ok_or_else(|| {
            let names: Vec<_> = kernels::ops().iter().map(|op| op.name()).collect();
            Error::invalid("op", format!("{op:?}"), format!("one of {names:?}"))
        })?;
        let op = kind.parse(signature)?;
        let executable = device.session.plan_with(&*op, &options)?;
        let described = op.operands();
        let operands = executable.plan().operands.iter().map(|rule| {
            let operand = described.iter().find(|operand| operand.name == rule.name);
            let prepared = rule.form != Form::Plain;
            let desc = match operand {
                Some(operand) if !prepared => operand.desc,
                _ => fixed(rule)?,
            };
            Ok(Operand {
                name: rule.name,
                desc,
                c_name: c_string(rule.name),
                output: rule.write,
                prepared,
            })
        });
        let planned = Planned {
            operands: operands.collect::<Result<_>>()?,
            op_name: c_string(op.name()),
            description: c_string(executable.plan().to_string()),
            session: Arc::clone(&device.session),
            executable,
            options,
            op,
        };
        Ok(ropeway_plan {
            planned: Arc::new(planned),
        })
    }

    /// The inputs whose memory an operand may be, as bits.
    fn in_place(&self, index: usize) -> u64 {
        let pairs = self.executable.plan().in_place.iter();
        pairs
            .filter(|&&(output, _)| output == index)
            .fold(0, |bits, &(_, input)| bits | 1 << input)
    }

    /// The operands' names, for messages.
    pub(crate) fn names(&self) -> String {
        let names: Vec<_> = self.operands.iter().map(|operand| operand.name).collect();
        names.join(", ")
    }
}

/// The description of an operand that is only its rule's: a prepared one.
fn fixed(rule: &OperandRule) -> Result<TensorDesc> {
    let extents = rule.shape.iter().map(|extent| match extent {
        Extent::Exactly(extent) => Ok(*extent),
        Extent::Varies { .. } => Err(Error::unsupported(format!(
            "{} has no fixed prepared size",
            rule.name
        ))),
    });
    TensorDesc::contiguous(rule.dtype, &extents.collect::<Result<Vec<_>>>()?)
}

pub(crate) unsafe extern "C" fn op_name(index: usize) -> *const c_char {
    static NAMES: OnceLock<Vec<CString>> = OnceLock::new();
    let names = NAMES.get_or_init(|| {
        kernels::ops()
            .iter()
            .map(|op| c_string(op.name()))
            .collect()
    });
    names
        .get(index)
        .map_or(std::ptr::null(), |name| name.as_ptr())
}

pub(crate) unsafe extern "C" fn plan_create(
    device: *const ropeway_device,
    request: *const ropeway_request,
    options: *const ropeway_plan_options,
    out: *mut *mut ropeway_plan,
) -> ropeway_status {
    let make = || {
        // SAFETY: the arguments are what the header asks for.
        unsafe {
            let (op, signature) = ropeway_request::signature(request)?;
            Planned::plan(device, op, &signature, options)
        }
    };
    // SAFETY: `out` is what the header asks for.
    unsafe { create(out, make) }
}

pub(crate) unsafe extern "C" fn plan_info(
    plan: *const ropeway_plan,
    out: *mut ropeway_plan_info,
) -> ropeway_status {
    entry(|| {
        // SAFETY: the handle is null or alive.
        let planned = &unsafe { borrow(plan, "plan") }?.planned;
        let (plan, cost) = (planned.executable.plan(), planned.op.cost());
        let info = ropeway_plan_info {
            struct_size: size_of::<ropeway_plan_info>(),
            op: planned.op_name.as_ptr(),
            description: planned.description.as_ptr(),
            workspace_bytes: plan.workspace,
            operand_count: planned.operands.len(),
            operations: cost.flops,
            bytes: cost.bytes,
            determinism: match plan.determinism {
                Determinism::None => ROPEWAY_DETERMINISM_NONE,
                Determinism::RunToRun => ROPEWAY_DETERMINISM_RUN_TO_RUN,
                Determinism::BatchInvariant => ROPEWAY_DETERMINISM_BATCH_INVARIANT,
            },
            launch_count: plan.launches.len() as u32,
        };
        // SAFETY: the struct is what the header asks for.
        unsafe { sized::write(out, &info, "out") }
    })
}

pub(crate) unsafe extern "C" fn plan_operand(
    plan: *const ropeway_plan,
    index: usize,
    out: *mut ropeway_operand_info,
) -> ropeway_status {
    entry(|| {
        // SAFETY: the handle is null or alive.
        let planned = &unsafe { borrow(plan, "plan") }?.planned;
        let operands = &planned.operands;
        let operand = operands.get(index).ok_or_else(|| {
            Error::invalid("operand", index, format!("less than {}", operands.len()))
        })?;
        let layout = &operand.desc.layout;
        let mut info = ropeway_operand_info {
            struct_size: size_of::<ropeway_operand_info>(),
            name: operand.c_name.as_ptr(),
            bytes: operand.desc.span_bytes()?,
            dtype: dtype_code(operand.desc.dtype),
            rank: layout.rank() as u32,
            shape: [0; ROPEWAY_MAX_RANK],
            strides: [0; ROPEWAY_MAX_RANK],
            layout: match layout.is_contiguous() {
                true => ROPEWAY_LAYOUT_CONTIGUOUS,
                false => ROPEWAY_LAYOUT_STRIDED,
            },
            is_output: operand.output.into(),
            is_prepared: operand.prepared.into(),
            reserved: 0,
            in_place: planned.in_place(index),
        };
        info.shape[..layout.rank()].copy_from_slice(layout.shape());
        info.strides[..layout.rank()].copy_from_slice(layout.strides());
        // SAFETY: the struct is what the header asks for.
        unsafe { sized::write(out, &info, "out") }
    })
}

pub(crate) unsafe extern "C" fn plan_prepare(
    plan: *const ropeway_plan,
    operand: *const c_char,
    tensor: *const ropeway_tensor,
    queue: *const ropeway_queue,
    out: *mut *mut ropeway_buffer,
) -> ropeway_status {
    let make = || {
        // SAFETY: the arguments are what the header asks for.
        let (plan, name, tensor, queue) = unsafe {
            let plan = &borrow(plan, "plan")?.planned;
            let queue = borrow(queue, "queue")?;
            let tensor = sized::read(tensor, "tensor")?;
            (plan, text(operand, "operand")?, tensor, queue)
        };
        let described = plan.op.operands();
        let operand = described.iter().find(|operand| operand.name == name);
        let operand =
            operand.ok_or_else(|| Error::invalid("operand", format!("{name:?}"), plan.names()))?;
        // SAFETY: as above.
        let view = unsafe { tensor.view(operand.desc, name) }?;
        let (op, options) = (&*plan.op, &plan.options);
        let prepared = plan
            .session
            .prepare(op, name, options, &view, &*queue.queue)?;
        Ok(ropeway_buffer {
            buffer: prepared.buffer().clone(),
        })
    };
    // SAFETY: `out` is what the header asks for.
    unsafe { create(out, make) }
}

pub(crate) unsafe extern "C" fn plan_release(plan: *mut ropeway_plan) {
    // SAFETY: null, or the handle's one release.
    unsafe { release(plan) }
}
