//! `ropeway devices`: what opened, and why the rest did not.

use std::process::ExitCode;

use clap::Args;
use comfy_table::{ContentArrangement, Table, presets};
use ropeway::{Probe, Registry};
use ropeway_core::info::{DeviceInfo, DeviceKind};
use ropeway_core::{DType, Result};
use serde_json::{Value, json};

use super::print_line;

/// How to say it.
#[derive(Args, Debug)]
pub struct Devices {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Devices {
    /// Lists the devices. The exit code is 1 if there is none.
    ///
    /// # Errors
    /// `File` if standard output cannot be written.
    pub fn run(self) -> Result<ExitCode> {
        let probes = Registry::default().probe();
        match self.json {
            true => print_line(format_args!("{:#}", to_json(&probes)))?,
            false => print_line(to_text(&probes))?,
        }
        let any = probes
            .iter()
            .any(|probe| probe.devices.as_ref().is_ok_and(|found| !found.is_empty()));
        Ok(ExitCode::from(u8::from(!any)))
    }
}

/// Storage types, with `*` where the device also computes in them.
fn dtypes(info: &DeviceInfo) -> String {
    let stored = DType::ALL
        .into_iter()
        .filter(|dtype| info.dtype(*dtype).storage);
    let words: Vec<_> = stored
        .map(|dtype| match info.dtype(dtype).arithmetic {
            true => format!("{dtype}*"),
            false => dtype.to_string(),
        })
        .collect();
    words.join(" ").to_lowercase()
}

fn kind(kind: DeviceKind) -> &'static str {
    match kind {
        DeviceKind::Cpu => "cpu",
        DeviceKind::Gpu => "gpu",
        DeviceKind::Npu => "npu",
        _ => "other",
    }
}

/// What opened, and for the rest the reason and the remedy.
pub(super) fn to_text(probes: &[Probe]) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header([
            "device",
            "name",
            "kind",
            "execution",
            "driver",
            "memory",
            "units",
            "dtypes (* computes)",
        ]);
    for info in probes
        .iter()
        .flat_map(|probe| probe.devices.iter().flatten())
    {
        table.add_row([
            info.selector(),
            info.name.clone(),
            kind(info.kind).into(),
            info.execution.to_string(),
            format!("{} {}", info.platform, info.driver_version),
            format!("{:.1} GiB", info.memory as f64 / (1u64 << 30) as f64),
            info.compute_units.to_string(),
            dtypes(info),
        ]);
    }
    let mut text = format!("{table}\n\nMissing:");
    for probe in probes {
        if let Err(unavailable) = &probe.devices {
            text += &format!(
                "\n  {}: {}\n      {}",
                probe.backend, unavailable.reason, unavailable.remedy
            );
        }
    }
    text
}

fn to_json(probes: &[Probe]) -> Value {
    let devices: Vec<_> = probes
        .iter()
        .flat_map(|probe| probe.devices.iter().flatten())
        .map(describe)
        .collect();
    let missing = probes.iter().filter_map(|probe| {
        let unavailable = probe.devices.as_ref().err()?;
        Some(json!({
            "backend": probe.backend,
            "reason": unavailable.reason.to_string(),
            "remedy": unavailable.remedy,
        }))
    });
    let missing: Vec<_> = missing.collect();
    json!({"devices": devices, "missing": missing})
}

fn describe(info: &DeviceInfo) -> Value {
    let dtypes: serde_json::Map<_, _> = DType::ALL
        .into_iter()
        .filter(|dtype| info.dtype(*dtype).storage)
        .map(|dtype| {
            let how = match info.dtype(dtype).arithmetic {
                true => "arithmetic",
                false => "storage",
            };
            (dtype.name().to_owned(), how.into())
        })
        .collect();
    json!({
        "device": info.selector(),
        "name": info.name,
        "vendor": info.vendor,
        "kind": kind(info.kind),
        "execution": info.execution.to_string(),
        "platform": info.platform,
        "architecture": info.architecture,
        "driver_version": info.driver_version,
        "compiler_version": info.compiler_version,
        "memory": info.memory,
        "max_buffer": info.limits.max_buffer,
        "local_memory": info.limits.local_memory,
        "max_group_size": info.limits.max_group_size,
        "compute_units": info.compute_units,
        "subgroup_sizes": info.subgroup_sizes,
        "keeps_denormals": info.keeps_denormals,
        "features": info.features,
        "dtypes": dtypes,
    })
}
