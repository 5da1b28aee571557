//! The driver's interface, driven by cudarc as a program does: in a child process that finds the emulated library as `libcuda.so.1` in a
//! directory of its own.

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use cudarc::driver::{
    CudaContext, CudaFunction, CudaStream, DriverError, LaunchConfig, PushKernelArg, result, sys,
};
use cudarc::nvrtc::Ptx;

const CHILD: &str = "ROPEWAY_EMULATED_CUDA_TEST_CHILD";
const VECTOR_ADD: &str = include_str!("kernels/vector_add.ptx");
const SGEMM: &str = include_str!("kernels/sgemm.ptx");
const GEMM_BF16: &str = include_str!("kernels/gemm_bf16.ptx");

/// The library under its own name, beside this test.
fn library() -> PathBuf {
    let deps = std::env::current_exe().unwrap();
    let deps = deps.parent().unwrap();
    let name = "libropeway_emulated_cuda.so";
    let found = [deps.join(name), deps.parent().unwrap().join(name)]
        .into_iter()
        .find(|path| path.exists());
    found.unwrap_or_else(|| panic!("{name} is not beside {}", deps.display()))
}

/// Runs a test's body in a child process on the emulated driver.
fn on_emulator(test: &str, settings: &[(&str, &str)], body: impl FnOnce(&Path)) {
    if let Ok(report) = std::env::var(CHILD) {
        return body(Path::new(&report));
    }
    let directory = tempfile::tempdir().unwrap();
    // cudarc looks for both names, and the first must not be somebody else's.
    for name in ["libcuda.so.1", "libcuda.so"] {
        std::fs::copy(library(), directory.path().join(name)).unwrap();
    }
    let report = directory.path().join("report");
    let mut child = Command::new(std::env::current_exe().unwrap());
    child
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env("LD_LIBRARY_PATH", directory.path());
    child
        .env(CHILD, &report)
        .env("ROPEWAY_EMULATED_CUDA_REPORT", &report);
    for (name, value) in settings {
        child.env(format!("ROPEWAY_EMULATED_CUDA_{name}"), value);
    }
    let output = child.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}\n{}\nreports: {}",
        String::from_utf8_lossy(&output.stderr),
        std::fs::read_to_string(&report).unwrap_or_default()
    );
}

fn open() -> (Arc<CudaContext>, Arc<CudaStream>) {
    let context = CudaContext::new(0).unwrap();
    let stream = context.new_stream().unwrap();
    (context, stream)
}

fn function(context: &Arc<CudaContext>, ptx: &str, name: &str) -> CudaFunction {
    context
        .load_module(Ptx::from_src(ptx))
        .unwrap()
        .load_function(name)
        .unwrap()
}

fn config(grid: (u32, u32, u32), block: (u32, u32, u32), shared: u32) -> LaunchConfig {
    LaunchConfig {
        grid_dim: grid,
        block_dim: block,
        shared_mem_bytes: shared,
    }
}

fn noise(count: usize, seed: u32) -> Vec<f32> {
    let step = |state: &mut u32| {
        *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        Some((*state >> 8) as f32 / (1 << 23) as f32 - 1.0)
    };
    std::iter::repeat_n((), count)
        .scan(seed, |state, ()| step(state))
        .collect()
}

