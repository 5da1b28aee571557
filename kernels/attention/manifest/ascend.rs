//! The kernels that exist in AscendC only.

use ropeway_core::kernel::{Code, Kernel, Language, Source};

use crate::LINES;

const SHARED_ASC: (&str, &str) = ("attention.asc", include_str!("../attention.asc"));
const PRODUCTS_ASC: (&str, &str) = (
    "attention_products.asc",
    include_str!("../attention_products.asc"),
);
const SOFTMAX_ASC: (&str, &str) = (
    "attention_softmax.asc",
    include_str!("../attention_softmax.asc"),
);

/// All steps in one launch.
pub(in super::super) static ATTENTION_FUSED: Kernel = Kernel {
    name: "attention_fused",
    summary: "products on cube cores and the softmax on their vector cores in one launch, an AI core an item",
    version: 1,
    sources: &[Source {
        language: Language::AscendC,
        code: Code::Text(&[
            LINES,
            SHARED_ASC,
            PRODUCTS_ASC,
            SOFTMAX_ASC,
            (
                "attention_fused.asc",
                include_str!("../attention_fused.asc"),
            ),
        ]),
        requires: &[],
    }],
    tunables: &[],
    constraints: &[],
    local_memory: |_| 0,
};

/// The products, on cube cores: `attention_scores` and `attention_values`.
pub(in super::super) static ATTENTION_CUBE: Kernel = Kernel {
    name: "attention_cube",
    summary: "products on cube cores, a segment of the keys at a time, around attention_vector's softmax",
    version: 1,
    sources: &[Source {
        language: Language::AscendC,
        code: Code::Text(&[
            SHARED_ASC,
            PRODUCTS_ASC,
            ("attention_cube.asc", include_str!("../attention_cube.asc")),
        ]),
        requires: &[],
    }],
    tunables: &[],
    constraints: &[],
    local_memory: |_| 0,
};

/// The softmax, on vector cores: `attention_softmax` and `attention_finish`.
pub(in super::super) static ATTENTION_VECTOR: Kernel = Kernel {
    name: "attention_vector",
    summary: "softmax of a segment's scores, and the segments joined, on vector cores",
    version: 1,
    sources: &[Source {
        language: Language::AscendC,
        code: Code::Text(&[
            LINES,
            SHARED_ASC,
            SOFTMAX_ASC,
            (
                "attention_vector.asc",
                include_str!("../attention_vector.asc"),
            ),
        ]),
        requires: &[],
    }],
    tunables: &[],
    constraints: &[],
    local_memory: |_| 0,
};

/// Copies operands that cube cores cannot fetch.
pub(in super::super) static ATTENTION_PACK: Kernel = Kernel {
    name: "attention_pack",
    summary: "a copy of an operand with its columns side by side, on vector cores",
    version: 1,
    sources: &[Source {
        language: Language::AscendC,
        code: Code::Text(&[
            LINES,
            ("attention_pack.asc", include_str!("../attention_pack.asc")),
        ]),
        requires: &[],
    }],
    tunables: &[],
    constraints: &[],
    local_memory: |_| 0,
};
