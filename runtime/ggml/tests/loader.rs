//! The plugin as ggml loads it, through its two entries, by hosts that it does not know: each is refused with the reason, and none is called
//! by a layout that it may not have.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A host with a release of its own: enough of ggml for the plugin to decide. It prints what the entries answer.
const HOST: &str = r#"
#include <dlfcn.h>
#include <stdio.h>
#include <stddef.h>
#ifdef RELEASE
const char * ggml_version(void) { return RELEASE; }
size_t ggml_tensor_overhead(void) { return OVERHEAD; }
#endif
int main(int argc, char ** argv) {
  void * plugin = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  if (!plugin) { fprintf(stderr, "%s\n", dlerror()); return 2; }
  int (*score)(void) = (int (*)(void)) dlsym(plugin, "ggml_backend_score");
  void * (*init)(void) = (void * (*)(void)) dlsym(plugin, "ggml_backend_init");
  printf("%d %d\n", score(), init() != NULL);
  return 0;
}
"#;

/// The library beside this test's own program.
fn plugin() -> PathBuf {
    let program = std::env::current_exe().expect("a test has a program");
    let folder = program.parent().expect("target/<profile>/deps");
    let built = [folder, folder.parent().expect("target/<profile>")];
    let built = built.map(|folder| folder.join("libggml_ropeway.so"));
    let found = built.into_iter().find(|library| library.exists());
    found.expect("cargo builds a package's library before its tests")
}

/// What a host of this release and tensor size gets: the answers, and what was logged.
fn load(folder: &Path, release: Option<(&str, usize)>) -> (String, String) {
    let (source, program) = (folder.join("host.c"), folder.join("host"));
    std::fs::write(&source, HOST).expect("a file in a temporary folder");
    let mut compile = Command::new("cc");
    compile
        .arg(&source)
        .arg("-o")
        .arg(&program)
        .arg("-rdynamic");
    if let Some((release, overhead)) = release {
        compile.arg(format!("-DRELEASE=\"{release}\""));
        compile.arg(format!("-DOVERHEAD={overhead}"));
    }
    // Rust's own linker on this platform is cc.
    let compiled = compile.arg("-ldl").output().expect("a C compiler");
    assert!(compiled.status.success(), "{compiled:?}");
    let ran = Command::new(&program).arg(plugin()).output();
    let ran = ran.expect("a program that was just compiled");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&ran.stdout), text(&ran.stderr))
}

#[test]
#[cfg(target_os = "linux")]
fn hosts_that_are_not_known_are_refused_with_the_reason() {
    let overhead = ggml_ropeway::abi::TENSOR_OVERHEAD;
    for (release, reason) in [
        (None, "the process has no function ggml_version"),
        (Some(("0.9.4", overhead)), "this is ggml 0.9.4"),
        (Some(("0.25.3", overhead + 8)), "it was changed"),
        (
            Some(("0.25.3", overhead)),
            "the process has no function ggml_op_name",
        ),
    ] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (answers, log) = load(folder.path(), release);
        assert_eq!(answers, "0 0\n", "{release:?}: {log}");
        assert!(log.contains(reason), "{release:?}: {log}");
    }
}
