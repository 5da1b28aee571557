//! Finding the configuration for a problem.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::Kernel;
use ropeway_core::op::{TuneKey, Tuned, Tuning, default_choice};
use ropeway_core::{Error, ErrorKind, Result};

use super::between::{self, Point};
use super::entry::{TunedEntry, exponent};
use super::file::read_located;
use super::{TunedTable, data_dir};

/// Most files of a directory that are read.
const MOST_FILES: usize = 1000;

/// Where an entry stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In a file of the user's.
    User(PathBuf),
    /// In a table that comes with Ropeway, by its path in the source tree.
    Shipped(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::User(path) => write!(f, "{}", path.display()),
            Origin::Shipped(path) => write!(f, "{path} (shipped)"),
        }
    }
}

/// How an entry came to serve a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// It was tuned in the problem's bucket.
    Bucket,
    /// It is one of those that surround the problem's bucket and agree.
    Between,
}

/// An entry that serves a problem.
#[derive(Clone, Debug)]
pub struct Found<'a> {
    /// The entry.
    pub entry: &'a TunedEntry,
    /// Where it stands.
    pub origin: &'a Origin,
    /// How it serves.
    pub served: Served,
}

/// An entry in the index.
#[derive(Clone, Debug)]
struct Placed {
    entry: TunedEntry,
    origin: Arc<Origin>,
}

/// By exponent, in the order of the sizes' names.
type Bucket = Vec<u32>;

/// Op, variant and the names of the sizes.
type Family = (String, String, Vec<String>);

/// The entries of one device model or one architecture, from all its tables. Those of one bucket differ in manifest version and stand with
/// the preferred one first.
type Level = HashMap<Family, HashMap<Bucket, Vec<Placed>>>;

/// Backend, and the name of a device or an architecture.
type Model = (String, String);

/// Tuned tables, in memory and ready for the look-up. What is found depends on what the tables hold, never on the order in which they
/// were added.
#[derive(Clone, Debug, Default)]
pub struct TunedTables {
    /// By device.
    user: HashMap<Model, Level>,
    shipped: Arc<Shipped>,
}

#[derive(Clone, Debug, Default)]
struct Shipped {
    by_device: HashMap<Model, Level>,
    by_architecture: HashMap<Model, Level>,
}

/// Read once a process.
static SHIPPED: LazyLock<Arc<Shipped>> = LazyLock::new(|| {
    let mut shipped = Shipped::default();
    for (path, text) in ropeway_kernels::TUNED {
        match TunedTable::parse_located(text) {
            Ok((table, lines)) => shipped.add(table, &lines, path),
            Err(error) => tracing::warn!("{path}: passed over: {}", error.context()),
        }
    }
    Arc::new(shipped)
});

impl TunedTables {
    /// The tables that come with Ropeway and the user's (`tuned/*.toml` in [`data_dir`]). Of files that cannot be read and of entries that
    /// have a [`fault`](TunedEntry::fault) one warning each file is given; they are passed over.
    pub fn load() -> TunedTables {
        let mut tables = TunedTables::shipped();
        if let Some(dir) = data_dir() {
            tables.add_directory(&dir.join("tuned"));
        }
        tables
    }

    /// The tables that come with Ropeway.
    pub fn shipped() -> TunedTables {
        TunedTables {
            user: HashMap::new(),
            shipped: Arc::clone(&SHIPPED),
        }
    }

    /// Adds the tables of a directory as the user's.
    pub fn add_directory(&mut self, directory: &Path) {
        for path in table_files(directory) {
            match read_located(&path) {
                Ok(Some((table, lines))) => self.add_located(table, &lines, Origin::User(path)),
                Ok(None) => {}
                Err(error) => tracing::warn!("passed over: {}", error.context()),
            }
        }
    }

    /// Adds a table, as one of the user's.
    ///
    /// # Errors
    /// `File` with the line for text that is no table.
    pub fn add(&mut self, text: &str) -> Result<()> {
        let (table, lines) = TunedTable::parse_located(text)?;
        self.add_located(table, &lines, Origin::User(PathBuf::from("(text)")));
        Ok(())
    }

    /// Adds a table as if it came with Ropeway.
    pub fn add_shipped(&mut self, table: TunedTable, path: &'static str) {
        Arc::make_mut(&mut self.shipped).add(table, &[], path);
    }

    fn add_located(&mut self, table: TunedTable, lines: &[usize], origin: Origin) {
        warn_of_faults(&table, lines, &origin);
        let model = (table.backend.clone(), table.device.clone());
        let level = self.user.entry(model).or_default();
        insert_all(level, &table, &Arc::new(origin));
    }

