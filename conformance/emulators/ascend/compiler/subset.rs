//! The AscendC subset, which the library carries: headers for kernels, and the machine that they are linked with.

use std::path::{Path, PathBuf};

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        /// The files by their names.
        const FILES: &[(&str, &str)] = &[$(($name, include_str!(concat!("../ascendc/", $name)))),*];
    };
}

files![
    "copy.h",
    "core.h",
    "cost.h",
    "cube.h",
    "engine.h",
    "kernel_operator.h",
    "launch.h",
    "machine.cpp",
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

/// The subset as a folder.
#[derive(Debug)]
pub struct Subset {
    /// Where the headers lie, and `machine.cpp`.
    pub folder: PathBuf,
    /// All that stands in them.
    pub text: Vec<u8>,
}

/// Makes the folder: written out of the library, or the one that `ROPEWAY_EMULATED_CANN_SUBSET` names, for who works on it.
///
/// # Errors
/// What reading and writing met.
pub fn write(parent: &Path) -> std::io::Result<Subset> {
    let mut text = Vec::new();
    if let Some(named) = std::env::var_os("ROPEWAY_EMULATED_CANN_SUBSET") {
        let folder = PathBuf::from(named);
        for (name, _) in FILES {
            text.extend(std::fs::read(folder.join(name))?);
        }
        return Ok(Subset { folder, text });
    }
    let folder = parent.join("ascendc");
    std::fs::create_dir(&folder)?;
    for (name, content) in FILES {
        std::fs::write(folder.join(name), content)?;
        text.extend(content.bytes());
    }
    Ok(Subset { folder, text })
}

#[cfg(test)]
mod tests {
    #[test]
    fn all_files_are_carried() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/ascendc");
        let files = std::fs::read_dir(folder).unwrap();
        let mut found: Vec<String> = files
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".h") || name.ends_with(".cpp"))
            .collect();
        found.sort();
        let carried: Vec<&str> = super::FILES.iter().map(|(name, _)| *name).collect();
        assert_eq!(found, carried);
    }
}
