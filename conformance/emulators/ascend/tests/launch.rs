//! The run-time compiler, binaries, launches.

mod harness;

use harness::{
    ARCHITECTURE, Cann, D2H, SOURCE, binary, call_in, compile, compiler_breaches, out, text,
};

/// As a structure of C has them, with padding at the end.
#[repr(C)]
struct Scale {
    x: u64,
    y: u64,
    by: f32,
}

const BYTES: u64 = size_of::<Scale>() as u64;
const TILE: usize = 256;

/// A device with the binary loaded, and numbers to scale.
struct Loaded {
    cann: Cann,
    handle: u64,
    function: u64,
    stream: u64,
    x: u64,
    y: u64,
}

fn loaded(profile: &str, blocks: usize) -> Loaded {
    let cann = Cann::ready_as(profile);
    let mut handle = 0u64;
    let bytes = binary();
    cann.ok(
        "aclrtBinaryLoadFromData",
        &[
            bytes.as_ptr() as u64,
            bytes.len() as u64,
            0,
            out(&mut handle),
        ],
    );
    let mut function = 0u64;
    cann.ok(
        "aclrtBinaryGetFunction",
        &[handle, text(c"scale"), out(&mut function)],
    );
    let stream = cann.stream();
    let numbers: Vec<u8> = (0..blocks * TILE)
        .flat_map(|x| (x as f32).to_le_bytes())
        .collect();
    let (x, y) = (
        cann.malloc(numbers.len() as u64),
        cann.malloc(numbers.len() as u64),
    );
    cann.upload(x, &numbers);
    Loaded {
        cann,
        handle,
        function,
        stream,
        x,
        y,
    }
}

impl Loaded {
    fn arguments(&self, by: f32) -> Scale {
        Scale {
            x: self.x,
            y: self.y,
            by,
        }
    }

    fn launch(&self, blocks: u64, arguments: &mut Scale) -> i32 {
        let list = [
            self.function,
            blocks,
            self.stream,
            0,
            out(arguments),
            BYTES,
            0,
            0,
        ];
        self.cann.call("aclrtLaunchKernelWithHostArgs", &list)
    }

    fn check(&self, blocks: usize, by: f32) {
        self.cann.synchronize(self.stream);
        let bytes = self.cann.download(self.y, blocks * TILE * 4);
        for (x, y) in bytes.chunks(4).enumerate() {
            assert_eq!(f32::from_le_bytes(y.try_into().unwrap()), x as f32 * by);
        }
        assert_eq!(self.cann.breaches(), [""; 0]);
    }
}

#[test]
fn a_kernel_runs_with_the_arguments_it_was_launched_with() {
    let loaded = loaded("9.0", 50);
    let mut arguments = loaded.arguments(3.0);
    loaded.cann.fault("stall:1=30");
    assert_eq!(loaded.launch(50, &mut arguments), 0);
    // They were copied at the launch.
    arguments = Scale {
        x: 1,
        y: 2,
        by: 0.0,
    };
    loaded.check(50, 3.0);
    assert_eq!(arguments.x, 1);
    loaded.cann.ok("aclrtBinaryUnLoad", &[loaded.handle]);
    assert_eq!(loaded.launch(1, &mut loaded.arguments(1.0)), 107017);
    loaded.cann.breached("no kernel, or no longer");
}

#[test]
fn arguments_come_one_by_one_too() {
    let loaded = loaded("9.0", 2);
    let cann = &loaded.cann;
    let (mut list, mut parameter) = (0u64, 0u64);
    let append = |list: u64, value: &mut Vec<u8>, parameter: u64| {
        cann.call(
            "aclrtKernelArgsAppend",
            &[
                list,
                value.as_mut_ptr() as u64,
                value.len() as u64,
                parameter,
            ],
        )
    };
    let parameter = out(&mut parameter);
    cann.ok("aclrtKernelArgsInit", &[loaded.function, out(&mut list)]);
    let launch = [loaded.function, 2, loaded.stream, 0, list, 0];
    cann.breach(
        107000,
        "not finished",
        "aclrtLaunchKernelWithConfig",
        &launch,
    );
    for mut value in [
        loaded.x.to_le_bytes().to_vec(),
        loaded.y.to_le_bytes().to_vec(),
    ] {
        assert_eq!(append(list, &mut value, parameter), 0);
        value.fill(0);
    }
    cann.breach(
        107000,
        "3 parameters, and gets 2",
        "aclrtKernelArgsFinalize",
        &[list],
    );
    assert_eq!(append(list, &mut vec![0; 8], parameter), 107000);
    cann.breached("parameter 2 of scale has 4 bytes, its argument 8");
    assert_eq!(
        append(list, &mut 0.5f32.to_le_bytes().to_vec(), parameter),
        0
    );
    assert_eq!(append(list, &mut vec![0; 4], parameter), 107000);
    cann.breached("scale has 3 parameters, and gets another");
    cann.ok("aclrtKernelArgsFinalize", &[list]);
    assert_eq!(append(list, &mut vec![0; 4], parameter), 107000);
    cann.breached("finished list");
    cann.ok("aclrtLaunchKernelWithConfig", &launch);
    loaded.check(2, 0.5);
    cann.breach(
        107017,
        "list of arguments",
        "aclrtLaunchKernelWithConfig",
        &launch,
    );
}

