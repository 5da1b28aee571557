//! The binaries that are committed beside the kernels in GLSL, for those who change them.
//!
//! A folder with kernels in GLSL lists them in `spirv.toml`:
//!
//! ```toml
//! [[shader]]
//! file = "gemm_tiled.comp"        # includes other files by #include "…"
//! table = "GEMM_TILED"            # the constant in spirv.rs; several shaders may share one
//! entry = "gemm_tiled"            # what launches call it
//! define = { STORAGE_16 = 1 }     # macros that are the same for all its variants
//! variants = ["A_DTYPE=f32|f16 D_DTYPE=f32"]   # one binary each; `|` stands for all of these
//! ```
//!
//! Each variant becomes a file in `spirv/`, `spirv.rs` the table of them, and `spirv/hashes` says what each was made from.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use rayon::prelude::*;
use ropeway_core::{DType, Error, ErrorKind, Result};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::cmd::print_line;

/// Which Vulkan the modules are for.
const TARGET: &str = "vulkan1.2";
const TABLE: &str = "spirv.toml";
const HASHES: &str = "spirv/hashes";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Shaders {
    shader: Vec<Shader>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Shader {
    file: String,
    table: String,
    entry: String,
    #[serde(default)]
    define: BTreeMap<String, i64>,
    #[serde(default)]
    variants: Vec<String>,
}

/// A binary to make.
struct Variant<'a> {
    shader: &'a Shader,
    dtypes: Vec<(String, DType)>,
    constants: Vec<(String, i64)>,
    /// Within `spirv/`.
    file: String,
    /// Of all that goes into it.
    source: String,
}

/// Compiles what has changed in these folders, or in all below the current one. The exit code is 1 if `check`, which compiles nothing,
/// found something stale.
///
/// # Errors
/// `CompileFailed` with the compiler's messages, `File`, `InvalidArgument` for a table that makes no sense.
pub fn run(mut folders: Vec<PathBuf>, check: bool) -> Result<ExitCode> {
    if folders.is_empty() {
        find(Path::new("."), 3, &mut folders)?;
    }
    let mut stale = 0;
    for folder in &folders {
        let done = self::folder(folder, check);
        for line in done.map_err(|error| error.within(folder.display()))? {
            stale += 1;
            print_line(format_args!("{}/{line}", folder.display()))?;
        }
    }
    if check && stale > 0 {
        print_line("run: ropeway compile --language spirv")?;
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// The folders with a table, so many levels deep.
fn find(folder: &Path, levels: usize, found: &mut Vec<PathBuf>) -> Result<()> {
    if folder.join(TABLE).is_file() {
        found.push(folder.to_owned());
    }
    let mut inside: Vec<PathBuf> = fs::read_dir(folder)?
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect();
    inside.sort();
    for folder in inside {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        if levels > 1 && name != "target" && !name.starts_with('.') {
            find(&folder, levels - 1, found)?;
        }
    }
    Ok(())
}

/// Brings a folder up to date, or only looks. Gives what was stale.
fn folder(folder: &Path, check: bool) -> Result<Vec<String>> {
    let table: Shaders = toml::from_str(&read(&folder.join(TABLE))?)
        .map_err(|error| Error::invalid(TABLE, error, "a table of shaders"))?;
    let mut variants = Vec::new();
    for shader in &table.shader {
        variants.extend(expand(folder, shader)?);
    }
    let mut files: Vec<&str> = variants.iter().map(|variant| &*variant.file).collect();
    files.sort_unstable();
    if let Some(twice) = files.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Error::invalid(TABLE, twice[0], "one variant of that name"));
    }
    let known = hashes(folder);
    let up_to_date = |variant: &Variant<'_>| {
        known.get(&variant.file).is_some_and(|(source, binary)| {
            *source == variant.source
                && fs::read(folder.join("spirv").join(&variant.file))
                    .is_ok_and(|bytes| *binary == hash(&bytes))
        })
    };
    let mut changed: Vec<&Variant<'_>> = variants
        .iter()
        .filter(|variant| !up_to_date(variant))
        .collect();
    changed.sort_by(|a, b| a.file.cmp(&b.file));
    let mut stale: Vec<String> = changed
        .iter()
        .map(|variant| format!("spirv/{}", variant.file))
        .collect();
    let leftover: Vec<PathBuf> = fs::read_dir(folder.join("spirv"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name != "hashes" && !variants.iter().any(|variant| variant.file == name)
        })
        .collect();
    stale.extend(leftover.iter().map(|path| {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        format!("spirv/{name} (no longer listed)")
    }));
    if !check {
        fs::create_dir_all(folder.join("spirv"))?;
        changed
            .par_iter()
            .map(|variant| compile(folder, variant))
            .collect::<Result<Vec<()>>>()?;
        for path in leftover {
            fs::remove_file(path)?;
        }
    }
    let text = rust(&variants);
    if read(&folder.join("spirv.rs")).ok().as_ref() != Some(&text) {
        stale.push("spirv.rs".into());
        if !check {
            fs::write(folder.join("spirv.rs"), text)?;
        }
    }
    if !check {
        let mut lines =
            String::from("# SHA-256 of what each file was made from, and of the file.\n");
        let mut all: Vec<&Variant<'_>> = variants.iter().collect();
        all.sort_by(|a, b| a.file.cmp(&b.file));
        for variant in all {
            let binary = hash(&fs::read(folder.join("spirv").join(&variant.file))?);
            writeln!(lines, "{} {binary} {}", variant.source, variant.file)
                .expect("a string takes any text");
        }
        fs::write(folder.join(HASHES), lines)?;
    }
    Ok(stale)
}

