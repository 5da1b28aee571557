//! `ropeway run` from outside: files in, files out, exit codes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use ropeway_conformance::request_file::{Outcome, read_result, write_request};
use ropeway_core::memory::Layout;
use ropeway_core::request::{HostTensor, Operands, Request};
use serde_json::{Value, json};
use tempfile::TempDir;

struct Folder(TempDir);

impl Folder {
    fn new() -> Folder {
        let folder = Folder(tempfile::tempdir().unwrap());
        fs::create_dir(folder.requests()).unwrap();
        folder
    }

    fn requests(&self) -> PathBuf {
        self.0.path().join("requests")
    }

    fn out(&self) -> PathBuf {
        self.0.path().join("out")
    }

    fn request(
        &self,
        name: &str,
        op: &str,
        inputs: &[(&str, HostTensor)],
        attrs: &Value,
    ) -> PathBuf {
        let path = self.requests().join(name).with_extension("safetensors");
        let owned = inputs
            .iter()
            .map(|(name, tensor)| ((*name).to_owned(), tensor.clone()));
        let request = Request {
            op: op.into(),
            inputs: owned.collect::<Operands>(),
            attrs: attrs.as_object().unwrap().clone(),
        };
        write_request(&path, &request, &[]).unwrap();
        path
    }

    fn raw(&self, name: &str, header: &Value, data: &[u8]) -> PathBuf {
        let path = self.requests().join(name).with_extension("safetensors");
        let header = header.to_string();
        let bytes = [
            &(header.len() as u64).to_le_bytes()[..],
            header.as_bytes(),
            data,
        ]
        .concat();
        fs::write(&path, bytes).unwrap();
        path
    }

    fn run(&self, requests: &[PathBuf], more: &[&str]) -> Output {
        ropeway("run")
            .args(requests)
            .args(["--out".as_ref(), self.out().as_os_str()])
            .args(more)
            .output()
            .unwrap()
    }

    fn result(&self, name: &str) -> (Outcome, Operands) {
        read_result(&self.out().join(name).with_extension("safetensors")).unwrap()
    }

    fn reason(&self, name: &str) -> String {
        match self.result(name).0 {
            Outcome::Ok { .. } => panic!("{name} is ok"),
            Outcome::Unsupported(reason) => format!("unsupported: {reason}"),
            Outcome::Error(reason) => format!("error: {reason}"),
        }
    }
}

fn ropeway(command: &str) -> Command {
    let mut ropeway = Command::new(env!("CARGO_BIN_EXE_ropeway"));
    ropeway.arg(command);
    ropeway
}

fn floats(shape: &[u64], values: &[f32]) -> HostTensor {
    HostTensor::from_f32(shape, values).unwrap()
}

fn integers(shape: &[u64], values: &[i32]) -> HostTensor {
    HostTensor::from_i32(shape, values).unwrap()
}

