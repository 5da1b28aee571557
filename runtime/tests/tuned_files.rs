//! Table files: written so that nothing is lost, read so that nothing in them does harm.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use ropeway::core::spec::Random;
use ropeway::tuned::{Measured, Provenance, TunedEntry, TunedTable, TunedTables};

fn entry(op: &str, m: u64) -> TunedEntry {
    TunedEntry {
        op: op.into(),
        variant: "f32_f32_nn".into(),
        sizes: BTreeMap::from([("m".into(), m), ("n".into(), 512)]),
        kernel: "gemm_packed".into(),
        version: 1,
        config: BTreeMap::from([("TILE".into(), 8)]),
        measured: Some(Measured {
            seconds: 1e-3,
            deviation: 1e-6,
            samples: 9,
            default_kernel: "gemm_tiled".into(),
            default_seconds: 2e-3,
            default_deviation: 0.0,
            error_over_bound: 0.25,
            along: vec!["m".into(), "n".into()],
        }),
        provenance: Some(Provenance {
            driver: "1.2 \"quoted\" \\ é".into(),
            compiler: String::new(),
            source: "0011223344556677".into(),
            ropeway: "0.1.0".into(),
            date: "2026-01-31".into(),
            seed: 7,
        }),
    }
}

fn table(entries: Vec<TunedEntry>) -> TunedTable {
    TunedTable {
        device: "chip".into(),
        backend: "opencl".into(),
        architecture: String::new(),
        entries,
    }
}

fn text() -> String {
    let entries = vec![entry("gemm", 64), entry("gemm", 4096), entry("moe_ffn", 8)];
    table(entries).to_toml().expect("can be written")
}

/// What `read` warns of, line by line.
fn warnings(read: impl FnOnce()) -> Vec<String> {
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);
    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("not poisoned").write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(move || writer.clone())
        .with_ansi(false)
        .finish();
    tracing::subscriber::with_default(subscriber, read);
    let bytes = lines.0.lock().expect("not poisoned").clone();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    text.lines().map(str::to_owned).collect()
}

fn load(directory: &Path) -> (TunedTables, Vec<String>) {
    let mut tables = TunedTables::default();
    let said = warnings(|| tables.add_directory(directory));
    (tables, said)
}

#[test]
fn a_written_table_reads_back_and_reads_like_this() {
    let table = table(vec![entry("gemm", 64)]);
    let text = table.to_toml().unwrap();
    assert_eq!(TunedTable::parse(&text).unwrap(), table);
    let expected = r#"device = "chip"
backend = "opencl"
architecture = ""

[[entry]]
op = "gemm"
variant = "f32_f32_nn"
sizes = { m = 64, n = 512 }
kernel = "gemm_packed"
version = 1
config = { TILE = 8 }
measured = { seconds = 0.001, deviation = 0.000001, samples = 9, default_kernel = "gemm_tiled", default_seconds = 0.002, default_deviation = 0.0, error_over_bound = 0.25, along = ["m", "n"] }
"#;
    assert!(text.contains(expected), "{text}");
}

