//! Kernels: sources in several languages, and the manifest that says how they may be configured.
//!
//! A [`Kernel`] is static data that lies beside its sources. Its tunables, their constraints and its local-memory formula stand
//! here once, for the planner, the tuner and the tests. A [`Config`] is one choice: a value for every tunable, and the
//! dtypes and other constants that a plan fixes. Source and configuration together name one compiled module.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash, Hasher};

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::info::DeviceInfo;
use crate::native::NativeFn;

/// A language a device may take kernels in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Language {
    /// Rust functions, for the cpu device.
    Native,
    /// OpenCL C 1.2 source.
    OpenClC,
    /// CUDA C++ source, compiled by NVRTC.
    CudaC,
    /// PTX or cubin, compiled beforehand.
    CudaBinary,
    /// SPIR-V for Vulkan; tunables are specialization constants.
    SpirV,
    /// AscendC source, compiled by `aclrtc`.
    AscendC,
    /// An AscendC kernel binary, compiled beforehand.
    AscendBinary,
}

/// The code of a source.
#[derive(Clone, Copy)]
pub enum Code {
    /// Pieces of text, compiled as one file in this order: `(file name, text)`.
    Text(&'static [(&'static str, &'static str)]),
    /// A compiled binary of all entries, for every configuration.
    Binary(&'static [u8]),
    /// Compiled binaries, one for each entry and choice of dtypes (see [`Source::binary`]).
    Binaries(&'static [Binary]),
    /// Rust functions by entry name.
    Native(&'static [(&'static str, NativeFn)]),
}

/// A compiled binary of one entry, for the configurations that say what it was compiled with. What else a configuration holds is
/// the binary's to take at run time (Vulkan: as specialization constants).
#[derive(Clone, Copy)]
pub struct Binary {
    /// The entry, by the name that plans use.
    pub entry: &'static str,
    /// The dtypes that are compiled in.
    pub dtypes: &'static [(&'static str, DType)],
    /// The constants that are compiled in.
    pub constants: &'static [(&'static str, i64)],
    /// The code.
    pub code: &'static [u8],
}

impl Binary {
    fn is_of(&self, config: &Config) -> bool {
        self.dtypes
            .iter()
            .all(|(name, dtype)| config.dtype(name) == Some(*dtype))
            && self
                .constants
                .iter()
                .all(|(name, value)| config.get(name) == Some(*value))
    }
}

impl fmt::Debug for Binary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.entry)?;
        for (name, dtype) in self.dtypes {
            write!(f, " {name}={dtype}")?;
        }
        for (name, value) in self.constants {
            write!(f, " {name}={value}")?;
        }
        Ok(())
    }
}

/// A kernel in one language.
#[derive(Clone, Copy)]
pub struct Source {
    /// The language.
    pub language: Language,
    /// The code.
    pub code: Code,
    /// Capabilities (see [`DeviceInfo::features`]) without which it does not compile or run.
    pub requires: &'static [&'static str],
}

impl Source {
    /// The binary of an entry that was compiled for the dtypes of a configuration: the first that fits.
    ///
    /// # Errors
    /// `InvalidArgument` if there is no such entry, `Unsupported` if it was not compiled for these dtypes or the code is no
    /// [`Code::Binaries`].
    pub fn binary(&self, entry: &str, config: &Config) -> Result<&'static Binary> {
        let Code::Binaries(binaries) = self.code else {
            return Err(Error::unsupported(format!(
                "{:?} that is not compiled beforehand",
                self.language
            )));
        };
        let mut entries = binaries
            .iter()
            .filter(|binary| binary.entry == entry)
            .peekable();
        if entries.peek().is_none() {
            let mut names: Vec<_> = binaries.iter().map(|binary| binary.entry).collect();
            names.dedup();
            return Err(Error::invalid("entry", entry, format!("one of {names:?}")));
        }
        entries
            .find(|binary| binary.is_of(config))
            .ok_or_else(|| Error::unsupported(format!("{entry} is not compiled for {config}")))
    }
}

/// A number that a source takes at compile time and that may be chosen for speed.
#[derive(Clone, Copy, Debug)]
pub struct Tunable {
    /// The macro or specialization constant (`"TILE_M"`).
    pub name: &'static str,
    /// The values worth trying.
    pub values: &'static [i64],
    /// The value without tuning; one of `values`.
    pub default: i64,
    /// What it decides.
    pub meaning: &'static str,
}

