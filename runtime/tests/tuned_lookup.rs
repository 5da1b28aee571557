//! What serves a problem, and what does not.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use ropeway::Registry;
use ropeway::core::info::DeviceInfo;
use ropeway::core::kernel::{Kernel, Tunable};
use ropeway::core::op::{TuneKey, Tuned};
use ropeway::tuned::{
    Measured, Origin, Provenance, Served, TunedEntry, TunedTable, TunedTables, exponent,
    table_files,
};

static DEFAULT: Kernel = kernel("plain", 1);
static FAST: Kernel = kernel("fast", 2);

const fn kernel(name: &'static str, version: u32) -> Kernel {
    const TILE: &[Tunable] = &[Tunable {
        name: "TILE",
        values: &[4, 8, 16],
        default: 4,
        meaning: "edge of a tile",
    }];
    Kernel {
        name,
        summary: "",
        version,
        sources: &[],
        tunables: TILE,
        constraints: &[],
        local_memory: |config| 64 * config.value("TILE") as u64,
    }
}

fn info(name: &str, architecture: &str) -> DeviceInfo {
    let cpu = Registry::default().open("cpu");
    let cpu = cpu.expect("the cpu device is always there");
    let mut info = cpu.info().clone();
    info.backend = "opencl";
    info.name = name.into();
    info.architecture = architecture.into();
    info.limits.local_memory = 1024;
    info
}

/// `fast` with this tile at m and n, this many times faster than `plain`.
fn entry(m: u64, n: u64, tile: i64, gain: f64) -> TunedEntry {
    TunedEntry {
        op: "gemm".into(),
        variant: "f32_f32_nn".into(),
        sizes: BTreeMap::from([("m".into(), m), ("n".into(), n)]),
        kernel: "fast".into(),
        version: 2,
        config: BTreeMap::from([("TILE".into(), tile)]),
        measured: Some(Measured {
            seconds: 1e-3 / gain,
            deviation: 1e-6,
            samples: 9,
            default_kernel: "plain".into(),
            default_seconds: 1e-3,
            default_deviation: 1e-6,
            error_over_bound: 0.25,
            along: vec!["m".into(), "n".into()],
        }),
        provenance: None,
    }
}

fn table(device: &str, architecture: &str, entries: &[TunedEntry]) -> TunedTable {
    TunedTable {
        device: device.into(),
        backend: "opencl".into(),
        architecture: architecture.into(),
        entries: entries.to_vec(),
    }
}

fn user(entries: &[TunedEntry]) -> TunedTables {
    let mut tables = TunedTables::default();
    let origin = Origin::User(PathBuf::from("mine.toml"));
    tables.add(&table("chip", "", entries), origin);
    tables
}

/// The tile that serves m and n on a device, and how.
fn find_on(tables: &TunedTables, info: &DeviceInfo, m: u64, n: u64) -> Option<(i64, Served)> {
    // Not in the order of names, which must not matter.
    let sizes = [("n", n), ("m", m)];
    let key = TuneKey {
        op: "gemm",
        variant: "f32_f32_nn",
        sizes: &sizes,
    };
    let candidates = [&DEFAULT, &FAST];
    let found = tables.find(&key, info, &candidates)?;
    Some((found.entry.config["TILE"], found.served))
}

fn find(tables: &TunedTables, m: u64, n: u64) -> Option<(i64, Served)> {
    find_on(tables, &info("chip", ""), m, n)
}

#[test]
fn an_entry_serves_its_bucket_on_its_device() {
    let tables = user(&[entry(1000, 512, 8, 2.0)]);
    assert_eq!(find(&tables, 1024, 512), Some((8, Served::Bucket)));
    assert_eq!(find(&tables, 513, 257), Some((8, Served::Bucket)));
    assert_eq!(find(&tables, 512, 512), None, "another bucket");
    assert_eq!(find(&tables, 1025, 512), None, "another bucket");
    let other = info("other chip", "");
    assert_eq!(find_on(&tables, &other, 1024, 512), None, "another device");
    let mut second = info("chip", "");
    second.ordinal = 7;
    assert!(
        find_on(&tables, &second, 1024, 512).is_some(),
        "its number does not matter"
    );
}

