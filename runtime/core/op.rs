//! Ops: problems that can be checked and planned, and the kinds that requests are read into.
//!
//! An [`Op`] is one problem: an operation with the shapes, dtypes and attributes it is to run at, already checked. An
//! [`OpKind`] is the operation itself, as listed by `ropeway-kernels`; it reads a [`Signature`] (what a request file or
//! an engine says) into an op.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;

use crate::error::{Error, Result};
use crate::info::DeviceInfo;
use crate::kernel::{Config, Kernel};
use crate::memory::TensorDesc;
use crate::plan::Plan;
use crate::request::{AttrReader, Operands};

/// An operand of a problem.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Operand {
    /// Its name (`"a"`, `"expert_offsets"`).
    pub name: &'static str,
    /// Dtype and layout. Row counts and lengths are the largest the plan shall hold for.
    pub desc: TensorDesc,
    /// True for outputs.
    pub output: bool,
}

/// Work that a problem cannot avoid; the denominator of a roofline.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Floating-point (or integer) operations, a multiply-add counting two.
    pub flops: f64,
    /// Bytes that must be read or written at least once.
    pub bytes: f64,
}

/// Finds tuned configurations. The runtime implements it over files; `()` knows none.
pub trait Tuned: Sync {
    /// The configuration for a problem, if one is known that is better than the default: one of `candidates`, which are in the planner's
    /// order, so that the first that is valid is what would run without tuning. The planner validates the answer.
    fn config(
        &self,
        key: &TuneKey<'_>,
        info: &DeviceInfo,
        candidates: &[&'static Kernel],
    ) -> Option<Tuning>;
}

/// What a tuned entry is found by. Never a device index.
#[derive(Clone, Debug, PartialEq)]
pub struct TuneKey<'a> {
    /// The op.
    pub op: &'a str,
    /// Operand dtypes and layout in one word (`"f32_nt"`).
    pub variant: &'a str,
    /// The sizes that decide speed, by name (`m`, `n`, `k`).
    pub sizes: &'a [(&'static str, u64)],
}

/// A tuned choice.
#[derive(Clone, Debug, PartialEq)]
pub struct Tuning {
    /// Name of the kernel.
    pub kernel: String,
    /// Its manifest version when it was tuned.
    pub version: u32,
    /// The tunables.
    pub config: Config,
}

impl Tuned for () {
    fn config(&self, _: &TuneKey<'_>, _: &DeviceInfo, _: &[&'static Kernel]) -> Option<Tuning> {
        None
    }
}

/// What runs without tuning: the first of `candidates` whose default configuration is valid on the device.
///
/// # Errors
/// `Unsupported` with what the last of them lacks, or that there is none.
pub fn default_choice(
    op: &str,
    candidates: &[&'static Kernel],
    info: &DeviceInfo,
) -> Result<(&'static Kernel, Config)> {
    let mut lack = Error::unsupported(format!("no kernel for this {op} on {}", info.name));
    for kernel in candidates {
        let config = kernel.default_config();
        match kernel.validate(&config, info) {
            Ok(()) => return Ok((kernel, config)),
            Err(error) => lack = Error::unsupported(error.context()),
        }
    }
    Err(lack)
}

/// What a planner may use and must obey.
#[derive(Clone, Copy)]
pub struct PlanRequest<'a> {
    /// The device, as it describes itself.
    pub info: &'a DeviceInfo,
    /// Tuned configurations.
    pub tuned: &'a dyn Tuned,
    /// Use the kernel of this name or fail; the choice is the planner's otherwise.
    pub kernel: Option<&'a str>,
    /// Use these tunables or fail (needs `kernel`).
    pub config: Option<&'a Config>,
    /// Operands that will be bound in prepared form, by name.
    pub prepared: &'a [&'a str],
}