#[test]
fn arguments_come_as_an_array_of_places_since_9_1() {
    let loaded = loaded("9.1", 1);
    let (mut x, mut y, mut by) = (loaded.x, loaded.y, 7f32);
    let places = [out(&mut x), out(&mut y), out(&mut by)];
    let list = [loaded.function, 1, loaded.stream, 0, places.as_ptr() as u64];
    loaded.cann.ok("aclrtLaunchKernelWithArgsArray", &list);
    loaded.check(1, 7.0);
}

#[test]
fn arguments_of_another_size_are_refused() {
    let loaded = loaded("9.0", 1);
    let cann = &loaded.cann;
    let mut arguments = loaded.arguments(1.0);
    let arguments = out(&mut arguments);
    for bytes in [0, 16, 19, 21, 32] {
        let list = [loaded.function, 1, loaded.stream, 0, arguments, bytes, 0, 0];
        cann.breach(
            107000,
            &format!("have 20 bytes, and it gets {bytes}"),
            "aclrtLaunchKernelWithHostArgs",
            &list,
        );
    }
    let list = |blocks, arguments| {
        [
            loaded.function,
            blocks,
            loaded.stream,
            0,
            arguments,
            20,
            0,
            0,
        ]
    };
    cann.breach(
        107000,
        "no blocks",
        "aclrtLaunchKernelWithHostArgs",
        &list(0, arguments),
    );
    cann.breach(
        107000,
        "memory of the host",
        "aclrtLaunchKernelWithHostArgs",
        &list(1, loaded.x),
    );
    let holders = [
        loaded.function,
        1,
        loaded.stream,
        0,
        arguments,
        20,
        arguments,
        1,
    ];
    cann.fails(207000, "aclrtLaunchKernelWithHostArgs", &holders);

    // Parameters lie as C lays them out.
    let mut extra = 0u64;
    cann.ok(
        "aclrtBinaryGetFunction",
        &[loaded.handle, text(c"extra"), out(&mut extra)],
    );
    cann.breach(
        107000,
        "have 16 bytes",
        "aclrtLaunchKernelWithHostArgs",
        &[extra, 1, loaded.stream, 0, arguments, 13, 0, 0],
    );
}

#[test]
fn faults_show_when_a_stream_is_synchronised() {
    for (fault, code) in [
        ("aicore:2", 507015),
        ("vector:2", 507035),
        ("timeout:2", 507014),
    ] {
        let loaded = loaded("9.0", 1);
        let cann = &loaded.cann;
        cann.fault(fault);
        for _ in 0..3 {
            assert_eq!(loaded.launch(1, &mut loaded.arguments(1.0)), 0);
        }
        let event = cann.make("aclrtCreateEventExWithFlag", &[1]);
        cann.ok("aclrtRecordEvent", &[event, loaded.stream]);
        cann.fails(code, "aclrtSynchronizeStream", &[loaded.stream]);
        assert!(cann.message().unwrap().contains("kernel scale"));
        assert_eq!(cann.message(), None, "a message is told once");
        // It stays, whatever one waits for.
        cann.fails(code, "aclrtSynchronizeEvent", &[event]);
        cann.fails(code, "aclrtSynchronizeDevice", &[]);
        let mut host = [0u8; 4];
        cann.fails(code, "aclrtMemcpy", &[out(&mut host), 4, loaded.x, 4, D2H]);
        assert_eq!(loaded.launch(1, &mut loaded.arguments(1.0)), 0);
        cann.fails(code, "aclrtSynchronizeStream", &[loaded.stream]);
        // But for a reset.
        cann.ok("aclrtResetDevice", &[0]);
        cann.ok("aclrtSetDevice", &[0]);
        let device = cann.malloc(4);
        cann.download(device, 4);
    }
}

