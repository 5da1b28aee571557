//! The points of a search: every configuration of every candidate kernel that is valid on the device and can be planned.
//!
//! The values of a kernel's tunables are walked as an odometer, and each prefix that breaks the manifest's rules is left out
//! before anything is compiled: a search never spends time on an invalid point.

use std::collections::BTreeMap;

use ropeway::tuned::source_hash;
use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::{Config, Kernel};
use ropeway_core::op::{Op, PlanRequest};
use ropeway_core::spec::Random;
use ropeway_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::Point;
use super::question::questions;

/// A kernel whose space is larger is sampled, not enumerated.
const MOST_POINTS: usize = 20_000;

/// Where a planner looks for a tuned configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// The op.
    pub op: String,
    /// Dtypes and layout.
    pub variant: String,
    /// The sizes.
    pub sizes: BTreeMap<String, u64>,
}

/// One tunable of the space's kernels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Axis {
    /// Its name.
    pub name: String,
    /// The values that some kernel lists, ascending.
    pub values: Vec<i64>,
}

/// What can be tried for a target on a device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Space {
    /// Where the result will be looked for.
    pub key: Key,
    /// The valid points, those of the preferred kernel first.
    pub points: Vec<Point>,
    /// The planner's own choice, an index into `points`.
    pub default: usize,
    /// The default configuration of each candidate kernel, indices into `points`.
    pub kernel_defaults: Vec<usize>,
    /// What an entry says of each candidate kernel: its manifest version, and a hash of its source for the device.
    pub kernels: BTreeMap<String, (u32, String)>,
    /// The tunables by name.
    pub axes: Vec<Axis>,
    /// Points of the full product of values that a rule, the device or the planner excludes.
    pub excluded: usize,
}

/// The key under which the planner looks for a problem's configuration.
///
/// # Errors
/// `Unsupported` if the device cannot run it, or its planner asks for none.
pub fn key(op: &dyn Op, info: &DeviceInfo) -> Result<Key> {
    // The first question is the op's own; steps of an op may have keys of their own.
    let first = questions(op, info)?.into_iter().next();
    let asked =
        first.ok_or_else(|| Error::unsupported(format!("{} has nothing to tune", op.name())))?;
    let sizes = asked.sizes.into_iter();
    Ok(Key {
        op: asked.op,
        variant: asked.variant,
        sizes: sizes.map(|(name, size)| (name.to_owned(), size)).collect(),
    })
}

/// A configuration's values of a kernel's tunables.
fn point(kernel: &Kernel, config: &Config) -> Point {
    let value = |name: &str| config.get(name).unwrap_or_default();
    Point {
        kernel: kernel.name.into(),
        config: kernel
            .tunables
            .iter()
            .map(|tunable| (tunable.name.to_owned(), value(tunable.name)))
            .collect(),
    }
}

impl Space {
    /// Of a problem on a device. `seed` draws from kernels that have too many points to list.
    ///
    /// # Errors
    /// `Unsupported` if the device cannot run it.
    pub fn new(op: &dyn Op, info: &DeviceInfo, seed: u64) -> Result<Space> {
        let mut space = Space {
            key: key(op, info)?,
            points: Vec::new(),
            default: 0,
            kernel_defaults: Vec::new(),
            kernels: BTreeMap::new(),
            axes: Vec::new(),
            excluded: 0,
        };
        let candidates = op.candidates(info)?;
        for kernel in &candidates {
            let source = source_hash(kernel, info);
            space
                .kernels
                .insert(kernel.name.into(), (kernel.version, source));
            space.add_axes(kernel);
            let all = combinations(kernel);
            let configs = match all > MOST_POINTS as u128 {
                true => sample(kernel, info, seed),
                false => enumerate(kernel, info),
            };
            space.excluded += (all.min(MOST_POINTS as u128) as usize).saturating_sub(configs.len());
            for config in configs {
                let request = PlanRequest {
                    kernel: Some(kernel.name),
                    config: Some(&config),
                    ..PlanRequest::new(info)
                };
                match op.plan(&request) {
                    Ok(_) => {
                        if config == kernel.default_config() {
                            space.kernel_defaults.push(space.points.len());
                        }
                        space.points.push(point(kernel, &config));
                    }
                    Err(_) => space.excluded += 1,
                }
            }
        }
        space.axes.sort_by(|a, b| a.name.cmp(&b.name));
        let chosen = op.plan(&PlanRequest::new(info))?;
        let default = chosen.modules.iter().find_map(|module| {
            let kernel = candidates.iter().find(|k| k.name == module.kernel.name)?;
            let wanted = point(kernel, &kernel.default_config());
            space.points.iter().position(|point| *point == wanted)
        });
        space.default = default.ok_or_else(|| {
            let modules = &chosen.modules;
            Error::unsupported(format!("the default {modules:?} is none of the candidates"))
        })?;
        Ok(space)
    }

    fn add_axes(&mut self, kernel: &Kernel) {
        for tunable in kernel.tunables {
            let position = self.axes.iter().position(|axis| axis.name == tunable.name);
            let axis = match position {
                Some(position) => &mut self.axes[position],
                None => {
                    self.axes.push(Axis {
                        name: tunable.name.into(),
                        values: Vec::new(),
                    });
                    self.axes.last_mut().expect("just pushed")
                }
            };
            axis.values.extend(tunable.values);
            axis.values.sort_unstable();
            axis.values.dedup();
        }
    }
}