#[test]
fn every_bad_file_gives_one_warning_with_its_name_and_line_and_hides_no_other() {
    let bad: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", b"".to_vec(), "line 1: missing field `device`"),
        (
            "truncated",
            text().as_bytes()[..text().len() / 2].to_vec(),
            "line ",
        ),
        ("json", b"{\"device\": 1}".to_vec(), "line 1: "),
        ("binary", (0..=255u8).cycle().take(5000).collect(), "line "),
        (
            "latin1",
            b"device = 'x'\nbackend = '\xe9'".to_vec(),
            "line 2: not UTF-8",
        ),
        (
            "field",
            text().replace("version", "verzion").into_bytes(),
            "line 11: ",
        ),
        (
            "types",
            text().replace("m = 64", "m = 'x'").into_bytes(),
            "line 9: ",
        ),
        (
            "negative",
            text().replace("m = 64", "m = -1").into_bytes(),
            "line 9: ",
        ),
        (
            "float",
            text().replace("m = 64", "m = 1e3").into_bytes(),
            "line 9: ",
        ),
        (
            "huge",
            text()
                .replace("m = 64", "m = 99999999999999999999")
                .into_bytes(),
            "line 9: ",
        ),
        (
            "twice",
            text()
                .replace("[[entry]]", "device = 'x'\n[[entry]]")
                .into_bytes(),
            "line ",
        ),
        (
            "deep",
            format!("device = {}", "[".repeat(500_000)).into_bytes(),
            "line 1: ",
        ),
        ("tables", "[a.".repeat(100_000).into_bytes(), "line 1: "),
        ("large", vec![b'#'; (4 << 20) + 1], "larger than"),
        (
            "control",
            b"device = \"\\u001b[2J\"\nbackend = 'x'".to_vec(),
            "line 1: ",
        ),
        ("key", b"\"\\u001b[2J\" = 1".to_vec(), "line 1: "),
        // Entries that can be read and not be believed.
        (
            "slower",
            text()
                .replace("seconds = 0.001", "seconds = 0.5")
                .into_bytes(),
            "line 6: gemm f32_f32_nn m=64 n=512: measured slower",
        ),
        (
            "wrong",
            text()
                .replace("error_over_bound = 0.25", "error_over_bound = 7")
                .into_bytes(),
            "and 2 more",
        ),
        (
            "nan",
            text()
                .replace("seconds = 0.001", "seconds = nan")
                .into_bytes(),
            "line 6: ",
        ),
        (
            "name",
            text()
                .replace("\"moe_ffn\"", "\"moe\\u001bffn\"")
                .into_bytes(),
            "is no name",
        ),
    ];
    for (name, bytes, expected) in bad {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("good.toml"), text()).unwrap();
        let path = directory.path().join(format!("{name}.toml"));
        fs::write(&path, &bytes).unwrap();
        let (tables, said) = load(directory.path());
        assert_eq!(said.len(), 1, "{name}: {said:#?}");
        let file = path.display().to_string();
        assert!(
            said[0].contains(&file) && said[0].contains(expected),
            "{name}: {said:#?}"
        );
        assert!(!said[0].contains('\u{1b}'), "{name}: {said:#?}");
        assert!(
            format!("{tables:?}").contains("4096"),
            "{name}: the good file is read"
        );
        assert_eq!(
            fs::read(&path).unwrap(),
            bytes,
            "reading leaves a file as it is"
        );
    }
}

#[cfg(unix)]
#[test]
fn what_is_no_file_is_passed_over_without_waiting() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir(at("directory.toml")).unwrap();
    symlink("/dev/zero", at("endless.toml")).unwrap();
    symlink(at("loop.toml"), at("loop.toml")).unwrap();
    let pipe = Command::new("mkfifo").arg(at("pipe.toml")).status();
    assert!(pipe.unwrap().success());
    fs::write(at("kept.txt"), text()).unwrap();
    symlink(at("kept.txt"), at("link.toml")).unwrap();
    symlink(at("nowhere"), at("dangling.toml")).unwrap();
    fs::write(at("locked.toml"), text()).unwrap();
    fs::set_permissions(at("locked.toml"), fs::Permissions::from_mode(0o000)).unwrap();
    let readable = fs::read(at("locked.toml")).is_ok();
    let (tables, said) = load(directory.path());
    // Root reads what nobody may read.
    assert_eq!(said.len(), 4 + usize::from(!readable), "{said:#?}");
    for name in ["directory.toml", "endless.toml", "loop.toml", "pipe.toml"] {
        assert!(
            said.iter().any(|line| line.contains(name)),
            "{name}: {said:#?}"
        );
    }
    assert!(
        format!("{tables:?}").contains("4096"),
        "a link to a table is followed"
    );
}

