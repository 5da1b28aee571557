//! `ropeway-ascend-emulator estimate`: what the cost model (`ascendc/cost.h`) makes of one launch of a kernel.
//!
//! The sources are compiled as one, as the run-time compiler does, and launched in a process of its own whose environment switches the model
//! on. What comes out is an estimate from published figures, never a measurement.

use std::fmt::Write;
use std::process::Command;
use std::sync::Arc;

use serde_json::Value;

use crate::compiler::Program;
use crate::runtime::binary::{ARCHITECTURE, Binary, Function, Launch, Parameter};
use crate::runtime::device::emulator;
use crate::runtime::memory::{Allocation, Kind};

/// What is to be estimated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// The texts, one after the other.
    pub sources: Vec<String>,
    /// `-DNAME=VALUE`.
    pub defines: Vec<String>,
    /// The kernel's name.
    pub kernel: String,
    /// Blocks of the launch.
    pub blocks: u32,
    /// The kernel's arguments: see [`USAGE`].
    pub arguments: Vec<String>,
    /// A chip that the model knows.
    pub chip: String,
    /// A set of figures that the model knows.
    pub figures: String,
    /// Runs the kernel as always, instead of computing nothing.
    pub compute: bool,
    /// Prints the model's line of JSON.
    pub json: bool,
}

/// How it is called.
pub const USAGE: &str = "usage: ropeway-ascend-emulator estimate SOURCE... --kernel NAME --blocks N [--args A,B,...] [-DNAME=VALUE]... [--chip 910B1|910B2|910B3|910B4]
                                        [--figures published|profile] [--compute] [--json]

Estimates the cycles of each pipe for a launch of a kernel in AscendC; the sources are compiled as one text. An argument is a number, which
takes the parameter's size (1.5 is an f32), null, or a buffer: &BYTES with zeroes, &i32:1:2:3 with these numbers. Nothing is computed unless
--compute says so: a kernel whose course hangs on what it computed needs that. An estimate from published figures, never a measurement.";

/// Finds the request in the words of a command line.
///
/// # Errors
/// A word that is not understood, or what is missing.
pub fn parse(words: &[String]) -> Result<Request, String> {
    let mut request = Request {
        chip: "910B3".into(),
        figures: "published".into(),
        ..Request::default()
    };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().cloned().ok_or(format!("{word} needs a value"));
        match word.as_str() {
            "--kernel" => request.kernel = value()?,
            "--blocks" => {
                let text = value()?;
                request.blocks = text
                    .parse()
                    .map_err(|_| format!("--blocks {text} is no number"))?;
            }
            "--args" => request.arguments = value()?.split(',').map(str::to_owned).collect(),
            "--chip" => request.chip = value()?,
            "--figures" => request.figures = value()?,
            "--compute" => request.compute = true,
            "--json" => request.json = true,
            define if define.starts_with("-D") && define.len() > 2 => {
                request.defines.push(define.to_owned());
            }
            option if option.starts_with('-') => return Err(format!("unknown option {option}")),
            source => request.sources.push(source.to_owned()),
        }
    }
    if request.sources.is_empty() || request.kernel.is_empty() || request.blocks == 0 {
        return Err("a source, --kernel and --blocks are needed".into());
    }
    Ok(request)
}

/// Set for the process that launches.
const FILE: &str = "ROPEWAY_EMULATED_CANN_COST";

/// Estimates, and gives what is to be printed.
///
/// # Errors
/// A source that does not compile, an argument that does not fit, what the launch met.
pub fn estimate(words: &[String]) -> Result<String, String> {
    let request = parse(words)?;
    if std::env::var_os(FILE).is_some() {
        return launch(&request).map(|()| String::new());
    }
    let file = tempfile::NamedTempFile::new().map_err(|error| error.to_string())?;
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut child = Command::new(program);
    child.arg("estimate").args(words).env(FILE, file.path());
    child.env(format!("{FILE}_CHIP"), &request.chip);
    child.env(format!("{FILE}_FIGURES"), &request.figures);
    if !request.compute {
        child.env(format!("{FILE}_ONLY"), "1");
    }
    let status = child.status().map_err(|error| error.to_string())?;
    if !status.success() {
        return Err("there is no estimate".into());
    }
    let line = std::fs::read_to_string(file.path()).map_err(|error| error.to_string())?;
    if request.json {
        return Ok(line);
    }
    let value = serde_json::from_str(&line).map_err(|error| format!("{error}: {line}"))?;
    Ok(report(&value))
}