#[test]
fn an_entry_that_loses_elsewhere_in_its_bucket_serves_its_own_sizes_alone() {
    let along = |m, names: &[&str]| {
        let mut entry = entry(m, 512, 8, 2.0);
        let names = names.iter().map(|name| String::from(*name));
        entry.measured.as_mut().unwrap().along = names.collect();
        entry
    };
    let narrow = |m| along(m, &[]);
    let tables = user(&[narrow(1000)]);
    assert_eq!(find(&tables, 1000, 512), Some((8, Served::Exact)));
    assert_eq!(find(&tables, 1024, 512), None);
    // Along m, and only there.
    let rows = user(&[along(1000, &["m"])]);
    assert_eq!(find(&rows, 1024, 512), Some((8, Served::Bucket)));
    assert_eq!(find(&rows, 1000, 500), None);
    let ends = user(&[along(256, &["m"]), along(1000, &["m"])]);
    assert_eq!(find(&ends, 500, 512), Some((8, Served::Between)));
    assert_eq!(find(&ends, 500, 500), None);
    let nonsense = user(&[along(1000, &["k"])]);
    assert_eq!(find(&nonsense, 1000, 512), None, "no size of it");
    // Nor is it a side of what lies between.
    let both = user(&[entry(256, 512, 8, 2.0), entry(1000, 512, 8, 2.0)]);
    assert_eq!(find(&both, 500, 512), Some((8, Served::Between)));
    let one = user(&[entry(256, 512, 8, 2.0), narrow(1000)]);
    assert_eq!(find(&one, 500, 512), None);
    let mixed = user(&[entry(900, 512, 8, 2.0), narrow(1000)]);
    assert_eq!(
        find(&mixed, 800, 512),
        None,
        "one of the two is known to lose there"
    );
}

/// The default, measured against itself at m.
fn default_won(m: u64) -> TunedEntry {
    let mut entry = entry(m, 512, 4, 1.0);
    entry.kernel = "plain".into();
    entry.version = 1;
    assert!(entry.keeps_default() && entry.fault().is_none());
    entry
}

#[test]
fn entries_of_one_bucket_that_contradict_each_other_serve_their_own_sizes_alone() {
    let at = |entries: &[TunedEntry], m| find(&user(entries), m, 512);
    let agreeing = [entry(600, 512, 8, 1.2), entry(1000, 512, 8, 2.0)];
    assert_eq!(at(&agreeing, 600), Some((8, Served::Exact)));
    assert_eq!(at(&agreeing, 1000), Some((8, Served::Exact)));
    assert_eq!(at(&agreeing, 800), Some((8, Served::Bucket)));
    let two_winners = [entry(600, 512, 8, 1.2), entry(1000, 512, 16, 2.0)];
    assert_eq!(at(&two_winners, 600), Some((8, Served::Exact)));
    assert_eq!(at(&two_winners, 1000), Some((16, Served::Exact)));
    assert_eq!(at(&two_winners, 800), None);
    let and_the_default = [entry(600, 512, 8, 3.0), default_won(1000)];
    assert_eq!(at(&and_the_default, 600), Some((8, Served::Exact)));
    assert_eq!(at(&and_the_default, 800), None);
    assert_eq!(at(&and_the_default, 1024), None, "nor the whole bucket's");
    // The entry that says that the default won is the one that serves there: nothing else does.
    assert_eq!(at(&and_the_default, 1000), Some((4, Served::Exact)));
    let defaults = [default_won(600), default_won(1000)];
    assert_eq!(at(&defaults, 800), Some((4, Served::Bucket)));
    // Two at the same sizes contradict nobody: the greater gain wins there.
    let same = [entry(600, 512, 8, 1.2), entry(600, 512, 16, 2.0)];
    assert_eq!(at(&same, 600), Some((16, Served::Exact)));
    assert_eq!(at(&same, 800), Some((16, Served::Bucket)));
    // What is no choice now contradicts nobody either.
    let mut outdated = two_winners.clone();
    outdated[1].version = 1;
    assert_eq!(at(&outdated, 800), Some((8, Served::Bucket)));
    // A hand-written one does: at its sizes it is the choice.
    let mut by_hand = two_winners.clone();
    by_hand[1].measured = None;
    assert_eq!(at(&by_hand, 800), None);
}

