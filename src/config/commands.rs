//! The command line: what to do, and where the settings come from.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use clap::{Args, CommandFactory, Parser, Subcommand};

use super::{Auth, AuthMode, Config, ConfigError, Settings, duration};
use crate::{
    auth::{Mint, Trust},
    bench::Bench,
    ids::UserId,
};

const ENV_PREFIX: &str = "SWITCHBOARD_";

/// Signaling for 1:1 WebRTC calls, spoken over Socket.IO.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: ServeOptions,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves (the default)
    Serve(ServeOptions),
    /// Brings the schema of the call history's database up to date
    Migrate(Options),
    /// Puts load on a server and measures what it costs
    #[command(subcommand)]
    Bench(Bench),
    /// Prints the effective settings as TOML
    Config(Options),
    /// Prints a token for development, made with the secret that the service checks tokens with
    Token(TokenOptions),
}

/// What to do.
#[derive(Debug)]
pub enum Task {
    Serve(Config),
    Migrate(Config),
    Bench(Bench),
    PrintConfig(Config),
    MintToken(Trust, Mint),
}

#[derive(Debug, Args)]
struct TokenOptions {
    /// Who the token is for
    #[arg(long, value_name = "ID")]
    user: UserId,
    /// How long it is good
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "1h")]
    ttl: Duration,
    /// What it allows besides the user's own calls: `stats`, `admin`. May be given more than once
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<String>,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Args)]
struct ServeOptions {
    /// Brings the database's schema up to date before serving
    #[arg(long)]
    migrate: bool,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Args)]
struct Options {
    /// A TOML file of settings, named as the flags with `_` for `-`
    #[arg(long, env = "SWITCHBOARD_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

impl Cli {
    /// Reads the settings that the command line leaves open from the environment and the file.
    ///
    /// # Errors
    /// One sentence for a setting that is unknown, has a wrong value, or would be unsafe.
    pub fn task(self) -> Result<Task, ConfigError> {
        let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
        refuse_unknown_variables(names)?;
        match self.command {
            None => self.serve.resolve()?.traced().map(Task::Serve),
            Some(Command::Serve(options)) => options.resolve()?.traced().map(Task::Serve),
            Some(Command::Migrate(options)) => options.resolve().map(Task::Migrate),
            Some(Command::Bench(bench)) => Ok(Task::Bench(bench)),
            Some(Command::Config(options)) => options.resolve()?.traced().map(Task::PrintConfig),
            Some(Command::Token(options)) => options.resolve(),
        }
    }
}

impl TokenOptions {
    fn resolve(mut self) -> Result<Task, ConfigError> {
        // A token is asked for: nobody has to say that they are used.
        let settings = &mut self.options.settings;
        settings.auth.get_or_insert(AuthMode::Jwt);
        let wish = Mint { user: self.user, ttl: self.ttl, scopes: self.scopes };
        match self.options.resolve()?.auth {
            Auth::Jwt(trust) => Ok(Task::MintToken(trust, wish)),
            Auth::Open => Err(ConfigError(
                "tokens are for SWITCHBOARD_AUTH=jwt, and SWITCHBOARD_AUTH is open".to_owned(),
            )),
        }
    }
}

impl ServeOptions {
    fn resolve(self) -> Result<Config, ConfigError> {
        Ok(Config { migrate: self.migrate, ..self.options.resolve()? })
    }
}

impl Options {
    fn resolve(self) -> Result<Config, ConfigError> {
        let file = match &self.config {
            None => Settings::default(),
            Some(path) => {
                let shown = path.display();
                let text = std::fs::read_to_string(path)
                    .map_err(|error| ConfigError(format!("cannot read {shown}: {error}")))?;
                toml::from_str(&text)
                    .map_err(|error| ConfigError(format!("{shown}, {}", place_in(&text, &error))))?
            }
        };
        self.settings.or(file).resolve()
    }
}

/// Where in the file the error is, and what it is, in one line. The line itself is shown if it cannot
/// hold a secret: if it is of a setting whose value `--help` shows, and no text goes over lines.
fn place_in(text: &str, error: &toml::de::Error) -> String {
    let start = error.span().map_or(0, |span| span.start.min(text.len()));
    let number = text.get(..start).map_or(0, |before| before.matches('\n').count());
    let line = text.lines().nth(number).unwrap_or_default().trim();
    let name = line.split('=').next().unwrap_or_default().trim();
    let command = Cli::command();
    let is_plain = |argument: &clap::Arg| !argument.is_hide_env_values_set();
    let has_long_text = ["\"\"\"", "'''"].iter().any(|quotes| text.contains(quotes));
    let mut plain = command.get_arguments().filter(|argument| is_plain(argument));
    let shows = !has_long_text && plain.any(|argument| argument.get_id() == name);
    let shown = if shows { format!("`{line}`: ") } else { String::new() };
    let message = error.message().lines().collect::<Vec<_>>().join(" ");
    format!("line {}: {shown}{message}", number + 1)
}

/// A misspelt variable would otherwise be a setting that silently does nothing.
fn refuse_unknown_variables(names: impl Iterator<Item = String>) -> Result<(), ConfigError> {
    let command = Cli::command();
    let known: BTreeSet<_> =
        command.get_arguments().filter_map(|argument| argument.get_env()?.to_str()).collect();
    for name in names.filter(|name| name.starts_with(ENV_PREFIX)) {
        if !known.contains(name.as_str()) {
            return Err(ConfigError(format!(
                "{name} is not a setting; `switchboard --help` names all there are"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_names_are_errors() {
        assert!(toml::from_str::<Settings>("ring_timout = '5s'").is_err());
        let vars = |name: &str| refuse_unknown_variables(std::iter::once(name.to_owned()));
        assert!(vars("SWITCHBOARD_RING_TIMOUT").is_err());
        assert!(vars("SWITCHBOARD_RING_TIMEOUT").is_ok());
        assert!(vars("HOME").is_ok());
    }

    #[test]
    fn a_mistake_in_the_file_is_shown_but_for_secrets() {
        let said = |text: &str| place_in(text, &toml::from_str::<Settings>(text).unwrap_err());
        assert!(said("ring_timeout = 'soon'").contains("`ring_timeout = 'soon'`"));
        for text in ["jwt_secret = 123456", "turn_secret = 123456", "authorize_token = 123456"] {
            assert!(said(text).contains("expected a text"), "{}", said(text));
            assert!(!said(text).contains("123456"), "{}", said(text));
        }
        for text in [
            "jwt_secret = 'hunter2",
            "jwt_secrt = 'hunter2'",
            "jwt_secret = [\n'hunter2']",
            "jwt_secret = \"\"\"\nlisten = hunter2",
            "redis_url = 'redis://anna:hunter2@db",
            "turn_secret = 'hunter2",
            "turn_secret = hunter2",
            "turn_secret = ['hunter2', 5]",
            "turn_secret = [\n'hunter2=', 5]",
            "authorize_token = ['hunter2']",
            "authorize_url = 'https://anna:hunter2@db",
        ] {
            assert!(said(text).starts_with("line "), "{}", said(text));
            assert!(!said(text).contains("hunter2"), "{}", said(text));
        }
    }
}
