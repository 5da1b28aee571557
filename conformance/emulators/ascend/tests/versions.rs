//! Versions of CANN, what the environment decides, and how a process ends.

mod harness;

use harness::{ARCHITECTURE, Cann, SOURCE, call_in, child, compile, of_child, out, text};

#[test]
fn each_version_has_its_symbols() {
    let since = [
        ("aclrtMalloc", "8.1"),
        ("aclrtBinaryLoadFromFile", "8.1"),
        ("aclrtKernelArgsAppend", "8.1"),
        ("aclrtLaunchKernelWithConfig", "8.1"),
        ("aclmdlRICaptureBegin", "8.1"),
        ("aclrtBinaryLoadFromData", "8.5"),
        ("aclrtLaunchKernelWithHostArgs", "8.5"),
        ("aclrtGetDeviceInfo", "8.5"),
        ("aclFinalizeReference", "8.5"),
        ("aclrtLaunchKernelWithArgsArray", "9.1"),
        // The other library's.
        ("aclrtcCreateProg", "never"),
    ];
    for profile in ["8.1", "8.5", "9.0", "9.1"] {
        let cann = Cann::open(profile);
        for (name, first) in since {
            // SAFETY: only looked for.
            let found = unsafe { cann.runtime.get::<unsafe extern "C" fn()>(name.as_bytes()) };
            assert_eq!(found.is_ok(), profile >= first, "{name} in {profile}");
        }
        assert_eq!(cann.compiler.is_some(), profile >= "8.5");
        if let Some(compiler) = &cann.compiler {
            // SAFETY: as above.
            assert!(unsafe { compiler.get::<unsafe extern "C" fn()>(b"aclrtMalloc") }.is_err());
        }
    }
}

#[test]
fn a_version_may_lack_more() {
    let folder = tempfile::tempdir().unwrap();
    harness::install(
        folder.path(),
        &[
            "--profile",
            "9.0",
            "--without",
            "aclrtMalloc",
            "--without",
            "aclrtcCompileProg",
        ],
    );
    let open = |name: &str| {
        // SAFETY: the emulator's library has no initialisers.
        unsafe { libloading::Library::new(folder.path().join("lib64").join(name)) }.unwrap()
    };
    let (runtime, compiler) = (open("libacl_rt.so"), open("libacl_rtc.so"));
    // SAFETY: only looked for.
    unsafe {
        assert!(
            runtime
                .get::<unsafe extern "C" fn()>(b"aclrtMalloc")
                .is_err()
        );
        assert!(
            runtime
                .get::<unsafe extern "C" fn()>(b"aclrtMallocHost")
                .is_ok()
        );
        assert!(
            compiler
                .get::<unsafe extern "C" fn()>(b"aclrtcCompileProg")
                .is_err()
        );
        assert!(
            compiler
                .get::<unsafe extern "C" fn()>(b"aclrtcCreateProg")
                .is_ok()
        );
    }
    assert_eq!(call_in(&runtime, "aclInit", &[0]), 0);
}

#[test]
fn the_installer_says_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let output = std::process::Command::new(harness::BIN)
            .args(arguments)
            .output()
            .unwrap();
        (
            output.status.code().unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let place = folder.path().to_str().unwrap();
    assert!(
        run(&["install", place, "--profile", "7.0"])
            .1
            .contains("no profile 7.0")
    );
    let other = run(&["install", place, "--library", harness::BIN]);
    assert!(other.0 == 1, "{}", other.1);
    assert_eq!(run(&["install"]).0, 2);
    assert_eq!(run(&["install", place, "--profile"]).0, 2);
    let without = run(&["install", place, "--without", "aclrtNothing"]);
    assert!(without.1.contains("aclrtNothing"), "{}", without.1);
}

#[test]
fn the_device_says_that_it_is_emulated() {
    let cann = Cann::ready();
    // SAFETY: the function has this type, and gives a text for as long as the library lives.
    let name = unsafe {
        let name = cann
            .runtime
            .get::<unsafe extern "C" fn() -> *const std::ffi::c_char>(b"aclrtGetSocName");
        std::ffi::CStr::from_ptr(name.unwrap()())
    };
    assert_eq!(name, c"Ascend910B3 (emulated)");
    let info = |attribute| {
        let mut value = 0i64;
        cann.ok("aclrtGetDeviceInfo", &[0, attribute, out(&mut value)]);
        value
    };
    assert_eq!(
        [102, 201, 204, 302, 601].map(info),
        [20, 40, 192 << 10, 192 << 20, 2201]
    );
}

