//! C and C++ programs on the built library: examples/ and tests/programs/, by every compiler that is here, on every device that is here, under the
//! address sanitizer and under valgrind. What is missing shows as an ignored test with the reason.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::SystemTime;

use libtest_mimic::{Arguments, Failed, Trial};
use ropeway_rust::Registry;
use tempfile::TempDir;

type Outcome = Result<(), Failed>;

const WARNINGS: [&str; 4] = ["-Wall", "-Wextra", "-pedantic", "-Werror"];
const EXAMPLES: [&str; 2] = ["examples/gemm.c", "examples/moe.cpp"];
const PROGRAMS: [&str; 4] = [
    "tests/programs/errors.c",
    "tests/programs/import.c",
    "tests/programs/ops.c",
    "tests/programs/threads.c",
];

fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where cargo puts the libraries: above the test's own directory.
fn libraries() -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    let directory = test.parent().and_then(Path::parent);
    directory.expect("cargo builds tests in deps/").to_owned()
}

/// Cargo builds no dynamic library for a test, so it must be there and newer than its sources.
fn check_library() -> Outcome {
    let modified = |path: &Path| path.metadata().and_then(|metadata| metadata.modified());
    let library = libraries().join("libropeway.so");
    let built = modified(&library).unwrap_or(SystemTime::UNIX_EPOCH);
    for source in std::fs::read_dir(package().join("src"))? {
        let source = source?.path();
        if modified(&source)? > built {
            let (library, source) = (library.display(), source.display());
            return Err(format!(
                "{library} is missing or older than {source}: cargo build -p ropeway-capi"
            )
            .into());
        }
    }
    Ok(())
}

fn run(command: &mut Command) -> Result<String, Failed> {
    let output = command
        .output()
        .map_err(|error| format!("{command:?}: {error}"))?;
    let [out, err] =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    match output.status.success() {
        true => Ok(out),
        false => Err(format!("{command:?}: {}\n{out}{err}", output.status).into()),
    }
}

fn is_there(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success())
}

/// How a program is compiled.
#[derive(Clone, Copy)]
struct Build {
    compiler: &'static str,
    language: [&'static str; 2],
    flags: &'static [&'static str],
}

const C11: [&str; 2] = ["-xc", "-std=c11"];
const CPP17: [&str; 2] = ["-xc++", "-std=c++17"];

impl Build {
    fn new(compiler: &'static str, language: [&'static str; 2]) -> Build {
        Build {
            compiler,
            language,
            flags: &["-O1"],
        }
    }

    /// The usual compiler for a source.
    fn gnu(source: &str) -> Build {
        match source.ends_with(".cpp") {
            true => Build::new("g++", CPP17),
            false => Build::new("gcc", C11),
        }
    }

    fn with(self, flags: &'static [&'static str]) -> Build {
        Build { flags, ..self }
    }

    fn name(&self) -> String {
        format!("{} {}", self.compiler, self.language[1])
    }

    fn command(&self, include: &Path) -> Command {
        let mut command = Command::new(self.compiler);
        command
            .args(WARNINGS)
            .args(self.flags)
            .args(self.language)
            .arg("-I")
            .arg(include);
        command
    }

    /// Compiles a source of this package into `directory`; gives the program.
    fn compile(&self, source: &Path, include: &Path, directory: &Path) -> Result<PathBuf, Failed> {
        let program = directory.join("program");
        let libraries = libraries();
        let mut command = self.command(include);
        command
            .arg(source)
            .args(["-xnone", "-o"])
            .arg(&program)
            .arg("-L")
            .arg(&libraries);
        command.arg(format!("-Wl,-rpath,{}", libraries.display()));
        command.args(["-lropeway", "-lm", "-ldl", "-pthread"]);
        run(&mut command)?;
        Ok(program)
    }
}

/// A source, how it is built, what it runs under.
#[derive(Clone)]
struct Program {
    source: &'static str,
    build: Build,
    /// The directory of ropeway.h, if it is not the committed one.
    include: Option<Arc<TempDir>>,
    under: &'static [&'static str],
    device: &'static str,
}

impl Program {
    fn new(source: &'static str, build: Build, device: &'static str) -> Program {
        Program {
            source,
            build,
            include: None,
            under: &[],
            device,
        }
    }

    fn run(&self) -> Outcome {
        let directory = tempfile::tempdir()?;
        let committed = package().join("include");
        let include = self
            .include
            .as_ref()
            .map_or(&*committed, |include| include.path());
        let program =
            self.build
                .compile(&package().join(self.source), include, directory.path())?;
        let mut command = match self.under {
            [] => Command::new(&program),
            [tool, arguments @ ..] => {
                let mut command = Command::new(tool);
                command.args(arguments).arg(&program);
                command
            }
        };
        let cache = directory.path().join("cache");
        command.arg(self.device).env("ROPEWAY_CACHE_DIR", cache);
        if self.is_watched() {
            // Leaks of other people's drivers are not ours, and they are found by a mere look for devices.
            let nowhere = directory.path();
            command
                .env("OCL_ICD_VENDORS", nowhere)
                .env("VK_DRIVER_FILES", nowhere);
        }
        run(&mut command)?;
        Ok(())
    }

