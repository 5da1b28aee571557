//! One tuned configuration, and when it may be believed.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;

use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::{Code, Config, Kernel};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// One tuned configuration. Everything after `config` may be absent, so that an entry can be written by hand.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TunedEntry {
    /// The op.
    pub op: String,
    /// Operand dtypes and layout in one word, as the op's planner spells it.
    pub variant: String,
    /// The sizes it was tuned at.
    pub sizes: BTreeMap<String, u64>,
    /// The kernel.
    pub kernel: String,
    /// The kernel's manifest version.
    pub version: u32,
    /// The tunables.
    pub config: BTreeMap<String, i64>,
    /// What it was measured at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
    /// What it was measured with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provenance: Option<Provenance>,
}

/// What the last round of the finalists gave, and the conformance cases.
///
/// `seconds` equal to `default_seconds` under the default's own kernel says that the default itself won: such an entry keeps the look-up from
/// bringing in a neighbour's configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// Median in seconds.
    pub seconds: f64,
    /// Median of the distances from the median, in seconds.
    pub deviation: f64,
    /// Samples of each of the two medians.
    pub samples: u32,
    /// The kernel that runs without tuning; with its default tunables it is what was measured against.
    pub default_kernel: String,
    /// The default's median in seconds.
    pub default_seconds: f64,
    /// Median of the default's distances from it, in seconds.
    pub default_deviation: f64,
    /// The largest error of the conformance cases, divided by their bound.
    pub error_over_bound: f64,
    /// Sizes along which it was held to the default at other places of its bucket, too, and does not lose there. It serves other values of
    /// these sizes than its own, and of no others.
    #[serde(default)]
    pub along: Vec<String>,
}

/// What an entry was measured with. Where it no longer holds, the entry is stale: used, and to be verified again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// The driver's version.
    pub driver: String,
    /// The run-time compiler's version.
    pub compiler: String,
    /// Hash of the kernel's source (see [`source_hash`]).
    pub source: String,
    /// Ropeway's version.
    pub ropeway: String,
    /// The day in UTC, `2026-01-31`.
    pub date: String,
    /// The seed of the search.
    pub seed: u64,
}

/// Longest name in an entry.
const LONGEST_NAME: usize = 200;

/// Most sizes or tunables of an entry.
const MOST_NAMES: usize = 64;

impl TunedEntry {
    /// How many times faster than the default it was measured.
    pub fn gain(&self) -> Option<f64> {
        let measured = self.measured.as_ref()?;
        Some(measured.default_seconds / measured.seconds)
    }

    /// True if it says that nothing was found that beats the default.
    pub fn keeps_default(&self) -> bool {
        self.measured.as_ref().is_some_and(|measured| {
            measured.seconds == measured.default_seconds && measured.default_kernel == self.kernel
        })
    }

    /// Whether it says anything of a problem of other sizes: those that differ are ones along which it was held to the default. An entry
    /// that was never measured says what its author meant, of its whole bucket.
    pub fn reaches(&self, sizes: &[(&str, u64)]) -> bool {
        let Some(measured) = &self.measured else {
            return true;
        };
        self.differs_from(sizes)
            .all(|name| measured.along.iter().any(|along| along == name))
    }

    /// The sizes that differ from a problem's.
    pub(super) fn differs_from<'a>(
        &'a self,
        sizes: &[(&str, u64)],
    ) -> impl Iterator<Item = &'a str> {
        let same = |name: &str, size: u64| sizes.contains(&(name, size));
        let differ = self
            .sizes
            .iter()
            .filter(move |(name, size)| !same(name, **size));
        differ.map(|(name, _)| name.as_str())
    }

    /// The tunables as a planner takes them.
    pub fn configuration(&self) -> Config {
        let mut config = Config::default();
        for (name, value) in &self.config {
            config.set(name, *value);
        }
        config
    }

    /// The sizes of its bucket by name: the exponent of the power of two that each is rounded up to.
    pub fn bucket(&self) -> Vec<(&str, u32)> {
        self.sizes
            .iter()
            .map(|(name, size)| (name.as_str(), exponent(*size)))
            .collect()
    }

    /// Why it may not be used, whatever the device: numbers that no measurement gives, slower than the default, or wrong.
    pub fn fault(&self) -> Option<String> {
        let names = [&self.op, &self.variant, &self.kernel];
        let names = names
            .into_iter()
            .chain(self.sizes.keys())
            .chain(self.config.keys());
        if let Some(name) = names.into_iter().find(|name| !is_name(name)) {
            return Some(format!("{name:?} is no name"));
        }
        if self.sizes.len() > MOST_NAMES || self.config.len() > MOST_NAMES {
            return Some(format!("more than {MOST_NAMES} sizes or tunables"));
        }
        if let Some(provenance) = &self.provenance
            && let Some(text) = provenance.texts().into_iter().find(|text| !is_line(text))
        {
            return Some(format!("{text:?} is no line of text"));
        }
        let measured = self.measured.as_ref()?;
        if let Some(name) = measured
            .along
            .iter()
            .find(|name| !self.sizes.contains_key(*name))
        {
            return Some(format!("along {name:?}, which is no size of it"));
        }
        measured.fault()
    }

    /// Which of two entries of the same sizes is to be preferred: the greater. Measured before not, then the greater gain, then an order on
    /// all they hold, so that any two that differ are told apart.
    pub fn preference(&self, other: &TunedEntry) -> Ordering {
        let gain = |entry: &TunedEntry| match entry.fault() {
            Some(_) => f64::NEG_INFINITY,
            None => entry.gain().unwrap_or(0.0),
        };
        gain(self)
            .total_cmp(&gain(other))
            .then_with(|| self.content().cmp(&other.content()))
    }

    /// All it holds as text; the same text for the same bits.
    fn content(&self) -> String {
        format!("{self:?}")
    }
}