#[test]
fn a_bucket_that_contradicts_itself_is_the_defaults_and_no_corner() {
    let tables = |users: &[TunedEntry]| {
        let mut tables = user(users);
        let shipped = table("chip", "", &[entry(1024, 512, 16, 5.0)]);
        tables.add(&shipped, Origin::Shipped("gemm/tuned/chip.toml"));
        tables
    };
    let contradicting = tables(&[entry(600, 512, 8, 2.0), default_won(1000)]);
    assert_eq!(
        find(&contradicting, 800, 512),
        None,
        "what ships does not decide what the user has measured"
    );
    assert_eq!(
        find(&tables(&[]), 800, 512),
        Some((16, Served::Bucket)),
        "it does where the user has not"
    );
    let between = |middle: &[TunedEntry], m| {
        let ends = [entry(64, 512, 8, 2.0), entry(1024, 512, 8, 2.0)];
        find(&user(&[&ends, middle].concat()), m, 512)
    };
    assert_eq!(between(&[], 512), Some((8, Served::Between)));
    let agreeing = [entry(200, 512, 8, 2.0), entry(256, 512, 8, 2.0)];
    assert_eq!(between(&agreeing, 512), Some((8, Served::Between)));
    let contradicting = [entry(200, 512, 8, 2.0), entry(256, 512, 16, 2.0)];
    assert_eq!(between(&contradicting, 512), None, "inside the box");
    let corner = [entry(64, 512, 8, 2.0), entry(200, 512, 8, 2.0)];
    assert_eq!(
        find(
            &user(&[&corner[..], &[default_won(256)]].concat()),
            128,
            512
        ),
        None,
        "at its end"
    );
}

#[test]
fn the_users_table_comes_before_the_devices_and_that_before_the_architectures() {
    let mut tables = TunedTables::default();
    let sibling = table(
        "sibling",
        "arch",
        &[entry(64, 64, 4, 5.0), entry(256, 256, 4, 5.0)],
    );
    tables.add(&sibling, Origin::Shipped("gemm/tuned/sibling.toml"));
    let chip = info("chip", "arch");
    assert_eq!(find_on(&tables, &chip, 64, 64), Some((4, Served::Exact)));
    let shipped = table("chip", "arch", &[entry(64, 64, 8, 2.0)]);
    tables.add(&shipped, Origin::Shipped("gemm/tuned/chip.toml"));
    assert_eq!(find_on(&tables, &chip, 64, 64), Some((8, Served::Exact)));
    let users = table("chip", "arch", &[entry(64, 64, 16, 1.1)]);
    tables.add(&users, Origin::User("mine.toml".into()));
    assert_eq!(find_on(&tables, &chip, 64, 64), Some((16, Served::Exact)));
    // What only the architecture's table has is found there.
    assert_eq!(find_on(&tables, &chip, 256, 256), Some((4, Served::Exact)));
    assert_eq!(find_on(&tables, &info("chip", ""), 256, 256), None);
    // A user's table is of one device and of no other.
    assert_eq!(
        find_on(&tables, &info("third", "arch"), 64, 64),
        Some((4, Served::Exact))
    );
}

#[test]
fn an_entry_that_is_no_valid_choice_now_is_as_good_as_absent() {
    let with = |change: &dyn Fn(&mut TunedEntry)| {
        let mut changed = entry(64, 64, 8, 2.0);
        change(&mut changed);
        let mut tables = user(&[changed]);
        let shipped = table("chip", "", &[entry(64, 64, 16, 1.5)]);
        tables.add(&shipped, Origin::Shipped("gemm/tuned/chip.toml"));
        find(&tables, 64, 64).expect("the shipped one is there").0
    };
    assert_eq!(with(&|_| {}), 8);
    assert_eq!(with(&|e| e.measured = None), 8, "written by hand");
    assert_eq!(with(&|e| e.version = 1), 16, "another manifest version");
    assert_eq!(with(&|e| e.kernel = "gone".into()), 16, "no such kernel");
    assert_eq!(
        with(&|e| e.config = BTreeMap::new()),
        16,
        "a tunable is missing"
    );
    assert_eq!(
        with(&|e| e.config = BTreeMap::from([("TILE".into(), 5)])),
        16,
        "no value of the manifest"
    );
    let measured =
        |change: &dyn Fn(&mut Measured)| with(&|e| change(e.measured.as_mut().expect("there")));
    assert_eq!(
        measured(&|m| m.default_kernel = "gone".into()),
        16,
        "against another default"
    );
    assert_eq!(
        measured(&|m| m.seconds = 2e-3),
        16,
        "slower than the default"
    );
    assert_eq!(measured(&|m| m.error_over_bound = 1.5), 16, "wrong");
    for odd in [f64::NAN, f64::INFINITY, 0.0, -1.0] {
        assert_eq!(measured(&|m| m.seconds = odd), 16, "{odd}");
        assert_eq!(measured(&|m| m.default_seconds = odd), 16, "{odd}");
    }
    assert_eq!(measured(&|m| m.deviation = f64::NAN), 16);
    assert_eq!(measured(&|m| m.error_over_bound = f64::NAN), 16);
    assert_eq!(measured(&|m| m.samples = 0), 16);
    // The device may lack what the configuration needs.
    let tables = user(&[entry(64, 64, 16, 2.0)]);
    let mut small = info("chip", "");
    small.limits.local_memory = 512;
    assert_eq!(find_on(&tables, &small, 64, 64), None);
}

