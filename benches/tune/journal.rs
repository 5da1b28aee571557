//! The journal: what was measured, one line each, on disk before the search goes on.
//!
//! ```text
//! 5c8be312 {"ropeway_tune":1,"device":"…","backend":"opencl",…}      what the search is
//! 90a1c2d4 {"space":{"target":{…},"space":{…}}}                       what can be tried for a target
//! 0f3a9b77 {"record":{"target":"gemm_512 f32","point":{…},…}}         one point at one stage
//! ```
//!
//! Each line begins with the first 32 bits of the SHA-256 of the rest. A search that was killed leaves at most one line that is cut
//! short; such a line, or any other that does not fit its sum or says what cannot be, is passed over with one warning for all, and its
//! point is measured again.
//! Nothing is ever removed from a journal: a new search sets the old one aside under another name.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use ropeway_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::space::Space;
use super::strategy::Choice;
use super::{Outcome, Point, Stage, Target, sound};

/// The format of this version.
const FORMAT: u32 = 1;

/// No journal is longer: a larger file is something else.
const LONGEST: u64 = 256 << 20;

/// What a search is: a journal serves only the search that wrote it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// The format.
    pub ropeway_tune: u32,
    /// The device model.
    pub device: String,
    /// Its backend.
    pub backend: String,
    /// Its driver's version.
    pub driver: String,
    /// Its compiler's version.
    pub compiler: String,
    /// Ropeway's version.
    pub ropeway: String,
    /// The seed.
    pub seed: u64,
    /// The order of the search.
    pub strategy: Choice,
    /// What is tuned, in a hash: workloads, dtypes, spaces.
    pub task: String,
    /// The day of the first line, in UTC.
    pub date: String,
}

impl Header {
    /// Of this version.
    pub const FORMAT: u32 = FORMAT;

    /// Whether a journal of `other` may be gone on with.
    fn is_of(&self, other: &Header) -> bool {
        Header {
            date: other.date.clone(),
            ..self.clone()
        } == *other
    }
}

/// A target and its space, so that a journal can be replayed where its device is not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Described {
    /// The target.
    pub target: Target,
    /// Its space.
    pub space: Space,
    /// Work that it cannot avoid: operations and bytes.
    pub work: [f64; 2],
}

/// A line after the first.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Space(Box<Described>),
    Record(Record),
}

/// One measured point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The target's name.
    pub target: String,
    /// The point.
    pub point: Point,
    /// What it was measured for.
    pub stage: Stage,
    /// What came of it.
    pub outcome: Outcome,
    /// Seconds that it took, compiling and checking included.
    pub spent: f64,
}

/// What a file holds.
#[derive(Debug, Default)]
pub struct Contents {
    /// The search, if the first line says so.
    pub header: Option<Header>,
    /// What was tuned, in order.
    pub targets: Vec<Described>,
    /// The records in order.
    pub records: Vec<Record>,
    /// Lines that cannot be read, or say what cannot be.
    pub damaged: usize,
}

impl Contents {
    fn describes(&self, described: &Described) -> bool {
        let name = described.target.name();
        self.targets.iter().any(|known| known.target.name() == name)
    }
}

/// Reads the lines of a journal; whatever is not one is counted.
pub fn parse(bytes: &[u8]) -> Contents {
    let mut contents = Contents::default();
    let mut known = BTreeSet::new();
    for (number, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        if line.is_empty() {
            continue;
        }
        let Some(json) = checked(line) else {
            contents.damaged += 1;
            continue;
        };
        if number == 0 {
            match serde_json::from_slice::<Header>(json) {
                Ok(header) if header.ropeway_tune == FORMAT => contents.header = Some(header),
                _ => contents.damaged += 1,
            }
            continue;
        }
        match serde_json::from_slice(json) {
            Ok(Line::Space(described))
                if sound::described(&described).is_ok() && !contents.describes(&described) =>
            {
                contents.targets.push(*described);
            }
            // Nothing is measured twice for one stage.
            Ok(Line::Record(record))
                if sound::record(&record).is_ok()
                    && known.insert((
                        record.target.clone(),
                        record.point.clone(),
                        record.stage,
                    )) =>
            {
                contents.records.push(record);
            }
            _ => contents.damaged += 1,
        }
    }
    contents
}

