//! Kernels that were compiled beforehand, for machines with a driver and no NVRTC.
//!
//! They lie in a directory in the form of [`crate::cache`], under keys that name the source, the options and the architecture, and not
//! the NVRTC that made them. A device takes machine code of its own architecture in place of compiling. Without NVRTC it also takes
//! machine code of an earlier one of its generation, or PTX, which the driver compiles.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use ropeway_core::device::OpenOptions;
use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::{Code, Config, Language, Source};
use ropeway_core::{Error, Result};

use super::compile::{options, text};
use super::nvrtc::{self, Output};
use super::sys::RawModule;
use super::{CAPABILITIES, described};
use crate::cache::{Cache, Key};

/// What a kernel is compiled for: machine code of one architecture (`sm_80`, `sm_90a`), or PTX for it and every later one (`compute_80`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    capability: u32,
    /// With the instructions that no other architecture has.
    only: bool,
    output: Output,
}

impl Target {
    pub(super) fn new(capability: u32, output: Output) -> Target {
        Target {
            capability,
            only: false,
            output,
        }
    }

    /// The machine code that a device runs best: where an architecture has instructions of its own (9.0: wgmma), with these.
    pub(super) fn own(capability: u32) -> Target {
        Target {
            only: capability >= 90,
            ..Target::new(capability, Output::Cubin)
        }
    }

    /// PTX for this architecture with what no other has.
    pub(super) fn own_ptx(capability: u32) -> Target {
        Target {
            output: Output::Ptx,
            ..Target::own(capability)
        }
    }

    /// The described GPUs that can load it, the one that has the least first.
    ///
    /// # Errors
    /// None: a target's capability is a known one.
    pub fn devices(&self) -> Result<Vec<DeviceInfo>> {
        let loads = |capability: &u32| match self.output {
            _ if self.only => *capability == self.capability,
            Output::Cubin => is_generation(self.capability, *capability),
            Output::Ptx => *capability >= self.capability,
        };
        let lists = CAPABILITIES.into_iter().filter(loads).map(described);
        Ok(lists.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.output {
            Output::Cubin => "sm",
            Output::Ptx => "compute",
        };
        write!(f, "{name}_{}", self.capability)?;
        f.write_str(if self.only { "a" } else { "" })
    }
}

impl FromStr for Target {
    type Err = Error;

    fn from_str(name: &str) -> Result<Target> {
        let all = CAPABILITIES.into_iter().flat_map(|capability| {
            [Output::Cubin, Output::Ptx].into_iter().flat_map(move |output| {
                let plain = Target::new(capability, output);
                let only = Target { only: true, ..plain };
                std::iter::once(plain).chain((capability >= 90).then_some(only))
            })
        });
        let known: Vec<Target> = all.collect();
        let found = known.iter().find(|target| target.to_string() == name);
        found.copied().ok_or_else(|| {
            let names: Vec<_> = known.iter().map(Target::to_string).collect();
            Error::invalid("architecture", name, format!("one of {}", names.join(", ")))
        })
    }
}

/// Whether machine code of one capability runs on another: of the same generation, and no later. The chips for vehicles and robots (7.2, 8.7)
/// keep to themselves.
fn is_generation(code: u32, device: u32) -> bool {
    code == device || (code / 10 == device / 10 && code < device && ![code, device].iter().any(|c| matches!(c, 72 | 87)))
}

/// The key of a kernel that was compiled beforehand.
fn key(text: &str, config: &Config, target: Target) -> Key {
    let options = options(config, &target.to_string());
    Key::new(&[text, &options.join(" "), "cuda binary"])
}

/// Compiles a kernel beforehand, into a directory that [`OpenOptions::binaries_dir`] will name. No GPU is needed.
///
/// # Errors
/// `Unsupported` without NVRTC, `CompileFailed` (also for a target that NVRTC does not know), `File` if it cannot be kept.
pub fn precompile(source: &Source, config: &Config, target: Target, into: &Cache) -> Result<()> {
    let (Language::CudaC, Code::Text(pieces)) = (source.language, source.code) else {
        let found = format!("{:?} that is no text", source.language);
        return Err(Error::unsupported(found));
    };
    let text = text(pieces);
    let options = options(config, &target.to_string());
    let binary = nvrtc::compile(&text, &options, target.output)?;
    into.keep(&key(&text, config, target), &binary)
}

/// Where a device looks for them.
pub(super) struct Binaries(Option<Cache>);

impl Binaries {
    pub(super) fn open(options: &OpenOptions) -> Binaries {
        let open = |directory: &Path| match directory.is_dir() {
            // Opening would make it.
            true => Cache::open(directory),
            false => Err(Error::invalid("binaries_dir", directory.display(), "a directory")),
        };
        let opened = options.binaries_dir.as_deref().map(open).transpose();
        Binaries(opened.unwrap_or_else(|error| {
            tracing::warn!(%error, "no kernels are loaded that were compiled beforehand");
            None
        }))
    }

