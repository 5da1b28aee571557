//! Request and result files: what is sound reads back as it was written, what is malformed names the culprit.

use std::fs;
use std::path::PathBuf;

use ropeway_conformance::request_file::{Outcome, RequestFile, read_result, write_request};
use ropeway_core::memory::{Layout, TensorDesc};
use ropeway_core::request::{HostTensor, Operands, Request};
use ropeway_core::{DType, ErrorKind};
use serde_json::{Value, json};
use tempfile::TempDir;

struct Scratch(TempDir);

impl Scratch {
    fn new() -> Scratch {
        Scratch(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("case.safetensors")
    }

    /// A file of this header and this many bytes of data.
    fn file(&self, header: &Value, data: usize) -> PathBuf {
        self.raw(header.to_string().as_bytes(), data)
    }

    fn raw(&self, header: &[u8], data: usize) -> PathBuf {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header);
        bytes.resize(bytes.len() + data, 0);
        fs::write(self.path(), bytes).unwrap();
        self.path()
    }

    fn reason(&self, path: &std::path::Path) -> String {
        match RequestFile::open(path) {
            Ok(_) => panic!("the file opened"),
            Err(error) => {
                assert!(matches!(Outcome::of_error(&error), Outcome::Error(_)));
                error.context().to_string()
            }
        }
    }
}

fn f32_tensor(shape: &[u64], begin: u64) -> Value {
    let bytes = shape.iter().product::<u64>() * 4;
    json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, begin + bytes]})
}

fn gemm(attrs: &Value) -> Value {
    json!({
        "__metadata__": {"ropeway.op": "gemm", "ropeway.attrs": attrs.to_string(), "format": "pt"},
        "a": f32_tensor(&[2, 3], 0),
        "b": f32_tensor(&[3, 4], 24),
    })
}

#[test]
fn a_request_reads_back_as_it_was_written() {
    let scratch = Scratch::new();
    let values: Vec<f32> = (0..60).map(|value| value as f32).collect();
    let shared = HostTensor::from_f32(&[60], &values).unwrap();
    let window = |shape: &[u64], strides: &[u64], offset| {
        let layout = Layout::strided(shape, strides).unwrap();
        shared.view(layout, offset).unwrap()
    };
    let mut inputs = Operands::new();
    inputs.insert("k".into(), window(&[1, 2, 3, 4], &[0, 4, 16, 1], 0));
    inputs.insert("v".into(), window(&[1, 2, 3, 4], &[0, 4, 16, 1], 8));
    inputs.insert(
        "q".into(),
        HostTensor::from_f32(&[1, 2, 1, 4], &values[..8]).unwrap(),
    );
    inputs.insert("kv_lens".into(), HostTensor::from_i32(&[1], &[3]).unwrap());
    let half = HostTensor::from_f64(DType::F16, &[0, 7], &[]).unwrap();
    inputs.insert("mask".into(), half);
    let attrs = json!({"causal": true, "scale": 0.5})
        .as_object()
        .unwrap()
        .clone();
    let request = Request {
        op: "attention".into(),
        inputs,
        attrs,
    };
    write_request(&scratch.path(), &request, &[("ropeway.case", "a note")]).unwrap();

    let file = RequestFile::open(&scratch.path()).unwrap();
    assert_eq!(file.file().metadata()["ropeway.case"], "a note");
    let read = file.request().unwrap();
    assert_eq!(read.signature(), request.signature());
    for (name, tensor) in &request.inputs {
        assert_eq!(read.inputs[name].to_bytes(), tensor.to_bytes(), "{name}");
    }
    // Two windows into one tensor are stored once.
    assert_eq!(file.stored().len(), 4);
}

