//! What happens when libraries, functions or calls fail: typed errors, no panic, nothing that hangs. In processes of their own, since a library
//! stays loaded and a lost device stays lost.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use libtest_mimic::Failed;
use ropeway_backends::ascend::{AscendDriver, precompile};
use ropeway_backends::cache::Cache;
use ropeway_core::ErrorKind;
use ropeway_core::device::{Device, Driver, OpenOptions, QueueKind};
use ropeway_core::kernel::Config;

use super::emulated::Emulated;
use super::on_device::{Outcome, launch, words};
use super::{SOURCE, add_arguments, function, operand, program};

/// Set for the processes that tests start, to what they shall do.
pub const CHILD: &str = "ROPEWAY_TEST_ASCEND_CHILD";
/// A directory for them.
const PLACE: &str = "ROPEWAY_TEST_ASCEND_PLACE";

pub fn child(what: &str) {
    match what {
        "probe" => match AscendDriver.probe() {
            Ok(found) => found
                .iter()
                .for_each(|info| println!("{} {}", info.driver_version, info.compiler_version)),
            Err(reason) => println!("{reason}"),
        },
        "calls" => fail_each_call(),
        "lose" => lose(),
        "fault" => meet_a_fault(),
        "no compiler" => have_no_compiler(),
        "beforehand" => use_what_was_compiled_beforehand(),
        other => panic!("{other}"),
    }
}

/// Runs this program as a child; what it prints. Breaches of contract fail it: the emulated CANN looks at how a process ends.
fn run(what: &str, home: Option<&Path>, place: Option<&Path>) -> Result<String, Failed> {
    let mut command = Command::new(std::env::current_exe()?);
    command.env(CHILD, what);
    if let Some(home) = home {
        command
            .env("ASCEND_HOME_PATH", home)
            .env_remove("ASCEND_TOOLKIT_HOME");
    }
    if let Some(place) = place {
        command.env(PLACE, place);
    }
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    match output.status.success() {
        true => Ok(said),
        false => Err(format!(
            "{what}: {}\n{said}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        )
        .into()),
    }
}

/// Puts an emulated CANN into a directory.
fn install(directory: &Path, profile: &str, without: &[&str]) -> Outcome {
    let program = std::env::current_exe()?
        .with_file_name("")
        .join("../ropeway-ascend-emulator");
    let mut command = Command::new(&program);
    command
        .arg("install")
        .arg(directory)
        .args(["--profile", profile]);
    command.args(without.iter().flat_map(|symbol| ["--without", symbol]));
    let output = command
        .output()
        .map_err(|error| format!("{}: {error}", program.display()))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned().into()),
    }
}

/// Says why a test is skipped where CANN is not the emulated one.
fn is_emulated() -> bool {
    let found = Emulated::found().is_some();
    if !found {
        println!("skipped: a real CANN does not fail on demand");
    }
    found
}

fn place() -> PathBuf {
    std::env::var_os(PLACE)
        .expect("set by the test that starts this")
        .into()
}

pub fn each_call_fails_in_turn(_: &Arc<dyn Device>) -> Outcome {
    if !is_emulated() {
        return Ok(());
    }
    let cache = tempfile::tempdir()?;
    print!("{}", run("calls", None, Some(cache.path()))?);
    Ok(())
}

fn fail_each_call() {
    let emulated = {
        // Opened before it is asked for.
        AscendDriver.probe().expect("the emulated device");
        Emulated::found().expect("an emulated CANN")
    };
    let program = || program(0, &place());
    program().expect("without faults");
    emulated.set_fault("");
    program().expect("without faults");
    let all = emulated.calls("*");
    let mut failed = 0;
    for code in [207_001, 507_899] {
        for call in 1..=all {
            emulated.set_fault(&format!("*:{call}={code}"));
            match program() {
                Err(error) => {
                    failed += 1;
                    let kind = error.kind();
                    let typed = match code {
                        207_001 => matches!(kind, ErrorKind::OutOfMemory | ErrorKind::Unavailable),
                        _ => matches!(kind, ErrorKind::DeviceLost | ErrorKind::Unavailable),
                    };
                    assert!(typed, "call {call} of {all} with {code}: {error}");
                }
                // Of destructors, and of questions whose answer is dispensable.
                Ok(found) => assert_eq!(found, [1; 64], "call {call} of {all} with {code}"),
            }
            emulated.set_fault("");
            let again = program();
            assert!(
                matches!(&again, Ok(found) if *found == [1; 64]),
                "after call {call} of {all} failed with {code}: {again:?}"
            );
            // A release that failed is none: the emulated CANN rightly says that something was not waited for.
            emulated.breaches();
        }
    }
    assert!(failed > all / 2, "{failed} of twice {all}");
    println!("{failed} of twice {all} calls failed the program");
}

