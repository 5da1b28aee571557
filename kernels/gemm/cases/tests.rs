//! The cases themselves: they are sound, honest, cheap and different.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use ropeway_core::DType;
use ropeway_core::op::{Op, OpKind};
use ropeway_core::spec::{DataClass, Fill, Recipe};

use super::super::{GemmKind, GroupedGemmKind, MaskedGroupedGemmKind};

const KINDS: [&dyn OpKind; 3] = [&GemmKind, &GroupedGemmKind, &MaskedGroupedGemmKind];

fn generated(kind: &dyn OpKind, cases: usize) -> Vec<Recipe> {
    let mut runner = TestRunner::deterministic();
    let strategy = kind.spec().strategy();
    (0..cases)
        .map(|_| strategy.new_tree(&mut runner).unwrap().current())
        .collect()
}

/// It parses, its values pass, and it is honest about its data.
fn check(kind: &dyn OpKind, recipe: &Recipe) -> Box<dyn Op> {
    let fail = |error| panic!("{}/{}: {error}", recipe.op, recipe.name);
    assert_eq!(recipe.op, kind.name());
    let request = recipe.request().unwrap_or_else(fail);
    let op = kind.parse(&request.signature()).unwrap_or_else(|error| {
        panic!("{}/{}: {error}", recipe.op, recipe.name);
    });
    if let Err(error) = kind.check_values(&*op, &request.inputs) {
        panic!("{}/{}: {error}", recipe.op, recipe.name);
    }
    if recipe.data == DataClass::Random {
        for tensor in recipe.tensors.iter().filter(|tensor| tensor.dtype != "I32") {
            let mut fill = &tensor.fill;
            while let Fill::Poisoned { base, .. } = fill {
                fill = base;
            }
            // Weights in blocks may be any, as long as what they are multiplied with is random.
            if ["b", "b_stored"].contains(&&*tensor.name) && recipe.attrs.contains_key("b_format") {
                assert!(matches!(fill, Fill::Bits { .. }), "{}", recipe.name);
                continue;
            }
            assert!(matches!(fill, Fill::Uniform { .. }), "{}", recipe.name);
            assert!(DType::from_name(&tensor.dtype).unwrap().is_float());
        }
        for view in &recipe.views {
            let layout = request.inputs[&view.name].desc.layout;
            assert!(layout.is_injective(), "{}: {}", recipe.name, view.name);
        }
    }
    op
}

#[test]
fn fixed_cases_are_sound_and_different() {
    for kind in KINDS {
        let cases = kind.spec().fixed_cases();
        let names: BTreeSet<_> = cases.iter().map(|recipe| &recipe.name).collect();
        assert_eq!(names.len(), cases.len(), "{}: a name twice", kind.name());
        for recipe in &cases {
            check(kind, recipe);
        }
    }
}

#[test]
fn generated_cases_are_sound() {
    for kind in KINDS {
        for recipe in generated(kind, 500) {
            check(kind, &recipe);
        }
    }
}

/// Random cases reach every dtype, activation and class of data.
#[test]
fn generated_cases_reach_everything() {
    let cases = generated(&GemmKind, 500);
    for word in [
        "_f16",
        "_bf16",
        "_i8",
        "f32xf16",
        "f16xf32",
        "xq4_0",
        "xq4_1",
        "xq8_0",
        "xq4_k",
        "xq6_k",
        "_f8_e4m3",
        "_a_scale",
        "_b_scale",
        "_nt",
        "_tn",
        "_tt",
        "_relu",
        "_gelu",
        "_gelu_tanh",
        "_silu",
        "_swiglu",
        "_bias",
        "_alpha0",
        "_beta0",
        "_a_padded",
        "_b_column_major",
        "_c_strided",
        "_a_sliding",
        "_to_i8",
        "_to_f32",
        "_m0_",
        "_k0_",
    ] {
        let any = cases.iter().any(|recipe| recipe.name.contains(word));
        assert!(any, "no case with {word}");
    }
    for class in [DataClass::Random, DataClass::Exact, DataClass::Adversarial] {
        let count = cases.iter().filter(|recipe| recipe.data == class).count();
        assert!(count > 50, "{count} of {class:?}");
    }
}

/// The same recipe gives the same bytes; another seed gives others.
#[test]
fn a_seed_is_a_case() {
    let recipe = &generated(&GemmKind, 1)[0];
    assert_eq!(recipe.request().unwrap(), recipe.request().unwrap());
    let fixed = GemmKind.spec().fixed_cases();
    let odd = fixed
        .iter()
        .find(|recipe| recipe.name == "odd_m3_n5_k7_f32")
        .expect("a case of this name");
    // For ever: an id in an old report must give the old bytes.
    let bytes = odd.request().unwrap().inputs["a"].to_bytes();
    assert_eq!(odd.seed, 670_753_563_615_954_128);
    assert_eq!(bytes[..8], [222, 157, 77, 63, 192, 150, 43, 191]);
}

#[test]
fn the_reference_is_fast_enough_for_the_gate() {
    for kind in KINDS {
        let begin = Instant::now();
        for recipe in kind.spec().fixed_cases() {
            let op = check(kind, &recipe);
            let request = recipe.request().unwrap();
            let begin = Instant::now();
            kind.spec()
                .reference(&*op, &request.inputs, recipe.data)
                .unwrap();
            if begin.elapsed() > Duration::from_millis(30) {
                println!("{}/{}: {:?}", recipe.op, recipe.name, begin.elapsed());
            }
        }
        println!("{}: {:?}", kind.name(), begin.elapsed());
        assert!(begin.elapsed() < Duration::from_secs(20));
    }
}