#[test]
fn devices_say_that_they_are_emulated() {
    on_emulator(
        "devices_say_that_they_are_emulated",
        &[("DEVICES", "3"), ("ARCHITECTURE", "8.9")],
        |_| {
            assert_eq!(CudaContext::device_count().unwrap(), 3);
            for ordinal in 0..3 {
                let context = CudaContext::new(ordinal).unwrap();
                assert!(
                    context.name().unwrap().contains("emulated"),
                    "{}",
                    context.name().unwrap()
                );
                assert_eq!(context.compute_capability().unwrap(), (8, 9));
                assert_eq!(context.total_mem().unwrap(), 4 << 30);
            }
            assert_eq!(
                CudaContext::new(3).unwrap_err().0,
                sys::CUresult::CUDA_ERROR_INVALID_DEVICE
            );
            let error = DriverError(sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
            assert!(
                error.to_string().contains("illegal memory access"),
                "{error}"
            );
        },
    );
}

#[test]
fn vector_add() {
    on_emulator("vector_add", &[], |_| {
        let (context, stream) = open();
        let kernel = function(&context, VECTOR_ADD, "vector_add");
        let n = 5000_u32;
        let (a, b) = (noise(n as usize, 1), noise(n as usize, 2));
        let (a_device, b_device) = (
            stream.clone_htod(&a).unwrap(),
            stream.clone_htod(&b).unwrap(),
        );
        let mut sum = stream.alloc_zeros::<f32>(n as usize).unwrap();
        let mut launch = stream.launch_builder(&kernel);
        launch.arg(&a_device).arg(&b_device).arg(&mut sum).arg(&n);
        // SAFETY: the arguments are the kernel's.
        unsafe { launch.launch(LaunchConfig::for_num_elems(n)) }.unwrap();
        let expected: Vec<_> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
        assert_eq!(stream.clone_dtoh(&sum).unwrap(), expected);
    });
}

#[test]
fn sgemm_of_any_shape() {
    on_emulator("sgemm_of_any_shape", &[("THREADS", "2")], |_| {
        let (context, stream) = open();
        let kernel = function(&context, SGEMM, "sgemm");
        let (m, n, k) = (45, 50, 61);
        let (a, b) = (noise(m * k, 3), noise(k * n, 4));
        let (a_device, b_device) = (
            stream.clone_htod(&a).unwrap(),
            stream.clone_htod(&b).unwrap(),
        );
        let mut c = stream.alloc_zeros::<f32>(m * n).unwrap();
        let (m32, n32, k32) = (m as i32, n as i32, k as i32);
        let mut launch = stream.launch_builder(&kernel);
        launch
            .arg(&a_device)
            .arg(&b_device)
            .arg(&mut c)
            .arg(&m32)
            .arg(&n32)
            .arg(&k32);
        // SAFETY: the arguments are the kernel's.
        unsafe { launch.launch(config((4, 3, 1), (16, 16, 1), 0)) }.unwrap();
        for (index, found) in stream.clone_dtoh(&c).unwrap().into_iter().enumerate() {
            let (row, column) = (index / n, index % n);
            let expected = (0..k).fold(0f32, |sum, i| {
                a[row * k + i].mul_add(b[i * n + column], sum)
            });
            assert_eq!(found, expected);
        }
    });
}

#[test]
fn bf16_gemm_with_dynamic_shared_memory() {
    on_emulator("bf16_gemm_with_dynamic_shared_memory", &[], |_| {
        let (context, stream) = open();
        let kernel = function(&context, GEMM_BF16, "gemm_bf16");
        let attribute =
            sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        kernel.set_attribute(attribute, 96 << 10).unwrap();
        let (m, n, k) = (64, 128, 160);
        let narrow = |value: &f32| (value.to_bits() >> 16) as u16;
        let wide = |value: u16| f64::from(f32::from_bits(u32::from(value) << 16));
        let a: Vec<u16> = noise(m * k, 5).iter().map(narrow).collect();
        let b: Vec<u16> = noise(k * n, 6).iter().map(narrow).collect();
        let (a_device, b_device) = (
            stream.clone_htod(&a).unwrap(),
            stream.clone_htod(&b).unwrap(),
        );
        let mut c = stream.alloc_zeros::<f32>(m * n).unwrap();
        let (n32, k32) = (n as i32, k as i32);
        let mut launch = stream.launch_builder(&kernel);
        launch
            .arg(&a_device)
            .arg(&b_device)
            .arg(&mut c)
            .arg(&n32)
            .arg(&k32);
        // More than 48 KiB, which the attribute allows.
        // SAFETY: the arguments are the kernel's.
        unsafe { launch.launch(config((2, 1, 1), (128, 1, 1), 60 << 10)) }.unwrap();
        for (index, found) in stream.clone_dtoh(&c).unwrap().into_iter().enumerate() {
            let (row, column) = (index / n, index % n);
            let products = (0..k).map(|i| wide(a[row * k + i]) * wide(b[i * n + column]));
            let (sum, size) = products.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs()));
            assert!((f64::from(found) - sum).abs() <= k as f64 * 2f64.powi(-24) * size);
        }
    });
}

