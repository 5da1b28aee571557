//! What ptxas and nvdisasm say of machine code, and what is wanted of it.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::process::Command;

use ropeway_core::DType;
use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::ModuleKey;

use super::plans::Launched;

/// Names the disassembler, if it is not on the path.
const VARIABLE: &str = "ROPEWAY_NVDISASM";

/// Registers of a multiprocessor, of which a warp takes units of 256.
pub const REGISTERS: u32 = 64 << 10;

/// What an entry takes, as ptxas reports it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub stack: u32,
    pub spilled: u32,
    pub registers: u32,
    pub shared_memory: u32,
}

/// Reads the log of `--ptxas-options=-v`, by entry.
pub fn usage(log: &str) -> BTreeMap<String, Usage> {
    let mut entries: BTreeMap<String, Usage> = BTreeMap::new();
    let mut current = None;
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            current = rest.split('\'').next().map(str::to_owned);
        }
        let Some(entry) = &current else { continue };
        let usage = entries.entry(entry.clone()).or_default();
        let words: Vec<&str> = line.split([' ', ',']).filter(|w| !w.is_empty()).collect();
        let before = |name: &[&str]| {
            let at = words.windows(name.len()).position(|found| found == name)?;
            let number = words.get(at.checked_sub(1)?)?;
            number.parse::<u32>().ok()
        };
        usage.stack += before(&["bytes", "stack", "frame"]).unwrap_or(0);
        usage.spilled += before(&["bytes", "spill", "stores"]).unwrap_or(0);
        usage.spilled += before(&["bytes", "spill", "loads"]).unwrap_or(0);
        usage.registers += before(&["registers"]).unwrap_or(0);
        usage.shared_memory += before(&["bytes", "smem"]).unwrap_or(0);
    }
    entries
}

/// What ptxas says of warpgroups whose products wait for each other, or whose registers are not handed over.
const COMPLAINTS: [&str; 2] = ["instructions are serialized", "setmaxnreg"];

/// Fails if an entry spills, keeps arrays in local memory, is missing, or could not be launched as plans do.
pub fn check_usage<'a>(
    log: &str,
    launches: impl IntoIterator<Item = &'a Launched>,
    info: &DeviceInfo,
) -> Result<(), String> {
    let complains = |line: &&str| COMPLAINTS.iter().any(|complaint| line.contains(complaint));
    if let Some(line) = log.lines().find(complains) {
        return Err(format!("ptxas complains: {line}"));
    }
    let entries = usage(log);
    for (entry, usage) in &entries {
        if usage.spilled > 0 || usage.stack > 0 {
            return Err(format!("{entry} uses local memory: {usage:?}"));
        }
        if usage.registers == 0 {
            return Err(format!("ptxas reports no registers of {entry}:\n{log}"));
        }
    }
    for launch in launches {
        let Some(usage) = entries.get(launch.entry) else {
            return Err(format!("{} is not in the code:\n{log}", launch.entry));
        };
        let warps = launch.threads.div_ceil(32);
        let registers = (32 * usage.registers).next_multiple_of(256) * warps;
        if registers > REGISTERS {
            return Err(format!("{registers} registers: {launch:?}, {usage:?}"));
        }
        let shared = u64::from(usage.shared_memory) + u64::from(launch.shared_memory);
        if shared > info.limits.local_memory {
            return Err(format!(
                "{shared} bytes of shared memory: {launch:?}, {usage:?}"
            ));
        }
    }
    Ok(())
}

