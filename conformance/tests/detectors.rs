//! Each thing the suite watches, damaged: a case that passes on the cpu device must fail on the same device with the damage, for the
//! reason that the damage gives.

mod faulty;

use std::sync::Arc;

use faulty::{Damage, FaultyDevice};
use ropeway::Registry;
use ropeway_conformance::cases::{self, Body, Case, Selection};
use ropeway_conformance::generate::Generated;
use ropeway_conformance::ops::{self, Subject, Variant};
use ropeway_conformance::report::Status;
use ropeway_conformance::request_file::RequestFile;
use ropeway_conformance::suite::{Settings, Suite};
use ropeway_conformance::tensor_file::StoredTensor;
use ropeway_conformance::verdict::Verdict;
use ropeway_core::DType;
use ropeway_core::device::{Device, QueueKind};
use ropeway_core::spec::{DataClass, Fill, Recipe};

fn cpu() -> Arc<dyn Device> {
    Registry::default()
        .open("cpu")
        .expect("the cpu device is always there")
}

fn product(dtype: DType, data: DataClass, fill: Fill) -> Recipe {
    Recipe::new("gemm", "detector", data, 7)
        .tensor("a", dtype, &[5, 7], fill.clone())
        .tensor("b", dtype, &[7, 6], fill)
}

fn random() -> Recipe {
    product(DType::F32, DataClass::Random, Fill::Uniform { scale: 1.0 })
}

fn verdict(device: Arc<dyn Device>, recipe: &Recipe) -> Verdict {
    let queue = device.create_queue(QueueKind::Compute).unwrap();
    let subject = Subject::new(device);
    ops::check(&subject, &*queue, recipe, &Variant::default(), true)
}

fn finding(damage: Damage, recipe: &Recipe) -> String {
    let healthy = verdict(cpu(), recipe);
    assert!(matches!(healthy, Verdict::Passed(_)), "{healthy:?}");
    match verdict(FaultyDevice::damaging(cpu(), damage), recipe) {
        Verdict::Failed(findings) => findings.join("\n"),
        other => panic!("{damage:?} was not caught: {other:?}"),
    }
}

#[test]
fn a_write_past_the_end_changes_the_canary_after() {
    let finding = finding(Damage::PastTheEnd, &random());
    assert!(
        finding.contains("d: 1 bytes of the canary after it were written, the first 0 bytes past"),
        "{finding}"
    );
}

#[test]
fn a_write_before_the_begin_changes_the_canary_before() {
    let finding = finding(Damage::BeforeTheBegin, &random());
    assert!(
        finding
            .contains("d: 1 bytes of the canary before it were written, the first 1 bytes before"),
        "{finding}"
    );
}

#[test]
fn a_changed_input_is_named() {
    let finding = finding(Damage::Input, &random());
    assert!(
        finding.contains("a: an input was written, first at byte 0"),
        "{finding}"
    );
}

#[test]
fn a_second_run_that_differs_within_the_bound_fails() {
    let finding = finding(Damage::SecondRun, &random());
    assert!(
        finding.contains("d: two runs of a plan that declares") && finding.contains("at [0, 0]"),
        "{finding}"
    );
    assert!(!finding.contains("outside their bound"), "{finding}");
}

#[test]
fn nan_where_the_reference_is_finite_fails() {
    let finding = finding(Damage::Nan, &random());
    assert!(
        finding.contains("d: 1 of 30 elements lie outside their bound"),
        "{finding}"
    );
}

#[test]
fn elements_that_nobody_wrote_fail_in_floats_and_integers() {
    let integers = product(
        DType::I8,
        DataClass::Exact,
        Fill::Integers { low: -8, high: 8 },
    );
    for recipe in [random(), integers] {
        let finding = finding(Damage::NoLaunch, &recipe);
        assert!(
            finding.contains("d: 30 elements were not written, the first at [0, 0]"),
            "{finding}"
        );
    }
}

#[test]
fn a_write_into_the_gap_between_output_rows_fails() {
    let finding = finding(Damage::SeventhElementIfPadded, &random());
    assert!(
        finding.contains("with gaps between the rows of the outputs: d: element 6, outside"),
        "{finding}"
    );
}

#[test]
fn a_row_that_depends_on_its_batch_fails_where_the_plan_promises_otherwise() {
    let tokens = Recipe::new("attention_varlen", "detector", DataClass::Random, 7)
        .tensor("q", DType::F32, &[9, 2, 8], Fill::Uniform { scale: 1.0 })
        .tensor("k", DType::F32, &[9, 2, 8], Fill::Uniform { scale: 1.0 })
        .tensor("v", DType::F32, &[9, 2, 8], Fill::Uniform { scale: 1.0 })
        .tensor(
            "cu_q",
            DType::I32,
            &[4],
            Fill::Values(vec![0.0, 3.0, 5.0, 9.0]),
        )
        .tensor(
            "cu_kv",
            DType::I32,
            &[4],
            Fill::Values(vec![0.0, 3.0, 5.0, 9.0]),
        );
    let finding = finding(Damage::FirstElementIfShorter, &tokens);
    assert!(
        finding.contains("with a part of the batch: o: rows differ from those of the full batch"),
        "{finding}"
    );
}

