//! The table of one device model: text, and what can be done with tables as values.

use ropeway_core::info::DeviceInfo;
use ropeway_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use toml::{Spanned, Value};

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
            let message = error.message().replace('\n', " ");
            Error::new(ErrorKind::File, format!("line {line}: {message}"))
        })?;
        let names = [&located.device, &located.backend, &located.architecture];
        if let Some(name) = names.into_iter().find(|name| !is_line(name)) {
            return Err(Error::new(
                ErrorKind::File,
                format!("line 1: {name:?} is no line of text"),
            ));
        }
        let lines = located.entry.iter().map(|e| line_of(e.span().start));
        let lines = lines.collect();
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

    /// Puts in an entry, in place of what its bucket and manifest version had.
    pub fn insert(&mut self, entry: TunedEntry) {
        self.entries.retain(|other| !other.same_key(&entry));
        self.entries.push(entry);
        self.entries.sort_by(TunedEntry::order);
    }

    /// Takes in another table of the same device model: of two entries of one bucket and manifest version the
    /// [preferred](TunedEntry::preference) one stays. The result does not depend on which table is merged into which, nor on the order of
    /// several merges.
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
        // The preferred one first, so that it is the one that stays.
        self.entries
            .sort_by(|a, b| a.key_order(b).then_with(|| b.preference(a)));
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
    /// By key: op, variant, bucket, manifest version.
    fn key_order(&self, other: &TunedEntry) -> std::cmp::Ordering {
        let key = |entry: &TunedEntry| (entry.op.clone(), entry.variant.clone());
        key(self)
            .cmp(&key(other))
            .then_with(|| self.bucket().cmp(&other.bucket()))
            .then_with(|| self.version.cmp(&other.version))
    }

    /// Whether two entries cannot both be in a merged table.
    pub fn same_key(&self, other: &TunedEntry) -> bool {
        self.key_order(other).is_eq()
    }

    /// The order of a written table.
    fn order(&self, other: &TunedEntry) -> std::cmp::Ordering {
        self.key_order(other)
            .then_with(|| self.sizes.cmp(&other.sizes))
            .then_with(|| self.preference(other))
    }
}

/// A value on one line.
fn inline(value: impl Serialize) -> Result<String> {
    let value = Value::try_from(value)
        .map_err(|error| Error::invalid("entry", error, "what TOML can hold"))?;
    Ok(value.to_string())
}
