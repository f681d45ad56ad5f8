//! Checks docs/reference/settings.md and docs/reference/limits.md against the code. `make settings`
//! writes the former.

use std::{env, fmt::Write as _, fs, path::PathBuf};

use switchboard::{
    config::{self, Setting},
    limits,
};

const BEGIN: &str = "<!-- settings -->\n";
const END: &str = "<!-- /settings -->";

fn page(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/reference").join(name)
}

fn tables() -> String {
    let mut text = String::new();
    let mut line = |line: &str| writeln!(text, "{line}").unwrap();
    for part in config::reference() {
        line(&format!("\n## {}\n", part.heading));
        line("| setting | flag | environment | default | range | meaning |");
        line("|---|---|---|---|---|---|");
        for Setting { name, flag, environment, default, range, meaning } in part.settings {
            let default = match default.split_once(", ") {
                Some((value, remark)) => format!("{value}: {remark}"),
                None if default.starts_with("none") || default.contains(' ') => default,
                None => format!("`{default}`"),
            };
            line(&format!(
                "| `{name}` | `{flag}` | `{environment}` | {default} | {range} | {meaning} |"
            ));
        }
    }
    line("");
    text
}

#[test]
fn the_reference_has_every_setting() {
    let path = page("settings.md");
    let document = fs::read_to_string(&path).unwrap();
    let (before, rest) = document.split_once(BEGIN).expect("the mark where the tables begin");
    let (_, after) = rest.split_once(END).expect("the mark where the tables end");
    let wanted = format!("{before}{BEGIN}{}{END}{after}", tables());
    if env::var_os("WRITE_SETTINGS").is_some() {
        fs::write(&path, &wanted).unwrap();
    } else {
        assert!(document == wanted, "docs/reference/settings.md is behind: run `make settings`");
    }
}

#[test]
fn the_reference_has_every_limit_with_its_default() {
    let document = fs::read_to_string(page("limits.md")).unwrap();
    let mut listed = document
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|row| row.split_once("` | `"))
        .map(|(name, rest)| (name.to_owned(), rest.split('`').next().unwrap_or_default()))
        .map(|(name, default)| format!("{name}={default}"));
    let known = limits::Settings::default().list();
    for limit in &known {
        let row = listed.next();
        let row = row.as_deref().unwrap_or("no row");
        let read = limits::Settings::with(&[row.to_owned()]);
        assert_eq!(read, Ok(limits::Settings::default()), "{limit}, and the page has {row}");
        assert_eq!(row.split('=').next(), limit.split('=').next());
    }
    assert_eq!(listed.next(), None);
}
