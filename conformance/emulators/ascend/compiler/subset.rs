//! The headers of the AscendC subset, which the library carries.

use std::path::{Path, PathBuf};

macro_rules! headers {
    ($($name:literal),* $(,)?) => {
        /// The headers by their names.
        const HEADERS: &[(&str, &str)] = &[$(($name, include_str!(concat!("../ascendc/", $name)))),*];
    };
}

headers![
    "copy.h",
    "core.h",
    "cost.h",
    "cube.h",
    "kernel_operator.h",
    "launch.h",
    "machine.h",
    "numbers.h",
    "pipes.h",
    "queue.h",
    "reduce.h",
    "ropeway_runtime.h",
    "sync.h",
    "tensor.h",
    "vector.h",
];

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

#[cfg(test)]
mod tests {
    #[test]
    fn all_headers_are_carried() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/ascendc");
        let files = std::fs::read_dir(folder).unwrap();
        let mut found: Vec<String> = files
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".h"))
            .collect();
        found.sort();
        let carried: Vec<&str> = super::HEADERS.iter().map(|(name, _)| *name).collect();
        assert_eq!(found, carried);
    }
}
