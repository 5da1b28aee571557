//! Problems as signatures, and refusals: what the tests of the ops' checks share.

use ropeway_core::memory::TensorDesc;
use ropeway_core::op::{Op, OpKind, Signature};
use ropeway_core::{DType, ErrorKind, Result};
use serde_json::Value;

pub(crate) type Tensors<'a> = Vec<(&'a str, DType, &'a [u64])>;

pub(crate) fn signature(tensors: &[(&str, DType, &[u64])], attrs: Value) -> Signature {
    let desc = |dtype, shape| TensorDesc::contiguous(dtype, shape).expect("a small shape");
    Signature {
        tensors: tensors
            .iter()
            .map(|&(name, dtype, shape)| (name.to_owned(), desc(dtype, shape)))
            .collect(),
        attrs: attrs.as_object().expect("an object").clone(),
    }
}

pub(crate) fn parse(
    kind: &dyn OpKind,
    tensors: &[(&str, DType, &[u64])],
    attrs: Value,
) -> Result<Box<dyn Op>> {
    kind.parse(&signature(tensors, attrs))
}

/// The refusal is of this kind, and says all of these words.
#[track_caller]
pub(crate) fn refused<T: std::fmt::Debug>(result: Result<T>, kind: ErrorKind, words: &[&str]) {
    let error = result.expect_err("this must be refused");
    assert_eq!(error.kind(), kind, "{error}");
    for word in words {
        assert!(
            error.context().contains(word),
            "{word:?} is not in: {error}"
        );
    }
}

/// A sound problem with some tensors put in another's place, or added.
pub(crate) fn with<'a>(sound: &Tensors<'a>, others: &[(&'a str, DType, &'a [u64])]) -> Tensors<'a> {
    let mut tensors = sound.clone();
    for other in others {
        tensors.retain(|tensor| tensor.0 != other.0);
        tensors.push(*other);
    }
    tensors
}