    fn is_watched(&self) -> bool {
        !self.under.is_empty() || self.build.flags.contains(&"-fsanitize=address")
    }

    /// A trial, ignored where a tool is missing.
    fn trial(self, kind: &str) -> Trial {
        let file = Path::new(self.source)
            .file_name()
            .expect("a source has a name")
            .to_string_lossy();
        let mut name = format!("{kind}: {file}, {}, on {}", self.build.name(), self.device);
        let missing = [Some(&self.build.compiler), self.under.first()];
        let missing = missing.into_iter().flatten().find(|tool| !is_there(tool));
        if let Some(missing) = missing {
            name += &format!(" ({missing} is not installed)");
        }
        let ignored = missing.is_some();
        Trial::test(name, move || self.run()).with_ignored_flag(ignored)
    }
}

/// ropeway.h with each struct of the program's changed by `change`, which gets its fields.
fn header(change: impl Fn(&mut Vec<String>)) -> Result<Arc<TempDir>, Failed> {
    let text = std::fs::read_to_string(package().join("include/ropeway.h"))?;
    let mut changed = String::new();
    let mut fields: Option<Vec<String>> = None;
    for line in text.lines() {
        match &mut fields {
            None => {
                changed += &format!("{line}\n");
                let grows = line.starts_with("typedef struct ropeway_") && line.ends_with('{');
                fields = (grows && line != "typedef struct ropeway_api {").then(Vec::new);
            }
            Some(_) if line.starts_with('}') => {
                let mut fields = fields.take().expect("inside a struct");
                change(&mut fields);
                changed += &format!("{}\n{line}\n", fields.join("\n"));
            }
            Some(_) if line.trim_start().starts_with("//") => {}
            Some(fields) => fields.push(line.to_owned()),
        }
    }
    let directory = tempfile::tempdir()?;
    std::fs::write(directory.path().join("ropeway.h"), changed)?;
    Ok(Arc::new(directory))
}

/// The header of a version whose structs had one word less.
fn older(fields: &mut Vec<String>) {
    let narrow = [
        "uint32_t",
        "ropeway_dtype",
        "ropeway_layout",
        "ropeway_activation",
        "ropeway_determinism",
    ];
    let last = fields.pop().expect("a struct has fields");
    if narrow
        .iter()
        .any(|narrow| last.trim_start().starts_with(&format!("{narrow} ")))
    {
        fields.pop();
    }
}

/// The header of a version whose structs have one word more.
fn newer(fields: &mut Vec<String>) {
    fields.push("    uint64_t later;".to_owned());
}

/// A program built with another version's header, whose structs are `grown` bytes longer, does what it did.
fn other_version(change: fn(&mut Vec<String>), grown: i64) -> Outcome {
    let include = header(change)?;
    let sizes = frozen()?
        .into_iter()
        .filter(|(object, field, _)| field == "-" && object != "ropeway_api")
        .map(|(object, field, size)| (object, field, size + grown));
    compiler_agrees(Build::new("gcc", C11), include.path(), sizes.collect())?;
    for build in [Build::new("gcc", C11), Build::new("g++", CPP17)] {
        let mut program = Program::new("examples/gemm.c", build, "cpu");
        program.include = Some(Arc::clone(&include));
        program.run()?;
    }
    Ok(())
}

/// Struct, field (`-` for its end) and place of each line of tests/layout.txt.
type Place = (String, String, i64);

fn frozen() -> Result<Vec<Place>, Failed> {
    let text = std::fs::read_to_string(package().join("tests/layout.txt"))?;
    let place = |line: &str| {
        let mut words = line.split(' ');
        let (object, field) = (words.next()?.to_owned(), words.next()?.to_owned());
        Some((object, field, words.next()?.parse().ok()?))
    };
    text.lines()
        .map(|line| place(line).ok_or_else(|| format!("tests/layout.txt: {line:?}").into()))
        .collect()
}

/// The C compiler puts every field where it is said to be.
fn compiler_agrees(build: Build, include: &Path, places: Vec<Place>) -> Outcome {
    let assert = if build.language == C11 {
        "_Static_assert"
    } else {
        "static_assert"
    };
    let mut source = String::from("#include <ropeway.h>\n");
    for (object, field, number) in places {
        let place = match &*field {
            "-" => format!("sizeof({object})"),
            _ => format!("offsetof({object}, {field})"),
        };
        source += &format!("{assert}({place} == {number}, \"{object} {field}\");\n");
    }
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("layout.c");
    std::fs::write(&path, source)?;
    run(build.command(include).arg("-fsyntax-only").arg(&path))?;
    Ok(())
}

/// The places of tests/layout.txt are those of the C compiler.
fn layout(build: Build) -> Outcome {
    compiler_agrees(build, &package().join("include"), frozen()?)
}

