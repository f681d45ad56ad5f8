//! Checks the module order: a module may use only those before it in the list.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

const ORDER: [&str; 29] = [
    "secret",
    "fetch",
    "probe",
    "shutdown",
    "time",
    "health",
    "redact",
    "ids",
    "trace",
    "auth",
    "payload",
    "call",
    "protocol",
    "ice",
    "metrics",
    "telemetry",
    "limits",
    "cluster",
    "history",
    "calls",
    "authorize",
    "gateway",
    "logs",
    "http",
    "fuzz",
    "bench",
    "config",
    "doctor",
    "app",
];

pub fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// The top-level modules that `source` names as `crate::module` or in `use crate::{module…}`.
fn used_modules(source: &str) -> BTreeSet<String> {
    let word = |text: &str| {
        text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect::<String>()
    };
    let mut used = BTreeSet::new();
    for (place, _) in source.match_indices("crate::") {
        let rest = &source[place + "crate::".len()..];
        let Some(group) = rest.strip_prefix('{') else {
            used.insert(word(rest));
            continue;
        };
        let mut depth = 1;
        let mut start = true;
        for (offset, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => start = true,
                c if depth == 1 && start && c.is_alphabetic() => {
                    used.insert(word(&group[offset..]));
                    start = false;
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    used
}

#[test]
fn the_architecture_page_has_the_same_order() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md");
    let page = fs::read_to_string(page).unwrap();
    let list = page.split("```").nth(1).expect("the list of modules");
    let listed: Vec<_> = list.split('←').map(str::trim).collect();
    assert_eq!(listed, ORDER);
}

#[test]
fn modules_depend_only_on_those_before_them() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut seen = BTreeSet::new();
    for file in rust_files(&src) {
        let path = file.strip_prefix(&src).unwrap();
        let module = path.components().next().unwrap().as_os_str().to_str().unwrap();
        let module = module.trim_end_matches(".rs");
        if module == "lib" || module == "main" {
            continue;
        }
        let place = |name: &str| ORDER.iter().position(|known| *known == name);
        let own = place(module).unwrap_or_else(|| panic!("{module} has no place in the order"));
        seen.insert(module.to_owned());
        let source = fs::read_to_string(&file).unwrap();
        let code: String = source.lines().filter(|line| !line.trim().starts_with("//")).collect();
        for used in used_modules(&code) {
            let other = place(&used).unwrap_or_else(|| panic!("{}: {used}?", path.display()));
            assert!(other <= own, "{} must not use crate::{used}", path.display());
        }
    }
    assert_eq!(seen.len(), ORDER.len(), "the order names modules that are not there");
}

#[test]
fn the_rules_know_no_io_and_no_clock() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/call");
    for file in rust_files(&folder) {
        let source = fs::read_to_string(&file).unwrap();
        for word in ["tokio", "async ", "serde_json", "Mutex", "::now()", "sqlx", "fred"] {
            assert!(!source.contains(word), "{} speaks of {word}", file.display());
        }
    }
}

#[test]
fn the_check_sees_both_ways_to_name_a_module() {
    let source =
        "use crate::{\n    call::{Call, Event},\n    ids::CallId,\n};\nfn f() { crate::http::x() }";
    let expected = ["call", "http", "ids"].map(str::to_owned);
    assert_eq!(used_modules(source), BTreeSet::from(expected));
}