/// The text of a line that fits its sum.
fn checked(line: &[u8]) -> Option<&[u8]> {
    let (sum, json) = (line.get(..8)?, line.get(9..)?);
    (line[8] == b' ' && sum == sum_of(json).as_bytes()).then_some(json)
}

fn sum_of(json: &[u8]) -> String {
    let digest = Sha256::digest(json);
    digest[..4]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// A record's text as a line.
fn line(value: &impl Serialize) -> Result<String> {
    let json = serde_json::to_string(value)
        .map_err(|error| Error::new(ErrorKind::File, error.to_string()))?;
    Ok(format!("{} {json}\n", sum_of(json.as_bytes())))
}

/// Reads a file as a journal.
///
/// # Errors
/// `File` if it cannot be read or is far too large.
pub fn read(path: &Path) -> Result<Contents> {
    let named = |error: Error| error.within(path.display());
    let file = File::open(path).map_err(|error| named(error.into()))?;
    let mut bytes = Vec::new();
    let mut limited = file.take(LONGEST + 1);
    limited
        .read_to_end(&mut bytes)
        .map_err(|error| named(error.into()))?;
    if bytes.len() as u64 > LONGEST {
        return Err(named(Error::new(
            ErrorKind::File,
            "too large for a journal",
        )));
    }
    Ok(parse(&bytes))
}

/// A journal that is written to.
pub struct Journal {
    path: PathBuf,
    file: File,
    header: Header,
    targets: Vec<String>,
    known: BTreeMap<(String, Point, Stage), (Outcome, f64)>,
    warnings: Vec<String>,
}

impl Journal {
    /// Opens a journal. With `resume`, goes on with what the file holds of this very search; otherwise, and if it is another search's or no
    /// journal at all, the file is set aside under another name and a new one begun.
    ///
    /// # Errors
    /// `File` if it cannot be written, or another process is writing it.
    pub fn open(path: &Path, header: Header, resume: bool) -> Result<Journal> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let mut warnings = Vec::new();
        let file = lock(path)?;
        let found = if file.metadata()?.len() == 0 {
            None
        } else {
            Some(read(path))
        };
        let shown = path.display();
        let (contents, file) = match found {
            None => (None, file),
            Some(Ok(contents))
                if resume && contents.header.as_ref().is_some_and(|h| header.is_of(h)) =>
            {
                if contents.damaged > 0 {
                    warnings.push(format!(
                        "{shown}: {} damaged lines are passed over; what they held is measured again",
                        contents.damaged
                    ));
                }
                (Some(contents), file)
            }
            Some(other) => {
                let aside = set_aside(path)?;
                if resume {
                    let why = match other {
                        Err(error) => error.context().to_owned(),
                        Ok(contents) if contents.header.is_none() => {
                            "no journal of ropeway tune".into()
                        }
                        Ok(_) => "of another search".into(),
                    };
                    let aside = aside.display();
                    warnings.push(format!("{shown}: {why}; kept as {aside}, begun anew"));
                }
                drop(file);
                (None, lock(path)?)
            }
        };
        let mut journal = Journal {
            path: path.into(),
            file,
            header,
            targets: Vec::new(),
            known: BTreeMap::new(),
            warnings,
        };
        match contents {
            Some(contents) => {
                journal.header = contents.header.unwrap_or(journal.header);
                journal.targets = contents.targets.iter().map(|d| d.target.name()).collect();
                for record in contents.records {
                    let key = (record.target, record.point, record.stage);
                    journal.known.insert(key, (record.outcome, record.spent));
                }
                // After a line that was cut short, the next begins on its own.
                if fs::read(path)?.last() != Some(&b'\n') {
                    journal.write("\n")?;
                }
            }
            None => {
                let header = line(&journal.header)?;
                journal.write(&header)?;
            }
        }
        Ok(journal)
    }

    /// What the search is; the date is that of its beginning.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// What to tell the user about the file.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// What is known of a point, and the seconds it took.
    pub fn find(&self, target: &str, point: &Point, stage: Stage) -> Option<(Outcome, f64)> {
        let key = (target.to_owned(), point.clone(), stage);
        self.known.get(&key).cloned()
    }

    /// Points that are known.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Says what is tuned next, once for each target.
    ///
    /// # Errors
    /// `File`.
    pub fn describe(&mut self, described: &Described) -> Result<()> {
        let name = described.target.name();
        if !self.targets.contains(&name) {
            let text = line(&Line::Space(Box::new(described.clone())))?;
            self.write(&text)?;
            self.targets.push(name);
        }
        Ok(())
    }

    /// Adds a record, and returns when it is on disk.
    ///
    /// # Errors
    /// `File`.
    pub fn add(&mut self, record: Record) -> Result<()> {
        let text = line(&Line::Record(record.clone()))?;
        self.write(&text)?;
        let key = (record.target, record.point, record.stage);
        self.known.insert(key, (record.outcome, record.spent));
        Ok(())
    }

    fn write(&mut self, text: &str) -> Result<()> {
        let written = self.file.write_all(text.as_bytes());
        let synced = written.and_then(|()| self.file.sync_data());
        synced.map_err(|error| Error::from(error).within(self.path.display()))
    }
}

