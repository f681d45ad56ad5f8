//! The reference of all settings, read from the definition of the command line: docs/reference/settings.md
//! is written from it, and a test holds the two together. `switchboard config --defaults` prints the same as a file.

use std::fmt::Write as _;

use clap::{Arg, CommandFactory};

use super::{Cli, Settings};

/// The width of a comment in the file of defaults.
const WIDTH: usize = 100;

/// The settings under one heading.
#[derive(Debug, PartialEq, Eq)]
pub struct Reference {
    pub heading: String,
    pub settings: Vec<Setting>,
}

/// One setting. Texts are Markdown.
#[derive(Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its name in the settings file.
    pub name: String,
    pub flag: String,
    pub environment: String,
    pub default: String,
    pub range: String,
    pub meaning: String,
}

/// All settings, in the order and under the headings of `switchboard --help`.
pub fn reference() -> Vec<Reference> {
    let command = Cli::command();
    let mut all: Vec<Reference> = Vec::new();
    for argument in command.get_arguments().filter(|argument| is_setting(argument)) {
        let heading = argument.get_help_heading().expect("each setting has a heading");
        if all.last().is_none_or(|last| last.heading != heading) {
            all.push(Reference { heading: heading.to_owned(), settings: Vec::new() });
        }
        let last = all.last_mut().expect("one was just made sure of");
        last.settings.push(describe(argument));
    }
    all
}

/// A settings file with every setting at its default, each with a comment. A setting without a default, or without
/// effect alone, is commented out.
pub fn defaults() -> String {
    let command = Cli::command();
    let mut toml = "# All settings of switchboard with their defaults. Flags and the environment win over this file.\n\
                    # A line without a value, or without effect alone, is commented out.\n"
        .to_owned();
    for Reference { heading, settings } in reference() {
        write!(toml, "\n\n# ---- {heading} ----\n").expect("a string takes all");
        for Setting { name, flag: _, environment, default, range, meaning } in settings {
            let is_list = command.get_arguments().any(|argument| {
                argument.get_id() == &name && argument.get_value_delimiter().is_some()
            });
            let range = if range.is_empty() { range } else { format!(" Range: {range}.") };
            let about = format!("{meaning}. Default: {default}.{range} {environment}");
            toml.push('\n');
            for line in wrapped(&about) {
                writeln!(toml, "# {line}").expect("a string takes all");
            }
            let is_value = !default.contains(' ') && default != "none";
            let value = toml::Value::from(if is_value { default } else { "…".to_owned() });
            let value = if is_list { vec![value].into() } else { value };
            let line = format!("{name} = {value}");
            let stands = is_value
                && toml::from_str::<Settings>(&line)
                    .is_ok_and(|settings| settings.resolve().is_ok());
            writeln!(toml, "{}{line}", if stands { "" } else { "# " }).expect("a string takes all");
        }
    }
    toml
}

/// The words of a text in lines of up to [`WIDTH`] characters.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + word.chars().count() < WIDTH => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// Whether this argument can also stand in the settings file.
pub fn is_setting(argument: &Arg) -> bool {
    argument.get_env().is_some() && argument.get_id() != "config"
}

fn describe(argument: &Arg) -> Setting {
    let name = argument.get_id().as_str();
    let help = argument.get_help().expect("each setting has a help text").to_string();
    let (help, range) = without(&help, "range");
    let (meaning, default) = without(&help, "default");
    let values = argument.get_possible_values();
    let values: Vec<_> = values.iter().map(|value| format!("`{}`", value.get_name())).collect();
    Setting {
        name: name.to_owned(),
        flag: format!("--{}", argument.get_long().expect("each setting has a flag")),
        environment: argument.get_env().expect("a setting").to_string_lossy().into_owned(),
        default: default.expect("each setting has a default").replace('`', ""),
        range: range.unwrap_or_else(|| values.join(", ")),
        meaning: meaning.trim().to_owned(),
    }
}

