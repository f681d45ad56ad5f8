//! Checks the sources, licences and duplicate versions of crates, as far as cargo can tell: the
//! same rules as `make deny`, without another tool. `deny.toml` alone says what is allowed.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
};

use serde_json::Value;

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn texts(list: &toml::Value) -> BTreeSet<&str> {
    list.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

/// Whether an allowed licence can be chosen for each part of the expression.
fn is_allowed(licence: &str, allowed: &BTreeSet<&str>) -> bool {
    let any = |part: &str| {
        let part = part.trim_matches(['(', ')', ' ']).replace('/', " OR ");
        part.split(" OR ").any(|one| allowed.contains(one.trim()))
    };
    licence.split(" AND ").all(any)
}

#[test]
fn crates_are_from_where_they_should_be_and_stand_once() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deny.toml");
    let rules: toml::Value = toml::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let allowed = texts(&rules["licenses"]["allow"]);
    let skipped: BTreeSet<String> = rules["bans"]["skip"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["crate"].as_str().unwrap().to_owned())
        .collect();

    let metadata = metadata();
    let built: BTreeSet<&str> = metadata["resolve"]["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| node["id"].as_str().unwrap())
        .collect();
    let packages = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|package| built.contains(package["id"].as_str().unwrap()));
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in packages {
        let (name, version) =
            (package["name"].as_str().unwrap(), package["version"].as_str().unwrap());
        let licence = package["license"].as_str().unwrap_or_default();
        assert!(is_allowed(licence, &allowed), "{name} {version} has the licence {licence:?}");
        let source = package["source"].as_str();
        let is_known = source.map_or(name == "switchboard", |source| {
            source == "registry+https://github.com/rust-lang/crates.io-index"
        });
        assert!(is_known, "{name} {version} comes from {source:?}");
        let is_skipped = skipped.iter().any(|skip| {
            let (skipped, prefix) = skip.split_once('@').unwrap();
            let rest = version.strip_prefix(prefix);
            name == skipped && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        });
        if !is_skipped {
            versions.entry(name).or_default().push(version);
        }
    }
    versions.retain(|_, versions| versions.len() > 1);
    assert_eq!(versions, BTreeMap::new(), "deny.toml says nothing of these, which stand twice");
}

#[test]
fn a_licence_with_parts_needs_all_of_them() {
    let allowed = BTreeSet::from(["MIT", "Unicode-3.0"]);
    for good in ["MIT", "MIT OR Apache-2.0", "GPL-3.0/MIT", "(MIT OR Apache-2.0) AND Unicode-3.0"] {
        assert!(is_allowed(good, &allowed), "{good}");
    }
    for bad in ["", "GPL-3.0", "MIT AND GPL-3.0", "(MIT OR Apache-2.0) AND ISC"] {
        assert!(!is_allowed(bad, &allowed), "{bad}");
    }
}