#[test]
fn streams_are_ordered_by_events_alone() {
    on_emulator("streams_are_ordered_by_events_alone", &[], |_| {
        let (context, first) = open();
        let second = context.new_stream().unwrap();
        let kernel = function(&context, VECTOR_ADD, "scale");
        // SAFETY: order is kept by hand, with events.
        unsafe { context.disable_event_tracking() };
        let n = 2048_u64;
        let mut data = first.clone_htod(&vec![1f32; n as usize]).unwrap();
        for round in 0..20 {
            let (one, other) = if round % 2 == 0 {
                (&first, &second)
            } else {
                (&second, &first)
            };
            let mut launch = one.launch_builder(&kernel);
            launch
                .arg(&mut data)
                .arg(if round % 2 == 0 { &2f32 } else { &0.5f32 })
                .arg(&n);
            // SAFETY: the arguments are the kernel's.
            unsafe { launch.launch(config((2, 1, 1), (64, 1, 1), 0)) }.unwrap();
            other.wait(&one.record_event(None).unwrap()).unwrap();
        }
        assert_eq!(first.clone_dtoh(&data).unwrap(), vec![1f32; n as usize]);
        let timed = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        let start = first.record_event(timed).unwrap();
        let mut launch = first.launch_builder(&kernel);
        launch.arg(&mut data).arg(&2f32).arg(&n);
        // SAFETY: the arguments are the kernel's.
        unsafe { launch.launch(config((2, 1, 1), (64, 1, 1), 0)) }.unwrap();
        let end = first.record_event(timed).unwrap();
        assert!(start.elapsed_ms(&end).unwrap() > 0.0);
    });
}

#[test]
fn streams_run_at_their_own_time() {
    on_emulator("streams_run_at_their_own_time", &[], |_| {
        let (_context, stream) = open();
        // A kernel that is asked for returns before it has run: the host can still hold the stream up.
        let (release, held) = std::sync::mpsc::channel::<()>();
        unsafe extern "C" fn hold(receiver: *mut std::ffi::c_void) {
            // SAFETY: the box that was given away below.
            let receiver =
                unsafe { Box::from_raw(receiver.cast::<std::sync::mpsc::Receiver<()>>()) };
            receiver.recv().unwrap();
        }
        let receiver = Box::into_raw(Box::new(held));
        // SAFETY: the function takes this argument, and is called once.
        unsafe { sys::cuLaunchHostFunc(stream.cu_stream(), Some(hold), receiver.cast()) }
            .result()
            .unwrap();
        let event = stream.record_event(None).unwrap();
        assert!(!event.is_complete());
        release.send(()).unwrap();
        event.synchronize().unwrap();
        assert!(event.is_complete());
    });
}

#[test]
fn graphs_replay_what_was_captured() {
    on_emulator("graphs_replay_what_was_captured", &[], |_| {
        let (context, stream) = open();
        let other = context.new_stream().unwrap();
        // SAFETY: order is kept by hand, with events.
        unsafe { context.disable_event_tracking() };
        let kernel = function(&context, VECTOR_ADD, "scale");
        let n = 256_u64;
        let (mut a, mut b) = (
            stream.clone_htod(&vec![1f32; 256]).unwrap(),
            stream.clone_htod(&vec![1f32; 256]).unwrap(),
        );
        stream.synchronize().unwrap();
        stream
            .begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED)
            .unwrap();
        other.wait(&stream.record_event(None).unwrap()).unwrap();
        for (stream, data, factor) in [(&stream, &mut a, 2f32), (&other, &mut b, 3f32)] {
            let mut launch = stream.launch_builder(&kernel);
            launch.arg(data).arg(&factor).arg(&n);
            // SAFETY: the arguments are the kernel's.
            unsafe { launch.launch(config((1, 1, 1), (64, 1, 1), 0)) }.unwrap();
        }
        stream.wait(&other.record_event(None).unwrap()).unwrap();
        let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        let graph = stream.end_capture(flags).unwrap().unwrap();
        // Capturing ran nothing.
        assert_eq!(stream.clone_dtoh(&a).unwrap()[0], 1.0);
        for _ in 0..3 {
            graph.launch().unwrap();
        }
        assert_eq!(stream.clone_dtoh(&a).unwrap(), vec![8f32; 256]);
        assert_eq!(stream.clone_dtoh(&b).unwrap(), vec![27f32; 256]);
        update_a_kernel_node(&graph, &kernel, &stream, &a);
        // Work of another stream that is not waited for spoils a capture.
        stream
            .begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED)
            .unwrap();
        other.wait(&stream.record_event(None).unwrap()).unwrap();
        let mut launch = other.launch_builder(&kernel);
        launch.arg(&mut b).arg(&1f32).arg(&n);
        // SAFETY: the arguments are the kernel's.
        unsafe { launch.launch(config((1, 1, 1), (64, 1, 1), 0)) }.unwrap();
        let error = stream.end_capture(flags).map(|_| ()).unwrap_err();
        assert_eq!(error.0, sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
    });
}

