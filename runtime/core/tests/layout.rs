//! Layouts and expressions against hand-computed values, and against every index where that is possible.

use proptest::prelude::*;
use ropeway_core::memory::TensorDesc;
use ropeway_core::{DType, Error, ErrorKind, Layout};

fn strided(shape: &[u64], strides: &[u64]) -> Layout {
    Layout::strided(shape, strides).unwrap()
}

#[test]
fn contiguous_strides_are_row_major() {
    let layout = Layout::contiguous(&[2, 3, 4]).unwrap();
    assert_eq!(layout.strides(), [12, 4, 1]);
    assert_eq!(layout.span(), 24);
    assert!(layout.is_contiguous() && layout.is_injective());
    assert_eq!(Layout::contiguous(&[]).unwrap().elements(), 1);
    assert_eq!(Layout::contiguous(&[5, 0, 7]).unwrap().span(), 0);
}

#[test]
fn sizes_beyond_64_bits_are_named_errors() {
    let huge = u64::MAX / 2;
    for error in [
        Layout::contiguous(&[huge, 3]).unwrap_err(),
        Layout::strided(&[3, 3], &[huge, huge]).unwrap_err(),
        TensorDesc::contiguous(DType::F32, &[huge])
            .and_then(|desc| desc.span_bytes())
            .unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert!(error.to_string().contains("shape"), "{error}");
    }
    let error = Layout::contiguous(&[1; 9]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[test]
fn broadcasting_is_numpys() {
    let layout = Layout::contiguous(&[3, 1]).unwrap();
    let wide = layout.broadcast_to(&[2, 3, 4]).unwrap();
    assert_eq!(wide.shape(), [2, 3, 4]);
    assert_eq!(wide.strides(), [0, 1, 0]);
    assert!(layout.broadcast_to(&[2, 4]).is_err());
    assert!(layout.broadcast_to(&[3]).is_err());
}

#[test]
fn an_error_keeps_its_kind_and_its_cause_when_it_is_wrapped() {
    let inner = Error::from_call(ErrorKind::OutOfMemory, "clCreateBuffer", -61, "1 byte");
    let outer = inner.clone().within("layer 3");
    assert_eq!(outer.kind(), ErrorKind::OutOfMemory);
    assert_eq!(
        outer.to_string(),
        "out of memory in clCreateBuffer (code -61): layer 3: 1 byte"
    );
    let source = std::error::Error::source(&outer).unwrap();
    assert_eq!(source.to_string(), inner.to_string());
}

fn layouts() -> impl Strategy<Value = Layout> {
    prop::collection::vec((0u64..5, 0u64..8), 0..4).prop_map(|axes| {
        let (shape, strides): (Vec<_>, Vec<_>) = axes.into_iter().unzip();
        strided(&shape, &strides)
    })
}

proptest! {
    #[test]
    fn the_span_is_one_past_the_last_element(layout in layouts()) {
        let last = layout.indices().map(|index| layout.offset_of(&index) + 1).max();
        prop_assert_eq!(layout.span(), last.unwrap_or(0));
    }

    #[test]
    fn injective_layouts_share_no_element(layout in layouts()) {
        let mut seen: Vec<_> = layout.indices().map(|index| layout.offset_of(&index)).collect();
        seen.sort_unstable();
        let shared = seen.windows(2).any(|pair| pair[0] == pair[1]);
        // The test is conservative: some layouts without shared elements are refused, none with them is admitted.
        prop_assert!(!(layout.is_injective() && shared), "{:?}", layout);
    }

    #[test]
    fn contiguous_means_offsets_count_up(layout in layouts()) {
        let counts_up = layout.indices().map(|index| layout.offset_of(&index)).eq(0..layout.elements());
        prop_assert_eq!(layout.is_contiguous(), counts_up);
    }
}
