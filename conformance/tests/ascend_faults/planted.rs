//! The faults: text put in place of other text, and what the emulated CANN has to say of it; and the flags that nobody misses.

use crate::faulty::Substitution;

/// A planted fault.
pub struct Fault {
    /// What is wrong.
    pub name: &'static str,
    /// Cases of which one must catch it.
    pub cases: &'static str,
    /// Other text in a source.
    pub substitution: Substitution,
    /// Words of which one must be in the report, or in the case's findings.
    pub says: &'static [&'static str],
}

/// A flag or barrier that no case misses.
pub struct Redundant {
    /// Its file.
    pub file: &'static str,
    /// Its line, without blanks around it.
    pub text: &'static str,
    /// Why it stays.
    #[allow(dead_code)]
    pub reason: &'static str,
}

pub const REDUNDANT: &[Redundant] = &[Redundant {
    file: "rows.asc",
    text: "PipeBarrier<PIPE_ALL>();  // Of the range before, if there was one.",
    reason: "between ranges of ids: only where a core takes a second range is there anything to order, which takes more than 40 times 4,096 ids",
}];

/// What the suite says of results that are wrong.
const WRONG: &[&str] = &["differ", "expected", "bound", "wrong"];

pub const FAULTS: &[Fault] = &[
    Fault {
        name: "products: L0C for twice the sums that a core has",
        cases: "gemm/",
        substitution: Substitution {
            file: "gemm_cube.asc",
            find: "pipe.InitBuffer(sums, BLOCK_M * BLOCK_N * sizeof(sum_t));",
            replace: "pipe.InitBuffer(sums, 256 * 1024);",
        },
        says: &["L0C is full"],
    },
    Fault {
        name: "products: a step that does not begin at a fractal",
        cases: "gemm/",
        substitution: Substitution {
            file: "gemm_cube.asc",
            find: "LoadData(to[i * FRACTAL], stage[from + i * along], p);",
            replace: "LoadData(to[i * FRACTAL + 16], stage[from + i * along], p);",
        },
        says: &["misaligned"],
    },
    Fault {
        name: "products: a's fractals along the columns, as b's are",
        cases: "gemm/",
        substitution: Substitution {
            file: "gemm_cube.asc",
            find: "p.dstGap = deep - 1;\n    for (uint32_t i = 0; i < deep; i++) LoadData(to[i * FRACTAL]",
            replace: "for (uint32_t i = 0; i < deep; i++) LoadData(to[i * tall * FRACTAL]",
        },
        says: WRONG,
    },
    Fault {
        name: "lines: more of UB than there is",
        cases: "norm/",
        substitution: Substitution {
            file: "lines.asc",
            find: "constexpr uint32_t BUFFER = 16384;",
            replace: "constexpr uint32_t BUFFER = 65536;",
        },
        says: &["UB is full"],
    },
    Fault {
        name: "lines: closed up behind the begin of a block",
        cases: "norm/",
        substitution: Substitution {
            file: "lines.asc",
            find: "DataCopyPad(buffer, global<CODE>(base)[at], copy, pad);",
            replace: "DataCopyPad(buffer[1], global<CODE>(base)[at], copy, pad);",
        },
        says: &["misaligned"],
    },
    Fault {
        name: "lines: one element more than the line has",
        cases: "norm/",
        substitution: Substitution {
            file: "lines.asc",
            find: "copy.blockLen = side_by_side ? count * sizeof(T) : sizeof(T);",
            replace: "copy.blockLen = side_by_side ? (count + 1) * sizeof(T) : sizeof(T);",
        },
        says: &["out of bounds", "hazard", "written", "outside", "differ"],
    },
    Fault {
        name: "attention: a step that does not begin at a fractal",
        cases: "attention/",
        substitution: Substitution {
            file: "attention_products.asc",
            find: "LoadData(to[i * deep * FRACTAL], stage[k0 * high + i * FRACTAL], load);",
            replace: "LoadData(to[i * deep * FRACTAL + 16], stage[k0 * high + i * FRACTAL], load);",
        },
        says: &["misaligned"],
    },
    Fault {
        name: "attention: L0C for twice the sums that a core has",
        cases: "attention/",
        substitution: Substitution {
            file: "attention_products.asc",
            find: "pipe.InitBuffer(sums, BLOCK_M * BLOCK_N * sizeof(float));",
            replace: "pipe.InitBuffer(sums, 256 * 1024);",
        },
        says: &["L0C is full"],
    },
    Fault {
        name: "attention: scores where those of the step before still lie",
        cases: "attention/fixed/decode",
        substitution: Substitution {
            file: "attention_fused.asc",
            find: "        turn ^= 1;\n",
            replace: "",
        },
        says: &["hazard"],
    },
    Fault {
        name: "rows of experts: more of UB than there is",
        cases: "expert_scatter/",
        substitution: Substitution {
            file: "rows.asc",
            find: "pipe.InitBuffer(begins, (EXPERTS + 8) * sizeof(int32_t));",
            replace: "pipe.InitBuffer(begins, 192 * 1024);",
        },
        says: &["UB is full"],
    },
];