/// Gives a node of a graph other parameters, as a graph that is bound to other buffers does.
fn update_a_kernel_node(
    graph: &cudarc::driver::CudaGraph,
    kernel: &CudaFunction,
    stream: &Arc<CudaStream>,
    a: &cudarc::driver::CudaSlice<f32>,
) {
    use cudarc::driver::DevicePtr;
    let mut count = 0;
    let mut nodes = vec![std::ptr::null_mut(); 16];
    // SAFETY: the places hold as many nodes as they are said to.
    unsafe {
        assert_eq!(
            sys::cuGraphGetNodes(graph.cu_graph(), std::ptr::null_mut(), &mut count) as u32,
            0
        );
        assert_eq!(
            sys::cuGraphGetNodes(graph.cu_graph(), nodes.as_mut_ptr(), &mut count) as u32,
            0
        );
    }
    assert_eq!(count, 2);
    let _ = kernel;
    let (address, _guard) = a.device_ptr(stream);
    let (mut address, mut factor, mut n) = (address, 10f32, 256_u64);
    let mut pointers: [*mut std::ffi::c_void; 3] = [
        (&raw mut address).cast(),
        (&raw mut factor).cast(),
        (&raw mut n).cast(),
    ];
    // SAFETY: a structure of numbers and pointers.
    let mut parameters: sys::CUDA_KERNEL_NODE_PARAMS = unsafe { std::mem::zeroed() };
    // SAFETY: the node is the graph's, and the parameters are the kernel's.
    unsafe {
        assert_eq!(
            sys::cuGraphKernelNodeGetParams_v2(nodes[0], &mut parameters) as u32,
            0
        );
        parameters.kernelParams = pointers.as_mut_ptr();
        assert_eq!(
            sys::cuGraphExecKernelNodeSetParams_v2(graph.cu_graph_exec(), nodes[0], &parameters)
                as u32,
            0
        );
    }
    graph.launch().unwrap();
    assert_eq!(stream.clone_dtoh(a).unwrap()[0], 80.0);
}

#[test]
fn memory_runs_out_and_comes_back() {
    on_emulator(
        "memory_runs_out_and_comes_back",
        &[("MEMORY", "1048576")],
        |_| {
            let (context, stream) = open();
            let half = stream.alloc_zeros::<u8>(600_000).unwrap();
            let error = stream.alloc_zeros::<u8>(600_000).unwrap_err();
            assert_eq!(error.0, sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY);
            assert_eq!(
                context.mem_get_info().unwrap(),
                (1_048_576 - 600_000, 1_048_576)
            );
            drop(half);
            stream.synchronize().unwrap();
            assert_eq!(context.mem_get_info().unwrap().0, 1_048_576);
            stream.alloc_zeros::<u8>(1_000_000).unwrap();
        },
    );
}

#[test]
fn peers_and_pinned_memory() {
    on_emulator("peers_and_pinned_memory", &[("DEVICES", "2")], |_| {
        let (first, second) = (CudaContext::new(0).unwrap(), CudaContext::new(1).unwrap());
        // Not the default streams: cudarc names both of them 0 and leaves the first context current, so that the copy would run in the
        // wrong one, unordered with the allocation that it writes to.
        let (on_first, on_second) = (first.new_stream().unwrap(), second.new_stream().unwrap());
        let data = on_first.clone_htod(&noise(1000, 9)).unwrap();
        on_first.synchronize().unwrap();
        let mut copy = on_second.alloc_zeros::<f32>(1000).unwrap();
        on_second.memcpy_dtod(&data, &mut copy).unwrap();
        // SAFETY: f32 is valid for every bit pattern.
        let mut pinned = unsafe { second.alloc_pinned::<f32>(1000) }.unwrap();
        on_second.memcpy_dtoh(&copy, &mut pinned).unwrap();
        on_second.synchronize().unwrap();
        assert_eq!(pinned.as_slice().unwrap(), noise(1000, 9));
    });
}