/// The variants of a shader, in the order of the table.
fn expand<'a>(folder: &Path, shader: &'a Shader) -> Result<Vec<Variant<'a>>> {
    let mut text = Sha256::new();
    include(&folder.join(&shader.file), 8, &mut text)?;
    let lists = match shader.variants.is_empty() {
        true => vec![String::new()],
        false => shader.variants.clone(),
    };
    let mut variants = Vec::new();
    for list in &lists {
        let mut choices: Vec<Vec<(&str, &str)>> = vec![Vec::new()];
        for word in list.split_whitespace() {
            let (name, values) = word
                .split_once('=')
                .ok_or_else(|| Error::invalid("variants", word, "NAME=value|value"))?;
            choices = choices
                .iter()
                .flat_map(|choice| {
                    values.split('|').map(|value| {
                        let mut longer = choice.clone();
                        longer.push((name, value));
                        longer
                    })
                })
                .collect();
        }
        for choice in choices {
            let (mut dtypes, mut constants) = (Vec::new(), Vec::new());
            for (name, value) in &choice {
                if name.ends_with("DTYPE") {
                    let dtype =
                        DType::from_name(&value.to_uppercase()).or_else(|| DType::from_name(value));
                    let dtype = dtype.ok_or_else(|| Error::invalid(name, value, "a dtype"))?;
                    dtypes.push(((*name).to_owned(), dtype));
                } else {
                    let value = value
                        .parse()
                        .map_err(|_| Error::invalid(name, value, "a whole number"))?;
                    constants.push(((*name).to_owned(), value));
                }
            }
            let mut file = shader.table.to_lowercase();
            if shader.entry != file {
                write!(file, ".{}", shader.entry).expect("a string takes any text");
            }
            for (number, (_, value)) in choice.iter().enumerate() {
                let separator = if number == 0 { '.' } else { '-' };
                write!(file, "{separator}{value}").expect("a string takes any text");
            }
            file.push_str(".spv");
            let mut variant = Variant {
                shader,
                dtypes,
                constants,
                file,
                source: String::new(),
            };
            let mut source = text.clone();
            source.update(TARGET);
            for define in variant.defines() {
                source.update(define);
            }
            variant.source = hexadecimal(&source.finalize());
            variants.push(variant);
        }
    }
    Ok(variants)
}

impl Variant<'_> {
    /// The compiler's `-D` options.
    fn defines(&self) -> Vec<String> {
        let fixed = self
            .shader
            .define
            .iter()
            .map(|(name, value)| (name, *value));
        let dtypes = self.dtypes.iter().map(|(name, dtype)| (name, dtype.code()));
        let constants = self.constants.iter().map(|(name, value)| (name, *value));
        fixed
            .chain(dtypes)
            .chain(constants)
            .map(|(name, value)| format!("-D{name}={value}"))
            .collect()
    }
}

