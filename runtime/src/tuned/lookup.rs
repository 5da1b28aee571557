//! Finding the configuration for a problem.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::Kernel;
use ropeway_core::op::{TuneKey, Tuned, Tuning, default_choice};

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
    /// It was tuned at the problem's very sizes.
    Exact,
    /// It was tuned at other sizes of the problem's bucket, does not lose elsewhere in it, and whatever else was tuned there agrees.
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

/// The entries of one device model or one architecture, from all its tables. Those of one bucket stand with the preferred one first.
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
            Ok((table, lines)) => shipped.add(&table, &lines, Origin::Shipped(path)),
            Err(error) => tracing::warn!("{path}: {}; passed over", error.context()),
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
                Ok(Some((table, lines))) => self.add_located(&table, &lines, Origin::User(path)),
                Ok(None) => {}
                Err(error) => tracing::warn!("{}; passed over", error.context()),
            }
        }
    }

    /// Adds a table. Entries that have a [`fault`](TunedEntry::fault) are passed over with one warning.
    pub fn add(&mut self, table: &TunedTable, origin: Origin) {
        self.add_located(table, &[], origin);
    }

    fn add_located(&mut self, table: &TunedTable, lines: &[usize], origin: Origin) {
        match origin {
            Origin::Shipped(_) => Arc::make_mut(&mut self.shipped).add(table, lines, origin),
            Origin::User(_) => {
                warn_of_faults(table, lines, &origin);
                let model = (table.backend.clone(), table.device.clone());
                insert_all(self.user.entry(model).or_default(), table, &origin.into());
            }
        }
    }

    /// The entry that serves a problem, in a planner's order of `candidates`: the user's tables of the device, then those that ship for it,
    /// then those that ship for its architecture. Within each, the entry of the problem's very sizes, else what the entries of its bucket
    /// agree on that [reach](TunedEntry::reaches) it, else what the buckets around it agree on that do. Where the entries of its bucket
    /// disagree none serves, nor one from further down: what is known there is that it depends. An entry that is no valid choice now (another manifest version, a value the device cannot
    /// take, measured against another default) is as good as absent.
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
        for level in levels.into_iter().flatten() {
            let Some(buckets) = level.get(&family) else {
                continue;
            };
            let winners_of = |entries| winners(entries, usable);
            let here = buckets.get(&bucket).map_or(Vec::new(), |e| winners_of(e));
            let asked = |placed: &&&Placed| {
                let tuned = placed.entry.sizes.values();
                tuned.eq(sizes.iter().map(|(_, size)| size))
            };
            let (placed, served) = if let Some(exact) = here.iter().find(asked) {
                (*exact, Served::Exact)
            } else if !here.is_empty() {
                match said(&here, &sizes) {
                    Said::One(placed) => (placed, Served::Bucket),
                    Said::Contradictions => return None,
                    Said::Nothing => continue,
                }
            } else {
                let points = buckets.iter().filter_map(|(bucket, entries)| {
                    let winners = winners_of(entries);
                    let (value, choice) = match said(&winners, &sizes) {
                        Said::One(placed) => (placed, Choice::of(&placed.entry)),
                        _ => (*winners.first()?, None),
                    };
                    Some(Point {
                        at: bucket,
                        value,
                        choice,
                    })
                });
                match between::agreed(&bucket, points) {
                    Some(placed) => (placed, Served::Between),
                    None => continue,
                }
            };
            return Some(Found {
                entry: &placed.entry,
                origin: &placed.origin,
                served,
            });
        }
        None
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
    fn add(&mut self, table: &TunedTable, lines: &[usize], origin: Origin) {
        warn_of_faults(table, lines, &origin);
        let origin = Arc::new(origin);
        let device = (table.backend.clone(), table.device.clone());
        insert_all(self.by_device.entry(device).or_default(), table, &origin);
        if !table.architecture.is_empty() {
            let architecture = (table.backend.clone(), table.architecture.clone());
            let level = self.by_architecture.entry(architecture).or_default();
            insert_all(level, table, &origin);
        }
    }
}

/// The winner at each of the sizes that were tuned in a bucket: of all that is usable there the preferred one. The most preferred of them
/// stands first.
fn winners(entries: &[Placed], usable: impl Fn(&&Placed) -> bool) -> Vec<&Placed> {
    let mut seen = HashSet::new();
    let mut winners: Vec<_> = entries.iter().filter(usable).collect();
    winners.retain(|placed| seen.insert(&placed.entry.sizes));
    winners
}

/// What the winners of a bucket say of a problem of other sizes.
enum Said<'a> {
    Nothing,
    /// They differ, or one is known to serve its own sizes alone.
    Contradictions,
    One(&'a Placed),
}

fn said<'a>(winners: &[&'a Placed], sizes: &[(&str, u64)]) -> Said<'a> {
    let reaches = |placed: &&Placed| placed.entry.reaches(sizes);
    let Some(found) = winners.iter().copied().find(reaches) else {
        return Said::Nothing;
    };
    // Others speak of the problem if they reach it or differ from it in the same sizes only: other weights are another matter.
    let differ: Vec<&str> = found.entry.differs_from(sizes).collect();
    let speaks = |placed: &&Placed| {
        let mut others = placed.entry.differs_from(sizes);
        placed.entry.reaches(sizes) || others.all(|name| differ.contains(&name))
    };
    let speaking: Vec<&Placed> = winners.iter().copied().filter(speaks).collect();
    match agree(&speaking) && speaking.iter().all(reaches) {
        true => Said::One(found),
        false => Said::Contradictions,
    }
}

/// Whether winners have one choice: the same kernel, version and configuration, or all the default.
fn agree(winners: &[&Placed]) -> bool {
    winners.windows(2).all(|pair| {
        let [a, b] = [&pair[0].entry, &pair[1].entry];
        match (a.keeps_default(), b.keeps_default()) {
            (false, false) => Choice::made(a) == Choice::made(b),
            (a, b) => a == b,
        }
    })
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
        proven.then(|| Choice::made(entry))
    }

    fn made(entry: &TunedEntry) -> Choice<'_> {
        Choice {
            kernel: &entry.kernel,
            version: entry.version,
            config: &entry.config,
        }
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
        let at = entries.partition_point(|old| old.entry.preference(entry).is_gt());
        entries.insert(at, placed);
    }
}

/// One warning for a table, however many of its entries are at fault.
fn warn_of_faults(table: &TunedTable, lines: &[usize], origin: &Origin) {
    let mut faults = table.entries.iter().enumerate().filter_map(|(n, entry)| {
        let line = lines
            .get(n)
            .map_or(String::new(), |line| format!("line {line}: "));
        let fault = entry.fault()?;
        Some(format!(
            "{line}{}: {fault}",
            entry.to_string().escape_debug()
        ))
    });
    if let Some(first) = faults.next() {
        let more = match faults.count() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        tracing::warn!("{origin}: {first}; this entry{more} passed over");
    }
}

/// The `.toml` files of a directory, by name.
pub fn table_files(directory: &Path) -> Vec<PathBuf> {
    let files = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            tracing::warn!("{}: {error}; passed over", directory.display());
            return Vec::new();
        }
    };
    let mut files: Vec<_> = files.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "toml"));
    files.sort();
    if files.len() > MOST_FILES {
        tracing::warn!(
            "{}: {} tables; all but the first {MOST_FILES} passed over",
            directory.display(),
            files.len()
        );
        files.truncate(MOST_FILES);
    }
    files
}
