//! The results: kept in a file as they are measured, and shown as tables beside those of an earlier
//! build.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path, process::Command};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// The page into which the tables are written, between two markers.
const PAGE: &str = "docs/operations/scale.md";
const MARKS: [&str; 2] = ["<!-- scale -->\n", "<!-- end of scale -->"];
const FOUND: &str = "target/scale.json";
const BEFORE: &str = "benches/scale/before.json";

/// All results of one build.
#[derive(Default, Serialize, Deserialize)]
pub struct Results {
    build: String,
    date: String,
    machine: String,
    tables: BTreeMap<String, BTreeMap<String, Row>>,
}

/// A row of a table: figures by the name of their column.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Row {
    cells: Vec<Cell>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Cell {
    column: String,
    text: String,
    /// Whether the row meets its targets; `None` if it has none.
    reached: Option<bool>,
}

impl Row {
    pub fn add(&mut self, column: &str, text: impl Into<String>) {
        self.push(column, text.into(), None);
    }

    /// Adds a figure that has a target.
    pub fn ask(&mut self, column: &str, text: impl Into<String>, reached: bool) {
        self.push(column, text.into(), Some(reached));
    }

    fn push(&mut self, column: &str, text: String, reached: Option<bool>) {
        self.cells.push(Cell { column: column.to_owned(), text, reached });
    }

    fn missed(&self) -> Vec<&str> {
        let missed = self.cells.iter().filter(|cell| cell.reached == Some(false));
        missed.map(|cell| cell.column.split(',').next().unwrap_or_default()).collect()
    }

    fn text(&self, column: &str) -> Option<&str> {
        self.cells.iter().find(|cell| cell.column == column).map(|cell| cell.text.as_str())
    }
}

impl Results {
    /// The results of this build so far; measuring a part replaces its rows.
    pub fn open() -> Self {
        let about =
            Self { build: says("git", &["rev-parse", "--short", "HEAD"]), ..Self::default() };
        let about = Self { build: std::env::var("BUILD").unwrap_or(about.build), ..about };
        let found = read(FOUND).filter(|found| found.build == about.build);
        let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split(':').nth(1));
        // Other load on the machine makes every time longer: the load is part of the result.
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load = load.split(' ').next().unwrap_or("unknown").to_owned();
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            date: says("date", &["-u", "+%Y-%m-%d"]),
            machine: format!(
                "{cores} cores ({}), load {load} at the start",
                model.unwrap_or("unknown").trim()
            ),
            ..found.unwrap_or(about)
        }
    }

    pub fn put(&mut self, table: &str, name: &str, row: Row) -> Result<()> {
        let missed = row.missed();
        let verdict = if missed.is_empty() {
            String::new()
        } else {
            format!("; not reached: {}", missed.join(", "))
        };
        let cells: Vec<_> =
            row.cells.iter().map(|Cell { column, text, .. }| format!("{column}: {text}")).collect();
        eprintln!("{table} | {name} | {}{verdict}", cells.join(" | "));
        self.tables.entry(table.to_owned()).or_default().insert(name.to_owned(), row);
        fs::write(FOUND, serde_json::to_vec_pretty(self)?).with_context(|| FOUND.to_owned())
    }

    /// Writes the tables, in the order and with the titles of `tables`, into the page, and prints
    /// them.
    pub fn publish(
        &self,
        tables: &[(&str, &str)],
        names: impl Fn(&str) -> Vec<String>,
    ) -> Result<()> {
        let before = read(std::env::var("BEFORE").as_deref().unwrap_or(BEFORE)).unwrap_or_default();
        let mut text = format!("{}, {}: build {}.", self.date, self.machine, self.build);
        if !before.tables.is_empty() {
            let _ = write!(
                text,
                " Figures before an arrow are those of build {} on {}, {}.",
                before.build, before.date, before.machine
            );
        }
        text.push('\n');
        for (table, title) in tables {
            let rows = |results: &Self| results.tables.get(*table).cloned().unwrap_or_default();
            let (now, then) = (rows(self), rows(&before));
            let named = names(table)
                .into_iter()
                .filter(|name| now.contains_key(name) || then.contains_key(name));
            let named: Vec<_> = named.collect();
            let mut columns: Vec<String> = Vec::new();
            for row in named.iter().filter_map(|name| now.get(name).or(then.get(name))) {
                for cell in &row.cells {
                    if !columns.contains(&cell.column) {
                        columns.push(cell.column.clone());
                    }
                }
            }
            if named.is_empty() {
                continue;
            }
            let _ = write!(text, "\n### {title}\n\n| | {} | reached |\n", columns.join(" | "));
            let _ = writeln!(text, "|---|{}", "---|".repeat(columns.len() + 1));
            for name in named {
                let (now, then) = (now.get(&name), then.get(&name));
                let cells = columns.iter().map(|column| {
                    let of =
                        |row: Option<&Row>| row.and_then(|row| row.text(column)).map(str::to_owned);
                    match (of(then), of(now)) {
                        (Some(then), Some(now)) => format!("{then} → {now}"),
                        (Some(then), None) => format!("{then} → not measured"),
                        (None, Some(now)) => now,
                        (None, None) => "–".to_owned(),
                    }
                });
                let cells: Vec<_> = cells.collect();
                let reached = match now.map(Row::missed) {
                    None => "–".to_owned(),
                    Some(missed) if missed.is_empty() => "yes".to_owned(),
                    Some(missed) => format!("no: {}", missed.join(", ")),
                };
                let _ = writeln!(text, "| {name} | {} | {reached} |", cells.join(" | "));
            }
        }
        println!("{text}");
        let page = std::env::var("PAGE").unwrap_or_else(|_| PAGE.to_owned());
        if !Path::new(&page).exists() {
            return Ok(());
        }
        let old = fs::read_to_string(&page)?;
        let [begin, end] = MARKS;
        let (head, rest) = old.split_once(begin).with_context(|| format!("{page} has no mark"))?;
        let (_, tail) = rest.split_once(end).with_context(|| format!("{page} has no end mark"))?;
        fs::write(&page, format!("{head}{begin}{text}{end}{tail}"))?;
        Ok(())
    }
}

fn read(path: &str) -> Option<Results> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn says(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map_or_else(
        |_| "unknown".to_owned(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}
