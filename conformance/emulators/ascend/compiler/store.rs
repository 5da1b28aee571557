//! What was compiled before, for any process: a folder that `ROPEWAY_EMULATED_CANN_STORE` names. Without one, each process compiles anew.
//!
//! An object is found by the digest of all that it was made of, so that one of another source, compiler or subset is never taken. Nothing is ever removed.

use std::io::Write;
use std::path::PathBuf;

use sha2::{Digest, Sha256};

/// The name of what is made of these parts.
pub fn name(parts: &[&[u8]]) -> String {
    let mut digest = Sha256::new();
    for part in parts {
        // So that no two lists of parts are the same bytes.
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    let bytes = digest.finalize();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn folder() -> Option<PathBuf> {
    std::env::var_os("ROPEWAY_EMULATED_CANN_STORE").map(PathBuf::from)
}

/// The object of this name, if the store has it.
pub fn get(name: &str) -> Option<Vec<u8>> {
    std::fs::read(folder()?.join(name)).ok()
}

/// Keeps an object. A store that cannot be written to only saves no time.
pub fn put(name: &str, object: &[u8]) {
    let Some(folder) = folder() else { return };
    let kept = || -> std::io::Result<()> {
        std::fs::create_dir_all(&folder)?;
        // Other processes may look for it at any time.
        let mut file = tempfile::NamedTempFile::new_in(&folder)?;
        file.write_all(object)?;
        file.persist(folder.join(name))?;
        Ok(())
    };
    if let Err(error) = kept() {
        eprintln!(
            "emulated CANN: nothing is kept in {}: {error}",
            folder.display()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::name;

    #[test]
    fn names_tell_parts_apart() {
        assert_eq!(name(&[b"ab", b"c"]), name(&[b"ab", b"c"]));
        assert_ne!(name(&[b"ab", b"c"]), name(&[b"a", b"bc"]));
        assert_ne!(name(&[b"ab"]), name(&[b"ab", b""]));
        assert_eq!(name(&[]).len(), 64);
    }
}
