//! Request files: one op, its inputs and attributes, in a safetensors file; and the result files that answer them.
//!
//! A request holds the inputs as tensors, and in `__metadata__` the texts `ropeway.op` (the op's name) and `ropeway.attrs`
//! (a JSON object, `{}` if absent). The attribute `views`, `{operand: {"of": tensor, "shape", "strides", "offset"}}` in
//! elements, makes an operand a strided window into a stored tensor. A result of the same file name holds the outputs, and
//! `ropeway.status`: `ok` (with `ropeway.device`, `ropeway.plan`, `ropeway.time_us`), `unsupported` or `error` (with
//! `ropeway.reason`).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use ropeway_core::memory::{Layout, TensorDesc};
use ropeway_core::op::{Op, OpKind, Signature};
use ropeway_core::request::{HostTensor, Operands, Request};
use ropeway_core::{DType, Error, ErrorKind, Result};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::tensor_file::{StoredTensor, TensorFile, TensorWriter};

/// The most values and keys in `ropeway.attrs`: as a tree in memory, JSON takes fifty times its text, and no request needs many.
const MAX_ATTRS: usize = 1_024;

/// What stands in for a dtype that Ropeway has not, to find out what the op would have taken in its place.
const STAND_INS: [DType; 6] = [
    DType::F32,
    DType::F16,
    DType::BF16,
    DType::I8,
    DType::I32,
    DType::U8,
];

/// An operand of a request file: a window into a stored tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    /// Its name.
    pub name: String,
    /// Index into [`RequestFile::stored`].
    pub stored: usize,
    /// Its shape and strides.
    pub layout: Layout,
    /// Its first element.
    pub offset: u64,
}

/// A request whose header was read and checked; its data is still on disk.
pub struct RequestFile {
    file: TensorFile,
    kind: &'static dyn OpKind,
    attrs: Map<String, Value>,
    inputs: Vec<Input>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ViewEntry {
    of: String,
    shape: Vec<u64>,
    strides: Vec<u64>,
    #[serde(default)]
    offset: u64,
}

impl RequestFile {
    /// Opens a request and finds its operands.
    ///
    /// # Errors
    /// `File` for what is no sound safetensors file, `InvalidArgument` naming the tensor or attribute, what was found and
    /// what was expected, `Unsupported` for tensors of more dimensions than a layout has.
    pub fn open(path: &Path) -> Result<RequestFile> {
        let file = TensorFile::open(path)?;
        let name = file
            .metadata()
            .get("ropeway.op")
            .ok_or_else(|| Error::invalid("ropeway.op", "nothing", "the name of an op"))?;
        let kind = ropeway_kernels::op(name).ok_or_else(|| {
            let names: Vec<_> = ropeway_kernels::ops().iter().map(|op| op.name()).collect();
            Error::invalid(
                "ropeway.op",
                format!("{name:?}"),
                format!("one of {names:?}"),
            )
        })?;
        let text = file.metadata().get("ropeway.attrs").map_or("{}", |t| t);
        let mut attrs = read_attrs(text)?;
        let views = attrs.shift_remove("views");
        let inputs = find_inputs(kind, file.tensors(), views)?;
        Ok(RequestFile {
            file,
            kind,
            attrs,
            inputs,
        })
    }

    /// The op.
    pub fn kind(&self) -> &'static dyn OpKind {
        self.kind
    }

    /// The stored tensors, in the order of the data.
    pub fn stored(&self) -> &[StoredTensor] {
        self.file.tensors()
    }

    /// The operands.
    pub fn inputs(&self) -> &[Input] {
        &self.inputs
    }

    /// The file, for reading tensors in pieces.
    pub fn file(&self) -> &TensorFile {
        &self.file
    }

    fn signature(&self, stand_in: DType) -> Signature {
        let tensors = self.inputs.iter().map(|input| {
            let dtype = self.stored()[input.stored]
                .known_dtype()
                .unwrap_or(stand_in);
            let layout = input.layout;
            (input.name.clone(), TensorDesc { dtype, layout })
        });
        Signature {
            tensors: tensors.collect(),
            attrs: self.attrs.clone(),
        }
    }