#[test]
fn padding_between_the_rows_of_a_view_is_poisoned_and_harmless() {
    let recipe = Recipe::new("gemm", "padded", DataClass::Random, 3)
        .tensor("store", DType::F32, &[60], Fill::Uniform { scale: 1.0 })
        .tensor("b", DType::F32, &[7, 6], Fill::Uniform { scale: 1.0 })
        .view("a", "store", &[5, 7], &[11, 1], 2);
    let healthy = verdict(cpu(), &recipe);
    assert!(matches!(healthy, Verdict::Passed(_)), "{healthy:?}");
    finding(Damage::Input, &recipe);
}

#[test]
fn a_case_that_cannot_be_made_fails_and_one_that_is_unsupported_is_skipped() {
    let absent = Recipe::new("gemm", "absent", DataClass::Exact, 0);
    assert!(matches!(verdict(cpu(), &absent), Verdict::Failed(_)));
    let unknown = Recipe::new("sort", "unknown", DataClass::Exact, 0);
    assert!(matches!(verdict(cpu(), &unknown), Verdict::Failed(_)));
    let f8 = Recipe::new("gemm", "f8", DataClass::Exact, 0)
        .tensor("a", DType::F8E4M3, &[2, 2], Fill::Constant(1.0))
        .tensor("b", DType::F8E4M3, &[2, 2], Fill::Constant(1.0));
    assert!(matches!(verdict(cpu(), &f8), Verdict::Skipped(_)));
}

/// A generated case that fails is shrunk, saved, and fails again from its file; on the device without the damage the file passes.
#[test]
fn a_failing_generated_case_is_shrunk_and_replays_from_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let faulty: Arc<dyn Device> = FaultyDevice::damaging(cpu(), Damage::PastTheEnd);
    let settings = Settings {
        save: Some(folder.path().to_owned()),
        ..Settings::default()
    };
    let selection = Selection {
        filter: Some("gemm/generated".into()),
        generated: 100,
        ..Selection::default()
    };
    let suite = Suite::new(Arc::clone(&faulty), settings).unwrap();
    let queue = faulty.create_queue(QueueKind::Compute).unwrap();
    let cases = cases::select(faulty.info(), &selection).unwrap();
    let outcome = cases
        .iter()
        .map(|case| suite.case(&*queue, case))
        .find(|outcome| matches!(outcome.status, Status::Failed(_)))
        .expect("a product that is not empty");
    let Status::Failed(findings) = &outcome.status else {
        unreachable!("found by its status")
    };
    assert!(
        findings.iter().any(|finding| finding.contains("shrunk in")),
        "{findings:?}"
    );
    let path = outcome.saved.as_deref().expect("saved");
    assert_eq!(outcome.replay(), path.display().to_string());
    let file = RequestFile::open(path).unwrap();
    let elements = |tensor: &StoredTensor| tensor.elements();
    let largest = file.stored().iter().map(elements).max().unwrap();
    assert!(largest <= 16, "{largest} elements are left after shrinking");

    let again = cases::saved(path).unwrap();
    let outcome = suite.case(&*queue, &again);
    assert!(matches!(outcome.status, Status::Failed(_)), "{outcome:?}");
    let healthy = cpu();
    let queue = healthy.create_queue(QueueKind::Compute).unwrap();
    let suite = Suite::new(healthy, Settings::default()).unwrap();
    assert_eq!(suite.case(&*queue, &again).status, Status::Passed);
}

/// One id, one case: on any run, whatever else the run holds.
#[test]
fn an_id_replays_the_case_it_was_given_to() {
    let device = cpu();
    let selection = Selection {
        seed: 99,
        generated: 40,
        ..Selection::default()
    };
    let recipe = |case: &Case| match &case.body {
        Body::Generated { kind, seed, .. } => Some(Generated::new(*kind, *seed).unwrap().recipe()),
        Body::Fixed { recipe, .. } => Some((**recipe).clone()),
        _ => None,
    };
    let cases = cases::select(device.info(), &selection).unwrap();
    let mut ids = std::collections::BTreeSet::new();
    for case in &cases {
        assert!(
            ids.insert(case.id.clone()),
            "two cases are called {}",
            case.id
        );
    }
    for case in cases.iter().filter(|case| case.id.contains("/generated/")) {
        let again = cases::by_id(device.info(), &case.id).unwrap();
        assert_eq!(again.id, case.id);
        assert_eq!(recipe(&again), recipe(case));
    }
    for id in [
        "gemm/fixed/no_such",
        "sort/generated/12",
        "gemm/generated/xyz",
    ] {
        assert!(cases::by_id(device.info(), id).is_err(), "{id}");
    }
}

/// A filter that matches nothing is an error, not an empty success.
#[test]
fn nothing_to_run_is_an_error() {
    let selection = Selection {
        filter: Some("no such case".into()),
        ..Selection::default()
    };
    let error = cases::select(cpu().info(), &selection)
        .err()
        .expect("an error");
    assert!(error.to_string().contains("no such case"), "{error}");
}
