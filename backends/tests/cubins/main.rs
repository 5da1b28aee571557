//! Every shipped CUDA kernel, compiled to machine code without a GPU: without spills, and with the instructions it was written for. Each module for one of
//! its architectures in turn by the first NVRTC that is there, a third of them by the others; each for all of them by all with
//! `-- --include-ignored`. Without NVRTC every test shows as ignored, with the reason.
//!
//! [`table`] writes what each launch takes of a multiprocessor.
//!
//!     ROPEWAY_NVRTC=…/libnvrtc.so.12:…/libnvrtc.so.13 ROPEWAY_NVDISASM=…/nvdisasm cargo test -p ropeway-backends --test cubins
#![cfg(feature = "cuda")]
#![allow(unsafe_code)]

mod nvrtc;
mod plans;
mod report;
mod table;

use std::collections::BTreeSet;
use std::sync::Arc;

use libtest_mimic::{Arguments, Failed, Trial};
use ropeway_core::kernel::ModuleKey;

use nvrtc::Nvrtc;
use plans::{ARCHITECTURES, Architecture, Launched};
use report::Disassembler;

fn main() {
    let arguments = Arguments::from_args();
    let mut trials = detectors();
    let disassembler = Disassembler::find();
    if let Err(reason) = &disassembler {
        trials.push(skipped("instructions", reason));
    }
    for architecture in ARCHITECTURES {
        let name = format!("{}::every_kernel_is_planned", architecture.name);
        let planned = move || match plans::unplanned(&architecture.info()) {
            missing if missing.is_empty() => Ok(()),
            missing => Err(format!("add problems for {missing:?} to problems.toml").into()),
        };
        trials.push(Trial::test(name, planned));
    }
    match nvrtc::find() {
        Err(reason) => trials.push(skipped("kernels", &reason)),
        Ok(found) => {
            let compiled: Vec<_> = ARCHITECTURES
                .into_iter()
                .map(|architecture| (architecture, plans::modules(&architecture.info())))
                .collect();
            for (at, nvrtc) in found.iter().enumerate() {
                trials.push(spills_are_seen(nvrtc.clone()));
                // The code of one version is read, that of the first.
                let disassembler = disassembler.as_ref().ok().filter(|_| at == 0);
                let chosen = plans::in_turn(&compiled, if at == 0 { 1 } else { 3 });
                for (architecture, modules) in &compiled {
                    for (name, (key, launches)) in modules {
                        let is_passed_over = chosen.get(name) != Some(&architecture.name);
                        let trial = kernel(nvrtc, *architecture, disassembler, key, launches);
                        trials.push(trial.with_ignored_flag(is_passed_over));
                    }
                }
            }
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    table::write();
    conclusion.exit();
}

/// A test that shows as ignored; its name says why.
fn skipped(name: &str, reason: &str) -> Trial {
    Trial::test(format!("{name} ({reason})"), || Ok(())).with_ignored_flag(true)
}

/// The test of a module.
fn kernel(
    nvrtc: &Arc<Nvrtc>,
    architecture: Architecture,
    disassembler: Option<&Disassembler>,
    key: &ModuleKey,
    launches: &BTreeSet<Launched>,
) -> Trial {
    let name = format!(
        "{}::{}::{} {}",
        nvrtc.version, architecture.name, key.kernel.name, key.config
    );
    let (nvrtc, disassembler) = (nvrtc.clone(), disassembler.cloned());
    let (key, launches) = (key.clone(), launches.clone());
    Trial::test(name, move || {
        check(&nvrtc, architecture, disassembler.as_ref(), &key, &launches)
    })
}

fn check(
    nvrtc: &Nvrtc,
    architecture: Architecture,
    disassembler: Option<&Disassembler>,
    key: &ModuleKey,
    launches: &BTreeSet<Launched>,
) -> Result<(), Failed> {
    let (text, options) = plans::source(key, architecture);
    let compiled = nvrtc.compile(&text, &options)?;
    let info = architecture.info();
    table::note(architecture.name, &info, key, &compiled.log, launches);
    report::check_usage(&compiled.log, launches, &info)?;
    let wanted = report::wanted(key);
    // Reading takes as long as compiling: what is no matrix instruction is looked for once.
    let once = architecture.name == ARCHITECTURES[0].name;
    if let Some(disassembler) = disassembler
        && (once || wanted != ["FFMA"])
    {
        let text = disassembler.text(&compiled.cubin)?;
        report::check_instructions(&text, &wanted)?;
        report::check_handover(&text, &compiled.log, launches)?;
    }
    Ok(())
}

/// A kernel that spills is refused, so that none that is shipped does.
fn spills_are_seen(nvrtc: Arc<Nvrtc>) -> Trial {
    const SPILLS: &str =
        "extern \"C\" __global__ void __launch_bounds__(1024, 2) spills(float* x) {
        float v[96];
        for (int i = 0; i < 96; i++) v[i] = x[i * 1024 + threadIdx.x];
        for (int r = 0; r < 3; r++)
            for (int i = 0; i < 96; i++) v[i] = v[i] * v[(i + 31) % 96] + v[(i + 7) % 96];
        for (int i = 0; i < 96; i++) x[i * 1024 + threadIdx.x] = v[i];
    }";
    Trial::test(format!("{}::spills_are_seen", nvrtc.version), move || {
        let options = ["--gpu-architecture=sm_80".to_owned()];
        let compiled = nvrtc.compile(SPILLS, &options)?;
        let info = ARCHITECTURES[0].info();
        match report::check_usage(&compiled.log, [], &info) {
            Err(report) if report.contains("spills uses local memory") => Ok(()),
            other => Err(format!("{other:?}:\n{}", compiled.log).into()),
        }
    })
}

/// What is looked for is found in text that has it, and missed in text that has not.
fn detectors() -> Vec<Trial> {
    let code = "        /*0010*/   HMMA.16816.F32 R4, R8, R12, R4 ;\n".repeat(16);
    let holds = move |more: &str, wanted: &[&str]| {
        report::check_instructions(&format!("{code}{more}"), wanted)
    };
    let instructions = move || {
        holds("LDSM.16.M88.4 R8, [R2] ;", &["HMMA", "LDSM"])?;
        for (more, wanted, word) in [
            ("", "IMMA", "IMMA is not in"),
            ("", "LDSM", "LDSM is not in"),
            ("STL [R1], R0 ;", "HMMA", "STL is in"),
            ("@P0 LDL.64 R2, [R1] ;", "HMMA", "LDL is in"),
        ] {
            match holds(more, &[wanted]) {
                Err(report) if report.contains(word) => {}
                other => return Err(format!("{more:?}, {wanted}: {other:?}").into()),
            }
        }
        Ok(())
    };
    let launches = || {
        let log = "ptxas info    : Compiling entry function 'wide' for 'sm_80'\n\
                   ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
                   ptxas info    : Used 168 registers, used 1 barriers, 40960 bytes smem, 488 bytes cmem[0]\n";
        let launch = |entry, threads, shared_memory| Launched {
            entry,
            threads,
            shared_memory,
        };
        let info = ARCHITECTURES[1].info();
        let check = |launched| report::check_usage(log, [&launched], &info);
        check(launch("wide", 384, 59 << 10))?;
        for (launched, word) in [
            (launch("wide", 416, 0), "registers"),
            (launch("wide", 32, (59 << 10) + 1), "shared memory"),
            (launch("narrow", 32, 0), "not in the code"),
        ] {
            match check(launched) {
                Err(report) if report.contains(word) => {}
                other => return Err(format!("{launched:?}: {other:?}").into()),
            }
        }
        Ok(())
    };
    let handover = || {
        let log = "ptxas info    : Compiling entry function 'hands' for 'sm_90a'\n\
                   ptxas info    : Used 168 registers, used 1 barriers\n\
                   ptxas info    : Compiling entry function 'keeps' for 'sm_90a'\n\
                   ptxas info    : Used 168 registers, used 1 barriers\n";
        let check = |entry, threads| {
            let text = "\t.section\t.text.hands,\"ax\",@progbits\n        /*00d0*/  USETMAXREG.DEALLOC.CTAPOOL 0x28 ;\n\
                        \t.section\t.text.keeps,\"ax\",@progbits\n        /*0010*/  FFMA R4, R8, R12, R4 ;\n";
            let launched = Launched {
                entry,
                threads,
                shared_memory: 0,
            };
            report::check_handover(text, log, [&launched])
        };
        check("hands", 384)?;
        check("keeps", 512)?;
        match check("hands", 512) {
            Err(report) if report.contains("not 128") => Ok(()),
            other => Err(format!("{other:?}").into()),
        }
    };
    let complaints = || {
        let log = "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to non wgmma instructions \
                   defining accumulator registers of a wgmma between start and end of the pipeline stage in the function 'waits'\n\
                   ptxas info    : (C7508) Potential Performance Loss: 'setmaxnreg' ignored to maintain minimum register requirements.\n\
                   ptxas info    : Compiling entry function 'waits' for 'sm_90a'\n\
                   ptxas info    : Used 168 registers, used 1 barriers\n";
        let info = ARCHITECTURES[2].info();
        let lines: Vec<&str> = log.lines().collect();
        let [serialized, ignored, compiling, used] = lines[..] else {
            return Err(format!("{} lines", lines.len()).into());
        };
        report::check_usage(&format!("{compiling}\n{used}\n"), [], &info)?;
        for complaint in [serialized, ignored] {
            let log = format!("{complaint}\n{compiling}\n{used}\n");
            match report::check_usage(&log, [], &info) {
                Err(report) if report.contains("ptxas complains") => {}
                other => return Err(format!("{complaint}: {other:?}").into()),
            }
        }
        Ok(())
    };
    vec![
        Trial::test("detectors::instructions", instructions),
        Trial::test("detectors::launches", launches),
        Trial::test("detectors::handover", handover),
        Trial::test("detectors::complaints", complaints),
    ]
}