pub fn a_lost_device_fails_every_call_with_its_cause(_: &Arc<dyn Device>) -> Outcome {
    match is_emulated() {
        true => run("lose", None, None).map(|_| ()),
        false => Ok(()),
    }
}

fn lose() {
    let device = AscendDriver
        .open(0, &OpenOptions::default())
        .expect("the emulated device");
    let emulated = Emulated::found().expect("an emulated CANN");
    let queue = device.create_queue(QueueKind::Compute).expect("a queue");
    let x = device.alloc(256).expect("memory");
    let add = function(&device, "add_one").expect("a function");
    queue.fill(&x.all(), 0).expect("a fill");
    emulated.set_fault("aicore:1");
    launch(&*queue, &add, 1, 1, &add_arguments(&x)).expect("a launch");
    let event = queue.record().expect("an event");
    let cause = std::thread::scope(|scope| {
        let waiters = [
            scope.spawn(|| event.wait(Some(Duration::from_secs(60)))),
            scope.spawn(|| queue.synchronize(Some(Duration::from_secs(60)))),
        ];
        let [first, second] = waiters.map(|waiter| {
            waiter
                .join()
                .expect("no panic")
                .expect_err("the device is lost")
        });
        assert_eq!(first, second);
        first
    });
    assert_eq!(
        (cause.kind(), cause.code()),
        (ErrorKind::DeviceLost, Some(507_015)),
        "{cause}"
    );
    for error in [
        device.alloc(4).err(),
        device.memory().err(),
        device.create_queue(QueueKind::Compute).err(),
        device.alloc_pinned(4).err(),
        queue.fill(&x.all(), 0).err(),
        queue.upload(&x.all(), &[0; 256]).err(),
        queue.record().err(),
        queue.synchronize(None).err(),
        event.is_done().err(),
        function(&device, "add_one").err(),
    ] {
        assert_eq!(error.expect("the device is lost"), cause);
    }
    // Closed by everybody, CANN is finalised, and the device works anew.
    drop((event, queue, x, add, device));
    emulated.set_fault("");
    let cache = tempfile::tempdir().expect("a directory");
    assert_eq!(program(0, cache.path()).expect("a new start"), [1; 64]);
    assert_eq!(emulated.living(), "");
}

pub fn a_failed_kernel_shows_when_it_is_waited_for(_: &Arc<dyn Device>) -> Outcome {
    match is_emulated() {
        true => run("fault", None, None).map(|_| ()),
        false => Ok(()),
    }
}

fn meet_a_fault() {
    let device = AscendDriver
        .open(0, &OpenOptions::default())
        .expect("the emulated device");
    let emulated = Emulated::found().expect("an emulated CANN");
    let queue = device.create_queue(QueueKind::Compute).expect("a queue");
    let x = device.alloc(256).expect("memory");
    let far = function(&device, "far").expect("a function");
    launch(&*queue, &far, 1, 1, &[operand(&x)]).expect("a launch is enqueued, whatever it does");
    let error = queue
        .synchronize(None)
        .expect_err("a kernel that left its memory");
    assert_eq!(
        (error.kind(), error.code()),
        (ErrorKind::DeviceLost, Some(507_035)),
        "{error}"
    );
    assert!(error.context().contains("far"), "{error}");
    // The kernel did it, not the backend.
    assert_eq!(emulated.breaches().lines().count(), 1);
}