#[test]
fn a_damaged_file_is_set_aside_and_not_overwritten() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("chip.toml");
    let change = |table: &mut TunedTable| {
        table.device = "chip".into();
        table.backend = "opencl".into();
        table.insert(entry("gemm", 64));
    };
    for (number, name) in [
        "chip.toml.damaged",
        "chip.toml.damaged-2",
        "chip.toml.damaged-3",
    ]
    .into_iter()
    .enumerate()
    {
        let damage = format!("damage {number}");
        fs::write(&path, &damage).unwrap();
        assert!(TunedTable::read(&path).is_err());
        let said = warnings(|| TunedTable::update(&path, change).unwrap());
        assert_eq!(said.len(), 1, "{said:#?}");
        assert!(
            said[0].contains("line 1: ") && said[0].contains(name),
            "{said:#?}"
        );
        assert_eq!(
            fs::read_to_string(directory.path().join(name)).unwrap(),
            damage
        );
        assert_eq!(TunedTable::read(&path).unwrap().unwrap().entries.len(), 1);
    }
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    fs::write(path.join("inside"), "kept").unwrap();
    TunedTable::update(&path, change).unwrap();
    let inside = directory.path().join("chip.toml.damaged-4/inside");
    assert_eq!(fs::read_to_string(inside).unwrap(), "kept");
    assert_eq!(TunedTable::read(&path).unwrap().unwrap().entries.len(), 1);
    TunedTable::update(&path, |table| table.insert(entry("vast", u64::MAX))).unwrap();
    let vast = TunedTable::read(&path).unwrap().unwrap();
    assert_eq!(vast.entries[1].sizes["m"], u64::MAX);
    TunedTable::update(&path, |table| drop(table.entries.pop())).unwrap();
    // An entry that is only not to be believed is no damage: it stays for `tuned verify` to name.
    TunedTable::update(&path, |table| {
        let mut slower = entry("gemm", 4096);
        slower.measured.as_mut().unwrap().seconds = 1.0;
        table.insert(slower);
    })
    .unwrap();
    TunedTable::update(&path, |table| table.insert(entry("gemm", 8))).unwrap();
    assert_eq!(TunedTable::read(&path).unwrap().unwrap().entries.len(), 3);
}

/// Tuned anew, an entry takes the place of all that was known of its sizes; merged, the later version of each kernel stays.
#[test]
fn a_later_version_takes_the_place_of_an_earlier_one() {
    let of = |kernel: &str, version, gain: f64| {
        let mut made = entry("gemm", 600);
        made.kernel = kernel.into();
        made.version = version;
        made.measured.as_mut().unwrap().seconds = 2e-3 / gain;
        made
    };
    let kept = |table: &TunedTable| -> Vec<_> {
        let entries = table.entries.iter();
        entries
            .map(|e| (e.kernel.clone(), e.version, e.sizes["m"]))
            .collect()
    };
    let mut tuned = table(vec![
        of("packed", 1, 3.0),
        of("tiled", 7, 1.5),
        entry("gemm", 1000),
    ]);
    tuned.insert(of("packed", 2, 1.1));
    let neighbour = ("gemm_packed".to_owned(), 1, 1000);
    assert_eq!(kept(&tuned), [("packed".into(), 2, 600), neighbour.clone()]);

    let old = table(vec![of("packed", 1, 3.0), of("tiled", 7, 1.5)]);
    let mut both = tuned.clone();
    both.merge(old.clone()).unwrap();
    let expected = [
        ("packed".into(), 2, 600),
        ("tiled".into(), 7, 600),
        neighbour,
    ];
    assert_eq!(kept(&both), expected);
    let mut other = old;
    other.merge(tuned).unwrap();
    assert_eq!(other.to_toml().unwrap(), both.to_toml().unwrap());
    // One that may not be used does not drive out one that may.
    both.merge(table(vec![of("packed", 3, 0.5)])).unwrap();
    assert_eq!(kept(&both), expected);
}