    /// The entry that serves a problem, in a planner's order of `candidates`: the user's tables of the device, then those that ship for it,
    /// then those that ship for its architecture. Within each, the entry of the problem's bucket, else what the buckets around it agree on.
    /// An entry that is no valid choice now (another manifest version, a value the device cannot take, measured against another default)
    /// is as good as absent.
    pub fn find(
        &self,
        key: &TuneKey<'_>,
        info: &DeviceInfo,
        candidates: &[&'static Kernel],
    ) -> Option<Found<'_>> {
        let model = |name: &str| (info.backend.to_owned(), name.to_owned());
        let device = model(&info.name);
        let architecture = model(&info.architecture);
        let levels = [
            self.user.get(&device),
            self.shipped.by_device.get(&device),
            self.shipped.by_architecture.get(&architecture),
        ];
        if levels.iter().all(Option::is_none) {
            return None;
        }
        let mut sizes = key.sizes.to_vec();
        sizes.sort_unstable();
        let names = sizes.iter().map(|(name, _)| String::from(*name)).collect();
        let family = (key.op.to_owned(), key.variant.to_owned(), names);
        let bucket: Bucket = sizes.iter().map(|(_, size)| exponent(*size)).collect();
        let default = default_choice(key.op, candidates, info).ok();
        let default = default.map(|(kernel, _)| kernel.name);
        let usable = |placed: &&Placed| is_usable(&placed.entry, default, candidates, info);
        levels.into_iter().flatten().find_map(|level| {
            let buckets = level.get(&family)?;
            let here = buckets.get(&bucket).into_iter().flatten().find(usable);
            let (placed, served) = match here {
                Some(placed) => (placed, Served::Bucket),
                None => {
                    let points = buckets.iter().filter_map(|(bucket, entries)| {
                        let placed = entries.iter().find(usable)?;
                        Some(Point {
                            at: bucket,
                            value: placed,
                            choice: Choice::of(&placed.entry),
                        })
                    });
                    (between::agreed(&bucket, points)?, Served::Between)
                }
            };
            Some(Found {
                entry: &placed.entry,
                origin: &placed.origin,
                served,
            })
        })
    }
}

impl Tuned for TunedTables {
    fn config(
        &self,
        key: &TuneKey<'_>,
        info: &DeviceInfo,
        candidates: &[&'static Kernel],
    ) -> Option<Tuning> {
        let found = self.find(key, info, candidates)?;
        if found.entry.keeps_default() {
            // As the manifest has it today.
            return None;
        }
        tracing::debug!(
            "{} {}: {} by {}, {:?}",
            key.op,
            key.variant,
            found.entry.kernel,
            found.origin,
            found.served
        );
        Some(Tuning {
            kernel: found.entry.kernel.clone(),
            version: found.entry.version,
            config: found.entry.configuration(),
        })
    }
}

impl Shipped {
    fn add(&mut self, table: TunedTable, lines: &[usize], path: &'static str) {
        let origin = Origin::Shipped(path);
        warn_of_faults(&table, lines, &origin);
        let origin = Arc::new(origin);
        let device = (table.backend.clone(), table.device.clone());
        insert_all(self.by_device.entry(device).or_default(), &table, &origin);
        if !table.architecture.is_empty() {
            let architecture = (table.backend.clone(), table.architecture.clone());
            let level = self.by_architecture.entry(architecture).or_default();
            insert_all(level, &table, &origin);
        }
    }
}

/// What entries must agree on to serve what lies between them.
#[derive(PartialEq, Eq, Hash)]
struct Choice<'a> {
    kernel: &'a str,
    version: u32,
    config: &'a BTreeMap<String, i64>,
}

impl Choice<'_> {
    /// None for an entry that says nothing of what lies beside it: never measured, or no faster than the default.
    fn of(entry: &TunedEntry) -> Option<Choice<'_>> {
        let proven = entry.gain().is_some_and(|gain| gain > 1.0);
        proven.then_some(Choice {
            kernel: &entry.kernel,
            version: entry.version,
            config: &entry.config,
        })
    }
}

fn is_usable(
    entry: &TunedEntry,
    default: Option<&str>,
    candidates: &[&'static Kernel],
    info: &DeviceInfo,
) -> bool {
    let same_default = match (&entry.measured, default) {
        (Some(measured), Some(default)) => measured.default_kernel == default,
        _ => true,
    };
    same_default
        && candidates.iter().any(|kernel| {
            kernel.name == entry.kernel
                && kernel.version == entry.version
                && kernel.validate(&entry.configuration(), info).is_ok()
        })
}

fn insert_all(level: &mut Level, table: &TunedTable, origin: &Arc<Origin>) {
    for entry in table.entries.iter().filter(|e| e.fault().is_none()) {
        let names = entry.sizes.keys().cloned().collect();
        let family = (entry.op.clone(), entry.variant.clone(), names);
        let bucket = entry.sizes.values().map(|size| exponent(*size)).collect();
        let buckets = level.entry(family).or_default();
        let entries = buckets.entry(bucket).or_default();
        let placed = Placed {
            entry: entry.clone(),
            origin: Arc::clone(origin),
        };
        match entries.iter_mut().find(|old| old.entry.same_key(entry)) {
            Some(old) if entry.preference(&old.entry).is_gt() => *old = placed,
            Some(_) => {}
            None => entries.push(placed),
        }
        entries.sort_by(|a, b| b.entry.preference(&a.entry));
    }
}

/// One warning for a table, however many of its entries are at fault.
fn warn_of_faults(table: &TunedTable, lines: &[usize], origin: &Origin) {
    let mut faults = table.entries.iter().enumerate().filter_map(|(n, entry)| {
        let line = lines.get(n).copied().unwrap_or_default();
        Some(format!("line {line}: {entry}: {}", entry.fault()?))
    });
    if let Some(first) = faults.next() {
        let more = match faults.count() {
            0 => String::new(),
            more => format!(" (and {more} more)"),
        };
        tracing::warn!("{origin}: passed over: {first}{more}");
    }
}

/// The `.toml` files of a directory, by name.
pub fn table_files(directory: &Path) -> Vec<PathBuf> {
    let files = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            let error = Error::new(ErrorKind::File, error.to_string());
            tracing::warn!("{}: passed over: {}", directory.display(), error.context());
            return Vec::new();
        }
    };
    let mut files: Vec<_> = files.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "toml"));
    files.sort();
    if files.len() > MOST_FILES {
        tracing::warn!(
            "{}: passed over: all but the first {MOST_FILES} of {} tables",
            directory.display(),
            files.len()
        );
        files.truncate(MOST_FILES);
    }
    files
}
