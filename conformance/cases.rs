//! The cases of a device: their ids, and how an id is read back into a case.
//!
//! | id | case |
//! |---|---|
//! | `device/copies/upload_takes_over` | a device test |
//! | `gemm/fixed/tall_m1000_n3_k64_f32` | a fixed case with the kernel the planner prefers |
//! | `gemm/fixed/tall_m1000_n3_k64_f32@gemm_tiled` | the same with another kernel that can run it |
//! | `gemm/fixed/tall_m1000_n3_k64_f32@gemm_packed+b` | the same with operand `b` prepared |
//! | `gemm/generated/00c0ffee00c0ffee` | the case that follows from this seed |

use std::path::{Path, PathBuf};

use ropeway_core::info::{DeviceInfo, Execution};
use ropeway_core::memory::{Layout, TensorDesc};
use ropeway_core::op::{Op, OpKind, PlanRequest, Signature};
use ropeway_core::spec::Recipe;
use ropeway_core::{DType, Error, Result};

use crate::device::{self, DeviceTest};
use crate::generate;
use crate::ops::{self, Variant};
use crate::saved::{self, Saved};

/// What to check.
#[derive(Clone, Debug)]
pub struct Selection {
    /// Only ids that contain this.
    pub filter: Option<String>,
    /// Only this kernel: every fixed and generated case that it can run, and no other.
    pub kernel: Option<String>,
    /// Where generated cases come from.
    pub seed: u64,
    /// Generated cases of all ops together.
    pub generated: usize,
    /// Only op cases of at most this many operations and bytes together, and no device tests: for devices that watch every access.
    pub max_work: Option<f64>,
}

impl Selection {
    /// The seed of the gate: the same each time, so that the gate is the same for everybody.
    pub const GATE_SEED: u64 = 1;
    /// Generated cases of the gate.
    pub const GATE_GENERATED: usize = 340;
    /// Generated cases of a full run.
    pub const FULL_GENERATED: usize = 4_200;
}

impl Default for Selection {
    fn default() -> Selection {
        Selection {
            filter: None,
            kernel: None,
            seed: Selection::GATE_SEED,
            generated: Selection::GATE_GENERATED,
            max_work: None,
        }
    }
}

/// One case.
pub struct Case {
    /// Its id, unique within a device.
    pub id: String,
    /// What is run.
    pub body: Body,
}

/// What a case runs.
pub enum Body {
    /// A device test.
    Device(DeviceTest),
    /// A listed recipe.
    Fixed {
        /// The recipe.
        recipe: Box<Recipe>,
        /// The way to run it.
        variant: Variant,
    },
    /// What follows from a seed.
    Generated {
        /// The op.
        kind: &'static dyn OpKind,
        /// The seed.
        seed: u64,
        /// The kernel to use.
        variant: Variant,
    },
    /// A request file.
    Saved(Box<Saved>),
}

impl Case {
    /// The first part of its id: `device` or the op.
    pub fn group(&self) -> &str {
        self.id.split('/').next().unwrap_or_default()
    }

    /// What it asks for, if it is a case of an op that can be read; nothing is made of its data.
    pub fn op(&self) -> Option<Box<dyn Op>> {
        op(&self.body)
    }
}