fn launch(request: &Request) -> Result<(), String> {
    let mut source = String::new();
    for path in &request.sources {
        let text = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
        source.push_str(&text);
        source.push('\n');
    }
    let program = Program::new(source, "estimate.asc");
    let architecture = format!("--npu-arch={ARCHITECTURE}");
    let mut options: Vec<&str> = vec![&architecture];
    options.extend(request.defines.iter().map(String::as_str));
    let why = |failure: crate::runtime::status::Failure| failure.why;
    program.compile(&options).map_err(why)?;
    let binary = program.binary().ok_or("no binary")?;
    let binary = Arc::new(Binary::load(&binary).map_err(why)?);
    let function = Arc::new(Function::find(binary, 0, &request.kernel).map_err(why)?);
    let (gets, has) = (request.arguments.len(), function.parameters.len());
    if gets != has {
        let kernel = &request.kernel;
        return Err(format!("{kernel} has {has} parameters, --args {gets}"));
    }
    let mut buffers = Vec::new();
    let bytes = function.argument_bytes();
    let mut packed = vec![0u8; bytes.next_multiple_of(8)];
    for (text, &Parameter { offset, bytes }) in request.arguments.iter().zip(&function.parameters) {
        let value = argument(text, bytes, &mut buffers)?;
        let place = &mut packed[offset as usize..][..bytes as usize];
        place.copy_from_slice(
            value
                .get(..bytes as usize)
                .ok_or("an argument is too long")?,
        );
    }
    let words = packed
        .chunks_exact(8)
        .map(|word| u64::from_le_bytes(std::array::from_fn(|i| word[i])));
    let launch = Launch {
        function,
        blocks: request.blocks,
        arguments: words.collect(),
        bytes,
        fault: None,
        seed: 0,
    };
    launch.run().map_err(|fault| fault.why)
}

/// The bytes of an argument; buffers are kept in `buffers`.
fn argument(text: &str, bytes: u32, buffers: &mut Vec<Arc<Allocation>>) -> Result<[u8; 8], String> {
    let wrong = || format!("the argument {text} is not understood, or does not fit {bytes} bytes");
    if text == "null" {
        return Ok([0; 8]);
    }
    if let Some(buffer) = text.strip_prefix('&') {
        let content: Vec<u8> = match buffer.strip_prefix("i32:") {
            Some(list) => {
                let numbers: Result<Vec<i32>, _> = list.split(':').map(str::parse).collect();
                let numbers = numbers.map_err(|_| wrong())?;
                numbers.iter().flat_map(|n| n.to_le_bytes()).collect()
            }
            None => vec![0; buffer.parse().map_err(|_| wrong())?],
        };
        // Where a slab of the backend would begin: at a line of 512 bytes.
        let memory = &emulator().memory;
        let allocation = memory
            .allocate(content.len() as u64 + 512, Kind::Device(0))
            .ok_or("the machine has no more memory")?;
        let address = allocation.base.next_multiple_of(512);
        let to = allocation.at(address - allocation.base);
        // SAFETY: so many bytes lie from there on in an allocation that nothing else uses yet.
        unsafe { std::ptr::copy_nonoverlapping(content.as_ptr(), to, content.len()) };
        buffers.push(allocation);
        return Ok(address.to_le_bytes());
    }
    let mut value = [0; 8];
    if let Ok(number) = text.parse::<i128>() {
        let range = -(1i128 << (8 * bytes - 1))..1i128 << (8 * bytes);
        if bytes > 8 || !range.contains(&number) {
            return Err(wrong());
        }
        value.copy_from_slice(&number.to_le_bytes()[..8]);
    } else {
        let number: f32 = text.parse().map_err(|_| wrong())?;
        if bytes != 4 {
            return Err(wrong());
        }
        value[..4].copy_from_slice(&number.to_le_bytes());
    }
    Ok(value)
}

