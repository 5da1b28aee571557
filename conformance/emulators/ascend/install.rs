//! Library files of a version of CANN.
//!
//! One library has all functions of both; what a version lacks is taken out of a copy's table of dynamic symbols, by giving the symbol a
//! name that nobody asks for. The copy carries its version, and the directory is laid out as an installation's `ASCEND_HOME_PATH`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use object::LittleEndian;
use object::elf::{FileHeader64, SHT_DYNSYM};
use object::read::elf::{FileHeader, SectionHeader, Sym};

use crate::compiler;
use crate::runtime::entry;
use crate::runtime::settings::{MARKER, PROFILES, Profile};

/// Functions that came with 8.5.
const SINCE_8_5: &[&str] = &[
    "aclrtBinaryLoadFromData",
    "aclrtLaunchKernelWithHostArgs",
    "aclrtGetDeviceInfo",
    "aclFinalizeReference",
];
/// Functions that came with 9.1.
const SINCE_9_1: &[&str] = &["aclrtLaunchKernelWithArgsArray"];

/// The functions of `libacl_rt.so` in a version.
pub fn runtime_functions(profile: Profile) -> Vec<&'static str> {
    let lacks = |name: &&str| {
        (profile < PROFILES[1] && SINCE_8_5.contains(name))
            || (profile < PROFILES[3] && SINCE_9_1.contains(name))
    };
    let mut names = vec!["aclGetRecentErrMsg", "aclrtGetSocName"];
    for part in [
        entry::device::NAMES,
        entry::event::NAMES,
        entry::graph::NAMES,
        entry::launch::NAMES,
        entry::memory::NAMES,
        entry::stream::NAMES,
    ] {
        names.extend(part.iter().copied().filter(|name| !lacks(name)));
    }
    names
}

/// The functions of `libacl_rtc.so` in a version; none before 8.3, which had no run-time compiler.
pub fn compiler_functions(profile: Profile) -> &'static [&'static str] {
    if profile < PROFILES[1] {
        &[]
    } else {
        compiler::entry::NAMES
    }
}

/// Writes `DIRECTORY/lib64` with the libraries of a version; gives their paths.
///
/// # Errors
/// A library that cannot be read or is not the emulator's, a directory that cannot be written.
pub fn install(
    library: &Path,
    directory: &Path,
    profile: Profile,
    without: &[String],
) -> Result<Vec<PathBuf>, String> {
    let known = |name: &String| {
        runtime_functions(PROFILES[3])
            .iter()
            .chain(compiler::entry::NAMES)
            .any(|known| known == name)
    };
    if let Some(name) = without.iter().find(|name| !known(name)) {
        return Err(format!("the emulated CANN has no function {name}"));
    }
    let original = fs::read(library).map_err(|error| format!("{}: {error}", library.display()))?;
    let folder = directory.join("lib64");
    fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut written = Vec::new();
    let files = [
        ("libacl_rt.so", runtime_functions(profile)),
        ("libacl_rtc.so", compiler_functions(profile).to_vec()),
    ];
    for (name, mut keep) in files {
        let path = folder.join(name);
        // What an earlier version left must not stay.
        let _ = fs::remove_file(&path);
        if keep.is_empty() {
            continue;
        }
        keep.retain(|name| !without.iter().any(|lacking| lacking == name));
        let mut bytes = original.clone();
        hide(&mut bytes, &keep)?;
        stamp(&mut bytes, profile)?;
        fs::write(&path, bytes).map_err(|error| format!("{}: {error}", path.display()))?;
        written.push(path);
    }
    Ok(written)
}

/// Renames all of CANN's functions but those to keep.
fn hide(bytes: &mut [u8], keep: &[&str]) -> Result<(), String> {
    let names = names(bytes).map_err(|error| format!("not a library of this machine: {error}"))?;
    if let Some(missing) = keep.iter().find(|name| !names.contains_key(**name)) {
        return Err(format!(
            "not a library of the emulated CANN: {missing} is missing"
        ));
    }
    for (name, at) in names {
        if !keep.contains(&name.as_str()) {
            // The name's first letter. Its length stays, and so does everything behind.
            bytes[at] = b'-';
        }
    }
    Ok(())
}

/// CANN's functions in a library's table of dynamic symbols, and where in the file their names begin.
fn names(bytes: &[u8]) -> object::Result<BTreeMap<String, usize>> {
    let endian = LittleEndian;
    let header = FileHeader64::<LittleEndian>::parse(bytes)?;
    let sections = header.sections(endian, bytes)?;
    let symbols = sections.symbols(endian, bytes, SHT_DYNSYM)?;
    let strings = sections.section(symbols.string_section())?;
    let (start, _) = strings.file_range(endian).unwrap_or_default();
    let mut found = BTreeMap::new();
    for symbol in symbols.iter() {
        let name = String::from_utf8_lossy(symbol.name(endian, symbols.strings())?);
        if name.starts_with("acl") {
            let at = start as usize + symbol.st_name(endian) as usize;
            found.insert(name.into_owned(), at);
        }
    }
    Ok(found)
}

/// Writes the version into the file.
fn stamp(bytes: &mut [u8], profile: Profile) -> Result<(), String> {
    let places: Vec<usize> = bytes
        .windows(MARKER.len())
        .enumerate()
        .filter(|(_, window)| *window == MARKER)
        .map(|(at, _)| at)
        .collect();
    // The marker stands once where it has a version behind it; elsewhere it is what is looked for.
    let stamped = places
        .into_iter()
        .map(|at| at + MARKER.len())
        .filter(|at| {
            bytes
                .get(*at..*at + 3)
                .is_some_and(|version| version == b"9.0")
        })
        .collect::<Vec<_>>();
    let [at] = stamped[..] else {
        return Err("not a library of the emulated CANN".into());
    };
    bytes[at..at + 3].copy_from_slice(profile.to_string().as_bytes());
    Ok(())
}