/// The instructions that the code of a kernel must hold.
pub fn wanted(key: &ModuleKey) -> Vec<&'static str> {
    // Moves, comparisons and sums need not multiply.
    if ["map_rows_group", "norm_rows_group", "argsort_rows_group"].contains(&key.kernel.name) {
        return Vec::new();
    }
    if key.kernel.name.contains("_wgmma_scaled") {
        return match key.config.get("D_BY_MAP") {
            Some(1) => vec!["QGMMA", "UTMALDG", "UTMASTG", "FFMA"],
            _ => vec!["QGMMA", "UTMALDG", "FFMA"],
        };
    }
    if key.kernel.name.contains("_wgmma") || key.kernel.name == "attention_latent" {
        let mut wanted = vec!["HGMMA", "UTMALDG"];
        if key.config.get("D_BY_MAP") == Some(1) {
            wanted.push("UTMASTG");
        }
        return wanted;
    }
    let integers = key.config.dtype("A_DTYPE") == Some(DType::I8);
    match (key.kernel.name.contains("_mma"), integers) {
        (true, false) => vec!["HMMA", "LDSM", "LDGSTS"],
        (true, true) => vec!["IMMA", "LDSM", "LDGSTS"],
        (false, false) => vec!["FFMA"],
        (false, true) => Vec::new(),
    }
}

/// What hands registers from warpgroup to warpgroup. It takes them of those that the block was launched with, and waits for ever for more.
const HANDOVER: &str = "USETMAXREG";

/// Fails if warpgroups of an entry hand registers over, and it was not compiled for all that the launched threads can have.
pub fn check_handover<'a>(
    text: &str,
    log: &str,
    launches: impl IntoIterator<Item = &'a Launched>,
) -> Result<(), String> {
    let entries = usage(log);
    let hands = |entry: &str| {
        let mut sections = text.split("\t.section\t.text.");
        sections
            .any(|section| section.split(',').next() == Some(entry) && section.contains(HANDOVER))
    };
    for launch in launches.into_iter().filter(|launch| hands(launch.entry)) {
        let found = entries.get(launch.entry).map(|usage| usage.registers);
        let all = REGISTERS / launch.threads / 8 * 8;
        if found.is_some_and(|found| found != all) {
            return Err(format!(
                "{found:?} registers a thread, not {all}: {launch:?}"
            ));
        }
    }
    Ok(())
}

/// What no kernel may hold: loads and stores of local memory.
const REFUSED: [&str; 2] = ["LDL", "STL"];

/// Fails unless the disassembled code holds the wanted instructions and none of local memory.
pub fn check_instructions(text: &str, wanted: &[&str]) -> Result<(), String> {
    let mnemonics: Vec<&str> = text.split_whitespace().filter_map(mnemonic).collect();
    if mnemonics.len() < 16 {
        return Err(format!("this is no code:\n{text}"));
    }
    let has = |name: &str| mnemonics.contains(&name);
    if let Some(found) = REFUSED.iter().find(|name| has(name)) {
        return Err(format!("{found} is in the code"));
    }
    match wanted.iter().find(|name| !has(name)) {
        Some(missing) => Err(format!("{missing} is not in the code")),
        None => Ok(()),
    }
}

/// "HMMA" of "HMMA.16816.F32".
fn mnemonic(word: &str) -> Option<&str> {
    let name = word.split('.').next()?.trim_end_matches(';');
    let letters = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit();
    (name.len() > 2 && name.chars().all(letters)).then_some(name)
}

/// NVIDIA's disassembler.
#[derive(Clone, Debug)]
pub struct Disassembler(String);

impl Disassembler {
    /// The one that is there, or why there is none.
    pub fn find() -> Result<Disassembler, String> {
        let named = env::var(VARIABLE);
        let program = named.clone().unwrap_or_else(|_| "nvdisasm".into());
        match Command::new(&program).arg("--version").output() {
            Ok(output) if output.status.success() => Ok(Disassembler(program)),
            failed if named.is_ok() => panic!("{VARIABLE}={program}: {failed:?}"),
            _ => Err(format!(
                "no nvdisasm: set {VARIABLE} to its path, or install nvidia-cuda-nvdisasm"
            )),
        }
    }

    /// The instructions of machine code, as text.
    ///
    /// # Errors
    /// What the disassembler says.
    pub fn text(&self, cubin: &[u8]) -> Result<String, String> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("kernel.cubin");
        fs::write(&file, cubin).expect("a file");
        let output = Command::new(&self.0)
            .args(["--print-code"])
            .arg(&file)
            .output()
            .map_err(|error| error.to_string())?;
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }
}