/// The model's line in words.
fn report(line: &Value) -> String {
    let number = |key: &str| line[key].as_f64().unwrap_or(f64::NAN);
    let word = |key: &str| line[key].as_str().unwrap_or("?").to_owned();
    let mut text = format!(
        "{} on a {} ({} figures): {}\n",
        word("kernel"),
        word("chip"),
        word("figures"),
        word("what")
    );
    let _ = writeln!(
        text,
        "{} blocks on {} cores: {} cycles, {:.1} us, bound by {}",
        line["blocks"],
        line["cores"],
        line["cycles"],
        number("microseconds"),
        word("bound")
    );
    for (key, name) in [("cube_core", "cube core"), ("vector_core", "vector core")] {
        let Some(pipes) = line[key].as_object() else {
            continue;
        };
        if pipes.values().all(|busy| busy.as_f64() == Some(0.0)) {
            continue;
        }
        let _ = write!(text, "busy, of the {name} that ends last:");
        for (pipe, busy) in pipes {
            let busy = busy.as_f64().unwrap_or(f64::NAN);
            if busy > 0.0 {
                let _ = write!(
                    text,
                    "  {pipe} {busy} ({:.1}%)",
                    100.0 * busy / number("cycles")
                );
            }
        }
        text.push('\n');
    }
    let _ = writeln!(
        text,
        "global memory: {:.1} MB read, {:.1} MB written, {:.1} MB of it different; at least {} cycles of HBM, {} of level 2 cache",
        number("bytes_read") / 1e6,
        number("bytes_written") / 1e6,
        number("bytes_touched") / 1e6,
        line["hbm_cycles"],
        line["l2_cycles"]
    );
    if number("macs") > 0.0 {
        let _ = writeln!(
            text,
            "products: {:.1} T operations/s, all cube cores used to {:.1}%",
            number("tera_operations_a_second"),
            100.0 * number("cube_utilisation")
        );
    }
    if number("values_taken_as_zero") > 0.0 {
        let _ = writeln!(
            text,
            "{} values that the kernel computes and reads were taken as 0; --compute computes them",
            line["values_taken_as_zero"]
        );
    }
    if line["unpriced"]
        .as_object()
        .is_some_and(|names| !names.is_empty())
    {
        let _ = writeln!(text, "without a cost: {}", line["unpriced"]);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn requests_are_understood_or_refused() {
        let request = parse(&words(
            "a.asc b.asc -DM=3 --kernel f --blocks 20 --args &64,7,1.5,null --chip 910B1",
        ))
        .unwrap();
        assert_eq!(request.sources, ["a.asc", "b.asc"]);
        assert_eq!(request.arguments, ["&64", "7", "1.5", "null"]);
        assert_eq!(
            (request.chip.as_str(), request.figures.as_str()),
            ("910B1", "published")
        );
        for wrong in [
            "--kernel f --blocks 1",
            "a.asc --blocks 1",
            "a.asc --kernel f",
            "a.asc --kernel f --blocks x",
            "a.asc --kernel f --blocks 1 --fast",
        ] {
            assert!(parse(&words(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn arguments_take_the_size_of_their_parameter() {
        let mut buffers = Vec::new();
        let mut bytes = |text, size| argument(text, size, &mut buffers);
        assert_eq!(bytes("-2", 4).unwrap(), (-2i64).to_le_bytes());
        assert_eq!(bytes("1.5", 4).unwrap()[..4], 1.5f32.to_le_bytes());
        assert_eq!(bytes("null", 8).unwrap(), [0; 8]);
        let at = u64::from_le_bytes(bytes("&i32:5:6", 8).unwrap());
        assert_eq!(at % 512, 0);
        assert!(bytes("256", 1).is_err() && bytes("1.5", 8).is_err() && bytes("x", 4).is_err());
    }
}