#[test]
fn an_illegal_access_is_reported_and_sticks() {
    on_emulator("an_illegal_access_is_reported_and_sticks", &[], |report| {
        let (context, stream) = open();
        let kernel = function(&context, VECTOR_ADD, "vector_add");
        let a = stream.alloc_zeros::<f32>(100).unwrap();
        let mut sum = stream.alloc_zeros::<f32>(100).unwrap();
        let mut launch = stream.launch_builder(&kernel);
        launch.arg(&a).arg(&a).arg(&mut sum).arg(&101_u32);
        // SAFETY: that it is one element too many is what the test is about.
        unsafe { launch.launch(config((1, 1, 1), (128, 1, 1), 0)) }.unwrap();
        let error = stream.synchronize().unwrap_err();
        assert_eq!(error.0, sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
        assert_eq!(stream.clone_htod(&[1f32]).unwrap_err().0, error.0);
        let text = std::fs::read_to_string(report).unwrap();
        let expected = [
            "emulated: out of bounds: kernel vector_add, PTX line ",
            "thread (100, 0, 0)",
        ];
        assert!(expected.iter().all(|part| text.contains(part)), "{text}");
        assert!(
            text.contains("0 bytes beyond an allocation of 400 bytes"),
            "{text}"
        );
        std::mem::forget((a, sum));
    });
}

#[test]
fn use_after_free_is_reported() {
    on_emulator("use_after_free_is_reported", &[], |report| {
        let (context, stream) = open();
        // SAFETY: order is kept by hand.
        unsafe { context.disable_event_tracking() };
        let kernel = function(&context, VECTOR_ADD, "scale");
        let data = stream.alloc_zeros::<f32>(64).unwrap();
        let address = {
            use cudarc::driver::DevicePtr;
            data.device_ptr(&stream).0
        };
        drop(data);
        let mut launch = stream.launch_builder(&kernel);
        launch.arg(&address).arg(&1f32).arg(&64_u64);
        // SAFETY: that the memory was freed is what the test is about.
        unsafe { launch.launch(config((1, 1, 1), (64, 1, 1), 0)) }.unwrap();
        assert_eq!(
            stream.synchronize().unwrap_err().0,
            sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
        );
        let text = std::fs::read_to_string(report).unwrap();
        assert!(text.contains("use after free: kernel scale"), "{text}");
    });
}

#[test]
fn modules_that_cannot_run_are_refused() {
    on_emulator("modules_that_cannot_run_are_refused", &[], |report| {
        let (_context, _stream) = open();
        let load = |image: &[u8]| {
            let image = CString::new(image).unwrap();
            // SAFETY: the image ends with NUL.
            unsafe { result::module::load_data(image.as_ptr().cast()) }
                .unwrap_err()
                .0
        };
        assert_eq!(
            load(b"\x7fELF..."),
            sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
        );
        assert_eq!(load(b"nonsense"), sys::CUresult::CUDA_ERROR_INVALID_PTX);
        let header = |version: &str, target: &str| {
            format!(".version {version}\n.target {target}\n.address_size 64\n")
        };
        assert_eq!(
            load(header("9.5", "sm_80").as_bytes()),
            sys::CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
        );
        assert_eq!(
            load(header("8.0", "sm_90a").as_bytes()),
            sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
        );
        let bad = header("8.0", "sm_80") + ".visible .entry k() { tex.1d.v4.f32.s32 a, b; ret; }";
        assert_eq!(load(bad.as_bytes()), sys::CUresult::CUDA_ERROR_INVALID_PTX);
        assert!(
            std::fs::read_to_string(report)
                .unwrap()
                .contains("PTX line 4: tex.1d")
        );
    });
}

/// A small program, of which each call may fail.
fn program() -> Result<Vec<f32>, DriverError> {
    let context = CudaContext::new(0)?;
    let stream = context.new_stream()?;
    let kernel = context
        .load_module(Ptx::from_src(VECTOR_ADD))?
        .load_function("scale")?;
    let mut data = stream.clone_htod(&[1f32; 32])?;
    let mut launch = stream.launch_builder(&kernel);
    launch.arg(&mut data).arg(&4f32).arg(&32_u64);
    // SAFETY: the arguments are the kernel's.
    unsafe { launch.launch(config((1, 1, 1), (32, 1, 1), 0)) }?;
    let event = stream.record_event(None)?;
    event.synchronize()?;
    let found = stream.clone_dtoh(&data)?;
    context.check_err()?;
    Ok(found)
}

#[test]
fn each_call_fails_in_turn() {
    on_emulator("each_call_fails_in_turn", &[], |_| {
        assert_eq!(program().unwrap(), [4f32; 32]);
        // SAFETY: the emulated library's own functions, by their types.
        let (set_fault, calls) = unsafe {
            let library = sys::culib();
            (
                *library
                    .get::<unsafe extern "C" fn(*const std::ffi::c_char) -> u32>(
                        b"ropeway_emulated_cuda_set_fault",
                    )
                    .unwrap(),
                *library
                    .get::<unsafe extern "C" fn() -> u64>(b"ropeway_emulated_cuda_calls")
                    .unwrap(),
            )
        };
        let fault = |list: String| {
            let list = CString::new(list).unwrap();
            // SAFETY: a text that ends with NUL.
            assert_eq!(unsafe { set_fault(list.as_ptr()) }, 0);
        };
        fault(String::new());
        program().unwrap();
        // SAFETY: it takes nothing.
        let all = unsafe { calls() };
        assert!(all > 30, "{all}");
        let mut failed = 0;
        for call in 1..=all {
            fault(format!("call@{call}=out_of_memory"));
            match program() {
                Err(error) => {
                    failed += 1;
                    assert_eq!(
                        error.0,
                        sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY,
                        "call {call}"
                    );
                }
                // Calls of destructors have nobody to tell.
                Ok(found) => assert_eq!(found, [4f32; 32], "call {call}"),
            }
            fault(String::new());
            assert_eq!(program().unwrap(), [4f32; 32], "after call {call} failed");
        }
        assert!(failed > 20, "{failed} of {all}");
        fault("device_lost@12".into());
        assert_eq!(
            program().unwrap_err().0,
            sys::CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE
        );
        fault("launch_failure@1".into());
        assert_eq!(
            program().unwrap_err().0,
            sys::CUresult::CUDA_ERROR_LAUNCH_FAILED
        );
    });
}

/// The command that records runs on the emulated driver as on a real one; what it records there must be what the interpreter does.
#[test]
fn golden_vectors_are_recorded_and_verified() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::copy(library(), directory.path().join("libcuda.so.1")).unwrap();
    let file = directory.path().join("record.txt");
    let command = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ropeway-cuda-emulator"));
        command
            .args(arguments)
            .env("LD_LIBRARY_PATH", directory.path());
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        (output.status.success(), text)
    };
    let path = file.to_str().unwrap();
    let (recorded, text) = command(&["record", path]);
    assert!(!recorded && text.contains("is emulated"), "{text}");
    let (recorded, text) = command(&["record", path, "--emulated"]);
    assert!(recorded, "{text}");
    let (verified, text) = command(&["verify", path]);
    assert!(
        verified && text.contains("agree with the record of Ropeway emulated"),
        "{text}"
    );
    let record = std::fs::read_to_string(&file).unwrap();
    let (start, end) = record.split_at(record.find("add.sat.s32").unwrap() + 40);
    std::fs::write(
        &file,
        format!(
            "{start}{}{}",
            if end.starts_with('0') { '1' } else { '0' },
            &end[1..]
        ),
    )
    .unwrap();
    let (verified, text) = command(&["verify", path]);
    assert!(!verified && text.contains("FAILED add.sat.s32"), "{text}");
}

