//! The command line: the commands, and the sources of their settings.

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Arg, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use http::Uri;

use super::{
    Auth, AuthMode, Config, ConfigError, Settings, TOKENS, duration, reference::is_setting,
};
use crate::{
    auth::{Mint, Trust},
    bench::Bench,
    ids::UserId,
    secret::Secret,
};

const ENV_PREFIX: &str = "SWITCHBOARD_";

/// Signaling server for 1:1 WebRTC calls over Socket.IO.
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
    /// Runs a node (the default)
    Serve(ServeOptions),
    /// Applies the missing migrations to the database of the call history and prints which
    Migrate(MigrateOptions),
    /// Asks the node of these settings whether it is ready: exit code 0 if it is, else 1
    Health(Options),
    /// Puts load on a server and measures its cost
    #[command(subcommand)]
    Bench(Bench),
    /// Prints the effective settings as TOML
    Config(ConfigOptions),
    /// Checks these settings against the world: Redis, the database, keys, TURN servers, the address in front of the
    /// nodes. Prints a line for each finding; exit code 1 if something is wrong
    Doctor(DoctorOptions),
    /// Prints a token for development, signed with the shared secret of the settings
    Token(TokenOptions),
}

/// A command with its settings resolved.
#[derive(Debug)]
pub enum Task {
    Serve(Config),
    Migrate(Config),
    PlanMigration(Config),
    /// The address of the admin listener.
    Health(SocketAddr),
    Bench(Bench),
    PrintConfig(Config),
    PrintDefaults,
    Doctor(Config, Option<Front>),
    MintToken(Trust, Mint),
}

#[derive(Debug, Args)]
struct TokenOptions {
    /// User id of the token
    #[arg(long, value_name = "ID")]
    user: UserId,
    /// Lifetime of the token
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "1h")]
    ttl: Duration,
    /// Scope to grant beside the user's own calls: `stats`, `admin`; may be repeated
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<String>,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Args)]
struct MigrateOptions {
    /// Prints what would be done and changes nothing: exit code 2 if a migration is pending, 0 if none is
    #[arg(long)]
    plan: bool,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Args)]
struct ConfigOptions {
    /// Prints a file with a comment on every setting and its default instead
    #[arg(long)]
    defaults: bool,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Args)]
struct DoctorOptions {
    /// Address of the service for clients, in front of its nodes: checks what stands between
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Token with the scope `admin`, to ask the nodes how requests arrive; with a shared secret in the settings, and in
    /// `open` mode, none is needed
    #[arg(long, value_name = "TOKEN", requires = "url")]
    token: Option<Secret>,
    #[command(flatten)]
    options: Options,
}

/// The address of the service for clients, as `doctor` asks it.
#[derive(Debug, Clone)]
pub struct Front {
    /// `http` or `https`, a host, and perhaps a port.
    pub uri: Uri,
    /// A token with the scope `admin`.
    pub token: Option<Secret>,
}

impl Front {
    fn new(url: &str, token: Option<Secret>) -> Result<Self, &'static str> {
        const EXPECTED: &str = "expected https://HOST[:PORT] or http://HOST[:PORT]";
        let uri: Uri = url.parse().map_err(|_| EXPECTED)?;
        let is_place = uri.authority().is_some_and(|place| !place.as_str().contains('@'));
        let is_known = matches!(uri.scheme_str(), Some("http" | "https"));
        let is_bare = uri.path() == "/" && uri.query().is_none();
        if is_place && is_known && is_bare { Ok(Self { uri, token }) } else { Err(EXPECTED) }
    }
}

#[derive(Debug, Args)]
struct ServeOptions {
    /// Applies missing migrations to the database of the call history before serving
    #[arg(long)]
    migrate: bool,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Args)]
struct Options {
    /// TOML file of settings, named like the flags with `_` for `-`
    #[arg(long, env = "SWITCHBOARD_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

impl Cli {
    /// Reads the command line.
    ///
    /// # Errors
    /// For arguments that are unknown or have a wrong value, and for `--help` and `--version`.
    pub fn read() -> Result<Self, clap::Error> {
        let mut matches = described().try_get_matches()?;
        Self::from_arg_matches_mut(&mut matches)
    }

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
            Some(Command::Migrate(MigrateOptions { plan, options })) => {
                let config = options.resolve_only(Settings::of_migrations)?;
                Ok(if plan { Task::PlanMigration(config) } else { Task::Migrate(config) })
            }
            Some(Command::Health(options)) => {
                let listen = options.resolve_only(Settings::of_health)?.admin_listen;
                Ok(Task::Health(listen))
            }
            Some(Command::Bench(bench)) => Ok(Task::Bench(bench)),
            Some(Command::Config(ConfigOptions { defaults: true, .. })) => Ok(Task::PrintDefaults),
            Some(Command::Config(ConfigOptions { options, .. })) => {
                options.resolve()?.traced().map(Task::PrintConfig)
            }
            Some(Command::Doctor(DoctorOptions { url, token, options })) => {
                let front = url.map(|url| Front::new(&url, token)).transpose();
                let front = front.map_err(|error| ConfigError(format!("--url: {error}")))?;
                Ok(Task::Doctor(options.resolve()?, front))
            }
            Some(Command::Token(options)) => options.resolve(),
        }
    }
}