/// The number of points before any rule.
fn combinations(kernel: &Kernel) -> u128 {
    let lengths = kernel.tunables.iter().map(|t| t.values.len() as u128);
    lengths.product()
}

/// The configuration of this number in the product of all values, the last tunable turning fastest.
fn numbered(kernel: &Kernel, mut number: u128) -> Config {
    let mut config = Config::default();
    for tunable in kernel.tunables.iter().rev() {
        let count = tunable.values.len() as u128;
        config.set(tunable.name, tunable.values[(number % count) as usize]);
        number /= count;
    }
    config
}

fn enumerate(kernel: &Kernel, info: &DeviceInfo) -> Vec<Config> {
    let all = (0..combinations(kernel)).map(|number| numbered(kernel, number));
    all.filter(|config| kernel.validate(config, info).is_ok())
        .collect()
}

/// The default and different valid points drawn evenly, as many as may be listed or as a bounded number of draws gives.
fn sample(kernel: &Kernel, info: &DeviceInfo, seed: u64) -> Vec<Config> {
    let all = combinations(kernel);
    let mut random = Random::new(seed ^ ropeway_core::spec::seed_of(kernel.name));
    let mut found = std::collections::BTreeSet::from([kernel.default_config()]);
    for _ in 0..4 * MOST_POINTS {
        let wide = u128::from(random.next()) << 64 | u128::from(random.next());
        found.insert(numbered(kernel, wide % all));
        if found.len() == MOST_POINTS {
            break;
        }
    }
    let valid = found.into_iter();
    valid
        .filter(|config| kernel.validate(config, info).is_ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use ropeway::Registry;
    use ropeway_core::kernel::{Constraint, Tunable};

    use super::*;
    use crate::definition::{BUILT_IN, Definition};

    fn info() -> DeviceInfo {
        let cpu = Registry::default().open("cpu").expect("always there");
        cpu.info().clone()
    }

    const fn tunable(name: &'static str, values: &'static [i64]) -> Tunable {
        Tunable {
            name,
            values,
            default: values[0],
            meaning: "",
        }
    }

    const fn kernel(tunables: &'static [Tunable], constraints: &'static [Constraint]) -> Kernel {
        Kernel {
            name: "tested",
            summary: "",
            version: 1,
            sources: &[],
            tunables,
            constraints,
            local_memory: |config| 1024 * config.value("A") as u64,
        }
    }

    #[test]
    fn only_valid_points_are_listed_and_all_of_them() {
        const EVEN: Constraint = Constraint {
            rule: "A + B is even",
            holds: |config, _| (config.value("A") + config.value("B")) % 2 == 0,
        };
        static KERNEL: Kernel = kernel(
            &[
                tunable("A", &[1, 2, 3, 1 << 20]),
                tunable("B", &[1, 2, 3, 4]),
            ],
            &[EVEN],
        );
        let mut info = info();
        info.limits.local_memory = 4096;
        let found = enumerate(&KERNEL, &info);
        let pairs: Vec<_> = found.iter().map(|c| (c.value("A"), c.value("B"))).collect();
        assert_eq!(pairs, [(1, 1), (1, 3), (2, 2), (2, 4), (3, 1), (3, 3)]);
    }

    #[test]
    fn a_vast_space_is_sampled_with_the_default_in_it() {
        const MANY: &[i64] = &{
            let mut values = [0; 64];
            let mut i = 0;
            while i < 64 {
                values[i] = i as i64;
                i += 1;
            }
            values
        };
        static KERNEL: Kernel = kernel(
            &[
                tunable("A", &[1, 2]),
                tunable("B", MANY),
                tunable("C", MANY),
                tunable("D", MANY),
                tunable("E", MANY),
            ],
            &[],
        );
        let mut info = info();
        info.limits.local_memory = 4096;
        let found = sample(&KERNEL, &info, 7);
        assert_eq!(found.len(), MOST_POINTS);
        assert!(found.contains(&KERNEL.default_config()));
        assert_eq!(found, sample(&KERNEL, &info, 7), "a seed gives one sample");
        assert_ne!(found, sample(&KERNEL, &info, 8));
    }

    /// Every workload that ships has a space on every device that is here, and the planner's own choice is in it.
    #[test]
    fn what_ships_has_a_space_with_its_default_in_it() {
        let registry = Registry::default();
        let mut spaces = 0;
        for probe in registry.probe() {
            for device in probe.devices.unwrap_or_default() {
                for (_, text) in BUILT_IN {
                    for workload in Definition::parse(text).unwrap().workloads {
                        for dtype in &workload.dtypes {
                            let Ok(op) = workload.op(dtype) else { continue };
                            let Ok(space) = Space::new(&*op, &device, 1) else {
                                continue;
                            };
                            assert!(space.kernel_defaults.contains(&space.default));
                            assert_eq!(space.key.op, workload.op.replace("_masked", ""));
                            spaces += 1;
                        }
                    }
                }
            }
        }
        assert!(spaces > 0);
    }
}
