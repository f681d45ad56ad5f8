//! A Redis for one test, with private ports and folder, removed with the test.

use std::{
    fs,
    io::{BufWriter, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

/// One Redis, or several that form a Cluster or a Sentinel group.
pub struct RedisServer {
    processes: Vec<Child>,
    ports: Vec<u16>,
    url: String,
    folder: tempfile::TempDir,
}

impl RedisServer {
    /// A single server.
    pub fn standalone() -> Self {
        let port = free_port();
        let mut server = Self::new(format!("redis://127.0.0.1:{port}"));
        server.spawn(port, &[]);
        server
    }

    /// A Redis Cluster of three masters.
    pub fn cluster() -> Self {
        let ports = [free_port(), free_port(), free_port()];
        let [first, second, third] = ports;
        let mut server = Self::new(format!(
            "redis-cluster://127.0.0.1:{first}?node=127.0.0.1:{second}&node=127.0.0.1:{third}"
        ));
        for port in ports {
            server.spawn(port, &["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"]);
        }
        let made = Command::new("redis-cli")
            .args(["--cluster", "create"])
            .args(ports.map(|port| format!("127.0.0.1:{port}")))
            .arg("--cluster-yes")
            .stdout(Stdio::null())
            .status()
            .expect("redis-cli is installed");
        assert!(made.success());
        for port in ports {
            wait_until("the cluster is whole", || says(port, "CLUSTER INFO", "cluster_state:ok"));
        }
        server
    }

    /// A master with a replica, and the sentinel that watches them.
    pub fn sentinel() -> Self {
        let (master, replica, sentinel) = (free_port(), free_port(), free_port());
        let url = format!("redis-sentinel://127.0.0.1:{sentinel}?sentinelServiceName=calls");
        let mut server = Self::new(url);
        server.spawn(master, &["--repl-diskless-sync-delay", "0"]);
        server.spawn(replica, &["--replicaof", "127.0.0.1", &master.to_string()]);
        wait_until("the replica follows", || {
            says(replica, "INFO replication", "master_link_status:up")
        });
        let settings = server.folder().join("sentinel.conf");
        let text = format!(
            "port {sentinel}\nbind 127.0.0.1\n\
             sentinel monitor calls 127.0.0.1 {master} 1\n\
             sentinel down-after-milliseconds calls 1000\n\
             sentinel failover-timeout calls 5000\n"
        );
        fs::write(&settings, text).unwrap();
        let settings = settings.to_str().unwrap();
        server.launch(sentinel, Command::new("redis-server").args([settings, "--sentinel"]));
        wait_until("the sentinel knows the replica", || {
            says(sentinel, "INFO sentinel", "slaves=1")
        });
        server
    }

    /// Kills the first server, which is the master.
    pub fn kill_first(&mut self) {
        let mut first = self.processes.remove(0);
        first.kill().expect("it is ours");
        first.wait().expect("it is ours");
    }

    /// Freezes the first server until `thaw`.
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let first = self.processes[0].id();
        let kill = format!("kill {signal} {first}");
        let sent = Command::new("sh").args(["-c", &kill]).status().expect("there is a shell");
        assert!(sent.success());
    }

    /// Publishes all of these on a sharded channel, and returns when Redis has distributed them.
    pub fn flood(&self, channel: &str, messages: impl Iterator<Item = String>) {
        let port = self.ports[0];
        let mut command = Command::new("redis-cli");
        command.args(["-p", &port.to_string(), "--pipe"]).stdin(Stdio::piped());
        let mut cli = command.stdout(Stdio::null()).spawn().expect("redis-cli is installed");
        let mut pipe = BufWriter::new(cli.stdin.take().expect("it is piped"));
        for message in messages {
            write!(pipe, "SPUBLISH {channel} '{message}'\r\n").unwrap();
        }
        drop(pipe);
        assert!(cli.wait().expect("it is ours").success());
        wait_until("nothing waits for a subscriber", || {
            let clients = Self::cli(port, &["CLIENT", "LIST", "TYPE", "PUBSUB"]);
            clients.lines().all(|client| client.contains(" omem=0 "))
        });
    }

    /// Moves the slot of a channel to another server of the Redis Cluster.
    pub fn move_slot_of(&self, channel: &str) {
        let slot = Self::cli(self.ports[0], &["CLUSTER", "KEYSLOT", channel]);
        let slot = slot.trim();
        let id_of = |port: u16| Self::cli(port, &["CLUSTER", "MYID"]).trim().to_owned();
        let owner = self.owner_of(slot);
        let owns = |port: &&u16| id_of(**port) == owner;
        let from = *self.ports.iter().find(owns).expect("somebody owns the slot");
        let to = *self.ports.iter().find(|port| **port != from).expect("there are three");
        let (from_id, to_id) = (id_of(from), id_of(to));
        Self::cli(to, &["CLUSTER", "SETSLOT", slot, "IMPORTING", &from_id]);
        Self::cli(from, &["CLUSTER", "SETSLOT", slot, "MIGRATING", &to_id]);
        for port in [to, from].iter().chain(&self.ports) {
            Self::cli(*port, &["CLUSTER", "SETSLOT", slot, "NODE", &to_id]);
        }
    }

    /// The id of the server that owns a slot.
    fn owner_of(&self, slot: &str) -> String {
        let slot: u16 = slot.parse().unwrap();
        let nodes = Self::cli(self.ports[0], &["CLUSTER", "NODES"]);
        let owner = nodes.lines().find(|line| {
            line.split(' ').skip(8).any(|range| {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                let bounds = (first.parse::<u16>(), last.parse::<u16>());
                matches!(bounds, (Ok(first), Ok(last)) if (first..=last).contains(&slot))
            })
        });
        owner.and_then(|line| line.split(' ').next()).unwrap_or_default().to_owned()
    }

    /// The first server's reply to a command.
    pub fn run(&self, command: &[&str]) -> String {
        Self::cli(self.ports[0], command).trim().to_owned()
    }

    /// Has Redis evict these keys, and no other, because its memory is full.
    pub fn evict(&self, keys: &[&str]) {
        // Of keys with a time to live the one that ends first goes first; the ballast makes room enough.
        self.run(&["CONFIG", "SET", "maxmemory-policy", "volatile-ttl", "maxmemory-samples", "64"]);
        self.run(&["SETRANGE", "ballast", "4194304", "x"]);
        self.run(&["EXPIRE", "ballast", "3000"]);
        for key in keys {
            assert_eq!(self.run(&["EXPIRE", key, "1000"]), "1", "{key} is there");
        }
        let info = self.run(&["INFO", "memory"]);
        let used = info.lines().find_map(|line| line.trim().strip_prefix("used_memory:"));
        let used: u64 = used.expect("Redis says it").parse().unwrap();
        self.run(&["CONFIG", "SET", "maxmemory", &(used - 2 * 1_048_576).to_string()]);
        wait_until("the ballast is evicted", || self.run(&["EXISTS", "ballast"]) == "0");
        self.run(&["CONFIG", "SET", "maxmemory", "0"]);
        for key in keys {
            assert_eq!(self.run(&["EXISTS", key]), "0", "{key} is evicted");
        }
    }

    fn cli(port: u16, command: &[&str]) -> String {
        let output =
            Command::new("redis-cli").args(["-p", &port.to_string()]).args(command).output();
        String::from_utf8(output.expect("redis-cli is installed").stdout).unwrap()
    }

    fn new(url: String) -> Self {
        Self { processes: Vec::new(), ports: Vec::new(), url, folder: tempfile::tempdir().unwrap() }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn spawn(&mut self, port: u16, settings: &[&str]) {
        let folder = self.folder().join(port.to_string());
        fs::create_dir(&folder).unwrap();
        let mut command = Command::new("redis-server");
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
        self.launch(port, command.arg("--dir").arg(folder).args(settings));
    }

    fn launch(&mut self, port: u16, command: &mut Command) {
        self.ports.push(port);
        let process = command.stdout(Stdio::null()).spawn().expect("redis-server is installed");
        self.processes.push(process);
        wait_until("redis-server answers", || says(port, "PING", "+PONG"));
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        for process in &mut self.processes {
            process.kill().expect("it is ours");
            process.wait().expect("it is ours");
        }
    }
}

/// A port that no other test of this process uses, below the range of ephemeral ports. A Redis
/// Cluster adds 10,000 to it for its bus.
pub fn free_port() -> u16 {
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = std::process::id()
            .wrapping_mul(101)
            .wrapping_add(TAKEN.fetch_add(1, Ordering::Relaxed));
        let port = 10_000 + u16::try_from(number % 12_000).expect("it is below 12,000");
        let is_free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        if is_free(port) && is_free(port + 10_000) {
            return port;
        }
    }
}

pub fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let patience = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < patience, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a server's reply to `command` contains `expected`.
fn says(port: u16, command: &str, expected: &str) -> bool {
    let answer = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(format!("{command}\r\n").as_bytes())?;
        let mut answer = vec![0; 1024];
        let length = stream.read(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
    };
    answer().is_ok_and(|answer| answer.contains(expected))
}