pub fn without_a_compiler_kernels_are_unsupported(_: &Arc<dyn Device>) -> Outcome {
    if !is_emulated() {
        return Ok(());
    }
    for (profile, without) in [("8.1", &[][..]), ("9.0", &["aclrtcCompileProg"])] {
        let home = tempfile::tempdir()?;
        install(home.path(), profile, without)?;
        run("no compiler", Some(home.path()), None)?;
    }
    Ok(())
}

fn have_no_compiler() {
    let device = AscendDriver
        .open(0, &OpenOptions::default())
        .expect("the emulated device");
    assert_eq!(device.info().compiler_version, "no aclrtc");
    let error = function(&device, "add_one")
        .err()
        .expect("nothing compiles it");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(
        error.context().contains("libacl_rtc.so") && error.context().contains("CANN 8.3"),
        "{error}"
    );
    // All that needs no kernel works.
    let queue = device.create_queue(QueueKind::Compute).expect("a queue");
    let x = device.alloc(8).expect("memory");
    queue.fill(&x.all(), 1).expect("a fill");
    assert_eq!(words(&*queue, &x).expect("a read"), [0x0101_0101; 2]);
}

pub fn kernels_compiled_beforehand_need_no_compiler(device: &Arc<dyn Device>) -> Outcome {
    let binaries = tempfile::tempdir()?;
    let into = Cache::open(&binaries.path().join("kernels"))?;
    if let Err(error) = precompile(&SOURCE, &Config::default(), &into) {
        assert_eq!(
            (error.kind(), device.info().compiler_version.as_str()),
            (ErrorKind::Unsupported, "no aclrtc"),
            "{error}"
        );
        return Ok(());
    }
    if !is_emulated() {
        return Ok(());
    }
    let home = tempfile::tempdir()?;
    install(home.path(), "8.1", &[])?;
    run(
        "beforehand",
        Some(home.path()),
        Some(&binaries.path().join("kernels")),
    )
    .map(|_| ())
}

fn use_what_was_compiled_beforehand() {
    for options in [
        OpenOptions {
            binaries_dir: Some(place()),
            ..OpenOptions::default()
        },
        OpenOptions {
            cache_dir: Some(place()),
            ..OpenOptions::default()
        },
    ] {
        let device = AscendDriver.open(0, &options).expect("the emulated device");
        assert!(
            device.info().driver_version.contains("KernelArgs FromFile"),
            "{}",
            device.info().driver_version
        );
        let queue = device.create_queue(QueueKind::Compute).expect("a queue");
        let x = device.alloc(256).expect("memory");
        queue.fill(&x.all(), 0).expect("a fill");
        let add = function(&device, "add_one").expect("compiled beforehand");
        launch(&*queue, &add, 1, 1, &add_arguments(&x)).expect("a launch");
        assert_eq!(words(&*queue, &x).expect("a read"), [1; 64]);
    }
}

/// Functions without which there is no device, whatever else is there.
const REQUIRED: &[&str] = &[
    "aclInit",
    "aclFinalize",
    "aclGetRecentErrMsg",
    "aclrtGetSocName",
    "aclrtGetVersion",
    "aclrtGetDeviceCount",
    "aclrtSetDevice",
    "aclrtGetMemInfo",
    "aclrtMalloc",
    "aclrtFree",
    "aclrtMallocHost",
    "aclrtFreeHost",
    "aclrtMemcpy",
    "aclrtMemcpyAsync",
    "aclrtMemsetAsync",
    "aclrtCreateStream",
    "aclrtDestroyStream",
    "aclrtSynchronizeStreamWithTimeout",
    "aclrtStreamWaitEvent",
    "aclrtCreateEventExWithFlag",
    "aclrtDestroyEvent",
    "aclrtRecordEvent",
    "aclrtSynchronizeEvent",
    "aclrtQueryEventStatus",
    "aclrtEventElapsedTime",
    "aclrtBinaryLoadFromFile",
    "aclrtBinaryGetFunction",
    "aclrtBinaryUnLoad",
];

