//! Safetensors files, read as if every one of them were hostile.
//!
//! ```text
//! u64 little endian: length of the header
//! header             JSON, begins with '{': {"__metadata__": {text: text}, name: {"dtype", "shape", "data_offsets"}, …}
//! data               every byte belongs to exactly one tensor, in the order of the offsets
//! ```
//!
//! Opening a file reads its header alone; sizes are checked against the file's length before anything is allocated for
//! them, and the data is read in pieces into memory that the caller provides. The `safetensors` crate wants the whole
//! file in memory first, and does not say which tensor is at fault.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use ropeway_core::memory::TensorDesc;
use ropeway_core::{DType, Error, ErrorKind, Result};
use safetensors::Dtype;
use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// The longest header of the format.
const MAX_HEADER: u64 = 100_000_000;

/// The most dimensions that are read; far more than any layout takes.
const MAX_DIMENSIONS: usize = 64;

/// The metadata that is kept: `__metadata__` entries of this prefix.
const METADATA_PREFIX: &str = "ropeway.";

/// A tensor as the header describes it; its extent was checked against dtype, shape and file.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredTensor {
    /// Its name.
    pub name: String,
    /// Its dtype, which may be one that Ropeway has not.
    pub dtype: Dtype,
    /// Extents, outermost first.
    pub shape: Vec<u64>,
    /// First byte within the data.
    pub begin: u64,
    /// Number of bytes.
    pub bytes: u64,
}

impl StoredTensor {
    /// Its dtype, if Ropeway has it.
    pub fn known_dtype(&self) -> Option<DType> {
        DType::from_name(&self.dtype.to_string())
    }

    /// Number of elements; fits 64 bits, as was checked.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }
}

/// An open safetensors file whose header was read and checked.
#[derive(Debug)]
pub struct TensorFile {
    file: File,
    data: u64,
    tensors: Vec<StoredTensor>,
    metadata: BTreeMap<String, String>,
}

impl TensorFile {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// `File` if it cannot be read, is no safetensors file, is cut short or lies about its sizes; a fault in one tensor
    /// names it.
    pub fn open(path: &Path) -> Result<TensorFile> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(broken("this is not a regular file"));
        }
        let length = metadata.len();
        if length < 8 {
            return Err(broken(format!(
                "{length} bytes are too few; a safetensors file begins with 8 bytes that give its header's length"
            )));
        }
        let mut prefix = [0; 8];
        (&file).read_exact(&mut prefix)?;
        let header_length = u64::from_le_bytes(prefix);
        if header_length > length - 8 || header_length > MAX_HEADER {
            return Err(broken(format!(
                "the header claims {header_length} bytes, of which the file holds {} (and the format allows {MAX_HEADER})",
                length - 8
            )));
        }
        let mut header = reserve(header_length)?;
        header.resize(header_length as usize, 0);
        (&file).read_exact(&mut header)?;
        let (tensors, metadata) = read_header(&header, length - 8 - header_length)?;
        Ok(TensorFile {
            file,
            data: 8 + header_length,
            tensors,
            metadata,
        })
    }

    /// Every tensor, in the order of the data.
    pub fn tensors(&self) -> &[StoredTensor] {
        &self.tensors
    }

    /// The `ropeway.…` entries of the file's metadata.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Reads bytes of a tensor, from its byte `offset` on.
    ///
    /// # Errors
    /// `File` if the file no longer holds them.
    ///
    /// # Panics
    /// If that leaves the tensor.
    pub fn read(&self, tensor: &StoredTensor, offset: u64, into: &mut [u8]) -> Result<()> {
        assert!(
            offset + into.len() as u64 <= tensor.bytes,
            "a range within {}",
            tensor.name
        );
        let mut file = &self.file;
        file.seek(SeekFrom::Start(self.data + tensor.begin + offset))?;
        file.read_exact(into)
            .map_err(|error| Error::from(error).within(&tensor.name))
    }

    /// Reads all bytes of a tensor.
    ///
    /// # Errors
    /// `OutOfMemory` if the host has no room, `File` if the file no longer holds them.
    pub fn read_all(&self, tensor: &StoredTensor) -> Result<Vec<u8>> {
        let mut bytes = reserve(tensor.bytes).map_err(|error| error.within(&tensor.name))?;
        bytes.resize(tensor.bytes as usize, 0);
        self.read(tensor, 0, &mut bytes)?;
        Ok(bytes)
    }
}