#[test]
fn a_kernel_that_leaves_its_memory_is_reported() {
    let loaded = loaded("9.0", 1);
    let cann = &loaded.cann;
    // The second block has no memory.
    assert_eq!(loaded.launch(2, &mut loaded.arguments(1.0)), 0);
    let code = cann.call("aclrtSynchronizeStream", &[loaded.stream]);
    assert!([507015, 507035].contains(&code), "{code}");
    let breaches = cann.breaches();
    assert!(
        breaches
            .iter()
            .any(|breach| breach.starts_with("kernel scale: ")),
        "{breaches:?}"
    );
}

#[test]
fn a_kernel_finds_no_freed_memory() {
    let loaded = loaded("9.0", 1);
    let cann = &loaded.cann;
    cann.fault("stall:1=50");
    assert_eq!(loaded.launch(1, &mut loaded.arguments(1.0)), 0);
    cann.ok("aclrtFree", &[loaded.x]);
    cann.breached("device memory of 1024 bytes is freed in flight");
    assert_ne!(cann.call("aclrtSynchronizeStream", &[loaded.stream]), 0);
    assert!(!cann.breaches().is_empty());
}

#[test]
fn unloading_under_a_launch_is_reported() {
    let loaded = loaded("9.0", 1);
    assert_eq!(loaded.launch(1, &mut loaded.arguments(2.0)), 0);
    loaded.cann.ok("aclrtBinaryUnLoad", &[loaded.handle]);
    loaded.cann.breached("a binary is unloaded");
    loaded.check(1, 2.0);
}

#[test]
fn an_unloaded_binary_has_no_kernels() {
    let loaded = loaded("9.0", 1);
    loaded.cann.ok("aclrtBinaryUnLoad", &[loaded.handle]);
    assert_eq!(loaded.launch(1, &mut loaded.arguments(2.0)), 107017);
    loaded.cann.breached("or no longer");
    let mut function = 0u64;
    let arguments = [loaded.handle, text(c"scale"), out(&mut function)];
    loaded
        .cann
        .breach(107017, "or no longer", "aclrtBinaryGetFunction", &arguments);
}

#[test]
fn launches_are_captured() {
    let loaded = loaded("9.0", 1);
    let cann = &loaded.cann;
    cann.ok("aclmdlRICaptureBegin", &[loaded.stream, 1]);
    let mut arguments = loaded.arguments(5.0);
    assert_eq!(loaded.launch(1, &mut arguments), 0);
    let mut instance = 0u64;
    cann.ok("aclmdlRICaptureEnd", &[loaded.stream, out(&mut instance)]);
    assert_eq!(cann.download(loaded.y, 4), [0xFF; 4]);
    cann.ok("aclmdlRIExecuteAsync", &[instance, loaded.stream]);
    loaded.check(1, 5.0);
}

#[test]
fn binaries_are_loaded_from_files_too() {
    let cann = Cann::ready_as("8.1");
    let path = cann.folder.path().join("scale.bin");
    std::fs::write(&path, binary()).unwrap();
    let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    let mut handle = 0u64;
    // An option: magic, of vector cores.
    let option = [2u32, 0x4141_5246, 0, 0, 0];
    let options = [option.as_ptr() as u64, 1u64];
    cann.ok(
        "aclrtBinaryLoadFromFile",
        &[text(&path), options.as_ptr() as u64, out(&mut handle)],
    );
    let mut function = 0u64;
    cann.ok(
        "aclrtBinaryGetFunction",
        &[handle, text(c"scale"), out(&mut function)],
    );
    cann.fails(
        107000,
        "aclrtBinaryGetFunction",
        &[handle, text(c"shrink"), out(&mut function)],
    );
    cann.fails(
        107000,
        "aclrtBinaryLoadFromFile",
        &[text(c"/nowhere"), 0, out(&mut handle)],
    );
    let option = [2u32, 5, 0, 0, 0];
    let options = [option.as_ptr() as u64, 1u64];
    cann.breach(
        107000,
        "option 2",
        "aclrtBinaryLoadFromFile",
        &[text(&path), options.as_ptr() as u64, out(&mut handle)],
    );
}