    /// Checks the request as the op does, before any data is read.
    ///
    /// # Errors
    /// As [`OpKind::parse`]. A dtype that Ropeway has not is `Unsupported` in an operand that may have one of several,
    /// `InvalidArgument` in one whose dtype is fixed.
    pub fn parse(&self) -> Result<Box<dyn Op>> {
        let foreign = self.inputs.iter().find_map(|input| {
            let stored = &self.stored()[input.stored];
            match stored.known_dtype() {
                Some(_) => None,
                None => Some((&input.name, stored.dtype.to_string())),
            }
        });
        let Some((name, dtype)) = foreign else {
            return self.kind.parse(&self.signature(DType::F32));
        };
        let malformed = |stand_in: DType| {
            let error = self.kind.parse(&self.signature(stand_in)).err();
            error.filter(|error| error.kind() != ErrorKind::Unsupported)
        };
        let fitting: Vec<DType> = STAND_INS
            .into_iter()
            .filter(|stand_in| malformed(*stand_in).is_none())
            .collect();
        Err(match (fitting.as_slice(), malformed(DType::F32)) {
            // Something else is wrong as well.
            ([], Some(error)) => error,
            ([only], _) => Error::invalid(name, dtype, only),
            _ => Error::unsupported(format!("{name}: no kernel takes {dtype}")),
        })
    }

    /// Reads the operands that `wanted` picks. Operands that are windows into one stored tensor share its bytes.
    ///
    /// # Errors
    /// `OutOfMemory` if the host has no room, `Unsupported` for a dtype that Ropeway has not, `File`.
    pub fn load(&self, wanted: impl Fn(&Input) -> bool) -> Result<Operands> {
        let mut data: BTreeMap<usize, Arc<Vec<u8>>> = BTreeMap::new();
        let mut operands = Operands::new();
        for input in self.inputs.iter().filter(|input| wanted(input)) {
            let stored = &self.stored()[input.stored];
            let dtype = stored
                .known_dtype()
                .ok_or_else(|| Error::unsupported(format!("{}: {}", input.name, stored.dtype)))?;
            let bytes = match data.get(&input.stored) {
                Some(bytes) => Arc::clone(bytes),
                None => Arc::new(self.file.read_all(stored)?),
            };
            data.insert(input.stored, Arc::clone(&bytes));
            let desc = TensorDesc {
                dtype,
                layout: input.layout,
            };
            let tensor = HostTensor {
                desc,
                offset: input.offset,
                data: bytes,
            };
            operands.insert(input.name.clone(), tensor);
        }
        Ok(operands)
    }

    /// Reads everything.
    ///
    /// # Errors
    /// As [`RequestFile::load`].
    pub fn request(&self) -> Result<Request> {
        Ok(Request {
            op: self.kind.name().into(),
            inputs: self.load(|_| true)?,
            attrs: self.attrs.clone(),
        })
    }
}

fn read_attrs(text: &str) -> Result<Map<String, Value>> {
    let values = text.bytes().filter(|byte| b",[{:".contains(byte)).count();
    if values > MAX_ATTRS {
        return Err(Error::invalid(
            "ropeway.attrs",
            format!("about {values} values"),
            format!("at most {MAX_ATTRS}"),
        ));
    }
    match serde_json::from_str(text) {
        Ok(Value::Object(attrs)) => Ok(attrs),
        Ok(other) => Err(Error::invalid("ropeway.attrs", other, "a JSON object")),
        Err(error) => Err(Error::invalid(
            "ropeway.attrs",
            format!("no JSON ({error})"),
            "a JSON object",
        )),
    }
}