#[test]
fn what_cannot_be_written_leaves_the_file_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("chip.toml");
    fs::write(&path, text()).unwrap();
    let nameless = TunedTable::update(&path, |table| table.device.clear());
    assert!(nameless.unwrap_err().context().contains("a device"));
    let vast = TunedTable::update(&path, |table| {
        table.entries[0].provenance.as_mut().unwrap().driver = "x".repeat(5 << 20);
    });
    assert!(
        vast.unwrap_err().context().contains("larger"),
        "it could not be read back"
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), text());
    assert!(
        TunedTable::read(&directory.path().join("absent.toml"))
            .unwrap()
            .is_none()
    );
}

/// Set for a child process: the file, and the child's number.
const CHILD: &str = "ROPEWAY_TEST_TUNED_CHILD";

/// Updates of each child.
const UPDATES: u64 = 25;

/// Not a test by itself: what each of the processes does.
#[test]
fn child_of_the_eight() {
    let Ok(job) = std::env::var(CHILD) else {
        return;
    };
    let (number, path) = job.split_once(' ').expect("number and path");
    let path = Path::new(path);
    for update in 0..UPDATES {
        TunedTable::update(path, |table| {
            table.device = "chip".into();
            table.backend = "opencl".into();
            table.insert(entry(&format!("op_{number}_{update}"), 64));
        })
        .expect("an update");
        // A reader never meets half a file.
        let read = TunedTable::read(path)
            .expect("a table")
            .expect("it is there");
        let own = format!("op_{number}_{update}");
        assert!(read.entries.iter().any(|entry| entry.op == own));
        let mut tables = TunedTables::default();
        let said = warnings(|| tables.add_directory(path.parent().expect("a directory")));
        assert_eq!(said, Vec::<String>::new());
    }
}

#[test]
fn eight_processes_lose_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("chip.toml");
    let children: Vec<Child> = (0..8)
        .map(|number| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "child_of_the_eight"])
                .env(CHILD, format!("{number} {}", path.display()))
                .stdout(std::process::Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let table = TunedTable::read(&path).unwrap().unwrap();
    assert_eq!(table.entries.len(), 8 * UPDATES as usize);
    let names: Vec<_> = fs::read_dir(directory.path())
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "chip.toml" && name != ".chip.toml.lock")
        .collect();
    assert_eq!(names, Vec::<String>::new(), "nothing is left over");
}

/// A writer that is killed in the middle leaves a whole table, old or new.
#[test]
fn killed_writers_leave_a_whole_table() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("chip.toml");
    fs::write(&path, text()).unwrap();
    for round in 0..12u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_of_the_eight"])
            .env(CHILD, format!("{round} {}", path.display()))
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(3 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        let table = TunedTable::read(&path).expect("whole").expect("there");
        assert!(table.entries.len() >= 3);
        TunedTable::update(&path, |table| table.insert(entry("after", round)))
            .expect("a dead writer holds no lock");
    }
}

fn names() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9_]{0,6}"
}

/// Anything that can be typed in, sound or not.
fn any_entry() -> impl Strategy<Value = TunedEntry> {
    let map = || prop::collection::btree_map(names(), 0u64..(1 << 62), 0..4);
    let config = prop::collection::btree_map(names(), any::<i64>(), 0..4);
    let number = || any::<f64>().prop_filter("NaN equals nothing", |number| !number.is_nan());
    let measured = (
        number(),
        number(),
        any::<u32>(),
        names(),
        number(),
        number(),
        number(),
    );
    let measured =
        measured.prop_map(
            |(seconds, deviation, samples, default_kernel, a, b, c)| Measured {
                seconds,
                deviation,
                samples,
                default_kernel,
                default_seconds: a,
                default_deviation: b,
                error_over_bound: c,
                along: vec!["m".into(), "n".into()],
            },
        );
    let provenance = (any::<String>(), any::<String>(), 0u64..(1 << 62));
    let provenance = provenance.prop_map(|(driver, source, seed)| Provenance {
        driver,
        compiler: "c\n\t\"'".into(),
        source,
        ropeway: "0.1.0".into(),
        date: "2026-01-31".into(),
        seed,
    });
    let key = (
        names(),
        any::<String>(),
        names(),
        any::<u32>(),
        map(),
        config,
    );
    let optional = (prop::option::of(measured), prop::option::of(provenance));
    (key, optional).prop_map(
        |((op, variant, kernel, version, sizes, config), (measured, provenance))| TunedEntry {
            op,
            variant,
            sizes,
            kernel,
            version,
            config,
            measured,
            provenance,
        },
    )
}

