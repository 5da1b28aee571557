//! What is compiled: the modules of plans for the benchmarks' problems, on devices that are only described.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use ropeway_backends::cuda::described;
use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::{Code, Config, Kernel, ModuleKey};
use ropeway_core::memory::TensorDesc;
use ropeway_core::op::{Op, PlanRequest, Signature};
use ropeway_core::{DType, ErrorKind};
use serde_json::{Map, Value};

/// A GPU, as far as plans and kernels care.
#[derive(Clone, Copy)]
pub struct Architecture {
    /// What NVRTC calls it.
    pub name: &'static str,
    capability: u32,
}

/// The architectures that kernels are compiled for: Ampere, Ada, Hopper, Blackwell.
pub const ARCHITECTURES: [Architecture; 4] = [
    Architecture {
        name: "sm_80",
        capability: 80,
    },
    Architecture {
        name: "sm_89",
        capability: 89,
    },
    Architecture {
        name: "sm_90a",
        capability: 90,
    },
    Architecture {
        name: "sm_120",
        capability: 120,
    },
];

impl Architecture {
    /// The largest device of it, as the backend describes it.
    pub fn info(&self) -> DeviceInfo {
        let devices = described(self.capability).expect("a known capability");
        devices.into_iter().next_back().expect("a device")
    }
}

/// A launch of a module, as far as it must fit the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Launched {
    /// The entry point.
    pub entry: &'static str,
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared_memory: u32,
}

/// A module: the kernel's name and the configuration, but for the capacity.
pub type Name = (&'static str, Config);

/// What plans launch of each module.
pub type Modules = BTreeMap<Name, (ModuleKey, BTreeSet<Launched>)>;

/// Sizes arrays and changes no code: of modules that differ in it alone, the largest stands for all.
const CAPACITY: &str = "EXPERTS_CAPACITY";

/// Every module of the plans of all problems, with each kernel that takes them.
pub fn modules(info: &DeviceInfo) -> Modules {
    let mut modules = Modules::new();
    for op in problems() {
        let candidates = match op.candidates(info) {
            Ok(candidates) => candidates,
            Err(error) if error.kind() == ErrorKind::Unsupported => continue,
            Err(error) => panic!("{op:?}: {error}"),
        };
        for kernel in candidates {
            let request = PlanRequest {
                kernel: Some(kernel.name),
                ..PlanRequest::new(info)
            };
            let plan = op
                .plan(&request)
                .unwrap_or_else(|error| panic!("{} for {op:?}: {error}", kernel.name));
            for launch in &plan.launches {
                let key = plan.modules[launch.module].clone();
                let launched = Launched {
                    entry: launch.entry,
                    threads: launch.group.iter().product(),
                    shared_memory: launch.local_memory,
                };
                let mut alike = key.config.clone();
                let capacity = key.config.get(CAPACITY);
                alike.set(CAPACITY, 0);
                let name = (key.kernel.name, alike);
                let (kept, launches) = modules.entry(name).or_insert((key, BTreeSet::new()));
                launches.insert(launched);
                if capacity > kept.config.get(CAPACITY) {
                    kept.config
                        .set(CAPACITY, capacity.expect("more than another"));
                }
            }
        }
    }
    modules
}

/// Of all modules each `every`th, with the name of one architecture that has it. A compile takes a second or two and seldom fails for one architecture alone:
/// each in turn sees its part of every kernel. Ada runs Ampere's code.
pub fn in_turn(
    compiled: &[(Architecture, Modules)],
    every: usize,
) -> BTreeMap<&Name, &'static str> {
    let mut architectures: BTreeMap<&Name, Vec<&'static str>> = BTreeMap::new();
    for (architecture, modules) in compiled {
        if architecture.name != "sm_89" {
            for name in modules.keys() {
                architectures
                    .entry(name)
                    .or_default()
                    .push(architecture.name);
            }
        }
    }
    architectures
        .into_iter()
        .step_by(every)
        .enumerate()
        .map(|(turn, (name, has))| (name, has[turn % has.len()]))
        .collect()
}

/// Kernels that have CUDA C and no problem here.
pub fn unplanned(info: &DeviceInfo) -> Vec<&'static str> {
    let planned: BTreeSet<&str> = modules(info).keys().map(|(name, _)| *name).collect();
    let shipped = ropeway_kernels::ops()
        .into_iter()
        .flat_map(|op| op.kernels());
    let mut missing: Vec<&str> = shipped
        .filter(|kernel| is_for(kernel, info) && !planned.contains(kernel.name))
        .map(|kernel| kernel.name)
        .collect();
    missing.sort_unstable();
    missing.dedup();
    missing
}

fn is_for(kernel: &'static Kernel, info: &DeviceInfo) -> bool {
    kernel.source_for(info).is_ok()
}

/// The text of a module and the options it is compiled with.
pub fn source(key: &ModuleKey, architecture: Architecture) -> (String, Vec<String>) {
    let source = key.kernel.source_for(&architecture.info());
    let Code::Text(pieces) = source.expect("it was planned").code else {
        panic!("{} has no text", key.kernel.name);
    };
    let text = pieces
        .iter()
        .map(|(name, text)| format!("#line 1 \"{name}\"\n{text}\n"))
        .collect();
    let mut options = vec![
        format!("--gpu-architecture={}", architecture.name),
        "--std=c++17".to_owned(),
    ];
    let defines = key.config.defines();
    options.extend(defines.map(|(name, value)| format!("-D{name}={value}")));
    (text, options)
}

/// The benchmarks' workloads, which are the shapes of models and engines, in each of their dtypes; and what they leave out.
fn problems() -> Vec<Box<dyn Op>> {
    let folder = Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../benches/definitions"
    ));
    let mut texts: Vec<String> = fs::read_dir(folder)
        .expect("the benchmarks' definitions")
        .map(|entry| fs::read_to_string(entry.expect("an entry").path()).expect("a definition"))
        .collect();
    texts.push(include_str!("problems.toml").to_owned());
    let mut problems = Vec::new();
    for text in texts {
        let definition: Value = toml::from_str(&text).expect("a definition");
        for workload in definition["workload"].as_array().expect("workloads") {
            for dtype in workload["dtypes"].as_array().expect("dtypes") {
                let dtype = dtype.as_str().and_then(DType::from_name);
                problems.push(problem(workload, dtype.expect("a dtype")));
            }
        }
    }
    problems
}

fn problem(workload: &Value, dtype: DType) -> Box<dyn Op> {
    let tensors = workload["tensors"].as_object().expect("tensors");
    let attrs = workload.get("attrs").and_then(Value::as_object);
    let signature = Signature {
        tensors: tensors
            .iter()
            .map(|(name, words)| (name.clone(), tensor(words, dtype)))
            .collect(),
        attrs: attrs.cloned().unwrap_or_else(Map::new),
    };
    let name = workload["op"].as_str().expect("an op");
    let op = ropeway_kernels::op(name).unwrap_or_else(|| panic!("no op {name}"));
    op.parse(&signature)
        .unwrap_or_else(|error| panic!("{workload}: {error}"))
}

/// "T 4096 64": dtype (T: that of the workload) and extents.
fn tensor(words: &Value, dtype: DType) -> TensorDesc {
    let mut words = words.as_str().expect("a tensor").split_whitespace();
    let dtype = match words.next().expect("a dtype") {
        "T" => dtype,
        name => DType::from_name(name).expect("a dtype"),
    };
    let shape: Vec<u64> = words.map(|word| word.parse().expect("an extent")).collect();
    TensorDesc::contiguous(dtype, &shape).expect("a shape")
}