/// Opens a file to append to, which no other process has open so.
fn lock(path: &Path) -> Result<File> {
    let named = |error: std::io::Error| Error::from(error).within(path.display());
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .read(true)
        .open(path)
        .map_err(named)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::new(
            ErrorKind::File,
            format!(
                "{}: another process is tuning with this journal",
                path.display()
            ),
        )),
        Err(TryLockError::Error(error)) => Err(named(error)),
    }
}

/// Renames a file to a name that is free.
fn set_aside(path: &Path) -> Result<PathBuf> {
    for number in 1.. {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{number}"));
        let aside = PathBuf::from(name);
        if !aside.exists() {
            fs::rename(path, &aside)?;
            return Ok(aside);
        }
    }
    unreachable!("some number is free")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::tune::simulate::Recording;
    use crate::tune::space::{Axis, Key};
    use crate::tune::{Measurement, Measurer, form};

    fn header() -> Header {
        Header {
            ropeway_tune: FORMAT,
            device: "chip".into(),
            backend: "opencl".into(),
            driver: "1".into(),
            compiler: "2".into(),
            ropeway: "0".into(),
            seed: 7,
            strategy: Choice::Guided,
            task: "t".into(),
            date: "2026-01-31".into(),
        }
    }

    fn record(number: i64) -> Record {
        Record {
            target: "gemm_512 f32".into(),
            point: Point {
                kernel: "k".into(),
                config: [("TILE".to_owned(), number)].into(),
            },
            stage: Stage::Search,
            outcome: Outcome::Measured(Measurement {
                samples: vec![0.1 + number as f64, 1e-3],
                runs: 4,
                reference: vec![0.2, 2e-3],
                error_over_bound: 0.25,
                stopped: false,
            }),
            spent: 1.5,
        }
    }

    fn written(count: i64) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/journal");
        let mut journal = Journal::open(&path, header(), false).unwrap();
        for number in 0..count {
            journal.add(record(number)).unwrap();
        }
        (folder, path)
    }

    #[test]
    fn what_was_added_is_found_after_the_process_has_gone() {
        let (_folder, path) = written(3);
        let later = Header {
            date: "2026-02-01".into(),
            ..header()
        };
        let journal = Journal::open(&path, later, true).unwrap();
        assert_eq!(journal.header().date, "2026-01-31", "the search began then");
        assert_eq!(journal.len(), 3);
        assert!(journal.warnings().is_empty());
        let Record { point, outcome, .. } = record(2);
        let found = journal.find("gemm_512 f32", &point, Stage::Search);
        assert_eq!(found, Some((outcome, 1.5)));
        assert_eq!(journal.find("gemm_512 f32", &point, Stage::Round(0)), None);
    }

    #[test]
    fn a_cut_tail_costs_one_line_and_the_next_begins_on_its_own() {
        let (_folder, path) = written(3);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 20]).unwrap();
        let mut journal = Journal::open(&path, header(), true).unwrap();
        assert_eq!(journal.len(), 2);
        assert_eq!(journal.warnings().len(), 1);
        journal.add(record(2)).unwrap();
        drop(journal);
        let journal = Journal::open(&path, header(), true).unwrap();
        assert_eq!(journal.len(), 3);
    }

    #[test]
    fn another_search_or_a_foreign_file_is_kept_aside() {
        let other = Header {
            seed: 8,
            ..header()
        };
        let (_folder, path) = written(2);
        let old = fs::read(&path).unwrap();
        let journal = Journal::open(&path, other, true).unwrap();
        assert_eq!((journal.len(), journal.warnings().len()), (0, 1));
        drop(journal);
        assert_eq!(
            fs::read(path.with_extension("1")).unwrap(),
            old,
            "nothing is lost"
        );

        fs::write(&path, b"\x7fELF, or a photograph").unwrap();
        let journal = Journal::open(&path, header(), true).unwrap();
        assert_eq!((journal.len(), journal.warnings().len()), (0, 1));
        assert!(path.with_extension("2").exists());
    }

    #[test]
    fn two_processes_do_not_write_one_journal() {
        let (_folder, path) = written(1);
        let first = Journal::open(&path, header(), true).unwrap();
        let second = Journal::open(&path, header(), true);
        assert!(
            second
                .err()
                .unwrap()
                .to_string()
                .contains("another process")
        );
        drop(first);
        assert!(Journal::open(&path, header(), true).is_ok());
    }

    proptest! {
        /// Bytes flipped, lost and put in anywhere: never a panic, never a value that was not written.
        #[test]
        fn damage_costs_the_lines_it_hits(
            damage in prop::collection::vec((any::<prop::sample::Index>(), 0..3u8, any::<u8>()), 1..6)
        ) {
            let mut bytes = line(&header()).unwrap().into_bytes();
            let records: Vec<Record> = (0..5).map(record).collect();
            for record in &records {
                bytes.extend(line(&Line::Record(record.clone())).unwrap().into_bytes());
            }
            for (at, how, byte) in &damage {
                let at = at.index(bytes.len());
                match how {
                    0 => bytes[at] = *byte,
                    1 => bytes.insert(at, *byte),
                    _ => { bytes.remove(at); }
                }
            }
            let contents = parse(&bytes);
            prop_assert!(contents.header.as_ref().is_none_or(|h| *h == header()));
            prop_assert!(contents.records.iter().all(|r| records.contains(r)));
            prop_assert!(contents.records.len() + 2 * damage.len() >= 4);
        }

        /// Lines whose sums are right and which say anything at all: what is taken of them can be, and a search may go by it.
        #[test]
        fn what_fits_its_sum_is_taken_only_if_it_can_be(
            changes in prop::collection::vec(
                (any::<prop::sample::Index>(), any::<prop::sample::Index>(), anything()),
                0..4,
            )
        ) {
            let mut lines = described();
            for (which, at, value) in changes {
                let line = &mut lines[which.index(4)];
                let mut at = at.index(count(line));
                change(line, &mut at, &value);
            }
            let lines: String = lines.iter().map(|value| {
                let json = raw_numbers(&value.to_string());
                format!("{} {json}\n", sum_of(json.as_bytes()))
            }).collect();
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("journal");
            fs::write(&path, &lines).unwrap();

            let contents = read(&path).unwrap();
            let taken = contents.targets.len() + contents.records.len();
            prop_assert_eq!(taken + contents.damaged + usize::from(contents.header.is_some()), 4);
            for record in &contents.records {
                if let Outcome::Measured(m) = &record.outcome {
                    let times: Vec<f64> = m.samples.iter().chain(&m.reference).copied().collect();
                    prop_assert!(!m.samples.is_empty() && times.iter().all(|t| *t > 0.0 && *t < 1e10));
                }
            }
            let Ok(mut recording) = Recording::read(&path) else {
                return Ok(());
            };
            for described in recording.targets.clone() {
                let default = &described.space.points[described.space.default];
                prop_assert!(described.space.kernels.contains_key(&default.kernel));
                let base = recording.base(&described.target.name());
                for point in &described.space.points {
                    for stage in [Stage::Search, Stage::Proof, Stage::Round(0), Stage::Round(8)] {
                        let outcome = recording.measure(&described.target, point, stage, None).unwrap();
                        let seconds = outcome.seconds_at(base);
                        prop_assert!(seconds.is_none_or(|s| s.is_finite() && s > 0.0), "{:?}", outcome);
                    }
                }
            }
        }
    }

    /// A sound journal of one target, as JSON.
    fn described() -> Vec<Value> {
        let point = |tile| record(tile).point;
        let target = Target {
            workload: form::workload("gemm", "m=512 n=512 k=512", "F32").unwrap(),
            dtype: "F32".into(),
        };
        let space = Space {
            key: Key {
                op: "gemm".into(),
                variant: "f32_f32_nn".into(),
                sizes: [("m".to_owned(), 512)].into(),
            },
            points: vec![point(1), point(2)],
            default: 0,
            kernel_defaults: vec![0],
            kernels: [("k".to_owned(), (1, "source".to_owned()))].into(),
            axes: vec![Axis {
                name: "TILE".into(),
                values: vec![1, 2],
            }],
            excluded: 0,
        };
        let record = |tile| Record {
            target: target.name(),
            ..record(tile)
        };
        let described = Described {
            target: target.clone(),
            space,
            work: [1e9, 1e6],
        };
        let lines = [
            serde_json::to_value(header()),
            serde_json::to_value(Line::Space(Box::new(described))),
            serde_json::to_value(Line::Record(record(1))),
            serde_json::to_value(Line::Record(record(2))),
        ];
        lines.map(Result::unwrap).into()
    }

    #[test]
    fn the_journal_that_is_changed_is_sound_itself() {
        let lines = described();
        let text: String = lines.iter().map(|value| line(value).unwrap()).collect();
        let contents = parse(text.as_bytes());
        let counts = (contents.targets.len(), contents.records.len());
        assert_eq!((counts, contents.damaged), ((1, 2), 0));
        let twice = parse((text.clone() + text.split_inclusive('\n').nth(1).unwrap()).as_bytes());
        assert_eq!((twice.targets.len(), twice.damaged), (1, 1));
    }

    /// Values of every kind; `@…@` becomes a number that no `f64` holds.
    fn anything() -> impl proptest::strategy::Strategy<Value = Value> {
        let numbers = prop::sample::select(vec![
            json!(0),
            json!(-1),
            json!(1),
            json!(2),
            json!(9),
            json!(u64::MAX),
            json!(i64::MIN),
            json!(0.0),
            json!(-0.0),
            json!(-1e-3),
            json!(5e-324),
            json!(1e-300),
            json!(1e300),
            json!(0.5),
            json!(1.5),
            json!("@1e999@"),
            json!("@-1e999@"),
            json!("@1e-999@"),
        ]);
        let others = prop::sample::select(vec![
            json!(null),
            json!(true),
            json!(""),
            json!("TILE"),
            json!("search"),
            json!({"round": 4_000_000_000_u32}),
            json!({"round": 8}),
            json!({"proven": 0.5}),
            json!({"proven": -1}),
            json!({"timed_out": -1}),
            json!({"crashed": "x"}),
            json!([]),
            json!({}),
            json!([[]]),
            json!([1e-3, 0.0]),
            json!([1e-3]),
            json!({"k": [1, "s"]}),
            json!({"TILE": 3}),
            json!([{"kernel": "k", "config": {"TILE": 1}}]),
        ]);
        prop_oneof![numbers, others]
    }

    fn raw_numbers(json: &str) -> String {
        json.replace("\"@", "").replace("@\"", "")
    }

    /// Values in a value, itself included.
    fn count(value: &Value) -> usize {
        1 + match value {
            Value::Array(all) => all.iter().map(count).sum(),
            Value::Object(all) => all.values().map(count).sum(),
            _ => 0,
        }
    }

    /// Puts another value in place of one of these; counts `at` down on the way.
    fn change(value: &mut Value, at: &mut usize, other: &Value) -> bool {
        if *at == 0 {
            *value = other.clone();
            return true;
        }
        *at -= 1;
        match value {
            Value::Array(all) => all.iter_mut().any(|value| change(value, at, other)),
            Value::Object(all) => all.values_mut().any(|value| change(value, at, other)),
            _ => false,
        }
    }
}