fn two_by_two() -> [(&'static str, HostTensor); 2] {
    [
        ("a", floats(&[2, 2], &[1.0, 2.0, 3.0, 4.0])),
        ("b", floats(&[2, 2], &[5.0, 6.0, 7.0, 8.0])),
    ]
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("an exit code")
}

#[test]
fn a_sound_request_is_answered() {
    let folder = Folder::new();
    let request = folder.request("product", "gemm", &two_by_two(), &json!({}));
    let output = folder.run(&[request], &["--device", "cpu", "--repeat", "3"]);
    assert_eq!(code(&output), 0, "{output:?}");
    let (outcome, outputs) = folder.result("product");
    let Outcome::Ok {
        device,
        plan,
        time_us,
    } = outcome
    else {
        panic!("{outcome:?}");
    };
    assert!(device.starts_with("cpu:0 "), "{device}");
    assert!(plan.starts_with("gemm"), "{plan}");
    assert!(time_us > 0.0);
    assert_eq!(outputs.len(), 1);
    assert_eq!(outputs["d"].to_f64(), [19.0, 22.0, 43.0, 50.0]);
}

/// Every fixed case of every op, through files and a process of its own: the answer is the one that the suite accepts.
#[test]
fn every_fixed_case_is_answered_from_a_file() {
    let folder = Folder::new();
    let cases: Vec<_> = ropeway_kernels::ops()
        .into_iter()
        .flat_map(|kind| {
            kind.spec()
                .fixed_cases()
                .into_iter()
                .map(move |recipe| (kind, recipe))
        })
        .collect();
    for (number, (_, recipe)) in cases.iter().enumerate() {
        let path = folder.requests().join(format!("{number}.safetensors"));
        write_request(&path, &recipe.request().unwrap(), &[]).unwrap();
    }
    let output = folder.run(&[folder.requests()], &["--device", "cpu"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(code(&output), 0, "{text}");
    let mut answered = 0;
    for (number, (kind, recipe)) in cases.iter().enumerate() {
        let (outcome, outputs) = folder.result(&number.to_string());
        if let Outcome::Unsupported(_) = outcome {
            continue;
        }
        let request = recipe.request().unwrap();
        let op = kind.parse(&request.signature()).unwrap();
        let judgement = kind
            .spec()
            .judge(&*op, &request.inputs, &outputs, recipe.data)
            .unwrap();
        assert!(
            judgement.passes(),
            "{} {}: {judgement:?}",
            recipe.op,
            recipe.name
        );
        answered += 1;
    }
    assert!(
        answered * 10 > cases.len() * 9,
        "{answered} of {} were answered",
        cases.len()
    );
}

#[test]
fn views_of_one_tensor_are_operands() {
    let folder = Folder::new();
    let stored = floats(&[8], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
    let window = |strides: &[u64], offset| {
        stored
            .view(Layout::strided(&[2, 2], strides).unwrap(), offset)
            .unwrap()
    };
    let inputs = [("a", window(&[2, 1], 0)), ("b", window(&[2, 1], 4))];
    let request = folder.request("views", "gemm", &inputs, &json!({}));
    let output = folder.run(&[request], &["--device", "cpu"]);
    assert_eq!(code(&output), 0, "{output:?}");
    assert_eq!(
        folder.result("views").1["d"].to_f64(),
        [19.0, 22.0, 43.0, 50.0]
    );
}

#[test]
fn one_bad_file_does_not_stop_the_rest() {
    let folder = Folder::new();
    folder.request("a_good", "gemm", &two_by_two(), &json!({}));
    fs::write(folder.requests().join("b_garbage.safetensors"), [0xff; 100]).unwrap();
    fs::write(folder.requests().join("c_empty.safetensors"), []).unwrap();
    fs::write(folder.requests().join("ignored.txt"), "not a request").unwrap();
    folder.request("d_good", "gemm", &two_by_two(), &json!({"alpha": 2}));
    let output = folder.run(&[folder.requests()], &["--device", "cpu", "--json"]);
    assert_eq!(code(&output), 1);
    let lines = String::from_utf8(output.stdout).unwrap();
    let statuses: Vec<_> = lines
        .lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).unwrap()["status"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    assert_eq!(statuses, ["ok", "error", "error", "ok"]);
    assert!(
        folder
            .reason("b_garbage")
            .starts_with("error: not a sound safetensors file")
    );
    assert!(
        folder
            .reason("c_empty")
            .starts_with("error: not a sound safetensors file")
    );
    assert_eq!(
        folder.result("d_good").1["d"].to_f64(),
        [38.0, 44.0, 86.0, 100.0]
    );
    assert_eq!(fs::read_dir(folder.out()).unwrap().count(), 4);
}

#[test]
fn malformed_requests_name_the_culprit() {
    let folder = Folder::new();
    let [a, b] = two_by_two();
    let good = [a.clone(), b.clone()];
    let extra = [a.clone(), b.clone(), ("e", floats(&[1], &[0.0]))];
    let offsets = |values: &[i32]| {
        [
            ("a", floats(&[2, 2], &[1.0; 4])),
            ("b", floats(&[2, 2, 2], &[1.0; 8])),
            ("expert_offsets", integers(&[3], values)),
        ]
    };
    let ids = |values: &[i32]| {
        [
            ("x", floats(&[2, 1], &[1.0; 2])),
            ("topk_ids", integers(&[2, 1], values)),
        ]
    };
    /// File, op, inputs, attributes, and what the reason begins with.
    type Malformed<'a> = (
        &'a str,
        &'a str,
        &'a [(&'a str, HostTensor)],
        Value,
        &'a str,
    );
    let cases: &[Malformed<'_>] = &[
        (
            "unknown_attribute",
            "gemm",
            &good,
            json!({"transpose": true}),
            "transpose",
        ),
        (
            "null_attribute",
            "gemm",
            &good,
            json!({"alpha": null}),
            "alpha",
        ),
        (
            "word_for_number",
            "gemm",
            &good,
            json!({"alpha": "1"}),
            "alpha",
        ),
        (
            "unknown_word",
            "gemm",
            &good,
            json!({"activation": "tanh"}),
            "activation",
        ),
        (
            "missing_tensor",
            "gemm",
            &good[..1],
            json!({}),
            "b: found nothing",
        ),
        (
            "unknown_tensor",
            "gemm",
            &extra,
            json!({}),
            "e: found an unknown tensor",
        ),
        (
            "inner_mismatch",
            "gemm",
            &[a.clone(), ("b", floats(&[3, 1], &[0.0; 3]))],
            json!({}),
            "b: ",
        ),
        (
            "vector_operand",
            "gemm",
            &[("a", floats(&[4], &[0.0; 4])), b.clone()],
            json!({}),
            "a: ",
        ),
        (
            "offsets_descend",
            "grouped_gemm",
            &offsets(&[0, 2, 1]),
            json!({}),
            "expert_offsets",
        ),
        (
            "offsets_begin",
            "grouped_gemm",
            &offsets(&[1, 1, 2]),
            json!({}),
            "expert_offsets",
        ),
        (
            "offsets_end",
            "grouped_gemm",
            &offsets(&[0, 1, 3]),
            json!({}),
            "expert_offsets",
        ),
        (
            "no_experts",
            "expert_scatter",
            &ids(&[0, 1]),
            json!({}),
            "experts",
        ),
        (
            "id_out_of_range",
            "expert_scatter",
            &ids(&[0, 2]),
            json!({"experts": 2}),
            "topk_ids",
        ),
        (
            "id_below_none",
            "expert_scatter",
            &ids(&[0, -2]),
            json!({"experts": 2}),
            "topk_ids",
        ),
    ];
    for (name, op, inputs, attrs, _) in cases {
        folder.request(name, op, inputs, attrs);
    }
    let output = folder.run(&[folder.requests()], &["--device", "cpu"]);
    assert_eq!(code(&output), 1);
    for (name, _, _, _, culprit) in cases {
        let reason = folder.reason(name);
        let named = reason
            .strip_prefix("error: ")
            .is_some_and(|reason| reason.starts_with(culprit));
        assert!(named, "{name}: {reason}");
    }
}

#[test]
fn sound_requests_that_cannot_be_done_are_unsupported() {
    let folder = Folder::new();
    // A row and a column seen 2^40 times: two small tensors, an enormous product.
    let attrs = json!({"views": {
        "a": {"of": "row", "shape": [1u64 << 40, 1], "strides": [0, 1]},
        "b": {"of": "column", "shape": [1, 1u64 << 20], "strides": [1, 0]},
    }});
    let tensor =
        |begin: u64| json!({"dtype": "F32", "shape": [1], "data_offsets": [begin, begin + 4]});
    let header = json!({
        "__metadata__": {"ropeway.op": "gemm", "ropeway.attrs": attrs.to_string()},
        "row": tensor(0),
        "column": tensor(4),
    });
    folder.raw("enormous", &header, &[0; 8]);
    let mut overflowing = header;
    let attrs = attrs
        .to_string()
        .replace(&(1u64 << 40).to_string(), &(1u64 << 50).to_string());
    overflowing["__metadata__"]["ropeway.attrs"] = attrs.into();
    folder.raw("overflowing", &overflowing, &[0; 8]);

    let wide = |name: &str, begin: u64| {
        (
            name.to_owned(),
            json!({"dtype": "F64", "shape": [1, 1], "data_offsets": [begin, begin + 8]}),
        )
    };
    let mut header = json!({"__metadata__": {"ropeway.op": "gemm"}});
    header
        .as_object_mut()
        .unwrap()
        .extend([wide("a", 0), wide("b", 8)]);
    folder.raw("f64", &header, &[0; 16]);
    header["b"]["shape"] = json!([1]);
    folder.raw("f64_and_malformed", &header, &[0; 16]);
    let header = json!({
        "__metadata__": {"ropeway.op": "expert_scatter", "ropeway.attrs": "{\"experts\": 2}"},
        "x": {"dtype": "F32", "shape": [1, 1], "data_offsets": [8, 12]},
        "topk_ids": {"dtype": "I64", "shape": [1, 1], "data_offsets": [0, 8]},
    });
    folder.raw("i64_ids", &header, &[0; 12]);

    let unsupported: Vec<_> = ["enormous", "f64"]
        .map(|name| folder.requests().join(name).with_extension("safetensors"))
        .into();
    let output = folder.run(&unsupported, &["--device", "cpu"]);
    assert_eq!(code(&output), 0, "{output:?}");
    assert!(
        folder.reason("enormous").starts_with("unsupported: "),
        "{}",
        folder.reason("enormous")
    );
    assert!(
        folder.reason("f64").starts_with("unsupported: a: "),
        "{}",
        folder.reason("f64")
    );

    folder.run(&[folder.requests()], &["--device", "cpu"]);
    for (name, culprit) in [
        ("overflowing", ""),
        ("f64_and_malformed", "b: "),
        ("i64_ids", "topk_ids: found I64"),
    ] {
        let reason = folder.reason(name);
        assert!(
            reason.starts_with(&format!("error: {culprit}")),
            "{name}: {reason}"
        );
    }
}

#[test]
fn calls_that_cannot_be_meant_are_usage_errors() {
    let folder = Folder::new();
    let request = folder.request("product", "gemm", &two_by_two(), &json!({}));
    let elsewhere = folder.0.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let same_name = elsewhere.join("product.safetensors");
    fs::copy(&request, &same_name).unwrap();
    let empty = folder.0.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let missing = folder.0.path().join("missing.safetensors");

    let cpu = ["--device", "cpu"];
    let one = std::slice::from_ref(&request);
    assert_eq!(
        code(&folder.run(&[request.clone(), same_name], &cpu)),
        2,
        "two of one name"
    );
    assert_eq!(
        code(&folder.run(&[request.clone(), missing], &cpu)),
        2,
        "no such path"
    );
    assert_eq!(code(&folder.run(&[empty], &cpu)), 2, "nothing to run");
    assert_eq!(
        code(&folder.run(one, &["--device", "abacus"])),
        2,
        "no such backend"
    );
    assert_eq!(
        code(&folder.run(one, &["--device", "cpu:7"])),
        2,
        "no such device"
    );
    assert_eq!(
        code(&folder.run(one, &["--device", "cpu:x"])),
        2,
        "no number"
    );
    assert_eq!(
        code(&folder.run(one, &["--device", "cpu", "--repeat", "0"])),
        2,
        "no repeat"
    );
    assert_eq!(code(&folder.run(one, &[])), 2, "no device");
    assert_eq!(code(&folder.run(&[], &cpu)), 2, "no request");
    assert!(!folder.out().exists() || fs::read_dir(folder.out()).unwrap().next().is_none());

    let before = fs::read(&request).unwrap();
    let onto_itself = ropeway("run")
        .arg(&request)
        .args(cpu)
        .arg("--out")
        .arg(folder.requests())
        .output();
    assert_eq!(
        code(&onto_itself.unwrap()),
        2,
        "a result would replace its request"
    );
    assert_eq!(fs::read(&request).unwrap(), before);
}

#[test]
fn ids_offsets_and_lengths_of_attention_are_checked() {
    let folder = Folder::new();
    let paged = |table: &[i32], lens: &[i32]| {
        [
            ("q", floats(&[2, 1, 4], &[1.0; 8])),
            ("cu_q", integers(&[3], &[0, 1, 2])),
            ("k_cache", floats(&[3, 2, 1, 4], &[1.0; 24])),
            ("v_cache", floats(&[3, 2, 1, 4], &[1.0; 24])),
            ("block_table", integers(&[2, 2], table)),
            ("kv_lens", integers(&[2], lens)),
        ]
    };
    let varlen = |cu_kv: &[i32]| {
        [
            ("q", floats(&[2, 1, 4], &[1.0; 8])),
            ("k", floats(&[3, 1, 4], &[1.0; 12])),
            ("v", floats(&[3, 1, 4], &[1.0; 12])),
            ("cu_q", integers(&[3], &[0, 1, 2])),
            ("cu_kv", integers(&[3], cu_kv)),
        ]
    };
    let dense = |lens: &[i32]| {
        let tensor = || floats(&[1, 1, 3, 4], &[1.0; 12]);
        [
            ("q", tensor()),
            ("k", tensor()),
            ("v", tensor()),
            ("kv_lens", integers(&[1], lens)),
        ]
    };
    let none = json!({});
    folder.request(
        "paged",
        "attention_paged",
        &paged(&[2, -1, 0, 1], &[2, 3]),
        &none,
    );
    folder.request(
        "paged_block",
        "attention_paged",
        &paged(&[3, -1, 0, 1], &[2, 3]),
        &none,
    );
    folder.request(
        "paged_reached",
        "attention_paged",
        &paged(&[2, -1, 0, 1], &[3, 3]),
        &none,
    );
    folder.request(
        "paged_len",
        "attention_paged",
        &paged(&[2, -1, 0, 1], &[2, 5]),
        &none,
    );
    folder.request("varlen", "attention_varlen", &varlen(&[0, 2, 3]), &none);
    folder.request("varlen_end", "attention_varlen", &varlen(&[0, 2, 4]), &none);
    folder.request("dense", "attention", &dense(&[2]), &none);
    folder.request("dense_len", "attention", &dense(&[4]), &none);
    let output = folder.run(&[folder.requests()], &["--device", "cpu"]);
    assert_eq!(code(&output), 1);
    for name in ["paged", "varlen", "dense"] {
        // Every value is 1, and so is every mean of them.
        let (outcome, outputs) = folder.result(name);
        assert_eq!(outcome.status(), "ok", "{name}: {outcome:?}");
        assert!(
            outputs["o"]
                .to_f64()
                .iter()
                .all(|&o| (o - 1.0).abs() < 1e-6),
            "{name}"
        );
    }
    for (name, culprit) in [
        ("paged_block", "block_table"),
        ("paged_reached", "block_table"),
        ("paged_len", "kv_lens"),
        ("varlen_end", "cu_kv"),
        ("dense_len", "kv_lens"),
    ] {
        let reason = folder.reason(name);
        assert!(
            reason.starts_with(&format!("error: {culprit}")),
            "{name}: {reason}"
        );
    }
}

/// The most memory the process has had, while it runs.
#[cfg(target_os = "linux")]
fn peak_memory(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes << 10)
}