/// A rule that tunables obey together.
#[derive(Clone, Copy)]
pub struct Constraint {
    /// The rule in words (`"GROUP_M * GROUP_N <= max work-group size"`).
    pub rule: &'static str,
    /// Whether a configuration obeys it on a device.
    pub holds: fn(&Config, &DeviceInfo) -> bool,
}

/// A kernel as Ropeway ships it: sources and manifest.
pub struct Kernel {
    /// Unique name (`"gemm_packed"`); in reports, tuned entries and cache keys.
    pub name: &'static str,
    /// What it does and for which shapes, in one sentence.
    pub summary: &'static str,
    /// Counts up when a tunable's meaning changes, so that old tuned entries are not misread.
    pub version: u32,
    /// One per language it exists in.
    pub sources: &'static [Source],
    /// What may be chosen.
    pub tunables: &'static [Tunable],
    /// Rules among the tunables.
    pub constraints: &'static [Constraint],
    /// Bytes of local (shared) memory a work-group needs under a configuration.
    pub local_memory: fn(&Config) -> u64,
}

impl Kernel {
    /// The source for the most wanted language of a device for which it has what the source requires.
    ///
    /// # Errors
    /// `Unsupported`, naming the languages or the capability that is missing.
    pub fn source_for(&'static self, info: &DeviceInfo) -> Result<&'static Source> {
        let mut lack = format!("kernel {} has no source in {:?}", self.name, info.languages);
        for language in &info.languages {
            for source in self.sources.iter().filter(|s| s.language == *language) {
                match source.requires.iter().find(|feature| !info.has(feature)) {
                    None => return Ok(source),
                    Some(feature) => lack = format!("kernel {} needs {feature}", self.name),
                }
            }
        }
        Err(Error::unsupported(lack))
    }

    /// Every tunable at its default.
    pub fn default_config(&self) -> Config {
        let mut config = Config::default();
        for tunable in self.tunables {
            config.set(tunable.name, tunable.default);
        }
        config
    }

    /// Whether a configuration names every tunable with a listed value, obeys the constraints and fits the device.
    ///
    /// # Errors
    /// `InvalidArgument` naming the tunable or the rule.
    pub fn validate(&self, config: &Config, info: &DeviceInfo) -> Result<()> {
        for tunable in self.tunables {
            match config.get(tunable.name) {
                Some(value) if tunable.values.contains(&value) => {}
                found => {
                    return Err(Error::invalid(
                        tunable.name,
                        found.map_or("nothing".into(), |v| v.to_string()),
                        format!("one of {:?} ({})", tunable.values, self.name),
                    ));
                }
            }
        }
        if let Some(broken) = self.constraints.iter().find(|c| !(c.holds)(config, info)) {
            return Err(Error::invalid(self.name, config, broken.rule));
        }
        let local = (self.local_memory)(config);
        if local > info.limits.local_memory {
            return Err(Error::invalid(
                self.name,
                format!("{local} bytes of local memory ({config})"),
                format!("at most {}", info.limits.local_memory),
            ));
        }
        Ok(())
    }
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kernel({})", self.name)
    }
}

/// The constant by which a planner has a kernel begin before the launch before it in the queue has ended (CUDA: programmatic dependent launch), so
/// that the time between launches is not lost. The source then waits for that launch itself before it touches memory. Devices that have no such
/// launches pass it on to the source like any other constant.
pub const DEPENDENT_LAUNCH: &str = "DEPENDENT_LAUNCH";

/// Constants for one compilation: tunables and dtype variants by name. Prints itself, and parses back.
///
/// Dtypes are compile-time variants ([`Config::set_dtype`]): a backend whose binaries are made beforehand picks the
/// binary by them, and passes the rest as specialization constants.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Config {
    constants: BTreeMap<String, i64>,
    dtypes: BTreeMap<String, DType>,
}

impl Config {
    /// Sets a constant.
    pub fn set(&mut self, name: &str, value: i64) -> &mut Config {
        self.constants.insert(name.to_owned(), value);
        self
    }