    /// The module of this source, for the first of these targets for which there is one that the driver takes. `refused` hears of those that it
    /// does not take.
    pub(super) fn load(
        &self,
        text: &str,
        config: &Config,
        targets: &[Target],
        mut refused: impl FnMut(Target, Error) -> Result<()>,
    ) -> Result<Option<RawModule>> {
        let Some(cache) = &self.0 else {
            return Ok(None);
        };
        for target in targets {
            let Some(binary) = cache.load(&key(text, config, *target)) else {
                continue;
            };
            match RawModule::load(&binary) {
                Ok(module) => return Ok(Some(module)),
                Err(error) => refused(*target, error)?,
            }
        }
        Ok(None)
    }
}

/// What a device can load, best first: its own machine code, earlier machine code of its generation, then PTX, the newest first.
pub(super) fn loadable(capability: u32) -> Vec<Target> {
    let earlier = || CAPABILITIES.into_iter().rev().filter(move |known| *known <= capability);
    let cubins = earlier()
        .filter(|known| is_generation(*known, capability))
        .map(|known| Target::new(known, Output::Cubin));
    let ptx = earlier().map(|known| Target::new(known, Output::Ptx));
    let own = Target::own(capability);
    let own_ptx = Target::own_ptx(capability);
    let mut all: Vec<Target> = std::iter::once(own).chain(cubins).chain([own_ptx]).chain(ptx).collect();
    // Where there is no `a`, the first of each are the second.
    all.dedup();
    all
}

impl Target {
    /// Whether it is machine code.
    pub(super) fn is_machine_code(&self) -> bool {
        self.output == Output::Cubin
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(capability: u32) -> Vec<String> {
        loadable(capability).iter().map(Target::to_string).collect()
    }

    #[test]
    fn a_device_prefers_its_own_code_then_its_generations_then_ptx() {
        assert_eq!(names(75), ["sm_75", "sm_70", "compute_75", "compute_72", "compute_70"]);
        assert_eq!(names(86)[..4], ["sm_86", "sm_80", "compute_86", "compute_80"]);
        assert_eq!(names(90)[..5], ["sm_90a", "sm_90", "compute_90a", "compute_90", "compute_89"]);
        // 8.9 has neither the code nor the PTX of Hopper, and 12.0 not the code of 10.0.
        assert!(!names(89).iter().any(|name| name.contains("90")));
        assert!(names(120).contains(&"compute_100".to_owned()) && !names(120).contains(&"sm_100".to_owned()));
        // Machine code of Orin and Xavier is for them alone.
        assert!(!names(89).contains(&"sm_87".to_owned()) && !names(87).contains(&"sm_86".to_owned()));
    }

    #[test]
    fn targets_are_read_as_they_are_written() {
        for name in ["sm_80", "sm_90", "sm_90a", "compute_80", "compute_120a"] {
            assert_eq!(name.parse::<Target>().expect(name).to_string(), name);
        }
        for name in ["sm_80a", "sm_81", "80", "SM_80", "compute_", ""] {
            let error = name.parse::<Target>().expect_err(name);
            assert_eq!(error.kind(), ropeway_core::ErrorKind::InvalidArgument);
        }
    }

    #[test]
    fn each_target_is_planned_for_the_devices_that_load_it() {
        for name in ["sm_80", "sm_90a", "compute_80"] {
            let target: Target = name.parse().expect(name);
            for info in target.devices().expect(name) {
                let capability = info.architecture.trim_start_matches("sm_").parse().expect("a number");
                assert!(loadable(capability).contains(&target), "{name} on {}", info.name);
            }
        }
        let ptx: Target = "compute_80".parse().expect("a target");
        let architectures: Vec<_> = ptx.devices().expect("devices").into_iter().map(|info| info.architecture).collect();
        assert!(architectures.contains(&"sm_80".to_owned()) && architectures.contains(&"sm_121".to_owned()));
    }
}