fn reserve(bytes: u64) -> Result<Vec<u8>> {
    let mut memory = Vec::new();
    usize::try_from(bytes)
        .ok()
        .and_then(|bytes| memory.try_reserve_exact(bytes).ok())
        .ok_or_else(|| {
            Error::new(
                ErrorKind::OutOfMemory,
                format!("no room for {bytes} bytes on the host"),
            )
        })?;
    Ok(memory)
}

fn broken(what: impl fmt::Display) -> Error {
    Error::new(
        ErrorKind::File,
        format!("not a sound safetensors file: {what}"),
    )
}

fn read_header(
    header: &[u8],
    data_bytes: u64,
) -> Result<(Vec<StoredTensor>, BTreeMap<String, String>)> {
    if header.first() != Some(&b'{') {
        return Err(broken("the header does not begin with '{'"));
    }
    let Header { entries, metadata } =
        serde_json::from_slice(header).map_err(|error| broken(format!("header: {error}")))?;
    let mut tensors = entries
        .into_iter()
        .map(|(name, entry)| entry.check(name, data_bytes))
        .collect::<Result<Vec<_>>>()?;
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(pair) = tensors.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(Error::invalid(
            &pair[0].name,
            "two tensors of this name",
            "one",
        ));
    }
    tensors.sort_by_key(|tensor| (tensor.begin, tensor.begin + tensor.bytes));
    let mut end = 0;
    for tensor in &tensors {
        if tensor.begin != end {
            return Err(Error::invalid(
                &tensor.name,
                format!("data that begins at byte {}", tensor.begin),
                format!("byte {end}, where the tensor before it ends"),
            ));
        }
        end += tensor.bytes;
    }
    if end != data_bytes {
        return Err(broken(format!(
            "the tensors end at byte {end} of {data_bytes} bytes of data"
        )));
    }
    Ok((tensors, metadata))
}

#[derive(Default)]
struct Header {
    entries: Vec<(String, Entry)>,
    metadata: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Shape,
    data_offsets: (u64, u64),
}

impl Entry {
    fn check(self, name: String, data_bytes: u64) -> Result<StoredTensor> {
        let dtype: Dtype = Dtype::deserialize(de::value::StrDeserializer::<de::value::Error>::new(
            &self.dtype,
        ))
        .map_err(|_| {
            Error::invalid(
                &name,
                format!("dtype {:?}", self.dtype),
                "one of the safetensors format",
            )
        })?;
        let (begin, end) = self.data_offsets;
        let shape = self.shape.0;
        let bits = shape
            .iter()
            .try_fold(1u64, |n, &extent| n.checked_mul(extent))
            .and_then(|elements| elements.checked_mul(dtype.bitsize() as u64))
            .ok_or_else(|| {
                Error::invalid(
                    &name,
                    format!("shape {shape:?}"),
                    "a size that fits 64 bits",
                )
            })?;
        if begin > end || end > data_bytes {
            return Err(Error::invalid(
                &name,
                format!("data_offsets [{begin}, {end}]"),
                format!("a range within the file's {data_bytes} bytes of data"),
            ));
        }
        if bits % 8 != 0 || end - begin != bits / 8 {
            return Err(Error::invalid(
                &name,
                format!("{} bytes of data", end - begin),
                format!("{} bits for {dtype} {shape:?}", bits),
            ));
        }
        Ok(StoredTensor {
            name,
            dtype,
            shape,
            begin,
            bytes: end - begin,
        })
    }
}

struct Shape(Vec<u64>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Shape, D::Error> {
        deserializer.deserialize_seq(ShapeVisitor)
    }
}

struct ShapeVisitor;

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {MAX_DIMENSIONS} extents")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Shape, A::Error> {
        let mut extents = Vec::new();
        while let Some(extent) = seq.next_element()? {
            if extents.len() == MAX_DIMENSIONS {
                return Err(de::Error::invalid_length(MAX_DIMENSIONS + 1, &self));
            }
            extents.push(extent);
        }
        Ok(Shape(extents))
    }
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Header, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Header, A::Error> {
        let mut header = Header::default();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                header.metadata = map.next_value::<Metadata>()?.0;
            } else {
                let entry = map
                    .next_value()
                    .map_err(|error| de::Error::custom(format!("{name}: {error}")))?;
                header.entries.push((name, entry));
            }
        }
        Ok(header)
    }
}

