//! The committed header is what cbindgen makes of the sources. To make it anew:
//!
//! ```text
//! ROPEWAY_UPDATE_HEADER=1 cargo test -p ropeway-capi --test header
//! ```

use std::path::Path;

use cbindgen::Config;

#[test]
fn the_header_is_that_of_the_sources() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = Config::from_file(package.join("cbindgen.toml")).unwrap();
    let mut made = Vec::new();
    cbindgen::generate_with_config(package, config)
        .unwrap()
        .write(&mut made);
    let made = String::from_utf8(made).unwrap();
    let path = package.join("include/ropeway.h");
    if std::env::var_os("ROPEWAY_UPDATE_HEADER").is_some() {
        std::fs::write(&path, &made).unwrap();
        return;
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = made
        .lines()
        .zip(committed.lines().chain(std::iter::repeat("")))
        .enumerate()
        .find(|(_, (made, committed))| made != committed);
    if let Some((line, (made, committed))) = differs {
        panic!(
            "include/ropeway.h, line {}: {committed:?}, but the sources give {made:?}; run \
             ROPEWAY_UPDATE_HEADER=1 cargo test -p ropeway-capi --test header",
            line + 1
        );
    }
    assert_eq!(
        made, committed,
        "include/ropeway.h has more lines than the sources give"
    );
}

/// A program that was linked with one library is to find every later one of the same interface, and no other.
#[test]
fn the_installed_library_bears_the_version_of_the_interface() {
    let header = include_str!("../include/ropeway.h");
    let define = "#define ROPEWAY_API_VERSION ";
    let version = header.lines().find_map(|line| line.strip_prefix(define));
    let manifest: toml::Table = include_str!("../Cargo.toml").parse().unwrap();
    let library = &manifest["package"]["metadata"]["capi"]["library"];
    let number = library["version"].as_str().unwrap();
    assert_eq!(number.split('.').next(), version);
    assert_eq!(library["version_suffix_components"].as_integer(), Some(1));
}