/// The text without its part `[label: …]`, and that part.
fn without(text: &str, label: &str) -> (String, Option<String>) {
    let Some((before, rest)) = text.split_once(&format!("[{label}: ")) else {
        return (text.to_owned(), None);
    };
    let close = closing(rest);
    let (inside, after) = rest.split_at(close);
    (format!("{}{}", before.trim_end(), &after[1..]), Some(inside.to_owned()))
}

/// Where the bracket that was opened before `text` is closed.
fn closing(text: &str) -> usize {
    let mut depth = 1;
    for (place, sign) in text.char_indices() {
        match sign {
            '[' => depth += 1,
            ']' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return place;
        }
    }
    panic!("each bracket of a help text is closed");
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{any_duration, tests::resolve};

    /// The settings that must stand beside this one.
    fn beside(name: &str) -> &'static str {
        match name {
            "turn_ttl" => "turn_urls = ['turn:a']\nturn_secret = 'b'\n",
            "authorize_timeout" | "authorize_cache" | "authorize_fail" => {
                "authorize_url = 'https://a/b'\n"
            }
            _ => "",
        }
    }

    fn all() -> Vec<Setting> {
        reference().into_iter().flat_map(|part| part.settings).collect()
    }

    #[test]
    fn each_default_is_the_one_in_force() {
        let mut checked = 0;
        for Setting { name, default, .. } in all() {
            // `open` is the default on loopback only, which another test has.
            if default.starts_with("none") || name == "auth" {
                continue;
            }
            let beside = beside(&name);
            let said = resolve(&format!("{beside}{name} = '{default}'")).unwrap().to_toml();
            assert_eq!(said, resolve(beside).unwrap().to_toml(), "{name}");
            checked += 1;
        }
        assert!(checked > 12, "{checked}");
    }

    #[test]
    fn the_file_of_defaults_changes_nothing_and_has_every_setting() {
        let file = defaults();
        let nothing = Settings::default().resolve().unwrap().to_toml();
        assert_eq!(resolve(&file).unwrap().to_toml(), nothing, "{file}");
        assert!(file.lines().all(|line| line.chars().count() <= WIDTH + 40), "{file}");
        let mut set = 0;
        for Setting { name, default, .. } in all() {
            let line = file.lines().find(|line| {
                line.strip_prefix("# ").unwrap_or(line).starts_with(&format!("{name} = "))
            });
            let line = line.unwrap_or_else(|| panic!("{name} is missing"));
            let has_value = !default.starts_with("none") && name != "auth";
            assert!(has_value || line.starts_with('#'), "{line}");
            set += usize::from(!line.starts_with('#'));
        }
        assert!(set > 8, "{set}");
        // Without the comment sign it is a setting like the others.
        let (name, url) = ("authorize_timeout", beside("authorize_timeout"));
        let backend = format!("{url}{}", file.replace(&format!("# {name}"), name));
        assert_ne!(backend, format!("{url}{file}"));
        assert_eq!(resolve(&backend).unwrap().to_toml(), resolve(url).unwrap().to_toml());
    }

    #[test]
    fn each_range_of_durations_is_the_one_in_force() {
        let mut checked = 0;
        for Setting { name, range, .. } in all() {
            let taken = |period: Duration| {
                let period = humantime::format_duration(period);
                let settings = format!("{}{name} = '{period}'", beside(&name));
                toml::from_str::<crate::config::Settings>(&settings)
                    .is_ok_and(|settings| settings.resolve().is_ok())
            };
            let moment = Duration::from_millis(1);
            if let Some((least, most)) = range.split_once(" to ")
                && let (Ok(least), Ok(most)) = (any_duration(least), any_duration(most))
            {
                assert!(taken(least) && taken(most) && !taken(most + moment), "{name}: {range}");
                assert!(least.is_zero() || !taken(least.saturating_sub(moment)), "{name}: {range}");
            } else if let Some(least) = range.strip_suffix(" or more")
                && let Ok(least) = any_duration(least)
            {
                assert!(taken(least) && !taken(least.saturating_sub(moment)), "{name}: {range}");
            } else if range == "more than 0s" {
                assert!(taken(moment) && !taken(Duration::ZERO), "{name}: {range}");
            } else {
                continue;
            }
            checked += 1;
        }
        assert!(checked >= 8, "{checked}");
    }
}