const CLUSTERS: &str = ".version 8.0\n.target sm_90\n.address_size 64
.visible .entry free(.param .u64 out) { .reg .b64 o, w; .reg .b32 r, b;
ld.param.u64 o, [out]; mov.u32 b, %ctaid.x; mov.u32 r, %cluster_ctarank; mul.wide.u32 w, b, 4; add.u64 o, o, w; st.global.b32 [o], r; ret; }
.visible .entry pairs(.param .u64 out) .explicitcluster .reqnctapercluster 2, 1, 1 { .reg .b64 o, w; .reg .b32 r, b;
ld.param.u64 o, [out]; mov.u32 b, %ctaid.x; mov.u32 r, %cluster_ctarank; mul.wide.u32 w, b, 4; add.u64 o, o, w; st.global.b32 [o], r; ret; }\n";

/// `CUlaunchConfig` and `CUlaunchAttribute`, by their layout in `cuda.h`.
#[repr(C)]
struct Attribute {
    id: u32,
    pad: u32,
    value: [u32; 16],
}

#[repr(C)]
struct Configuration {
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    stream: usize,
    attributes: *const Attribute,
    count: u32,
}

/// Launches a kernel of one parameter in clusters, and gives the status.
fn launch_in_clusters(
    ptx: &str,
    name: &str,
    blocks: u32,
    cluster: Option<[u32; 3]>,
    out: &mut u64,
) -> u32 {
    let (ptx, name) = (CString::new(ptx).unwrap(), CString::new(name).unwrap());
    let attribute = Attribute {
        id: 4,
        pad: 0,
        value: std::array::from_fn(|axis| cluster.map_or(0, |of| *of.get(axis).unwrap_or(&0))),
    };
    let configuration = Configuration {
        grid: [blocks, 1, 1],
        block: [1, 1, 1],
        shared: 0,
        stream: 0,
        attributes: &attribute,
        count: u32::from(cluster.is_some()),
    };
    let mut parameters = [std::ptr::from_mut(out)];
    type Launch =
        unsafe extern "C" fn(*const Configuration, sys::CUfunction, *mut *mut u64, usize) -> u32;
    // SAFETY: the driver's functions of these names have these types, and the kernel takes one address.
    unsafe {
        let (mut module, mut function) = (std::ptr::null_mut(), std::ptr::null_mut());
        let loaded = sys::cuModuleLoadData(&mut module, ptx.as_ptr().cast());
        assert_eq!(loaded as u32, 0);
        let found = sys::cuModuleGetFunction(&mut function, module, name.as_ptr());
        assert_eq!(found as u32, 0);
        let launch = *sys::culib().get::<Launch>(b"cuLaunchKernelEx").unwrap();
        launch(&configuration, function, parameters.as_mut_ptr(), 0)
    }
}