struct Metadata(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(
        deserializer: D,
    ) -> std::result::Result<Metadata, D::Error> {
        deserializer.deserialize_map(MetadataVisitor)
    }
}

struct MetadataVisitor;

impl<'de> Visitor<'de> for MetadataVisitor {
    type Value = Metadata;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Metadata, A::Error> {
        let mut kept = BTreeMap::new();
        while let Some(key) = map.next_key::<String>()? {
            if key.starts_with(METADATA_PREFIX) {
                let value = map
                    .next_value()
                    .map_err(|error| de::Error::custom(format!("{key}: {error}")))?;
                if kept.contains_key(&key) {
                    return Err(de::Error::custom(format!("{key}: given twice")));
                }
                kept.insert(key, value);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(Metadata(kept))
    }
}

/// Writes a safetensors file from beginning to end, under a temporary name until it is whole.
#[derive(Debug)]
pub struct TensorWriter {
    file: BufWriter<File>,
    temporary: PathBuf,
    path: PathBuf,
    left: u64,
}

impl TensorWriter {
    /// Begins a file of row-major tensors. The data is to be written in the order given here.
    ///
    /// # Errors
    /// `File` if it cannot be created, `InvalidArgument` if the sizes overflow.
    pub fn create(
        path: &Path,
        metadata: &[(&str, &str)],
        tensors: &[(&str, TensorDesc)],
    ) -> Result<TensorWriter> {
        let mut header = serde_json::Map::new();
        let texts: serde_json::Map<_, _> = metadata
            .iter()
            .map(|(key, value)| (String::from(*key), (*value).into()))
            .collect();
        header.insert("__metadata__".into(), texts.into());
        let mut end = 0u64;
        for (name, desc) in tensors {
            let begin = end;
            end = desc
                .dtype
                .size()
                .and_then(|size| desc.layout.elements().checked_mul(size))
                .and_then(|bytes| begin.checked_add(bytes))
                .ok_or_else(|| Error::invalid(name, desc, "a size that fits 64 bits"))?;
            header.insert(
                String::from(*name),
                serde_json::json!({
                    "dtype": desc.dtype.name(),
                    "shape": desc.shape(),
                    "data_offsets": [begin, end],
                }),
            );
        }
        let mut text = serde_json::Value::from(header).to_string();
        // The format pads the header with spaces so that the data begins at a multiple of 8.
        text.extend(std::iter::repeat_n(
            ' ',
            text.len().next_multiple_of(8) - text.len(),
        ));
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.partial", std::process::id()));
        let temporary = path.with_file_name(name);
        let mut file = BufWriter::new(File::create(&temporary)?);
        file.write_all(&(text.len() as u64).to_le_bytes())?;
        file.write_all(text.as_bytes())?;
        Ok(TensorWriter {
            file,
            temporary,
            path: path.to_owned(),
            left: end,
        })
    }

    /// Appends data.
    ///
    /// # Errors
    /// `File` if it cannot be written, `InvalidArgument` if that is more than the tensors hold.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.left = self.left.checked_sub(bytes.len() as u64).ok_or_else(|| {
            Error::invalid(
                "data",
                format!("{} bytes", bytes.len()),
                format!("{} more", self.left),
            )
        })?;
        Ok(self.file.write_all(bytes)?)
    }

    /// Ends the file and gives it its name.
    ///
    /// # Errors
    /// `File` if it cannot be written, `InvalidArgument` if data is missing.
    pub fn finish(mut self) -> Result<()> {
        if self.left > 0 {
            return Err(Error::invalid(
                "data",
                format!("{} bytes too few", self.left),
                "all of it",
            ));
        }
        self.file.flush()?;
        Ok(fs::rename(&self.temporary, &self.path)?)
    }
}

impl Drop for TensorWriter {
    fn drop(&mut self) {
        // Gone already if the file was finished.
        let _ = fs::remove_file(&self.temporary);
    }
}
