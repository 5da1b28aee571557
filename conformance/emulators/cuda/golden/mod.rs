//! Instruction-level kernels whose results are recorded on a GPU, and that the interpreter is then held to.
//!
//! Kernel and interpreter are written by one hand and can be wrong together; a GPU cannot. A [`Vector`] is a kernel of a few instructions
//! with inputs that follow from its name, so a record needs to hold results only. [`real`] runs them through the driver library that
//! the machine has, [`run`] on the interpreter; [`compare`] says whether the one may stand for the other: to the last bit, but for approximations and
//! float sums of matrix units, whose bounds are the ISA's.

mod hopper;
#[allow(unsafe_code, reason = "the C interface of the driver that records")]
pub mod real;
pub mod vectors;

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::interpret::{self, Launch, Options};
use crate::memory::{AddressSpace, State};
use crate::ptx::Module;
pub use vectors::{Vector, all};

/// How results are compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// To the last bit.
    Exact,
    /// f32 in words of 64 bits: NaN is NaN, all else to the last bit.
    Single,
    /// f64: NaN is NaN, all else to the last bit.
    Double,
    /// f32 in words of 64 bits: relative and absolute error of either side.
    Near(f64, f64),
    /// f32 in words of 32 bits: absolute error.
    Sums(f64),
}

/// Results of a vector, as a record holds them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Of kernel and inputs: another one makes a record stale.
    pub hash: u64,
    /// The bytes that the kernel left.
    pub output: Vec<u8>,
}

/// A record: where it was made, and results by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// The device's name for itself.
    pub device: String,
    /// The driver's version of CUDA.
    pub driver: String,
    /// The device's compute capability, as `9.0`: kernels of another alone are not in the record.
    pub architecture: String,
    /// Results by name.
    pub entries: BTreeMap<String, Entry>,
}

impl Vector {
    /// Of kernel and inputs (FNV-1a).
    pub fn hash(&self) -> u64 {
        let bytes = self.text.bytes().chain(self.input.iter().copied());
        bytes.fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3)
        })
    }
}

/// Runs a vector on the interpreter.
///
/// # Errors
/// What the module is refused for, or what the sanitizer reports.
pub fn run(vector: &Vector) -> Result<Vec<u8>, String> {
    let module = Module::parse(&vector.text).map_err(|error| error.to_string())?;
    let memory = AddressSpace::default();
    let allocate = |bytes: usize| {
        memory
            .allocate(0, bytes, 0, false, State::Live)
            .ok_or("no memory")
    };
    let (input, output) = (
        allocate(vector.input.len())?,
        allocate(vector.output_bytes)?,
    );
    input.region.write(0, &vector.input);
    let parameters: Vec<u8> = [input.base, output.base]
        .into_iter()
        .flat_map(u64::to_le_bytes)
        .collect();
    let launch = Launch {
        function: module.functions.first().ok_or("no kernel")?,
        grid: [1; 3],
        cluster: [1; 3],
        block: [vector.threads, 1, 1],
        parameters: &parameters,
        dynamic_shared: 0,
        cooperative: false,
        programmatic: false,
        memory: &memory,
        device: 0,
        peers: 0,
        variables: &[],
        options: Options::default(),
        cancelled: None,
    };
    interpret::run(launch).map_err(|report| report.to_string())?;
    let mut bytes = vec![0; vector.output_bytes];
    output.region.read(0, &mut bytes);
    Ok(bytes)
}

/// Where the interpreter's results are not those of a record, if anywhere.
///
/// # Errors
/// The first difference.
pub fn compare(rule: Rule, recorded: &[u8], found: &[u8]) -> Result<(), String> {
    if recorded.len() != found.len() {
        return Err(format!(
            "{} bytes where {} were recorded",
            found.len(),
            recorded.len()
        ));
    }
    let width = if matches!(rule, Rule::Sums(_)) { 4 } else { 8 };
    for (index, (recorded, found)) in recorded.chunks(width).zip(found.chunks(width)).enumerate() {
        if recorded == found {
            continue;
        }
        let word = |bytes: &[u8]| {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            u64::from_le_bytes(word)
        };
        let (r, f) = (word(recorded), word(found));
        let (single_r, single_f) = (
            f64::from(f32::from_bits(r as u32)),
            f64::from(f32::from_bits(f as u32)),
        );
        let both_nan = single_r.is_nan() && single_f.is_nan();
        let near = |relative: f64, absolute: f64| {
            // Each side may err by the bound.
            (single_r - single_f).abs() <= 2.0 * (relative * single_r.abs() + absolute)
        };
        let same = match rule {
            Rule::Exact => false,
            Rule::Single => both_nan,
            Rule::Double => f64::from_bits(r).is_nan() && f64::from_bits(f).is_nan(),
            Rule::Near(relative, absolute) => both_nan || near(relative, absolute),
            Rule::Sums(absolute) => both_nan || near(0.0, absolute),
        };
        if !same {
            return Err(format!("row {index}: {f:#x} where {r:#x} was recorded"));
        }
    }
    Ok(())
}