/// Every case of a device that a selection names, device tests first.
///
/// # Errors
/// `InvalidArgument` if it names none.
pub fn select(info: &DeviceInfo, selection: &Selection) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    if selection.kernel.is_none() {
        cases.extend(device::TESTS.iter().map(|test| Case {
            id: format!("device/{}", test.name),
            body: Body::Device(*test),
        }));
    }
    // A device that only records calls has no results to judge.
    let kinds = match info.execution {
        Execution::Recorded => Vec::new(),
        _ => ropeway_kernels::ops(),
    };
    for (number, kind) in kinds.iter().copied().enumerate() {
        for recipe in kind.spec().fixed_cases() {
            for variant in variants(kind, &recipe, info, selection.kernel.as_deref()) {
                cases.push(Case {
                    id: format!("{}/fixed/{}{}", kind.name(), recipe.name, suffix(&variant)),
                    body: Body::Fixed {
                        recipe: Box::new(recipe.clone()),
                        variant,
                    },
                });
            }
        }
        // The remainder goes to the first ops.
        let share = selection.generated / kinds.len()
            + usize::from(number < selection.generated % kinds.len());
        let kernel = match selection.kernel.as_deref() {
            None => None,
            Some(name) => match kind.kernels().iter().find(|kernel| kernel.name == name) {
                Some(kernel) => Some(kernel.name),
                None => continue,
            },
        };
        for number in 0..share {
            let seed = generate::case_seed(selection.seed, kind.name(), number);
            // What cannot be drawn is reported when it is run.
            let runs = kernel.is_none()
                || generate::Generated::new(kind, seed).map_or(true, |case| {
                    !variants(kind, &case.recipe(), info, kernel).is_empty()
                });
            if runs {
                cases.push(generated(kind, seed, kernel));
            }
        }
    }
    if let Some(most) = selection.max_work {
        cases.retain(|case| work(&case.body).is_some_and(|work| work <= most));
    }
    if let Some(filter) = &selection.filter {
        cases.retain(|case| case.id.contains(filter.as_str()));
    }
    if cases.is_empty() {
        return Err(Error::invalid(
            "filter",
            format!(
                "no case whose id contains {:?}{}",
                selection.filter.as_deref().unwrap_or(""),
                selection
                    .kernel
                    .as_ref()
                    .map_or(String::new(), |kernel| format!(" for kernel {kernel:?}"))
            ),
            "at least one (`ropeway check --list` shows them all)",
        ));
    }
    Ok(cases)
}

/// The op of an op case that can be read.
fn op(body: &Body) -> Option<Box<dyn Op>> {
    let (kind, recipe) = match body {
        Body::Fixed { recipe, .. } => (ropeway_kernels::op(&recipe.op)?, Recipe::clone(recipe)),
        Body::Generated { kind, seed, .. } => {
            (*kind, generate::Generated::new(*kind, *seed).ok()?.recipe())
        }
        Body::Device(_) | Body::Saved(_) => return None,
    };
    kind.parse(&signature(&recipe).ok()?).ok()
}

/// Operations and bytes of an op case that can be read.
fn work(body: &Body) -> Option<f64> {
    let cost = op(body)?.cost();
    Some(cost.flops + cost.bytes)
}

fn generated(kind: &'static dyn OpKind, seed: u64, kernel: Option<&'static str>) -> Case {
    let variant = Variant {
        kernel,
        prepared: Vec::new(),
    };
    Case {
        id: format!("{}/generated/{seed:016x}{}", kind.name(), suffix(&variant)),
        body: Body::Generated {
            kind,
            seed,
            variant,
        },
    }
}

fn suffix(variant: &Variant) -> String {
    let mut suffix = variant
        .kernel
        .map_or(String::new(), |kernel| format!("@{kernel}"));
    for operand in &variant.prepared {
        suffix.push('+');
        suffix.push_str(operand);
    }
    suffix
}

/// Every way a device can run a recipe: the planner's choice first, then each other kernel, then prepared operands. A recipe that
/// cannot be planned has one variant, whose run says why.
fn variants(
    kind: &dyn OpKind,
    recipe: &Recipe,
    info: &DeviceInfo,
    only: Option<&str>,
) -> Vec<Variant> {
    let op = signature(recipe).and_then(|signature| kind.parse(&signature));
    let Ok(op) = op else {
        return match only {
            None => vec![Variant::default()],
            Some(_) => Vec::new(),
        };
    };
    let mut variants = Vec::new();
    if only.is_none() {
        variants.push(Variant::default());
        variants.extend(prepared(kind, &*op, info, None));
    }
    let preferred = match only {
        None => op.plan(&PlanRequest::new(info)).ok(),
        Some(_) => None,
    };
    let preferred = preferred.as_ref().and_then(|plan| plan.modules.first());
    for kernel in op.candidates(info).unwrap_or_default() {
        let wanted = match only {
            Some(name) => kernel.name == name,
            None => preferred.is_some_and(|key| key.kernel.name != kernel.name),
        };
        if wanted && kernel.validate(&kernel.default_config(), info).is_ok() {
            variants.push(Variant {
                kernel: Some(kernel.name),
                prepared: Vec::new(),
            });
            variants.extend(prepared(kind, &*op, info, Some(kernel.name)));
        }
    }
    variants
}