#[test]
fn what_is_no_binary_is_not_loaded() {
    let cann = Cann::ready();
    let mut handle = 0u64;
    let mut load = |bytes: &[u8], why: &str| {
        cann.fails(
            107000,
            "aclrtBinaryLoadFromData",
            &[
                bytes.as_ptr() as u64,
                bytes.len() as u64,
                0,
                out(&mut handle),
            ],
        );
        let message = cann.message().unwrap();
        assert!(message.contains(why), "{message}");
    };
    load(b"short", "no kernel binary");
    load(&[0; 100], "no kernel binary");
    let mut other = binary().to_vec();
    other[16..24].copy_from_slice(b"dav-3101");
    load(&other, "for dav-3101");
    load(&binary()[..100], "cannot be loaded");
}

#[test]
fn compiling_says_what_is_wrong() {
    let cann = Cann::open("9.0");
    let compiler = cann.compiler.as_ref().unwrap();
    let failed = |source, options: &[&std::ffi::CStr], code, why: &str| {
        let (found, _, log) = compile(compiler, source, options);
        assert_eq!(found, code, "{log}");
        assert!(log.contains(why), "{log}");
        log
    };
    failed(SOURCE, &[], 276000, "error: --npu-arch=dav-2201 is missing");
    failed(
        SOURCE,
        &[c"--npu-arch=dav-3101"],
        276000,
        "error: --npu-arch=dav-3101 is not supported",
    );
    failed(
        SOURCE,
        &[ARCHITECTURE, c"-O9"],
        276000,
        "error: unknown option -O9",
    );
    failed(c"int x;", &[ARCHITECTURE], 276000, "error: no extern");
    let log = failed(
        c"int x;\n#include \"nowhere.h\"",
        &[ARCHITECTURE],
        276000,
        "scale.asc:2:",
    );
    assert!(!log.contains("/tmp"), "{log}");
    let wrong = c"#include \"kernel_operator.h\"\nextern \"C\" __global__ __aicore__ void k(GM_ADDR x) {\n  undeclared(x);\n}";
    failed(wrong, &[ARCHITECTURE], 276000, "scale.asc:3:");
    assert_eq!(
        call_in(
            compiler,
            "ropeway_emulated_cann_set_fault",
            &[text(c"compile")]
        ),
        0
    );
    failed(SOURCE, &[ARCHITECTURE], 276000, "on demand");
    assert_eq!(compiler_breaches(compiler), [""; 0]);

    let mut program = 0u64;
    assert_eq!(
        call_in(
            compiler,
            "aclrtcCreateProg",
            &[out(&mut program), text(SOURCE), 0, 0, 0, 0]
        ),
        0
    );
    let mut bytes = 0u64;
    assert_eq!(
        call_in(
            compiler,
            "aclrtcGetBinDataSize",
            &[program, out(&mut bytes)]
        ),
        176002
    );
    assert_eq!(compiler_breaches(compiler).len(), 1);
    assert_eq!(
        call_in(compiler, "aclrtcCompileProg", &[program + 1, 0, 0]),
        176001
    );
    assert_eq!(compiler_breaches(compiler).len(), 1);
    assert_eq!(
        call_in(compiler, "aclrtcDestroyProg", &[out(&mut program)]),
        0
    );
}

#[test]
fn definitions_reach_the_source() {
    let cann = Cann::ready();
    // `extra` is there only where it was asked for.
    let (code, plain, log) = compile(cann.compiler.as_ref().unwrap(), SOURCE, &[ARCHITECTURE]);
    assert_eq!(code, 0, "{log}");
    for (bytes, code) in [(&plain[..], 107000), (binary(), 0)] {
        let (mut handle, mut function) = (0u64, 0u64);
        cann.ok(
            "aclrtBinaryLoadFromData",
            &[
                bytes.as_ptr() as u64,
                bytes.len() as u64,
                0,
                out(&mut handle),
            ],
        );
        assert_eq!(
            cann.call(
                "aclrtBinaryGetFunction",
                &[handle, text(c"extra"), out(&mut function)]
            ),
            code
        );
    }
}
