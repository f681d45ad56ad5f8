//! Checks the fields of all log lines in the source.

use std::{fs, path::Path};

/// The fields of every line: a field of the same name would overwrite them.
const EVERY_LINE: [&str; 6] = ["timestamp", "level", "target", "message", "node", "trace_id"];

/// The arguments of each logging macro in a source file.
fn logged(source: &str) -> impl Iterator<Item = &str> {
    let macros = ["trace!(", "debug!(", "info!(", "warn!(", "error!("];
    macros.into_iter().flat_map(move |name| {
        source.match_indices(name).map(move |(at, _)| {
            let rest = &source[at + name.len()..];
            &rest[..rest.find(");").unwrap_or(rest.len())]
        })
    })
}

#[test]
fn no_line_has_a_field_of_its_own_that_is_called_as_one_of_all_lines() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut seen = 0;
    for file in super::layers::rust_files(&src) {
        let source = fs::read_to_string(&file).unwrap();
        for arguments in logged(&source) {
            seen += 1;
            let (fields, _) = arguments.split_once('"').unwrap_or((arguments, ""));
            for name in EVERY_LINE {
                let is_field = |field: &str| {
                    let field = field.trim().trim_start_matches(['%', '?']);
                    field.split('=').next().unwrap_or_default().trim() == name
                };
                let file = file.display();
                assert!(!fields.split(',').any(is_field), "{file} logs a field {name}: {fields}");
            }
        }
    }
    assert!(seen > 50, "only {seen} lines were looked at");
}