impl<'a> PlanRequest<'a> {
    /// A request that leaves every choice to the planner.
    pub fn new(info: &'a DeviceInfo) -> PlanRequest<'a> {
        PlanRequest {
            info,
            tuned: &(),
            kernel: None,
            config: None,
            prepared: &[],
        }
    }

    /// The kernel and configuration to use among `candidates` (best first): the forced one, else the tuned one if it is valid, else the
    /// first candidate with its default configuration.
    ///
    /// # Errors
    /// `Unsupported` without candidates, `InvalidArgument` for a forced kernel or configuration that does not fit.
    pub fn choose(
        &self,
        key: &TuneKey<'_>,
        candidates: &[&'static Kernel],
    ) -> Result<(&'static Kernel, Config)> {
        let find = |name: &str| {
            candidates
                .iter()
                .copied()
                .find(|kernel| kernel.name == name)
        };
        if let Some(name) = self.kernel {
            let kernel = find(name).ok_or_else(|| {
                let names: Vec<_> = candidates.iter().map(|kernel| kernel.name).collect();
                Error::unsupported(format!(
                    "kernel {name} cannot run this {}; these can: {names:?}",
                    key.op
                ))
            })?;
            let config = self
                .config
                .cloned()
                .unwrap_or_else(|| kernel.default_config());
            kernel.validate(&config, self.info)?;
            return Ok((kernel, config));
        }
        if let Some(tuning) = self.tuned.config(key, self.info, candidates)
            && let Some(kernel) = find(&tuning.kernel)
            && kernel.version == tuning.version
            && kernel.validate(&tuning.config, self.info).is_ok()
        {
            return Ok((kernel, tuning.config));
        }
        default_choice(key.op, candidates, self.info)
    }
}

/// One checked problem.
pub trait Op: fmt::Debug + Send + Sync + Any {
    /// The operation's name (`"gemm"`).
    fn name(&self) -> &'static str;

    /// The operands it has, inputs first: the order in which views are bound to its plan.
    fn operands(&self) -> Vec<Operand>;

    /// The kernels that can run it on a device, the one to prefer without tuning first. Every one of them must be right; the conformance
    /// suite runs them all.
    ///
    /// # Errors
    /// `Unsupported` with what the device or the kernels lack.
    fn candidates(&self, info: &DeviceInfo) -> Result<Vec<&'static Kernel>>;

    /// Turns it into a plan. Pure: the same request gives the same plan.
    ///
    /// The launches of the plan stay within the views that its rules admit, whatever the operands hold.
    ///
    /// # Errors
    /// `Unsupported` with the reason.
    fn plan(&self, request: &PlanRequest<'_>) -> Result<Plan>;

    /// A plan that brings a constant operand (a weight) into the form that [`Op::plan`] expects when the operand is listed in
    /// [`PlanRequest::prepared`]. Its operands: the plain tensor, then a U8 vector of the size its rule states.
    ///
    /// # Errors
    /// `Unsupported` where plain is the only form.
    fn prepare(&self, operand: &str, request: &PlanRequest<'_>) -> Result<Plan> {
        let _ = request;
        Err(Error::unsupported(format!(
            "{} takes {operand} in its plain form only",
            self.name()
        )))
    }

    /// Work it cannot avoid.
    fn cost(&self) -> Cost;

    /// For the op's own code to find its type again.
    fn as_any(&self) -> &dyn Any;
}

/// What is said of a problem before it is checked: tensors by name, and attributes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Signature {
    /// Dtype and layout of each input.
    pub tensors: BTreeMap<String, TensorDesc>,
    /// Attributes; absent ones take their defaults.
    pub attrs: serde_json::Map<String, serde_json::Value>,
}

impl Signature {
    /// An input that must be there.
    ///
    /// # Errors
    /// `InvalidArgument` naming it.
    pub fn required(&self, name: &str) -> Result<TensorDesc> {
        self.optional(name)
            .ok_or_else(|| Error::invalid(name, "nothing", "a tensor"))
    }

    /// An input that may be there.
    pub fn optional(&self, name: &str) -> Option<TensorDesc> {
        self.tensors.get(name).copied()
    }

    /// Fails if there is a tensor other than these.
    ///
    /// # Errors
    /// `InvalidArgument` naming the unknown one.
    pub fn only(&self, names: &[&str]) -> Result<()> {
        match self
            .tensors
            .keys()
            .find(|name| !names.contains(&name.as_str()))
        {
            Some(unknown) => Err(Error::invalid(
                unknown,
                "an unknown tensor",
                format!("one of {names:?}"),
            )),
            None => Ok(()),
        }
    }

    /// A reader of the attributes that refuses unknown keys at its end.
    pub fn attrs(&self) -> AttrReader<'_> {
        AttrReader::new(&self.attrs)
    }
}

/// An operation that Ropeway ships.
pub trait OpKind: Send + Sync {
    /// Its name, as request files say it.
    fn name(&self) -> &'static str;

    /// The names of all tensors that it may take as input, required or not, in the order of its operands. A stored tensor of
    /// another name is only what views look into.
    fn inputs(&self) -> &'static [&'static str];

    /// Reads and checks a problem. Outputs get contiguous layouts.
    ///
    /// # Errors
    /// `InvalidArgument` naming the tensor or attribute, what was found and what was expected; `Unsupported` for sound problems that no
    /// kernel of this version takes.
    fn parse(&self, signature: &Signature) -> Result<Box<dyn Op>>;

    /// Checks the values that only the device would see (ids, offsets, lengths, block numbers) on the host.
    ///
    /// # Errors
    /// `InvalidArgument` naming the tensor and the element.
    fn check_values(&self, op: &dyn Op, inputs: &Operands) -> Result<()> {
        let _ = (op, inputs);
        Ok(())
    }

    /// All its kernels.
    fn kernels(&self) -> &'static [&'static Kernel];

    /// Its mathematics: reference, bounds and cases.
    #[cfg(feature = "spec")]
    fn spec(&self) -> &'static dyn crate::spec::OpSpec;
}
