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
fn the_users_table_comes_before_the_devices_and_that_before_the_architectures() {
    let mut tables = TunedTables::default();
    let sibling = table(
        "sibling",
        "arch",
        &[entry(64, 64, 4, 5.0), entry(256, 256, 4, 5.0)],
    );
    tables.add(&sibling, Origin::Shipped("gemm/tuned/sibling.toml"));
    let chip = info("chip", "arch");
    assert_eq!(find_on(&tables, &chip, 64, 64), Some((4, Served::Bucket)));
    let shipped = table("chip", "arch", &[entry(64, 64, 8, 2.0)]);
    tables.add(&shipped, Origin::Shipped("gemm/tuned/chip.toml"));
    assert_eq!(find_on(&tables, &chip, 64, 64), Some((8, Served::Bucket)));
    let users = table("chip", "arch", &[entry(64, 64, 16, 1.1)]);
    tables.add(&users, Origin::User("mine.toml".into()));
    assert_eq!(find_on(&tables, &chip, 64, 64), Some((16, Served::Bucket)));
    // What only the architecture's table has is found there.
    assert_eq!(find_on(&tables, &chip, 256, 256), Some((4, Served::Bucket)));
    assert_eq!(find_on(&tables, &info("chip", ""), 256, 256), None);
    // A user's table is of one device and of no other.
    assert_eq!(
        find_on(&tables, &info("third", "arch"), 64, 64),
        Some((4, Served::Bucket))
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
    let mut default_won = entry(128, 512, 4, 1.0);
    default_won.kernel = "plain".into();
    default_won.version = 1;
    assert!(default_won.keeps_default() && default_won.fault().is_none());
    assert_eq!(with(default_won.clone(), 256), None);
    let tables = user(&[default_won]);
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
    let one = (0u32..7, 0u32..7, tile, gain, any::<bool>());
    let one = one.prop_map(|(m, n, tile, gain, measured)| {
        let mut entry = entry(1 << m, 1 << n, tile, gain);
        entry.measured = entry.measured.filter(|_| measured);
        entry
    });
    prop::collection::vec(one, 0..20)
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
        for m in 0..7 {
            for n in 0..7 {
                let (m, n) = (1 << m, 1 << n);
                prop_assert_eq!(find_on(&whole, &chip, m, n), find_on(&split, &chip, m, n));
            }
        }
    }

    /// Whatever serves between buckets was measured faster than the default on both sides of the problem, along every size that differs,
    /// and nothing that serves was measured slower.
    #[test]
    fn nothing_serves_that_was_measured_slower(entries in entries()) {
        let chip = info("chip", "");
        let tables = user(&entries);
        let sound: Vec<_> = entries.iter().filter(|entry| entry.fault().is_none()).collect();
        for (m, n) in (0..49).map(|at| (at / 7, at % 7)) {
            let Some((tile, served)) = find_on(&tables, &chip, 1 << m, 1 << n) else {
                continue;
            };
            let proofs: Vec<_> = sound
                .iter()
                .filter(|entry| entry.config["TILE"] == tile)
                .map(|entry| (exponent(entry.sizes["m"]), exponent(entry.sizes["n"]), entry.gain()))
                .collect();
            let at_its_bucket = |(a, b, _): &(u32, u32, Option<f64>)| (*a, *b) == (m, n);
            match served {
                Served::Bucket => prop_assert!(proofs.iter().any(at_its_bucket)),
                Served::Between => {
                    let proven = |a: &dyn Fn(u32) -> bool, b: &dyn Fn(u32) -> bool| {
                        proofs.iter().any(|(m, n, gain)| a(*m) && b(*n) && gain.is_some_and(|gain| gain > 1.0))
                    };
                    prop_assert!(proven(&|a| a <= m, &|b| b <= n) && proven(&|a| a >= m, &|b| b >= n));
                    prop_assert!(!sound.iter().any(|entry| {
                        entry.measured.is_some() && (exponent(entry.sizes["m"]), exponent(entry.sizes["n"])) == (m, n)
                    }), "what was tuned here decides here");
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
        // The best of each bucket is there.
        for entry in a.entries.iter().chain(&b.entries) {
            prop_assert!(once.entries.iter().any(|kept| kept.same_key(entry) && kept.preference(entry).is_ge()));
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
