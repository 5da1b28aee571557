//! The cache of compiled programs, kept in files between runs.
//!
//! Each file holds one binary in an envelope:
//!
//! ```text
//! magic (8 bytes)   key (32)   length of the binary (8, little endian)   SHA-256 of the binary (32)   binary
//! ```
//!
//! A file is written under a temporary name, synced and renamed, so that a reader sees all of it or nothing. One that does not
//! hold what its name says (truncated, altered, of another key) is set aside as `*.bad` with a warning, and built anew.
//!
//! Drivers run what a binary says, so binaries are loaded only from a directory that nobody else can write: owned, like
//! all directories above it, by this user or root, and not writable for group or others (a sticky directory above, such as
//! `/tmp`, will do). On systems other than Unix the directory's own protection is trusted.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ropeway_core::{Error, ErrorKind, Result};
use sha2::{Digest, Sha256};

const MAGIC: &[u8; 8] = b"RopewayC";
const HASH: usize = 32;
const HEADER: usize = MAGIC.len() + HASH + 8 + HASH;

/// What a binary was made of. Equal keys mean equal binaries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key([u8; HASH]);

impl Key {
    /// The key of these parts in this order: source text, options, device, platform, versions of driver and compiler.
    pub fn new(parts: &[&str]) -> Key {
        let mut hash = Sha256::new();
        for part in parts {
            // With its length, so that text cannot move from one part to the next.
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Key(hash.finalize().into())
    }

    fn file_name(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// A directory of compiled programs. What goes wrong with it is warned of and costs a compilation, never more.
#[derive(Debug)]
pub struct Cache {
    directory: PathBuf,
    warned: AtomicBool,
}

impl Cache {
    /// The cache in `directory`, which is made if it is not there.
    ///
    /// # Errors
    /// `File` if it cannot be made, or if somebody else could write to it.
    pub fn open(directory: &Path) -> Result<Cache> {
        create(directory).map_err(|error| Error::from(error).within(directory.display()))?;
        let directory = directory
            .canonicalize()
            .map_err(|error| Error::from(error).within(directory.display()))?;
        trust(&directory)?;
        Ok(Cache {
            directory,
            warned: AtomicBool::new(false),
        })
    }

    /// The binary of this key, if there is one that can be trusted.
    pub fn load(&self, key: &Key) -> Option<Vec<u8>> {
        if let Err(why) = trust(&self.directory) {
            self.warn("compiled programs are not loaded", &why);
            return None;
        }
        match self.read(key) {
            Ok(binary) => binary,
            Err(why) => {
                self.set_aside(key, &why);
                None
            }
        }
    }

    /// Keeps a binary.
    pub fn store(&self, key: &Key, binary: &[u8]) {
        if let Err(error) = self.write(key, binary) {
            self.warn("a compiled program could not be kept", &error);
        }
    }

    /// Keeps a binary that somebody counts on.
    ///
    /// # Errors
    /// `File` if it cannot be written.
    pub fn keep(&self, key: &Key, binary: &[u8]) -> Result<()> {
        let written = self.write(key, binary);
        written.map_err(|error| error.within(self.directory.display()))
    }

    /// Puts the file of this key out of the way, because of `why` (also for a driver that refuses a binary).
    pub fn set_aside(&self, key: &Key, why: &Error) {
        let path = self.path(key);
        let moved = self.lock().and_then(|_lock| {
            // Another process may have put a good one in its place.
            match why.kind() == ErrorKind::File && self.read(key).is_ok() {
                true => Ok(()),
                false => fs::rename(&path, path.with_extension("bad")).map_err(Error::from),
            }
        });
        match moved {
            Ok(()) => tracing::warn!(
                file = %path.display(), error = %why,
                "a compiled program in the cache is unusable; it is set aside and built anew"
            ),
            Err(_) => self.warn(
                "a compiled program in the cache is unusable and cannot be set aside",
                why,
            ),
        }
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.directory.join(key.file_name()).with_extension("bin")
    }

    /// Warns once: what goes wrong with one file mostly goes wrong with all.
    fn warn(&self, what: &str, error: &Error) {
        if !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(directory = %self.directory.display(), %error, "{what}");
        }
    }

    fn read(&self, key: &Key) -> Result<Option<Vec<u8>>> {
        let mut bytes = match fs::read(self.path(key)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes?,
        };
        let bad = |what: &str| Err(Error::new(ErrorKind::File, what));
        if bytes.len() < HEADER || !bytes.starts_with(MAGIC) {
            return bad("not a compiled program");
        }
        let (its_key, rest) = bytes[MAGIC.len()..HEADER].split_at(HASH);
        let (length, hash) = rest.split_at(8);
        if its_key != key.0 {
            return bad("compiled from something else");
        }
        let binary = &bytes[HEADER..];
        if length != (binary.len() as u64).to_le_bytes() {
            return bad("truncated");
        }
        if hash != &Sha256::digest(binary)[..] {
            return bad("altered");
        }
        bytes.drain(..HEADER);
        Ok(Some(bytes))
    }

    fn write(&self, key: &Key, binary: &[u8]) -> Result<()> {
        trust(&self.directory)?;
        let _lock = self.lock()?;
        let mut file = tempfile::Builder::new()
            .suffix(".part")
            .tempfile_in(&self.directory)?;
        file.write_all(MAGIC)?;
        file.write_all(&key.0)?;
        file.write_all(&(binary.len() as u64).to_le_bytes())?;
        file.write_all(&Sha256::digest(binary))?;
        file.write_all(binary)?;
        file.as_file().sync_all()?;
        file.persist(self.path(key))
            .map_err(|error| Error::from(error.error))?;
        Ok(())
    }

    /// The lock among processes, given up on drop. Whoever holds it is done soon, so one that is held for long is passed by.
    fn lock(&self) -> Result<File> {
        let file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .open(self.directory.join("lock"))?;
        for _ in 0..200 {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
                Err(TryLockError::Error(error)) => return Err(error.into()),
            }
        }
        Err(Error::new(
            ErrorKind::Timeout,
            "the cache's lock is held by another process",
        ))
    }
}

/// Makes the directory, for this user alone.
fn create(directory: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory)
}

