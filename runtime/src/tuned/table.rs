//! The table of one device model: text, and what can be done with tables as values.

use std::cmp::Ordering;

use ropeway_core::info::DeviceInfo;
use ropeway_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use toml::Spanned;
use toml::ser::ValueSerializer;

use super::entry::{TunedEntry, is_line};

/// The tuned configurations of one device model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TunedTable {
    /// The device's own name.
    pub device: String,
    /// The backend that it was tuned through.
    pub backend: String,
    /// Its instruction set, or empty; other devices of the same one may use a table that ships.
    pub architecture: String,
    /// The entries.
    pub entries: Vec<TunedEntry>,
}

/// As the file has it, each entry with its place.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Located {
    device: String,
    backend: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    entry: Vec<Spanned<TunedEntry>>,
}

impl TunedTable {
    /// A table with no entry.
    pub fn for_device(info: &DeviceInfo) -> TunedTable {
        TunedTable {
            device: info.name.clone(),
            backend: info.backend.into(),
            architecture: info.architecture.clone(),
            entries: Vec::new(),
        }
    }

    /// Reads the text of a table. An entry that is readable and has a [`fault`](TunedEntry::fault) is in it all the same: the look-up passes
    /// it over, and nothing is lost when the table is written again.
    ///
    /// # Errors
    /// `File` with the line for text that is no table.
    pub fn parse(text: &str) -> Result<TunedTable> {
        TunedTable::parse_located(text).map(|(table, _)| table)
    }

    /// [`TunedTable::parse`], with the line of each entry.
    pub(super) fn parse_located(text: &str) -> Result<(TunedTable, Vec<usize>)> {
        let line_of = |byte: usize| 1 + text[..byte].matches('\n').count();
        let located: Located = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| line_of(span.start));
            // It may quote what the file holds, which is not to reach a terminal as it is.
            let message = error.message().replace('\n', " ");
            let message = message.escape_debug().to_string().replace("\\'", "'");
            Error::new(ErrorKind::File, format!("line {line}: {message}"))
        })?;
        let names = [&located.device, &located.backend, &located.architecture];
        if let Some(name) = names.into_iter().find(|name| !is_line(name)) {
            return Err(Error::new(
                ErrorKind::File,
                format!("line 1: {name:?} is no line of text"),
            ));
        }
        // Counted on from entry to entry: from the beginning each time takes a second for some thousands of them.
        let (mut line, mut counted) = (1, 0);
        let mut lines = Vec::with_capacity(located.entry.len());
        for entry in &located.entry {
            let start = entry.span().start.max(counted);
            line += text[counted..start].matches('\n').count();
            counted = start;
            lines.push(line);
        }
        let table = TunedTable {
            device: located.device,
            backend: located.backend,
            architecture: located.architecture,
            entries: located.entry.into_iter().map(Spanned::into_inner).collect(),
        };
        Ok((table, lines))
    }

    /// The text of a table: entries in the order of their keys, so that the same entries give the same text.
    ///
    /// # Errors
    /// `InvalidArgument` for a number that TOML cannot hold.
    pub fn to_toml(&self) -> Result<String> {
        let mut text = format!(
            "# Tuned configurations of one device model: `ropeway tuned show` lists them, docs/tuning.md says how they are used.\n\
             device = {}\nbackend = {}\narchitecture = {}\n",
            inline(&self.device)?,
            inline(&self.backend)?,
            inline(&self.architecture)?,
        );
        let mut entries: Vec<_> = self.entries.iter().collect();
        entries.sort_by(|a, b| a.order(b));
        for entry in entries {
            text.push_str("\n[[entry]]\n");
            let mut line = |name: &str, value: String| {
                text.push_str(&format!("{name} = {value}\n"));
            };
            line("op", inline(&entry.op)?);
            line("variant", inline(&entry.variant)?);
            line("sizes", inline(&entry.sizes)?);
            line("kernel", inline(&entry.kernel)?);
            line("version", inline(entry.version)?);
            line("config", inline(&entry.config)?);
            if let Some(measured) = &entry.measured {
                line("measured", inline(measured)?);
            }
            if let Some(provenance) = &entry.provenance {
                line("provenance", inline(provenance)?);
            }
        }
        Ok(text)
    }

    /// Puts in an entry, in place of whatever was known of its sizes: of another kernel or an earlier manifest version, too.
    pub fn insert(&mut self, entry: TunedEntry) {
        self.supersede(vec![entry]);
    }

    /// Puts in what was tuned anew, in place of whatever was known of the sizes of these entries.
    pub fn supersede(&mut self, entries: Vec<TunedEntry>) {
        self.entries
            .retain(|old| !entries.iter().any(|new| new.same_problem(old)));
        self.entries.extend(entries);
        self.entries.sort_by(TunedEntry::order);
    }

    /// Takes in another table of the same device model: of two entries of one kernel at the same sizes the one of the later manifest version
    /// stays, of one version the [preferred](TunedEntry::preference) one. The result does not depend on which table is merged into which,
    /// nor on the order of several merges.
    ///
    /// # Errors
    /// `InvalidArgument` if the tables are of different devices, backends or architectures.
    pub fn merge(&mut self, other: TunedTable) -> Result<()> {
        let pairs = [
            ("device", &self.device, &other.device),
            ("backend", &self.backend, &other.backend),
            ("architecture", &self.architecture, &other.architecture),
        ];
        if let Some((name, ours, theirs)) = pairs.into_iter().find(|(_, a, b)| a != b) {
            return Err(Error::invalid(
                name,
                format!("{theirs:?}"),
                format!("{ours:?} as in the other table"),
            ));
        }
        self.entries.extend(other.entries);
        // The one that stays first.
        self.entries
            .sort_by(|a, b| a.key_order(b).then_with(|| b.precedence(a)));
        self.entries.dedup_by(|later, first| later.same_key(first));
        self.entries.sort_by(TunedEntry::order);
        Ok(())
    }

    /// Takes out the entries that have a [`fault`](TunedEntry::fault) and returns them with it.
    pub fn take_faulty(&mut self) -> Vec<(TunedEntry, String)> {
        let mut faulty = Vec::new();
        self.entries.retain(|entry| match entry.fault() {
            None => true,
            Some(fault) => {
                faulty.push((entry.clone(), fault));
                false
            }
        });
        faulty
    }
}