proptest! {
    #[test]
    fn every_table_reads_back_as_it_was_written(entries in prop::collection::vec(any_entry(), 0..4), device in "[^\\p{Cc}]{1,20}") {
        let mut written = table(Vec::new());
        written.device = device;
        entries.into_iter().for_each(|entry| written.insert(entry));
        let text = written.to_toml().expect("can be written");
        let read = TunedTable::parse(&text).expect("can be read");
        prop_assert_eq!(&read, &written);
        prop_assert_eq!(read.to_toml().expect("can be written"), text);
    }

    /// Bytes that were changed, lost or repeated: a table or an error with a line, and what is a table can be looked through and written.
    #[test]
    fn a_damaged_table_is_read_or_refused(seed in any::<u64>()) {
        let bytes = damaged(seed);
        survives(&bytes);
    }
}

/// A sound table with something wrong in a few places.
fn damaged(seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut bytes = text().into_bytes();
    const PIECES: [&str; 16] = [
        "nan",
        "inf",
        "-1",
        "1e999",
        "[[entry]]\n",
        "{",
        "}",
        "[",
        "\"",
        "'''",
        "\u{0}",
        "\n",
        "= 9223372036854775808",
        "\u{202e}",
        "#",
        "x.y.z = 1\n",
    ];
    for _ in 0..1 + random.below(6) {
        let at = random.below(bytes.len() as u64) as usize;
        let end = (at + random.below(60) as usize).min(bytes.len());
        match random.below(5) {
            0 => bytes[at] = random.next() as u8,
            1 => drop(bytes.drain(at..end)),
            2 => bytes.truncate(at.max(1)),
            3 => {
                let copy = bytes[at..end].to_vec();
                bytes.splice(end..end, copy);
            }
            _ => {
                let piece = PIECES[random.below(16) as usize];
                bytes.splice(at..end, piece.bytes());
            }
        }
        if bytes.is_empty() {
            break;
        }
    }
    bytes
}

fn survives(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    match TunedTable::parse(text) {
        Err(error) => assert!(error.context().starts_with("line "), "{error}"),
        Ok(table) => {
            let mut tables = TunedTables::default();
            tables.add(&table, ropeway::tuned::Origin::User("x".into()));
            let again = table.to_toml().expect("what was read can be written");
            TunedTable::parse(&again).expect("and read again");
            let mut merged = table.clone();
            merged.take_faulty();
            merged.merge(table).expect("of one device");
        }
    }
}

/// More seeds than the property test has time for; `ROPEWAY_FUZZ=100000` for a night.
#[test]
fn thousands_of_damaged_tables() {
    let rounds = std::env::var("ROPEWAY_FUZZ").ok();
    let rounds = rounds.and_then(|text| text.parse().ok()).unwrap_or(3000);
    let mut sound = 0;
    for seed in 0..rounds {
        let bytes = damaged(seed);
        survives(&bytes);
        sound += u64::from(
            std::str::from_utf8(&bytes).is_ok_and(|text| TunedTable::parse(text).is_ok()),
        );
    }
    assert!(
        sound > 0 && sound < rounds,
        "both kinds were met: {sound} of {rounds}"
    );
}