/// The operands: views, and the stored tensors of an operand's name.
fn find_inputs(
    kind: &dyn OpKind,
    stored: &[StoredTensor],
    views: Option<Value>,
) -> Result<Vec<Input>> {
    let views = match views {
        None => Map::new(),
        Some(Value::Object(views)) => views,
        Some(other) => {
            return Err(Error::invalid("views", other, "an object of views"));
        }
    };
    let unknown = |name: &str| {
        Error::invalid(
            name,
            "an unknown tensor",
            format!(
                "one of {:?}, or a tensor that a view looks into",
                kind.inputs()
            ),
        )
    };
    let mut inputs = Vec::new();
    // What no layout can hold is unsupported; whatever is malformed comes first.
    let mut lack = None;
    let mut viewed = vec![false; stored.len()];
    for (name, entry) in views {
        if stored.iter().any(|tensor| tensor.name == name) {
            return Err(Error::invalid(
                &name,
                "a view of the name of a stored tensor",
                "a name of its own",
            ));
        }
        if !kind.inputs().contains(&name.as_str()) {
            return Err(unknown(&name));
        }
        let entry: ViewEntry = serde_json::from_value(entry).map_err(|error| {
            Error::invalid(
                &name,
                format!("a view that cannot be read ({error})"),
                "\"of\", \"shape\", \"strides\" and \"offset\", in elements, none negative",
            )
        })?;
        let of = stored
            .iter()
            .position(|tensor| tensor.name == entry.of)
            .ok_or_else(|| {
                Error::invalid(
                    &name,
                    format!("a view of {:?}", entry.of),
                    "a view of a stored tensor",
                )
            })?;
        viewed[of] = true;
        match Layout::strided(&entry.shape, &entry.strides) {
            Ok(layout) => {
                let end = entry.offset.checked_add(layout.span());
                let elements = stored[of].elements();
                if end.is_none_or(|end| end > elements) {
                    return Err(Error::invalid(
                        &name,
                        format!("a view {layout:?} at element {}", entry.offset),
                        format!("one inside the {elements} elements of {}", entry.of),
                    ));
                }
                inputs.push(Input {
                    name,
                    stored: of,
                    layout,
                    offset: entry.offset,
                });
            }
            Err(error) => lack = Some(postpone(error.within(&name))?),
        }
    }
    for (index, tensor) in stored.iter().enumerate() {
        if !kind.inputs().contains(&tensor.name.as_str()) {
            if !viewed[index] {
                return Err(unknown(&tensor.name));
            }
            continue;
        }
        match Layout::contiguous(&tensor.shape) {
            Ok(layout) => inputs.push(Input {
                name: tensor.name.clone(),
                stored: index,
                layout,
                offset: 0,
            }),
            Err(error) => lack = Some(postpone(error.within(&tensor.name))?),
        }
    }
    match lack {
        None => Ok(inputs),
        Some(lack) => Err(lack),
    }
}

fn postpone(error: Error) -> Result<Error> {
    match error.kind() {
        ErrorKind::Unsupported => Ok(error),
        _ => Err(error),
    }
}

/// Writes a request. Operands that share bytes, or are no whole row-major tensor, become views of a stored tensor.
/// `notes` are further texts for the file's metadata, whose keys begin with `ropeway.`.
///
/// # Errors
/// `File` if it cannot be written.
pub fn write_request(path: &Path, request: &Request, notes: &[(&str, &str)]) -> Result<()> {
    struct Storage<'a> {
        name: String,
        desc: TensorDesc,
        data: &'a Arc<Vec<u8>>,
    }
    let mut stored: Vec<Storage<'_>> = Vec::new();
    let mut views = Map::new();
    for (name, tensor) in &request.inputs {
        let sharers = request
            .inputs
            .values()
            .filter(|other| Arc::ptr_eq(&other.data, &tensor.data))
            .count();
        let whole = tensor.desc.layout.is_contiguous()
            && tensor.desc.span_bytes()? == tensor.data.len() as u64;
        if whole && sharers == 1 {
            stored.push(Storage {
                name: name.clone(),
                desc: TensorDesc::contiguous(tensor.desc.dtype, tensor.shape())?,
                data: &tensor.data,
            });
            continue;
        }
        let known = stored
            .iter()
            .position(|storage| Arc::ptr_eq(storage.data, &tensor.data));
        let index = known.unwrap_or(stored.len());
        if known.is_none() {
            let size = tensor.desc.dtype.size().unwrap_or(1);
            stored.push(Storage {
                // No op has an operand of such a name, so it is only what views look into.
                name: format!("stored.{index}"),
                desc: TensorDesc::contiguous(
                    tensor.desc.dtype,
                    &[tensor.data.len() as u64 / size],
                )?,
                data: &tensor.data,
            });
        }
        let view = serde_json::json!({
            "of": stored[index].name,
            "shape": tensor.shape(),
            "strides": tensor.desc.layout.strides(),
            "offset": tensor.offset,
        });
        views.insert(name.clone(), view);
    }
    // Wide elements first, so that each tensor is aligned to its own size.
    stored.sort_by_key(|storage| std::cmp::Reverse(storage.desc.dtype.size()));
    let mut attrs = request.attrs.clone();
    if !views.is_empty() {
        attrs.insert("views".into(), views.into());
    }
    let attrs = Value::from(attrs).to_string();
    let mut metadata = vec![
        ("ropeway.op", request.op.as_str()),
        ("ropeway.attrs", &attrs),
    ];
    metadata.extend(notes);
    let tensors: Vec<_> = stored
        .iter()
        .map(|storage| (storage.name.as_str(), storage.desc))
        .collect();
    let mut writer = TensorWriter::create(path, &metadata, &tensors)?;
    for storage in &stored {
        writer.write(storage.data)?;
    }
    writer.finish()
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It ran.
    Ok {
        /// The device.
        device: String,
        /// Which kernels in which configuration.
        plan: String,
        /// Median device time in microseconds.
        time_us: f64,
    },
    /// It is sound, but the device cannot do it, for this reason.
    Unsupported(String),
    /// It is malformed, for this reason; or the device failed.
    Error(String),
}