#[test]
fn calls_fail_on_demand_in_their_turn() {
    let cann = Cann::ready();
    let mut place = 0u64;
    let place = out(&mut place);
    cann.fault("aclrtMalloc:2=207001, aclrtMallocHost");
    cann.ok("aclrtMalloc", &[place, 64, 0]);
    cann.fails(207001, "aclrtMalloc", &[place, 64, 0]);
    cann.ok("aclrtMalloc", &[place, 64, 0]);
    cann.fails(507899, "aclrtMallocHost", &[place, 64]);
    assert_eq!(cann.living(), ["device memory: 2, 128 bytes"]);
    cann.fault("*:2=107000");
    cann.ok("aclrtMalloc", &[place, 64, 0]);
    cann.fails(107000, "aclrtGetDevice", &[place]);
    assert_ne!(
        cann.call("ropeway_emulated_cann_set_fault", &[text(c"nonsense")]),
        0
    );
}

/// What a process does that a test starts.
fn act(what: &str) {
    let cann = Cann::ready();
    let device = cann.malloc(64);
    match what {
        "good" => {}
        "free twice" => {
            cann.ok("aclrtFree", &[device]);
            assert_eq!(cann.call("aclrtFree", &[device]), 107000);
        }
        "read" => {
            assert_eq!(cann.call("aclrtFree", &[device + 1]), 107000);
            assert_eq!(cann.breaches().len(), 1);
        }
        "follow" => {
            // SAFETY: none: that is what shall fault.
            println!("{}", unsafe { (device as *const u8).read_volatile() });
        }
        "follow freed pinned" => {
            let pinned = cann.pinned(64).as_ptr();
            cann.ok("aclrtFreeHost", &[pinned as u64]);
            // SAFETY: as above.
            println!("{}", unsafe { pinned.read_volatile() });
        }
        "settings" => {
            let mut count = 0u32;
            cann.ok("aclrtGetDeviceCount", &[out(&mut count)]);
            let (mut free, mut total) = (0u64, 0u64);
            cann.ok("aclrtGetMemInfo", &[1, out(&mut free), out(&mut total)]);
            assert_eq!((count, total), (3, 1 << 20));
            cann.fails(207001, "aclrtMalloc", &[out(&mut free), 1 << 20, 0]);
            cann.fails(207001, "aclrtMallocHost", &[out(&mut free), 64]);
        }
        "no g++" => {
            let (code, _, log) = compile(cann.compiler.as_ref().unwrap(), SOURCE, &[ARCHITECTURE]);
            assert_eq!(code, 576000);
            assert!(log.contains("/nowhere/g++ cannot be run"), "{log}");
        }
        other => panic!("{other}"),
    }
}

#[test]
fn breaches_that_nobody_reads_fail_the_process() {
    if let Some(what) = of_child() {
        return act(&what);
    }
    let run = |what: &str, variables: &[(&str, &str)]| {
        child(
            "breaches_that_nobody_reads_fail_the_process",
            what,
            variables,
        )
    };
    assert_eq!(run("good", &[]).status.code(), Some(0));
    assert_eq!(run("read", &[]).status.code(), Some(0));
    let unread = run("free twice", &[]);
    assert_eq!(unread.status.code(), Some(97));
    let errors = String::from_utf8(unread.stderr).unwrap();
    assert!(
        errors.contains("aclrtFree: 107000")
            && errors.contains("1 breaches of contract that nobody read"),
        "{errors}"
    );
    assert_eq!(
        run("free twice", &[("ROPEWAY_EMULATED_CANN_UNREAD", "report")])
            .status
            .code(),
        Some(0)
    );
    let report = tempfile::NamedTempFile::new().unwrap();
    run(
        "free twice",
        &[(
            "ROPEWAY_EMULATED_CANN_REPORT",
            report.path().to_str().unwrap(),
        )],
    );
    assert!(
        std::fs::read_to_string(report.path())
            .unwrap()
            .contains("aclrtFree: 107000")
    );
}

#[test]
fn a_host_that_follows_a_device_address_faults() {
    use std::os::unix::process::ExitStatusExt;
    if let Some(what) = of_child() {
        return act(&what);
    }
    for what in ["follow", "follow freed pinned"] {
        let output = child("a_host_that_follows_a_device_address_faults", what, &[]);
        assert_eq!(
            output.status.signal(),
            Some(libc::SIGSEGV),
            "{what}: {output:?}"
        );
    }
}

#[test]
fn the_environment_decides() {
    if let Some(what) = of_child() {
        return act(&what);
    }
    let settings = [
        ("ROPEWAY_EMULATED_CANN_DEVICES", "3"),
        ("ROPEWAY_EMULATED_CANN_MEMORY", "1048576"),
        ("ROPEWAY_EMULATED_CANN_FAULT", "aclrtMallocHost:1=207001"),
    ];
    let output = child("the_environment_decides", "settings", &settings);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let output = child(
        "the_environment_decides",
        "no g++",
        &[("ROPEWAY_EMULATED_CANN_CXX", "/nowhere/g++")],
    );
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}
