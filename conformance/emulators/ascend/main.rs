//! `ropeway-ascend-emulator`: installs the emulated CANN where a program looks for the real one; estimates the cycles of kernels.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ropeway_emulated_cann::estimate;
use ropeway_emulated_cann::install::install;
use ropeway_emulated_cann::runtime::settings::Profile;

const USAGE: &str = "usage: ropeway-ascend-emulator install DIR [--profile 8.1|8.5|9.0|9.1] [--without SYMBOL]... [--library FILE]

Writes DIR/lib64/libacl_rt.so and libacl_rtc.so as this version of CANN has them; ASCEND_HOME_PATH=DIR makes a program find them.
The version is also taken from ROPEWAY_EMULATED_CANN; without either it is 9.0. FILE is libropeway_emulated_cann.so, looked for beside this
program.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(("estimate", words)) = arguments
        .split_first()
        .map(|(first, rest)| (first.as_str(), rest))
    {
        return match estimate::estimate(words) {
            Ok(text) => {
                print!("{text}");
                ExitCode::SUCCESS
            }
            Err(why) => {
                eprintln!("error: {why}\n\n{}", estimate::USAGE);
                ExitCode::FAILURE
            }
        };
    }
    match run(&arguments) {
        Ok(Some(written)) => {
            for path in written {
                println!("{}", path.display());
            }
            ExitCode::SUCCESS
        }
        Ok(None) => {
            eprintln!("{USAGE}\n\n{}", estimate::USAGE);
            ExitCode::from(2)
        }
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}

/// What was written; nothing where the arguments are not understood.
fn run(arguments: &[String]) -> Result<Option<Vec<PathBuf>>, String> {
    let mut words = arguments.iter();
    let (Some("install"), Some(directory)) = (words.next().map(String::as_str), words.next())
    else {
        return Ok(None);
    };
    let mut profile = std::env::var("ROPEWAY_EMULATED_CANN").unwrap_or_else(|_| "9.0".into());
    let mut without = Vec::new();
    let mut library = None;
    while let Some(word) = words.next() {
        let Some(value) = words.next() else {
            return Ok(None);
        };
        match word.as_str() {
            "--profile" => profile = value.clone(),
            "--without" => without.push(value.clone()),
            "--library" => library = Some(PathBuf::from(value)),
            _ => return Ok(None),
        }
    }
    let profile: Profile = profile.parse()?;
    let library = match library {
        Some(library) => library,
        None => beside()?,
    };
    install(&library, Path::new(directory), profile, &without).map(Some)
}

/// The library that was built with this program.
fn beside() -> Result<PathBuf, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let name = "libropeway_emulated_cann.so";
    let folder = program.parent().unwrap_or(Path::new("."));
    // Cargo puts it into one or the other, by what it was asked to build; the newer one belongs to this program.
    [folder.join(name), folder.join("deps").join(name)]
        .into_iter()
        .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)))
        .max()
        .map(|(_, path)| path)
        .ok_or_else(|| format!("no {name} beside {}; --library names it", program.display()))
}
