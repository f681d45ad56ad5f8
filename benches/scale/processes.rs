//! The measured processes: nodes, Redis, Postgres. Each process ends with its owner, also if the
//! benchmark is killed, and keeps its files in a temporary folder.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use switchboard::bench::sample;

use crate::redis_server::free_port;

const START: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(20);
/// Open files of a process besides its clients' sockets.
pub const OTHER_FILES: usize = 600;

/// The build that is measured.
pub fn binary() -> String {
    std::env::var("BIN").unwrap_or_else(|_| "target/release/switchboard".to_owned())
}

/// A numeric parameter from the environment.
pub fn parameter(name: &str, default: u64) -> Result<u64> {
    match std::env::var(name) {
        Err(_) => Ok(default),
        Ok(text) => text.parse().with_context(|| format!("{name}: expected a number, not {text}")),
    }
}

/// The limit on open files, which child processes inherit.
pub fn open_files() -> usize {
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find(|line| line.starts_with("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().nth(3)?.parse().ok());
    soft.unwrap_or(1_024)
}

/// Servers run on the first core, load generators and dependencies on the second.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Core {
    Servers,
    Others,
}

/// A command whose process ends with this one, on one core if there are several.
pub fn command(core: Core, program: &str) -> Command {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let core = if cores > 1 && core == Core::Others { "1" } else { "0" };
    let mut command = Command::new("taskset");
    command.args(["-c", core, "setpriv", "--pdeathsig", "KILL", "--", program]);
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("SWITCHBOARD_") || name.starts_with("OTEL_") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// A process that is killed when it is dropped.
pub struct Process(pub Child);

impl Process {
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    pub fn signal(&self, signal: &str) -> Result<()> {
        let status = Command::new("kill").args([signal, &self.pid().to_string()]).status()?;
        ensure!(status.success(), "kill {signal} {}", self.pid());
        Ok(())
    }

    pub fn has_ended(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(Some(_)))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub struct Redis {
    process: Option<Process>,
    folder: tempfile::TempDir,
    port: u16,
}

impl Redis {
    pub async fn start() -> Result<Self> {
        let mut redis = Self { process: None, folder: tempfile::tempdir()?, port: free_port() };
        redis.restart().await?;
        Ok(redis)
    }

    /// Stops Redis and starts an empty one on the same port.
    pub async fn restart(&mut self) -> Result<()> {
        self.process = None;
        let child = command(Core::Others, "redis-server")
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .args(["--maxmemory-policy", "noeviction", "--dir"])
            .arg(self.folder.path())
            .stdout(Stdio::null())
            .spawn()
            .context("redis-server is not installed")?;
        self.process = Some(Process(child));
        let began = Instant::now();
        while sample::redis(&self.address()).await.is_err() {
            ensure!(began.elapsed() < START, "redis-server does not answer");
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.address())
    }

    /// The memory of its data, as Redis reports it.
    pub async fn memory_bytes(&self) -> Result<u64> {
        Ok(self.used().await?.memory_bytes)
    }

    pub async fn used(&self) -> Result<sample::RedisUsed> {
        Ok(sample::redis(&self.address()).await?)
    }
}

/// The settings of a node.
#[derive(Default)]
pub struct Settings {
    pub redis: Option<String>,
    /// A SQLite file in the node's folder if `None`.
    pub database: Option<String>,
    pub limits: Option<String>,
    pub others: Vec<String>,
}

pub struct Node {
    pub process: Process,
    /// The URL for clients: `ws://…`.
    pub url: String,
    admin: SocketAddr,
    folder: tempfile::TempDir,
}

impl Node {
    pub async fn start(settings: Settings) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (port, admin_port) = (free_port(), free_port());
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let admin = SocketAddr::from(([127, 0, 0, 1], admin_port));
        let own = || format!("sqlite://{}", folder.path().join("history.db").display());
        let mut command = command(Core::Servers, &absolute(&binary())?);
        command
            .args(["serve", "--migrate", "--listen", &address.to_string()])
            .args(["--admin-listen", &admin.to_string(), "--log-format", "json"])
            .args(["--database-url", &settings.database.unwrap_or_else(own)])
            .args(settings.redis.iter().flat_map(|url| ["--redis-url", url]))
            .args(settings.limits.iter().flat_map(|limits| ["--limits", limits]))
            .args(&settings.others)
            .current_dir(folder.path())
            .stdout(Stdio::null())
            .stderr(File::create(folder.path().join("log"))?);
        let process = Process(command.spawn().context("the node does not start")?);
        let mut node = Self { process, url: format!("ws://{address}"), admin, folder };
        let began = Instant::now();
        while !node.is_ready().await {
            if node.process.has_ended() || began.elapsed() > START {
                bail!("a node does not get ready: {}", fs::read_to_string(node.log())?);
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(node)
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    pub fn log_lines(&self) -> usize {
        fs::read_to_string(self.log()).map_or(0, |log| log.lines().count())
    }

    pub fn memory_bytes(&self) -> u64 {
        sample::memory_bytes(self.process.pid()).unwrap_or_default()
    }

    pub fn cpu_s(&self) -> f64 {
        sample::cpu_s(&self.process.pid().to_string()).unwrap_or_default()
    }

    pub async fn is_ready(&self) -> bool {
        self.ask("/readyz").await.is_some_and(|answer| answer.starts_with("HTTP/1.1 200"))
    }

    /// The reply of the admin listener; `None` if it cannot be reached.
    async fn ask(&self, path: &str) -> Option<String> {
        let (admin, path) = (self.admin, path.to_owned());
        let asked = tokio::task::spawn_blocking(move || get(admin, &path));
        asked.await.ok()?.ok()
    }
}

/// A request on a connection of its own.
fn get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let patience = Duration::from_secs(5);
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(patience))?;
    let head = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// An absolute path, because nodes run in folders of their own.
fn absolute(path: &str) -> Result<String> {
    let path = Path::new(path).canonicalize().with_context(|| format!("{path}: build it first"))?;
    Ok(path.display().to_string())
}

/// The memory limit of a pod in the deployment, which all bounds together must fit into.
pub fn pod_memory_bytes() -> Result<u64> {
    let path = "k8s/base/deployment.yaml";
    let text = fs::read_to_string(path).with_context(|| path.to_owned())?;
    let limits = text.split_once("limits:").map_or("", |(_, limits)| limits);
    let memory = limits.lines().find_map(|line| line.trim().strip_prefix("memory:"));
    let memory = memory.map_or("", str::trim);
    let (number, unit) = match (memory.strip_suffix("Gi"), memory.strip_suffix("Mi")) {
        (Some(number), _) => (number, 30),
        (_, Some(number)) => (number, 20),
        _ => bail!("{path} has no memory limit in Mi or Gi"),
    };
    Ok(number.parse::<u64>()? << unit)
}

#[expect(clippy::cast_precision_loss, reason = "bytes of one process")]
pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