/// The command line as `--help` shows it: plain text, and with each command only the settings that it reads.
/// The others are accepted there too, so that all commands can share one environment and one file.
fn described() -> clap::Command {
    let only = |command: clap::Command, own: fn(&Arg) -> bool| {
        command.mut_args(|argument| {
            let is_foreign = is_setting(&argument) && !own(&argument);
            argument.hide(is_foreign)
        })
    };
    plain(Cli::command())
        .mut_subcommand("migrate", |command| only(command, is_of_migrations))
        .mut_subcommand("health", |command| only(command, is_of_health))
        .mut_subcommand("token", |command| only(command, is_of_tokens))
}

/// Whether `migrate` reads this setting: [`Settings::of_migrations`].
fn is_of_migrations(argument: &Arg) -> bool {
    ["database_url", "log_format"].contains(&argument.get_id().as_str())
}

/// Whether `health` reads this setting: [`Settings::of_health`].
fn is_of_health(argument: &Arg) -> bool {
    argument.get_id() == "admin_listen"
}

/// Whether `token` reads this setting: [`Settings::of_tokens`].
fn is_of_tokens(argument: &Arg) -> bool {
    argument.get_help_heading() == Some(TOKENS)
}

/// The same command without Markdown in its texts.
fn plain(command: clap::Command) -> clap::Command {
    let text = |styled: &clap::builder::StyledStr| styled.to_string().replace('`', "");
    let about = command.get_about().map(text);
    command
        .mut_args(|argument| match argument.get_help().map(text) {
            Some(help) => argument.help(help),
            None => argument,
        })
        .mut_subcommands(plain)
        .about(about.unwrap_or_default())
}

impl Settings {
    /// The settings that migrations depend on. Any other one may be wrong or incomplete.
    fn of_migrations(self) -> Self {
        Self { database_url: self.database_url, log_format: self.log_format, ..Self::default() }
    }

    /// The settings that the address of a node's admin listener depends on. Any other one may be wrong or incomplete.
    fn of_health(self) -> Self {
        Self { admin_listen: self.admin_listen, ..Self::default() }
    }

    /// The settings that tokens depend on. Any other one may be wrong or incomplete.
    fn of_tokens(self) -> Self {
        Self {
            // Asking for a token says that tokens are used.
            auth: self.auth.or(Some(AuthMode::Jwt)),
            jwt_secret: self.jwt_secret,
            jwt_public_key: self.jwt_public_key,
            jwks_url: self.jwks_url,
            jwt_issuer: self.jwt_issuer,
            jwt_audience: self.jwt_audience,
            ..Self::default()
        }
    }
}

impl TokenOptions {
    fn resolve(self) -> Result<Task, ConfigError> {
        let wish = Mint { user: self.user, ttl: self.ttl, scopes: self.scopes };
        match self.options.resolve_only(Settings::of_tokens)?.auth {
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
        self.resolve_only(|all| all)
    }

    /// Resolves the part of all settings that `part` leaves of them.
    fn resolve_only(self, part: fn(Settings) -> Settings) -> Result<Config, ConfigError> {
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
        part(self.settings.or(file)).resolve()
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
    fn help_shows_each_command_its_own_settings_without_markup() {
        for (command, own, foreign) in [
            (
                "migrate",
                &["--database-url", "--config", "--plan"][..],
                &["--turn-urls", "--jwt-secret"][..],
            ),
            ("health", &["--admin-listen", "--config"], &["--listen", "--redis-url"]),
            ("token", &["--user", "--ttl", "--jwt-secret"], &["--database-url", "--turn-secret"]),
            ("config", &["--turn-secret", "--listen", "--defaults"], &["--user", "--migrate"]),
            ("doctor", &["--turn-secret", "--redis-url", "--url"], &["--user", "--migrate"]),
            ("serve", &["--turn-secret", "--migrate"], &["--user"]),
        ] {
            let mut described = described();
            let help =
                described.find_subcommand_mut(command).unwrap().render_long_help().to_string();
            for flag in own {
                assert!(help.contains(flag), "{command} {flag}");
            }
            for flag in foreign {
                assert!(!help.contains(flag), "{command} {flag}");
            }
            assert!(!help.contains('`'), "{help}");
        }
    }

    #[test]
    fn the_address_in_front_is_a_place() {
        for good in ["https://calls.example.org", "http://127.0.0.1:8080/", "https://[::1]:8443"] {
            assert!(Front::new(good, None).is_ok(), "{good}");
        }
        for bad in ["", "calls.example.org", "ws://a", "https://a/b", "https://a?b", "https://a@b"]
        {
            assert!(Front::new(bad, None).is_err(), "{bad}");
        }
    }

    #[test]
    fn commands_ignore_settings_that_they_do_not_read() {
        let secret = "x".repeat(32);
        // A TURN secret alone is refused by `serve`.
        let task = |command: &[&str]| {
            let arguments = [&["switchboard"], command, &["--turn-secret", "a"]].concat();
            Cli::try_parse_from(arguments).unwrap().task()
        };
        assert!(task(&["serve"]).is_err());
        assert!(task(&["token", "--user", "anna", "--jwt-secret", &secret]).is_ok());
        assert!(task(&["migrate"]).is_ok() && task(&["health"]).is_ok());
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