/// Adds a file and what it includes to a hash.
fn include(file: &Path, levels: usize, into: &mut Sha256) -> Result<()> {
    let text = read(file)?;
    if levels == 0 {
        return Err(Error::invalid("#include", file.display(), "no circle"));
    }
    into.update((text.len() as u64).to_le_bytes());
    into.update(&text);
    for line in text.lines() {
        let Some(rest) = line.trim_start().strip_prefix("#include") else {
            continue;
        };
        let name = rest.trim().trim_matches('"');
        include(&file.with_file_name("").join(name), levels - 1, into)?;
    }
    Ok(())
}

fn compile(folder: &Path, variant: &Variant<'_>) -> Result<()> {
    let output = folder.join("spirv").join(&variant.file);
    let source = folder.join(&variant.shader.file);
    let mut glslang = Command::new("glslangValidator");
    glslang
        .args(["--quiet", "--target-env", TARGET, "-S", "comp"])
        .arg(format!("-I{}", folder.display()))
        .args(variant.defines())
        .arg("-o")
        .args([&output, &source]);
    run_tool(&mut glslang, "glslang-tools")?;
    let mut validator = Command::new("spirv-val");
    validator
        .args(["--target-env", TARGET, "--scalar-block-layout"])
        .arg(&output);
    run_tool(&mut validator, "spirv-tools").inspect_err(|_| {
        let _ = fs::remove_file(&output);
    })
}

/// Runs a tool of a package of Debian's.
fn run_tool(command: &mut Command, package: &str) -> Result<()> {
    let output = command.output().map_err(|error| {
        let program = command.get_program().display();
        Error::new(
            ErrorKind::Unavailable,
            format!(
                "{program}: {error}; install it (Debian and Ubuntu: apt-get install {package})"
            ),
        )
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    Err(Error::new(
        ErrorKind::CompileFailed,
        format!("{command:?}\n{}", String::from_utf8_lossy(&said)),
    ))
}

/// The Rust source of the tables.
fn rust(variants: &[Variant<'_>]) -> String {
    let mut tables: Vec<&str> = variants
        .iter()
        .map(|variant| &*variant.shader.table)
        .collect();
    tables.sort_unstable();
    tables.dedup();
    let mut text = String::from(
        "//! SPIR-V by entry and dtypes. Made from `spirv.toml` by `ropeway compile --language spirv`; not to be edited.\n\n",
    );
    if variants.iter().any(|variant| !variant.dtypes.is_empty()) {
        text.push_str("use ropeway_core::DType;\n");
    }
    text.push_str("use ropeway_core::kernel::Binary;\n");
    for table in tables {
        writeln!(
            text,
            "\n#[rustfmt::skip]\npub(super) const {table}: &[Binary] = &["
        )
        .expect("a string takes any text");
        for variant in variants
            .iter()
            .filter(|variant| variant.shader.table == table)
        {
            let dtypes: Vec<_> = variant
                .dtypes
                .iter()
                .map(|(name, dtype)| format!("({name:?}, DType::{dtype:?})"))
                .collect();
            let constants: Vec<_> = variant
                .constants
                .iter()
                .map(|(name, value)| format!("({name:?}, {value})"))
                .collect();
            writeln!(
                text,
                "    Binary {{ entry: {:?}, dtypes: &[{}], constants: &[{}], code: include_bytes!(\"spirv/{}\") }},",
                variant.shader.entry,
                dtypes.join(", "),
                constants.join(", "),
                variant.file
            )
            .expect("a string takes any text");
        }
        text.push_str("];\n");
    }
    text
}

/// What each binary was made from, and its own hash, by file.
fn hashes(folder: &Path) -> BTreeMap<String, (String, String)> {
    let text = read(&folder.join(HASHES)).unwrap_or_default();
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let mut words = line.split(' ');
            let (source, binary, file) = (words.next()?, words.next()?, words.next()?);
            Some((file.to_owned(), (source.to_owned(), binary.to_owned())))
        })
        .collect()
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|error| Error::from(error).within(path.display()))
}

fn hash(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