/// # Errors
/// `File` if somebody else could put files into the directory, or another directory in its place.
#[cfg(unix)]
fn trust(directory: &Path) -> Result<()> {
    use std::os::unix::fs::MetadataExt;

    const WRITABLE_BY_OTHERS: u32 = 0o022;
    const STICKY: u32 = 0o1000;

    let user = user()?;
    for path in directory.ancestors() {
        let found =
            fs::metadata(path).map_err(|error| Error::from(error).within(path.display()))?;
        let open = found.mode() & WRITABLE_BY_OTHERS != 0;
        let sticky = found.mode() & STICKY != 0 && path != directory;
        if (open && !sticky) || (found.uid() != user && found.uid() != 0) {
            return Err(Error::new(
                ErrorKind::File,
                format!(
                    "{} can be written by other users; compiled programs are not kept there",
                    path.display()
                ),
            ));
        }
    }
    Ok(())
}

/// The user of this process: the owner of a file that it makes.
#[cfg(unix)]
fn user() -> io::Result<u32> {
    use std::os::unix::fs::MetadataExt;
    use std::sync::OnceLock;

    static USER: OnceLock<u32> = OnceLock::new();
    if let Some(user) = USER.get() {
        return Ok(*user);
    }
    let user = tempfile::tempfile()?.metadata()?.uid();
    Ok(*USER.get_or_init(|| user))
}