#[test]
fn what_buckets_on_both_sides_agree_on_serves_between_them() {
    let between = |entries: &[TunedEntry], m, n| find(&user(entries), m, n);
    let agreeing = [entry(64, 512, 8, 2.0), entry(256, 512, 8, 1.2)];
    assert_eq!(between(&agreeing, 128, 512), Some((8, Served::Between)));
    assert_eq!(between(&agreeing, 512, 512), None, "beyond the last");
    assert_eq!(between(&agreeing, 32, 512), None, "before the first");
    assert_eq!(between(&agreeing, 128, 256), None, "beside the line");
    let differing = [entry(64, 512, 8, 2.0), entry(256, 512, 16, 2.0)];
    assert_eq!(between(&differing, 128, 512), None, "they disagree");
    let far = [entry(64, 512, 8, 2.0), entry(2048, 512, 8, 2.0)];
    assert_eq!(between(&far, 256, 512), None, "five doublings apart");
    let near = [entry(64, 512, 8, 2.0), entry(1024, 512, 8, 2.0)];
    assert_eq!(between(&near, 256, 512), Some((8, Served::Between)));
    let mut unmeasured = agreeing.clone();
    unmeasured[0].measured = None;
    assert_eq!(
        between(&unmeasured, 128, 512),
        None,
        "a gain that nobody measured"
    );
    let mut outdated = agreeing.clone();
    outdated[1].version = 1;
    assert_eq!(
        between(&outdated, 128, 512),
        None,
        "a corner that is not valid"
    );
}

#[test]
fn a_point_inside_that_says_otherwise_keeps_a_box_from_serving() {
    let ends = [entry(64, 512, 8, 2.0), entry(1024, 512, 8, 2.0)];
    let with = |inner: TunedEntry, m| {
        let mut entries = ends.to_vec();
        entries.push(inner);
        find(&user(&entries), m, 512)
    };
    assert_eq!(
        with(entry(128, 512, 8, 2.0), 256),
        Some((8, Served::Between))
    );
    assert_eq!(with(entry(128, 512, 16, 2.0), 256), None, "another winner");
    // Where the default itself won, it runs, there and beside it.
    assert_eq!(with(default_won(128), 256), None);
    let tables = user(&[default_won(128)]);
    let key = TuneKey {
        op: "gemm",
        variant: "f32_f32_nn",
        sizes: &[("m", 128), ("n", 512)],
    };
    let candidates = [&DEFAULT, &FAST];
    assert!(
        tables
            .config(&key, &info("chip", ""), &candidates)
            .is_none()
    );
}

#[test]
fn all_corners_of_a_box_must_agree() {
    let mut corners = vec![
        entry(64, 64, 8, 2.0),
        entry(64, 256, 8, 2.0),
        entry(256, 64, 8, 2.0),
        entry(256, 256, 8, 2.0),
    ];
    assert_eq!(find(&user(&corners), 128, 128), Some((8, Served::Between)));
    assert_eq!(
        find(&user(&corners), 128, 64),
        Some((8, Served::Between)),
        "on an edge"
    );
    assert_eq!(
        find(&user(&corners[..3]), 128, 128),
        None,
        "one was not tuned"
    );
    corners[1] = entry(64, 256, 16, 2.0);
    assert_eq!(
        find(&user(&corners), 128, 128),
        None,
        "one has another winner"
    );
    // Two lines of one length cross here and say different things.
    let cross = [
        entry(64, 128, 8, 2.0),
        entry(256, 128, 8, 2.0),
        entry(128, 64, 16, 2.0),
        entry(128, 256, 16, 2.0),
    ];
    assert_eq!(find(&user(&cross), 128, 128), None);
}

