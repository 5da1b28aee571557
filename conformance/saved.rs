//! Failing cases as request files: what a bug report attaches, what `--replay FILE` and `ropeway run` read.
//!
//! Beside what every request file holds, the metadata says how the case is to be judged (`ropeway.data`) and run
//! (`ropeway.kernel`, `ropeway.prepared`). A request file without them is judged by the hard bound on the kernel that the planner prefers.

use std::path::{Path, PathBuf};

use ropeway_core::request::Request;
use ropeway_core::spec::{DataClass, Recipe};
use ropeway_core::{Error, ErrorKind, Result};

use crate::ops::{self, Posed, Variant};
use crate::request_file::{self, RequestFile};

/// Writes a recipe's request into `folder`, under a name made of the case's id.
///
/// # Errors
/// `File` if it cannot be written, or what the recipe's request cannot be made for.
pub fn save(recipe: &Recipe, variant: &Variant, id: &str, folder: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(folder)?;
    let name: String = id
        .chars()
        .map(|c| match c {
            c if c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '+') => c,
            _ => '.',
        })
        .collect();
    let path = folder.join(format!("{name}.safetensors"));
    let data = serde_json::to_value(recipe.data)
        .ok()
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default();
    let prepared = variant.prepared.join(" ");
    let mut notes = vec![("ropeway.case", id), ("ropeway.data", data.as_str())];
    if let Some(kernel) = variant.kernel {
        notes.push(("ropeway.kernel", kernel));
    }
    if !prepared.is_empty() {
        notes.push(("ropeway.prepared", prepared.as_str()));
    }
    request_file::write_request(&path, &recipe.request()?, &notes)?;
    Ok(path)
}

/// A request file, to be run as a case.
pub struct Saved {
    request: Request,
    /// The id of the case it was saved from, or the file's name.
    pub id: String,
    data: DataClass,
    /// The way to run it.
    pub variant: Variant,
}

/// Reads a request file.
///
/// # Errors
/// As [`RequestFile::open`]; `InvalidArgument` for a data class or kernel that does not exist.
pub fn load(path: &Path) -> Result<Saved> {
    let file = RequestFile::open(path)?;
    let note = |key: &str| file.file().metadata().get(key).map(String::as_str);
    let data = match note("ropeway.data") {
        None => DataClass::Adversarial,
        Some(text) => serde_json::from_value(text.into()).map_err(|error| {
            Error::new(ErrorKind::InvalidArgument, format!("ropeway.data: {error}"))
        })?,
    };
    let kind = file.kind();
    let kernel = match note("ropeway.kernel") {
        None => None,
        Some(name) => Some(ops::kernel_of(kind, name)?),
    };
    let prepared = note("ropeway.prepared")
        .unwrap_or_default()
        .split_whitespace()
        .map(|name| {
            let known = kind.inputs().iter().copied().find(|input| *input == name);
            known.ok_or_else(|| {
                let inputs = format!("one of {:?}", kind.inputs());
                Error::invalid("ropeway.prepared", name, inputs)
            })
        })
        .collect::<Result<_>>()?;
    Ok(Saved {
        id: note("ropeway.case").map_or_else(|| path.display().to_string(), str::to_owned),
        request: file.request()?,
        data,
        variant: Variant { kernel, prepared },
    })
}

impl Saved {
    /// The problem it holds.
    pub fn pose(&self) -> Posed {
        ops::pose_request(self.request.clone(), self.data)
    }
}

/// A recipe in a line: its name, and each operand's dtype and shape.
pub fn summary(recipe: &Recipe) -> String {
    let mut text = format!("{:?} data", recipe.data).to_lowercase();
    for tensor in &recipe.tensors {
        text += &format!(", {} {} {:?}", tensor.name, tensor.dtype, tensor.shape);
    }
    for view in &recipe.views {
        text += &format!(
            ", {} = view of {} {:?} strides {:?} at {}",
            view.name, view.of, view.shape, view.strides, view.offset
        );
    }
    for (name, value) in &recipe.attrs {
        text += &format!(", {name} {value}");
    }
    text
}