#[cfg(target_os = "linux")]
fn watched(mut command: Command) -> u64 {
    let mut child = command.spawn().unwrap();
    let mut peak = 0;
    loop {
        peak = peak_memory(child.id()).unwrap_or(0).max(peak);
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success());
            return peak;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// A run on the cpu device holds the buffers of the request, and at most a fifth more.
#[cfg(target_os = "linux")]
#[test]
fn a_run_holds_little_more_than_its_buffers() {
    let folder = Folder::new();
    let (m, n, k) = (2048u64, 2048, 6144);
    let tensor =
        |rows: u64, columns: u64| floats(&[rows, columns], &vec![1.0; (rows * columns) as usize]);
    let request = folder.request(
        "large",
        "gemm",
        &[("a", tensor(m, k)), ("b", tensor(k, n))],
        &json!({}),
    );
    let buffers = 4 * (m * k + k * n + m * n);
    let out = folder.out();
    let run = |request: &Path| {
        let mut command = ropeway("run");
        command
            .arg(request)
            .args(["--device", "cpu", "--out"])
            .arg(&out)
            .stdout(std::process::Stdio::null());
        watched(command)
    };
    let peak = run(&request);
    eprintln!(
        "peak {peak} for {buffers} bytes of buffers: {:.3}",
        peak as f64 / buffers as f64
    );
    assert!(
        peak > buffers / 2,
        "the process was watched too late: {peak}"
    );
    assert!(peak <= buffers + buffers / 5, "{peak} bytes for {buffers}");
}