/// Functions that others stand in for, in this profile, and what shows that they do.
const OPTIONAL: &[(&str, &str, &str)] = &[
    (
        "9.0",
        "aclrtLaunchKernelWithHostArgs",
        "KernelArgs FromData capture",
    ),
    (
        "9.0",
        "aclrtBinaryLoadFromData",
        "HostArgs FromFile capture",
    ),
    ("9.0", "aclmdlRICaptureBegin", "HostArgs FromData loop"),
    ("9.0", "aclmdlRICaptureEnd", "HostArgs FromData loop"),
    ("9.0", "aclmdlRIExecuteAsync", "HostArgs FromData loop"),
    ("9.0", "aclmdlRIDestroy", "HostArgs FromData loop"),
    ("9.0", "aclrtGetDeviceInfo", "HostArgs FromData capture"),
    ("9.0", "aclrtKernelArgsInit", "HostArgs FromData capture"),
    ("9.0", "aclrtcCreateProg", "no aclrtc"),
    ("9.0", "aclrtcCompileProg", "no aclrtc"),
    ("9.0", "aclrtcGetBinDataSize", "no aclrtc"),
    ("9.0", "aclrtcGetBinData", "no aclrtc"),
    ("9.0", "aclrtcGetCompileLogSize", "no aclrtc"),
    ("9.0", "aclrtcGetCompileLog", "no aclrtc"),
    ("9.0", "aclrtcDestroyProg", "no aclrtc"),
    (
        "8.1",
        "aclrtKernelArgsInit",
        "has no function aclrtKernelArgsInit",
    ),
    (
        "8.1",
        "aclrtKernelArgsAppend",
        "has no function aclrtKernelArgsAppend",
    ),
    (
        "8.1",
        "aclrtKernelArgsFinalize",
        "has no function aclrtKernelArgsFinalize",
    ),
    (
        "8.1",
        "aclrtLaunchKernelWithConfig",
        "has no function aclrtLaunchKernelWithConfig",
    ),
];

pub fn missing_libraries_and_functions_are_named(_: &Arc<dyn Device>) -> Outcome {
    if !is_emulated() {
        return Ok(());
    }
    let home = tempfile::tempdir()?;
    let said = run("probe", Some(home.path()), None)?;
    let tried = format!(
        "library not found (tried {}/lib64/libacl_rt.so",
        home.path().display()
    );
    assert!(
        said.contains(&tried) && said.contains("set_env.sh"),
        "{said}"
    );
    // No library at all, one of something else, and one that is no library.
    for name in ["libacl_rt.so", "libascendcl.so"] {
        let lib64 = home.path().join("lib64");
        std::fs::create_dir_all(&lib64)?;
        std::fs::write(lib64.join(name), b"no library")?;
        let said = run("probe", Some(home.path()), None)?;
        assert!(said.contains("library not found"), "{said}");
    }
    let home = tempfile::tempdir()?;
    for symbol in REQUIRED {
        install(home.path(), "9.0", &[symbol])?;
        let said = run("probe", Some(home.path()), None)?;
        assert!(
            said.contains(&format!("libacl_rt.so has no function {symbol};")),
            "{symbol}: {said}"
        );
    }
    for (profile, symbol, shows) in OPTIONAL {
        install(home.path(), profile, &[symbol])?;
        let said = run("probe", Some(home.path()), None)?;
        assert!(said.contains(shows), "{profile} without {symbol}: {said}");
    }
    // Under the umbrella's name, as old versions have it.
    install(home.path(), "8.1", &[])?;
    let lib64 = home.path().join("lib64");
    std::fs::rename(lib64.join("libacl_rt.so"), lib64.join("libascendcl.so"))?;
    let said = run("probe", Some(home.path()), None)?;
    assert!(said.contains("KernelArgs FromFile capture"), "{said}");
    // Never from where the process happens to be.
    let child = Command::new(std::env::current_exe()?)
        .env(CHILD, "probe")
        .env("ASCEND_HOME_PATH", ".")
        .env_remove("ASCEND_TOOLKIT_HOME")
        .current_dir(home.path())
        .output()?;
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(
        said.contains("library not found") && !said.contains("./lib64"),
        "{said}"
    );
    Ok(())
}