impl Outcome {
    /// The outcome that a failure amounts to.
    pub fn of_error(error: &Error) -> Outcome {
        match error.kind() {
            // A sound request that is too large for memory is one that the device cannot do.
            ErrorKind::Unsupported | ErrorKind::OutOfMemory => {
                Outcome::Unsupported(error.context().into())
            }
            ErrorKind::InvalidArgument | ErrorKind::File => Outcome::Error(error.context().into()),
            _ => Outcome::Error(error.to_string()),
        }
    }

    /// The word in `ropeway.status`.
    pub fn status(&self) -> &'static str {
        match self {
            Outcome::Ok { .. } => "ok",
            Outcome::Unsupported(_) => "unsupported",
            Outcome::Error(_) => "error",
        }
    }

    /// Begins a result file; the outputs' data is to be written in the order given.
    ///
    /// # Errors
    /// `File` if it cannot be created.
    pub fn create_file(&self, path: &Path, outputs: &[(&str, TensorDesc)]) -> Result<TensorWriter> {
        let status = ("ropeway.status", self.status());
        match self {
            Outcome::Ok {
                device,
                plan,
                time_us,
            } => {
                let metadata = [
                    status,
                    ("ropeway.device", device),
                    ("ropeway.plan", plan),
                    ("ropeway.time_us", &format!("{time_us:.3}")),
                ];
                TensorWriter::create(path, &metadata, outputs)
            }
            Outcome::Unsupported(reason) | Outcome::Error(reason) => {
                TensorWriter::create(path, &[status, ("ropeway.reason", reason)], outputs)
            }
        }
    }
}

/// Reads a result file.
///
/// # Errors
/// `File` for what is no sound safetensors file, `InvalidArgument` naming what is missing or wrong.
pub fn read_result(path: &Path) -> Result<(Outcome, Operands)> {
    let file = TensorFile::open(path)?;
    let text = |key: &str| {
        let found = file.metadata().get(key).cloned();
        found.ok_or_else(|| Error::invalid(key, "nothing", "a text"))
    };
    let outcome = match text("ropeway.status")?.as_str() {
        "ok" => Outcome::Ok {
            device: text("ropeway.device")?,
            plan: text("ropeway.plan")?,
            time_us: text("ropeway.time_us").and_then(|time| {
                let parsed = time.parse();
                parsed.map_err(|_| Error::invalid("ropeway.time_us", time, "a number"))
            })?,
        },
        "unsupported" => Outcome::Unsupported(text("ropeway.reason")?),
        "error" => Outcome::Error(text("ropeway.reason")?),
        other => {
            return Err(Error::invalid(
                "ropeway.status",
                other,
                "ok, unsupported or error",
            ));
        }
    };
    let mut outputs = Operands::new();
    for tensor in file.tensors() {
        let dtype = tensor
            .known_dtype()
            .ok_or_else(|| Error::unsupported(format!("{}: {}", tensor.name, tensor.dtype)))?;
        let data = file.read_all(tensor)?;
        let output = HostTensor::new(dtype, &tensor.shape, data)?;
        outputs.insert(tensor.name.clone(), output);
    }
    Ok((outcome, outputs))
}
