//! Damaged request files: whatever the bytes are, reading them ends in a request or an error, and takes no more memory
//! than a small multiple of the file. Alone in its program, since it watches the program's allocations.

use std::fs;

use peak_alloc::PeakAlloc;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use ropeway_conformance::request_file::RequestFile;

#[global_allocator]
static ALLOCATIONS: PeakAlloc = PeakAlloc;

/// Bytes that reading may take beside a multiple of the file: messages, and the attributes as a tree of at most 1,024 values.
const FIXED: usize = 256 << 10;
/// A shape's `0,` is two bytes in the file and eight in memory, in a vector that doubles.
const FACTOR: usize = 24;

#[derive(Clone, Debug)]
enum Damage {
    Flip(Index, u8),
    Cut(Index),
    Insert(Index, Vec<u8>),
    Replace(Index, Vec<u8>),
    HeaderLength(u64),
}

fn damage() -> impl Strategy<Value = Damage> {
    let word = prop_oneof![
        Just(b"18446744073709551615".to_vec()),
        Just(b"4294967296".to_vec()),
        Just(b"-1".to_vec()),
        Just(b"null".to_vec()),
        Just(b"1e300".to_vec()),
        Just(b"[[[[[[[[".to_vec()),
        Just(b"\"F64\"".to_vec()),
        Just(b"\"strides\":[0,".to_vec()),
        Just("0,".repeat(5_000).into_bytes()),
        vec(any::<u8>(), 1..9),
    ];
    let at = any::<Index>;
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(at, bits)| Damage::Flip(at, bits)),
        at().prop_map(Damage::Cut),
        (at(), word.clone()).prop_map(|(at, word)| Damage::Insert(at, word)),
        (at(), word).prop_map(|(at, word)| Damage::Replace(at, word)),
        prop_oneof![any::<u64>(), 0..400u64, Just(u64::MAX - 7)].prop_map(Damage::HeaderLength),
    ]
}

/// A sound request with views, optional operands and attributes, and its header's length kept right or not.
fn sound() -> (Vec<u8>, Vec<u8>) {
    let attrs = serde_json::json!({
        "causal": true, "scale": 0.25,
        "views": {
            "k": {"of": "kv", "shape": [1, 2, 5, 4], "strides": [80, 8, 16, 1], "offset": 0},
            "v": {"of": "kv", "shape": [1, 2, 5, 4], "strides": [80, 8, 16, 1], "offset": 4},
        },
    });
    let header = serde_json::json!({
        "__metadata__": {"ropeway.op": "attention", "ropeway.attrs": attrs.to_string()},
        "q": {"dtype": "F32", "shape": [1, 4, 3, 4], "data_offsets": [0, 192]},
        "kv": {"dtype": "F32", "shape": [1, 5, 4, 4], "data_offsets": [192, 512]},
        "kv_lens": {"dtype": "I32", "shape": [1], "data_offsets": [512, 516]},
    });
    (header.to_string().into_bytes(), vec![1; 516])
}

fn apply(bytes: &mut Vec<u8>, damage: &Damage) {
    match damage {
        Damage::Flip(at, bits) if !bytes.is_empty() => {
            let at = at.index(bytes.len());
            bytes[at] ^= bits;
        }
        Damage::Cut(at) if !bytes.is_empty() => bytes.truncate(at.index(bytes.len())),
        Damage::Insert(at, word) => {
            let at = at.index(bytes.len() + 1);
            bytes.splice(at..at, word.iter().copied());
        }
        Damage::Replace(at, word) if !bytes.is_empty() => {
            let at = at.index(bytes.len());
            let end = (at + word.len()).min(bytes.len());
            bytes.splice(at..end, word.iter().copied());
        }
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_files_are_errors_and_cost_little(damages in vec(damage(), 1..5), in_header in any::<bool>()) {
        let (mut header, data) = sound();
        let bytes = if in_header {
            // Damage behind a right length gets past the first check.
            damages.iter().for_each(|damage| apply(&mut header, damage));
            [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
        } else {
            let mut bytes = [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat();
            for damage in &damages {
                match damage {
                    Damage::HeaderLength(length) if bytes.len() >= 8 => {
                        bytes[..8].copy_from_slice(&length.to_le_bytes());
                    }
                    damage => apply(&mut bytes, damage),
                }
            }
            bytes
        };
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("damaged.safetensors");
        fs::write(&path, &bytes).unwrap();

        let before = ALLOCATIONS.current_usage();
        ALLOCATIONS.reset_peak_usage();
        if let Ok(file) = RequestFile::open(&path) {
            let _ = file.parse();
            let request = file.request();
            if let Ok(request) = request {
                for tensor in request.inputs.values() {
                    prop_assert!(tensor.offset + tensor.desc.layout.span() <= tensor.data.len() as u64);
                }
            }
        }
        let taken = ALLOCATIONS.peak_usage().saturating_sub(before);
        prop_assert!(
            taken <= FIXED + FACTOR * bytes.len(),
            "{taken} bytes for a file of {}", bytes.len()
        );
    }
}