#[test]
fn a_stored_tensor_serves_directly_and_through_a_view() {
    let scratch = Scratch::new();
    let attrs = json!({"trans_b": true, "views": {"b": {"of": "a", "shape": [1, 3], "strides": [3, 1], "offset": 3}}});
    let header = json!({
        "__metadata__": {"ropeway.op": "gemm", "ropeway.attrs": attrs.to_string()},
        "a": f32_tensor(&[2, 3], 0),
    });
    let request = RequestFile::open(&scratch.file(&header, 24))
        .unwrap()
        .request()
        .unwrap();
    assert_eq!(request.inputs.keys().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(request.inputs["b"].offset, 3);
    assert!(!request.attrs.contains_key("views"));
}

#[test]
fn attributes_may_be_absent() {
    let scratch = Scratch::new();
    let header = json!({"__metadata__": {"ropeway.op": "gemm"}, "a": f32_tensor(&[1, 1], 0), "b": f32_tensor(&[1, 1], 4)});
    let file = RequestFile::open(&scratch.file(&header, 8)).unwrap();
    assert!(file.request().unwrap().attrs.is_empty());
}

#[test]
fn each_malformed_view_names_itself() {
    let scratch = Scratch::new();
    let cases = [
        (json!(null), "views"),
        (json!([]), "views"),
        (json!({"bias": null}), "bias"),
        (json!({"bias": {"of": "b", "shape": [4]}}), "bias"),
        (
            json!({"bias": {"of": "b", "shape": [4], "strides": [1], "offset": null}}),
            "bias",
        ),
        (
            json!({"bias": {"of": "b", "shape": [4], "strides": [1], "step": 1}}),
            "bias",
        ),
        (
            json!({"bias": {"of": "b", "shape": [4], "strides": [-1], "offset": 3}}),
            "bias",
        ),
        (
            json!({"bias": {"of": "b", "shape": [4], "strides": [1, 1]}}),
            "bias",
        ),
        (
            json!({"bias": {"of": "b", "shape": [4.5], "strides": [1]}}),
            "bias",
        ),
        (
            json!({"bias": {"of": "x", "shape": [4], "strides": [1]}}),
            "bias",
        ),
        (
            json!({"bias": {"of": "b", "shape": [4], "strides": [1], "offset": 9}}),
            "inside the 12 elements of b",
        ),
        (
            json!({"bias": {"of": "b", "shape": [4], "strides": [4]}}),
            "inside the 12 elements of b",
        ),
        (
            json!({"bias": {"of": "b", "shape": [u64::MAX, 4], "strides": [0, 0]}}),
            "bias",
        ),
        (
            json!({"bias": {"of": "b", "shape": [4], "strides": [u64::MAX]}}),
            "bias",
        ),
        (
            json!({"bias": {"of": "b", "shape": [1], "strides": [1], "offset": u64::MAX}}),
            "bias",
        ),
        (
            json!({"a": {"of": "b", "shape": [2, 3], "strides": [3, 1]}}),
            "a: found a view of the name of a stored tensor",
        ),
        (
            json!({"z": {"of": "b", "shape": [2, 3], "strides": [3, 1]}}),
            "z: found an unknown tensor",
        ),
    ];
    for (views, culprit) in cases {
        let path = scratch.file(&gemm(&json!({ "views": views })), 72);
        let reason = scratch.reason(&path);
        assert!(
            reason.starts_with(culprit) || reason.contains(culprit),
            "{views}: {reason}"
        );
    }
}

#[test]
fn each_malformed_header_names_the_culprit() {
    let scratch = Scratch::new();
    let meta = json!({"ropeway.op": "gemm"});
    let with = |tensor: Value| json!({"__metadata__": meta, "weights": tensor, "b": f32_tensor(&[3, 4], 24)});
    let cases = [
        (with(json!(null)), "weights"),
        (with(json!({"dtype": "F32", "shape": [2, 3]})), "weights"),
        (
            with(json!({"dtype": "F31", "shape": [2, 3], "data_offsets": [0, 24]})),
            "weights: found dtype \"F31\"",
        ),
        (
            with(json!({"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 24]})),
            "weights: found 24 bytes",
        ),
        (
            with(json!({"dtype": "F32", "shape": [-2, 3], "data_offsets": [0, 24]})),
            "weights",
        ),
        (
            with(json!({"dtype": "F32", "shape": [u64::MAX, u64::MAX], "data_offsets": [0, 24]})),
            "weights: found shape",
        ),
        (
            with(json!({"dtype": "F32", "shape": [1u64 << 61], "data_offsets": [0, 24]})),
            "weights: found shape",
        ),
        (
            with(json!({"dtype": "F32", "shape": [1u64 << 40], "data_offsets": [0, 1u64 << 42]})),
            "weights: found data_offsets",
        ),
        (
            with(json!({"dtype": "F32", "shape": [6], "data_offsets": [24, 0]})),
            "weights: found data_offsets",
        ),
        (
            with(json!({"dtype": "F32", "shape": [6], "data_offsets": [u64::MAX - 7, u64::MAX]})),
            "weights: found data_offsets",
        ),
        (
            with(json!({"dtype": "F32", "shape": [4], "data_offsets": [8, 24]})),
            "weights: found data that begins at byte 8",
        ),
        (
            with(json!({"dtype": "F32", "shape": [12], "data_offsets": [0, 48]})),
            "data that begins at byte 24",
        ),
        (
            with(json!({"dtype": "F32", "shape": vec![1; 65], "data_offsets": [0, 4]})),
            "weights",
        ),
        (
            with(json!({"dtype": "F4", "shape": [1], "data_offsets": [0, 0]})),
            "weights",
        ),
        (
            with(f32_tensor(&[2, 3], 0)),
            "weights: found an unknown tensor",
        ),
        (
            json!({"__metadata__": meta, "b": f32_tensor(&[3, 4], 0)}),
            "the tensors end at byte 48 of 72",
        ),
        (
            json!({"__metadata__": {"ropeway.op": "gem"}}),
            "ropeway.op: found \"gem\"",
        ),
        (json!({"__metadata__": {"ropeway.op": null}}), "ropeway.op"),
        (json!({"__metadata__": {"ropeway.op": 3}}), "ropeway.op"),
        (json!({"__metadata__": []}), "object of strings"),
        (json!({}), "ropeway.op: found nothing"),
        (
            json!({"__metadata__": {"ropeway.op": "gemm", "ropeway.attrs": "[1]"}}),
            "ropeway.attrs",
        ),
        (
            json!({"__metadata__": {"ropeway.op": "gemm", "ropeway.attrs": "{"}}),
            "ropeway.attrs",
        ),
        (
            json!({"__metadata__": {"ropeway.op": "gemm", "ropeway.attrs": "[".repeat(1_000)}}),
            "ropeway.attrs",
        ),
        (
            json!({"__metadata__": {"ropeway.op": "gemm", "ropeway.attrs": "[0,0".repeat(1000)}}),
            "ropeway.attrs: found about 2000 values",
        ),
    ];
    for (header, culprit) in cases {
        let tensors = header.as_object().unwrap().len() > 1;
        let path = scratch.file(&header, if tensors { 72 } else { 0 });
        let reason = scratch.reason(&path);
        assert!(reason.contains(culprit), "{header}: {reason}");
    }
    let twice = br#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
    assert!(
        scratch
            .reason(&scratch.raw(twice, 2))
            .starts_with("a: found two tensors")
    );
}

#[test]
fn what_is_no_safetensors_file_says_so() {
    let scratch = Scratch::new();
    let mut sound = fs::read(scratch.file(&gemm(&json!({})), 72)).unwrap();
    assert!(RequestFile::open(&scratch.path()).is_ok());
    for length in 0..sound.len() {
        fs::write(scratch.path(), &sound[..length]).unwrap();
        scratch.reason(&scratch.path());
    }
    sound.push(0);
    fs::write(scratch.path(), &sound).unwrap();
    assert!(
        scratch
            .reason(&scratch.path())
            .contains("end at byte 72 of 73")
    );
    fs::write(scratch.path(), [0xff; 4096]).unwrap();
    assert!(
        scratch
            .reason(&scratch.path())
            .contains("the header claims")
    );
    assert!(
        scratch
            .reason(&scratch.raw(b" {}", 0))
            .contains("does not begin with")
    );
    assert!(scratch.reason(scratch.0.path()).contains("regular file"));
}

#[test]
fn more_dimensions_than_a_layout_has_are_unsupported() {
    let scratch = Scratch::new();
    let header = json!({
        "__metadata__": {"ropeway.op": "gemm"},
        "a": f32_tensor(&[1; 9], 0),
        "b": f32_tensor(&[1; 2], 4),
    });
    let error = RequestFile::open(&scratch.file(&header, 8)).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    // But what is malformed besides comes first.
    let header = json!({
        "__metadata__": {"ropeway.op": "gemm"},
        "a": f32_tensor(&[1; 9], 0),
        "x": f32_tensor(&[1; 2], 4),
    });
    assert!(scratch.reason(&scratch.file(&header, 8)).starts_with("x: "));
}

#[test]
fn results_read_back() {
    let scratch = Scratch::new();
    let ok = Outcome::Ok {
        device: "cpu:0".into(),
        plan: "gemm_native [TILE=1]".into(),
        time_us: 12.5,
    };
    let desc = TensorDesc::contiguous(DType::F32, &[2]).unwrap();
    let mut writer = ok.create_file(&scratch.path(), &[("d", desc)]).unwrap();
    writer.write(&1f32.to_le_bytes()).unwrap();
    writer.write(&2f32.to_le_bytes()).unwrap();
    assert!(writer.write(&[0]).is_err());
    writer.finish().unwrap();
    let (outcome, outputs) = read_result(&scratch.path()).unwrap();
    assert_eq!(outcome, ok);
    assert_eq!(outputs["d"].to_f64(), [1.0, 2.0]);

    for outcome in [
        Outcome::Unsupported("i4".into()),
        Outcome::Error("a: \"b\"\n".into()),
    ] {
        outcome
            .create_file(&scratch.path(), &[])
            .unwrap()
            .finish()
            .unwrap();
        assert_eq!(
            read_result(&scratch.path()).unwrap(),
            (outcome, Operands::new())
        );
    }
    // An unfinished file leaves nothing behind.
    let other = scratch.0.path().join("other.safetensors");
    drop(ok.create_file(&other, &[("d", desc)]).unwrap());
    assert_eq!(fs::read_dir(scratch.0.path()).unwrap().count(), 1);
}