    /// Sets the dtype that sources know as `name` (`"A_DTYPE"`).
    pub fn set_dtype(&mut self, name: &str, dtype: DType) -> &mut Config {
        self.dtypes.insert(name.to_owned(), dtype);
        self
    }

    /// A constant's value.
    pub fn get(&self, name: &str) -> Option<i64> {
        self.constants.get(name).copied()
    }

    /// A constant that the kernel's manifest or planner has set.
    ///
    /// # Panics
    /// If it is missing: a fault of the op's planner, not of its caller.
    pub fn value(&self, name: &str) -> i64 {
        self.get(name)
            .unwrap_or_else(|| panic!("the planner set no {name} (config: {self})"))
    }

    /// The dtype that sources know as `name`.
    pub fn dtype(&self, name: &str) -> Option<DType> {
        self.dtypes.get(name).copied()
    }

    /// All constants, in order of name.
    pub fn constants(&self) -> impl Iterator<Item = (&str, i64)> {
        self.constants
            .iter()
            .map(|(name, value)| (name.as_str(), *value))
    }

    /// All dtypes, in order of name.
    pub fn dtypes(&self) -> impl Iterator<Item = (&str, DType)> {
        self.dtypes
            .iter()
            .map(|(name, dtype)| (name.as_str(), *dtype))
    }

    /// Constants and dtype codes alike, as a compiler's `-D` wants them.
    pub fn defines(&self) -> impl Iterator<Item = (&str, i64)> {
        self.constants()
            .chain(self.dtypes().map(|(name, dtype)| (name, dtype.code())))
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (name, value) in self.constants() {
            write!(f, "{separator}{name}={value}")?;
            separator = " ";
        }
        for (name, dtype) in self.dtypes() {
            write!(f, "{separator}{name}={dtype}")?;
            separator = " ";
        }
        Ok(())
    }
}

/// Kernel and configuration: what one compiled module is made of. Compared by name, not by address.
#[derive(Clone)]
pub struct ModuleKey {
    /// The kernel.
    pub kernel: &'static Kernel,
    /// Its configuration.
    pub config: Config,
}

impl PartialEq for ModuleKey {
    fn eq(&self, other: &ModuleKey) -> bool {
        self.kernel.name == other.kernel.name && self.config == other.config
    }
}

impl Eq for ModuleKey {}

impl Hash for ModuleKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.kernel.name.hash(state);
        self.config.hash(state);
    }
}

impl fmt::Debug for ModuleKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}]", self.kernel.name, self.config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    const fn binary(
        entry: &'static str,
        dtypes: &'static [(&'static str, DType)],
        constants: &'static [(&'static str, i64)],
        code: &'static [u8],
    ) -> Binary {
        Binary {
            entry,
            dtypes,
            constants,
            code,
        }
    }

    static SOURCE: Source = Source {
        language: Language::SpirV,
        code: Code::Binaries(&[
            binary("gemm", &[("A", DType::F32), ("B", DType::F16)], &[], b"1"),
            binary("gemm", &[("A", DType::F32), ("B", DType::F32)], &[], b"2"),
            binary("pack", &[("A", DType::F32)], &[("TRANSPOSED", 1)], b"3"),
            binary("pack", &[("A", DType::F32)], &[], b"4"),
        ]),
        requires: &[],
    };

    #[test]
    fn a_binary_is_picked_by_what_is_compiled_in() {
        let mut config = Config::default();
        config.set("TILE", 8);
        config
            .set_dtype("A", DType::F32)
            .set_dtype("B", DType::F32)
            .set_dtype("D", DType::F16);
        let code = |entry, config: &Config| SOURCE.binary(entry, config).map(|found| found.code);
        assert_eq!(code("gemm", &config), Ok(&b"2"[..]));
        assert_eq!(code("pack", &config), Ok(&b"4"[..]));
        config.set("TRANSPOSED", 1).set_dtype("B", DType::F16);
        assert_eq!(code("gemm", &config), Ok(&b"1"[..]));
        assert_eq!(code("pack", &config), Ok(&b"3"[..]));
        config.set_dtype("A", DType::BF16);
        let kind = |entry| code(entry, &config).expect_err("none fits").kind();
        assert_eq!(kind("gemm"), ErrorKind::Unsupported);
        assert_eq!(kind("other"), ErrorKind::InvalidArgument);
    }
}