/// The two watchers do find a buffer that nobody releases.
fn leak_is_found(watched: Program) -> Outcome {
    match watched.run() {
        Ok(()) => Err("a leak was not found".into()),
        Err(error) => match error.message().unwrap_or_default() {
            report if report.contains("buffer_create") => Ok(()),
            report => Err(format!("not the leak: {report}").into()),
        },
    }
}

/// The static library, with what `rustc --print native-static-libs` names.
fn statically_linked() -> Outcome {
    let directory = tempfile::tempdir()?;
    let program = directory.path().join("program");
    let mut command = Build::new("gcc", C11).command(&package().join("include"));
    command
        .arg(package().join("examples/gemm.c"))
        .args(["-xnone", "-o"])
        .arg(&program);
    command.arg(libraries().join("libropeway.a"));
    command.args([
        "-lgcc_s",
        "-lutil",
        "-lrt",
        "-lpthread",
        "-lm",
        "-ldl",
        "-lc",
    ]);
    run(&mut command)?;
    run(Command::new(&program)
        .arg("cpu")
        .env("ROPEWAY_CACHE_DIR", directory.path()))?;
    Ok(())
}

/// Nothing of the library can meet a symbol of the program's.
fn one_symbol() -> Outcome {
    let library = libraries().join("libropeway.so");
    let symbols = run(Command::new("nm")
        .args(["-D", "--defined-only", "--format=just-symbols"])
        .arg(&library))?;
    match symbols.trim() {
        "ropeway_get_api" => Ok(()),
        other => Err(format!("exported: {other}").into()),
    }
}

/// A program under the address sanitizer, which watches for leaks, too.
fn sanitized(source: &'static str) -> Program {
    let flags: &[_] = &[
        "-g",
        "-fsanitize=address",
        "-fsanitize=undefined",
        "-fno-sanitize-recover=all",
    ];
    Program::new(source, Build::gnu(source).with(flags), "cpu")
}

/// A program under valgrind.
fn valgrind(source: &'static str) -> Program {
    let mut watched = Program::new(source, Build::gnu(source).with(&["-g"]), "cpu");
    watched.under = &[
        "valgrind",
        "--quiet",
        "--error-exitcode=99",
        "--leak-check=full",
        "--show-leak-kinds=definite,indirect",
        "--errors-for-leak-kinds=definite,indirect",
    ];
    watched
}

fn trials() -> Vec<Trial> {
    if !cfg!(target_os = "linux") {
        return vec![
            Trial::test("programs (they are built for Linux only)", || Ok(()))
                .with_ignored_flag(true),
        ];
    }
    let mut trials = vec![Trial::test(
        "the library is that of the sources",
        check_library,
    )];
    let mut devices = vec!["cpu"];
    for device in ["opencl", "vulkan", "cuda"] {
        match Registry::default().open(device) {
            Ok(_) => devices.push(device),
            Err(_) => {
                let trial = Trial::test(format!("programs on {device} (no device)"), || Ok(()));
                trials.push(trial.with_ignored_flag(true));
            }
        }
    }
    for (compiler, language) in [
        ("gcc", C11),
        ("clang", C11),
        ("g++", CPP17),
        ("clang++", CPP17),
    ] {
        let build = Build::new(compiler, language);
        trials.push(Program::new("examples/gemm.c", build, "cpu").trial("example"));
        if language == CPP17 {
            trials.push(Program::new("examples/moe.cpp", build, "cpu").trial("example"));
        }
        let is_here = is_there(compiler);
        let name = format!("layout: {}", build.name());
        trials.push(Trial::test(name, move || layout(build)).with_ignored_flag(!is_here));
    }
    for &device in &devices {
        // On the cpu every compiler has had the examples above.
        let examples: &[_] = if device == "cpu" { &[] } else { &EXAMPLES };
        for &source in examples.iter().chain(&PROGRAMS) {
            let imports = source.ends_with("import.c");
            // The others have nothing to import from here: Vulkan takes in nothing, CUDA's memory needs CUDA.
            if !imports || ["cpu", "opencl"].contains(&device) {
                trials.push(Program::new(source, Build::gnu(source), device).trial("program"));
            }
        }
    }
    for (kind, watched) in [
        ("sanitized", sanitized as fn(&'static str) -> Program),
        ("valgrind", valgrind),
    ] {
        for source in EXAMPLES.into_iter().chain(PROGRAMS) {
            trials.push(watched(source).trial(kind));
        }
        let leak = watched("tests/programs/leak.c");
        let is_here = leak.under.first().is_none_or(|tool| is_there(tool));
        let trial = Trial::test(format!("{kind}: a leak is found"), move || {
            leak_is_found(leak)
        });
        trials.push(trial.with_ignored_flag(!is_here));
    }
    trials.push(Trial::test("built with an older header", || {
        other_version(older, -8)
    }));
    trials.push(Trial::test("built with a newer header", || {
        other_version(newer, 8)
    }));
    trials.push(Trial::test("linked statically", statically_linked));
    trials.push(Trial::test("one symbol is exported", one_symbol));
    trials
}

fn main() {
    libtest_mimic::run(&Arguments::from_args(), trials()).exit();
}
