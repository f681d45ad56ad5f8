//! Checks that docs/reference/metrics.md lists every metric and no other.

use std::{collections::BTreeSet, fs, path::Path};

use switchboard::metrics;

#[test]
fn the_document_lists_every_metric_and_no_other() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/metrics.md");
    let document = fs::read_to_string(path).unwrap();
    let (_, table) = document.split_once("## All metrics").unwrap();
    let table = table.split("\n## ").next().unwrap();
    let row = |line: &str| {
        let mut cells = line.split('|').map(|cell| cell.trim().trim_matches('`').to_owned());
        let name = cells.nth(1)?;
        Some((cells.next()?, name))
    };
    let rows = table.lines().filter(|line| line.starts_with("| `")).filter_map(row);
    let listed: BTreeSet<_> = rows.collect();
    let known: BTreeSet<_> =
        metrics::all().map(|(kind, name)| (kind.to_owned(), name.to_owned())).collect();
    let missing: Vec<_> = known.difference(&listed).collect();
    let unknown: Vec<_> = listed.difference(&known).collect();
    assert!(missing.is_empty() && unknown.is_empty(), "missing {missing:?}, unknown {unknown:?}");
}

#[test]
fn no_other_file_names_a_metric() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for file in super::layers::rust_files(&src) {
        let code = fs::read_to_string(&file).unwrap();
        let names_one = code.contains("\"switchboard_") || code.contains("counter!(\"");
        assert!(!names_one || file.ends_with("metrics.rs"), "{}", file.display());
    }
}
