//! Dtypes by the names that Python knows them by: NumPy's and ml_dtypes'.

use numpy::{PyArrayDescr, PyArrayDescrMethods};
use pyo3::prelude::*;
use pyo3::types::PyType;
use ropeway::core::{DType, Error};

use crate::error::Result;

/// Dtypes that a tensor of Python can have, with their names there.
pub(crate) const NAMES: [(DType, &str); 8] = [
    (DType::F32, "float32"),
    (DType::F16, "float16"),
    (DType::BF16, "bfloat16"),
    (DType::I8, "int8"),
    (DType::I32, "int32"),
    (DType::U8, "uint8"),
    (DType::F8E4M3, "float8_e4m3fn"),
    (DType::F8E5M2, "float8_e5m2"),
];

/// The name in Python; Ropeway's own for what Python has no name for.
pub(crate) fn name(dtype: DType) -> &'static str {
    let found = NAMES.iter().find(|(known, _)| *known == dtype);
    found.map_or(dtype.name(), |(_, name)| name)
}

/// The dtype of this name.
pub(crate) fn from_name(operand: &str, wanted: &str) -> Result<DType> {
    let found = NAMES.iter().find(|(_, name)| *name == wanted);
    match found {
        Some((dtype, _)) => Ok(*dtype),
        None => Err(unknown(operand, wanted)),
    }
}

/// The dtype of an array's elements.
pub(crate) fn of_array(operand: &str, descr: &Bound<'_, PyArrayDescr>) -> Result<DType> {
    let class = descr.typeobj().getattr("__name__")?;
    let class: &str = &class.extract::<String>()?;
    if descr.is_native_byteorder() == Some(false) {
        return Err(unknown(operand, format!("{class} in foreign byte order")));
    }
    // NumPy has several classes for one width of integers.
    match (descr.kind(), descr.itemsize()) {
        (b'i', 4) => Ok(DType::I32),
        _ => from_name(operand, class),
    }
}

fn unknown(operand: &str, found: impl std::fmt::Display) -> crate::error::Failure {
    let names: Vec<_> = NAMES.iter().map(|(_, name)| *name).collect();
    Error::invalid(operand, found, format!("one of {}", names.join(", "))).into()
}

/// NumPy's dtype for new arrays; those that NumPy lacks are ml_dtypes'.
pub(crate) fn numpy_class(py: Python<'_>, dtype: DType) -> Result<Bound<'_, PyType>> {
    let module = match dtype {
        DType::BF16 | DType::F8E4M3 | DType::F8E5M2 => "ml_dtypes",
        _ => "numpy",
    };
    let class = py
        .import(module)
        .and_then(|module| module.getattr(name(dtype)))
        .and_then(|class| Ok(class.cast_into::<PyType>()?));
    class.map_err(|_| {
        let lack = format!("NumPy arrays of {0}: install ml_dtypes", name(dtype));
        Error::unsupported(lack).into()
    })
}