#[cfg(not(unix))]
fn trust(_: &Path) -> Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> (tempfile::TempDir, Cache) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let cache = Cache::open(&directory.path().join("programs")).expect("a fresh directory");
        (directory, cache)
    }

    fn bad_files(cache: &Cache) -> usize {
        fs::read_dir(&cache.directory)
            .expect("the directory")
            .filter(|entry| {
                let name = entry.as_ref().expect("an entry").file_name();
                name.to_string_lossy().ends_with(".bad")
            })
            .count()
    }

    #[test]
    fn keeps_and_finds() {
        let (_directory, cache) = cache();
        let key = Key::new(&["source", "options"]);
        assert_eq!(cache.load(&key), None);
        cache.store(&key, b"program");
        assert_eq!(cache.load(&key).as_deref(), Some(&b"program"[..]));
        assert_eq!(cache.load(&Key::new(&["sourceo", "ptions"])), None);
    }

    #[test]
    fn sets_aside_what_is_truncated_altered_or_foreign() {
        type Damage = fn(&mut Vec<u8>);
        let damages: [Damage; 5] = [
            |bytes| bytes.truncate(bytes.len() - 1),
            |bytes| bytes.truncate(10),
            Vec::clear,
            |bytes| *bytes.last_mut().expect("a byte") ^= 1,
            |bytes| bytes[MAGIC.len()] ^= 1,
        ];
        for damage in damages {
            let (_directory, cache) = cache();
            let key = Key::new(&["source"]);
            cache.store(&key, b"program");
            let mut bytes = fs::read(cache.path(&key)).expect("the file");
            damage(&mut bytes);
            fs::write(cache.path(&key), &bytes).expect("the file");
            assert_eq!(cache.load(&key), None);
            assert!(!cache.path(&key).exists());
            assert_eq!(bad_files(&cache), 1);
            cache.store(&key, b"again");
            assert_eq!(cache.load(&key).as_deref(), Some(&b"again"[..]));
        }
    }

    #[test]
    fn takes_no_file_of_another_key() {
        let (_directory, cache) = cache();
        let (key, other) = (Key::new(&["a"]), Key::new(&["b"]));
        cache.store(&other, b"program of b");
        fs::copy(cache.path(&other), cache.path(&key)).expect("a copy");
        assert_eq!(cache.load(&key), None);
        assert_eq!(bad_files(&cache), 1);
        assert!(cache.load(&other).is_some());
    }

    #[cfg(unix)]
    #[test]
    fn refuses_a_directory_that_others_can_write() {
        use std::os::unix::fs::PermissionsExt;
        let (_directory, cache) = cache();
        let key = Key::new(&["source"]);
        cache.store(&key, b"program");
        let open = fs::Permissions::from_mode(0o777);
        fs::set_permissions(&cache.directory, open).expect("permissions");
        let refused = Cache::open(&cache.directory).expect_err("a directory for all");
        assert_eq!(refused.kind(), ErrorKind::File);
        assert_eq!(
            cache.load(&key),
            None,
            "a directory that was opened to all meanwhile"
        );
    }

    #[test]
    fn a_directory_without_room_for_files_costs_only_the_cache() {
        // A directory in the place of the temporary file's target: works for root, too, whom permissions do not stop.
        let (_directory, cache) = cache();
        let key = Key::new(&["source"]);
        fs::create_dir_all(cache.path(&key).join("full")).expect("a directory");
        cache.store(&key, b"program");
        assert_eq!(cache.load(&key), None);
    }

    const RACE: &str = "ROPEWAY_CACHE_RACE";

    fn race_binary(round: u8) -> Vec<u8> {
        vec![round; 10_000 + usize::from(round)]
    }

    #[test]
    #[ignore = "a process of processes_race_without_harm, which starts it"]
    fn race_writer() {
        let directory = std::env::var_os(RACE).expect("set by the test that starts this");
        let cache = Cache::open(Path::new(&directory)).expect("the same directory");
        for round in 0..100 {
            cache.store(&Key::new(&["source"]), &race_binary(round));
        }
    }

    #[test]
    fn processes_race_without_harm() {
        let (_directory, cache) = cache();
        let key = Key::new(&["source"]);
        let mut writers: Vec<_> = (0..2)
            .map(|_| {
                std::process::Command::new(std::env::current_exe().expect("this test"))
                    .args(["cache::tests::race_writer", "--exact", "--ignored"])
                    .env(RACE, &cache.directory)
                    .stdout(std::process::Stdio::null())
                    .spawn()
                    .expect("a process")
            })
            .collect();
        let mut found = 0;
        while writers
            .iter_mut()
            .any(|writer| writer.try_wait().expect("a process").is_none())
        {
            if let Some(binary) = cache.load(&key) {
                assert!(binary == race_binary(binary[0]));
                found += 1;
            }
        }
        for mut writer in writers {
            assert!(writer.wait().expect("a process").success());
        }
        assert!(found > 0 && cache.load(&key).is_some());
        assert_eq!(bad_files(&cache), 0);
    }
}
