//! What environment variables decide, read once when the library is first called, and which version of CANN a library file stands for.

use std::path::PathBuf;
use std::str::FromStr;

/// The settings of a process.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The version that the library stands for.
    pub profile: Profile,
    /// `ROPEWAY_EMULATED_CANN_DEVICES`: how many devices there are (1).
    pub devices: u32,
    /// `ROPEWAY_EMULATED_CANN_MEMORY`: bytes of memory of each (4 GiB).
    pub memory: u64,
    /// `ROPEWAY_EMULATED_CANN_SEED`: decides the order of streams and of cores (0).
    pub seed: u64,
    /// `ROPEWAY_EMULATED_CANN_REPORT`: the file that breaches are appended to (standard error).
    pub report: Option<PathBuf>,
    /// `ROPEWAY_EMULATED_CANN_FAULT`: failures on demand (see [`super::faults`]).
    pub fault: String,
    /// `ROPEWAY_EMULATED_CANN_UNREAD`: `fail` ends a process that leaves breaches unread with a code of its own, `report` only writes them.
    pub fail_unread: bool,
}

/// A version of CANN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Profile {
    /// `8` of `8.1`.
    pub major: u8,
    /// `1` of `8.1`.
    pub minor: u8,
}

/// The versions that differ in their symbols.
pub const PROFILES: [Profile; 4] = [
    Profile { major: 8, minor: 1 },
    Profile { major: 8, minor: 5 },
    Profile { major: 9, minor: 0 },
    Profile { major: 9, minor: 1 },
];

impl FromStr for Profile {
    type Err = String;

    fn from_str(text: &str) -> Result<Profile, String> {
        let found = PROFILES.into_iter().find(|known| known.to_string() == text);
        found.ok_or_else(|| format!("no profile {text}; there are 8.1, 8.5, 9.0 and 9.1"))
    }
}

impl std::fmt::Display for Profile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What stands before the version in a library file; the installer looks for it.
pub const MARKER: [u8; 29] = *b"ropeway emulated CANN version";

/// As a structure, so that marker and version stay together in the file.
#[repr(C)]
struct Stamp {
    marker: [u8; 29],
    version: [u8; 3],
}

#[used]
static STAMP: Stamp = Stamp {
    marker: MARKER,
    version: *b"9.0",
};

impl Profile {
    /// The version that this library file stands for.
    pub fn of_library() -> Profile {
        // SAFETY: a plain static; read as volatile since the installer changes it in the file, behind the compiler's back.
        let version = unsafe { std::ptr::read_volatile(&raw const STAMP.version) };
        let text = String::from_utf8_lossy(&version);
        text.parse().unwrap_or(PROFILES[2])
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(format!("ROPEWAY_EMULATED_CANN_{name}")).ok()
}

fn number<T: FromStr>(name: &str, otherwise: T) -> T {
    let Some(text) = variable(name) else {
        return otherwise;
    };
    text.parse().unwrap_or_else(|_| {
        eprintln!("emulated CANN: ROPEWAY_EMULATED_CANN_{name}={text} is no number, and ignored");
        otherwise
    })
}

impl Settings {
    /// Reads the environment.
    pub fn read() -> Settings {
        Settings {
            profile: Profile::of_library(),
            devices: number("DEVICES", 1),
            memory: number("MEMORY", 4 << 30),
            seed: number("SEED", 0),
            report: variable("REPORT").map(PathBuf::from),
            fault: variable("FAULT").unwrap_or_default(),
            fail_unread: variable("UNREAD").is_none_or(|what| what != "report"),
        }
    }
}

/// A small generator (splitmix64), so that a seed decides the order of things.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}