impl TunedEntry {
    /// By problem: op, variant, bucket, sizes.
    fn problem_order(&self, other: &TunedEntry) -> Ordering {
        let words = (&self.op, &self.variant);
        words
            .cmp(&(&other.op, &other.variant))
            .then_with(|| self.bucket().cmp(&other.bucket()))
            .then_with(|| self.sizes.cmp(&other.sizes))
    }

    /// By key: problem, kernel.
    fn key_order(&self, other: &TunedEntry) -> Ordering {
        self.problem_order(other)
            .then_with(|| self.kernel.cmp(&other.kernel))
    }

    /// Whether two entries are of one op, variant and sizes.
    pub fn same_problem(&self, other: &TunedEntry) -> bool {
        let words = (&self.op, &self.variant);
        words == (&other.op, &other.variant) && self.sizes == other.sizes
    }

    /// Whether two entries cannot both be in a merged table: those of one kernel at the same sizes.
    pub fn same_key(&self, other: &TunedEntry) -> bool {
        self.key_order(other).is_eq()
    }

    /// Which of two entries of one key stays: the greater. Sound before faulty, then the later manifest version, since a build of that
    /// version can use no other, then by preference. Versions of different kernels say nothing of each other, so each kernel has its own.
    pub fn precedence(&self, other: &TunedEntry) -> Ordering {
        let sound = |entry: &TunedEntry| entry.fault().is_none();
        sound(self)
            .cmp(&sound(other))
            .then_with(|| self.version.cmp(&other.version))
            .then_with(|| self.preference(other))
    }

    /// The order of a written table.
    fn order(&self, other: &TunedEntry) -> Ordering {
        self.key_order(other)
            .then_with(|| self.version.cmp(&other.version))
            .then_with(|| self.preference(other))
    }
}

/// A value on one line.
fn inline(value: impl Serialize) -> Result<String> {
    let mut text = String::new();
    value
        .serialize(ValueSerializer::new(&mut text))
        .map_err(|error| Error::invalid("entry", error, "what TOML can hold"))?;
    Ok(text)
}