#[test]
fn clusters_by_attribute_and_by_the_kernel() {
    on_emulator(
        "clusters_by_attribute_and_by_the_kernel",
        &[("ARCHITECTURE", "9.0")],
        |_| {
            use cudarc::driver::DevicePtrMut;
            let context = CudaContext::new(0).unwrap();
            let stream = context.default_stream();
            let mut out = stream.alloc_zeros::<u32>(8).unwrap();
            let mut address = out.device_ptr_mut(&stream).0;
            let mut launch = |name: &str, blocks: u32, cluster: Option<[u32; 3]>| {
                launch_in_clusters(CLUSTERS, name, blocks, cluster, &mut address)
            };
            for (name, cluster, ranks) in [
                ("free", None, [0; 8]),
                ("free", Some([4, 1, 1]), [0, 1, 2, 3, 0, 1, 2, 3]),
                ("free", Some([8, 1, 1]), [0, 1, 2, 3, 4, 5, 6, 7]),
                ("pairs", None, [0, 1, 0, 1, 0, 1, 0, 1]),
                ("pairs", Some([2, 1, 1]), [0, 1, 0, 1, 0, 1, 0, 1]),
            ] {
                assert_eq!(launch(name, 8, cluster), 0, "{name}, {cluster:?}");
                assert_eq!(
                    stream.clone_dtoh(&out).unwrap(),
                    ranks,
                    "{name}, {cluster:?}"
                );
            }
            let invalid = sys::CUresult::CUDA_ERROR_INVALID_VALUE as u32;
            let size = sys::CUresult::CUDA_ERROR_INVALID_CLUSTER_SIZE as u32;
            // No divisor of the grid; more than 8; another than the kernel's; none.
            assert_eq!(launch("free", 6, Some([4, 1, 1])), size);
            assert_eq!(launch("free", 16, Some([16, 1, 1])), size);
            assert_eq!(launch("pairs", 7, None), size);
            assert_eq!(launch("pairs", 8, Some([4, 1, 1])), invalid);
            assert_eq!(launch("free", 8, Some([0, 1, 1])), invalid);
        },
    );
}

#[test]
fn clusters_and_tensor_maps_need_hopper() {
    on_emulator("clusters_and_tensor_maps_need_hopper", &[], |_| {
        let _context = CudaContext::new(0).unwrap();
        let text = CLUSTERS
            .replace("sm_90", "sm_80")
            .replace("%cluster_ctarank", "%ctaid.x");
        let text = text.replace(".explicitcluster .reqnctapercluster 2, 1, 1", "");
        let unsupported = sys::CUresult::CUDA_ERROR_NOT_SUPPORTED as u32;
        let launched = launch_in_clusters(&text, "free", 8, Some([2, 1, 1]), &mut 0);
        assert_eq!(launched, unsupported);
        assert_eq!(Described::RIGHT.encode(), unsupported);
    });
}

/// What `cuTensorMapEncodeTiled` is given.
#[derive(Clone, Copy)]
struct Described {
    element: u32,
    rank: u32,
    address: u64,
    extents: [u64; 3],
    strides: [u64; 2],
    tile: [u32; 3],
    steps: [u32; 3],
    interleave: u32,
    swizzle: u32,
    fill: u32,
}

