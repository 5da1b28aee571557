//! The headers of the AscendC subset, which the library carries.

use std::path::{Path, PathBuf};

/// The headers by their names.
const HEADERS: &[(&str, &str)] = &[];

/// Makes the folder of headers: written out of the library, or the one that `ROPEWAY_EMULATED_CANN_SUBSET` names, for who works on them.
///
/// # Errors
/// What writing met.
pub fn write(folder: &Path) -> std::io::Result<PathBuf> {
    if let Some(named) = std::env::var_os("ROPEWAY_EMULATED_CANN_SUBSET") {
        return Ok(named.into());
    }
    let headers = folder.join("ascendc");
    std::fs::create_dir(&headers)?;
    for (name, text) in HEADERS {
        std::fs::write(headers.join(name), text)?;
    }
    Ok(headers)
}