impl Record {
    /// The record as text: a header, then `name hash hexadecimal-output` a line.
    pub fn to_text(&self) -> String {
        let mut text = format!(
            "# results of ropeway-cuda-emulator record\ndevice {}\ndriver {}\narchitecture {}\n",
            self.device, self.driver, self.architecture
        );
        for (name, entry) in &self.entries {
            let _ = write!(text, "{name} {:016x} ", entry.hash);
            for byte in &entry.output {
                let _ = write!(text, "{byte:02x}");
            }
            text.push('\n');
        }
        text
    }

    /// Reads a record.
    ///
    /// # Errors
    /// The line that is none.
    pub fn from_text(text: &str) -> Result<Record, String> {
        let mut record = Record::default();
        for (number, line) in text
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.starts_with('#') && !line.is_empty())
        {
            let malformed = || format!("line {} is no entry", number + 1);
            let (name, rest) = line.split_once(' ').ok_or_else(malformed)?;
            match name {
                "device" => record.device = rest.into(),
                "driver" => record.driver = rest.into(),
                "architecture" => record.architecture = rest.into(),
                _ => {
                    let (hash, output) = rest.split_once(' ').ok_or_else(malformed)?;
                    let bytes = (0..output.len()).step_by(2).map(|at| {
                        output
                            .get(at..at + 2)
                            .and_then(|hex| u8::from_str_radix(hex, 16).ok())
                    });
                    let entry = Entry {
                        hash: u64::from_str_radix(hash, 16).map_err(|_| malformed())?,
                        output: bytes.collect::<Option<_>>().ok_or_else(malformed)?,
                    };
                    record.entries.insert(name.into(), entry);
                }
            }
        }
        Ok(record)
    }

    /// Holds the interpreter to the record: what differs, by name. A vector that the record lacks or has for another kernel differs too.
    pub fn verify(&self) -> Vec<(String, String)> {
        all()
            .into_iter()
            .filter(|vector| vector.runs_on(&self.architecture))
            .filter_map(|vector| {
                let outcome = match self.entries.get(&vector.name) {
                    None => Err("is not in the record".into()),
                    Some(entry) if entry.hash != vector.hash() => {
                        Err("was recorded for another kernel or other inputs".into())
                    }
                    Some(entry) => {
                        run(&vector).and_then(|found| compare(vector.rule, &entry.output, &found))
                    }
                };
                outcome.err().map(|why: String| (vector.name, why))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_vector_runs_on_the_interpreter() {
        let mut names = std::collections::BTreeSet::new();
        for vector in all() {
            assert!(
                names.insert(vector.name.clone()),
                "{} stands twice",
                vector.name
            );
            run(&vector).unwrap_or_else(|why| panic!("{}: {why}", vector.name));
        }
        assert!(names.len() > 100, "{}", names.len());
    }

    fn own_record() -> Record {
        let entry = |vector: Vector| {
            let output = run(&vector).unwrap();
            let hash = vector.hash();
            (vector.name, Entry { hash, output })
        };
        Record {
            device: "this interpreter".into(),
            driver: "none".into(),
            architecture: "9.0".into(),
            entries: all().into_iter().map(entry).collect(),
        }
    }

    #[test]
    fn a_record_that_differs_is_told() {
        let record = Record::from_text(&own_record().to_text()).unwrap();
        assert_eq!(record, own_record());
        assert_eq!(record.verify(), []);
        let mut wrong = record.clone();
        wrong.entries.get_mut("add.s32").unwrap().output[8] ^= 1;
        wrong.entries.get_mut("ex2.approx.ftz.f32").unwrap().output[0] ^= 1;
        wrong.entries.get_mut("min.f32").unwrap().hash ^= 1;
        wrong.entries.remove("popc.b32");
        let names: Vec<_> = wrong.verify().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["add.s32", "popc.b32", "min.f32"]);
        // What a device does not have is not asked for.
        let mut earlier = record;
        earlier.architecture = "8.0".into();
        earlier.entries.retain(|name, _| !name.starts_with("wgmma"));
        assert_eq!(earlier.verify(), []);
        earlier.architecture = "9.0".into();
        assert!(
            earlier
                .verify()
                .iter()
                .all(|(name, _)| name.starts_with("wgmma"))
        );
        assert!(earlier.verify().len() > 20);
    }
}