impl Described {
    /// bf16, 100 x 50 x 2 in boxes of 64 x 8 x 1, swizzled by 128 bytes.
    const RIGHT: Described = Described {
        element: 9,
        rank: 3,
        address: 0x7000_0000_0010,
        extents: [100, 50, 2],
        strides: [208, 208 * 50],
        tile: [64, 8, 1],
        steps: [1; 3],
        interleave: 0,
        swizzle: 3,
        fill: 0,
    };

    fn encode(&self) -> u32 {
        type Encode = unsafe extern "C" fn(
            *mut [u64; 16],
            u32,
            u32,
            u64,
            *const u64,
            *const u64,
            *const u32,
            *const u32,
            u32,
            u32,
            u32,
            u32,
        ) -> u32;
        #[repr(align(64))]
        struct Map([u64; 16]);
        let mut map = Map([0; 16]);
        // SAFETY: the driver's function of this name has this type, and each list is as long as the rank says.
        unsafe {
            let encode = *sys::culib()
                .get::<Encode>(b"cuTensorMapEncodeTiled")
                .unwrap();
            encode(
                &mut map.0,
                self.element,
                self.rank,
                self.address,
                self.extents.as_ptr(),
                self.strides.as_ptr(),
                self.tile.as_ptr(),
                self.steps.as_ptr(),
                self.interleave,
                self.swizzle,
                2,
                self.fill,
            )
        }
    }
}

#[test]
fn tensor_maps_keep_to_what_cuda_h_says() {
    on_emulator(
        "tensor_maps_keep_to_what_cuda_h_says",
        &[("ARCHITECTURE", "9.0")],
        |report| {
            let _context = CudaContext::new(0).unwrap();
            let right = Described::RIGHT;
            for right in [
                right,
                Described { rank: 1, ..right },
                Described { fill: 1, ..right },
                Described {
                    swizzle: 0,
                    tile: [256, 256, 1],
                    ..right
                },
                Described {
                    element: 0,
                    tile: [128, 8, 1],
                    ..right
                },
                Described {
                    swizzle: 1,
                    tile: [16, 8, 1],
                    ..right
                },
            ] {
                assert_eq!(right.encode(), 0);
            }
            let invalid = sys::CUresult::CUDA_ERROR_INVALID_VALUE as u32;
            for (what, wrong) in [
                (
                    "data type",
                    Described {
                        element: 13,
                        ..right
                    },
                ),
                ("rank", Described { rank: 0, ..right }),
                ("rank", Described { rank: 6, ..right }),
                (
                    "address",
                    Described {
                        address: 0x7000_0000_0008,
                        ..right
                    },
                ),
                (
                    "no address",
                    Described {
                        address: 0,
                        ..right
                    },
                ),
                (
                    "extent",
                    Described {
                        extents: [100, 0, 2],
                        ..right
                    },
                ),
                (
                    "extent",
                    Described {
                        extents: [100, (1 << 32) + 1, 2],
                        ..right
                    },
                ),
                (
                    "stride",
                    Described {
                        strides: [200, 208 * 50],
                        ..right
                    },
                ),
                (
                    "stride",
                    Described {
                        strides: [208, 1 << 40],
                        ..right
                    },
                ),
                (
                    "box",
                    Described {
                        tile: [64, 0, 1],
                        ..right
                    },
                ),
                (
                    "box",
                    Described {
                        tile: [64, 257, 1],
                        ..right
                    },
                ),
                (
                    "row of the box",
                    Described {
                        tile: [12, 8, 1],
                        ..right
                    },
                ),
                (
                    "row beyond the swizzle",
                    Described {
                        tile: [72, 8, 1],
                        ..right
                    },
                ),
                (
                    "row beyond the swizzle",
                    Described {
                        swizzle: 2,
                        ..right
                    },
                ),
                (
                    "swizzle",
                    Described {
                        swizzle: 9,
                        ..right
                    },
                ),
                (
                    "NaN of integers",
                    Described {
                        element: 1,
                        fill: 1,
                        ..right
                    },
                ),
            ] {
                assert_eq!(wrong.encode(), invalid, "{what}");
            }
            let unsupported = sys::CUresult::CUDA_ERROR_NOT_SUPPORTED as u32;
            assert_eq!(
                Described {
                    interleave: 1,
                    ..right
                }
                .encode(),
                unsupported
            );
            assert_eq!(
                Described {
                    steps: [1, 2, 1],
                    ..right
                }
                .encode(),
                unsupported
            );
            let text = std::fs::read_to_string(report).unwrap();
            assert!(
                text.contains("cuTensorMapEncodeTiled: stride 200 of dimension 1"),
                "{text}"
            );
        },
    );
}
