//! A Postgres for tests: one server for all tests that run at the same time, a database for each.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU32, Ordering},
    },
};

use crate::redis_server::{free_port, wait_until};

/// A server that stops with the last test that uses it.
pub struct PostgresServer {
    process: Child,
    port: u16,
    folder: tempfile::TempDir,
}

/// An empty database.
pub struct Database {
    server: Arc<PostgresServer>,
    name: String,
    pub url: String,
}

impl Database {
    pub fn new() -> Self {
        static SERVER: Mutex<Weak<PostgresServer>> = Mutex::new(Weak::new());
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let server = {
            let mut running = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
            running.upgrade().unwrap_or_else(|| {
                let server = Arc::new(PostgresServer::start(&[]));
                *running = Arc::downgrade(&server);
                server
            })
        };
        let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        server.psql("postgres", &format!("CREATE DATABASE {name}")).expect("there is room");
        let url = server.url(&name);
        Self { server, name, url }
    }

    /// The result of a statement.
    pub fn ask(&self, sql: &str) -> String {
        self.server.psql(&self.name, sql).unwrap_or_else(|| panic!("it is refused: {sql}"))
    }

    pub fn is_refused(&self, sql: &str) -> bool {
        self.server.psql(&self.name, sql).is_none()
    }
}

impl PostgresServer {
    pub fn start(settings: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), settings)
    }

    /// Starts in a folder that already holds files for the server.
    pub fn start_in(folder: tempfile::TempDir, settings: &[&str]) -> Self {
        let data = folder.path().join("data");
        let port = free_port();
        if is_root() {
            // Postgres refuses to run as root.
            assert!(run(Command::new("chown").args(["-R", "nobody"]).arg(folder.path())));
        }
        let mut initdb = unprivileged("initdb", folder.path());
        initdb.args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C"]);
        assert!(run(initdb.arg("--no-sync").arg("--pgdata").arg(&data)), "initdb succeeds");
        let mut postgres = unprivileged("postgres", folder.path());
        postgres.arg("-D").arg(&data).args(["-p", &port.to_string(), "-k"]).arg(folder.path());
        for setting in ["listen_addresses=127.0.0.1", "fsync=off", "max_connections=200"] {
            postgres.args(["-c", setting]);
        }
        for setting in settings {
            postgres.args(["-c", setting]);
        }
        let process = postgres.stderr(Stdio::null()).spawn().expect("postgres is installed");
        let server = Self { process, port, folder };
        wait_until("Postgres answers", || server.psql("postgres", "SELECT 1").is_some());
        server
    }

    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Refuses new sessions from now on, and stops when the present ones end.
    pub fn shut_down(&self) {
        assert!(run(Command::new("kill").args(["-TERM", &self.process.id().to_string()])));
        wait_until("Postgres takes nobody", || self.psql("postgres", "SELECT 1").is_none());
    }

    /// The result of a statement; `None` if it fails.
    fn psql(&self, database: &str, sql: &str) -> Option<String> {
        let mut psql = Command::new("psql");
        psql.args(["-qtAX", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", database, "-c", sql]);
        psql.arg("-h").arg(self.folder.path()).args(["-p", &self.port.to_string()]);
        let output = psql.stderr(Stdio::null()).output().expect("psql is installed");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        // An immediate stop (SIGQUIT). SIGKILL would leave child processes and shared memory
        // behind.
        assert!(run(Command::new("kill").args(["-QUIT", &self.process.id().to_string()])));
        self.process.wait().expect("it is ours");
    }
}

fn run(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).status().is_ok_and(|status| status.success())
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().expect("id is there");
    id.stdout.starts_with(b"0\n")
}

/// A program of Postgres, run by a user that is not root.
fn unprivileged(program: &str, folder: &Path) -> Command {
    let program = installed(program);
    let mut command = if is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups", "--"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    command.current_dir(folder).env("LC_ALL", "C");
    command
}

/// Debian installs the server's programs outside of the path.
fn installed(program: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<_> =
        versions.map(|version| version.path().join("bin").join(program)).collect();
    found.sort();
    found.pop().unwrap_or_else(|| program.into())
}
