//! `ropeway-cuda-emulator`: records what instructions do on a GPU, holds the interpreter to it, and says how fast the interpreter is.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use ropeway_emulated_cuda::golden::{self, Entry, Record, real::Driver};
use ropeway_emulated_cuda::interpret::{self, Launch, Options, shared::Watch};
use ropeway_emulated_cuda::memory::{AddressSpace, State};
use ropeway_emulated_cuda::ptx::Module;

const USAGE: &str = "usage: ropeway-cuda-emulator record FILE [--emulated]   run the golden kernels on the machine's GPU and write their results
       ropeway-cuda-emulator verify FILE                hold the interpreter to such a record
       ropeway-cuda-emulator check FILE.ptx ...         say whether PTX is accepted, and what refuses it
       ropeway-cuda-emulator speed                      instructions a second of the interpreter, on one core

record refuses an emulated driver, unless --emulated says that it is meant (which tests recording, and proves nothing else).";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words[..] {
        ["record", file] => record(file, false),
        ["record", file, "--emulated"] => record(file, true),
        ["verify", file] => verify(file),
        ["check", ref files @ ..] if !files.is_empty() => check(files),
        ["speed"] => speed(),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}

fn record(file: &str, emulated: bool) -> Result<bool, String> {
    let driver = Driver::open()?;
    if driver.device.contains("emulated") && !emulated {
        return Err(format!(
            "{} is emulated: a record of it would hold the interpreter to itself",
            driver.device
        ));
    }
    let mut record = Record {
        device: driver.device.clone(),
        driver: driver.version.clone(),
        architecture: driver.architecture.clone(),
        ..Record::default()
    };
    for vector in golden::all() {
        if !vector.runs_on(&driver.architecture) {
            continue;
        }
        let output = driver
            .run(&vector)
            .map_err(|why| format!("{}: {why}", vector.name))?;
        let hash = vector.hash();
        record.entries.insert(vector.name, Entry { hash, output });
    }
    std::fs::write(file, record.to_text()).map_err(|error| format!("{file}: {error}"))?;
    println!(
        "{} kernels recorded on {} (CUDA {})",
        record.entries.len(),
        record.device,
        record.driver
    );
    Ok(true)
}

fn verify(file: &str) -> Result<bool, String> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
    let record = Record::from_text(&text).map_err(|why| format!("{file}: {why}"))?;
    let differences = record.verify();
    for (name, why) in &differences {
        println!("FAILED {name}: {why}");
    }
    let all = golden::all()
        .iter()
        .filter(|vector| vector.runs_on(&record.architecture))
        .count();
    println!(
        "{} of {all} kernels agree with the record of {} (CUDA {})",
        all - differences.len(),
        record.device,
        record.driver
    );
    Ok(differences.is_empty())
}

fn check(files: &[&str]) -> Result<bool, String> {
    let mut accepted = true;
    for file in files {
        let text = std::fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
        match Module::parse(&text) {
            Ok(module) => {
                for function in &module.functions {
                    let (code, shared) = (function.code.len(), function.shared_bytes);
                    println!(
                        "{file}: {} has {code} instructions, {shared} bytes of shared memory",
                        function.name
                    );
                }
            }
            Err(error) => {
                accepted = false;
                println!("{file}: {error}");
            }
        }
    }
    Ok(accepted)
}

/// A kernel that the speed is told of.
struct Timed {
    name: &'static str,
    text: &'static str,
    grid: [u32; 3],
    block: [u32; 3],
    dynamic_shared: u32,
    /// Bytes of each of the three buffers, which come before the dimensions among the parameters.
    bytes: usize,
    dimensions: &'static [u32],
}

const KERNELS: [Timed; 3] = [
    Timed {
        name: "vector_add",
        text: include_str!("tests/kernels/vector_add.ptx"),
        grid: [512, 1, 1],
        block: [256, 1, 1],
        dynamic_shared: 0,
        bytes: 131_072 * 4,
        dimensions: &[131_072],
    },
    Timed {
        name: "sgemm",
        text: include_str!("tests/kernels/sgemm.ptx"),
        grid: [8, 8, 1],
        block: [16, 16, 1],
        dynamic_shared: 0,
        bytes: 128 * 128 * 4,
        dimensions: &[128, 128, 128],
    },
    Timed {
        name: "gemm_bf16",
        text: include_str!("tests/kernels/gemm_bf16.ptx"),
        grid: [2, 2, 1],
        block: [128, 1, 1],
        dynamic_shared: 19_456,
        bytes: 128 * 128 * 4,
        dimensions: &[128, 128],
    },
];

/// Prints lane-instructions a second, with the sanitizer and without its watch over shared memory. It is the emulator's own speed; a
/// GPU's is nowhere in it.
fn speed() -> Result<bool, String> {
    println!(
        "emulated, one core: millions of lane-instructions a second (sanitizer on, bounds only)"
    );
    for Timed {
        name,
        text,
        grid,
        block,
        dynamic_shared,
        bytes,
        dimensions,
    } in KERNELS
    {
        let module = Module::parse(text).map_err(|error| error.to_string())?;
        let function = module.function(name).ok_or(name)?;
        let memory = AddressSpace::default();
        let mut parameters = vec![0; function.parameter_bytes as usize];
        for (index, parameter) in function.parameters.iter().enumerate() {
            let value = if index < 3 {
                memory
                    .allocate(0, bytes, 0x3C, false, State::Live)
                    .ok_or("no memory")?
                    .base
            } else {
                u64::from(dimensions[index - 3])
            };
            let at = parameter.offset as usize;
            parameters[at..at + parameter.bytes as usize]
                .copy_from_slice(&value.to_le_bytes()[..parameter.bytes as usize]);
        }
        let rate = |whole: bool| {
            let watch = Watch {
                uninitialised: whole,
                races: whole,
            };
            let launch = Launch {
                function,
                grid,
                cluster: [1; 3],
                block,
                parameters: &parameters,
                dynamic_shared,
                cooperative: false,
                programmatic: false,
                memory: &memory,
                device: 0,
                peers: 0,
                variables: &[],
                options: Options {
                    watch,
                    ..Options::default()
                },
                cancelled: None,
            };
            let (begin, mut instructions) = (Instant::now(), 0);
            while begin.elapsed() < Duration::from_secs(1) {
                instructions += interpret::run(launch)
                    .map_err(|report| report.to_string())?
                    .lane_instructions;
            }
            Ok::<_, String>(instructions as f64 / begin.elapsed().as_secs_f64() / 1e6)
        };
        println!("{name:<12} {:6.0} {:6.0}", rate(true)?, rate(false)?);
    }
    Ok(true)
}