#[test]
fn staleness_names_what_changed() {
    let mut device = info("chip", "");
    let fresh = Provenance::of(&FAST, &device, "2026-01-31", 7);
    assert_eq!(fresh.stale(&FAST, &device), Vec::<String>::new());
    device.driver_version = "another".into();
    let why = fresh.stale(&FAST, &device);
    assert_eq!(why.len(), 1);
    assert!(why[0].starts_with("driver was "), "{why:?}");
    let stale = TunedEntry {
        provenance: Some(fresh),
        ..entry(64, 64, 8, 2.0)
    };
    assert!(
        find(&user(&[stale]), 64, 64).is_some(),
        "stale entries are used"
    );
}

#[test]
fn exponents_round_up() {
    let pairs = [
        (0, 0),
        (1, 0),
        (2, 1),
        (3, 2),
        (4, 2),
        (5, 3),
        (u64::MAX, 64),
    ];
    for (size, expected) in pairs {
        assert_eq!(exponent(size), expected, "{size}");
    }
}

fn entries() -> impl Strategy<Value = Vec<TunedEntry>> {
    let tile = prop_oneof![Just(4i64), Just(8), Just(16)];
    let gain = prop_oneof![Just(0.5), Just(1.0), 1.0..4.0];
    // Several of one bucket, some at the same sizes; of this version and of two others.
    let size = || prop_oneof![Just(1u64), 2u64..4, 60u64..65, 120u64..129];
    let version = prop_oneof![4 => Just(2u32), 1 => 1u32..4];
    let one = (
        size(),
        size(),
        tile,
        gain,
        any::<bool>(),
        prop::sample::subsequence(vec!["m", "n"], 0..=2),
        version,
    );
    let one = one.prop_map(|(m, n, tile, gain, measured, along, version)| {
        let mut entry = entry(m, n, tile, gain);
        let along = along.into_iter().map(String::from).collect();
        entry.measured.as_mut().expect("it is").along = along;
        entry.measured = entry.measured.filter(|_| measured);
        entry.version = version;
        entry
    });
    prop::collection::vec(one, 0..20)
}

/// Sizes that were tuned, others of their buckets, and others between them.
fn asked() -> impl Iterator<Item = (u64, u64)> {
    const SIZES: [u64; 12] = [1, 2, 3, 4, 8, 16, 33, 60, 62, 64, 100, 128];
    SIZES.into_iter().flat_map(|m| SIZES.map(|n| (m, n)))
}

