//! Table files: read with suspicion, written so that neither a crash nor another process loses anything.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use ropeway_core::info::DeviceInfo;
use ropeway_core::{Error, ErrorKind, Result};
use sha2::{Digest, Sha256};

use super::{TunedTable, data_dir};

/// The largest table that is read: ten thousand entries and more.
pub(super) const MOST_BYTES: u64 = 4 << 20;

/// How long a writer waits for another one.
const PATIENCE: Duration = Duration::from_secs(30);

/// Longest device name in a file name.
const LONGEST_SLUG: usize = 80;

impl TunedTable {
    /// Reads a table; `None` if there is no such file.
    ///
    /// # Errors
    /// `File`, naming file and line, for what is no table, no file, larger than 4 MiB, or cannot be read.
    pub fn read(path: &Path) -> Result<Option<TunedTable>> {
        Ok(read_located(path)?.map(|(table, _)| table))
    }

    /// Changes a table in a file under a lock, so that of several processes none loses what another wrote: reads it (an empty one of no
    /// device if there is none yet), changes it, writes it to a temporary file beside it, syncs that, renames it. A file that is no table is
    /// renamed (`….damaged`, `….damaged-2`), with one warning, and counts as not there.
    ///
    /// # Errors
    /// `InvalidArgument` if the changed table names no device; `File`.
    pub fn update(path: &Path, change: impl FnOnce(&mut TunedTable)) -> Result<()> {
        TunedTable::try_update(path, |table| {
            change(table);
            Ok(())
        })
    }

    /// [`TunedTable::update`] with a change that may refuse: the file is left as it is then.
    ///
    /// # Errors
    /// As `update`, and those of `change`.
    pub fn try_update(
        path: &Path,
        change: impl FnOnce(&mut TunedTable) -> Result<()>,
    ) -> Result<()> {
        // Through a link to where it leads, so that the link stays one.
        let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let directory = directory_of(path);
        fs::create_dir_all(directory).map_err(|error| of(directory, error))?;
        let _lock = lock(path)?;
        let mut table = set_aside_unless_sound(path)?.unwrap_or_default();
        change(&mut table)?;
        if table.device.is_empty() || table.backend.is_empty() {
            return Err(Error::invalid(
                "table",
                format!("{:?} through {:?}", table.device, table.backend),
                "a device and its backend",
            ));
        }
        let text = table.to_toml()?;
        // What could not be read back would be set aside by the next writer.
        TunedTable::parse(&text)?;
        write(path, &text)
    }

    /// Where the user's table of a device lies: `tuned/<backend>-<device>.toml` in [`data_dir`]. `None` if the user has no home.
    pub fn user_path(info: &DeviceInfo) -> Option<PathBuf> {
        let name = format!("{}-{}.toml", info.backend, slug(&info.name));
        Some(data_dir()?.join("tuned").join(name))
    }
}

/// A device's name for a file name. Whatever it does not keep of the name is made up for by a part of the name's hash, so that no two
/// devices write to one file: not `A/B` and `A B`, and not `CHIP` and `chip`, which some file systems take for one.
fn slug(name: &str) -> String {
    let mut slug = String::new();
    for c in name.chars() {
        match c.is_ascii_alphanumeric() {
            true => slug.push(c.to_ascii_lowercase()),
            false if slug.ends_with('-') => {}
            false => slug.push('-'),
        }
    }
    slug.truncate(LONGEST_SLUG);
    let mut slug = slug.trim_matches('-').to_owned();
    if slug != name || slug.is_empty() {
        if !slug.is_empty() {
            slug.push('-');
        }
        let hash = Sha256::digest(name);
        hash.iter()
            .take(4)
            .for_each(|byte| slug.push_str(&format!("{byte:02x}")));
    }
    slug
}

/// A table and the line of each entry; `None` if there is no such file.
pub(super) fn read_located(path: &Path) -> Result<Option<(TunedTable, Vec<usize>)>> {
    let Some(text) = read_text(path).map_err(|error| of(path, error))? else {
        return Ok(None);
    };
    let parsed = TunedTable::parse_located(&text);
    parsed.map(Some).map_err(|error| {
        Error::new(
            error.kind(),
            format!("{}: {}", path.display(), error.context()),
        )
    })
}