/// One variant for each operand that a kernel takes in prepared form.
fn prepared(
    kind: &dyn OpKind,
    op: &dyn Op,
    info: &DeviceInfo,
    kernel: Option<&'static str>,
) -> Vec<Variant> {
    let request = PlanRequest {
        kernel,
        ..PlanRequest::new(info)
    };
    kind.inputs()
        .iter()
        .filter(|operand| op.prepare(operand, &request).is_ok())
        .map(|&operand| Variant {
            kernel,
            prepared: vec![operand],
        })
        .collect()
}

/// What a recipe's request would be checked against, without making its bytes.
fn signature(recipe: &Recipe) -> Result<Signature> {
    let mut stored = std::collections::BTreeMap::new();
    for tensor in &recipe.tensors {
        let dtype = DType::from_name(&tensor.dtype)
            .ok_or_else(|| Error::invalid(&tensor.name, &tensor.dtype, "a dtype"))?;
        stored.insert(
            tensor.name.clone(),
            TensorDesc::contiguous(dtype, &tensor.shape)?,
        );
    }
    let mut tensors = std::collections::BTreeMap::new();
    for view in &recipe.views {
        let of = stored
            .get(&view.of)
            .ok_or_else(|| Error::invalid(&view.of, "nothing", "a stored tensor"))?;
        let layout = Layout::strided(&view.shape, &view.strides)?;
        tensors.insert(
            view.name.clone(),
            TensorDesc {
                dtype: of.dtype,
                layout,
            },
        );
    }
    for (name, desc) in stored {
        if !recipe.views.iter().any(|view| view.of == name) {
            tensors.insert(name, desc);
        }
    }
    Ok(Signature {
        tensors,
        attrs: recipe.attrs.clone(),
    })
}

/// The case of a request file.
///
/// # Errors
/// As [`saved::load`].
pub fn saved(path: &Path) -> Result<Case> {
    let saved = saved::load(path)?;
    Ok(Case {
        id: saved.id.clone(),
        body: Body::Saved(Box::new(saved)),
    })
}

/// What `--replay` names: a case's id, or a request file that an earlier run saved.
pub enum Replay {
    /// An id.
    Id(String),
    /// A file.
    File(PathBuf),
}

impl Replay {
    /// A path that ends in `.safetensors` is a file, anything else an id.
    pub fn new(text: &str) -> Replay {
        match text.ends_with(".safetensors") {
            true => Replay::File(text.into()),
            false => Replay::Id(text.into()),
        }
    }
}

/// The case of this id on a device, fixed, generated (of any run) or device test.
///
/// # Errors
/// `InvalidArgument` if there is none.
pub fn by_id(info: &DeviceInfo, id: &str) -> Result<Case> {
    let (path, kernel) = match id.split_once('@') {
        Some((path, kernel)) => (path, Some(kernel)),
        None => (id, None),
    };
    if let Some((op, seed)) = path.split_once("/generated/") {
        let kind = ops::kind_of(op)?;
        let seed = u64::from_str_radix(seed, 16)
            .map_err(|_| Error::invalid("replay", seed, "a hexadecimal seed"))?;
        let kernel = kernel.map(|name| ops::kernel_of(kind, name)).transpose()?;
        return Ok(generated(kind, seed, kernel));
    }
    let everything = Selection {
        generated: 0,
        ..Selection::default()
    };
    select(info, &everything)?
        .into_iter()
        .find(|case| case.id == id)
        .ok_or_else(|| {
            Error::invalid(
                "replay",
                format!("{id:?}"),
                "the id of a case (`ropeway check --list` shows them)",
            )
        })
}