/// The exponent of the power of two that a size is rounded up to.
pub fn exponent(size: u64) -> u32 {
    match size {
        0 | 1 => 0,
        size => u64::BITS - (size - 1).leading_zeros(),
    }
}

/// Something that can be printed and looked up: no space, no control character, not endless.
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= LONGEST_NAME
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_-.+:".contains(&byte))
}

/// Text that a terminal shows as one line.
pub(super) fn is_line(text: &str) -> bool {
    text.len() <= 4 * LONGEST_NAME && !text.chars().any(char::is_control)
}

impl Measured {
    fn fault(&self) -> Option<String> {
        let Measured {
            seconds,
            default_seconds,
            error_over_bound,
            ..
        } = *self;
        let time = |seconds: f64| seconds.is_finite() && seconds > 0.0;
        let distance = |seconds: f64| seconds.is_finite() && seconds >= 0.0;
        let sound = time(seconds)
            && time(default_seconds)
            && distance(self.deviation)
            && distance(self.default_deviation)
            && distance(error_over_bound)
            && self.samples > 0
            && is_name(&self.default_kernel);
        if !sound {
            return Some(format!("no measurement gives {self:?}"));
        }
        if error_over_bound > 1.0 {
            return Some(format!("wrong: error / bound is {error_over_bound:.3}"));
        }
        if seconds > default_seconds {
            return Some(format!(
                "measured slower than the default: {seconds:e} s, not {default_seconds:e} s"
            ));
        }
        None
    }
}

impl Provenance {
    /// What holds on a device now.
    pub fn of(
        kernel: &'static Kernel,
        info: &DeviceInfo,
        date: impl Into<String>,
        seed: u64,
    ) -> Provenance {
        Provenance {
            driver: info.driver_version.clone(),
            compiler: info.compiler_version.clone(),
            source: source_hash(kernel, info),
            ropeway: env!("CARGO_PKG_VERSION").into(),
            date: date.into(),
            seed,
        }
    }

    /// What no longer holds of it, in words; nothing if it is fresh.
    pub fn stale(&self, kernel: &'static Kernel, info: &DeviceInfo) -> Vec<String> {
        let now = Provenance::of(kernel, info, "", 0);
        let pairs = [
            ("driver", &self.driver, &now.driver),
            ("compiler", &self.compiler, &now.compiler),
            ("kernel source", &self.source, &now.source),
            ("Ropeway", &self.ropeway, &now.ropeway),
        ];
        pairs
            .into_iter()
            .filter(|(_, then, now)| then != now)
            .map(|(what, then, now)| format!("{what} was {then:?}, is {now:?}"))
            .collect()
    }

    fn texts(&self) -> [&str; 5] {
        [
            &self.driver,
            &self.compiler,
            &self.source,
            &self.ropeway,
            &self.date,
        ]
    }
}

impl fmt::Display for TunedEntry {
    /// Its key: what it is found by.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.op, self.variant)?;
        for (name, size) in &self.sizes {
            write!(f, " {name}={size}")?;
        }
        Ok(())
    }
}

/// Names what a device compiles for a kernel: sixteen hexadecimal digits of the SHA-256 of its source or binaries. The functions of the
/// cpu device have no text; Ropeway's version stands for them. Empty if the kernel does not run on the device.
pub fn source_hash(kernel: &'static Kernel, info: &DeviceInfo) -> String {
    let Ok(source) = kernel.source_for(info) else {
        return String::new();
    };
    let mut hash = Sha256::new();
    match source.code {
        Code::Text(files) => files.iter().for_each(|(name, text)| {
            hash.update(name);
            hash.update([0]);
            hash.update(text);
            hash.update([0]);
        }),
        Code::Binary(code) => hash.update(code),
        Code::Binaries(binaries) => binaries.iter().for_each(|binary| {
            hash.update(format!("{binary:?}\0"));
            hash.update(binary.code);
        }),
        Code::Native(_) => hash.update(env!("CARGO_PKG_VERSION")),
    }
    hash.finalize()
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