fn read_text(path: &Path) -> io::Result<Option<String>> {
    // Asked before opening: opening a pipe waits for who writes to it, and a device may never end.
    let metadata = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    if !metadata.is_file() {
        return Err(invalid("no regular file".into()));
    }
    let mut bytes = Vec::new();
    File::open(path)?
        .take(MOST_BYTES + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(invalid(format!("larger than {MOST_BYTES} bytes")));
    }
    String::from_utf8(bytes).map(Some).map_err(|error| {
        let sound = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + sound.iter().filter(|byte| **byte == b'\n').count();
        invalid(format!("line {line}: not UTF-8"))
    })
}

fn of(path: &Path, error: io::Error) -> Error {
    Error::from(error).within(path.display())
}

/// With the lock held.
fn set_aside_unless_sound(path: &Path) -> Result<Option<TunedTable>> {
    let error = match TunedTable::read(path) {
        Ok(table) => return Ok(table),
        Err(error) => error,
    };
    let aside = (1..)
        .map(|number| match number {
            1 => beside(path, "", ".damaged"),
            number => beside(path, "", &format!(".damaged-{number}")),
        })
        .find(|aside| fs::symlink_metadata(aside).is_err())
        .expect("there are more numbers than files");
    fs::rename(path, &aside).map_err(|error| of(path, error))?;
    tracing::warn!("{}; kept as {}", error.context(), aside.display());
    Ok(None)
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(directory) if directory != Path::new("") => directory,
        _ => Path::new("."),
    }
}

/// The file's name with something before and after it.
fn beside(path: &Path, before: &str, after: &str) -> PathBuf {
    let mut name = OsString::from(before);
    name.push(path.file_name().unwrap_or_default());
    name.push(after);
    path.with_file_name(name)
}

/// The lock of whoever changes a table. It is a file of its own, since the table's is replaced.
fn lock(path: &Path) -> Result<File> {
    let lock = beside(path, ".", ".lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&lock)
        .map_err(|error| of(&lock, error))?;
    let begin = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(of(&lock, error)),
            Err(TryLockError::WouldBlock) if begin.elapsed() > PATIENCE => {
                return Err(Error::new(
                    ErrorKind::File,
                    format!("{}: another process holds it", lock.display()),
                ));
            }
            Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// With the lock held, so that the temporary name is nobody else's.
fn write(path: &Path, text: &str) -> Result<()> {
    if text.len() as u64 > MOST_BYTES {
        return Err(Error::new(
            ErrorKind::File,
            format!(
                "{}: would be larger than {MOST_BYTES} bytes",
                path.display()
            ),
        ));
    }
    let temporary = beside(path, ".", ".partial");
    let replace = || -> io::Result<()> {
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = File::create_new(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        #[cfg(unix)]
        // The new name itself must survive a crash too.
        File::open(directory_of(path))?.sync_all()?;
        Ok(())
    };
    replace().map_err(|error| of(path, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_devices_have_one_file() {
        let long = "x".repeat(200);
        let names = [
            "A B", "A/B", "a b", "A  B", "A B ", "a-b", "AB", "ab", "", " ", "é", "è", &long,
        ];
        let slugs: std::collections::BTreeSet<_> = names.iter().map(|name| slug(name)).collect();
        assert_eq!(slugs.len(), names.len(), "{slugs:?}");
        for slug in &slugs {
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            assert!(slug.chars().all(plain) && slug.len() < 100, "{slug:?}");
            assert!(!slug.is_empty() && !slug.starts_with('-'), "{slug:?}");
        }
        assert_eq!(slug("chip"), "chip");
        let card = slug("NVIDIA H100 80GB HBM3");
        assert!(card.starts_with("nvidia-h100-80gb-hbm3-"), "{card}");
        assert_eq!(card, slug("NVIDIA H100 80GB HBM3"));
    }
}