proptest! {
    /// However entries are spread over files and in whatever order the files are read, the same ones serve.
    #[test]
    fn the_choice_does_not_depend_on_any_order(entries in entries(), seed in any::<u64>(), cut in 0usize..20) {
        let chip = info("chip", "");
        let mut other = entries.clone();
        let mut state = seed;
        for last in (1..other.len()).rev() {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            other.swap(last, (state >> 33) as usize % (last + 1));
        }
        let (first, second) = other.split_at(cut.min(other.len()));
        let mut split = TunedTables::default();
        split.add(&table("chip", "", first), Origin::User("a.toml".into()));
        split.add(&table("chip", "", second), Origin::User("b.toml".into()));
        let whole = user(&entries);
        for (m, n) in asked() {
            prop_assert_eq!(find_on(&whole, &chip, m, n), find_on(&split, &chip, m, n));
        }
    }

    /// Whatever serves was measured as its kind of serving asks for, and nothing that serves was measured slower.
    #[test]
    fn nothing_serves_without_its_proof(entries in entries()) {
        let chip = info("chip", "");
        let tables = user(&entries);
        let usable: Vec<_> = entries.iter().filter(|entry| entry.fault().is_none() && entry.version == 2).collect();
        let bucket = |m, n| (exponent(m), exponent(n));
        let size = |entry: &TunedEntry, name: &str| entry.sizes[name];
        let place = |entry: &TunedEntry| bucket(size(entry, "m"), size(entry, "n"));
        let gain = |entry: &TunedEntry| entry.gain().unwrap_or(0.0);
        for (m, n) in asked() {
            let here: Vec<_> = usable.iter().filter(|entry| place(entry) == bucket(m, n)).collect();
            let exact: Vec<_> = here.iter().filter(|entry| (size(entry, "m"), size(entry, "n")) == (m, n)).collect();
            let Some((tile, served)) = find_on(&tables, &chip, m, n) else {
                prop_assert!(exact.is_empty(), "what was tuned at these sizes serves");
                continue;
            };
            match served {
                Served::Exact => {
                    let best = exact.iter().map(|entry| gain(entry)).fold(0.0, f64::max);
                    prop_assert!(exact.iter().any(|entry| entry.config["TILE"] == tile && gain(entry) == best));
                }
                Served::Bucket => {
                    prop_assert!(exact.is_empty() && !here.is_empty());
                    // What was measured better at its sizes speaks for them, and that may be of its own sizes alone.
                    let outdone = |entry: &TunedEntry| here.iter().any(|other| other.sizes == entry.sizes && gain(other) > gain(entry));
                    let winners: Vec<_> = here.iter().filter(|entry| !outdone(entry)).collect();
                    // Which of them speak of these sizes: the others were tuned for other weights, as it were.
                    for entry in winners.iter().filter(|entry| entry.reaches(&[("m", m), ("n", n)])) {
                        let beaten = winners.iter().any(|other| other.sizes == entry.sizes && other.config["TILE"] == tile);
                        prop_assert!(beaten, "{} won at {}", entry.config["TILE"], entry);
                    }
                    let says = winners.iter().any(|entry| entry.config["TILE"] == tile && entry.reaches(&[("m", m), ("n", n)]));
                    prop_assert!(says, "nothing says that {} does not lose there", tile);
                }
                Served::Between => {
                    prop_assert!(here.is_empty(), "what was tuned here decides here");
                    let asked = [("m", m), ("n", n)];
                    let (m, n) = bucket(m, n);
                    let proven = |a: &dyn Fn(u32) -> bool, b: &dyn Fn(u32) -> bool| {
                        usable.iter().any(|entry| {
                            let (m, n) = place(entry);
                            entry.config["TILE"] == tile && a(m) && b(n) && gain(entry) > 1.0 && entry.reaches(&asked)
                        })
                    };
                    prop_assert!(proven(&|a| a <= m, &|b| b <= n) && proven(&|a| a >= m, &|b| b >= n));
                }
            }
        }
    }

    /// Merging is commutative, associative and idempotent, to the last byte of the file.
    #[test]
    fn merging_does_not_depend_on_order(a in entries(), b in entries(), c in entries()) {
        let [a, b, c] = [a, b, c].map(|entries| table("chip", "arch", &entries));
        let merge = |x: &TunedTable, y: &TunedTable| {
            let mut merged = x.clone();
            merged.merge(y.clone()).expect("of one device");
            merged
        };
        let text = |table: &TunedTable| table.to_toml().expect("can be written");
        prop_assert_eq!(text(&merge(&a, &b)), text(&merge(&b, &a)));
        prop_assert_eq!(text(&merge(&merge(&a, &b), &c)), text(&merge(&a, &merge(&b, &c))));
        let once = merge(&a, &b);
        prop_assert_eq!(text(&merge(&once, &once)), text(&once));
        // Of each kernel the best of its latest version is there, once.
        for entry in a.entries.iter().chain(&b.entries) {
            let kept: Vec<_> = once.entries.iter().filter(|kept| kept.same_key(entry)).collect();
            prop_assert!(kept.len() == 1 && kept[0].precedence(entry).is_ge());
            prop_assert!(entry.fault().is_some() || kept[0].version >= entry.version);
        }
    }
}

/// What ships is listed, and every entry of it could be chosen by this version.
#[test]
fn the_tables_that_ship_are_listed_and_sound() {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels");
    let mut files = Vec::new();
    for op in std::fs::read_dir(&kernels).unwrap() {
        let op = op.unwrap().file_name().into_string().unwrap();
        for path in table_files(&kernels.join(&op).join("tuned")) {
            let name = path.file_name().unwrap().to_str().unwrap();
            files.push(format!("kernels/{op}/tuned/{name}"));
        }
    }
    let mut listed: Vec<_> = ropeway::kernels::TUNED
        .iter()
        .map(|(path, _)| (*path).to_owned())
        .collect();
    files.sort();
    listed.sort();
    assert_eq!(listed, files);
    for (path, text) in ropeway::kernels::TUNED {
        let table = TunedTable::parse(text).unwrap_or_else(|error| panic!("{path}: {error}"));
        for entry in &table.entries {
            assert_eq!(entry.fault(), None, "{path}: {entry}");
            assert!(
                entry.measured.is_some() && entry.provenance.is_some(),
                "{path}: {entry}"
            );
            let kind = ropeway::kernels::op(&entry.op).unwrap_or_else(|| panic!("{path}: {entry}"));
            let kernel = kind
                .kernels()
                .iter()
                .find(|kernel| kernel.name == entry.kernel);
            assert_eq!(
                kernel.map(|kernel| kernel.version),
                Some(entry.version),
                "{path}: {entry}"
            );
        }
    }
}
